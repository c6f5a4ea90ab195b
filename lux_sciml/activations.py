"""Activations, beside those of `jax.nn`, and the gains that initial weights take from them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def identity(x: Any) -> Any:
    """`x` itself."""
    return x


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
    """
    return _GAINS.get(activation, 1.0)
