"""Random layers: dropout of several kinds, and an activation with random slopes."""

from typing import Any

import jax
import jax.numpy as jnp

from .._tree import is_inexact, widened
from ..core import Layer, Mode, field
from ..core.converters import integers, number, optional
from ._shapes import as_floating, fraction, require_real


class _Random(Layer):
    """What all share: a random key in the state, and an output in floating point in both modes."""

    def init_state(self, key):
        return {"key": key, "mode": Mode.TRAIN}

    def _floating(self, x: Any) -> Any:
        """`x` in floating point; the object itself where it is."""
        return x if is_inexact(x) else as_floating(self, x)


class _Dropout(_Random):
    """What all dropouts share: a rate."""

    rate: float = field(converter=fraction)

    def _keeps_all(self, st):
        return st["mode"] is Mode.TEST or self.rate == 0

    def _dropped(self, key, x, shape):
        """x with zeros, the rest scaled to the same mean."""
        keep = jax.random.bernoulli(key, 1.0 - self.rate, shape)
        scale = 1 / (1 - self.rate) if self.rate < 1 else 0.0
        return jnp.where(keep, x * scale, jnp.zeros_like(x))


class Dropout(_Dropout):
    r"""In training, sets each element to zero with probability `rate` and divides the others by `1 - rate`.

    With `axes`, one or several, the mask varies along these axes only and is shared along the rest: `axes=(0, -1)` on
    `N H W C` drops whole feature maps. In test mode, or with `rate` 0, the layer is the identity; integers become
    floating point in both modes. State: `key`, a random key, used in each call and renewed by it, and `mode`; the same
    state gives the same output.

    Srivastava et al., "Dropout", JMLR 15, 2014. Raises `ValueError` for a rate outside [0, 1], and for axes that the
    input does not have.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Dropout(0.5)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones(8), ps, st)[0].min(), layer(jnp.ones(8), ps, lux.testmode(st))[0].min()
    (Array(0., dtype=float32), Array(1., dtype=float32))
    """

    axes: tuple[int, ...] | None = field(default=None, converter=optional(integers))

    def forward(self, x, ps, st):
        x = self._floating(x)
        if self._keeps_all(st):
            return x, st
        key, next_key = jax.random.split(st["key"])
        shape = x.shape if self.axes is None else self._mask_shape(x, self.axes)
        return self._dropped(key, x, shape), {**st, "key": next_key}

    def _mask_shape(self, x, given):
        axes = {axis % x.ndim for axis in given if -x.ndim <= axis < x.ndim}
        if len(axes) < len(given):
            raise ValueError(f"Dropout with axes {given} got an input of shape {x.shape}")
        return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))


class VariationalHiddenDropout(_Dropout):
    """Dropout with the same mask in every call, until a new one is asked for: in recurrent layers, one for a sequence.

    `update_state(st, "update_mask", True)` makes the next call draw a new mask, which then stays. The state holds the
    random key of the mask, not the mask: `key`, `update_mask`, a boolean, and `mode`. It therefore never changes its
    structure, and an input of another shape gets a mask of its own from the same key. Test mode, `rate` and errors are
    those of `Dropout`.

    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NeurIPS 2016.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.VariationalHiddenDropout(0.5)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> first, st = layer(jnp.ones(100), ps, st)
    >>> second, st = layer(jnp.ones(100), ps, st)
    >>> third, st = layer(jnp.ones(100), ps, lux.update_state(st, "update_mask", True))
    >>> bool((first == second).all()), bool((first == third).all())
    (True, False)
    """

    def init_state(self, key):
        return {"key": key, "update_mask": jnp.array(False), "mode": Mode.TRAIN}

    def forward(self, x, ps, st):
        x = self._floating(x)
        if self._keeps_all(st):
            return x, st
        key = jnp.where(st["update_mask"], jax.random.split(st["key"], 1)[0], st["key"])
        return self._dropped(key, x, x.shape), {**st, "key": key, "update_mask": jnp.array(False)}


class AlphaDropout(_Dropout):
    r"""Dropout for `jax.nn.selu` networks: keeps mean zero and variance one.

    In training each element becomes :math:`\alpha' = -1.7581`, the limit of selu, with probability p, the `rate`, and
    then all are mapped by :math:`a x + b`, where :math:`a = ((1 - p)(1 + p \alpha'^2))^{-1/2}` and
    :math:`b = -a p \alpha'`. With `rate` 1 all are zero. In test mode, or with `rate` 0, the layer is the identity.
    State and errors are those of `Dropout`.

    Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.AlphaDropout(0.5)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.zeros(8), ps, lux.testmode(st))[0].max()
    Array(0., dtype=float32)
    """

    def forward(self, x, ps, st):
        x = self._floating(x)
        if self._keeps_all(st):
            return x, st
        key, next_key = jax.random.split(st["key"])
        if self.rate == 1:
            return jnp.zeros_like(x), {**st, "key": next_key}
        a = ((1 - self.rate) * (1 + self.rate * _SELU_LIMIT**2)) ** -0.5
        keep = jax.random.bernoulli(key, 1.0 - self.rate, x.shape)
        y = a * jnp.where(keep, x, jnp.full_like(x, _SELU_LIMIT)) - a * self.rate * _SELU_LIMIT
        return y, {**st, "key": next_key}


_SELU_LIMIT = -1.7580993408473766  # of selu at minus infinity: -scale * alpha


class RReLU(_Random):
    r"""Randomized leaky relu: :math:`y = x` where x is positive, elsewhere :math:`y = a x`.

    In training each element has its own slope a, uniform in `[lower, upper]`; in test mode all have the mean of the
    two. State: `key`, a random key, used in each call and renewed by it, and `mode`.

    Xu et al., "Empirical evaluation of rectified activations in convolutional network", 2015. Raises `ValueError` for
    bounds in the wrong order.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.RReLU(0.1, 0.3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(-jnp.ones(1), ps, lux.testmode(st))[0]
    Array([-0.2], dtype=float32)
    """

    lower: float = field(default=1 / 8, converter=number)
    upper: float = field(default=1 / 3, converter=number)

    def __check_init__(self):
        if not self.lower <= self.upper:
            raise ValueError(f"RReLU needs lower <= upper, got {self.lower} and {self.upper}")

    def forward(self, x, ps, st):
        x = as_floating(self, require_real(self, x))
        wide = widened(x)
        if st["mode"] is Mode.TEST:
            return jnp.where(x >= 0, wide, (self.lower + self.upper) / 2 * wide).astype(x.dtype), st
        key, next_key = jax.random.split(st["key"])
        slope = jax.random.uniform(key, x.shape, wide.dtype, self.lower, self.upper)
        return jnp.where(x >= 0, wide, slope * wide).astype(x.dtype), {**st, "key": next_key}
