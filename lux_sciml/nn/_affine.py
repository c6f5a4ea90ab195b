"""The parameters of affine maps, and their products."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._platform import by_platform
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


def product(x: Any, weight: Any) -> jax.Array:
    """`x @ weight`, on the CPU as a product of two matrices: XLA copies in the gradient of others, a fifth of its time.

    Not elsewhere: it would gather inputs that are spread over devices along another axis than the first one.
    """
    if x.ndim < 3:
        return x @ _bottleneck(weight)
    return by_platform(x, weight, cpu=_product_of_matrices, default=jnp.matmul)


def _product_of_matrices(x: jax.Array, weight: jax.Array) -> jax.Array:
    *batch, features = x.shape
    return (x.reshape(math.prod(batch), features) @ _bottleneck(weight)).reshape(*batch, weight.shape[-1])


_FEW = 64  # outputs; for more of them there is little in it, and the matrix to turn is large


def _bottleneck(weight: Any) -> Any:
    """A weight with a quicker gradient, where few outputs are made of many inputs.

    On the CPU XLA takes several times as long for `x.T @ y` as for `(y.T @ x).T`, and makes the first of the second,
    unless there is a barrier between.
    """
    inputs, outputs = weight.shape
    return _turned_in_gradient(weight) if outputs <= min(_FEW, inputs // 4) else weight


@jax.custom_jvp
def _turned_in_gradient(weight):
    return weight


@_turned_in_gradient.defjvp
def _(primals, tangents):
    return primals[0], lax.optimization_barrier(tangents[0].T).T
