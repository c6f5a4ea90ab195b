"""BatchNorm: normalisation over the batch."""

from collections.abc import Callable
from dataclasses import field

import jax.numpy as jnp
from jax import lax

from ..activations import identity
from ..core import Layer, Mode
from ..core.display import option_text


class BatchNorm(Layer):
    r"""Normalises each feature over all other axes: :math:`y = \sigma(\gamma (x - \mu) / \sqrt{v + \epsilon} + \beta)`.

    Input and output `(..., features)`. In training, mean and (biased) variance are those of the batch, and the running
    ones in the state move towards them, the variance unbiased: `running = (1 - momentum) * running + momentum * new`.
    In test mode the running ones are used. With `track_stats=False` it is always the batch's. Parameters, with
    `affine`: `scale` and `bias`, both `(features,)`. State: `running_mean`, `running_var`, `mode`.

    Ioffe and Szegedy, "Batch normalization", ICML 2015. Raises `ValueError` for another number of features and, in
    training, for a batch with a single value a feature.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.BatchNorm(3, momentum=0.5)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> y, st = layer(jnp.arange(12.0).reshape(4, 3), ps, st)
    >>> st["running_mean"]
    Array([2.25, 2.75, 3.25], dtype=float32)
    """

    features: int
    activation: Callable = identity
    affine: bool = field(default=True, kw_only=True)
    track_stats: bool = field(default=True, kw_only=True)
    epsilon: float = field(default=1e-5, kw_only=True)
    momentum: float = field(default=0.1, kw_only=True)

    def init_params(self, key):
        return {"scale": jnp.ones(self.features), "bias": jnp.zeros(self.features)} if self.affine else {}

    def init_state(self, key):
        running = {"running_mean": jnp.zeros(self.features), "running_var": jnp.ones(self.features)}
        return {**(running if self.track_stats else {}), "mode": Mode.TRAIN}

    def forward(self, x, ps, st):
        if x.ndim < 2 or x.shape[-1] != self.features:
            raise ValueError(
                f"{option_text(self)} expects inputs of shape (batch, ..., {self.features}), got {x.shape}"
            )
        if st["mode"] is Mode.TEST and self.track_stats:
            mean, var = st["running_mean"], st["running_var"]
        else:
            axes, count = tuple(range(x.ndim - 1)), x.size // self.features
            mean, var = jnp.mean(x, axes), jnp.var(x, axes)
            if st["mode"] is Mode.TRAIN and self.track_stats:
                if count < 2:
                    raise ValueError(f"BatchNorm in training needs more than one value a feature, got shape {x.shape}")
                st = {**st, **self._moved(st, mean, var * (count / (count - 1)))}
        y = (x - mean) * lax.rsqrt(var + self.epsilon)
        if self.affine:
            y = y * ps["scale"] + ps["bias"]
        return self.activation(y), st

    def _moved(self, st, mean, var):
        def towards(old, new):
            new = lax.stop_gradient(new).astype(old.dtype)
            return (1 - self.momentum) * old + self.momentum * new

        return {"running_mean": towards(st["running_mean"], mean), "running_var": towards(st["running_var"], var)}
