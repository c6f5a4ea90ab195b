"""What transformers are made of, beside attention: patches, class tokens, an encoder block."""

import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp

from .._tree import single
from ..core import Container, Layer, field
from ..core.converters import checks_itself, count, flag, function
from ..core.printing import brief
from ..initializers import KaimingUniform, Uniform, zeros
from ._affine import product, shared, weight_and_bias
from ._shapes import as_floating, fraction, require_last, size_or_sizes
from .attention import MultiHeadAttention, seeing, visible, without_hidden, zeroed
from .containers import Chain
from .dropout import Dropout
from .linear import Dense
from .norm import LayerNorm
from .shaping import NoOp


class ClassTokens(Layer):
    """Prepends a learnable token: `(..., tokens, features)` to `(..., 1 + tokens, features)`.

    Parameter: `token` `(features,)`, drawn by `init` (default: zeros). Dosovitskiy et al., "An image is worth 16x16
    words", ICLR 2021. Raises `ValueError` for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.ClassTokens(16)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 6, 16)
    """

    features: int = field(converter=count)
    init: Callable[..., Any] = field(default=zeros, converter=function, kw_only=True)

    def init_params(self, key):
        return {"token": self.init(key, (self.features,), float)}

    def forward(self, x, ps, st):
        x = require_last(self, x, (self.features,))
        if x.ndim < 2:
            raise ValueError(f"{brief(self)} expects inputs of shape (..., tokens, {self.features}), got {x.shape}")
        dtype = jnp.result_type(x, ps["token"])
        token = jnp.broadcast_to(single(ps["token"]), (*x.shape[:-2], 1, self.features)).astype(dtype)
        return jnp.concatenate([token, x.astype(dtype)], -2), st


@checks_itself
def _patch(value: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    """A size for height and width, or a tuple with one for each spatial axis."""
    found = size_or_sizes(value)
    if found == ():
        raise ValueError("expected a size for each spatial axis, got ()")
    return found if isinstance(found, tuple) else (found, found)


class PatchEmbedding(Layer):
    r"""Cuts images into patches and maps each to a token: `N H W C` to `(N, patches, features)`, row by row.

    A convolution whose stride is its kernel size.

    * `patch_size`: one size for height and width, or a tuple with one for each spatial axis.
    * `in_features`, `features`: sizes of the last axis of input and output.
    * `use_bias`: whether there is a bias.

    Parameters: `weight` `(*patch_size, in_features, features)` and, with `use_bias`, `bias`.

    Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021. Raises `ValueError` for images that the patches do
    not fill.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.PatchEmbedding((4, 4), 3, 16)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 32, 32, 3)), ps, st)[0].shape
    (8, 64, 16)
    """

    patch_size: tuple[int, ...] = field(converter=_patch)
    in_features: int = field(converter=count)
    features: int = field(converter=count)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)

    def init_params(self, key):
        shape = (*self.patch_size, self.in_features, self.features)
        init_bias = Uniform(1 / math.sqrt(math.prod(shape[:-1])))
        return weight_and_bias(key, shape, KaimingUniform(), shape[-1:], init_bias if self.use_bias else None)

    def forward(self, x, ps, st):
        n, x = len(self.patch_size), as_floating(self, x)
        space = x.shape[-n - 1 : -1]
        if x.ndim < n + 1 or x.shape[-1] != self.in_features or any(map(lambda a, b: a % b, space, self.patch_size)):
            raise ValueError(
                f"{brief(self)} expects {self.in_features} features on spatial axes that patches "
                f"{self.patch_size} fill, got {x.shape}"
            )
        batch = x.shape[: -n - 1]
        counts = [size // patch for size, patch in zip(space, self.patch_size, strict=True)]
        split = [part for pair in zip(counts, self.patch_size, strict=True) for part in pair]
        b = len(batch)
        order = [*range(b), *range(b, b + 2 * n, 2), *range(b + 1, b + 2 * n, 2), b + 2 * n]
        patches = x.reshape(*batch, *split, self.in_features).transpose(order)
        length = math.prod(self.patch_size) * self.in_features
        patches = patches.reshape(*batch, math.prod(counts), length)
        y = product(patches, ps["weight"].reshape(length, self.features))
        return (y + shared(ps["bias"], y) if self.use_bias else y), st


class TransformerEncoderBlock(Container):
    r"""Self-attention and a small network at each token, each with a normalization and a skip connection.

    .. math:: x' = x + A(N_1(x)), \quad y = x' + F(N_2(x'))

    With `norm_first=False` :math:`x' = N_1(x + A(x)), y = N_2(x' + F(x'))`, which needs a warm-up in training.

    * `features`: the size of the last axis.
    * `num_heads`: the number of heads of the attention A, a divisor of `features`.
    * `hidden_features`, `activation`: F is `Dense(features, hidden_features, activation)`, dropout and
      `Dense(hidden_features, features)`.
    * `norm_first`: where the normalizations are.
    * `dropout_rate`: the rate of all dropouts.
    * `is_causal`: token i sees the tokens 0 to i.

    Input `(..., tokens, features)`, or a tuple of it and a mask (true where a token sees another) that broadcasts to
    `(batch, heads, tokens, tokens)`; output of the shape of the tokens. Tokens that the mask hides from all, such as
    padding, count as zeros from the start: what they hold, NaN too, changes no other token and no gradient; one that is
    not finite makes NaN of the tokens that see it, and changes nothing of the others. Children:
    `norm_1`, `attention`, `norm_2`, `mlp`, `dropout_1`, `dropout_2`.

    Vaswani et al., "Attention is all you need", NeurIPS 2017; Xiong et al., "On layer normalization in the transformer
    architecture", ICML 2020. Raises `ValueError` for heads that do not divide the features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> block = lux.TransformerEncoderBlock(16, 4, 32)
    >>> ps, st = lux.setup(jax.random.key(0), block)
    >>> block(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 5, 16)
    """

    features: int = field(converter=count)
    num_heads: int = field(converter=count)
    hidden_features: int = field(converter=count)
    activation: Callable[..., Any] = field(default=jax.nn.gelu, converter=function)
    norm_first: bool = field(default=True, converter=flag, kw_only=True)
    dropout_rate: float = field(default=0.0, converter=fraction, kw_only=True)
    is_causal: bool = field(default=False, converter=flag, kw_only=True)
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
            self.features, self.num_heads, dropout_rate=self.dropout_rate, is_causal=self.is_causal
        )
        self.mlp = Chain(
            Dense(self.features, self.hidden_features, self.activation),
            dropout,
            Dense(self.hidden_features, self.features),
        )

    def forward(self, x, ps, st):
        x, mask = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
        x = require_last(self, x, (self.features,))
        seen, spoiled = visible(mask, self.is_causal, x.shape[-2], x.shape[-2]), None
        if seen is not None:
            x, bad = zeroed(without_hidden(x, seen, 1), 1)
            spoiled = bad | jnp.any(seeing(seen, bad), -2)

        def attention(x, st):
            (y,), st = self.run(ps, st, attention=(x, x, x, mask))
            return y, st

        def mlp(x, st):
            (y,), st = self.run(ps, st, mlp=x)
            return y, st

        for i, branch in ((1, attention), (2, mlp)):
            x, st = self._around(branch, i, x, ps, st)
        return x if spoiled is None else jnp.where(spoiled[..., None], jnp.nan, x), st

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
