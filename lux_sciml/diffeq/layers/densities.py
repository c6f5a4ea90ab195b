"""Densities with trained parameters, from which a CNF starts."""

from typing import Any

import jax
import jax.numpy as jnp

from ..._tree import floating
from ...core import Layer, field
from ...core.converters import count
from ...core.parameters import parameter_tree


class NormalDensity(Layer):
    """The density of independent normal features, with trained means and scales.

    Input `(..., features)`, output its logarithm `(...)`. `sample(key, shape, ps, st)` draws from it, `log_prob(x, ps,
    st)` is the output alone. Parameters: `mean` and `log_scale`, both `(features,)`, zero at first. Raises `ValueError`
    for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> base = lux.diffeq.NormalDensity(2)
    >>> flow = lux.CNF(lux.Chain(lux.diffeq.concat_time, lux.Dense(3, 2)), base=base)
    >>> ps, st = lux.setup(jax.random.key(0), flow)
    >>> list(ps.base.keys()), flow.sample(jax.random.key(1), (5, 2), ps, st).shape
    (['mean', 'log_scale'], (5, 2))
    """

    features: int = field(converter=count)

    def init_params(self, key):
        return {"mean": jnp.zeros(self.features), "log_scale": jnp.zeros(self.features)}

    def forward(self, x, ps, st):
        return log_normal(_points(self, x), ps["mean"], ps["log_scale"]), st

    def log_prob(self, x: Any, ps: Any, st: Any) -> jax.Array:
        """The logarithm of the density at `x`, `(..., features)`: of shape `(...)`."""
        return self(x, ps, st)[0]

    def sample(self, key: jax.Array, shape: tuple[int, ...], ps: Any, st: Any) -> jax.Array:
        """Samples of the whole shape `(..., features)`, from a random key."""
        ps = parameter_tree(self, ps)
        return ps["mean"] + jnp.exp(ps["log_scale"]) * jax.random.normal(key, shape, ps["mean"].dtype)


class MixtureDensity(Layer):
    """The density of a mixture of `components`, each with independent normal features; for data in clusters.

    No flow splits one density into clusters. Input, output, methods and errors are those of `NormalDensity`.
    Parameters: `mean`, at first from N(0, I), and `log_scale`, both `(components, features)`, and `logits`, those of
    the weights, `(components,)`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> mixture = lux.diffeq.MixtureDensity(2, 3)
    >>> ps, st = lux.setup(jax.random.key(0), mixture)
    >>> mixture(jnp.ones((5, 2)), ps, st)[0].shape, ps.mean.shape
    ((5,), (3, 2))
    """

    features: int = field(converter=count)
    components: int = field(converter=count)

    def init_params(self, key):
        shape = (self.components, self.features)
        return {
            "mean": jax.random.normal(key, shape), "log_scale": jnp.zeros(shape), "logits": jnp.zeros(self.components)
        }  # fmt: skip

    def forward(self, x, ps, st):
        each = log_normal(_points(self, x)[..., None, :], ps["mean"], ps["log_scale"])
        return jax.nn.logsumexp(each + jax.nn.log_softmax(ps["logits"]), axis=-1), st

    def log_prob(self, x: Any, ps: Any, st: Any) -> jax.Array:
        """The logarithm of the density at `x`, `(..., features)`: of shape `(...)`."""
        return self(x, ps, st)[0]

    def sample(self, key: jax.Array, shape: tuple[int, ...], ps: Any, st: Any) -> jax.Array:
        """Samples of the whole shape `(..., features)`, from a random key."""
        ps = parameter_tree(self, ps)
        which_key, key = jax.random.split(key)
        which = jax.random.categorical(which_key, ps["logits"], shape=shape[:-1])
        return ps["mean"][which] + jnp.exp(ps["log_scale"][which]) * jax.random.normal(key, shape, ps["mean"].dtype)


def log_normal(x: jax.Array, mean: jax.Array | float = 0.0, log_scale: jax.Array | float = 0.0) -> jax.Array:
    """The logarithm of the density of independent normal features."""
    scaled = (x - mean) * jnp.exp(-log_scale)
    return -jnp.sum(0.5 * (scaled**2 + jnp.log(2 * jnp.pi)) + log_scale, axis=-1)


def _points(layer: Any, x: Any) -> jax.Array:
    x = jnp.asarray(floating(x))
    if x.shape[-1:] != (layer.features,):
        raise ValueError(f"a {type(layer).__name__} of {layer.features} features takes (..., {layer.features}), got "
                         f"{x.shape}")  # fmt: skip
    return x
