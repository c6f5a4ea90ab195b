"""The contract: what a layer is, its parameters, its state. Knows components; knows no concrete layer."""

from .compact import compact as compact, init_fn as init_fn, non_trainable as non_trainable
from .container import Container as Container, Wrapper as Wrapper
from .debug import debug as debug
from .derivatives import (
    jacobian_vector_product as jacobian_vector_product,
    vector_jacobian_product as vector_jacobian_product,
)
from .layer import Lambda as Lambda, Layer as Layer, as_layer as as_layer
from .setup import (
    output_shape as output_shape,
    parameter_length as parameter_length,
    setup as setup,
    state_length as state_length,
)
from .state import (
    Mode as Mode,
    testmode as testmode,
    trainmode as trainmode,
    update_state as update_state,
)
from .stateful import StatefulLayer as StatefulLayer
from .static import Constant as Constant
from .summary import summary as summary
