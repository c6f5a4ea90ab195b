"""Optimization of flat parameters: one call over SciPy, optimistix and optax; least squares.

What the root has is in `__all__`. Here only: `per_array`, for optimizers of optax whose rules go by array.

In this order, each file using those before it: the solvers in the sense of optimistix, `levenberg_marquardt`, with
`damped_systems` and `robust_losses`, `self_scaled` and `bounded_lbfgs`; `chunks` (compiled loops, short enough to be
interrupted), `part` (the components that are fitted), `fitted_parameters`, `problem` (a loss and its parameters),
`residual_problem` (residuals, as a whole or of samples), `programs` (what is traced and compiled of them), `progress`
and `convergence` (how a run goes and ends), `resume`, `starts` and `in_turn` (more than one run), `named_function`,
`objective` and `constraints` (of SciPy's methods), the backends and `global_methods`, `fit_statistics` (errors of
parameters), `minimize`, `least_squares`, `root_find`; `optax_transforms` and `samples`.
"""

from .. import _names
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

__dir__ = _names.public(__name__)
