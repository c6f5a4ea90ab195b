"""Differential-equation layers, on diffrax. What the root has is in `__all__`.

Here only: for training, `collocate`, `multiple_shooting`, `growing_horizons` and `tightening_tolerances`; for `CNF`
`concat_time`, `flow_matching`, `Density`, `NormalDensity` and `MixtureDensity`; for `LatentODE` and `LatentSDE` `elbo`,
`LatentPath` and `LatentSDEPath`; for `NeuralSDE` `ensemble_moments`; for `NeuralCDE` `control_path` and `logsignature`;
for series of unequal length `pad` and `Series`; for equations of one's own `Fields`, `Problem`, `diffeqsolve` and
`equation_of`.
"""

from .. import _names
from ..series import Series as Series, pad as pad
from .adjoints.gauss import GaussAdjoint
from .adjoints.reversible import ReversibleAdjoint
from .equation import (
    Equation,
    Fields as Fields,
    Problem as Problem,
    diffeqsolve as diffeqsolve,
    equation_of as equation_of,
)
from .events import Event
from .failure import raise_if_failed
from .field import vector_field
from .fields.energy import GradientFlow, HamiltonianNN, LagrangianNN, PortHamiltonian, SecondOrder
from .fields.function import as_field
from .fields.galerkin import Galerkin
from .fields.nudged import Nudged
from .fields.universal import UDE
from .fitting.collocation import collocate as collocate
from .fitting.multiple_shooting import multiple_shooting as multiple_shooting
from .fitting.schedules import growing_horizons as growing_horizons, tightening_tolerances as tightening_tolerances
from .jumps import Jumps
from .layers.augmented import AugmentedODE
from .layers.cnf import CNF, Density as Density, concat_time as concat_time, flow_matching as flow_matching
from .layers.densities import MixtureDensity as MixtureDensity, NormalDensity as NormalDensity
from .layers.hamiltonian_ode import HamiltonianODE
from .layers.latent_ode import LatentODE, LatentPath as LatentPath, elbo as elbo
from .layers.latent_sde import LatentSDE, LatentSDEPath as LatentSDEPath
from .layers.neural_cde import NeuralCDE
from .layers.neural_dae import MassMatrixODE, NeuralDAE
from .layers.neural_dde import NeuralDDE
from .layers.neural_ode import NeuralODE
from .layers.neural_sde import NeuralDSDE, NeuralSDE, ensemble_moments as ensemble_moments
from .layers.ode_rnn import ODERNN, IrregularSequence
from .layers.split_ode import SplitODE
from .layers.with_costs import WithCosts
from .logsignatures import logsignature as logsignature
from .paths import control_path as control_path
from .solvers.symplectic import Verlet, Yoshida4
from .tables import solution_to_xarray

__all__ = [
    "CNF",
    "ODERNN",
    "UDE",
    "AugmentedODE",
    "Equation",
    "Event",
    "Galerkin",
    "GaussAdjoint",
    "GradientFlow",
    "HamiltonianNN",
    "HamiltonianODE",
    "IrregularSequence",
    "Jumps",
    "LagrangianNN",
    "LatentODE",
    "LatentSDE",
    "MassMatrixODE",
    "NeuralCDE",
    "NeuralDAE",
    "NeuralDDE",
    "NeuralDSDE",
    "NeuralODE",
    "NeuralSDE",
    "Nudged",
    "PortHamiltonian",
    "ReversibleAdjoint",
    "SecondOrder",
    "SplitODE",
    "Verlet",
    "WithCosts",
    "Yoshida4",
    "as_field",
    "raise_if_failed",
    "solution_to_xarray",
    "vector_field",
]

__dir__ = _names.public(__name__)
