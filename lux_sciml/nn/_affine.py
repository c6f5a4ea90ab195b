"""The parameters of affine maps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._tree import is_half, single
from ._shapes import cast_like


def weight_and_bias(
    key: jax.Array, shape: Sequence[int], init_weight: Callable, bias_shape: Sequence[int], init_bias: Callable | None
) -> dict[str, jax.Array]:
    """`weight` and `bias`, each drawn from a key of its own; without an initializer of the bias there is none."""
    key_weight, key_bias = jax.random.split(key)
    ps = {"weight": init_weight(key_weight, shape, float)}
    return ps if init_bias is None else ps | {"bias": init_bias(key_bias, bias_shape, float)}


def shared(p: Any, like: Any) -> Any:
    """A parameter that many elements share, to be added to or multiplied with an array `like` those.

    In half precision its gradient, a sum over them, would stop to grow: it is added up in float32.
    """
    return jnp.broadcast_to(single(p), like.shape).astype(p.dtype) if is_half(p) else p


def shared_by_steps(ps: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Parameters that all steps of a loop share, for outside of it, and what makes them again inside.

    In half precision their gradients, sums over the steps, are added up in float32.
    """
    half = any(map(is_half, jax.tree.leaves(ps)))
    return (single(ps), lambda wide: cast_like(wide, ps)) if half else (ps, lambda ps: ps)
