"""Models out of the notebook: files that other programs load, without lux_sciml.

`save` picks the format by the suffix: `stablehlo` (all layers and solves, for JAX on any platform; `load` gives an
`ExportedFunction`), `saved_model` (for TensorFlow and TensorFlow Serving), `onnx` (for onnxruntime, OpenVINO and many
others), `tflite` (for LiteRT on phones and other edge devices), `c_source` (for codes in C, C++ and Fortran),
`numpy_source` (for Python with NumPy alone). What is exported is a `plain_function`, a `PlainFunction`;
`read_metadata` reads what a file tells of itself.
"""

from .. import _names
from .c_source import c_source
from .function import PlainFunction, plain_function
from .metadata import read_metadata
from .numpy_source import numpy_source
from .onnx import onnx
from .save import save
from .saved_model import saved_model
from .stablehlo import ExportedFunction, load, stablehlo
from .tflite import tflite

__all__ = [
    "ExportedFunction",
    "PlainFunction",
    "c_source",
    "load",
    "numpy_source",
    "onnx",
    "plain_function",
    "read_metadata",
    "save",
    "saved_model",
    "stablehlo",
    "tflite",
]

__dir__ = _names.public(__name__)
