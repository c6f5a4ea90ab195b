"""What an exported file tells of itself: one JSON document, wherever its format has a place for it."""

import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

_START = re.compile(rb'\{\s*"lux_sciml_export"\s*:')
SAVED_MODEL = Path("assets.extra", "lux_sciml.json")  # in the folder of a version of a SavedModel


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of an exported file, or of the folder of a SavedModel; no library of its format is needed.

    The document is the first one in the file's bytes that begins with `{"lux_sciml_export":`. Raises `ValueError` where
    there is none, or a half of one, and `OSError` where there is no file.
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
            text = data[found.start() :].decode(errors="replace") if found else ""
    try:
        document, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        raise ValueError(f"{os.fspath(path)!r} is no file that was exported by lux_sciml, or it is not whole") from None
    return document
