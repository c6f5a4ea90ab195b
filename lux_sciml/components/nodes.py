"""Containers: the inner nodes of a tree, opened and closed one level at a time."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax

Path = tuple[Hashable, ...]

ARRAY, DICT, LIST, TUPLE, NONE = "array", "dict", "list", "tuple", "none"


class Tied(NamedTuple):
    """In place of an array: the numbers are those of the array at another path, counted from the root."""

    owner: Path


class Static(NamedTuple):
    """A value in an Equinox module that is no array: it is kept as it is."""

    type: type  # 1, 1.0 and True are equal in Python, and not the same here
    value: Hashable


def path_string(path: Path) -> str:
    """`("layer_0", "weight")` as `"layer_0.weight"`."""
    return ".".join(map(str, path))


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
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node), list(zip(node._fields, node, strict=True))
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
        return container(**children)
    out = object.__new__(container)  # a copy, as by `copy.copy`: `__init__` may take other arguments than the fields
    for name, value in children.items():
        object.__setattr__(out, name, value)
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
    """The plain name or number in an entry of JAX's key paths."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)
