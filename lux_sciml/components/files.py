"""Layouts as JSON, and vectors in files."""

import json
import os
import secrets
import sys
import zipfile
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .difference import Differences, differences
from .layout import Layout
from .matrix import ComponentMatrix
from .nodes import ARRAY, Static, Tied, container_name
from .updates import updated
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


def from_json(text: str | bytes) -> Layout:
    """The layout of a JSON document.

    No code is imported: modules that define recorded NamedTuples and dataclasses must have been. Raises `ValueError`
    for other documents and later versions, and for classes that are not there.
    """
    try:
        document = json.loads(text)
        version, tree = document["lux_sciml_layout"], document["tree"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"this is no JSON document of a Layout: {text[:80]!r}") from error
    if version != _VERSION:
        raise ValueError(
            f"the layout was written as version {version}, this lux_sciml reads version {_VERSION}: update it"
        )
    return _decode(tree)


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
        return {"class": f"{container.__module__}:{container.__qualname__}", "children": children}
    name = container.type.__name__ if isinstance(container, Static) else container_name(container)
    raise TypeError(
        f"a layout with a {name} cannot be written as JSON: only its code knows its structure; keep a dict of it"
    )


def _decode(node: dict[str, Any]) -> Layout:
    if ARRAY in node:
        container = Tied(tuple(node["tied"])) if "tied" in node else ARRAY
        return Layout(container, {}, tuple(node[ARRAY]), jnp.dtype(node["dtype"]))
    if "class" in node:
        container, children = _imported(node["class"]), node["children"]
    else:
        ((container, children),) = node.items()
    return Layout(container, {key: _decode(child) for key, child in children})


def _imported(name: str) -> type:
    module, _, qualname = name.partition(":")
    out: Any = sys.modules.get(module)
    for part in qualname.split("."):
        out = getattr(out, part, None)
    if not isinstance(out, type):
        raise ValueError(f"the layout holds a {qualname}: import it from {module} first")
    return out


def save(path: str | os.PathLike, vector: Any) -> None:
    """Write a vector to one file: NumPy's npz with the numbers, and the layout as JSON; no pickle.

    The file is written beside `path` and then renamed, so that `path` never holds half a file.
    """
    if not isinstance(vector, ComponentVector):
        raise TypeError(f"save takes a ComponentVector, got {type(vector).__name__}; see ComponentVector.from_tree")
    layout, data = to_json(vector.layout), np.asarray(vector.data)
    raw = data.view(f"u{data.itemsize}") if data.dtype.kind == "V" else data  # bfloat16 and its like
    path = FilePath(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, layout=np.asarray(layout), dtype=np.asarray(data.dtype.name), data=raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike) -> ComponentVector:
    """The vector in a file, as it was saved. Raises `ValueError` for files that `save` did not write."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            layout, dtype, data = file["layout"].item(), file["dtype"].item(), file["data"]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)!r} holds no ComponentVector: {error}") from error
    return ComponentVector(data.view(jnp.dtype(dtype)), from_json(layout))


def load_into(like: ComponentVector, source: Any, strict: bool = True) -> tuple[ComponentVector, Differences]:
    """The numbers of `source` under the names of `like`, by path, and what differs.

    `source` is a ComponentVector, a tree or the path of a saved file. With `strict`, any difference raises `ValueError`
    that lists all paths that are missing, extra or reshaped. Without, `like` keeps its own numbers where `source` has
    none that fit, what is extra is left out, and the returned `Differences` say so. The order never matters.

    >>> like, source = ComponentVector(a=[1, 2], b=3), ComponentVector(b=4, c=5)
    >>> vector, report = load_into(like, source, strict=False)
    >>> vector
    ComponentVector(a=[1, 2], b=4)
    >>> print(report)
    missing: a
    extra: c
    """
    if isinstance(source, str | os.PathLike):
        source = load(source)
    layout = Layout.of(source)
    report = differences(like.layout, layout)
    if report and strict:
        raise ValueError(
            f"the parameters do not fit the model:\n{report}\n"
            "`load_into(like, source, strict=False)` takes what fits and reports the rest"
        )
    if not report:
        return ComponentVector(like.layout.ravel(source, like.dtype), like.layout), report
    values = {leaf.path: x for leaf, x in zip(layout.leaves, layout.collect(source), strict=True)}
    fitting = [leaf.path for leaf in like.layout.leaves if leaf.path not in {*report.missing, *report.reshaped}]
    return updated(like, ((path, values[path]) for path in fitting), agreeing=True), report


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
