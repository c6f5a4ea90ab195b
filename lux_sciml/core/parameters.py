"""What a layer's parameters must look like, how large they and the state are, and where a call checks them."""

import functools
import math
from typing import Any

import jax
import numpy as np

from ..components import ComponentVector, Layout
from .mode import Mode


def parameter_layout(layer: Any) -> Layout:
    """The layout of a layer's parameters, by `jax.eval_shape` of its `init_params`: nothing is computed."""
    return _parameter_layout(layer, jax.dtypes.canonicalize_dtype(float))


def layout_like(layer: Any, tree: Any) -> Layout:
    """The layout of a layer's parameters, in the type of those in a tree, where they have one."""
    layout, types = parameter_layout(layer), {x.dtype for x in jax.tree.leaves(tree) if hasattr(x, "dtype")}
    return layout.astype(types.pop()) if len(types) == 1 else layout


@functools.lru_cache(maxsize=4096)
def _parameter_layout(layer: Any, default_dtype: Any) -> Layout:
    return layout_now(layer)


def layout_now(layer: Any) -> Layout:
    """The layout of a layer's parameters, whatever it was before."""
    layouts: list[Layout] = []
    # inside, where dicts still have their declared order
    jax.eval_shape(lambda key: layouts.append(Layout.of(layer.init_params(key))), jax.random.key(0))
    return layouts[0]


def state_size(layer: Any) -> int:
    """How many elements a layer's state holds."""
    return elements(jax.eval_shape(layer.init_state, jax.random.key(0)))


def has_parameters_or_state(layer: Any) -> bool:
    """Whether a layer has any parameter or entry of state."""
    return bool(parameter_layout(layer).size or state_size(layer))


def elements(st: Any) -> int:
    """How many elements a state holds; a random key and a `Mode` count one each."""
    leaves = jax.tree.leaves(st, is_leaf=lambda leaf: isinstance(leaf, Mode))
    return sum(math.prod(getattr(leaf, "shape", ())) for leaf in leaves)


@functools.lru_cache(maxsize=4096)
def _require_fit(layer: Any, layout: Layout) -> None:
    found = parameter_layout(layer).difference(layout, order=False, dtypes=False)
    if found:
        name, names = type(layer).__name__, {*layout.children}
        in_parts = "pad_" in names or names == {"rest", "rows"}  # as `lux.distributed.shard` stores them
        fix = "`lux.distributed.gather` makes parts whole" if in_parts else "`lux.setup(key, layer)` makes them"
        raise ValueError(f"these are not the parameters of this {name}: {found}. {fix}")


def parameter_tree(layer: Any, ps: Any) -> Any:
    """The nested dict that `forward` gets, from a ComponentVector, a nested dict, or a plain vector of all elements.

    A plain vector, from SciPy say, is taken in its own precision. Raises `ValueError` naming the first path, from the
    root, that is missing, unknown or of another shape.
    """
    try:
        return _fitting_tree(layer, ps)
    except ValueError:
        _parameter_layout.cache_clear()
    return _fitting_tree(layer, ps)  # what `init_params` reads may have changed


def _fitting_tree(layer: Any, ps: Any) -> Any:
    if isinstance(ps, ComponentVector):
        _require_fit(layer, ps.layout)
        return ps.tree()
    if isinstance(ps, jax.Array | np.ndarray):
        layout = parameter_layout(layer)
        vector = layout.check(ps)
        return layout.astype(vector.dtype).unravel(vector)
    _require_fit(layer, Layout.of(ps))
    return ps


def fits(layer: Any, ps: Any) -> bool:
    """Whether `ps` holds parameters of the layer, which has some."""
    try:
        return bool(parameter_layout(layer).size) and parameter_tree(layer, ps) is not None
    except Exception:  # whatever it is
        return False
