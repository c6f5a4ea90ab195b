"""Activations, beside those of `jax.nn`, and the gains that initial weights take from them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def identity(x: Any) -> Any:
    """`x` itself."""
    return x


def lisht(x: Any) -> Any:
    """`x * tanh(x)`. Roy et al., "LiSHT", arXiv:1901.05894.

    >>> lisht(jnp.array([-1.0, 0.0, 1.0]))
    Array([0.7615942, 0.       , 0.7615942], dtype=float32)
    """
    return x * jnp.tanh(x)


def tanhshrink(x: Any) -> Any:
    """`x - tanh(x)`.

    >>> tanhshrink(jnp.array([-1.0, 0.0, 1.0]))
    Array([-0.23840582,  0.        ,  0.23840582], dtype=float32)
    """
    return x - jnp.tanh(x)


def softshrink(x: Any, bound: float = 0.5) -> Any:
    """`x` moved towards zero by `bound`, and zero closer to it than that.

    >>> softshrink(jnp.array([-1.0, 0.3, 1.0]))
    Array([-0.5,  0. ,  0.5], dtype=float32)
    """
    return x - jnp.clip(x, -bound, bound)


def hardshrink(x: Any, bound: float = 0.5) -> Any:
    """`x`, and zero where it is closer to zero than `bound`.

    >>> hardshrink(jnp.array([-1.0, 0.3, 1.0]))
    Array([-1.,  0.,  1.], dtype=float32)
    """
    return jnp.where(jnp.abs(x) > bound, x, jnp.zeros_like(x))


def trelu(x: Any, bound: float = 1.0) -> Any:
    """`x` above `bound`, zero elsewhere. Konda, Memisevic and Krueger, arXiv:1402.3337.

    >>> trelu(jnp.array([-1.0, 0.5, 2.0]))
    Array([0., 0., 2.], dtype=float32)
    """
    return jnp.where(x > bound, x, jnp.zeros_like(x))


def logcosh(x: Any) -> Any:
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


def gain(activation: Callable) -> float:
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
