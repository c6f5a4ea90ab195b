"""Arithmetic that keeps the names."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _operand(vector: Any, other: Any) -> Any:
    """The other operand as an array or a number; `NotImplemented` for types that are not ours to handle."""
    if isinstance(other, NamedArithmetic):
        if other.layout is not vector.layout:
            vector.layout.require_same(other.layout)
        return other.data
    if isinstance(other, int | float | complex | np.ndarray | np.generic | jax.Array):
        if np.ndim(other) and np.shape(other)[-1] != vector.layout.size:
            raise ValueError(f"an array of shape {np.shape(other)} does not fit a vector of {vector.layout.summary()}")
        return other
    return NotImplemented


def _named(vector: Any, data: Any) -> Any:
    return type(vector).tree_unflatten(vector.layout, (data,))


def _binary(f: Callable[[Any, Any], Any]) -> tuple[Callable, Callable]:
    """The operator and its reflection."""

    def forward(self, other):
        other = _operand(self, other)
        return other if other is NotImplemented else _named(self, f(self.data, other))

    def reflected(self, other):
        other = _operand(self, other)
        return other if other is NotImplemented else _named(self, f(other, self.data))

    return forward, reflected


def _comparison(f: Callable[[Any, Any], Any]) -> Callable:
    def compare(self, other):
        other = _operand(self, other)
        return other if other is NotImplemented else f(self.data, other)

    return compare


def _unary(f: Callable[[Any], Any]) -> Callable:
    return lambda self: _named(self, f(self.data))


class NamedArithmetic:
    """Operators for a class with `data` and `layout`.

    The names are kept with numbers, with arrays `(n,)` on the right, with NumPy arrays on either side and with
    vectors of the same layout; another layout raises `ValueError`; comparisons and `@` give plain arrays.
    """

    __slots__ = ()
    __array_priority__ = 1000  # NumPy arrays on the left defer to us

    __add__, __radd__ = _binary(operator.add)
    __sub__, __rsub__ = _binary(operator.sub)
    __mul__, __rmul__ = _binary(operator.mul)
    __truediv__, __rtruediv__ = _binary(operator.truediv)
    __floordiv__, __rfloordiv__ = _binary(operator.floordiv)
    __mod__, __rmod__ = _binary(operator.mod)
    __pow__, __rpow__ = _binary(operator.pow)
    __neg__, __pos__, __abs__ = _unary(operator.neg), _unary(operator.pos), _unary(operator.abs)
    __eq__, __ne__ = _comparison(operator.eq), _comparison(operator.ne)
    __lt__, __le__ = _comparison(operator.lt), _comparison(operator.le)
    __gt__, __ge__ = _comparison(operator.gt), _comparison(operator.ge)
    __hash__ = None  # as for every type whose equality is elementwise

    def __matmul__(self, other):
        return jnp.matmul(self.data, jnp.asarray(other))

    def __rmatmul__(self, other):
        return jnp.matmul(jnp.asarray(other), self.data)
