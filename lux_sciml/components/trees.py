"""Trees as documents: the structure as JSON, and the arrays by name; and back, into a tree that is there already."""

import enum
import json
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe, is_random_key, is_traced
from .documents import from_json, import_path, imported, parsed, to_json
from .matrix import ComponentMatrix
from .nodes import (
    NONE,
    Path,
    close_container,
    container_name,
    open_container,
    path_string,
    quoted,
)
from .safetensors import is_raw
from .vector import ComponentVector

VERSION = 1
ANYTHING = object()  # in a tree to load into: what is there comes as it was saved
_NUMBERS = {"bool": bool, "int": int, "text": str}
_MOST = 20  # differences that are told


def encode(tree: Any) -> tuple[str, dict[str, Any]]:
    """The structure of a tree as a JSON document, and its arrays by name, which are the paths where these differ.

    The arrays stay where they are, on devices or in the host's memory.

    Raises `TypeError`, with the path, at what is neither array, number, text nor container.
    """
    arrays: dict[str, Any] = {}
    node = _encode(tree, (), arrays)
    return json.dumps({"lux_sciml_tree": VERSION, "tree": node}), arrays


def decode(document: str, arrays: dict[str, Any], like: Any = None) -> Any:
    """The tree of a document and its arrays; with `like`, in the containers of this tree.

    Raises `ValueError` with all that differs from `like`, for later versions, and for documents that contradict
    themselves.
    """
    node, decoder = _parsed(document), _Decoder(arrays)
    if like is None:
        return decoder.made(node, ())
    out = decoder.filled(node, like, ())
    if decoder.wrong:
        more = len(decoder.wrong) - _MOST
        lines = [*decoder.wrong[:_MOST], *([f"and {more} more"] if more > 0 else [])]
        raise ValueError("what is in the file is not like `like`:\n  " + "\n  ".join(lines))
    return out


def leaves_by_name(document: str, like: Any) -> dict[str, Any]:
    """The leaf of `like` that each array of a document belongs to; `None` where there is none."""
    out: dict[str, Any] = {}

    def walk(node: Any, like: Any, path: Path) -> None:
        match node:
            case {"vector": {"name": name}} | {"matrix": {"name": name}} | {"key": {"name": name}}:
                out[name] = like
            case {"array": {"name": name}}:
                out[name] = like
            case _:
                one_level = None if like is ANYTHING or _is_leaf(like) else open_container(like)
                expected = {} if one_level is None else dict(one_level[1])
                for key, child in _items(_container(node)[1], path):
                    walk(child, expected.get(key), (*path, key))

    walk(_parsed(document), like, ())
    return out


def _parsed(document: str) -> Any:
    try:
        version, node = parsed(document, "lux_sciml_tree")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its structure is no JSON document of a tree: {error}") from None
    if version > VERSION:
        raise ValueError(f"it was written as version {version}, this lux_sciml reads version {VERSION}: update it")
    return node


