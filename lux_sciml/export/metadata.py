"""What an exported file tells of itself: one JSON document, wherever its format has a place for it."""

import hashlib
import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

_START = re.compile(rb'\{\s*"lux_sciml_export"\s*:')
MARK = "written by lux_sciml"  # at the beginning of all source
SAVED_MODEL = Path("assets.extra", "lux_sciml.json")  # in the folder of a version of a SavedModel


def require_not_foreign(path: Path) -> None:
    """Raise `FileExistsError` where there is source of another hand, such as the module of the model."""
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(1000)
        if start and MARK.encode() not in start:
            raise FileExistsError(
                f"{os.fspath(path)!r} is source that was not written by lux_sciml, and is not replaced: choose another "
                "path"
            )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of an exported file, or of the folder of a SavedModel; no library of its format is needed.

    The document is the first one in the file's bytes that begins with `{"lux_sciml_export":`. Raises `ValueError` where
    there is none, or a half of one, or where it has a `sha256` that is not that of the bytes before it and of its other
    entries; and `OSError` where there is no file.

    >>> import os, tempfile, jax.numpy as jnp, lux_sciml as lux
    >>> path = os.path.join(tempfile.mkdtemp(), "squares.stablehlo")
    >>> lux.export.stablehlo(path, lambda x: x**2, x=jnp.ones((1, 2)))
    >>> read_metadata(path)["format"]
    'StableHLO'
    """
    file = Path(path)
    if file.is_dir():
        versions = sorted((int(d.name), d) for d in file.iterdir() if d.name.isdigit())
        file = (versions[-1][1] if versions else file) / SAVED_MODEL
        if not file.exists():
            raise ValueError(f"{os.fspath(path)!r} is no SavedModel that was exported by lux_sciml")
    with open(file, "rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise ValueError(f"{os.fspath(path)!r} is empty")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _START.search(data)
            start = found.start() if found else len(data)
            try:
                document, _ = json.JSONDecoder().raw_decode(data[start:].decode(errors="replace"))
            except ValueError:
                raise ValueError(
                    f"{os.fspath(path)!r} is no file that was exported by lux_sciml, or it is not whole; `lux.load` "
                    "loads what `lux.save` wrote"
                ) from None
            if "sha256" in document and document["sha256"] != checksum(data[:start], document):
                raise ValueError(
                    f"{os.fspath(path)!r} is damaged, its sha256 is not the one with which it was written: copy it "
                    "again from where it is whole, or export it again"
                )
    return document


def checksum(program: bytes | bytearray, document: dict[str, Any]) -> str:
    """The sha256 of a program and of what stands behind it, but for the sha256 itself."""
    others = {key: value for key, value in document.items() if key != "sha256"}
    digest = hashlib.sha256(program)
    digest.update(json.dumps(others).encode())
    return digest.hexdigest()
