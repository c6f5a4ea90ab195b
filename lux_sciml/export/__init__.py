"""Models out of the notebook: files that other programs load, without lux_sciml.

`save` picks the format by the suffix: `stablehlo` (all layers and solves, for JAX on any platform; `load` gives an
`ExportedFunction`), `saved_model` (for TensorFlow and TensorFlow Serving), `onnx` (for onnxruntime, OpenVINO and many
others), `tflite` (for LiteRT on phones and other edge devices), `c_source` (for codes in C, C++ and Fortran),
`numpy_source` (for Python with NumPy alone). What is exported is a `plain_function`, a `PlainFunction`;
`read_metadata` reads what a file tells of itself.
"""

from .c_source import c_source as c_source
from .function import PlainFunction as PlainFunction, plain_function as plain_function
from .metadata import read_metadata as read_metadata
from .numpy_source import numpy_source as numpy_source
from .onnx import onnx as onnx
from .save import save as save
from .saved_model import saved_model as saved_model
from .stablehlo import ExportedFunction as ExportedFunction, load as load, stablehlo as stablehlo
from .tflite import tflite as tflite

__all__ = []
