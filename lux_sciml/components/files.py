"""Trees in files: ComponentVectors, states, the memory of optimizers, whole training runs."""

import inspect
import json
import math
import os
import zipfile
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from . import safetensors
from .difference import Differences, differences
from .documents import from_json
from .layout import Layout, stored_dtype
from .replacing import replacing
from .trees import VERSION, decode, encode
from .updates import updated
from .vector import ComponentVector

STRUCTURE = "lux_sciml"  # the text in a file's metadata


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree to one file: a ComponentVector, a state, an optimizer's memory, a whole `TrainState`.

    A tree of arrays, random keys, numbers, texts and `Mode`s in containers of any kind, ComponentVectors among them.
    The file is in the safetensors format, which other libraries read: the arrays by their paths, and in its metadata
    the structure and the layouts as JSON, and a sha256 of all; no pickle. What registered classes have in them
    beside their arrays (the model of a TrainState, a layer) is not written, and comes from `like` when they are loaded.

    The file is written beside `path`, put on the disk and then renamed, so that `path` never holds half a file. It
    keeps the permissions of the file that it replaces; where `path` is a symbolic link, the file it leads to is
    replaced. What killed processes left beside it is removed.

    Raises `TypeError`, with the path, at what is no value: functions, traced arrays; `ValueError` for an array of which
    other processes have parts; `OSError` where it cannot be written, and what was there is still there.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
    >>> save(path, {"ps": ComponentVector(a=1, b=[2, 3]), "step": 7})
    >>> load(path)
    {'ps': ComponentVector(a=1, b=[2, 3]), 'step': 7}
    """
    structure, arrays = encode(tree)
    for name, x in arrays.items():
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            raise ValueError(
                f"`{name}` lies on the devices of several processes, and this one has a part of it: save "
                "`lux.distributed.gather(state)`, or all parts by `lux.training.OrbaxCheckpoints`"
            )
    with replacing(path) as file:
        safetensors.write(file, {name: np.asarray(x) for name, x in arrays.items()}, {STRUCTURE: structure})


@inspect.unwrap  # of the checks of tests: it says itself what is wrong
def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """The tree in a file, as it was saved, in the precision in force.

    With `like`, a tree of the same structure (its arrays may be `jax.ShapeDtypeStruct`s), the result has the containers
    of `like`, and what is static in them; structure, layouts, shapes and dtypes are compared first. A file with a class
    that only its own code can make, such as a TrainState, is loaded in this way alone.

    Nothing is read before its size has been compared with that of the file. Raises `ValueError`, with the name of the
    file and the reason, for files that `save` did not write, that were changed, cut off, or written by a later version,
    and with all that differs from `like`; `OSError` where there is none to be read. The npz files of earlier versions
    are read too.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "ps.safetensors")
    >>> save(path, ComponentVector(a=1, b=[2, 3]))
    >>> load(path).b
    Array([2., 3.], dtype=float32)
    >>> load(path, like=ComponentVector(a=0, b=[0, 0, 0]))  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: 'ps.safetensors': what is in the file is not like `like`: ...
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"load takes the path of a file, got a {type(path).__name__}")
    with open(path, "rb") as file:
        try:
            if file.peek(4)[:4] == b"PK\3\4":
                return _read_npz(file, like)
            header = safetensors.read_header(file)
            if STRUCTURE not in header.metadata:
                raise ValueError("it is a safetensors file, but `save` did not write it")
            with safetensors.reading(file, header) as arrays:
                return decode(header.metadata[STRUCTURE], arrays, like)
        except Exception as error:  # of whatever kind a broken file brings about
            raise ValueError(f"{os.fspath(path)!r} cannot be loaded: {error}") from error


def read_entry(path: str | os.PathLike[str], name: str) -> Any:
    """A number or text at the root of a saved dict, of which only the header is read."""
    with open(path, "rb") as file:
        tree = json.loads(safetensors.read_header(file).metadata[STRUCTURE])["tree"]
    return decode(json.dumps({"lux_sciml_tree": VERSION, "tree": dict(tree["dict"])[name]}), {})


def _read_npz(file: BinaryIO, like: Any) -> ComponentVector:
    """The ComponentVector in a file of an earlier version."""
    length = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        layout, name, data = (_read(archive, member, length) for member in ("layout", "dtype", "data"))
    layout, name = (x.item() if x.shape == () and x.dtype.kind == "U" else None for x in (layout, name))
    if layout is None or name is None:
        raise ValueError("its layout and dtype are no texts")
    dtype = jnp.dtype(name)
    if stored_dtype(dtype, True) is None or data.dtype != _raw_dtype(dtype):
        raise ValueError(f"{data.dtype} data are no {name}")
    vector = ComponentVector(data.view(dtype), from_json(layout))
    return vector if like is None else decode(*encode(vector), like)


def _raw_dtype(dtype: np.dtype) -> np.dtype:
    """What NumPy's files can hold of a type: unsigned integers for bfloat16 and its like."""
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _read(archive: zipfile.ZipFile, name: str, length: int) -> np.ndarray:
    """One array of an npz file of a length, if its size is what it claims."""
    members = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
    if not members:
        raise ValueError(f"it is a zip file, as npz files are, but `save` did not write it: it has no `{name}`")
    if len(members) > 1:
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
