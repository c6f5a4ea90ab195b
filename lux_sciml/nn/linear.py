"""Dense: an affine map and an activation."""

import math
from collections.abc import Callable
from dataclasses import field

import jax

from ..activations import gain, identity
from ..core import Layer
from ..core.display import option_text
from ..initializers import KaimingUniform, Uniform


class Dense(Layer):
    r"""An affine map of the last axis, then an activation: :math:`y = \sigma(x W + b)`.

    Input `(..., in_features)`, output `(..., out_features)`. Parameters: `weight` `(in_features, out_features)` and,
    with `use_bias`, `bias` `(out_features,)`. By default the weight is drawn from `KaimingUniform` with the gain of the
    activation, the bias from U(-1/sqrt(in), 1/sqrt(in)). `init_weight` and `init_bias` take any initializer of
    `lux.initializers` or `jax.nn.initializers`.

    Raises `ValueError` for an input with another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Dense(2, 3, jnp.tanh)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 3)
    """

    in_features: int
    out_features: int
    activation: Callable = identity
    use_bias: bool = field(default=True, kw_only=True)
    init_weight: Callable | None = field(default=None, kw_only=True)
    init_bias: Callable | None = field(default=None, kw_only=True)

    def init_params(self, key):
        key_weight, key_bias = jax.random.split(key)
        init_weight = self.init_weight or KaimingUniform(gain(self.activation))
        init_bias = self.init_bias or Uniform(1 / math.sqrt(max(self.in_features, 1)))
        dtype = jax.dtypes.canonicalize_dtype(float)
        ps = {"weight": init_weight(key_weight, (self.in_features, self.out_features), dtype)}
        if self.use_bias:
            ps["bias"] = init_bias(key_bias, (self.out_features,), dtype)
        return ps

    def forward(self, x, ps, st):
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"{option_text(self)} expects inputs of shape (..., {self.in_features}), got {x.shape}")
        y = x @ ps["weight"]
        if self.use_bias:
            y = y + ps["bias"]
        return self.activation(y), st
