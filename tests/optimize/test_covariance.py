"""Statistics of a least-squares fit: against SciPy's curve_fit, and by simulation."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import lux_sciml as lux

X = np.linspace(0.0, 4.0, 15)
SIGMA = np.linspace(0.05, 0.15, 15)


def model(x, amplitude, rate, offset):
    return amplitude * np.exp(-rate * x) + offset


Y = model(X, 2.0, 1.1, 0.5) + SIGMA * np.random.default_rng(3).standard_normal(15)
START = dict(amplitude=1.0, decay={"rate": 0.7, "offset": 0.0})


def curve(p, x):
    return p.amplitude * jnp.exp(-p.decay.rate * x) + p.decay.offset


def misfit(p, sample):
    return curve(p, sample["x"]) - sample["y"]


def fit(y=Y, **options):
    return lux.least_squares(misfit, lux.ComponentVector(START), samples={"x": X, "y": y}, weights=1 / SIGMA, **options)


@pytest.mark.parametrize("absolute", [False, True])
def test_covariance_and_intervals_are_those_of_curve_fit(absolute):
    result = fit()
    best, covariance = scipy.optimize.curve_fit(
        model, X, Y, [1.0, 0.7, 0.0], SIGMA, absolute_sigma=absolute, xtol=1e-14, ftol=1e-14
    )
    np.testing.assert_allclose(result.params.data, best, rtol=1e-6)
    np.testing.assert_allclose(result.covariance(absolute).data, covariance, rtol=1e-4)
    errors = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(result.standard_errors(absolute).data, errors, rtol=1e-4)
    np.testing.assert_allclose(result.covariance(absolute)["decay.rate", "amplitude"], covariance[1, 0], rtol=1e-4)
    lower, upper = result.confidence_intervals(0.9, absolute)
    reach = scipy.stats.norm.ppf(0.95) if absolute else scipy.stats.t.ppf(0.95, 12)
    np.testing.assert_allclose(lower.decay.rate, best[1] - reach * errors[1], rtol=1e-4)
    np.testing.assert_allclose(upper.decay.rate, best[1] + reach * errors[1], rtol=1e-4)

    at = np.linspace(0.0, 6.0, 7)
    value, low, high = result.confidence_band(lambda p: {"curve": curve(p, at)}, 0.9, absolute)
    jacobian = np.stack([np.exp(-best[1] * at), -best[0] * at * np.exp(-best[1] * at), np.ones(7)], 1)
    half = reach * np.sqrt(np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian))
    np.testing.assert_allclose(value["curve"], model(at, *best), rtol=1e-6)
    np.testing.assert_allclose(high["curve"] - value["curve"], half, rtol=1e-4)
    np.testing.assert_allclose(value["curve"] - low["curve"], half, rtol=1e-4)
    _, _, noisy = result.confidence_band(lambda p: curve(p, at), 0.9, absolute, noise=True)
    variance = 1.0 if absolute else 2 * result.value / 12
    np.testing.assert_allclose(noisy - value["curve"], np.sqrt(half**2 + reach**2 * variance), rtol=1e-4)


@pytest.mark.exhaustive
def test_band_of_a_solve_has_derivatives_in_either_mode():
    def solved(p, ts):
        return lux.NeuralODE(lambda y: -p.decay.rate * y, ts, output="ys")(p.amplitude, {}, {})[0] + p.decay.offset

    result = fit()
    for ts in (np.linspace(0.0, 6.0, 7), np.array([0.0, 6.0])):  # more values than parameters, and fewer
        expected = result.confidence_band(lambda p, ts=ts: curve(p, ts), 0.9)
        for ours, exact in zip(result.confidence_band(lambda p, ts=ts: solved(p, ts), 0.9), expected, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=1e-5)


@pytest.mark.slow
def test_what_has_weight_zero_may_be_nan_and_is_no_measurement():
    holes = {"x": np.concatenate([X, [1.0, np.nan]]), "y": np.concatenate([Y, [np.nan, 0.0]])}
    weights = np.concatenate([1 / SIGMA, np.zeros(2)])
    expected, start = fit(), lux.ComponentVector(START)
    of_samples = lux.least_squares(misfit, start, samples=holes, weights=weights)
    as_a_whole = lux.least_squares(lambda p, data: misfit(p, data), start, args=holes, weights=weights)
    by_products = lux.least_squares(misfit, start, samples=holes, weights=weights, solver="cg")
    np.testing.assert_allclose(by_products.params.data, expected.params.data, rtol=1e-5)
    for result in (of_samples, as_a_whole):
        assert result.success and result.residuals.shape == (17,)
        np.testing.assert_allclose(result.params.data, expected.params.data, rtol=1e-6)
        np.testing.assert_allclose(result.covariance().data, expected.covariance().data, rtol=1e-4)
        for ours, theirs in zip(result.confidence_intervals(), expected.confidence_intervals(), strict=True):
            np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-5)
    counted = lux.least_squares(misfit, start, samples=holes, weights=np.where(np.arange(17) == 15, 0, 1.0))
    assert "the residual of sample 16, which itself holds NaN or inf, is not finite)" in counted.message


@pytest.mark.exhaustive
def test_intervals_cover_as_often_as_they_say():
    """Nine in ten of 90% intervals, and of bands, hold the truth: 200 fits, within four standard deviations."""
    rng, truth, count = np.random.default_rng(0), np.array([2.0, 1.1, 0.5]), 200
    inside = {"student": 0, "known": 0, "band": 0}
    for _ in range(count):
        result = fit(model(X, *truth) + SIGMA * rng.standard_normal(15))
        for name, absolute in (("student", False), ("known", True)):
            lower, upper = result.confidence_intervals(0.9, absolute)
            inside[name] += bool(lower.decay.rate < truth[1] < upper.decay.rate)
        _, low, high = result.confidence_band(lambda p: curve(p, 2.0), 0.9)
        inside["band"] += bool(low < model(2.0, *truth) < high)
    for name, hits in inside.items():
        assert abs(hits - 0.9 * count) < 4 * np.sqrt(count * 0.9 * 0.1), (name, hits)


def test_only_the_fitted_components_have_errors():
    result = fit(trainable="decay.*")
    best, covariance = scipy.optimize.curve_fit(lambda x, r, o: model(x, 1.0, r, o), X, Y, [0.7, 0.0], SIGMA)
    np.testing.assert_allclose(result.params.data[1:], best, rtol=1e-5)
    np.testing.assert_allclose(result.covariance().data, covariance, rtol=1e-3)
    value, _, high = result.confidence_band(lambda p: curve(p, 0.0))  # a function of all parameters
    np.testing.assert_allclose(value, 1.0 + best[1], rtol=1e-5)
    assert high > value


@pytest.mark.parametrize("loss", ["huber", "cauchy"])
def test_covariance_of_a_robust_fit_is_that_of_curve_fit(loss):
    far = Y + np.where(np.arange(15) % 5 == 2, 0.8, 0.0)
    options = dict(method="trf", loss=loss, f_scale=1.5, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    _, covariance = scipy.optimize.curve_fit(model, X, far, [1.0, 0.7, 0.0], SIGMA, jac="3-point", **options)
    np.testing.assert_allclose(fit(far, loss=loss, loss_scale=1.5).covariance().data, covariance, rtol=1e-5)


def test_open_directions_are_found_in_float32():
    x = jnp.linspace(0.0, 3.0, 30, dtype="float32")

    def mixed(p, x):
        return p["a"] * x + p["b"] * jnp.sin(x) + p["c"] * (x + 0.3 * jnp.sin(x)) - jnp.cos(x)

    result = lux.least_squares(mixed, dict.fromkeys("abc", np.float32(1.0)), samples=x)
    with pytest.raises(ValueError, match="rank 2, not 3"):
        result.standard_errors()


@pytest.mark.exhaustive
def test_what_data_leave_open_is_named():
    def twice(p, x):
        return (p.a + p.b) * x + p.c - x**2

    ps = lux.ComponentVector(a=1.0, b=1.0, c=0.0, unused=1.0)
    result = lux.least_squares(twice, ps, samples=X)
    with pytest.raises(
        ValueError, match=r"rank 2, not 4.* along 0.71 a - 0.71 b; 1 unused.*trainable|1 unused; 0.71 a"
    ):
        result.covariance()
    few = lux.least_squares(twice, ps, samples=X[:3])
    with pytest.raises(ValueError, match="3 residuals are too few for the errors of 4 parameters"):
        few.standard_errors()
    bounded = fit(bounds=(None, lux.ComponentVector(amplitude=1.5, decay={"rate": 10.0, "offset": 10.0})))
    with pytest.raises(ValueError, match="`amplitude` lies on its bound"):
        bounded.covariance()
    with pytest.raises(ValueError, match="level is the confidence, between 0 and 1, got 95"):
        fit().confidence_intervals(95)
