"""Optimization of flat parameters: one call over SciPy, optimistix and optax.

In this order, each file using those before it: `reads` (what a loss reads besides its arguments), `part` (the
components that are fitted), `problem` (a loss and its parameters), `programs` (what is traced and compiled of it),
`progress`, `chunks` and `convergence` (how a run goes and ends), the three backends, `minimize`; and
`optax_transforms`.
"""

from .minimize import MinimizeResult, minimize
from .optax_transforms import per_array as per_array

__all__ = [
    "MinimizeResult",
    "minimize",
]
