"""Affine maps: of features, of each number by itself, of two inputs; and tables of vectors."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp

from ..activations import gain, identity
from ..core import Layer
from ..core.printing import option_text
from ..initializers import KaimingUniform, Normal, Uniform, ones, zeros
from ._shapes import as_tuple, require_last


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
        require_last(self, x, (self.in_features,))
        y = _product(x, ps["weight"])
        if self.use_bias:
            y = y + ps["bias"]
        return self.activation(y), st


def _product(x: Any, weight: Any) -> jax.Array:
    """`x @ weight`, on the CPU as a product of two matrices: XLA copies in the gradient of others, a fifth of its time.

    Not elsewhere: it would gather inputs that are spread over devices along another axis than the first one.
    """
    if x.ndim < 3 or jax.default_backend() != "cpu":
        return x @ weight
    *batch, features = x.shape
    return (x.reshape(math.prod(batch), features) @ weight).reshape(*batch, weight.shape[-1])


class Scale(Layer):
    r"""An affine map of each number by itself, then an activation: :math:`y = \sigma(w \odot x + b)`.

    Input and output `(..., *shape)`, where `shape` is a number of features or a tuple of sizes. Parameters: `weight`,
    ones at first, and with `use_bias` `bias`, zeros at first, both of that shape.

    Raises `ValueError` for inputs of another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Scale(3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 3)), ps.replace(bias=1.0), st)[0][0]
    Array([2., 2., 2.], dtype=float32)
    """

    shape: int | tuple[int, ...]
    activation: Callable = identity
    use_bias: bool = field(default=True, kw_only=True)
    init_weight: Callable = field(default=ones, kw_only=True)
    init_bias: Callable = field(default=zeros, kw_only=True)

    def init_params(self, key):
        key_weight, key_bias = jax.random.split(key)
        dtype, shape = jax.dtypes.canonicalize_dtype(float), as_tuple(self.shape)
        ps = {"weight": self.init_weight(key_weight, shape, dtype)}
        if self.use_bias:
            ps["bias"] = self.init_bias(key_bias, shape, dtype)
        return ps

    def forward(self, x, ps, st):
        require_last(self, x, as_tuple(self.shape))
        y = x * ps["weight"]
        if self.use_bias:
            y = y + ps["bias"]
        return self.activation(y), st


class Bilinear(Layer):
    r"""A bilinear map of two inputs, then an activation: :math:`y_o = \sigma(x_1^T W_o x_2 + b_o)`.

    Input: a pair of arrays `(..., in1_features)` and `(..., in2_features)`, or one array, which then is both; output
    `(..., out_features)`. Parameters: `weight` `(in1_features, in2_features, out_features)` and, with `use_bias`,
    `bias` `(out_features,)`, both drawn from U(-1/sqrt(in1), 1/sqrt(in1)) by default.

    Raises `ValueError` for inputs with other numbers of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Bilinear(2, 3, 4)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer((jnp.ones((8, 2)), jnp.ones((8, 3))), ps, st)[0].shape
    (8, 4)
    """

    in1_features: int
    in2_features: int
    out_features: int
    activation: Callable = identity
    use_bias: bool = field(default=True, kw_only=True)
    init_weight: Callable | None = field(default=None, kw_only=True)
    init_bias: Callable | None = field(default=None, kw_only=True)

    def init_params(self, key):
        key_weight, key_bias = jax.random.split(key)
        default, dtype = Uniform(1 / math.sqrt(max(self.in1_features, 1))), jax.dtypes.canonicalize_dtype(float)
        shape = (self.in1_features, self.in2_features, self.out_features)
        ps = {"weight": (self.init_weight or default)(key_weight, shape, dtype)}
        if self.use_bias:
            ps["bias"] = (self.init_bias or default)(key_bias, shape[-1:], dtype)
        return ps

    def forward(self, x, ps, st):
        x1, x2 = x if isinstance(x, tuple) else (x, x)
        if x1.shape[-1:] != (self.in1_features,) or x2.shape[-1:] != (self.in2_features,):
            raise ValueError(
                f"{option_text(self)} expects inputs of shapes (..., {self.in1_features}) and "
                f"(..., {self.in2_features}), got {x1.shape} and {x2.shape}"
            )
        y = jnp.einsum("...i,ijo,...j->...o", x1, ps["weight"], x2)
        if self.use_bias:
            y = y + ps["bias"]
        return self.activation(y), st


class Embedding(Layer):
    """A table of vectors, read by index: `y = weight[x]`.

    Input: integers `(...)` from 0 to `num_embeddings - 1`; output `(..., features)`. With a tuple of sizes, as for the
    axes of a grid, the input is a tuple of as many integer arrays. An index outside its range gives NaNs, not another
    row. Parameter: `weight` `(num_embeddings, features)`, or `(*num_embeddings, features)`, drawn from N(0, 1).

    Raises `ValueError` for another number of index arrays and `TypeError` for indices that are not integers.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Embedding(10, 4)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.array([[1, 2, 3], [7, 8, 9]]), ps, st)[0].shape
    (2, 3, 4)
    """

    num_embeddings: int | tuple[int, ...]
    features: int
    init_weight: Callable = field(default=Normal(), kw_only=True)

    def init_params(self, key):
        shape = (*as_tuple(self.num_embeddings), self.features)
        return {"weight": self.init_weight(key, shape, jax.dtypes.canonicalize_dtype(float))}

    def forward(self, x, ps, st):
        indices, sizes = x if isinstance(x, tuple) else (x,), as_tuple(self.num_embeddings)
        if len(indices) != len(sizes):
            raise ValueError(f"{option_text(self)} expects {len(sizes)} arrays of indices, got {len(indices)}")
        for index in indices:
            if not jnp.issubdtype(index.dtype, jnp.integer):
                raise TypeError(f"{option_text(self)} expects integers, got {index.dtype}")
        rows = ps["weight"].at[indices]
        return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False), st
