"""Deep equilibrium layers, on optimistix and lineax."""

from .anderson import Anderson as Anderson
from .broyden import Broyden as Broyden
