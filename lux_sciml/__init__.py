"""Scientific machine learning on JAX: layers as pure functions, parameters as one flat named vector."""

from . import (
    activations,
    compilation,
    components,
    core,
    derivatives,
    diffeq,
    equilibrium,
    inference,
    initializers,
    losses,
    nn,
    optimize,
    parameters,
    plot,
    testing,
)
from .compilation import *
from .components import *
from .components import constraints
from .core import *
from .derivatives import hessian, hvp, jacobian
from .diffeq import *
from .equilibrium import *
from .nn import *
from .optimize import *
from .parameters import *

__version__ = "0.1.0"

__all__ = [
    "activations",
    "compilation",
    "constraints",
    "derivatives",
    "diffeq",
    "equilibrium",
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
]
__all__ += compilation.__all__
__all__ += components.__all__
__all__ += core.__all__
__all__ += diffeq.__all__
__all__ += equilibrium.__all__
__all__ += nn.__all__
__all__ += optimize.__all__
__all__ += parameters.__all__
