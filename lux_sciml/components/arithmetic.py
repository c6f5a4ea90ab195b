"""Arrays with names: arithmetic that keeps them."""

import operator
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import is_inexact

Named = TypeVar("Named", bound="NamedArray")
Elementwise: TypeAlias = Callable[[Any, Any], jax.Array]  # as arrays compare; `object` says that it gives a bool


def _operand(named: Any, other: Any) -> Any:
    """The other operand as an array or a scalar; `NotImplemented` for types that are not ours to handle."""
    if isinstance(other, type(named)):
        named._require_same_names(other)
        return other.data
    if isinstance(other, int | float | complex | np.ndarray | np.generic | jax.Array):
        shape = named._named_shape
        if np.ndim(other) and np.shape(other)[-len(shape) :] != shape:
            raise ValueError(f"an array of shape {np.shape(other)} does not fit {named._noun()}")
        return other
    return NotImplemented


def _binary(f: Callable[[Any, Any], Any]) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """The operator and its reflection. Both are `Any` to type checkers, for which `jnp` takes no arrays but JAX's."""

    def forward(self, other):
        other = _operand(self, other)
        return other if other is NotImplemented else make(type(self), f(self.data, other), self._names)

    def reflected(self, other):
        other = _operand(self, other)
        return other if other is NotImplemented else make(type(self), f(other, self.data), self._names)

    return forward, reflected


def _comparison(f: Callable[[Any, Any], Any]) -> Elementwise:
    def compare(self, other):
        other = _operand(self, other)
        return other if other is NotImplemented else f(self.data, other)

    return compare


def _unary(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: make(type(self), f(self.data), self._names)


class NamedArray:
    """An array with static names, one leaf for JAX: `data` and what a subclass calls its names.

    A subclass says `_named_shape`, `_require_same_names` and `_noun`; here are the operators. The names are kept with
    scalars, with arrays of the same trailing shape on the right, with NumPy arrays on either side and with operands of
    the same names; other names raise `ValueError`; comparisons give plain arrays.
    """

    __slots__ = ("__weakref__", "_names", "data")
    __array_priority__ = 1000  # NumPy arrays on the left defer to us

    __add__, __radd__ = _binary(operator.add)
    __sub__, __rsub__ = _binary(operator.sub)
    __mul__, __rmul__ = _binary(operator.mul)
    __truediv__, __rtruediv__ = _binary(operator.truediv)
    __floordiv__, __rfloordiv__ = _binary(operator.floordiv)
    __mod__, __rmod__ = _binary(operator.mod)
    __pow__, __rpow__ = _binary(operator.pow)
    __neg__, __pos__, __abs__ = _unary(operator.neg), _unary(operator.pos), _unary(operator.abs)
    __eq__: ClassVar[Elementwise] = _comparison(operator.eq)  # pyright: ignore[reportIncompatibleMethodOverride]
    __ne__: ClassVar[Elementwise] = _comparison(operator.ne)  # pyright: ignore[reportIncompatibleMethodOverride]
    __lt__, __le__ = _comparison(operator.lt), _comparison(operator.le)
    __gt__, __ge__ = _comparison(operator.gt), _comparison(operator.ge)
    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as for every type whose equality is elementwise

    data: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.data)

    @property
    def ndim(self) -> int:
        return jnp.ndim(self.data)

    @property
    def size(self) -> int:
        return jnp.size(self.data)

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def equals(self, other: Any) -> bool:
        """Whether the other one has the same names, in the same order, and the same elements; NaN equals NaN here."""
        same = type(other) is type(self) and other._names == self._names
        return same and np.array_equal(np.asarray(self), np.asarray(other), equal_nan=True)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.data)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.data, dtype=dtype) if copy else np.asarray(self.data, dtype=dtype)

    def __reduce__(self):
        if isinstance(self.data, jax.Array | np.ndarray) and is_inexact(self.data):
            names = self._names if isinstance(self._names, tuple) else (self._names,)
            return type(self), (np.asarray(self.data), *names)
        return make, (type(self), self.data, self._names)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable")


# Flattening and unflattening are on the path of every call of a jitted function: the slots are set without a detour.
_new = object.__new__
_set_data, _set_names = (NamedArray.__dict__[name].__set__ for name in ("data", "_names"))


def make(kind: type[Named], data: Any, names: Any) -> Named:
    """A named array of the given class from its two parts, without any check."""
    return fill(_new(kind), data, names)


def fill(named: Named, data: Any, names: Any) -> Named:
    """The two parts put into a new named array."""
    _set_data(named, data)
    _set_names(named, names)
    return named


def register(kind: type[Named]) -> type[Named]:
    """Makes a class of named arrays a pytree of one leaf, in which transforms may put other things than arrays."""
    jax.tree_util.register_pytree_with_keys(
        kind,
        lambda named: (((_KEY, named.data),), named._names),
        lambda names, leaves: make(kind, leaves[0], names),  # pyright: ignore[reportIndexIssue]  # a tuple
        lambda named: ((named.data,), named._names),
    )
    return kind


_KEY = jax.tree_util.GetAttrKey("data")
