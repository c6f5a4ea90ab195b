"""The safetensors format: named arrays in one file, with texts beside them, and here a checksum.

Eight bytes with the length of a header, the header as JSON, `{"name": {"dtype", "shape", "data_offsets"}, ...,
"__metadata__": {texts}}`, and the elements (https://github.com/huggingface/safetensors). The metadata's `sha256` is of
the whole file behind its first eight bytes, with 64 zeros in its own place.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from .documents import unique

DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F16": "float16", "F32": "float32"},
    **{"F64": "float64", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}
_NAMES = {name: ours for ours, name in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # as in the format's own reader
_ZEROS, _CHUNK = "0" * 64, 1 << 24


class Header(NamedTuple):
    """What a file holds, before its elements are read."""

    metadata: dict[str, str]
    entries: dict[str, tuple[np.dtype, tuple[int, ...], int, int]]  # dtype, shape, and where it begins and ends
    text: bytes


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays and texts. Those of a type that the format does not have are written as bytes, along a last axis."""
    arrays = {name: _writable(x) for name, x in arrays.items()}
    offset = 0
    header: dict[str, Any] = {"__metadata__": {"sha256": _ZEROS, **metadata}}
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))  # so that all are aligned
    for name, x in arrays.items():
        place = [offset, offset + x.nbytes]
        header[name] = {"dtype": _NAMES[x.dtype.name], "shape": list(x.shape), "data_offsets": place}
        offset += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)  # the elements begin at a multiple of 8, and nearly of a cache line
    views = [x.reshape(-1).view(np.uint8).data for x in arrays.values() if x.nbytes]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_digest, text, views)  # beside the writing
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for view in views:
            file.write(view)
        file.flush()
        os.fsync(file.fileno())  # beside the checksum, which takes as long
        file.seek(8)
        file.write(text.replace(_ZEROS.encode(), digest.result().encode(), 1))


def read_header(file: BinaryIO) -> Header:
    """The header of a file, compared with the length of the file. Raises `ValueError` where it contradicts itself."""
    length = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it is cut off: it has {length} bytes")
    size = int.from_bytes(start, "little")
    if size > min(length - 8, _LONGEST_HEADER):
        raise ValueError(
            f"its header claims {size} bytes of a file of {length}: it is cut off, or no safetensors file, as those of "
            "`lux.export` are, which `lux.export.load` loads"
        )
    text = file.read(size)
    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata, end, entries = header.pop("__metadata__", {}), 0, {}
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its metadata are no texts")
    places = {name: _entry(name, entry) for name, entry in header.items()}
    for name, (dtype, shape, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"`{name}` claims to be {dtype} of the shape {shape}, in the bytes {begin} to {stop}")
        entries[name], end = (dtype, shape, begin, stop), stop
    there = length - 8 - size
    if end != there:
        raise ValueError(f"it is cut off, or goes on too long: it says {end} bytes of elements, and has {there}")
    return Header(metadata, entries, text)


@contextlib.contextmanager
def reading(file: BinaryIO, header: Header, checked: bool = True) -> Iterator[dict[str, np.ndarray]]:
    """The arrays behind a header that was just read, to be used inside: the checksum is found meanwhile.

    Raises `ValueError` at the end, whatever else was raised, where the checksum is another one. Files of others have
    none, and are read with `checked=False`.
    """
    expected = header.metadata.get("sha256", "")
    checksum = hashlib.sha256(header.text.replace(expected.encode(), _ZEROS.encode(), 1) if expected else header.text)
    data = np.empty(max((entry[3] for entry in header.entries.values()), default=0), np.uint8)
    view = data.data
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for start in range(0, len(view), _CHUNK):
            chunk = view[start : start + _CHUNK]
            if file.readinto(chunk) != len(chunk):  # pyright: ignore[reportAttributeAccessIssue]  # of buffered files
                raise ValueError("it is cut off")
            if checked:
                pool.submit(checksum.update, chunk)
        try:
            yield {
                name: data[begin:end].view(dtype).reshape(shape)
                for name, (dtype, shape, begin, end) in header.entries.items()
            }
        finally:
            pool.shutdown()
            if checked and checksum.hexdigest() != expected:
                raise ValueError(
                    "its sha256 is another one than it says: bytes of it were changed"
                    if expected
                    else "it is a safetensors file of another program, and has no sha256"
                )


def is_raw(dtype: Any) -> bool:
    """Whether elements of a type are written as bytes, since the format does not have it."""
    return np.dtype(dtype).name not in _NAMES


def _digest(text: bytes, views: list[memoryview]) -> str:
    checksum = hashlib.sha256(text)
    for view in views:
        checksum.update(view)
    return checksum.hexdigest()


def _writable(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, x.dtype.newbyteorder("<"), order="C")
    return x.reshape(*x.shape, 1).view(np.uint8) if is_raw(x.dtype) else x


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if dtype in DTYPES:
            if all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                return jnp.dtype(DTYPES[dtype]), tuple(shape), begin, end
    raise ValueError(f"`{name}` is no entry of an array: {str(entry)[:80]}")
