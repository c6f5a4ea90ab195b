"""RReLU: a leaky relu whose slope is random in training."""

import jax
import jax.numpy as jnp

from ..core import Layer, Mode


class RReLU(Layer):
    r"""Randomized leaky relu: :math:`y = x` where x is positive, elsewhere :math:`y = a x`.

    In training each number has its own slope a, uniform in `[lower, upper]`; in test mode all have the mean of the two.
    State: `key`, a random key, used in each call and renewed by it, and `mode`.

    Xu et al., "Empirical evaluation of rectified activations in convolutional network", 2015. Raises `ValueError` for
    bounds in the wrong order.

    >>> import lux_sciml as lux
    >>> layer = lux.RReLU(0.1, 0.3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(-jnp.ones(1), ps, lux.testmode(st))[0]
    Array([-0.2], dtype=float32)
    """

    lower: float = 1 / 8
    upper: float = 1 / 3

    def __post_init__(self):
        if not self.lower <= self.upper:
            raise ValueError(f"RReLU needs lower <= upper, got {self.lower} and {self.upper}")

    def init_state(self, key):
        return {"key": key, "mode": Mode.TRAIN}

    def forward(self, x, ps, st):
        if st["mode"] is Mode.TEST:
            return jnp.where(x >= 0, x, (self.lower + self.upper) / 2 * x), st
        key, next_key = jax.random.split(st["key"])
        slope = jax.random.uniform(key, x.shape, x.dtype, self.lower, self.upper)
        return jnp.where(x >= 0, x, slope * x), {**st, "key": next_key}
