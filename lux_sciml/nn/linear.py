"""Affine maps: of features, elementwise, of two inputs."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..activations import gain, identity
from ..core import Layer, field
from ..core.converters import count, flag, function, natural, optional
from ..core.printing import brief
from ..initializers import KaimingUniform, Uniform, ones, zeros
from ._affine import product, shared, weight_and_bias
from ._shapes import as_floating, as_tuple, require_last, size_or_sizes


class Dense(Layer):
    r"""An affine map of the last axis, then an activation: :math:`y = \sigma(x W + b)`.

    * `in_features`, `out_features`: sizes of the last axis of input and output.
    * `activation`: a function of an array, elementwise as a rule (default: the identity).
    * `use_bias`: whether there is a bias b.
    * `init_weight`, `init_bias`: any initializer of `lux.initializers` or `jax.nn.initializers`. By default the weight
      is drawn from `KaimingUniform` with the gain of the activation, the bias from U(-1/sqrt(in), 1/sqrt(in)).

    Input `(..., in_features)`, output `(..., out_features)`. Parameters: `weight` `(in_features, out_features)` and,
    with `use_bias`, `bias` `(out_features,)`. Raises `ValueError` for an input with another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Dense(2, 3, jnp.tanh)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 3)
    """

    in_features: int = field(converter=natural)
    out_features: int = field(converter=count)
    activation: Callable[..., Any] = field(default=identity, converter=function)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)
    init_weight: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    init_bias: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)

    def init_params(self, key):
        init_weight = self.init_weight or KaimingUniform(gain(self.activation))
        init_bias = self.init_bias or Uniform(1 / math.sqrt(max(self.in_features, 1)))
        shape = (self.in_features, self.out_features)
        return weight_and_bias(key, shape, init_weight, shape[-1:], init_bias if self.use_bias else None)

    def forward(self, x, ps, st):
        y = product(require_last(self, x, (self.in_features,)), ps["weight"])
        if self.use_bias:
            y = y + shared(ps["bias"], y)
        return self.activation(y), st


class Scale(Layer):
    r"""An elementwise affine map, then an activation: :math:`y = \sigma(w \odot x + b)`.

    * `shape`: a number of features or a tuple of sizes.
    * `activation`: a function of an array (default: the identity).
    * `use_bias`: whether there is a bias b.
    * `init_weight`, `init_bias`: initializers; by default ones and zeros.

    Input and output `(..., *shape)`. Parameters: `weight` and, with `use_bias`, `bias`, both of that shape. Raises
    `ValueError` for inputs of another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Scale(3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 3)), ps.replace(bias=1.0), st)[0][0]
    Array([2., 2., 2.], dtype=float32)
    """

    shape: int | tuple[int, ...] = field(converter=size_or_sizes)
    activation: Callable[..., Any] = field(default=identity, converter=function)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)
    init_weight: Callable[..., Any] = field(default=ones, converter=function, kw_only=True)
    init_bias: Callable[..., Any] = field(default=zeros, converter=function, kw_only=True)

    def init_params(self, key):
        shape = as_tuple(self.shape)
        return weight_and_bias(key, shape, self.init_weight, shape, self.init_bias if self.use_bias else None)

    def forward(self, x, ps, st):
        x = require_last(self, x, as_tuple(self.shape))
        y = x * shared(ps["weight"], x)
        if self.use_bias:
            y = y + shared(ps["bias"], y)
        return self.activation(y), st


class Bilinear(Layer):
    r"""A bilinear map of two inputs, then an activation: :math:`y_o = \sigma(x_1^T W_o x_2 + b_o)`.

    * `in1_features`, `in2_features`, `out_features`: sizes of the last axis of the two inputs and of the output.
    * `activation`: a function of an array (default: the identity).
    * `use_bias`: whether there is a bias b.
    * `init_weight`, `init_bias`: initializers; by default both are U(-1/sqrt(in1), 1/sqrt(in1)).

    Input: a pair of arrays `(..., in1_features)` and `(..., in2_features)`, or one array, which then is both; output
    `(..., out_features)`. Parameters: `weight` `(in1_features, in2_features, out_features)` and, with `use_bias`,
    `bias` `(out_features,)`. Raises `ValueError` for inputs with other numbers of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Bilinear(2, 3, 4)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer((jnp.ones((8, 2)), jnp.ones((8, 3))), ps, st)[0].shape
    (8, 4)
    """

    in1_features: int = field(converter=natural)
    in2_features: int = field(converter=natural)
    out_features: int = field(converter=count)
    activation: Callable[..., Any] = field(default=identity, converter=function)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)
    init_weight: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    init_bias: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)

    def init_params(self, key):
        default = Uniform(1 / math.sqrt(max(self.in1_features, 1)))
        shape = (self.in1_features, self.in2_features, self.out_features)
        init_bias = (self.init_bias or default) if self.use_bias else None
        return weight_and_bias(key, shape, self.init_weight or default, shape[-1:], init_bias)

    def forward(self, x, ps, st):
        pair = tuple(as_floating(self, one) for one in (x if isinstance(x, tuple) else (x, x)))
        ends = [(self.in1_features,), (self.in2_features,)]
        if [one.shape[-1:] for one in pair] != ends:
            raise ValueError(
                f"{brief(self)} expects inputs of shapes (..., {self.in1_features}) and "
                f"(..., {self.in2_features}), got {' and '.join(str(one.shape) for one in pair)}"
            )
        x1, x2 = pair
        y = jnp.einsum("...i,ijo,...j->...o", x1, ps["weight"], x2)
        if self.use_bias:
            y = y + shared(ps["bias"], y)
        return self.activation(y), st
