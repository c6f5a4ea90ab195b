"""The contract: what a layer is, its parameters, its state. Knows components; knows no concrete layer."""

from .. import _names
from .check_finite import check_finite
from .compact import compact
from .constant import Constant
from .container import Container, StatefulWrapper, Wrapper
from .field import field
from .layer import Lambda, Layer, as_layer
from .mode import Mode
from .setup import output_shape, parameter_length, setup, state_length
from .state import testmode, trainmode, update_state
from .stateful import StatefulLayer
from .summary import summary

__all__ = [
    "Constant",
    "Container",
    "Lambda",
    "Layer",
    "Mode",
    "StatefulLayer",
    "StatefulWrapper",
    "Wrapper",
    "as_layer",
    "check_finite",
    "compact",
    "field",
    "output_shape",
    "parameter_length",
    "setup",
    "state_length",
    "summary",
    "testmode",
    "trainmode",
    "update_state",
]

__dir__ = _names.public(__name__)
