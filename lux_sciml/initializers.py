"""Initial weights: frozen values that compare, print and pickle, beside those of `jax.nn.initializers`.

An initializer is called as `init(key, shape, dtype)`, as in `jax.nn.initializers`, whose objects can be passed wherever
one of these can; those are closures, however, and two built apart are two different options to `jax.jit`.

Weights have the shape `(*window, in, out)`: `fan_in` is the size of the window times `in`, `fan_out` that times `out`.
"""

import dataclasses
import math

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
        return jax.random.uniform(key, shape, _default(dtype), -self.bound, self.bound)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Independent numbers from N(0, std^2).

    >>> Normal(0.1)(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    std: float = 1.0

    def __call__(self, key, shape, dtype=None):
        return self.std * jax.random.normal(key, shape, _default(dtype))


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """Independent numbers from N(mean, std^2), drawn anew until they lie between `lower` and `upper`.

    The bounds are values, not multiples of the standard deviation. Raises `ValueError` where they are out of order.

    >>> float(abs(TruncatedNormal(std=5.0)(jax.random.key(0), (1000,), jnp.float32)).max()) <= 2.0
    True
    """

    mean: float = 0.0
    std: float = 1.0
    lower: float = -2.0
    upper: float = 2.0

    def __post_init__(self):
        if self.lower >= self.upper:
            raise ValueError(f"TruncatedNormal needs lower < upper, got {self.lower} and {self.upper}")

    def __call__(self, key, shape, dtype=None):
        lower, upper = ((bound - self.mean) / self.std for bound in (self.lower, self.upper))
        return self.mean + self.std * jax.random.truncated_normal(key, lower, upper, shape, _default(dtype))


@dataclasses.dataclass(frozen=True)
class KaimingUniform:
    """U(-b, b) with b = gain * sqrt(3 / fan_in), which keeps the variance of what passes through: `gain^2 / fan_in`.

    He et al., "Delving deep into rectifiers", ICCV 2015, equation 10, with the gain of the activation.

    >>> KaimingUniform(gain=2**0.5)(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype=None):
        return _variance_scaling(self.gain, "fan_in", "uniform", key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class KaimingNormal:
    """N(0, gain^2 / fan_in); see `KaimingUniform`."""

    gain: float = 1.0

    def __call__(self, key, shape, dtype=None):
        return _variance_scaling(self.gain, "fan_in", "normal", key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class GlorotUniform:
    """U(-b, b) with b = gain * sqrt(6 / (fan_in + fan_out)), which balances the variances forward and backward.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

    >>> GlorotUniform()(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype=None):
        return _variance_scaling(self.gain, "fan_avg", "uniform", key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class GlorotNormal:
    """N(0, 2 gain^2 / (fan_in + fan_out)); see `GlorotUniform`."""

    gain: float = 1.0

    def __call__(self, key, shape, dtype=None):
        return _variance_scaling(self.gain, "fan_avg", "normal", key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """`gain` times a random matrix with orthonormal rows or columns, whichever are fewer; the window counts as rows.

    Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning", ICLR 2014.

    >>> weight = Orthogonal()(jax.random.key(0), (4, 3), jnp.float32)
    >>> bool(jnp.allclose(weight.T @ weight, jnp.eye(3), atol=1e-6))
    True
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype=None):
        return jax.nn.initializers.orthogonal(self.gain)(key, shape, _default(dtype))


@dataclasses.dataclass(frozen=True)
class Sparse:
    """N(0, std^2), with a share `sparsity` of the inputs of each output set to zero, rounded up.

    Martens, "Deep learning via Hessian-free optimization", ICML 2010. Raises `ValueError` for shapes that are not
    `(in, out)`, and for a share outside [0, 1].

    >>> (Sparse(0.5)(jax.random.key(0), (4, 3), jnp.float32) == 0).sum(0)
    Array([2, 2, 2], dtype=int32)
    """

    sparsity: float
    std: float = 0.01

    def __post_init__(self):
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"Sparse needs a share between 0 and 1, got {self.sparsity}")

    def __call__(self, key, shape, dtype=None):
        if len(shape) != 2:
            raise ValueError(f"Sparse makes matrices (in, out), got the shape {tuple(shape)}")
        key_values, key_zeros = jax.random.split(key)
        order = jnp.argsort(jax.random.uniform(key_zeros, shape), axis=0)
        values = Normal(self.std)(key_values, shape, dtype)
        return jnp.where(order < math.ceil(self.sparsity * shape[0]), jnp.zeros_like(values), values)


@dataclasses.dataclass(frozen=True)
class Identity:
    """`gain` times the identity, so that a layer starts by handing on its input; in the middle of a window, if any.

    Where `in` and `out` differ, the features in excess are zero. Raises `ValueError` for shapes of less than two axes.

    >>> Identity()(None, (2, 3), jnp.float32)
    Array([[1., 0., 0.],
           [0., 1., 0.]], dtype=float32)
    """

    gain: float = 1.0

    def __call__(self, key, shape, dtype=None):
        if len(shape) < 2:
            raise ValueError(f"Identity makes weights (*window, in, out), got the shape {tuple(shape)}")
        weight = jnp.zeros(shape, _default(dtype))
        middle = tuple((size - 1) // 2 for size in shape[:-2])
        return weight.at[middle].set(self.gain * jnp.eye(*shape[-2:], dtype=weight.dtype))


def zeros(key, shape, dtype=None):
    """All zeros."""
    return jnp.zeros(shape, _default(dtype))


def ones(key, shape, dtype=None):
    """All ones."""
    return jnp.ones(shape, _default(dtype))


def _default(dtype):
    return jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype


def _variance_scaling(gain, mode, distribution, key, shape, dtype):
    if 0 in shape:
        return jnp.zeros(shape, _default(dtype))
    return jax.nn.initializers.variance_scaling(gain**2, mode, distribution)(key, shape, _default(dtype))
