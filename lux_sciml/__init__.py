"""Scientific machine learning on JAX: layers as pure functions, parameters as one flat named vector.

What there is, by subject; `help(lux.NeuralODE)` and so on tell more.

* Models: `Chain`, `Parallel`, `SkipConnection`, `BranchLayer`, `Stack`, `RepeatedLayer`; `Dense`, `MLP`, `Siren`,
  `Conv`, pooling, norms, `Dropout`, `Embedding`, attention and transformers, recurrence, `FNO`, `DeepONet`, `KANLayer`,
  bases and splines, nets that are convex, monotone or positive definite: see `lux.nn.__all__`.
* Differential equations: `NeuralODE`, `UDE`, `SecondOrder`, `AugmentedODE`, `HamiltonianODE`, `NeuralDAE`, `NeuralDDE`,
  `NeuralSDE`, `NeuralCDE`, `ODERNN`, `LatentODE`, `LatentSDE`, `CNF`, `WithCosts`, your own by `Equation`; `Jumps` and
  `Event`; `raise_if_failed`: see `lux.diffeq.__all__`.
* Equilibria: `DeepEquilibrium`, `MultiScaleDEQ`, `SteadyState`, with `Anderson` and `Broyden`.
* The contract: `Layer`, `Container`, `Wrapper`, `compact`, `field`, `setup`, `trainmode`, `testmode`, `summary`,
  `check_finite`, `StatefulLayer`; `lux.testing.check_layer`.
* Parameters: `ComponentVector`, `ComponentMatrix`, `concat`, `save`, `load`, `load_into`; `Frozen`, `WeightNorm`,
  `SpectralNorm`; `lux.parameters`, `lux.constraints`, `lux.initializers`.
* Fitting: `minimize`, `least_squares`, `root_find`; `lux.losses`; `hessian`, `jacobian`, `hvp` and `lux.derivatives`;
  `lux.inference` for errors of parameters; `lux.plot`.
* Equations from what was learned: `symbolic`, `sparse_regression`, `SparseTerms`; see `lux.discovery`.
* Training on minibatches: `TrainState`, `train_step`, `fit`; checkpoints, early stopping and logs in `lux.training`.
* Models and weights of other libraries: `lux.adapters`. Models for other programs: `lux.export`. Many devices and
  processes: `lux.distributed`. Programs compiled once, for later processes too: `compilation_cache`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import (
    activations,
    compilation,
    components,
    core,
    derivatives,
    diffeq,
    initializers,
    losses,
    nn,
    parameters,
)
from .compilation import *
from .components import *
from .components import constraints
from .core import *
from .derivatives import hessian, hvp, jacobian
from .diffeq import *
from .nn import *
from .parameters import *

if TYPE_CHECKING:
    from . import (
        adapters as adapters,
        discovery as discovery,
        distributed as distributed,
        equilibrium as equilibrium,
        export as export,
        inference as inference,
        optimize as optimize,
        plot as plot,
        testing as testing,
        training as training,
    )
    from .discovery import *
    from .equilibrium import *
    from .optimize import *
    from .training import *

__version__ = "0.1.0"

# Rooms that many scripts do without are read when they, or one of their names, are asked for.
_LATER: dict[str, tuple[str, ...]] = {
    "adapters": (),
    "discovery": ("SparseFit", "SparseTerms", "polynomials", "sparse_regression", "symbolic"),
    "distributed": (),
    "equilibrium": (
        "Anderson",
        "Broyden",
        "CheckedImplicitAdjoint",
        "DeepEquilibrium",
        "EquilibriumCell",
        "EquilibriumLayer",
        "FixedPointLinearSolver",
        "MonotoneCell",
        "MultiScaleCell",
        "MultiScaleDEQ",
        "NormalizedCell",
        "PhantomAdjoint",
        "SteadyState",
    ),
    "export": (),
    "inference": (),
    "optimize": (
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
    ),
    "plot": (),
    "testing": (),
    "training": ("FitResult", "TrainState", "apply_gradients", "compute_gradients", "fit", "train_step"),
}

__all__ = [
    "activations",
    "compilation",
    "components",
    "constraints",
    "core",
    "derivatives",
    "diffeq",
    "hessian",
    "hvp",
    "initializers",
    "jacobian",
    "losses",
    "nn",
    "parameters",
]
__all__ += compilation.__all__
__all__ += components.__all__
__all__ += core.__all__
__all__ += diffeq.__all__
__all__ += nn.__all__
__all__ += parameters.__all__
__all__ += [name for room, names in _LATER.items() for name in (room, *names)]


def __getattr__(name: str) -> Any:
    for room, names in _LATER.items():
        if name == room or name in names:
            module = importlib.import_module(f".{room}", __name__)
            return module if name == room else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
