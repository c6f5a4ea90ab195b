"""Laplace approximation: a normal distribution around an optimum, with names."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import widened
from ..components import ComponentMatrix, ComponentVector
from ..optimize import fit_statistics


class LaplaceApproximation(NamedTuple):
    """A normal distribution of parameters: `mean`, a ComponentVector, and `covariance`, a ComponentMatrix.

    `laplace_approximation` makes it.

    >>> p = ComponentVector(a=1, b=2)
    >>> fit = LaplaceApproximation(p, ComponentMatrix(jnp.diag(jnp.array([4.0, 9.0])), p, p))
    >>> fit.standard_errors
    ComponentVector(a=2, b=3)
    """

    mean: ComponentVector
    covariance: ComponentMatrix

    @property
    def standard_errors(self) -> ComponentVector:
        """The square roots of the variances, by name."""
        return self.covariance.diagonal() ** 0.5

    @property
    def correlation(self) -> ComponentMatrix:
        """The correlations: `correlation["a", "b"]` is the block between two components."""
        errors = self.standard_errors.data
        return self.covariance / jnp.outer(errors, errors)

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> ComponentVector:
        """Draws of parameters; a batch of vectors `(*shape, n)`.

        >>> p = ComponentVector(a=1, b=[2, 3])
        >>> fit = laplace_approximation(p, ComponentMatrix(jnp.eye(3), p, p))
        >>> fit.sample(jax.random.key(0), (100,)).b.shape
        (100, 2)
        """
        mean, covariance = widened((self.mean.data, self.covariance.data))
        data = jax.random.multivariate_normal(key, mean, covariance, shape)
        return ComponentVector(data.astype(self.mean.dtype), self.mean.layout)

    def confidence_band(
        self, function: Callable[[ComponentVector], Any], level: float = 0.95, noise: float = 0.0
    ) -> tuple[Any, Any, Any]:
        """The value of a function of the parameters, and the ends of its interval, elementwise, by the delta method.

        To first order in the parameters; `sampled_band(function, fit.sample(key, (1000,)))` is without that. With the
        standard deviation `noise` of a measurement it is a band of prediction.

        >>> p = ComponentVector(a=1.0)
        >>> fit = LaplaceApproximation(p, ComponentMatrix(jnp.array([[0.25]]), p, p))
        >>> value, lower, upper = fit.confidence_band(lambda p: p.a * jnp.array([1.0, 2.0]))
        >>> bool(jnp.allclose(upper - value, jnp.array([0.98, 1.96]), atol=1e-3))
        True
        """
        layout, matrix = self.mean.layout, np.asarray(self.covariance.data, float)
        half = fit_statistics.quantile(level, 0, absolute=True)

        def of_flat(flat):
            return function(ComponentVector(flat, layout))

        return fit_statistics.band(of_flat, self.mean.data, matrix, noise**2, half)


def laplace_approximation(mean: ComponentVector, precision: ComponentMatrix) -> LaplaceApproximation:
    r"""The Laplace approximation :math:`N(\hat p, H^{-1})` of a posterior density at its maximum.

    `precision` is the Hessian H of the negative log posterior, `lux.hessian(loss)(ps)`, or its Gauss-Newton
    approximation :math:`J^T J / \sigma^2` (+ the prior's precision) with the Jacobian of the residuals,
    `J.T @ J / sigma**2`. Where the precision is not positive definite, as away from a minimum or along directions that
    the data do not fix, the covariance is NaN. Raises `ValueError` for other names than those of `mean`.

    MacKay, "A practical Bayesian framework for backpropagation networks", Neural Computation 4, 1992.

    >>> from lux_sciml import jacobian
    >>> p, t = ComponentVector(slope=2, offset=1), jnp.arange(4.0)
    >>> J = jacobian(lambda p: p.slope * t + p.offset)(p)
    >>> fit = laplace_approximation(p, J.T @ J / 0.1**2)
    >>> fit.standard_errors
    ComponentVector(slope=0.04472, offset=0.08367)
    >>> round(float(fit.correlation["slope", "offset"]), 3)
    -0.802
    """
    for layout in (precision.rows, precision.columns):
        mean.layout.require_same(layout)
    symmetric = widened((precision.data + precision.data.T) / 2)
    factor = jax.scipy.linalg.cho_factor(symmetric)
    covariance = jax.scipy.linalg.cho_solve(factor, jnp.eye(mean.size, dtype=symmetric.dtype))
    return LaplaceApproximation(mean, ComponentMatrix(covariance.astype(precision.dtype), mean, mean))
