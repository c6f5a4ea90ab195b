"""The Laplace approximation against least squares, and where there is none."""

import jax.numpy as jnp
import numpy as np
import pytest

from lux_sciml import ComponentMatrix, ComponentVector, hessian, jacobian
from lux_sciml.inference import laplace_approximation


@pytest.mark.slow
def test_laplace_agrees_with_least_squares(key):
    t = jnp.linspace(0, 1, 20)
    sigma, p = 0.1, ComponentVector(curve={"slope": 2, "bend": -1}, offset=[1])

    def model(p):
        return p.curve.slope * t + p.curve.bend * t**2 + p.offset[0]

    def loss(p, data):
        return jnp.sum((model(p) - data) ** 2) / (2 * sigma**2)

    J = jacobian(model)(p)
    fits = laplace_approximation(p, hessian(loss)(p, model(p))), laplace_approximation(p, J.T @ J / sigma**2)
    design = np.stack([t, t**2, np.ones(20)], axis=1)
    expected = sigma**2 * np.linalg.inv(design.T @ design)
    for fit in fits:
        np.testing.assert_allclose(fit.covariance.data, expected, rtol=1e-9)
        np.testing.assert_allclose(fit.standard_errors.curve.slope, np.sqrt(expected[0, 0]), rtol=1e-9)
        np.testing.assert_allclose(fit.correlation.diagonal().data, 1)
        assert fit.correlation["curve.slope", "offset"].shape == (1,)
    draws = fits[0].sample(key, (3000,))
    np.testing.assert_allclose(draws.curve.bend.std(), fits[0].standard_errors.curve.bend, rtol=0.05)
    predictive = J @ fits[0].covariance @ J.T
    assert predictive.shape == (20, 20)


def test_laplace_away_from_a_minimum_is_nan():
    p = ComponentVector(a=1, b=2)
    fit = laplace_approximation(p, ComponentMatrix(jnp.diag(jnp.array([1.0, -1.0])), p, p))
    assert np.isnan(fit.standard_errors.data).any()
    with pytest.raises(ValueError, match="layouts differ"):
        laplace_approximation(ComponentVector(x=1, y=2), ComponentMatrix(jnp.eye(2), p, p))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_laplace_keeps_the_precision_and_computes_in_float32_at_least(dtype, key):
    p = ComponentVector.from_tree({"a": jnp.ones(2, dtype), "b": jnp.ones((), dtype)})
    precision = jnp.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype)
    fit = laplace_approximation(p, ComponentMatrix(precision, p, p))
    expected = np.linalg.inv(np.asarray(precision, float))
    np.testing.assert_allclose(fit.covariance.data.astype(float), expected, rtol=4 * float(jnp.finfo(dtype).eps))
    draws = fit.sample(key, (2000,))
    for x in (fit.covariance, fit.standard_errors, fit.correlation, draws, draws.a):
        assert x.dtype == dtype
    np.testing.assert_allclose(np.cov(np.asarray(draws, float).T), expected, atol=0.1)
