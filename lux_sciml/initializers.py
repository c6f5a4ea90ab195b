"""Initial weights: frozen values that compare, print and pickle, beside those of `jax.nn.initializers`.

An initializer is called as `init(key, shape, dtype)`, as in `jax.nn.initializers`, whose objects can be passed wherever
one of these can; those are closures, however, and two built apart are two different options to `jax.jit`.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Independent numbers from U(-bound, bound).

    >>> Uniform(0.1)(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    bound: float

    def __call__(self, key, shape, dtype=None):
        dtype = jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype
        return jax.random.uniform(key, shape, dtype, -self.bound, self.bound)


@dataclasses.dataclass(frozen=True)
class KaimingUniform:
    """U(-b, b) with b = gain * sqrt(3 / fan_in), which keeps the variance of what passes through: `gain^2 / fan_in`.

    He et al., "Delving deep into rectifiers", ICCV 2015, equation 10, with the gain of the activation. The input
    features are the second axis from the end, the output features the last; the axes before are a window.

    >>> KaimingUniform(gain=2**0.5)(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype=None):
        dtype = jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype
        if 0 in shape:
            return jnp.zeros(shape, dtype)
        return jax.nn.initializers.variance_scaling(self.gain**2, "fan_in", "uniform")(key, shape, dtype)


def zeros(key, shape, dtype=None):
    """All zeros."""
    return jnp.zeros(shape, jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype)


def ones(key, shape, dtype=None):
    """All ones."""
    return jnp.ones(shape, jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype)
