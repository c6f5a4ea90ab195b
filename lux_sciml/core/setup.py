"""Making parameters and state, and counting them."""

from typing import Any

import jax
import jax.numpy as jnp

from ..components import ComponentVector
from .layer import Layer, as_layer
from .parameters import elements, parameter_layout, state_size
from .static import is_random_key


def setup(key: Any, layer: Any, dtype=None, flat: bool = True) -> tuple[Any, Any]:
    """The parameters and the state of a layer, in training mode.

    `key` is a random key, `jax.random.key(0)`. Keys are handed on by position, and parameters and state draw from
    separate streams, so that appending a layer leaves the earlier ones as they were. `dtype` is the floating-point type
    of parameters and state (default: JAX's). With `flat` the parameters are a `ComponentVector`; without, nested dicts.

    >>> from lux_sciml import Chain, Dense
    >>> ps, st = setup(jax.random.key(0), Chain(Dense(2, 3), Dense(3, 1)))
    >>> ps.size, ps.layer_1.weight.shape
    (13, (3, 1))
    """
    key, layer = as_key(key), as_layer(layer)
    ps = layer.init_params(jax.random.fold_in(key, 0))
    st = layer.init_state(jax.random.fold_in(key, 1))
    if dtype is not None:
        ps, st = _cast(ps, dtype), _cast(st, dtype)
    return (ComponentVector.from_tree(ps) if flat else ps), st


def as_key(key: Any) -> jax.Array:
    """A typed random key from one, or from an old-style `PRNGKey`. Raises `TypeError` for everything else."""
    if is_random_key(key):
        return key
    if getattr(key, "dtype", None) == jnp.uint32:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"expected a random key, jax.random.key(seed), got {key!r}")


def _cast(tree: Any, dtype) -> Any:
    """Cast the floating-point leaves, keeping the order of dicts, which JAX's tree functions sort."""
    if isinstance(tree, dict):
        return {name: _cast(child, dtype) for name, child in tree.items()}

    def cast(x):
        return x.astype(dtype) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(cast, tree)


def parameter_length(x: Any) -> int:
    """How many numbers the parameters of a layer, or given parameters, hold."""
    if isinstance(x, Layer):
        return parameter_layout(x).size
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(x))


def state_length(x: Any) -> int:
    """How many numbers the state of a layer, or a given state, holds; a random key and a `Mode` count one each.

    >>> from lux_sciml import BatchNorm
    >>> state_length(BatchNorm(3))
    7
    """
    return state_size(x) if isinstance(x, Layer) else elements(x)


def output_shape(layer: Layer, x: Any) -> Any:
    """The shapes of the output for an input (an array, or a `jax.ShapeDtypeStruct`), without computing anything.

    >>> from lux_sciml import Dense
    >>> output_shape(Dense(2, 3), jnp.ones((8, 2)))
    (8, 3)
    """
    return jax.tree.map(lambda y: y.shape, jax.eval_shape(_output, layer, x))


def _output(layer: Layer, x: Any) -> Any:
    ps, st = setup(jax.random.key(0), layer, flat=False)
    return layer.forward(x, ps, st)[0]
