"""Bases of functions of one variable: frozen values, called as `basis(x)`, `(...)` to `(..., size)`."""

import dataclasses
from typing import Any, Protocol

import jax.numpy as jnp


class Basis(Protocol):
    """`size` functions of one variable; `basis(x)` puts their values along a new last axis."""

    @property
    def size(self) -> int: ...

    def __call__(self, x: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class PolynomialBasis:
    """1, x, ..., x^(size-1).

    >>> PolynomialBasis(3)(2.0).tolist()
    [1.0, 2.0, 4.0]
    """

    size: int

    def __call__(self, x):
        return _recurrence(x, self.size, lambda n, x, now, _: x * now)


@dataclasses.dataclass(frozen=True)
class ChebyshevBasis:
    """The Chebyshev polynomials of the first kind T_0, ..., T_(size-1), on [-1, 1]: T_(n+1) = 2 x T_n - T_(n-1).

    >>> ChebyshevBasis(4)(0.5).tolist()
    [1.0, 0.5, -0.5, -1.0]
    """

    size: int

    def __call__(self, x):
        return _recurrence(x, self.size, lambda n, x, now, before: 2 * x * now - before)


@dataclasses.dataclass(frozen=True)
class LegendreBasis:
    """The Legendre polynomials P_0, ..., P_(size-1), on [-1, 1]: (n+1) P_(n+1) = (2n+1) x P_n - n P_(n-1).

    >>> LegendreBasis(3)(0.5).tolist()
    [1.0, 0.5, -0.125]
    """

    size: int

    def __call__(self, x):
        def step(n, x, now, before):
            return ((2 * n + 1) * x * now - n * before) / (n + 1)

        return _recurrence(x, self.size, step)


@dataclasses.dataclass(frozen=True)
class FourierBasis:
    """1, sin x, cos x, sin 2x, cos 2x, ..., `size` functions in all, of period 2 pi.

    >>> FourierBasis(5)(0.0).tolist()
    [1.0, 0.0, 1.0, 0.0, 1.0]
    """

    size: int

    def __call__(self, x):
        x = jnp.asarray(x)
        waves = [jnp.ones_like(x)]
        for n in range(1, self.size // 2 + 1):
            waves += [jnp.sin(n * x), jnp.cos(n * x)]
        return jnp.stack(waves[: self.size], -1)


@dataclasses.dataclass(frozen=True)
class SineBasis:
    """sin x, sin 2x, ..., sin(size x).

    >>> SineBasis(2)(0.0).tolist()
    [0.0, 0.0]
    """

    size: int

    def __call__(self, x):
        return jnp.stack([jnp.sin(n * x) for n in range(1, self.size + 1)], -1)


@dataclasses.dataclass(frozen=True)
class CosineBasis:
    """cos x, cos 2x, ..., cos(size x).

    >>> CosineBasis(2)(0.0).tolist()
    [1.0, 1.0]
    """

    size: int

    def __call__(self, x):
        return jnp.stack([jnp.cos(n * x) for n in range(1, self.size + 1)], -1)


@dataclasses.dataclass(frozen=True)
class BSplineBasis:
    """The `size` B-splines of a degree on equal knots that cover [low, high], where their sum is 1; zero far outside.

    de Boor, "A practical guide to splines", 1978: the Cox-de Boor recurrence. Raises `ValueError` for fewer functions
    than degree + 1.

    >>> BSplineBasis(4, degree=1, low=0.0, high=3.0)(1.5).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """

    size: int
    degree: int = 3
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        if self.size <= self.degree:
            raise ValueError(f"B-splines of degree {self.degree} are {self.degree + 1} or more, got {self.size}")

    def __call__(self, x):
        step = (self.high - self.low) / (self.size - self.degree)
        u = (jnp.asarray(x)[..., None] - self.low) / step + self.degree  # in steps from the first knot
        left = jnp.arange(self.size + self.degree, dtype=u.dtype)
        values = ((u >= left) & (u < left + 1)).astype(u.dtype)
        for k in range(1, self.degree + 1):
            rising = (u - left[:-k]) * values[..., :-1]
            falling = (left[:-k] + k + 1 - u) * values[..., 1:]
            values = (rising + falling) / k
        return values


def _recurrence(x, size, step):
    """The functions f_0 = 1, f_1 = x, f_(n+1) = step(n, x, f_n, f_(n-1)), stacked."""
    x = jnp.asarray(x)
    values = [jnp.ones_like(x), x][:size]
    for n in range(1, size - 1):
        values.append(step(n, x, values[n], values[n - 1]))
    return jnp.stack(values, -1)
