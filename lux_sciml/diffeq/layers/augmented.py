"""AugmentedODE: extra dimensions for a differential equation."""

from typing import Any

import jax.numpy as jnp

from ...core import Layer, Wrapper, as_layer, field
from ...core.converters import count
from ..equation import Equation, equation_of
from ..inputs import initial_array


class AugmentedODE(Wrapper):
    r"""A differential-equation layer that starts from :math:`(y_0, 0)`: zeros appended along the last axis.

    Trajectories of an ordinary differential equation cannot cross; in more dimensions they need not. `layer` is any
    layer of the family that takes an initial value, of `features + extra` features: its input `y0`, or the first item
    of a tuple such as `(y0, ts)`, is an array of shape `(..., features)`. The output is the layer's, with the extra
    features.

    Dupont, Doucet and Teh, "Augmented neural ODEs", NeurIPS 2019. Raises `ValueError` for fewer than one extra feature,
    and for a layer that does not start from an initial value.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.AugmentedODE(lux.NeuralODE(lux.Dense(3, 3), ts=[0.0, 1.0], output="final"), 1)
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> node(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 3)
    """

    layer: Layer = field(converter=as_layer)
    extra: int = field(converter=count)

    def __check_init__(self):
        equation = equation_of(self.layer)
        if equation is not None and equation.takes != Equation.takes:
            raise ValueError(
                f"AugmentedODE appends features to an initial value, and a {type(equation).__name__} takes "
                f"{equation.takes}"
            )

    def forward(self, x, ps, st):
        x = (self._augmented(x[0]), *x[1:]) if isinstance(x, tuple) else self._augmented(x)
        return self.layer.forward(x, ps, st)

    def _augmented(self, y0: Any) -> Any:
        y0 = jnp.asarray(initial_array("AugmentedODE", y0))
        return jnp.concatenate([y0, jnp.zeros((*y0.shape[:-1], self.extra), y0.dtype)], axis=-1)
