"""Optional libraries, imported where they are needed."""

import importlib
from typing import Any


def library(name: str, install: str = "lux-sciml[adapters]") -> Any:
    """A module by its name. Raises `ImportError` that says how it is installed.

    >>> library("no_such_library", "lux-sciml[plot]")
    Traceback (most recent call last):
    ...
    ImportError: no_such_library cannot be imported (No module named 'no_such_library'): pip install lux-sciml[plot]
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}): pip install {install}") from error
