"""One call over SciPy, optimistix and optax."""

from .minimize import minimize as minimize
from .on_tree import on_tree as on_tree
from .result import MinimizeResult as MinimizeResult
