"""What a layer's parameters must look like, and the one place where a call checks and unravels them."""

import functools
from typing import Any

import jax

from ..components import ComponentVector, Layout


@functools.lru_cache(maxsize=4096)
def parameter_layout(layer: Any) -> Layout:
    """The layout of a layer's parameters, by `jax.eval_shape` of its `init_params`: nothing is computed."""
    layout = None

    def init(key):
        nonlocal layout
        layout = Layout.of(layer.init_params(key))  # here, where dicts still have their declared order

    jax.eval_shape(init, jax.random.key(0))
    return layout


@functools.lru_cache(maxsize=4096)
def _require_fit(layer: Any, layout: Layout) -> None:
    found = parameter_layout(layer).difference(layout, order=False, dtypes=False)
    if found:
        name = type(layer).__name__
        raise ValueError(f"these are not the parameters of this {name}: {found}. `lux.setup(key, layer)` makes them")


def parameter_tree(layer: Any, ps: Any) -> Any:
    """The nested dict that `forward` gets, from a ComponentVector or a nested dict.

    Raises `ValueError` naming the first path, from the root, that is missing, unknown or of another shape.
    """
    if isinstance(ps, ComponentVector):
        _require_fit(layer, ps.layout)
        return ps.tree()
    if isinstance(ps, jax.Array):
        return parameter_layout(layer).unravel(ps)
    _require_fit(layer, Layout.of(ps))
    return ps
