"""Scientific machine learning on JAX: layers as pure functions, parameters as one flat named vector.

What there is, by subject; `help(lux.NeuralODE)` and so on tell more.

* Models: `Chain`, `Parallel`, `SkipConnection`, `BranchLayer`, `Stack`, `RepeatedLayer`; `Dense`, `MLP`, `Siren`,
  `Conv`, pooling, norms, `Dropout`, `Embedding`, attention and transformers, recurrence, `FNO`, `DeepONet`, `KANLayer`,
  bases and splines, nets that are convex, monotone or positive definite: see `lux.nn.__all__`.
* Differential equations: `NeuralODE`, `UDE`, `SecondOrder`, `AugmentedODE`, `HamiltonianODE`, `NeuralDAE`, `NeuralDDE`,
  `NeuralSDE`, `NeuralCDE`, `ODERNN`, `LatentODE`, `CNF`, `WithCosts`, your own by `Equation`; `raise_if_failed`.
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
    discovery,
    equilibrium,
    inference,
    initializers,
    losses,
    nn,
    optimize,
    parameters,
    plot,
    testing,
    training,
)
from .compilation import *
from .components import *
from .components import constraints
from .core import *
from .derivatives import hessian, hvp, jacobian
from .diffeq import *
from .discovery import *
from .equilibrium import *
from .nn import *
from .optimize import *
from .parameters import *
from .training import *

if TYPE_CHECKING:
    from . import adapters as adapters, distributed as distributed, export as export

__version__ = "0.1.0"

__all__ = [
    "activations",
    "adapters",
    "compilation",
    "constraints",
    "derivatives",
    "diffeq",
    "discovery",
    "distributed",
    "equilibrium",
    "export",
    "hessian",
    "hvp",
    "inference",
    "initializers",
    "jacobian",
    "losses",
    "nn",
    "optimize",
    "parameters",
    "plot",
    "testing",
    "training",
]
__all__ += compilation.__all__
__all__ += components.__all__
__all__ += core.__all__
__all__ += diffeq.__all__
__all__ += discovery.__all__
__all__ += equilibrium.__all__
__all__ += nn.__all__
__all__ += optimize.__all__
__all__ += parameters.__all__
__all__ += training.__all__


def __getattr__(name: str) -> Any:
    if name in ("adapters", "distributed", "export"):  # read when they are asked for: most scripts do without
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
