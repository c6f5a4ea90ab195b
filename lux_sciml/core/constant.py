"""Constant: an array, or what holds arrays, in a layer's field."""

import base64
import zlib
from typing import Any

import jax
import numpy as np

from .._tree import dict_map, exact_key
from .pickling import picklable
from .static import is_random_key, is_traced
from .text import LONG, PLAIN_DTYPES, elements_text, value_text


class Constant:
    """A read-only constant in a layer's field, compared and hashed by content.

    `value` is an array, or any pytree that holds arrays: adjacency and finite-element matrices, save times, option
    objects of other libraries. Arrays, those of pandas and PyTorch too, are copied to NumPy, and so become constants of
    the compiled program. With `dtype`, an array of this type is made of the value.

    Raises `TypeError` for traced arrays: what is computed, differentiated or changed from call to call belongs in the
    layer's input.

    >>> Constant([[0.0, 1.0], [1.0, 0.0]]) == Constant(np.array([[0.0, 1.0], [1.0, 0.0]]))
    True
    """

    value: Any
    _exact = True
    _key: Any
    _hash: int

    def __init__(self, value: Any, dtype: Any = None):
        if isinstance(value, Constant):
            value = value.value
        if type(value) in (list, tuple) or dtype is not None or _is_array_of_another_library(value):
            value = np.asarray(value, dtype)
        value = dict_map(_read_only, value)
        key = exact_key(value)
        vars(self).update(value=value, _key=key, _hash=hash(key))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Constant is immutable")

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Constant) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self):
        return Constant, (picklable(self.value),)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.value, dtype=dtype) if copy else np.asarray(self.value, dtype=dtype)

    def __jax_array__(self) -> jax.Array:
        return jax.numpy.asarray(self.value)

    @staticmethod
    def packed(data: str, dtype: str, shape: tuple[int, ...]) -> "Constant":
        """The constant that a long array prints as: the elements' bytes, compressed, as text.

        >>> constant = Constant(np.eye(50))
        >>> eval(repr(constant)) == constant, len(repr(constant)) < 300
        (True, True)
        """
        array = np.frombuffer(zlib.decompress(base64.b85decode(data)), np.dtype(dtype))
        return Constant(array.reshape(shape))

    def _as_text(self, exact: bool) -> str:
        """The Python that makes it; or, where that needs not be exact, arrays by type and shape."""
        value = self.value
        if not exact or not isinstance(value, np.ndarray):
            return f"Constant({value_text(value, exact)})"
        elements = elements_text(value) if value.size <= LONG else None
        if elements is None:
            data = base64.b85encode(zlib.compress(value.tobytes(), 9)).decode()
            return f"Constant.packed({data!r}, {value.dtype.name!r}, {value.shape})"
        plain = value.dtype in PLAIN_DTYPES and value.ndim and value.size
        return f"Constant({elements})" if plain else f"Constant({elements}, {value.dtype.name!r})"

    def __repr__(self) -> str:
        return self._as_text(exact=True)


def _is_array_of_another_library(x: Any) -> bool:
    known = isinstance(x, jax.Array | np.ndarray | np.generic)
    return hasattr(x, "__array__") and not known and jax.tree_util.all_leaves([x])


def _read_only(x: Any) -> Any:
    if is_traced(x):
        raise TypeError("a traced array cannot be a Constant: pass it in the call, as part of the layer's input")
    if is_random_key(x):
        return x
    if isinstance(x, jax.Array | np.ndarray):
        x = np.array(x)
        x.setflags(write=False)
    return x
