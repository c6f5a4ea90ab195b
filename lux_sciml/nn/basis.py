"""Bases of functions of one variable: frozen values, called as `basis(x)`, `(...)` to `(..., size)`."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import floating, widened
from ..core.converters import checks_itself, converted, count, integer, number, short


@dataclasses.dataclass(frozen=True)
class Basis(abc.ABC):
    """`size` functions of one variable; `basis(x)` puts their values along a new last axis.

    A basis of one's own subclasses this as a frozen dataclass and writes `values`, which gets `x` in float32 at least:
    integers become the default float, and what is computed of half precision is rounded at the end. Layers take any
    hashable value that has a `size` and is called so.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Powers(Basis):
    ...     def values(self, x):
    ...         return x[..., None] ** jnp.arange(self.size)
    >>> Powers(3)(2).tolist()
    [1.0, 2.0, 4.0]
    """

    size: int | np.integer

    def __post_init__(self) -> None:
        self._convert(count, "size")

    def _convert(self, converter: Callable[[Any], Any], *names: str) -> None:
        """Normalize options; errors name them."""
        for name in names:
            value = converted(f"{type(self).__name__}.{name}", converter, getattr(self, name))
            object.__setattr__(self, name, value)

    def __call__(self, x: Any) -> jax.Array:
        x = floating(jnp.asarray(x))
        return self.values(widened(x)).astype(x.dtype)

    @abc.abstractmethod
    def values(self, x: jax.Array) -> jax.Array:
        """The values `(..., size)` of the functions at `x`."""


@checks_itself
def as_basis(value: Callable[..., Any]) -> Basis:
    """The converter of a basis: a function that says by its `size` how many values it gives."""
    if isinstance(value, type) or not (callable(value) and hasattr(value, "size")):
        raise TypeError(f"expected a basis such as lux.ChebyshevBasis(5), got {short(value)}")
    return value  # pyright: ignore[reportReturnType]  # it has what layers need of a Basis


@dataclasses.dataclass(frozen=True)
class PolynomialBasis(Basis):
    """1, x, ..., x^(size-1).

    >>> PolynomialBasis(3)(2.0).tolist()
    [1.0, 2.0, 4.0]
    """

    def values(self, x):
        return _recurrence(x, self.size, lambda n, x, now, _: x * now)


@dataclasses.dataclass(frozen=True)
class ChebyshevBasis(Basis):
    """The Chebyshev polynomials of the first kind T_0, ..., T_(size-1), on [-1, 1]: T_(n+1) = 2 x T_n - T_(n-1).

    >>> ChebyshevBasis(4)(0.5).tolist()
    [1.0, 0.5, -0.5, -1.0]
    """

    def values(self, x):
        return _recurrence(x, self.size, lambda n, x, now, before: 2 * x * now - before)


@dataclasses.dataclass(frozen=True)
class LegendreBasis(Basis):
    """The Legendre polynomials P_0, ..., P_(size-1), on [-1, 1]: (n+1) P_(n+1) = (2n+1) x P_n - n P_(n-1).

    >>> LegendreBasis(3)(0.5).tolist()
    [1.0, 0.5, -0.125]
    """

    def values(self, x):
        def step(n, x, now, before):
            return ((2 * n + 1) * x * now - n * before) / (n + 1)

        return _recurrence(x, self.size, step)


@dataclasses.dataclass(frozen=True)
class FourierBasis(Basis):
    """1, sin x, cos x, sin 2x, cos 2x, ..., `size` functions in all, of period 2 pi.

    >>> FourierBasis(5)(0.0).tolist()
    [1.0, 0.0, 1.0, 0.0, 1.0]
    """

    def values(self, x):
        waves = [jnp.ones_like(x)]
        for n in range(1, self.size // 2 + 1):
            waves += [jnp.sin(n * x), jnp.cos(n * x)]
        return jnp.stack(waves[: self.size], -1)


@dataclasses.dataclass(frozen=True)
class SineBasis(Basis):
    """sin x, sin 2x, ..., sin(size x).

    >>> SineBasis(2)(0.0).tolist()
    [0.0, 0.0]
    """

    def values(self, x):
        return jnp.stack([jnp.sin(n * x) for n in range(1, self.size + 1)], -1)


@dataclasses.dataclass(frozen=True)
class CosineBasis(Basis):
    """cos x, cos 2x, ..., cos(size x).

    >>> CosineBasis(2)(0.0).tolist()
    [1.0, 1.0]
    """

    def values(self, x):
        return jnp.stack([jnp.cos(n * x) for n in range(1, self.size + 1)], -1)


@dataclasses.dataclass(frozen=True)
class BSplineBasis(Basis):
    """The `size` B-splines of a degree on equal knots that cover [low, high], where their sum is 1; zero far outside.

    de Boor, "A practical guide to splines", 1978: the Cox-de Boor recurrence. Raises `ValueError` for fewer functions
    than degree + 1, and where `low` is not below `high`.

    >>> BSplineBasis(4, degree=1, low=0.0, high=3.0)(1.5).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """

    degree: int | np.integer = 3
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._convert(integer, "degree")
        self._convert(number, "low", "high")
        if self.degree < 0 or self.size <= self.degree:
            raise ValueError(f"B-splines of degree {self.degree} are {self.degree + 1} or more, got {self.size}")
        if not self.low < self.high:
            raise ValueError(f"BSplineBasis needs low < high, got {self.low} and {self.high}")

    def values(self, x):
        step = (self.high - self.low) / (self.size - self.degree)
        u = (x[..., None] - self.low) / step + self.degree  # in steps from the first knot
        left = jnp.arange(self.size + self.degree, dtype=u.dtype)
        values = ((u >= left) & (u < left + 1)).astype(u.dtype)
        for k in range(1, self.degree + 1):
            rising = (u - left[:-k]) * values[..., :-1]
            falling = (left[:-k] + k + 1 - u) * values[..., 1:]
            values = (rising + falling) / k
        return values


def _recurrence(x: jax.Array, size: int | np.integer, step: Callable[..., jax.Array]) -> jax.Array:
    """The functions f_0 = 1, f_1 = x, f_(n+1) = step(n, x, f_n, f_(n-1)), stacked."""
    values = [jnp.ones_like(x), x][:size]
    for n in range(1, int(size) - 1):
        values.append(step(n, x, values[n], values[n - 1]))
    return jnp.stack(values, -1)
