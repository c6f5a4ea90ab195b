"""Dropout: random zeros in training."""

import jax
import jax.numpy as jnp

from ..core import Layer, Mode


class Dropout(Layer):
    r"""In training, sets each number to zero with probability `rate` and divides the others by `1 - rate`.

    With `axes`, the mask varies along these axes only and is shared along the rest: `axes=(0, -1)` on `N H W C` drops
    whole feature maps. In test mode, or with `rate` 0, the layer is the identity. State: `key`, a random key, used in
    each call and renewed by it, and `mode`; the same state gives the same output.

    Srivastava et al., "Dropout", JMLR 15, 2014. Raises `ValueError` for a rate outside [0, 1].

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Dropout(0.5)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones(8), ps, st)[0].min(), layer(jnp.ones(8), ps, lux.testmode(st))[0].min()
    (Array(0., dtype=float32), Array(1., dtype=float32))
    """

    rate: float
    axes: int | tuple[int, ...] | None = None

    def __post_init__(self):
        if isinstance(self.axes, int):
            self.axes = (self.axes,)
        if not 0 <= self.rate <= 1:
            raise ValueError(f"Dropout needs a rate between 0 and 1, got {self.rate}")

    def init_state(self, key):
        return {"key": key, "mode": Mode.TRAIN}

    def forward(self, x, ps, st):
        if st["mode"] is Mode.TEST or self.rate == 0:
            return x, st
        key, next_key = jax.random.split(st["key"])
        shape = x.shape if self.axes is None else self._mask_shape(x)
        keep = jax.random.bernoulli(key, 1.0 - self.rate, shape)
        scale = 1 / (1 - self.rate) if self.rate < 1 else 0.0
        return jnp.where(keep, x * scale, jnp.zeros_like(x)), {**st, "key": next_key}

    def _mask_shape(self, x):
        axes = {axis % x.ndim for axis in self.axes if -x.ndim <= axis < x.ndim}
        if len(axes) < len(self.axes):
            raise ValueError(f"Dropout with axes {self.axes} got an input of shape {x.shape}")
        return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))
