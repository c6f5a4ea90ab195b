"""Equations from what was learned: a layer as an expression, and the few terms of a library that a function is made of.

`symbolic` and `sparse_regression`, with `polynomials` for its library; see `docs/symbolic.md`.
"""

from .sparse_regression import (
    SparseFit as SparseFit,
    polynomials as polynomials,
    sparse_regression as sparse_regression,
)
from .sparse_terms import SparseTerms as SparseTerms
from .symbolic import symbolic as symbolic

__all__ = ["SparseFit", "SparseTerms", "polynomials", "sparse_regression", "symbolic"]
