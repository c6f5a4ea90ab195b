"""Functional updates by path."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .arithmetic import make
from .layout import Layout, Leaf, agree, layout_of
from .nodes import Path, close_container, is_module, open_container, path_string, quoted

V = TypeVar("V")


class At(Generic[V]):
    """`cv.at[path]`, and then one of `set`, `add`, `multiply`, `apply`. Arrays tied to a changed one change with it.

    >>> from lux_sciml import ComponentVector
    >>> ComponentVector(a=1, b=[2, 3]).at["b"].multiply(10)
    ComponentVector(a=1, b=[20, 30])
    """

    def __init__(self, cv: V, path: Path = ()):
        self._cv: Any = cv
        self._path = path

    def __getitem__(self, path: Hashable) -> "At[V]":
        return At(self._cv, self._cv.layout.find(path)[2])

    def apply(self, f: Callable[[Any], Any]) -> V:
        """`f` of every array at the path."""
        layout = self._cv.layout
        blocks = layout.split(self._cv.data)
        once = {layout.block_of[leaf.path]: leaf for leaf in layout.under(self._path)}
        return updated(self._cv, ((leaf.path, f(blocks[i])) for i, leaf in once.items()))

    def set(self, value: Any) -> V:
        """The value, broadcast, at the path; a tree of the path's names where the path is a sub-tree."""
        if _is_number(value) or (layout_of(value) is None and getattr(value, "ndim", None) == 0):
            return self.apply(lambda _: value)
        node = self._cv.layout.find(self._path)[1]
        return updated(self._cv, ((self._path + path, new) for path, new in updates(node, value)))

    def add(self, value: Any) -> V:
        """Every array at the path plus a value."""
        return self.apply(lambda x: x + value)

    def multiply(self, value: Any) -> V:
        """Every array at the path times a value."""
        return self.apply(lambda x: x * value)


def updates(layout: Layout, new: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Paths of arrays with their new values, from values nested as in the layout, by dicts or by its own containers."""
    if layout.is_array:
        yield path, new
    elif isinstance(new, Mapping):
        for key, value in new.items():
            if key not in layout.children:
                raise KeyError(
                    f"there is no component `{path_string((*path, key))}`; inner ones are nested, c={{'b': ...}}, or "
                    "set by `cv.at['c.b']`, and merge(...) adds new ones"
                )
            yield from updates(layout.children[key], value, (*path, key))
    else:
        new = numbers(new)
        layout.require_same(Layout.of(new), order=False)
        for leaf, value in zip(layout.leaves, layout.collect(new), strict=True):
            yield (*path, *leaf.path), value


def updated(cv: Any, new: Iterable[tuple[Path, Any]], agreeing: bool = False) -> Any:
    """The vector with new values at some paths; at tied ones only one, or, where they are to be `agreeing`, equal ones.

    Raises `ValueError` otherwise, and for values that do not fit.
    """
    layout, given = cv.layout, {}
    blocks = layout.split(cv.data)
    for path, value in new:
        i = layout.block_of[path]
        value = _fit(value, layout.blocks[i], path)
        if i in given and not agreeing:
            raise ValueError(f"`{given[i]}` and `{layout.name(path)}` are tied: give a value for one of them")
        if i in given and not agree(blocks[i], value):
            raise ValueError(f"`{given[i]}` and `{layout.name(path)}` are tied, but hold different values")
        given[i], blocks[i] = layout.name(path), value
    return make(type(cv), layout.join(blocks, cv.dtype), layout)


def _fit(value: Any, leaf: Leaf, path: Path) -> jax.Array:
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{quoted(path)} takes an array or a scalar, got {value!r}") from None
    if jnp.iscomplexobj(value) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise TypeError(f"{quoted(path)} is real, got a complex value")
    try:
        return jnp.broadcast_to(value.astype(jax.dtypes.canonicalize_dtype(leaf.dtype)), leaf.shape)
    except ValueError:
        raise ValueError(f"{quoted(path)} has shape {leaf.shape}, got {value.shape}") from None


def numbers(node: Any) -> Any:
    """Python's numbers, and (nested) lists of numbers, as arrays of floats; everything else as it is."""
    if _is_number(node):
        return np.asarray(node, jax.dtypes.canonicalize_dtype(complex if isinstance(node, complex) else float))
    if layout_of(node) is not None or hasattr(node, "shape"):
        return node
    if isinstance(node, list | tuple) and not hasattr(node, "_fields") and _all_numbers(node):
        array = jnp.asarray(node)
        return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)
    opened = open_container(node)
    if opened is None or is_module(opened[0]):
        return node
    return close_container(opened[0], {key: numbers(child) for key, child in opened[1]})


def _is_number(node: Any) -> bool:
    plain = isinstance(node, int | float | complex) and not isinstance(node, bool | np.generic)
    return plain or isinstance(node, np.integer)


def _all_numbers(node: Any) -> bool:
    if isinstance(node, list | tuple):
        return all(map(_all_numbers, node)) and len({np.shape(item) for item in node}) < 2
    return _is_number(node) or (isinstance(node, jax.Array | np.number) and np.ndim(node) == 0)
