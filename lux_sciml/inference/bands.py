"""Bands by sampling: quantiles of a function of drawn parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._tree import widened
from ..components import ComponentVector


def sampled_band(
    function: Callable[..., Any], draws: ComponentVector, level: float = 0.95, *, key: jax.Array | None = None
) -> tuple[Any, Any, Any]:
    """Median, lower and upper end, elementwise, of a function of parameters over draws of these.

    `draws` is a batch of vectors `(..., n)`: those of a sampler, of a bootstrap, or
    `laplace_approximation(...).sample(key, (1000,))`, where a band by the delta method misses how a function bends.
    `function(ps)` returns an array or a tree of them, and the band is one of confidence: where the function lies. With
    a `key` it is called as `function(ps, key)`, with a key for each draw, and returns a simulated measurement, noise
    included: a band of prediction, posterior predictive where the draws are those of a posterior.

    The ends are the quantiles `(1 - level) / 2` and `(1 + level) / 2`. An element that is NaN for one of the draws, as
    where a solve fails, is NaN in the band. Raises `ValueError` for a level that is not between 0 and 1, and for what
    is no batch of vectors.

    >>> draws = ComponentVector(jnp.linspace(0.0, 1.0, 101)[:, None], ComponentVector(rate=0.0).layout)
    >>> median, lower, upper = sampled_band(lambda p: 2 * p.rate, draws, 0.9)
    >>> round(float(lower), 3), round(float(median), 3), round(float(upper), 3)
    (0.1, 1.0, 1.9)
    """
    if not 0 < level < 1:
        raise ValueError(f"level is the confidence, between 0 and 1, got {level:g}")
    if draws.ndim < 2 or 0 in draws.shape:
        raise ValueError(f"the draws are a batch of vectors (..., {draws.layout.size}), got shape {draws.shape}")
    rows = ComponentVector(draws.data.reshape(-1, draws.layout.size), draws.layout)
    if key is None:
        values = jax.vmap(function)(rows)
    else:
        values = jax.vmap(function)(rows, jax.random.split(key, len(rows.data)))

    def quantile(q):
        return jax.tree.map(lambda x: jnp.quantile(widened(x), q, axis=0), values)

    return quantile(0.5), quantile((1 - level) / 2), quantile((1 + level) / 2)
