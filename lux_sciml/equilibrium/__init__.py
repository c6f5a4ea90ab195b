"""Deep equilibrium layers, on optimistix and lineax. What the root has is in `__all__`.

Here only: the losses and measures `jacobian_loss`, `fixed_point_correction` and `spectral_radius`.
"""

from .. import _names
from .adjoints import CheckedImplicitAdjoint, FixedPointLinearSolver, PhantomAdjoint
from .anderson import Anderson
from .broyden import Broyden
from .cells import EquilibriumCell, MonotoneCell, NormalizedCell
from .deep_equilibrium import DeepEquilibrium
from .fixed_point import EquilibriumLayer
from .multiscale import MultiScaleCell, MultiScaleDEQ
from .regularization import (
    fixed_point_correction as fixed_point_correction,
    jacobian_loss as jacobian_loss,
    spectral_radius as spectral_radius,
)
from .steady_state import SteadyState

__all__ = [
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
]

__dir__ = _names.public(__name__)
