"""Layers, one concept a file."""

from .containers import (
    Chain as Chain,
    Parallel as Parallel,
    SkipConnection as SkipConnection,
)
from .dropout import Dropout as Dropout
from .linear import Dense as Dense
from .norm import BatchNorm as BatchNorm
