"""Layouts as JSON documents."""

import dataclasses
import json
import sys
from collections.abc import Hashable
from typing import Any

import jax.export
import jax.numpy as jnp
import numpy as np

from .layout import Layout, stored_dtype
from .matrix import ComponentMatrix
from .nodes import ARRAY, DICT, LIST, NONE, TUPLE, Path, Static, Tied, container_name, quoted
from .vector import ComponentVector

_VERSION = 1


def to_json(layout: Layout) -> str:
    """The layout as a JSON document, which `from_json` reads.

    NamedTuples and dataclasses are recorded by their import path. Raises `TypeError` for registered classes, such as
    Equinox modules, whose structure only their code knows, and for names that are neither strings nor integers.

    >>> layout = Layout.of({"a": jnp.ones(2)})
    >>> to_json(layout)
    '{"lux_sciml_layout": 1, "tree": {"dict": [["a", {"array": [2], "dtype": "float32"}]]}}'
    >>> from_json(to_json(layout)) is layout
    True
    """
    return json.dumps({"lux_sciml_layout": _VERSION, "tree": _encode(layout)})


def parsed(text: str | bytes, name: str) -> tuple[int, Any]:
    """The version, which stands under `name`, and the tree of a JSON document.

    Raises `ValueError`, `KeyError`, `TypeError` or `RecursionError` for other documents.
    """
    document = json.loads(text, object_pairs_hook=unique)
    version, tree = document[name], document["tree"]
    if type(version) is not int:
        raise TypeError(f"its version is {version!r}, no integer")
    return version, tree


def from_json(text: str | bytes) -> Layout:
    """The layout of a JSON document.

    No code is imported: modules that define recorded NamedTuples and dataclasses must have been. Raises `ValueError`
    for other documents and later versions, for classes that are not there, and for documents that contradict
    themselves: a name twice, items of a list out of order, ties to what is not there or has another shape.

    >>> from_json('{"lux_sciml_layout": 1, "tree": {"array": [2], "dtype": "int32"}}')
    Traceback (most recent call last):
    ValueError: the layout contradicts itself: the root has the dtype 'int32', which is no floating-point type
    """
    try:
        version, tree = parsed(text, "lux_sciml_layout")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"this is no JSON document of a Layout: {text[:80]!r} ({error})") from error
    if version != _VERSION:
        raise ValueError(
            f"the layout was written as version {version}, this lux_sciml reads version {_VERSION}: update it"
        )
    try:
        layout = _decode(tree, ())
        layout.require_one_kind()
        if layout.untied.tie(*layout.ties) is not layout:
            raise ValueError("ties lead to the first array of each group, in declared order")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the layout contradicts itself: {error}") from error
    return layout


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; `ValueError` for a name that stands twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _encode(layout: Layout) -> dict[str, Any]:
    container = layout.container
    if layout.is_array:
        tie = {"tied": list(container.owner)} if isinstance(container, Tied) else {}
        return {"array": list(layout.shape), "dtype": layout.dtype.name, **tie}
    for key in layout.children:
        if type(key) not in (str, int):
            raise TypeError(f"a component named {key!r} has no place in JSON: names are strings or integers")
    children = [[key, _encode(child)] for key, child in layout.children.items()]
    if isinstance(container, str):
        return {container: children}
    if isinstance(container, type):
        return {"class": import_path(container), "children": children}
    name = type(container.value).__name__ if isinstance(container, Static) else container_name(container)
    raise TypeError(
        f"a layout with a {name} cannot be written as JSON: only its code knows its structure; keep a dict of it"
    )


def _decode(node: Any, path: Path) -> Layout:
    here = quoted(path)
    if not isinstance(node, dict):
        raise ValueError(f"{here} is {node!r}, no part of a layout")
    if ARRAY in node:
        return _decode_array(node, here)
    if set(node) == {"class", "children"}:
        container, items = imported(node["class"]), node["children"]
    elif len(node) == 1 and set(node) <= {DICT, LIST, TUPLE, NONE}:
        ((container, items),) = node.items()
    else:
        raise ValueError(f"{here} has {', '.join(node) or 'nothing'}, which is no kind of container")
    if not (isinstance(items, list) and all(isinstance(item, list) and len(item) == 2 for item in items)):
        raise ValueError(f"{here} has components that are no pairs of names and contents")
    keys = [key for key, _ in items]
    if not all(type(key) in (str, int) for key in keys):
        raise ValueError(f"{here} has names that are neither strings nor integers: {keys}")
    if len(set(keys)) < len(keys):
        raise ValueError(f"{here} has a component twice, its names are {', '.join(map(str, keys))}")
    if container != DICT and keys != _keys(container, len(keys)):
        name = container_name(container)
        raise ValueError(f"{here} is a {name} of {', '.join(map(str, keys))}, not of {_keys(container, len(keys))}")
    return Layout(container, {key: _decode(child, (*path, key)) for key, child in items})


def _keys(container: str | type, n: int) -> list[Hashable]:
    """The keys of a container with n items, in order."""
    if isinstance(container, str):
        return [] if container == NONE else list(range(n))
    if dataclasses.is_dataclass(container):
        return [field.name for field in dataclasses.fields(container)]
    return list(container._fields)


def _decode_array(node: dict[str, Any], here: str) -> Layout:
    shape, name, tied = node[ARRAY], node.get("dtype"), node.get("tied")
    if not set(node) <= {ARRAY, "dtype", "tied"}:
        raise ValueError(f"{here} is an array, and has {', '.join(node)}")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise ValueError(f"{here} has the shape {shape}")
    try:
        dtype = jnp.dtype(name if isinstance(name, str) else "object")
    except TypeError:
        dtype = np.dtype("object")
    if dtype.name != name or stored_dtype(dtype, True) is None:
        raise ValueError(f"{here} has the dtype {name!r}, which is no floating-point type")
    if tied is not None and not (isinstance(tied, list) and all(type(key) in (str, int) for key in tied)):
        raise ValueError(f"{here} is tied to {tied}, which is no path")
    return Layout(ARRAY if tied is None else Tied(tuple(tied)), {}, tuple(shape), dtype)


def imported(name: Any, base: type | None = None) -> Any:
    """The class at an import path `"module:Class"`, if its module is imported: of `base`, or else of plain fields."""
    module, _, qualname = str(name).partition(":")
    out: Any = sys.modules.get(module)
    for part in qualname.split("."):
        out = getattr(out, part, None)
    if not isinstance(out, type):
        raise ValueError(f"the layout holds a {qualname}: import it from {module} first")
    if base is not None:
        if not issubclass(out, base):
            raise ValueError(f"the layout holds a {qualname}, which is no {base.__name__}")
    elif not (dataclasses.is_dataclass(out) or (issubclass(out, tuple) and hasattr(out, "_fields"))):
        raise ValueError(f"the layout holds a {qualname}, which is neither a NamedTuple nor a dataclass")
    return out


def import_path(kind: type) -> str:
    """The import path of a class, as `imported` reads it."""
    return f"{kind.__module__}:{kind.__qualname__}"


jax.export.register_pytree_node_serialization(
    ComponentVector,
    serialized_name="lux_sciml.ComponentVector",
    serialize_auxdata=lambda layout: to_json(layout).encode(),
    deserialize_auxdata=from_json,
)
jax.export.register_pytree_node_serialization(
    ComponentMatrix,
    serialized_name="lux_sciml.ComponentMatrix",
    serialize_auxdata=lambda layouts: json.dumps([to_json(layout) for layout in layouts]).encode(),
    deserialize_auxdata=lambda text: tuple(map(from_json, json.loads(text))),
)
