"""Bootstrap: the errors of parameters by fitting again to data drawn anew."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components import ComponentMatrix, ComponentVector
from ..core.converters import converted, count
from ..optimize import MinimizeResult


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """What `bootstrap` returns: `params`, a batch `(draws, n)` of fitted parameters, and how many fits `failed`.

    A fit that ends with parameters that are not finite, or, of `lux.minimize` and `lux.least_squares`, without success,
    has failed and is left out.

    >>> fits = Bootstrap(ComponentVector(jnp.array([[1.0], [2.0], [3.0]]), ComponentVector(rate=0.0).layout), 0)
    >>> fits.standard_errors
    ComponentVector(rate=1)
    """

    params: ComponentVector
    failed: int

    @property
    def covariance(self) -> ComponentMatrix:
        """The covariance of the fitted parameters, by name."""
        layout = self.params.layout
        matrix = np.cov(np.asarray(self.params.data, float), rowvar=False).reshape(layout.size, layout.size)
        return ComponentMatrix(jnp.asarray(matrix, self.params.dtype), layout, layout)

    @property
    def standard_errors(self) -> ComponentVector:
        """The standard deviations of the fitted parameters, by name."""
        return self.covariance.diagonal() ** 0.5

    def confidence_intervals(self, level: float = 0.95) -> tuple[ComponentVector, ComponentVector]:
        """Lower and upper ends, the quantiles `(1 - level) / 2` and `(1 + level) / 2` of the fitted parameters."""
        if not 0 < level < 1:
            raise ValueError(f"level is the confidence, between 0 and 1, got {level:g}")
        ends = np.quantile(np.asarray(self.params.data, float), [(1 - level) / 2, (1 + level) / 2], axis=0)
        lower, upper = (ComponentVector(jnp.asarray(end, self.params.dtype), self.params.layout) for end in ends)
        return lower, upper


def bootstrap(
    fit: Callable[[Any], Any],
    *,
    key: jax.Array,
    samples: Any = None,
    simulate: Callable[[jax.Array], Any] | None = None,
    draws: int = 200,
    vectorized: bool = False,
) -> Bootstrap:
    """Fit again and again, to data drawn anew: how far the parameters of a fit scatter.

    `fit(data)` returns the fitted parameters, a ComponentVector, or the result of `lux.minimize` or
    `lux.least_squares`; start it from the fit to the data as they are. The data are

    * `samples=`: those that were fitted, a pytree with a leading axis; each draw takes as many of them, with
      replacement, the same of all arrays (bootstrap of cases);
    * `simulate=`: a function of a random key that returns data as the fitted model would give them, noise included
      (parametric bootstrap).

    `draws` is the number of fits. With `vectorized=True`, where `fit` is a function of JAX alone, as of normal
    equations or `optimistix.minimise`, all run at once by `jax.vmap`.

    Efron & Tibshirani, "An introduction to the bootstrap", 1993. Raises `ValueError` unless exactly one kind of data is
    given, and where fewer than two fits succeed; `TypeError` where `fit` returns something else.

    >>> x = jnp.arange(10.0)
    >>> y = 2 * x + jnp.sin(7 * x)
    >>> line = lambda s: ComponentVector.from_tree({"slope": jnp.sum(s[0] * s[1]) / jnp.sum(s[0] ** 2)})
    >>> result = bootstrap(line, key=jax.random.key(0), samples=(x, y), draws=100, vectorized=True)
    >>> result.params.shape, bool(result.standard_errors.slope < 0.1)
    ((100, 1), True)
    """
    if (samples is None) == (simulate is None):
        raise ValueError("bootstrap draws from `samples=`, or by `simulate=`: pass one of them")
    if converted("draws", count, draws) < 2:
        raise ValueError(f"draws: expected two fits at least, got {draws}")
    draw = _cases(samples) if simulate is None else simulate
    keys = jax.random.split(key, draws)
    if vectorized:
        params = jax.jit(jax.vmap(lambda key: _params(fit(draw(key)))))(keys)
        good = np.isfinite(np.asarray(params.data)).all(axis=1)
        return _result([ComponentVector(row, params.layout) for row in params.data[good]], draws)
    compiled, fitted = jax.jit(draw), []
    for each in keys:
        found = fit(compiled(each))
        ps = _params(found)
        if np.isfinite(np.asarray(ps.data)).all() and getattr(found, "success", True):
            fitted.append(ps)
    return _result(fitted, draws)


def _cases(samples: Any) -> Callable[[jax.Array], Any]:
    arrays = jax.tree.map(jnp.asarray, samples)
    lengths = {x.shape[:1] for x in jax.tree.leaves(arrays)}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        raise ValueError(f"samples are arrays with one leading axis, of equal length, got {sorted(lengths)}")
    ((count,),) = lengths

    def draw(key):
        i = jax.random.randint(key, (count,), 0, count)
        return jax.tree.map(lambda x: x[i], arrays)

    return draw


def _params(found: Any) -> ComponentVector:
    ps = found.params if isinstance(found, MinimizeResult) else found
    if not isinstance(ps, ComponentVector):
        raise TypeError(f"`fit` returns a ComponentVector, or the result of lux.minimize, got a {type(found).__name__}")
    return ps


def _result(fitted: list[ComponentVector], draws: int) -> Bootstrap:
    if len(fitted) < 2:
        raise ValueError(
            f"{draws - len(fitted)} of {draws} fits failed: start each from the fit to the data as they are, and let "
            "it make more steps"
        )
    params = ComponentVector(jnp.stack([ps.data for ps in fitted]), fitted[0].layout)
    return Bootstrap(params, draws - len(fitted))
