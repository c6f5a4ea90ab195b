"""Siren: a network of sines."""

import functools
import itertools
import math
from dataclasses import field

import jax.numpy as jnp

from ..core import Layer, Wrapper
from ..initializers import Uniform
from .containers import Chain
from .linear import Dense


def sine(x, omega: float = 1.0):
    """`sin(omega * x)`."""
    return jnp.sin(omega * x)


class Siren(Wrapper):
    r"""Dense layers with :math:`\sin(\omega (x W + b))` between them, for functions whose derivatives matter.

    The first weights are from U(-1/in, 1/in), the others from U(-c, c), :math:`c = \sqrt{6 / in} / \omega`, so that all
    layers start with the same spread. `first_omega` sets the frequencies of the first layer. The last layer is linear.
    Parameters: `layer_0`, `layer_1`, .... Input `(..., in_features)`, output `(..., out_features)`.

    Sitzmann et al., "Implicit neural representations with periodic activation functions", NeurIPS 2020.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Siren(2, (32, 32), 1)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 1)
    """

    in_features: int
    hidden_features: int | tuple[int, ...]
    out_features: int
    omega: float = field(default=30.0, kw_only=True)
    first_omega: float = field(default=30.0, kw_only=True)
    layers: Layer = field(init=False)

    def __post_init__(self):
        if isinstance(self.hidden_features, int):
            self.hidden_features = (self.hidden_features,)
        sizes = (self.in_features, *self.hidden_features)
        layers = []
        for i, (m, n) in enumerate(itertools.pairwise(sizes)):
            omega = self.omega if i else self.first_omega
            bound = math.sqrt(6 / m) / self.omega if i else 1 / m
            layers.append(Dense(m, n, functools.partial(sine, omega=omega), init_weight=Uniform(bound)))
        last = Uniform(math.sqrt(6 / sizes[-1]) / self.omega)
        self.layers = Chain(*layers, Dense(sizes[-1], self.out_features, init_weight=last))

    def forward(self, x, ps, st):
        return self.layers.forward(x, ps, st)
