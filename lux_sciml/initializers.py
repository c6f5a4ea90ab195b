"""Initial weights: frozen values that compare, print and pickle, beside those of `jax.nn.initializers`.

An initializer is called as `init(key, shape, dtype)`, as in `jax.nn.initializers`, whose objects can be passed wherever
one of these can; those are closures, however, and two built apart are two different options to `jax.jit`. `dtype` is
`float` by default and in the layers' calls: JAX's default floating-point type.

Weights have the shape `(*kernel, in, out)`: `fan_in` is the size of the kernel times `in`, `fan_out` that times `out`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _names
from ._compat import being_traced
from ._tree import is_traced

__dir__ = _names.public(__name__)

_SIZES = (2**12, 2**16)  # of draws of which arrays up to that size are a part


class _Initializer:
    """What the frozen values share: options in `float`, so that equal ones are the same, and printing as Python."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]  # each subclass is a dataclass
            object.__setattr__(self, field.name, float(getattr(self, field.name)))

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]  # as above
        values = [getattr(self, field.name) for field in fields]
        while values and values[-1] == fields[len(values) - 1].default:
            del values[-1]
        return f"initializers.{type(self).__name__}({', '.join(map(repr, values))})"


@dataclasses.dataclass(frozen=True, repr=False)
class Uniform(_Initializer):
    """Independent elements from U(-bound, bound).

    >>> Uniform(0.1)(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    bound: float

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        return _drawn(lambda row: jax.random.uniform(key, row, dtype, -self.bound, self.bound), key, shape)


@dataclasses.dataclass(frozen=True, repr=False)
class Normal(_Initializer):
    """Independent elements from N(0, std^2).

    >>> Normal(0.1)(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    std: float = 1.0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        return _drawn(lambda row: self.std * jax.random.normal(key, row, dtype), key, shape)


@dataclasses.dataclass(frozen=True, repr=False)
class TruncatedNormal(_Initializer):
    """Independent elements from N(mean, std^2), drawn anew until they lie between `lower` and `upper`.

    The bounds are values, not multiples of the standard deviation. Raises `ValueError` where they are out of order.

    >>> float(abs(TruncatedNormal(std=5.0)(jax.random.key(0), (1000,), jnp.float32)).max()) <= 2.0
    True
    """

    mean: float = 0.0
    std: float = 1.0
    lower: float = -2.0
    upper: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower >= self.upper:
            raise ValueError(f"TruncatedNormal needs lower < upper, got {self.lower} and {self.upper}")

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        lower, upper = ((bound - self.mean) / self.std for bound in (self.lower, self.upper))

        def draw(row: tuple[int, int]) -> jax.Array:
            return self.mean + self.std * jax.random.truncated_normal(key, lower, upper, row, dtype)

        return _drawn(draw, key, shape)


@dataclasses.dataclass(frozen=True, repr=False)
class KaimingUniform(_Initializer):
    """U(-b, b) with b = gain * sqrt(3 / fan_in), which keeps the variance of what passes through: `gain^2 / fan_in`.

    He et al., "Delving deep into rectifiers", ICCV 2015, equation 10, with the gain of the activation.

    >>> KaimingUniform(gain=2**0.5)(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    gain: float = 1.0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        return _variance_scaling(self.gain, "fan_in", "uniform", key, shape, dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class KaimingNormal(_Initializer):
    """N(0, gain^2 / fan_in); see `KaimingUniform`.

    >>> KaimingNormal()(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    gain: float = 1.0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        return _variance_scaling(self.gain, "fan_in", "normal", key, shape, dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class GlorotUniform(_Initializer):
    """U(-b, b) with b = gain * sqrt(6 / (fan_in + fan_out)), which balances the variances forward and backward.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

    >>> GlorotUniform()(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    gain: float = 1.0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        return _variance_scaling(self.gain, "fan_avg", "uniform", key, shape, dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class GlorotNormal(_Initializer):
    """N(0, 2 gain^2 / (fan_in + fan_out)); see `GlorotUniform`.

    >>> GlorotNormal()(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """

    gain: float = 1.0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        return _variance_scaling(self.gain, "fan_avg", "normal", key, shape, dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class Orthogonal(_Initializer):
    """`gain` times a random matrix with orthonormal rows or columns, whichever are fewer; the kernel counts as rows.

    Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning", ICLR 2014.

    >>> weight = Orthogonal()(jax.random.key(0), (4, 3), jnp.float32)
    >>> bool(jnp.allclose(weight.T @ weight, jnp.eye(3), atol=1e-6))
    True
    """

    gain: float = 1.0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        enough = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype  # the decomposition has no half precision
        return jax.nn.initializers.orthogonal(self.gain)(key, shape, enough).astype(dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class Sparse(_Initializer):
    """N(0, std^2), with a share `sparsity` of the inputs of each output set to zero, rounded up.

    Martens, "Deep learning via Hessian-free optimization", ICML 2010. Raises `ValueError` for shapes that are not
    `(in, out)`, and for a share outside [0, 1].

    >>> (Sparse(0.5)(jax.random.key(0), (4, 3), jnp.float32) == 0).sum(0)
    Array([2, 2, 2], dtype=int32)
    """

    sparsity: float
    std: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"Sparse needs a share between 0 and 1, got {self.sparsity}")

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        if len(shape) != 2:
            raise ValueError(f"Sparse makes matrices (in, out), got the shape {tuple(shape)}")
        key_values, key_zeros = jax.random.split(key)
        order = jnp.argsort(jax.random.uniform(key_zeros, shape), axis=0)
        values = Normal(self.std)(key_values, shape, dtype)
        return jnp.where(order < math.ceil(self.sparsity * shape[0]), jnp.zeros_like(values), values)


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(_Initializer):
    """`gain` times the identity, so that a layer starts by passing on its input; in the middle of a kernel, if any.

    Where `in` and `out` differ, the features in excess are zero. Raises `ValueError` for shapes of less than two axes.

    >>> Identity()(None, (2, 3), jnp.float32)
    Array([[1., 0., 0.],
           [0., 1., 0.]], dtype=float32)
    """

    gain: float = 1.0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        if len(shape) < 2:
            raise ValueError(f"Identity makes weights (*kernel, in, out), got the shape {tuple(shape)}")
        weight = jnp.zeros(shape, dtype)
        middle = tuple((size - 1) // 2 for size in shape[:-2])
        return weight.at[middle].set(self.gain * jnp.eye(*shape[-2:], dtype=weight.dtype))


def zeros(key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
    """All zeros.

    >>> zeros(None, (2,), jnp.float32)
    Array([0., 0.], dtype=float32)
    """
    return jnp.zeros(shape, dtype)


def ones(key: Any, shape: Sequence[int], dtype: Any = float) -> jax.Array:
    """All ones.

    >>> ones(None, (2,), jnp.float32)
    Array([1., 1.], dtype=float32)
    """
    return jnp.ones(shape, dtype)


def _variance_scaling(
    gain: float, mode: Any, distribution: Any, key: Any, shape: Sequence[int], dtype: Any
) -> jax.Array:
    if 0 in shape:
        return jnp.zeros(shape, dtype)
    if len(shape) < 2 or jnp.issubdtype(dtype, jnp.complexfloating):  # the first is an error
        return jax.nn.initializers.variance_scaling(gain**2, mode, distribution)(key, shape, dtype)
    size = math.prod(shape[:-2])
    fans = {"fan_in": size * shape[-2], "fan_out": size * shape[-1], "fan_avg": size * (shape[-2] + shape[-1]) / 2}
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    variance = np.asarray(gain**2 / fans[mode], dtype)
    if distribution == "normal":
        return _drawn(lambda row: jax.random.normal(key, row, dtype) * np.sqrt(variance), key, shape)
    return _drawn(lambda row: jax.random.uniform(key, row, dtype, -1.0, 1.0) * np.sqrt(3 * variance), key, shape)


def _drawn(draw: Callable[[tuple[int, int]], jax.Array], key: Any, shape: Sequence[int]) -> jax.Array:
    """Independent elements, from `draw((1, n))`.

    XLA compiles a draw for each `n`. With JAX's default keys an element depends on its place alone, so that small
    arrays are the beginning of one and the same long draw.
    """
    size = math.prod(shape)
    enough = next((n for n in _SIZES if size <= n), None)
    if enough is None or being_traced() or is_traced(key) or not _by_place(key):
        return draw((1, size)).reshape(shape)
    elements = np.array(draw((1, enough)))[0, :size].reshape(shape)
    return jnp.asarray(elements, elements.dtype)  # with a type JAX compiles nothing


def _by_place(key: Any) -> bool:
    by_place = getattr(jax.config, "jax_threefry_partitionable", False)
    return by_place and str(jax.random.key_impl(key)) == "threefry2x32"
