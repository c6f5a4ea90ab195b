"""Layouts as JSON, and vectors in files."""

import contextlib
import dataclasses
import errno
import inspect
import json
import math
import os
import secrets
import shutil
import stat
import sys
import zipfile
from collections.abc import Hashable, Iterator
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .difference import Differences, differences
from .layout import Layout, stored_dtype
from .matrix import ComponentMatrix
from .nodes import ARRAY, DICT, LIST, NONE, TUPLE, Path, Static, Tied, container_name, quoted
from .updates import updated
from .vector import ComponentVector

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_VERSION = 1


# --- layouts as JSON --------------------------------------------------------------------------------------------


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
    for other documents and later versions, for classes that are not there, and for documents that contradict
    themselves: a name twice, items of a list out of order, ties to what is not there or has another shape.

    >>> from_json('{"lux_sciml_layout": 1, "tree": {"array": [2], "dtype": "int32"}}')
    Traceback (most recent call last):
    ValueError: the layout contradicts itself: the root has the dtype 'int32', which is no floating-point type
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique)
        version, tree = document["lux_sciml_layout"], document["tree"]
        if type(version) is not int:
            raise TypeError(f"its version is {version!r}, no integer")
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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
        return {"class": f"{container.__module__}:{container.__qualname__}", "children": children}
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
        container, items = _imported(node["class"]), node["children"]
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


def _imported(name: Any) -> type:
    module, _, qualname = str(name).partition(":")
    out: Any = sys.modules.get(module)
    for part in qualname.split("."):
        out = getattr(out, part, None)
    if not isinstance(out, type):
        raise ValueError(f"the layout holds a {qualname}: import it from {module} first")
    if not (dataclasses.is_dataclass(out) or (issubclass(out, tuple) and hasattr(out, "_fields"))):
        raise ValueError(f"the layout holds a {qualname}, which is neither a NamedTuple nor a dataclass")
    return out


# --- vectors in files -------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], vector: Any) -> None:
    """Write a vector to one file: NumPy's npz with the elements, and the layout as JSON; no pickle.

    The file is written beside `path` and then renamed, so that `path` never holds half a file. It keeps the permissions
    of the file that it replaces; where `path` is a symbolic link, the file it leads to is replaced. What killed
    processes left beside it is removed.

    A state holds random keys and modes too, and is no vector: `pickle` writes and reads it.

    Raises `TypeError` for what is no ComponentVector of values, and for layouts that have no JSON: see `to_json`.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "ps.npz")
    >>> save(path, ComponentVector(a=1, b=[2, 3]))
    >>> load(path)
    ComponentVector(a=1, b=[2, 3])
    """
    if not isinstance(vector, ComponentVector):
        raise TypeError(
            f"save takes a ComponentVector, got {type(vector).__name__}; see ComponentVector.from_tree, and for "
            "states `pickle`"
        )
    if not isinstance(vector.data, jax.Array | np.ndarray):
        raise TypeError(f"save takes a ComponentVector of values, this one holds {vector.data}")
    layout, data = to_json(vector.layout), np.asarray(vector.data)
    with replacing(path) as file:
        name = np.asarray(data.dtype.name)
        np.savez(file, layout=np.asarray(layout), dtype=name, data=data.view(_raw_dtype(data.dtype)))


