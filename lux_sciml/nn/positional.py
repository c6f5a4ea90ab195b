"""Where a token is: sinusoidal, rotary and learned embeddings of positions.

Positions and angles are computed in float32 at least; what is made of them is rounded at the end.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .._tree import floating, widened
from ..core import Layer, field
from ..core.converters import count, flag, function, number, optional
from ..core.printing import brief
from ..initializers import Normal
from ._affine import shared
from ._shapes import as_floating, even, positive, require_last


class SinusoidalPositionalEmbedding(Layer):
    r"""Positions as sines and cosines: :math:`y = s\, (\sin(x \omega), \cos(x \omega))`.

    * `features`: an even number, the size of the last axis of the output.
    * `min_freq`, `max_freq`: the ends of the features/2 frequencies :math:`\omega`, which fall geometrically.
    * `scale`: s, by default sqrt(2 / features), so that the embedding has length 1.
    * `full_turns`: whether the frequencies count turns, not radians.

    Input: positions, of any shape `(...)`, integers or not; output `(..., features)`, sines before cosines.

    Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.5. Raises `ValueError` for an odd number of
    features.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.SinusoidalPositionalEmbedding(16)
    >>> layer(jnp.arange(5), {}, {})[0].shape
    (5, 16)
    """

    features: int = field(converter=even)
    min_freq: float = field(default=1e-4, converter=positive, kw_only=True)
    max_freq: float = field(default=1.0, converter=positive, kw_only=True)
    scale: float | None = field(default=None, converter=optional(number), kw_only=True)
    full_turns: bool = field(default=False, converter=flag, kw_only=True)

    def forward(self, x, ps, st):
        x = as_floating(self, x)
        positions = widened(x)
        low, high = math.log(self.min_freq), math.log(self.max_freq)
        frequencies = jnp.exp(jnp.linspace(high, low, self.features // 2, dtype=positions.dtype))
        angles = positions[..., None] * frequencies * (2 * math.pi if self.full_turns else 1.0)
        scale = math.sqrt(2 / self.features) if self.scale is None else self.scale
        return (scale * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)).astype(x.dtype), st


class RotaryPositionalEmbedding(Layer):
    r"""Turns each pair of features by an angle that grows with the position, so that products depend on the distance.

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

    features: int = field(converter=even)
    base: float = field(default=10_000.0, converter=positive, kw_only=True)

    def forward(self, x, ps, st):
        x, positions = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
        x = as_floating(self, x)
        if x.ndim < 3 or x.shape[-1] != self.features:
            raise ValueError(
                f"{brief(self)} expects inputs of shape (..., tokens, heads, {self.features}), got {x.shape}"
            )
        positions = jnp.arange(x.shape[-3]) if positions is None else positions
        return apply_rotary(x, rotary_angles(positions, self.features, base=self.base)), st


class LearnedPositionalEmbedding(Layer):
    """Adds a learned vector to each token: `y = x + embedding`.

    Input and output `(..., tokens, features)`. Parameter: `embedding` `(tokens, features)`, drawn by `init`, by default
    from N(0, 0.02^2). Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021. Raises `ValueError` for inputs of
    another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.LearnedPositionalEmbedding(5, 16)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 5, 16)
    """

    tokens: int = field(converter=count)
    features: int = field(converter=count)
    init: Callable[..., Any] = field(default=Normal(0.02), converter=function, kw_only=True)

    def init_params(self, key):
        return {"embedding": self.init(key, (self.tokens, self.features), float)}

    def forward(self, x, ps, st):
        x = require_last(self, x, (self.tokens, self.features))
        return x + shared(ps["embedding"], x), st


def rotary_angles(
    positions: Any, features: int, *, base: float = 10_000.0, dtype: Any = None
) -> Float[Array, "... half"]:
    """The angles `positions * base**(-2 i / features)`, `(..., features / 2)`, of `RotaryPositionalEmbedding`.

    In `dtype`, by default the floating-point type of the positions, but in float32 at least: half precision has no
    position above 256. Raises `ValueError` for an odd number of features.

    >>> rotary_angles(jnp.arange(3), 4, base=100.0).shape
    (3, 2)
    """
    features, positions = even(features), widened(positions)
    if dtype is not None:
        positions = positions.astype(widened(jnp.zeros((), dtype)).dtype)
    rates = base ** (-jnp.arange(0, features, 2, dtype=positions.dtype) / features)
    return positions[..., None] * rates


def apply_rotary(x: Any, angles: Any) -> Inexact[Array, "..."]:
    """`x` `(..., tokens, heads, features)` with its pairs of features turned by `angles` `(..., tokens, features / 2)`.

    Feature i and feature i + features/2 are a pair. Sines, cosines and products are in float32 at least, the output in
    the precision of `x`. Raises `ValueError` for angles of another number.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
    >>> jnp.round(apply_rotary(x, jnp.array([[jnp.pi / 2]])), 5).ravel()
    Array([-0.,  1.], dtype=float32)
    """
    x, angles = floating(x), widened(angles)
    if x.shape[-1] != 2 * angles.shape[-1]:
        raise ValueError(f"each two features have one angle, got {x.shape[-1]} features and {angles.shape[-1]} angles")
    first, second = jnp.split(widened(x), 2, axis=-1)
    cos, sin = (wave(angles)[..., None, :].astype(first.dtype) for wave in (jnp.cos, jnp.sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
