"""Optimization of flat parameters: one call over SciPy, optimistix and optax; least squares.

In this order, each file using those before it: `reads` (what a loss reads besides its arguments), `part` (the
components that are fitted), `fitted_parameters`, `problem` (a loss and its parameters), `residual_problem` (residuals,
as a whole or of samples), `programs` (what is traced and compiled of them), `progress`, `chunks` and `convergence` (how
a run goes and ends), `resume`, `starts` and `in_turn` (more than one run), `named_function`, `objective` and
`constraints` (of SciPy's methods), the backends and `global_methods`, `minimize`, `least_squares`, `root_find`;
`optax_transforms` and `samples`. `levenberg_marquardt`, with `damped_systems` and `robust_losses`, `self_scaled` and
`bounded_lbfgs` are solvers in the sense of optimistix.
"""

from .bounded_lbfgs import BoundedLBFGS
from .least_squares import LeastSquaresResult, least_squares
from .levenberg_marquardt import LevenbergMarquardt
from .minimize import MinimizeResult, minimize
from .optax_transforms import per_array as per_array
from .root_find import RootResult, root_find
from .samples import adaptive_samples, sobol_samples
from .self_scaled import SSBFGS, SSBroyden

__all__ = [
    "SSBFGS",
    "BoundedLBFGS",
    "LeastSquaresResult",
    "LevenbergMarquardt",
    "MinimizeResult",
    "RootResult",
    "SSBroyden",
    "adaptive_samples",
    "least_squares",
    "minimize",
    "root_find",
    "sobol_samples",
]
