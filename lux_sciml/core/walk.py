"""Every layer of a model, by its path: visited, or replaced."""

from collections.abc import Callable, Iterator

from .container import Container, Wrapper
from .layer import Layer


def walk(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer of a model with its path, from the outside in."""
    yield path, layer
    if isinstance(layer, Container):
        for name, child in layer.children.items():
            yield from walk(child, f"{path}.{name}" if path else name)
    elif isinstance(layer, Wrapper):
        yield from walk(layer.child, path)


def instrument(layer: Layer, wrap: Callable[[str, Layer, Layer], Layer], path: str = "") -> Layer:
    """The model with every layer, itself included, replaced by `wrap(path, layer, instrumented layer)`.

    `wrap` must keep parameters and state as they are, as a `Wrapper` does.
    """
    inner = layer
    if isinstance(layer, Container):
        names = {name: f"{path}.{name}" if path else name for name in layer.children}
        inner = layer.replace_children({name: instrument(layer[name], wrap, names[name]) for name in names})
    elif isinstance(layer, Wrapper):
        inner = layer.replace_child(instrument(layer.child, wrap, path))
    return wrap(path, layer, inner)
