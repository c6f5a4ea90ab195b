"""Flat named vectors. Knows arrays and pytrees; knows no layer and no solver."""

from .derivatives import current_derivatives as current_derivatives, derivatives as derivatives
from .layout import Layout as Layout
from .serialize import load as load, load_into as load_into, save as save
from .solutions import component as component
from .vector import ComponentVector as ComponentVector, concat as concat
