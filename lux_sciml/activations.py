"""Activations, beside those of `jax.nn`, and the gains that initial weights take from them.

Integers become JAX's default float; half precision is computed in float32 and rounded at the end.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import _names
from ._tree import floating, widened

__dir__ = _names.public(__name__)


def identity(x: Any) -> Any:
    """`x` itself.

    >>> identity(3)
    3
    """
    return x


def _rounded(activation: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The activation of arrays in float32 at least, rounded to the precision of the input."""

    @functools.wraps(activation)
    def rounded(x: Any, *args: Any, **kwargs: Any) -> jax.Array:
        x = floating(x)
        return activation(widened(x), *args, **kwargs).astype(x.dtype)

    return rounded


@_rounded
def lisht(x: Any) -> jax.Array:
    """`x * tanh(x)`. Roy et al., "LiSHT", arXiv:1901.05894.

    >>> lisht(jnp.array([-1.0, 0.0, 1.0]))
    Array([0.7615942, 0.       , 0.7615942], dtype=float32)
    """
    return x * jnp.tanh(x)


@_rounded
def tanhshrink(x: Any) -> jax.Array:
    """`x - tanh(x)`.

    >>> tanhshrink(jnp.array([-1.0, 0.0, 1.0]))
    Array([-0.23840582,  0.        ,  0.23840582], dtype=float32)
    """
    return x - jnp.tanh(x)


@_rounded
def softshrink(x: Any, bound: float = 0.5) -> jax.Array:
    """`x` moved toward zero by `bound`, and zero closer to it than that.

    >>> softshrink(jnp.array([-1.0, 0.3, 1.0]))
    Array([-0.5,  0. ,  0.5], dtype=float32)
    """
    return x - jnp.clip(x, -bound, bound)


@_rounded
def hardshrink(x: Any, bound: float = 0.5) -> jax.Array:
    """`x`, and zero where it is closer to zero than `bound`.

    >>> hardshrink(jnp.array([-1.0, 0.3, 1.0]))
    Array([-1.,  0.,  1.], dtype=float32)
    """
    return jnp.where(jnp.abs(x) > bound, x, jnp.zeros_like(x))


@_rounded
def trelu(x: Any, bound: float = 1.0) -> jax.Array:
    """`x` above `bound`, zero elsewhere. Konda, Memisevic and Krueger, arXiv:1402.3337.

    >>> trelu(jnp.array([-1.0, 0.5, 2.0]))
    Array([0., 0., 2.], dtype=float32)
    """
    return jnp.where(x > bound, x, jnp.zeros_like(x))


@_rounded
def logcosh(x: Any) -> jax.Array:
    """`log(cosh(x))`, without overflow.

    >>> bool(jnp.isclose(logcosh(-1000.0), 1000.0 - jnp.log(2.0)))
    True
    """
    return x + jax.nn.softplus(-2 * x) - math.log(2)


_GAINS = {
    jnp.tanh: 5 / 3,
    jax.nn.tanh: 5 / 3,
    jax.nn.relu: math.sqrt(2),
    jax.nn.relu6: math.sqrt(2),
    jax.nn.leaky_relu: math.sqrt(2 / (1 + 0.01**2)),
    jax.nn.selu: 3 / 4,
}


def gain(activation: Callable[..., Any]) -> float:
    """The factor by which initial weights are enlarged so that the activation keeps the variance; 1 if none is known.

    The values are those of `torch.nn.init.calculate_gain`: tanh 5/3, relu sqrt(2), leaky_relu sqrt(2 / (1 + slope^2)),
    selu 3/4, and 1 for the identity and sigmoid.

    >>> gain(jnp.tanh) == 5 / 3, gain(identity)
    (True, 1.0)
    >>> gain(functools.partial(jax.nn.leaky_relu, negative_slope=1.0))
    1.0
    """
    if isinstance(activation, functools.partial) and activation.func is jax.nn.leaky_relu:
        return math.sqrt(2 / (1 + activation.keywords.get("negative_slope", 0.01) ** 2))
    return _GAINS.get(activation, 1.0)
