"""Flat named vectors. Knows arrays and pytrees; knows no layer and no solver."""

from .constraints import (
    Constrained as Constrained,
    Interval as Interval,
    Positive as Positive,
    Simplex as Simplex,
    bounds as bounds,
)
from .derivatives import (
    current_derivatives as current_derivatives,
    derivatives as derivatives,
    hessian as hessian,
    hvp as hvp,
    jacobian as jacobian,
)
from .laplace import Laplace as Laplace, laplace as laplace
from .layout import Layout as Layout
from .matrix import ComponentMatrix as ComponentMatrix
from .serialize import load as load, load_into as load_into, save as save
from .solutions import component as component
from .vector import ComponentVector as ComponentVector, concat as concat