def _encode(x: Any, path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    inner = x.data if isinstance(x, ComponentVector | ComponentMatrix) else x
    if is_traced(inner) or isinstance(inner, jax.ShapeDtypeStruct):
        raise TypeError(f"{quoted(path)} has no values, it is {describe(x)}: only values are written")
    if is_random_key(x) and not isinstance(x, ComponentVector | ComponentMatrix):
        return {"key": _put(jax.random.key_data(x), path, arrays), "impl": str(jax.random.key_impl(x))}
    if isinstance(x, ComponentVector) and not _is_filled(x):
        return {"vector": _put(x.data, path, arrays), "layout": json.loads(to_json(x.layout))}
    if isinstance(x, ComponentMatrix):
        layouts = [json.loads(to_json(layout)) for layout in (x.rows, x.columns)]
        return {"matrix": _put(x.data, path, arrays), "layouts": layouts}
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        kind = {} if isinstance(x, jax.Array) else {"numpy": "array" if isinstance(x, np.ndarray) else "scalar"}
        return {"array": _put(x, path, arrays), **kind}
    if isinstance(x, enum.Enum):
        return {"enum": import_path(type(x)), "member": x.name}
    if isinstance(x, float):
        return {"float": float(x).hex()}
    for name, kind in _NUMBERS.items():
        if type(x) is kind:
            return {name: x}
    one_level = open_container(x)
    if one_level is None or isinstance(x, type):
        raise TypeError(
            f"{quoted(path)} is of type {type(x).__name__}: files hold arrays, random keys, numbers, texts and "
            "containers of these; keep functions and objects out of the tree"
        )
    container, items = one_level
    for key, _ in items:
        if type(key) not in (str, int):
            raise TypeError(f"{quoted(path)} has an item named {key!r}: names are texts or integers in a file")
    children = [[key, _encode(child, (*path, key), arrays)] for key, child in items]
    if isinstance(container, str):
        return {container: children}
    if isinstance(container, type):
        return {"class": import_path(container), "children": children}
    return {"node": import_path(type(x)), "children": children}


def _put(x: Any, path: Path, arrays: dict[str, Any]) -> dict[str, str]:
    """Add an array under a name of its own, and say which; with its type, where the file does not."""
    name = path_string(path) or "value"
    if x.dtype.hasobject or x.dtype.kind in "USMm":
        raise TypeError(f"{quoted(path)} is an array of {x.dtype}: files hold numbers")
    while name in arrays or name == "__metadata__":
        name += "_"
    arrays[name] = x
    return {"name": name, **({"dtype": x.dtype.name} if is_raw(x.dtype) else {})}


class _Decoder:
    """Trees of the nodes of a document."""

    def __init__(self, arrays: dict[str, Any]):
        self.arrays = arrays
        self.wrong: list[str] = []  # what differs from what was expected

    # --- without anything to compare with ------------------------------------------------------------------------

    def made(self, node: Any, path: Path) -> Any:
        """The tree of a node, in containers of its own."""
        match node:
            case {"class": name, "children": children}:
                return close_container(imported(name), self.children(children, path))
            case {"node": str(name)}:
                raise ValueError(
                    f"{quoted(path)} is a {name.partition(':')[2]}, and what is static in it is not in the file: "
                    "load(path, like=...) fills one that is there already"
                )
            case {"dict": children} | {"list": children} | {"tuple": children} | {"none": children}:
                (kind,) = node
                return close_container(kind, self.children(children, path))
        return self.leaf(node, path)

    def children(self, children: Any, path: Path) -> dict[Hashable, Any]:
        return {key: self.made(child, (*path, key)) for key, child in _items(children, path)}

    def leaf(self, node: Any, path: Path) -> Any:
        match node:
            case {"vector": place, "layout": layout}:
                return ComponentVector(self.array(place, path), from_json(json.dumps(layout)))
            case {"matrix": place, "layouts": [rows, columns]}:
                rows, columns = (from_json(json.dumps(layout)) for layout in (rows, columns))
                return ComponentMatrix(self.array(place, path), rows, columns)
            case {"key": place, "impl": str(impl)}:
                return jax.random.wrap_key_data(jnp.asarray(self.array(place, path)), impl=impl)
            case {"array": place, "numpy": kind}:
                return self.array(place, path).copy() if kind == "array" else self.array(place, path)[()]
            case {"array": place}:
                return jnp.asarray(self.array(place, path))
            case {"enum": str(name), "member": str(member)}:
                return _member(name, member, path)
            case {"float": str(text)}:
                return float.fromhex(text)
            case {"bool": bool(x)} | {"int": int(x)} | {"text": str(x)} if len(node) == 1:
                return x
        raise ValueError(f"{quoted(path)} is no part of a tree: {str(node)[:80]}")

    def array(self, place: Any, path: Path) -> Any:
        match place:
            case {"name": str(name)} if name in self.arrays:
                x, dtype = self.arrays[name], jnp.dtype(place["dtype"]) if "dtype" in place else None
                return x if dtype is None or x.dtype == dtype else x.view(dtype)[..., 0]  # of bytes
        raise ValueError(f"{quoted(path)} stands for an array that is not there: {place}")

    # --- in the place of another tree ----------------------------------------------------------------------------

    def filled(self, node: Any, like: Any, path: Path) -> Any:
        """The tree of a node, in the containers of `like`; what differs is noted, and stays as in `like`."""
        if like is ANYTHING:
            return self.made(node, path)
        one_level = None if _is_leaf(like) else open_container(like)
        if one_level is None:
            return self.filled_leaf(node, like, path)
        container, items = one_level
        theirs, children = _container(node)
        ours = container if isinstance(container, str) else import_path(type(like))
        if theirs != ours:
            got = _noun(self.leaf(node, path)) if theirs is None else _kind(node)
            self.wrong.append(f"{quoted(path)} should be {_noun(like)}, and is {got}")
            return like
        there, expected = dict(_items(children, path)), dict(items)
        for key in there.keys() - expected.keys():
            self.wrong.append(f"`{path_string((*path, key))}` is in the file only")
        for key in expected.keys() - there.keys():
            self.wrong.append(f"`{path_string((*path, key))}` is missing in the file")
        both = {key: self.filled(there[key], x, (*path, key)) if key in there else x for key, x in items}
        return close_container(container, both)

    def filled_leaf(self, node: Any, like: Any, path: Path) -> Any:
        container, _ = _container(node)
        found = None if container else self.leaf(node, path)
        if container or not _alike(found, like):
            got = _kind(node) if container else _noun(found)
            self.wrong.append(f"{quoted(path)} should be {_noun(like)}, and is {got}")
            return like
        if isinstance(like, ComponentVector | ComponentMatrix):
            for ours, theirs in zip(_layouts(like), _layouts(found), strict=True):
                difference = ours.difference(theirs, dtypes=True)
                if difference:
                    self.wrong.append(f"{quoted(path)}: {difference}")
                    return like
        if isinstance(like, np.ndarray):
            return np.array(found)
        if isinstance(like, np.generic):
            return np.asarray(found)[()]
        inner = like.data if isinstance(like, ComponentVector | ComponentMatrix) else like
        sharding = getattr(inner, "sharding", None)
        if sharding is not None and len(sharding.device_set) > 1:
            return jax.device_put(found, sharding)
        return found


def _is_filled(x: Any) -> bool:
    """Whether a transform has put something else into a ComponentVector, as Adafactor does in its memory."""
    return isinstance(x, ComponentVector) and np.shape(x.data)[-1:] != (x.layout.size,)


def _is_leaf(x: Any) -> bool:
    if _is_filled(x):
        return False
    return isinstance(x, ComponentVector | ComponentMatrix | enum.Enum | jax.ShapeDtypeStruct) or is_random_key(x)


def _layouts(x: Any) -> tuple[Any, ...]:
    return (x.layout,) if isinstance(x, ComponentVector) else (x.rows, x.columns)


def _alike(found: Any, like: Any) -> bool:
    """Whether two leaves are of one kind, shape and dtype."""
    if hasattr(like, "dtype") and hasattr(like, "shape"):
        named = isinstance(like, ComponentVector | ComponentMatrix)
        same = type(found) is type(like) if named or isinstance(found, ComponentVector | ComponentMatrix) else True
        return same and getattr(found, "dtype", None) == like.dtype and np.shape(found) == tuple(like.shape)
    return type(found) is type(like)


def _noun(x: Any) -> str:
    if isinstance(x, ComponentVector | ComponentMatrix):
        return f"a {type(x).__name__} of {describe(x.data)}"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return describe(x) if isinstance(x, np.ndarray | jax.Array) and not is_random_key(x) else _abstract(x)
    if x is None:
        return "None"
    one_level = None if isinstance(x, enum.Enum) else open_container(x)
    return _article(type(x).__name__ if one_level is None else container_name(one_level[0]))


def _article(name: str) -> str:
    return f"an {name}" if name[:1] in "aeiouAEIOU" else f"a {name}"


def _abstract(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _container(node: Any) -> tuple[str | None, Any]:
    """Which container a node stands for, and its items; `None` for a leaf."""
    match node:
        case {"class": str(name), "children": children} | {"node": str(name), "children": children}:
            return name, children
        case {"dict": children} | {"list": children} | {"tuple": children} | {"none": children}:
            return next(iter(node)), children
    return None, []


def _kind(node: Any) -> str:
    name = str(_container(node)[0]).rpartition(":")[2]
    return "None" if name == NONE else _article(name)


def _items(children: Any, path: Path) -> list[tuple[Hashable, Any]]:
    pairs = isinstance(children, list) and all(isinstance(item, list) and len(item) == 2 for item in children)
    if not pairs or not all(type(key) in (str, int) for key, _ in children):
        raise ValueError(f"{quoted(path)} has items that are no pairs of names and contents")
    if len({key for key, _ in children}) < len(children):
        raise ValueError(f"{quoted(path)} has an item twice")
    return [(key, child) for key, child in children]


def _member(name: str, member: str, path: Path) -> enum.Enum:
    """A member of an enumeration that is imported already."""
    try:
        kind = imported(name, enum.Enum)
        return kind[member]  # pyright: ignore[reportInvalidTypeArguments]  # an Enum's member by name
    except KeyError:
        raise ValueError(f"{quoted(path)} is {member}, which {name} does not have") from None
