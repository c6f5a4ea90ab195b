"""Flat named vectors. Knows arrays and pytrees; knows no layer and no solver."""

from .files import load, load_into, save
from .layout import Layout
from .matrix import ComponentMatrix
from .vector import ComponentVector, concat

__all__ = ["ComponentMatrix", "ComponentVector", "Layout", "concat", "load", "load_into", "save"]
