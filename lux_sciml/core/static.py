"""Values that may stand in a layer's field: immutable, hashable, compared exactly by type and bits."""

import functools
import types
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from .. import _tree
from .._tree import is_random_key as is_random_key, is_traced as is_traced


class FrozenDict(Mapping):
    """An immutable, hashable dict; what a layer's dict field becomes."""

    _items: dict[Any, Any]

    def __init__(self, *args: Any, **items: Any):
        vars(self)["_items"] = dict(*args, **items)

    def __getitem__(self, key: Hashable) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(exact_key(self, "FrozenDict"))

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, FrozenDict) and exact_key(self, "") == exact_key(other, "")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a FrozenDict is immutable")

    def __repr__(self) -> str:
        return repr(self._items)


_PLAIN = {type(None), bool, int, float, complex, str, bytes, types.FunctionType, type}
_DERIVED = ("_key", "_hash", "_children", "_beside")  # kept beside the fields


def fields_of(layer: Any) -> dict[str, Any]:
    """A layer's fields by name; unlike `layer.options()`, also where one of them is called `options`."""
    return {name: value for name, value in vars(layer).items() if name not in _DERIVED}


TRACED = (
    "is a traced array, and options of a layer are fixed: make the layer outside of the function that JAX transforms, "
    "or pass the array in the call, as part of the layer's input"
)


def holds_traced(value: Any) -> bool:
    """Whether a value of a field is a traced array, or has one in it."""
    if type(value) in _PLAIN:
        return False
    if isinstance(value, tuple | FrozenDict | dict):
        return any(map(holds_traced, value if isinstance(value, tuple) else value.values()))
    return any(map(is_traced, jax.tree.leaves(value)))


def holds_arrays(x: Any) -> bool:
    """Whether `x` is an array or a pytree with arrays in it."""
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(x))


def freeze(value: Any) -> Any:
    """Lists as tuples, dicts as FrozenDicts, integers and booleans of NumPy and JAX as Python's, at all depths."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(map(freeze, value))
    if isinstance(value, dict | FrozenDict):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    if isinstance(value, np.generic | np.ndarray | jax.Array) and not is_traced(value):
        return value.item() if value.ndim == 0 and value.dtype.kind in "iub" else value
    return value


def exact_key(value: Any, where: str) -> Hashable:
    """A hashable key that differs where types or bits differ: `1`, `1.0`, `True` and `-0.0` are four values.

    With Python's own equality `Scale(1)` and `Scale(1.0)` would share a compiled program, and one of them would return
    the other's dtype. Raises `TypeError`, naming `where`, for arrays and for unhashable values.
    """
    kind = type(value)
    if kind in _PLAIN:
        return _tree.exact_key(value)
    if getattr(kind, "_exact", False):  # layers and Constants compare in this way themselves
        return (kind, value)
    if kind is tuple:
        return (kind, tuple(exact_key(item, f"{where}[{i}]") for i, item in enumerate(value)))
    if kind is FrozenDict:
        items = ((_tree.exact_key(key), exact_key(item, f"{where}[{key!r}]")) for key, item in value.items())
        return (kind, tuple(items))
    if isinstance(value, functools.partial):
        return (kind, exact_key((value.func, value.args, freeze(value.keywords)), where))
    leaves = jax.tree.leaves(value)
    if any(map(is_traced, leaves)):
        raise TypeError(f"{where} {TRACED}")
    if any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        raise TypeError(
            f"{where} is an array: trainable arrays belong in `init_params`, changing ones in `init_state`, and fixed "
            "ones in a `lux.Constant(...)`"
        )
    try:
        if isinstance(value, set):
            hash(value)
        return _tree.exact_key(value)
    except TypeError:
        raise TypeError(
            f"{where} is an unhashable {kind.__name__}: fields of a layer are fixed, hashable values; "
            "wrap it in `lux.Constant(...)`, or keep it in the state"
        ) from None
