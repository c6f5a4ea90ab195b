"""Differential-equation layers, on diffrax."""

from .augmented import AugmentedODE as AugmentedODE
from .cnf import CNF as CNF, Density as Density, concat_time as concat_time, flow_matching as flow_matching
from .collocation import collocate as collocate
from .control_path import control_path as control_path
from .failure import raise_if_failed as raise_if_failed
from .galerkin import Galerkin as Galerkin
from .gauss import GaussAdjoint as GaussAdjoint
from .hamiltonian_ode import HamiltonianODE as HamiltonianODE
from .latent_ode import LatentODE as LatentODE, LatentPath as LatentPath, elbo as elbo
from .multiple_shooting import multiple_shooting as multiple_shooting
from .neural_cde import NeuralCDE as NeuralCDE
from .neural_dae import MassMatrixODE as MassMatrixODE, NeuralDAE as NeuralDAE
from .neural_dde import NeuralDDE as NeuralDDE
from .neural_ode import NeuralODE as NeuralODE
from .neural_sde import NeuralDSDE as NeuralDSDE, NeuralSDE as NeuralSDE, moments as moments
from .observer import Observer as Observer
from .ode_rnn import ODERNN as ODERNN, IrregularSequence as IrregularSequence
from .regularized import Regularized as Regularized
from .schedules import growing_horizons as growing_horizons, tightening_tolerances as tightening_tolerances
from .second_order import SecondOrder as SecondOrder
from .split_ode import SplitODE as SplitODE
from .structured import GradientFlow as GradientFlow, PortHamiltonian as PortHamiltonian
from .symplectic import Verlet as Verlet, Yoshida4 as Yoshida4
from .universal import UDE as UDE
from .vector_field import vector_field as vector_field
