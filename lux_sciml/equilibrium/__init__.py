"""Deep equilibrium layers, on optimistix and lineax."""

from .adjoint import CheckedImplicitAdjoint as CheckedImplicitAdjoint, PhantomAdjoint as PhantomAdjoint
from .anderson import Anderson as Anderson
from .broyden import Broyden as Broyden
from .cells import EquilibriumCell as EquilibriumCell, MonotoneCell as MonotoneCell, NormalizedCell as NormalizedCell
from .deep_equilibrium import DeepEquilibrium as DeepEquilibrium
from .linear import FixedPointLinearSolver as FixedPointLinearSolver
from .multiscale import MultiScaleCell as MultiScaleCell, MultiScaleDEQ as MultiScaleDEQ
from .stability import (
    fixed_point_correction as fixed_point_correction,
    jacobian_loss as jacobian_loss,
    spectral_radius as spectral_radius,
)
from .steady_state import SteadyState as SteadyState
