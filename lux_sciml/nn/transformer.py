"""What transformers are made of, beside attention: patches, class tokens, an encoder block."""

import math
from collections.abc import Callable
from dataclasses import field

import jax
import jax.numpy as jnp

from ..core import Container, Layer
from ..core.printing import option_text
from ..initializers import KaimingUniform, Uniform, zeros
from ._shapes import require_last
from .attention import MultiHeadAttention
from .containers import Chain
from .dropout import Dropout
from .linear import Dense
from .norm import LayerNorm
from .shaping import NoOp


class ClassTokens(Layer):
    """Puts a trained token before the others: `(..., tokens, features)` to `(..., 1 + tokens, features)`.

    Parameter: `token` `(features,)`, drawn by `init` (default: zeros). Dosovitskiy et al., "An image is worth 16x16
    words", ICLR 2021. Raises `ValueError` for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.ClassTokens(16)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 6, 16)
    """

    features: int
    init: Callable = field(default=zeros, kw_only=True)

    def init_params(self, key):
        return {"token": self.init(key, (self.features,), jax.dtypes.canonicalize_dtype(float))}

    def forward(self, x, ps, st):
        require_last(self, x, (self.features,))
        token = jnp.broadcast_to(ps["token"].astype(x.dtype), (*x.shape[:-2], 1, self.features))
        return jnp.concatenate([token, x], -2), st


class PatchEmbedding(Layer):
    r"""Cuts images into patches and maps each to a token: `N H W C` to `(N, patches, features)`, row by row.

    A convolution whose stride is its window. `patch_size` is one size for height and width, or a tuple with one for
    each axis of space. Parameters: `weight` `(*patch_size, in_features, features)` and, with `use_bias`, `bias`.

    Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021. Raises `ValueError` for images that the patches do
    not fill.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.PatchEmbedding((4, 4), 3, 16)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 32, 32, 3)), ps, st)[0].shape
    (8, 64, 16)
    """

    patch_size: int | tuple[int, ...]
    in_features: int
    features: int
    use_bias: bool = field(default=True, kw_only=True)

    def __post_init__(self):
        if isinstance(self.patch_size, int):
            self.patch_size = (self.patch_size, self.patch_size)

    def init_params(self, key):
        key_weight, key_bias = jax.random.split(key)
        dtype = jax.dtypes.canonicalize_dtype(float)
        ps = {"weight": KaimingUniform()(key_weight, (*self.patch_size, self.in_features, self.features), dtype)}
        if self.use_bias:
            bound = 1 / math.sqrt(math.prod(self.patch_size) * self.in_features)
            ps["bias"] = Uniform(bound)(key_bias, (self.features,), dtype)
        return ps

    def forward(self, x, ps, st):
        n = len(self.patch_size)
        space = x.shape[-n - 1 : -1]
        if x.ndim < n + 1 or x.shape[-1] != self.in_features or any(map(lambda a, b: a % b, space, self.patch_size)):
            raise ValueError(
                f"{option_text(self)} expects {self.in_features} features on a space that patches {self.patch_size} "
                f"fill, got {x.shape}"
            )
        batch = x.shape[: -n - 1]
        counts = [size // patch for size, patch in zip(space, self.patch_size, strict=True)]
        split = [part for pair in zip(counts, self.patch_size, strict=True) for part in pair]
        b = len(batch)
        order = [*range(b), *range(b, b + 2 * n, 2), *range(b + 1, b + 2 * n, 2), b + 2 * n]
        patches = x.reshape(*batch, *split, self.in_features).transpose(order)
        flat = patches.reshape(*batch, math.prod(counts), -1)
        y = flat @ ps["weight"].reshape(-1, self.features)
        return (y + ps["bias"] if self.use_bias else y), st


class TransformerEncoderBlock(Container):
    r"""Self-attention and a small network at each token, each with a normalization and a way around it.

    .. math:: x' = x + A(N_1(x)), \quad y = x' + F(N_2(x'))

    With `norm_first=False` :math:`x' = N_1(x + A(x)), y = N_2(x' + F(x'))`, which needs a warm-up in training. Input
    `(..., tokens, features)`, or a tuple of it and a mask (`True` = keep) that broadcasts to `(batch, heads, tokens,
    tokens)`; output of the same shape. `F` is `Dense(features, hidden_features, activation)`, dropout and
    `Dense(hidden_features, features)`. Children: `norm_1`, `attention`, `norm_2`, `mlp`, `dropout_1`, `dropout_2`.

    Vaswani et al., "Attention is all you need", NeurIPS 2017; Xiong et al., "On layer normalization in the transformer
    architecture", ICML 2020. Raises `ValueError` for heads that do not divide the features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> block = lux.TransformerEncoderBlock(16, 4, 32)
    >>> ps, st = lux.setup(jax.random.key(0), block)
    >>> block(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 5, 16)
    """

    features: int
    heads: int
    hidden_features: int
    activation: Callable = jax.nn.gelu
    norm_first: bool = field(default=True, kw_only=True)
    dropout_rate: float = field(default=0.0, kw_only=True)
    is_causal: bool = field(default=False, kw_only=True)
    norm_1: Layer = field(init=False)
    attention: Layer = field(init=False)
    norm_2: Layer = field(init=False)
    mlp: Layer = field(init=False)
    dropout_1: Layer = field(init=False)
    dropout_2: Layer = field(init=False)

    def __post_init__(self):
        dropout = Dropout(self.dropout_rate) if self.dropout_rate else NoOp()
        self.norm_1 = self.norm_2 = LayerNorm(self.features)
        self.dropout_1 = self.dropout_2 = dropout
        self.attention = MultiHeadAttention(
            self.features, self.heads, dropout_rate=self.dropout_rate, is_causal=self.is_causal
        )
        self.mlp = Chain(
            Dense(self.features, self.hidden_features, self.activation),
            dropout,
            Dense(self.hidden_features, self.features),
        )

    def forward(self, x, ps, st):
        x, mask = x if isinstance(x, tuple) else (x, None)

        def attention(x, st):
            (y,), st = self.run(ps, st, attention=(x, x, x, mask))
            return y, st

        def mlp(x, st):
            (y,), st = self.run(ps, st, mlp=x)
            return y, st

        for i, branch in ((1, attention), (2, mlp)):
            x, st = self._around(branch, i, x, ps, st)
        return x, st

    def _around(self, branch, i, x, ps, st):
        norm, dropout, y = f"norm_{i}", f"dropout_{i}", x
        if self.norm_first:
            (y,), st = self.run(ps, st, **{norm: y})
        y, st = branch(y, st)
        (y,), st = self.run(ps, st, **{dropout: y})
        if self.norm_first:
            return x + y, st
        (y,), st = self.run(ps, st, **{norm: x + y})
        return y, st
