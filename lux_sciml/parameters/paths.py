"""Paths in the parameters of a layer: written as `"layer_0.weight"` or `("layer_0", "weight")`, kept as tuples."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..components import ComponentVector, Layout
from ..components.nodes import Path, path_string
from ..core import Layer
from ..core.converters import checks_itself
from ..core.parameters import parameter_layout


@checks_itself
def path_or_paths(value: str | Sequence[str | Path]) -> tuple[str | Path, ...]:
    """The converter of an option that names parameters: one path or several, as they are written."""
    paths = (value,) if isinstance(value, str) else value
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | tuple) and path for path in paths):
        raise TypeError(
            f"expected paths of parameters, 'layer_0.weight' or ('layer_0', 'weight') within a tuple of paths, got "
            f"{value!r}"
        )
    return tuple(paths)


def find_paths(layer: Layer, paths: Iterable[str | Path]) -> list[Path]:
    """The full paths in the parameters of a layer. Raises `ValueError` for unknown paths and for those that overlap."""
    layout = parameter_layout(layer)
    found = [find_path(layout, path) for path in paths]
    for a, b in overlaps(found):
        raise ValueError(f"{path_string(a)!r} and {path_string(b)!r} overlap: name one of them")
    return found


def find_path(layout: Layout, path: str | Path) -> Path:
    """The full path of what `"a.b"` or `("a", "b")` names. Raises `ValueError` where there is nothing."""
    with contextlib.suppress(KeyError):
        return layout.resolve(path)
    keys = path if isinstance(path, tuple) else tuple(path.split("."))
    for key in keys:
        if key not in layout.children:
            has = (
                f"the names here are {', '.join(map(str, layout.children))}" if layout.children else "nothing is below"
            )
            text = path_string(path) if isinstance(path, tuple) else path
            raise ValueError(f"there is no parameter {text!r}: {key!r} is not found, {has}")
        layout = layout.children[key]
    return keys


def overlaps(paths: Iterable[Path]) -> Iterable[tuple[Path, Path]]:
    """The pairs of which one holds the other, the shorter path first."""
    for pair in itertools.combinations(paths, 2):
        a, b = sorted(pair, key=len)
        if a == b[: len(a)]:
            yield a, b


def at_paths(tree: Mapping[Any, Any], paths: Iterable[Path], change: Callable[[Path, Any], Any]) -> dict[Any, Any]:
    """The nested dict with `change(path, value)` at each path, in its order."""
    out = dict(tree)
    for path in paths:
        out = with_value(out, path, change(path, value_at(tree, path)))
    return out


def value_at(tree: Any, path: Path) -> Any:
    """What stands in a nested dict at a path."""
    for key in path:
        tree = tree[key]
    return tree


def with_value(tree: Mapping[Any, Any], path: Path, value: Any) -> dict[Any, Any]:
    """The nested dict with a value at a path, where dicts that are missing are made."""
    key, *rest = path
    return {**tree, key: with_value(tree.get(key, {}), tuple(rest), value) if rest else value}


def without(tree: Mapping[Any, Any], path: Path) -> dict[Any, Any]:
    """The nested dict without what stands at a path."""
    key, *rest = path
    if rest:
        return {**tree, key: without(tree[key], tuple(rest))}
    return {name: child for name, child in tree.items() if name != key}


def like_parameters(ps: Any, tree: dict[str, Any]) -> Any:
    """A nested dict as it is where `ps` is one, else as a flat vector, in which what was shared in `ps` still is."""
    if isinstance(ps, dict):
        return tree
    layout = Layout.of(tree)
    there, dtypes = {leaf.path for leaf in layout.leaves}, {leaf.dtype for leaf in layout.leaves}
    ties = [pair for pair in ps.layout.ties if there.issuperset(pair)] if isinstance(ps, ComponentVector) else []
    return ComponentVector.from_tree(tree, ps.dtype if len(dtypes) > 1 else None, like=layout.tie(*ties))
