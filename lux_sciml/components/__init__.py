"""Flat named vectors. Knows arrays and pytrees; knows no layer and no solver."""

from .derivatives import current_derivatives as current_derivatives, derivatives as derivatives
from .layout import Layout as Layout
from .vector import ComponentVector as ComponentVector, concat as concat
