"""Networks with a known shape: convex, or monotone, in their input."""

import itertools
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Container, Layer
from ._shapes import require_last
from .linear import Dense


class _PositiveDense(Layer):
    """An affine map with positive weights: `y = activation(x @ softplus(weight) / in_features + bias)`."""

    in_features: int
    out_features: int

    def init_params(self, key):
        dtype = jax.dtypes.canonicalize_dtype(float)
        weight = jax.random.normal(key, (self.in_features, self.out_features), dtype)
        return {"weight": weight, "bias": jnp.zeros(self.out_features, dtype)}

    def forward(self, x, ps, st):
        return x @ (jax.nn.softplus(ps["weight"]) / self.in_features) + ps["bias"], st


class ConvexMLP(Container):
    r"""A network that is convex in its input: :math:`z_{k+1} = \sigma(z_k W_k^+ + x V_k + b_k)`, with positive weights.

    The activation must be convex and not decrease: softplus, relu, elu. :math:`W^+ = \mathrm{softplus}(W) / n`, n being
    the width; the ways from the input, `V`, are free. There is no activation after the last layer. Children: `inputs`,
    a `Dense` from the input to each layer, and `hidden`, from layer to layer. Input `(..., in_features)`, output
    `(..., out_features)`.

    Amos, Xu and Kolter, "Input convex neural networks", ICML 2017. Raises `ValueError` for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.ConvexMLP(2, (16, 16), 1)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> a, b, middle = (model(jnp.array(x), ps, st)[0] for x in ([0.0, 1.0], [2.0, -1.0], [1.0, 0.0]))
    >>> bool(middle <= (a + b) / 2)
    True
    """

    in_features: int
    hidden_features: int | tuple[int, ...]
    out_features: int
    activation: Callable = jax.nn.softplus
    inputs: tuple[Layer, ...] = field(init=False)
    hidden: tuple[Layer, ...] = field(init=False)

    def __post_init__(self):
        sizes = _sizes(self)
        self.inputs = tuple(Dense(self.in_features, n) for n in sizes)
        self.hidden = tuple(_PositiveDense(m, n) for m, n in itertools.pairwise(sizes))

    def forward(self, x, ps, st):
        require_last(self, x, (self.in_features,))
        (z,), st = self.run(ps, st, inputs_0=x)
        for i in range(len(self.hidden)):
            z = self.activation(z)
            (from_hidden, from_input), st = self.run(ps, st, **{f"hidden_{i}": z, f"inputs_{i + 1}": x})
            z = from_hidden + from_input
        return z, st


class MonotoneMLP(Container):
    r"""A network that grows with each of its inputs: :math:`z_{k+1} = \sigma(z_k W_k^+ + b_k)`, with positive weights.

    :math:`W^+ = \mathrm{softplus}(W) / n`, n being the number of inputs; the activation must not decrease, and one that
    bends both ways, tanh, can fit any monotone function. Where `signs` has -1 the output falls with that input. There
    is no activation after the last layer. Children: `layer_0`, `layer_1`, .... Input `(..., in_features)`, output
    `(..., out_features)`.

    Sill, "Monotonic networks", NeurIPS 1997. Raises `ValueError` for signs other than 1 and -1 or of another number.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.MonotoneMLP(2, 16, 1, signs=(1, -1))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> jnp.sign(jax.grad(lambda x: model(x, ps, st)[0][0])(jnp.ones(2)))
    Array([ 1., -1.], dtype=float32)
    """

    in_features: int
    hidden_features: int | tuple[int, ...]
    out_features: int
    activation: Callable = jnp.tanh
    signs: tuple[int, ...] | None = field(default=None, kw_only=True)
    layers: tuple[Layer, ...] = field(init=False)

    def __post_init__(self):
        signs = self.signs
        if signs is not None and (len(signs) != self.in_features or not set(signs) <= {1, -1}):
            raise ValueError(f"MonotoneMLP needs {self.in_features} signs, each 1 or -1, got {signs}")
        sizes = (self.in_features, *_sizes(self))
        self.layers = tuple(_PositiveDense(m, n) for m, n in itertools.pairwise(sizes))

    def forward(self, x, ps, st):
        require_last(self, x, (self.in_features,))
        if self.signs is not None:
            x = x * jnp.asarray(self.signs, x.dtype)
        for i in range(len(self.layers)):
            x = self.activation(x) if i else x
            (x,), st = self.run(ps, st, **{f"layer_{i}": x})
        return x, st


def _sizes(layer: Any) -> tuple[int, ...]:
    """The widths of all layers after the input; a single number of hidden features becomes a tuple."""
    if isinstance(layer.hidden_features, int):
        layer.hidden_features = (layer.hidden_features,)
    return (*layer.hidden_features, layer.out_features)
