"""Where a token stands: sinusoidal and rotary embeddings of positions."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Layer
from ..core.printing import option_text
from ..initializers import Normal
from ._shapes import require_last


class SinusoidalPositionalEmbedding(Layer):
    r"""Positions as sines and cosines: :math:`y = s\, (\sin(x \omega), \cos(x \omega))`.

    Input: positions, of any shape `(...)`, integers or not; output `(..., features)`, sines before cosines. The
    features/2 frequencies fall geometrically from `max_freq` to `min_freq`; with `full_turns` they count turns, not
    radians. `scale` is sqrt(2 / features) by default, so that the embedding has length 1.

    Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.5. Raises `ValueError` for an odd number of
    features.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.SinusoidalPositionalEmbedding(16)
    >>> layer(jnp.arange(5), {}, {})[0].shape
    (5, 16)
    """

    features: int
    min_freq: float = field(default=1e-4, kw_only=True)
    max_freq: float = field(default=1.0, kw_only=True)
    scale: float | None = field(default=None, kw_only=True)
    full_turns: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        _require_even(self)

    def forward(self, x, ps, st):
        x = _as_float(x)
        low, high = math.log(self.min_freq), math.log(self.max_freq)
        frequencies = jnp.exp(jnp.linspace(high, low, self.features // 2, dtype=x.dtype))
        angles = x[..., None] * frequencies * (2 * math.pi if self.full_turns else 1.0)
        scale = math.sqrt(2 / self.features) if self.scale is None else self.scale
        return scale * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1), st


class RotaryPositionalEmbedding(Layer):
    r"""Turns each pair of features by an angle that grows with the position; products of two then know their distance.

    Input `(..., tokens, heads, features)`, or a tuple of it and the positions, which broadcast to `(..., tokens)`
    (default: 0, 1, 2, ...); output of the same shape. Feature i and feature i + features/2 are a pair, turned by
    :math:`\text{position} \cdot \text{base}^{-2i/\text{features}}`.

    Su et al., "RoFormer", Neurocomputing 568, 2024. Raises `ValueError` for an odd number of features and for inputs
    with another one.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.RotaryPositionalEmbedding(16)
    >>> layer(jnp.ones((8, 5, 4, 16)), {}, {})[0].shape
    (8, 5, 4, 16)
    """

    features: int
    base: float = field(default=10_000.0, kw_only=True)

    def __post_init__(self):
        _require_even(self)

    def forward(self, x, ps, st):
        x, positions = x if isinstance(x, tuple) else (x, None)
        if x.ndim < 3 or x.shape[-1] != self.features:
            raise ValueError(
                f"{option_text(self)} expects inputs of shape (..., tokens, heads, {self.features}), got {x.shape}"
            )
        positions = jnp.arange(x.shape[-3]) if positions is None else positions
        return apply_rotary(x, rotary_angles(positions, self.features, base=self.base, dtype=x.dtype)), st


class LearnedPositionalEmbedding(Layer):
    """Adds a trained vector to each token: `y = x + embedding`.

    Input and output `(..., tokens, features)`. Parameter: `embedding` `(tokens, features)`, drawn by `init`, by default
    from N(0, 0.02^2). Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021. Raises `ValueError` for inputs of
    another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.LearnedPositionalEmbedding(5, 16)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 5, 16)
    """

    tokens: int
    features: int
    init: Callable = field(default=Normal(0.02), kw_only=True)

    def init_params(self, key):
        return {"embedding": self.init(key, (self.tokens, self.features), jax.dtypes.canonicalize_dtype(float))}

    def forward(self, x, ps, st):
        require_last(self, x, (self.tokens, self.features))
        return x + ps["embedding"], st


def rotary_angles(positions: Any, features: int, *, base: float = 10_000.0, dtype: Any = None) -> jax.Array:
    """The angles `positions * base**(-2 i / features)`, `(..., features / 2)`, of `RotaryPositionalEmbedding`.

    >>> rotary_angles(jnp.arange(3), 4, base=100.0).shape
    (3, 2)
    """
    dtype = jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype
    rates = base ** (-jnp.arange(0, features, 2, dtype=dtype) / features)
    return jnp.asarray(positions)[..., None].astype(dtype) * rates


def apply_rotary(x: Any, angles: Any) -> jax.Array:
    """`x` `(..., tokens, heads, features)` with its pairs of features turned by `angles` `(..., tokens, features / 2)`.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
    >>> jnp.round(apply_rotary(x, jnp.array([[jnp.pi / 2]])), 5).ravel()
    Array([-0.,  1.], dtype=float32)
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _as_float(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jax.dtypes.canonicalize_dtype(float))


def _require_even(layer: Layer) -> None:
    if layer.features < 2 or layer.features % 2:
        raise ValueError(f"{type(layer).__name__} pairs its features: it needs an even number, got {layer.features}")
