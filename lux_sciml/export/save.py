"""One entry for all formats."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .c_source import c_source
from .numpy_source import numpy_source
from .onnx import onnx
from .saved_model import saved_model
from .stablehlo import stablehlo
from .tflite import tflite

WRITERS: dict[str, Callable[..., None]] = {
    ".stablehlo": stablehlo,
    ".onnx": onnx,
    ".tflite": tflite,
    "": saved_model,
    ".c": c_source,
    ".py": numpy_source,
}


def save(
    path: str | os.PathLike[str], model: Any, ps: Any = None, st: Any = None, x: Any = None, **options: Any
) -> None:
    """Write a model, a loss, a gradient or a whole solve in the format that the suffix of the path says.

    The arguments are those of the functions that write them (see `lux.export.plain_function`):

    * `.stablehlo`: `lux.export.stablehlo`;
    * no suffix, a folder: `lux.export.saved_model`;
    * `.onnx`: `lux.export.onnx`;
    * `.tflite`: `lux.export.tflite`;
    * `.c`: `lux.export.c_source`;
    * `.py`: `lux.export.numpy_source`.

    Raises `ValueError` for another suffix, and what they raise.

    >>> import os, tempfile, jax, jax.numpy as jnp, lux_sciml as lux
    >>> def loss(ps, x):
    ...     return jnp.sum((ps["a"] * x) ** 2)
    >>> path = os.path.join(tempfile.mkdtemp(), "gradient.stablehlo")
    >>> ps = lux.ComponentVector(a=[1.0, 2.0])
    >>> save(path, jax.value_and_grad(loss), ps, x=jnp.ones((3, 2)), params="input")
    >>> lux.export.load(path)(ps, jnp.ones((5, 2)))["y_1"]
    Array([10., 20.], dtype=float32)
    """
    suffix = Path(path).suffix
    if suffix not in WRITERS:
        known = ", ".join(f"{suffix or 'a folder'} ({writer.__name__})" for suffix, writer in WRITERS.items())
        raise ValueError(f"no format is known by the suffix {suffix!r}; there are {known}")
    WRITERS[suffix](path, model, ps, st, x, **options)
