"""Scientific machine learning on JAX: layers as pure functions, parameters as one flat named vector."""

from . import initializers as initializers, testing as testing
from .components import (
    ComponentMatrix as ComponentMatrix,
    ComponentVector as ComponentVector,
    Constrained as Constrained,
    Interval as Interval,
    Laplace as Laplace,
    Layout as Layout,
    Positive as Positive,
    Simplex as Simplex,
    bounds as bounds,
    component as component,
    concat as concat,
    current_derivatives as current_derivatives,
    derivatives as derivatives,
    hessian as hessian,
    hvp as hvp,
    jacobian as jacobian,
    laplace as laplace,
    load as load,
    load_into as load_into,
    save as save,
)
from .core import (
    Constant as Constant,
    Container as Container,
    Lambda as Lambda,
    Layer as Layer,
    Mode as Mode,
    Wrapper as Wrapper,
    as_layer as as_layer,
    output_shape as output_shape,
    parameter_length as parameter_length,
    setup as setup,
    state_length as state_length,
    summary as summary,
    testmode as testmode,
    trainmode as trainmode,
    update_state as update_state,
)
from .diffeq import (
    NeuralODE as NeuralODE,
    raise_if_failed as raise_if_failed,
    vector_field as vector_field,
)
from .nn import (
    BatchNorm as BatchNorm,
    Chain as Chain,
    Dense as Dense,
    Dropout as Dropout,
    Parallel as Parallel,
    SkipConnection as SkipConnection,
)
from .optimize import MinimizeResult as MinimizeResult, minimize as minimize
