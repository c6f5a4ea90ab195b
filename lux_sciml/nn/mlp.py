"""Dense layers one after another: MLP, and Siren, whose activations are sines."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._tree import floating, widened
from ..activations import identity
from ..core import Layer, Wrapper, field
from ..core.converters import count, flag, function, optional, sizes
from ..initializers import Uniform
from ._shapes import activation_after_widths, fraction, positive
from .containers import Chain, SkipConnection
from .dropout import Dropout
from .linear import Dense


class MLP(Wrapper):
    r"""A multi-layer perceptron: `Dense` layers with an activation between them.

    `MLP(2, (32, 32), 1)` is `Chain(Dense(2, 32, tanh), Dense(32, 32, tanh), Dense(32, 1))`, with its parameters
    `layer_0`, `layer_1`, .... Input `(..., in_features)`, output `(..., out_features)`. Options:

    * `in_features`, `hidden_features`, `out_features`: the widths; the hidden ones are a tuple, or one number;
    * `activation`: between the layers, `tanh` by default;
    * `last_activation`: after the last layer, none by default;
    * `use_bias`: whether the layers have biases, `True` by default;
    * `norm`: a function of the number of features, such as `lux.LayerNorm`; each hidden layer is then
      `Chain(Dense, norm, activation)`;
    * `dropout_rate`: that of a `Dropout` after each hidden layer, 0 for none;
    * `residual`: whether hidden layers that keep the number of features get a skip connection;
    * `init_weight`, `init_bias`: as in `Dense`.

    Raises `TypeError` and `ValueError` for options of another kind, such as `MLP(2, 8, 8, 1)` for `MLP(2, (8, 8), 1)`,
    and `ValueError` for inputs with another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.MLP(2, (32, 32), 1)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape, ps.layer_0.weight.shape
    ((8, 1), (2, 32))
    """

    in_features: int = field(converter=count)
    hidden_features: tuple[int, ...] = field(converter=sizes)
    out_features: int = field(converter=count)
    activation: Callable[..., Any] = field(default=jnp.tanh, converter=activation_after_widths)
    last_activation: Callable[..., Any] = field(default=identity, converter=function, kw_only=True)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)
    norm: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    dropout_rate: float = field(default=0.0, converter=fraction, kw_only=True)
    residual: bool = field(default=False, converter=flag, kw_only=True)
    init_weight: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    init_bias: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    layers: Layer = field(init=False)

    def __post_init__(self) -> None:
        widths = (self.in_features, *self.hidden_features, self.out_features)
        hidden = [self._hidden(m, n) for m, n in itertools.pairwise(widths[:-1])]
        self.layers = Chain(*hidden, self._dense(widths[-2], widths[-1], self.last_activation))

    def _dense(self, m: int, n: int, activation: Callable[..., Any]) -> Layer:
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


def sine(x: Any, omega: float = 1.0) -> jax.Array:
    """`sin(omega * x)`."""
    return jnp.sin(omega * x)


class Siren(Wrapper):
    r"""Dense layers with :math:`\sin(\omega (x W + b))` between them, for functions whose derivatives matter.

    The first weights are from U(-1/in, 1/in), the others from U(-c, c), :math:`c = \sqrt{6 / in} / \omega`, so that all
    layers start with the same spread. The last layer is linear. Parameters: `layer_0`, `layer_1`, .... Input `(...,
    in_features)`, output `(..., out_features)`; half precision is computed in float32, since `omega` multiplies the
    rounding of the angles, and rounded at the end. Options:

    * `in_features`, `hidden_features`, `out_features`: the widths; the hidden ones are a tuple, or one number;
    * `omega`: the frequency of the layers but the first, 30 by default;
    * `first_omega`: that of the first layer, which sets the frequencies of the function, 30 by default.

    Sitzmann et al., "Implicit neural representations with periodic activation functions", NeurIPS 2020. Raises
    `ValueError` for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Siren(2, (32, 32), 1)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 1)
    """

    in_features: int = field(converter=count)
    hidden_features: tuple[int, ...] = field(converter=sizes)
    out_features: int = field(converter=count)
    omega: float = field(default=30.0, converter=positive, kw_only=True)
    first_omega: float = field(default=30.0, converter=positive, kw_only=True)
    layers: Layer = field(init=False)

    def __post_init__(self) -> None:
        widths = (self.in_features, *self.hidden_features)
        layers = []
        for i, (m, n) in enumerate(itertools.pairwise(widths)):
            omega = self.omega if i else self.first_omega
            bound = math.sqrt(6 / m) / self.omega if i else 1 / m
            layers.append(Dense(m, n, functools.partial(sine, omega=omega), init_weight=Uniform(bound)))
        last = Uniform(math.sqrt(6 / widths[-1]) / self.omega)
        self.layers = Chain(*layers, Dense(widths[-1], self.out_features, init_weight=last))

    def forward(self, x, ps, st):
        x = floating(x)
        y, st = self.layers.forward(widened(x), widened(ps), st)
        return y.astype(jnp.result_type(x, *jax.tree.leaves(ps))), st
