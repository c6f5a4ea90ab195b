"""Inputs as sines and cosines: periodic embedding and random Fourier features.

Angles are computed in float32 at least, and sines and cosines rounded to the precision of the input.
"""

import math

import jax
import jax.numpy as jnp

from .._tree import widened
from ..core import Layer, field
from ..core.converters import checks_itself, count, flag, naturals, number
from ..core.printing import brief
from ._shapes import as_floating, even, one_or_each, positive, require_last


@checks_itself
def _periods(value: float | tuple[float, ...]) -> tuple[float, ...]:
    """A tuple of finite numbers above zero."""
    periods = one_or_each(positive)(value)
    return periods if isinstance(periods, tuple) else (periods,)


class PeriodicEmbedding(Layer):
    r"""Makes what follows periodic in some inputs: :math:`x_i \to \sin(2\pi x_i / P_i), \cos(2\pi x_i / P_i)`.

    Input `(..., features)`. The inputs of `indices`, with their `periods`, leave their places; the others come first,
    then the sines, then the cosines: `(..., features + len(indices))`. Raises `ValueError` where indices and periods
    differ in number, or an index is beyond the features.

    Zhang et al., "Transfer learning enhanced DeepONet", arXiv:2204.05980, section 2.2, and Boltz.jl.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.PeriodicEmbedding((0,), (2.0,))
    >>> jnp.round(layer(jnp.array([0.5, 7.0]), {}, {})[0], 5)
    Array([ 7.,  1., -0.], dtype=float32)
    """

    indices: tuple[int, ...] = field(converter=naturals)
    periods: tuple[float, ...] = field(converter=_periods)

    def __check_init__(self):
        if len(self.indices) != len(self.periods) or len(set(self.indices)) < len(self.indices):
            raise ValueError(
                f"PeriodicEmbedding needs one period for each of several different indices, got {self.indices} and "
                f"{self.periods}"
            )

    def forward(self, x, ps, st):
        x = as_floating(self, x)
        n = x.shape[-1] if x.ndim else 0
        if not n or not all(0 <= index < n for index in self.indices):
            raise ValueError(f"{brief(self)} got an input with the features 0 to {n - 1}: {x.shape}")
        others = [index for index in range(n) if index not in self.indices]
        periodic = widened(x[..., self.indices])
        angles = periodic * (2 * math.pi / jnp.asarray(self.periods, periodic.dtype))
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).astype(x.dtype)
        return jnp.concatenate([x[..., others], waves], -1), st


class FourierFeatures(Layer):
    r"""Random sines and cosines, :math:`y = (\sin 2\pi x B, \cos 2\pi x B)`, by which networks learn high frequencies.

    * `in_features`, `out_features`: sizes of the last axis of input and output; the latter is even.
    * `scale`: the standard deviation of the frequencies `B`, from N(0, scale^2).
    * `trainable`: whether the frequencies are parameters; by default they are in the state.

    Input `(..., in_features)`, output `(..., out_features)`, sines before cosines. Parameter or state: `frequencies`
    `(in_features, out_features / 2)`.

    Tancik et al., "Fourier features let networks learn high frequency functions in low dimensional domains", NeurIPS
    2020. Raises `ValueError` for an odd number of output features, and for other inputs.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.FourierFeatures(2, 16, scale=10.0)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 16)
    """

    in_features: int = field(converter=count)
    out_features: int = field(converter=even)
    scale: float = field(default=1.0, converter=number, kw_only=True)
    trainable: bool = field(default=False, converter=flag, kw_only=True)

    def _frequencies(self, key):
        shape = (self.in_features, self.out_features // 2)
        return {"frequencies": self.scale * jax.random.normal(key, shape)}

    def init_params(self, key):
        return self._frequencies(key) if self.trainable else {}

    def init_state(self, key):
        return {} if self.trainable else self._frequencies(key)

    def forward(self, x, ps, st):
        x = require_last(self, x, (self.in_features,))
        wide = widened(x)
        if self.trainable:
            frequencies, dtype = widened(ps["frequencies"]), jnp.result_type(x, ps["frequencies"])
        else:
            frequencies, dtype = st["frequencies"].astype(wide.dtype), x.dtype
        angles = 2 * math.pi * (wide @ frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).astype(dtype), st
