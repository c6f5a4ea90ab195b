"""Differential-equation layers, on diffrax."""

from .failure import raise_if_failed as raise_if_failed
from .neural_ode import NeuralODE as NeuralODE
from .vector_field import vector_field as vector_field