@inspect.unwrap  # of the checks of tests: it says itself what is wrong
def load(path: str | os.PathLike[str]) -> ComponentVector:
    """The vector in a file, as it was saved, in the precision in force.

    Nothing is read before its size has been compared with that of the file. Raises `ValueError`, with the name of the
    file, for files that `save` did not write, and `OSError` where there is none to be read.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "ps.npz")
    >>> save(path, ComponentVector(a=1, b=[2, 3]))
    >>> load(path).b
    Array([2., 3.], dtype=float32)
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"load takes the path of a file, got a {type(path).__name__}")
    with open(path, "rb") as file:
        try:
            length = os.fstat(file.fileno()).st_size
            with zipfile.ZipFile(file) as archive:
                layout, name, data = (_read(archive, member, length) for member in ("layout", "dtype", "data"))
            layout, name = (x.item() if x.shape == () and x.dtype.kind == "U" else None for x in (layout, name))
            if layout is None or name is None:
                raise ValueError("its layout and dtype are no texts")
            dtype = jnp.dtype(name)
            if stored_dtype(dtype, True) is None or data.dtype != _raw_dtype(dtype):
                raise ValueError(f"{data.dtype} data are no {name}")
            return ComponentVector(data.view(dtype), from_json(layout))
        except Exception as error:  # of whatever kind a broken file brings about
            raise ValueError(f"{os.fspath(path)!r} holds no ComponentVector: {error}") from error


def _raw_dtype(dtype: np.dtype) -> np.dtype:
    """What NumPy's files can hold of a type: unsigned integers for bfloat16 and its like."""
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _read(archive: zipfile.ZipFile, name: str, length: int) -> np.ndarray:
    """One array of an npz file of a length, if its size is what it claims."""
    members = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
    if len(members) != 1:
        raise ValueError(f"it has {len(members)} arrays `{name}`")
    (member,) = members
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ValueError(f"`{name}` is compressed, which `save` does not do")
    if member.header_offset + member.file_size > length:
        raise ValueError(f"`{name}` claims {member.file_size} bytes of a file of {length}")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version](file)
        claimed, there = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or claimed != there:
        raise ValueError(f"`{name}` claims to be {dtype} of the shape {shape}, {claimed} bytes, and has {there}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


# A file in the making has a name of its own and is locked, so that another process sees whether its maker is alive.
_PREFIX = ".lux_sciml-"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file, which takes the place of another one, and its permissions, at the end; of a link's target."""
    target = FilePath(os.path.realpath(path))
    old = target.stat() if target.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise ValueError(f"{os.fspath(path)!r} is no file that a new one could replace")
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    _remove_left_over(target.parent)
    temporary, file = _new_file(target.parent)
    try:
        with file:
            yield file
            file.flush()
            if old is not None:
                _keep_permissions(target, temporary, old)
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open files
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _new_file(folder: FilePath) -> tuple[FilePath, BinaryIO]:
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}"
        file = open(path, "xb")
        _lock(file, wait=True)
        if path.exists():  # and was not removed as left over before it was locked
            return path, file
        file.close()


def _remove_left_over(folder: FilePath) -> None:
    """Remove what killed processes left in a folder: files with our names that nobody has locked."""
    paths = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        ours = [entry for entry in entries if entry.name.startswith(_PREFIX)]
        paths = [entry.path for entry in ours if entry.is_file(follow_symlinks=False)]
    for path in paths:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if _lock(file, wait=False):
                os.unlink(path)


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether a file's lock is ours now, until it is closed or the process ends; never where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _keep_permissions(old_path: FilePath, new_path: FilePath, old: os.stat_result) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another owner: for the superuser only
        os.chown(new_path, old.st_uid, old.st_gid)
    shutil.copymode(old_path, new_path)


@inspect.unwrap  # of the checks of tests: it says itself what is wrong
def load_into(like: ComponentVector, source: Any, strict: bool = True) -> tuple[ComponentVector, Differences]:
    """The values of `source` under the names of `like`, by path, and what differs.

    `source` is a ComponentVector, a tree or the path of a saved file. With `strict`, any difference raises `ValueError`
    that lists all paths that are missing, extra or reshaped. Without, `like` keeps its own values where `source` has
    none that fit, what is extra is left out, and the returned `Differences` say so. The order never matters.

    >>> like, source = ComponentVector(a=[1, 2], b=3), ComponentVector(b=4, c=5)
    >>> vector, report = load_into(like, source, strict=False)
    >>> vector
    ComponentVector(a=[1, 2], b=4)
    >>> print(report)
    missing: a
    extra: c
    """
    if not isinstance(like, ComponentVector):
        raise TypeError(f"load_into(like, source) fills a ComponentVector, got a {type(like).__name__} in its place")
    if isinstance(source, str | os.PathLike):
        try:
            return load_into(like, load(source), strict)
        except (TypeError, ValueError) as error:
            name = os.fspath(source)
            raise error if repr(name) in str(error) else ValueError(f"{name!r}: {error}") from error
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
