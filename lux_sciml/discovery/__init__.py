"""Equations from what was learned: a layer as an expression, and the few terms of a library that a function is made of.

`symbolic` and `sparse_regression`, with `polynomials` for its library; see `docs/symbolic.md`.
"""

from .. import _names
from .sparse_regression import SparseFit, polynomials, sparse_regression
from .sparse_terms import SparseTerms
from .symbolic import symbolic

__all__ = ["SparseFit", "SparseTerms", "polynomials", "sparse_regression", "symbolic"]

__dir__ = _names.public(__name__)
