"""Networks with a known shape: convex, or monotone, in their input."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Container, Layer, field
from ..core.converters import count, integers, optional, sizes
from ._affine import product, shared
from ._shapes import activation_after_widths, require_last
from .linear import Dense


class _PositiveDense(Layer):
    """An affine map with positive weights: `y = x @ softplus(weight) / in_features + bias`."""

    in_features: int
    out_features: int

    def init_params(self, key):
        weight = jax.random.normal(key, (self.in_features, self.out_features))
        return {"weight": weight, "bias": jnp.zeros(self.out_features)}

    def forward(self, x, ps, st):
        y = product(x, jax.nn.softplus(ps["weight"]) / self.in_features)
        return y + shared(ps["bias"], y), st


class ConvexMLP(Container):
    r"""A network that is convex in its input: :math:`z_{k+1} = \sigma(z_k W_k^+ + x V_k + b_k)`, with positive weights.

    The activation must be convex and not decrease: softplus, relu, elu. :math:`W^+ = \mathrm{softplus}(W) / n`, n being
    the width; the connections from the input, `V`, are free. There is no activation after the last layer. Children:
    `inputs`, a `Dense` from the input to each layer, and `hidden`, from layer to layer. Input `(..., in_features)`,
    output `(..., out_features)`.

    Amos, Xu and Kolter, "Input convex neural networks", ICML 2017. Raises `ValueError` for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.ConvexMLP(2, (16, 16), 1)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> a, b, middle = (model(jnp.array(x), ps, st)[0] for x in ([0.0, 1.0], [2.0, -1.0], [1.0, 0.0]))
    >>> bool(middle <= (a + b) / 2)
    True
    """

    in_features: int = field(converter=count)
    hidden_features: tuple[int, ...] = field(converter=sizes)
    out_features: int = field(converter=count)
    activation: Callable[..., Any] = field(default=jax.nn.softplus, converter=activation_after_widths)
    inputs: tuple[Layer, ...] = field(init=False)
    hidden: tuple[Layer, ...] = field(init=False)

    def __post_init__(self) -> None:
        widths = (*self.hidden_features, self.out_features)
        self.inputs = tuple(Dense(self.in_features, n) for n in widths)
        self.hidden = tuple(_PositiveDense(m, n) for m, n in itertools.pairwise(widths))

    def forward(self, x, ps, st):
        x = require_last(self, x, (self.in_features,))
        (z,), st = self.run(ps, st, inputs_0=x)
        for i in range(len(self.hidden)):
            z = self.activation(z)
            (from_hidden, from_input), st = self.run(ps, st, **{f"hidden_{i}": z, f"inputs_{i + 1}": x})
            z = from_hidden + from_input
        return z, st


class MonotoneMLP(Container):
    r"""A network that grows with each of its inputs: :math:`z_{k+1} = \sigma(z_k W_k^+ + b_k)`, with positive weights.

    :math:`W^+ = \mathrm{softplus}(W) / n`, n being the number of inputs of the layer. There is no activation after the
    last layer. Children: `layer_0`, `layer_1`, .... Input `(..., in_features)`, output `(..., out_features)`. Options:

    * `in_features`, `hidden_features`, `out_features`: the widths; the hidden ones are a tuple, or one number;
    * `activation`: must not decrease; `tanh`, the default, can fit any monotone function, a convex one cannot;
    * `signs`: 1 or -1 for each input; where it is -1, the output falls with that input.

    Sill, "Monotonic networks", NeurIPS 1997. Raises `ValueError` for another number of features, and for signs other
    than 1 and -1, one for each input.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.MonotoneMLP(2, 16, 1, signs=(1, -1))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> jnp.sign(jax.grad(lambda x: model(x, ps, st)[0][0])(jnp.ones(2)))
    Array([ 1., -1.], dtype=float32)
    """

    in_features: int = field(converter=count)
    hidden_features: tuple[int, ...] = field(converter=sizes)
    out_features: int = field(converter=count)
    activation: Callable[..., Any] = field(default=jnp.tanh, converter=activation_after_widths)
    signs: tuple[int, ...] | None = field(default=None, converter=optional(integers), kw_only=True)
    layers: tuple[Layer, ...] = field(init=False)

    def __post_init__(self) -> None:
        signs = self.signs
        if signs is not None and (len(signs) != self.in_features or not set(signs) <= {1, -1}):
            raise ValueError(f"MonotoneMLP needs {self.in_features} signs, each 1 or -1, got {signs}")
        widths = (self.in_features, *self.hidden_features, self.out_features)
        self.layers = tuple(_PositiveDense(m, n) for m, n in itertools.pairwise(widths))

    def forward(self, x, ps, st):
        x = require_last(self, x, (self.in_features,))
        if self.signs is not None:
            x = x * jnp.asarray(self.signs, x.dtype)
        for i in range(len(self.layers)):
            x = self.activation(x) if i else x
            (x,), st = self.run(ps, st, **{f"layer_{i}": x})
        return x, st
