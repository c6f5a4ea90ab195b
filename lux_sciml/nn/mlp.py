"""MLP: dense layers one after another."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax.numpy as jnp

from ..activations import identity
from ..core import Layer, Wrapper
from ..initializers import Uniform
from .containers import Chain, SkipConnection
from .dropout import Dropout
from .linear import Dense


class MLP(Wrapper):
    r"""A multi-layer perceptron: `Dense` layers with an activation between them.

    `MLP(2, (32, 32), 1)` is `Chain(Dense(2, 32, tanh), Dense(32, 32, tanh), Dense(32, 1))`, with its parameters
    `layer_0`, `layer_1`, .... `last_activation` follows the last layer. With `norm`, a function of the number of
    features such as `lux.LayerNorm`, each hidden layer is `Chain(Dense, norm, activation)`; with `dropout_rate`,
    dropout comes after it; with `residual`, hidden layers that keep the number of features get a way around them.

    Input `(..., in_features)`, output `(..., out_features)`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.MLP(2, (32, 32), 1)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape, ps.layer_0.weight.shape
    ((8, 1), (2, 32))
    """

    in_features: int
    hidden_features: int | tuple[int, ...]
    out_features: int
    activation: Callable = jnp.tanh
    last_activation: Callable = field(default=identity, kw_only=True)
    use_bias: bool = field(default=True, kw_only=True)
    norm: Callable | None = field(default=None, kw_only=True)
    dropout_rate: float = field(default=0.0, kw_only=True)
    residual: bool = field(default=False, kw_only=True)
    init_weight: Callable | None = field(default=None, kw_only=True)
    init_bias: Callable | None = field(default=None, kw_only=True)
    layers: Layer = field(init=False)

    def __post_init__(self):
        if isinstance(self.hidden_features, int):
            self.hidden_features = (self.hidden_features,)
        sizes = (self.in_features, *self.hidden_features, self.out_features)
        hidden = [self._hidden(m, n) for m, n in itertools.pairwise(sizes[:-1])]
        self.layers = Chain(*hidden, self._dense(*sizes[-2:], self.last_activation))

    def _dense(self, m: int, n: int, activation: Callable) -> Layer:
        options = {"use_bias": self.use_bias, "init_weight": self.init_weight, "init_bias": self.init_bias}
        return Dense(m, n, activation, **options)

    def _hidden(self, m: int, n: int) -> Layer:
        if self.norm is None:
            parts: list[Any] = [self._dense(m, n, self.activation)]
        else:
            parts = [self._dense(m, n, identity), self.norm(n), self.activation]
        if self.dropout_rate:
            parts.append(Dropout(self.dropout_rate))
        layer = Chain(*parts) if len(parts) > 1 else parts[0]
        return SkipConnection(layer, jnp.add) if self.residual and m == n else layer

    def forward(self, x, ps, st):
        return self.layers.forward(x, ps, st)


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
