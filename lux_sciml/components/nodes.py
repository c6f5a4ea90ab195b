"""Containers: the inner nodes of a tree, opened and closed one level at a time; paths through them."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax

from .._tree import exact_key

Path = tuple[Hashable, ...]

ARRAY, DICT, LIST, TUPLE, NONE = "array", "dict", "list", "tuple", "none"


class Tied(NamedTuple):
    """In place of an array: the elements are those of the array at another path, counted from the root."""

    owner: Path


class Static(NamedTuple):
    """A value in an Equinox module that is no array: it is kept as it is."""

    value: Any


Container = str | type | Tied | Static | jax.tree_util.PyTreeDef
"""One of the five names above; a NamedTuple or dataclass; what stands for an array or a constant; or the structure of
one level of a registered class."""


def container_key(container: Container) -> Hashable:
    """What two containers have in common only if they are the same, constants and static fields included."""
    if isinstance(container, str | type):
        return container
    if isinstance(container, Tied | Static):
        return (type(container), exact_key(tuple(container)))
    kind, static = container.node_data()
    return (kind, exact_key(static))


def path_string(path: Path) -> str:
    """`("layer_0", "weight")` as `"layer_0.weight"`.

    >>> path_string(("layers", 0, "weight"))
    'layers.0.weight'
    """
    return ".".join(map(str, path))


def quoted(path: Path) -> str:
    """A path in a sentence."""
    return f"`{path_string(path)}`" if path else "the root"


def is_path(key: Any) -> bool:
    """Whether a key of an index names a component: a text, or a tuple with a text in it, as arrays take none."""
    return isinstance(key, str) or (isinstance(key, tuple) and any(isinstance(k, str) for k in key))


def nest(items: Iterable[tuple[Path, Any]], at: Path = ()) -> Any:
    """Nested dicts with the given values at the given paths, in the order given; `at` is the path of the whole.

    Raises `ValueError` for a path that is given twice, or leads through another.

    >>> nest([(("a", "b"), 1), (("c",), 2), (("a", "d"), 3)])
    {'a': {'b': 1, 'd': 3}, 'c': 2}
    """
    groups: dict[Hashable, list[tuple[Path, Any]]] = {}
    items = list(items)
    for path, value in items:
        if not path and len(items) > 1:
            raise ValueError(f"a component is asked for twice: `{path_string(at)}`, as a whole and again, or in parts")
        if not path:
            return value
        groups.setdefault(path[0], []).append((path[1:], value))
    return {key: nest(group, (*at, key)) for key, group in groups.items()}


def named(tree: Any, of: Callable[[Any], bool], is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """The leaves of any tree that are `of` a kind, by their paths: nested dicts, with texts for the indices of lists.

    >>> named({"a": [1, 2.0]}, lambda x: isinstance(x, float))
    {'a': {'1': 2.0}}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    return nest((key_names(path), leaf) for path, leaf in leaves if of(leaf))


def filled(tree: Any, of: Callable[[Any], bool], values: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """The tree with the leaves that are `of` a kind taken from nested dicts as `named` makes them.

    >>> filled({"a": [1, 2.0]}, lambda x: isinstance(x, float), {"a": {"1": 3.0}})
    {'a': [1, 3.0]}
    """

    def one(path: Any, leaf: Any) -> Any:
        return functools.reduce(operator.getitem, key_names(path), values) if of(leaf) else leaf

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_leaf)


def key_names(path: Any) -> tuple[str, ...]:
    """The names in a path of JAX's."""
    return tuple(str(_key(entry)) for entry in path)


def open_container(node: Any) -> tuple[Any, Sequence[tuple[Hashable, Any]]] | None:
    """What kind of container `node` is, and its items by key, one level deep; `None` if it is a leaf."""
    if node is None:
        return NONE, []
    if type(node) is dict:
        return DICT, list(node.items())
    if type(node) is list:
        return LIST, list(enumerate(node))
    if type(node) is tuple:
        return TUPLE, list(enumerate(node))
    fields = getattr(node, "_fields", None) if isinstance(node, tuple) else None
    if fields is not None:
        return type(node), list(zip(fields, node, strict=True))
    items, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if not jax.tree_util.treedef_is_leaf(treedef):
        return treedef, [(_key(path[0]), child) for path, child in items]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return type(node), [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]
    return None


def close_container(container: Any, children: dict[Hashable, Any]) -> Any:
    """The inverse of `open_container`."""
    if isinstance(container, Static):
        return container.value
    if container == NONE:
        return None
    if container == DICT:
        return children
    if container == LIST:
        return list(children.values())
    if container == TUPLE:
        return tuple(children.values())
    if not isinstance(container, type):
        return jax.tree.unflatten(container, list(children.values()))
    if issubclass(container, tuple):
        return container(*children.values())
    out = object.__new__(container)  # a copy, as by `copy.copy`: `__init__` may take other arguments than the fields
    for name, value in children.items():
        object.__setattr__(out, str(name), value)
    return out


def is_module(container: Any) -> bool:
    """Whether a container is an Equinox module: of these only the floating-point arrays are parameters."""
    return not isinstance(container, str) and issubclass(_class_of(container), eqx.Module)


def container_name(container: Any) -> str:
    """A container as it reads in a sentence."""
    return container if isinstance(container, str) else _class_of(container).__name__


def _class_of(container: Any) -> type:
    return container if isinstance(container, type) else container.node_data()[0]


def _key(entry: Any) -> Hashable:
    """The plain name or index in an entry of JAX's key paths."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)
