"""layer_map: a function of every layer of a model, with its parameters, its state and its path."""

from collections.abc import Callable
from typing import Any

from .._tree import in_order
from ..core import Container, Layer, Wrapper
from ..core.converters import checks_itself
from ..core.parameters import parameter_layout, parameter_tree
from .paths import like_parameters


@checks_itself
def layer_map(f: Callable[[Layer, Any, Any, str], tuple[Layer, Any, Any]], layer: Layer, ps: Any, st: Any) -> Any:
    """Replaces every innermost layer, with its parameters and state: `layer, ps, st = f(layer, ps, st, path)`.

    `f` gets layers that are neither containers nor wrappers, in order, and paths such as `"layer_0.layer"`. Their
    parameters are those that they are called with: whole weights in a `WeightNorm`, which takes apart what comes back,
    frozen ones too in a `Frozen`; in a `Stack`, with the copies along the first axis. Returns the new model, parameters
    (a ComponentVector if `ps` is one) and state. Raises `ValueError` where the new parameters are not those of the new
    layers, `TypeError` where `f` returns something else.

    >>> import jax, lux_sciml as lux
    >>> def without_bias(layer, ps, st, path):
    ...     if isinstance(layer, lux.Dense):
    ...         return layer.replace(use_bias=False), {"weight": ps["weight"]}, st
    ...     return layer, ps, st
    >>> model = lux.Chain(lux.Dense(2, 3), lux.Dense(3, 1))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model, ps, st = lux.parameters.layer_map(without_bias, model, ps, st)
    >>> ps.size, model(jax.numpy.ones(2), ps, st)[0].shape
    (9, (1,))
    """
    if isinstance(f, Layer) or not isinstance(layer, Layer):
        raise TypeError(f"layer_map(f, layer, ps, st): a function, then a layer, got a {type(layer).__name__} as this")
    new, tree, st = _mapped(f, layer, parameter_tree(layer, ps), st, "")
    layout = parameter_layout(new)
    tree = in_order(parameter_tree(new, tree), layout.rebuild(layout.leaves))  # JAX sorts the dicts that `f` maps over
    return new, like_parameters(ps, tree), st


def _mapped(f: Any, layer: Layer, ps: Any, st: Any, path: str) -> tuple[Layer, Any, Any]:
    if isinstance(layer, Wrapper):
        inner = layer.to_child(ps, st)
        child, ps_child, st_child = _mapped(f, layer.child, *inner, path)
        layer = layer.replace_child(child)
        return layer, *layer.from_child(ps_child, st_child, st)
    if not isinstance(layer, Container):
        result = f(layer, ps, st, path)
        if not isinstance(result, tuple) or len(result) != 3 or not isinstance(result[0], Layer):
            got = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
            raise TypeError(f"the function of layer_map returns (layer, ps, st), got {got} for `{path}`")
        return result
    children, ps, st = dict(layer.children), dict(ps), dict(st)
    for name, child in children.items():
        below = f"{path}.{name}" if path else name
        children[name], ps[name], st[name] = _mapped(f, child, ps[name], st[name], below)
    return layer.replace_children(children), ps, st
