"""Differential-equation layers, on diffrax."""

from .failure import raise_if_failed as raise_if_failed
from .hamiltonian_ode import HamiltonianODE as HamiltonianODE
from .neural_ode import NeuralODE as NeuralODE
from .structured import GradientFlow as GradientFlow, PortHamiltonian as PortHamiltonian
from .symplectic import Verlet as Verlet, Yoshida4 as Yoshida4
from .vector_field import vector_field as vector_field
