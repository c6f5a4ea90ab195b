"""Making parameters and state, and counting them."""

from collections.abc import Callable
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import is_inexact
from ..components import ComponentVector
from .field import checks_itself
from .layer import Layer, Parameters, State, as_layer
from .mode import Mode
from .parameters import elements, layout_now, state_size
from .printing import brief
from .stateful import StatefulLayer
from .static import is_random_key


@overload
def setup(
    key: jax.Array, layer: Layer | Callable[..., Any], dtype: Any = None, flat: Literal[True] = True
) -> tuple[ComponentVector, State]: ...


@overload
def setup(
    key: jax.Array, layer: Layer | Callable[..., Any], dtype: Any = None, *, flat: Literal[False]
) -> tuple[dict[str, Any], State]: ...


@overload
def setup(
    key: jax.Array, layer: Layer | Callable[..., Any], dtype: Any = None, flat: bool = True
) -> tuple[ComponentVector | dict[str, Any], State]: ...


@checks_itself
def setup(key: Any, layer: Any, dtype: Any = None, flat: bool = True) -> tuple[Any, State]:
    """The parameters and the state of a layer, in training mode.

    `key` is a random key, `jax.random.key(0)`. Keys are passed on by position, and parameters and state draw from
    separate streams, so that appending a layer leaves the earlier ones as they were. `dtype` is the floating-point type
    of parameters and state (default: JAX's). Entries of the state whose names start with `running_`, such as the
    statistics of `BatchNorm`, add up what many calls see: in half precision small steps would be lost, and so they stay
    in float32. With `flat` the parameters are a `ComponentVector`; without, nested dicts.

    Raises `TypeError` for a key that is none, for a layer that is neither a layer nor a function, and for another type.

    >>> from lux_sciml import Chain, Dense
    >>> ps, st = setup(jax.random.key(0), Chain(Dense(2, 3), Dense(3, 1)))
    >>> ps.size, ps.layer_1.weight.shape
    (13, (3, 1))
    """
    key, layer = as_key(key), as_layer(layer)
    ps = layer.init_params(jax.random.fold_in(key, 0))
    st = layer.init_state(jax.random.fold_in(key, 1))
    for name, tree in (("init_params", ps), ("init_state", st)):
        if not isinstance(tree, dict):
            raise TypeError(f"`{name}` of {type(layer).__name__} returns a dict, got a {type(tree).__name__}")
    if dtype is not None:
        _require_floating(dtype)
        wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
        ps, st = _cast(ps, dtype, dtype), _cast(st, dtype, wide)
    return (ComponentVector.from_tree(ps) if flat else ps), st


def _require_floating(dtype: Any) -> None:
    """Raise `TypeError` for what is no floating-point type, and no complex one."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.inexact):
        raise TypeError(f"`dtype` is a floating-point type, such as jnp.float32, got {dtype!r}")


def as_key(key: Any) -> jax.Array:
    """A typed random key from one, or from an old-style `PRNGKey`. Raises `TypeError` for everything else."""
    if isinstance(key, Layer):
        raise TypeError(f"the key comes first, `lux.setup(jax.random.key(seed), layer)`; got the layer {brief(key)}")
    if getattr(key, "dtype", None) == jnp.uint32 and key.shape == jax.random.key_data(jax.random.key(0)).shape:
        key = jax.random.wrap_key_data(key)
    if not is_random_key(key):
        raise TypeError(f"expected a random key, jax.random.key(seed), got {key!r}")
    if key.shape:
        raise TypeError(
            f"expected one random key, got keys of shape {key.shape}: for an ensemble, `jax.vmap(lambda key: "
            "lux.setup(key, layer)[0])(keys)`"
        )
    return key


def _cast(tree: Any, dtype: Any, running: Any) -> Any:
    """Cast the floating-point leaves, to `running` what is called `running_...`, keeping the order of dicts, which
    JAX's tree functions sort."""
    if isinstance(tree, dict):
        types = {name: running if str(name).startswith("running_") else dtype for name in tree}
        return {name: _cast(child, types[name], running) for name, child in tree.items()}

    return jax.tree.map(lambda x: x.astype(dtype) if is_inexact(x) else x, tree)


@checks_itself
def parameter_length(x: Layer | StatefulLayer | Parameters) -> int:
    """How many elements the parameters of a layer, of a `StatefulLayer`, or given parameters, hold.

    >>> from lux_sciml import Dense
    >>> parameter_length(Dense(2, 3)), parameter_length({"weight": jnp.ones((2, 3))})
    (9, 6)
    """
    if isinstance(x, StatefulLayer):
        x = x.ps
    if isinstance(x, Layer):
        return layout_now(x).size
    _require_tree(x, "parameters")
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(x))


@checks_itself
def state_length(x: Layer | StatefulLayer | State) -> int:
    """How many elements the state of a layer, of a `StatefulLayer`, or a given state, holds.

    A random key and a `Mode` count one each.

    >>> from lux_sciml import BatchNorm
    >>> state_length(BatchNorm(3))
    7
    """
    if isinstance(x, StatefulLayer):
        x = x.st
    if isinstance(x, Layer):
        return state_size(x)
    _require_tree(x, "state")
    return elements(x)


def _require_tree(x: Any, what: str) -> None:
    kinds = jax.Array | np.ndarray | np.generic | float | int | complex | Mode
    leaves = [None] if x is None else jax.tree.leaves(x)
    if not all(isinstance(leaf, kinds) or hasattr(leaf, "shape") for leaf in leaves):
        raise TypeError(f"expected a layer, or the {what} that `ps, st = lux.setup(key, layer)` makes, got {x!r}")


@checks_itself
def output_shape(layer: Layer, x: Any) -> Any:
    """The shapes of the output for an input (an array, or a `jax.ShapeDtypeStruct`), without computing anything.

    >>> from lux_sciml import Dense
    >>> output_shape(Dense(2, 3), jnp.ones((8, 2)))
    (8, 3)
    """
    return jax.tree.map(lambda y: y.shape, jax.eval_shape(_output, as_layer(layer), x))


def _output(layer: Layer, x: Any) -> Any:
    ps, st = setup(jax.random.key(0), layer, flat=False)
    return layer.forward(x, ps, st)[0]
