"""Optimization of flat parameters: one call over SciPy, optimistix and optax."""

from .minimize import MinimizeResult, minimize
from .per_array import per_array as per_array

__all__ = [
    "MinimizeResult",
    "minimize",
]
