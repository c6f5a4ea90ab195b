"""Values that may stand in a layer's field: immutable, hashable, compared exactly by type and bits."""

import functools
import importlib
import sys
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
import numpy as np


class FrozenDict(Mapping):
    """An immutable, hashable dict; what a layer's dict field becomes."""

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


class Constant:
    """A read-only constant in a layer's field, compared and hashed by content.

    `value` is an array, or any pytree that holds arrays: adjacency and finite-element matrices, save times, option
    objects of other libraries. Arrays are copied to NumPy, and so become constants of the compiled program.

    Raises `TypeError` for traced arrays: what is computed, differentiated or changed from call to call belongs in the
    layer's input.

    >>> Constant([[0.0, 1.0], [1.0, 0.0]]) == Constant(np.array([[0.0, 1.0], [1.0, 0.0]]))
    True
    """

    value: Any

    def __init__(self, value: Any):
        if isinstance(value, Constant):
            value = value.value
        if isinstance(value, list | tuple):
            value = np.asarray(value)
        value = jax.tree.map(_read_only, value)
        leaves, treedef = jax.tree.flatten(value)
        key = (treedef, tuple(map(_content, leaves)))
        vars(self).update(value=value, _key=key, _hash=hash(key))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Constant is immutable")

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Constant) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self):
        return Constant, (self.value,)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.value, dtype=dtype) if copy else np.asarray(self.value, dtype=dtype)

    def __jax_array__(self) -> jax.Array:
        return jax.numpy.asarray(self.value)

    def __repr__(self) -> str:
        if isinstance(self.value, np.ndarray):
            return f"Constant({self.value.dtype}[{','.join(map(str, self.value.shape))}])"
        return f"Constant({self.value})"


def _read_only(x: Any) -> Any:
    if is_traced(x):
        raise TypeError("a traced array cannot be a Constant: pass it in the call, as part of the layer's input")
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    if isinstance(x, jax.Array | np.ndarray):
        x = np.array(x)
        x.setflags(write=False)
    return x


def _content(x: Any) -> Hashable:
    if isinstance(x, jax.Array):
        x = np.asarray(jax.random.key_data(x))
    if isinstance(x, np.ndarray):
        return (np.ndarray, x.dtype, x.shape, x.tobytes())
    return exact_key(x, "Constant")


_DERIVED = ("_key", "_hash", "_children")  # kept beside the fields


def fields_of(layer: Any) -> dict[str, Any]:
    """A layer's fields by name; unlike `layer.options()`, also where one of them is called `options`."""
    return {name: value for name, value in vars(layer).items() if name not in _DERIVED}


def is_traced(x: Any) -> bool:
    """Whether `x` is an array inside a transformation of JAX, without elements of its own."""
    return isinstance(x, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]  # `jax.core` is there


def holds_arrays(x: Any) -> bool:
    """Whether `x` is an array or a pytree with arrays in it."""
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(x))


def freeze(value: Any) -> Any:
    """Lists as tuples, dicts as FrozenDicts, integers and booleans of NumPy and JAX as Python's, at all depths."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and not is_traced(value):
        return value.item() if value.ndim == 0 and value.dtype.kind in "iub" else value
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(map(freeze, value))
    if isinstance(value, dict | FrozenDict):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    return value


def exact_key(value: Any, where: str) -> Hashable:
    """A hashable key that differs where types or bits differ: `1`, `1.0`, `True` and `-0.0` are four values.

    With Python's own equality `Scale(1)` and `Scale(1.0)` would share a compiled program, and one of them would return
    the other's dtype. Raises `TypeError`, naming `where`, for arrays and for unhashable values.
    """
    kind = type(value)
    if kind is float:
        return (kind, value.hex())
    if kind is complex:
        return (kind, value.real.hex(), value.imag.hex())
    if value is None or kind in (bool, int, str, bytes):
        return (kind, value)
    if isinstance(value, np.generic):
        return (kind, value.tobytes())
    if kind is tuple:
        return (kind, tuple(exact_key(item, f"{where}[{i}]") for i, item in enumerate(value)))
    if kind is FrozenDict:
        return (kind, tuple((key, exact_key(item, f"{where}[{key!r}]")) for key, item in value.items()))
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, freeze(value.keywords))
        return (kind, tuple(exact_key(part, where) for part in parts))
    if isinstance(value, jax.Array | np.ndarray):
        raise TypeError(
            f"{where} is an array: trainable arrays belong in `init_params`, changing ones in `init_state`, and fixed "
            "ones in a `lux.Constant(...)`"
        )
    treedef = jax.tree.structure(value)
    if not jax.tree_util.treedef_is_leaf(treedef):  # option objects of other libraries, and layers
        key = (kind, treedef, tuple(exact_key(leaf, where) for leaf in jax.tree.leaves(value)))
    else:
        key = (kind, value)
    try:
        hash(key)
    except TypeError:
        raise TypeError(
            f"{where} is an unhashable {kind.__name__}: fields of a layer are fixed, hashable values; "
            "wrap it in `lux.Constant(...)`, or keep it in the state"
        ) from None
    return key


# --- pickling: functions by their public import path --------------------------------------------------------------

_PUBLIC = ("jax.numpy", "jax.nn", "jax.lax", "jax.scipy.special", "jax.nn.initializers", "operator", "numpy")


class _Imported:
    """Stands for a function in a pickle; unpickles to the function. Callable, so that `functools.partial` takes it."""

    def __init__(self, module: str, name: str):
        self.path = (module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _import(*self.path)(*args, **kwargs)

    def __reduce__(self):
        return _import, self.path


def _import(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def picklable(value: Any) -> Any:
    """`value` with functions such as `jnp.tanh`, which pickle cannot find where they say they live, by import path."""
    if type(value) is tuple:
        return tuple(map(picklable, value))
    if isinstance(value, FrozenDict):
        return FrozenDict({key: picklable(item) for key, item in value.items()})
    if isinstance(value, functools.partial):
        keywords = {name: picklable(item) for name, item in value.keywords.items()}
        return functools.partial(picklable(value.func), *map(picklable, value.args), **keywords)
    name = getattr(value, "__name__", None)
    if callable(value) and name and not isinstance(value, type):
        for module in (*_PUBLIC, getattr(value, "__module__", None)):  # the last for one's own `@jax.jit` functions
            if getattr(sys.modules.get(module), name, None) is value:
                return _Imported(module, name)
    return value
