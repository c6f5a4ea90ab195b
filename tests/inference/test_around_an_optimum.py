"""Profiles, information, bands and bootstrap around an optimum, against what is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import lux_sciml as lux
from lux_sciml.inference import (
    bootstrap,
    fisher_information,
    identifiability,
    laplace_approximation,
    optima,
    profile_likelihood,
    sampled_band,
)

SIGMA = 0.3
T = np.linspace(0.0, 2.0, 12)
Y = 1.0 + 0.5 * T + SIGMA * np.random.default_rng(0).normal(size=T.size)


def line(p):
    return p.line.offset + p.line.slope * jnp.asarray(T)


def nll(p):
    return jnp.sum((line(p) - Y) ** 2) / (2 * SIGMA**2)


@pytest.fixture
def fit():
    design = np.stack([np.ones_like(T), T], 1)
    offset, slope = np.linalg.lstsq(design, Y)[0]
    covariance = SIGMA**2 * np.linalg.inv(design.T @ design)
    return lux.ComponentVector(line={"offset": offset, "slope": slope}), covariance


@pytest.mark.exhaustive
def test_profile_of_a_linear_model_is_its_parabola(fit):
    ps, covariance = fit
    profiles = profile_likelihood(nll, ps, "line.*", level=0.9)
    assert list(profiles) == ["line.offset", "line.slope"]
    for i, profile in enumerate(profiles.values()):
        exact = float(nll(ps)) + (profile.values - ps.data[i]) ** 2 / (2 * covariance[i, i])
        np.testing.assert_allclose(profile.nll, exact, rtol=1e-6)
        half = np.sqrt(chi2.ppf(0.9, 1) * covariance[i, i])
        np.testing.assert_allclose(profile.interval, (ps.data[i] - half, ps.data[i] + half), rtol=2e-3)
        assert profile.ends == ("threshold", "threshold")
        assert np.all(np.diff(profile.values) > 0) and len(profile.values) <= 15
        np.testing.assert_allclose(profile.params.data[:, i], profile.values, rtol=1e-12)
    assert "line.slope" in repr(profiles)
    stopped = profile_likelihood(nll, ps, "line.slope", limits={"line.slope": (float(ps.line.slope) - 1e-3, None)})
    assert stopped["line.slope"].ends == ("limit", "threshold")
    assert stopped["line.slope"].interval[0] == -np.inf
    assert stopped["line.slope"].values[0] == pytest.approx(float(ps.line.slope) - 1e-3)


@pytest.mark.exhaustive
def test_profile_of_a_curved_model_agrees_with_a_grid_and_a_flat_one_is_open():
    t = jnp.linspace(0.1, 1.0, 8)
    y = 2.0 * jnp.exp(-1.3 * t) + 0.1 * jnp.sin(20 * t)

    def decay(p, y):
        return jnp.sum((p.a * p.b * jnp.exp(-p.rate * t) - y) ** 2) / (2 * 0.2**2)

    ps = lux.ComponentVector(a=1.5, b=1.5, rate=1.0)
    ps = lux.minimize(decay, ps, method="BFGS", args=y).params
    profiles = profile_likelihood(decay, ps, "rate", "a", args=y, limits={"a": (0.1, 20.0), "b": (1e-3, None)})
    assert profiles["a"].ends == ("limit", "limit")
    np.testing.assert_allclose(profiles["a"].nll, profiles["a"].nll.min(), rtol=1e-4)  # only the product counts
    profile = profiles["rate"]

    times, data = np.asarray(t), np.asarray(y)

    def lowest(rate):  # over the product
        basis = np.exp(-rate * times)
        product = basis @ data / (basis @ basis)
        return np.sum((product * basis - data) ** 2) / (2 * 0.2**2)

    np.testing.assert_allclose(profile.nll, [lowest(rate) for rate in profile.values], atol=2e-3)
    grid = np.linspace(-3, 6, 40001)
    inside = grid[[lowest(rate) <= profile.threshold for rate in grid]]
    np.testing.assert_allclose(profile.interval, (inside.min(), inside.max()), atol=0.02)
    low, high = profile.interval
    assert abs((high - profile.optimum) / (profile.optimum - low) - 1) > 0.1  # what standard errors do not see
    free = profile_likelihood(decay, ps, "a", args=y, max_points=4)["a"]
    assert free.ends == ("open", "open") and free.interval == (-np.inf, np.inf)


def test_a_profile_that_is_steep_beyond_a_flat_top_ends_at_the_threshold_however_few_points():
    ps = lux.ComponentVector(a=0.0)

    def steep(p):  # no curvature to tell the scale
        return (1e4 * p.a) ** 4

    exact = (chi2.ppf(0.95, 1) / 2) ** 0.25 / 1e4
    for most in (1, 4):
        profile = profile_likelihood(steep, ps, "a", max_points=most)["a"]
        assert profile.ends == ("threshold", "threshold")
        np.testing.assert_allclose(profile.interval, (-exact, exact), rtol=0.02)


def test_what_has_no_profile(fit):
    ps, _ = fit
    with pytest.raises(KeyError, match="no component matches 'lien'"):
        profile_likelihood(nll, ps, "lien")
    with pytest.raises(ValueError, match="name the components"):
        profile_likelihood(nll, ps)
    with pytest.raises(ValueError, match="no profile from here: it is nan"):
        profile_likelihood(lambda p: jnp.log(-jnp.abs(p.line.slope)), ps, "line.slope")
    with pytest.raises(ValueError, match=r"its derivative by `line\.offset` is inf"):
        profile_likelihood(lambda p: jnp.sqrt(p.line.offset - ps.line.offset) + p.line.slope**2, ps, "line.slope")
    with pytest.raises(ValueError, match="ps is not the minimum"):
        profile_likelihood(nll, ps.at["line.offset"].add(1.0), "line.slope")
    with pytest.raises(ValueError, match=r"`line\.offset` is .* at ps, outside of its limits, 5 to inf"):
        profile_likelihood(nll, ps, "line.slope", limits={"line.offset": (5.0, None)})
    with pytest.raises(ValueError, match="one point on each side at least, got points=0"):
        profile_likelihood(nll, ps, "line.slope", points=0)


def test_information_takes_errors_as_a_tree_and_refuses_complex_predictions():
    ps = lux.ComponentVector(a=1.0, b=2.0)
    errors = {"y": jnp.array([0.5, 1.0, 2.0]), "x": jnp.array(0.1)}
    found = fisher_information(lambda p: {"x": p.b, "y": p.a * jnp.ones(3)}, ps, errors)
    np.testing.assert_allclose(found.data, [[4 + 1 + 0.25, 0], [0, 100]])
    with pytest.raises(TypeError, match="return real and imaginary parts"):
        fisher_information(lambda p: jax.lax.complex(p.a, p.b), ps)


def test_information_names_what_data_leave_open(fit):
    ps, covariance = fit
    information = fisher_information(line, ps, np.full(T.size, SIGMA))
    np.testing.assert_allclose(np.linalg.inv(information.data), covariance, rtol=1e-9)
    found = identifiability(information)
    np.testing.assert_allclose(found.standard_errors**2, np.linalg.eigvalsh(covariance)[::-1], rtol=1e-9)
    for value, direction in zip(found.eigenvalues, found.directions.data, strict=True):
        np.testing.assert_allclose(information.data @ direction, value * direction, rtol=1e-9)
    assert not found.sloppy.any() and "line.slope" in repr(found)
    with pytest.raises(ValueError, match="positive standard deviations, got 0"):
        fisher_information(line, ps, 0.0)
    with pytest.raises(ValueError, match=r"the eigenvalue -.*, far below zero, .* this is no minimum"):
        identifiability(-information)
    product = lux.ComponentVector(a=2.0, b=5.0)
    open_one = identifiability(fisher_information(lambda p: p.a * p.b * jnp.asarray(T), product), relative_to=product)
    assert list(open_one.sloppy) == [True, False] and "0.71 a - 0.71 b" in repr(open_one).splitlines()[1]


def test_bands_by_the_delta_method_and_by_sampling_agree(fit, key):
    ps, covariance = fit
    laplace = laplace_approximation(ps, lux.hessian(nll)(ps))
    value, lower, upper = laplace.confidence_band(line, 0.9)
    design = np.stack([np.ones_like(T), T], 1)
    half = 1.6448536 * np.sqrt(np.einsum("ij,jk,ik->i", design, covariance, design))
    np.testing.assert_allclose(upper - value, half, rtol=1e-6)
    np.testing.assert_allclose(value - lower, half, rtol=1e-6)
    draws = laplace.sample(key, (4000,))
    median, low, high = sampled_band(line, draws, 0.9)
    np.testing.assert_allclose(median, value, atol=0.02)
    np.testing.assert_allclose(high - low, 2 * half, rtol=0.08)
    _, _, wide = laplace.confidence_band(line, 0.9, noise=SIGMA)
    noisy = lambda p, key: line(p) + SIGMA * jax.random.normal(key, T.shape)  # noqa: E731
    _, _, measured = sampled_band(noisy, draws, 0.9, key=key)
    np.testing.assert_allclose(measured - value, wide - value, rtol=0.1)
    residual = lux.least_squares(lambda p: line(p) - Y, ps, weights=1 / SIGMA)
    np.testing.assert_allclose(residual.confidence_band(line, 0.9, absolute=True)[2], upper, rtol=1e-5)
    with pytest.raises(ValueError, match="a batch of vectors"):
        sampled_band(line, ps)
    failing = lux.ComponentVector(draws.data.at[7, 1].set(jnp.nan), ps.layout)
    assert np.isnan(sampled_band(line, failing)[1][1:]).all()


@pytest.mark.exhaustive
def test_bootstrap_finds_the_standard_errors(fit, key):
    ps, covariance = fit
    t = jnp.asarray(T)

    def solve(data):
        t, y = data
        design = jnp.stack([jnp.ones_like(t), t], 1)
        return lux.ComponentVector(jnp.linalg.solve(design.T @ design, design.T @ y), ps.layout)

    simulate = lambda key: (t, line(ps) + SIGMA * jax.random.normal(key, T.shape))  # noqa: E731
    at_once = bootstrap(solve, key=key, simulate=simulate, draws=4000, vectorized=True)
    np.testing.assert_allclose(at_once.standard_errors.data, np.sqrt(np.diag(covariance)), rtol=0.05)
    lower, upper = at_once.confidence_intervals(0.9)
    np.testing.assert_allclose(upper.data - lower.data, 3.29 * np.sqrt(np.diag(covariance)), rtol=0.06)

    def by_minimize(data):
        t, y = data
        loss = lambda p, d: jnp.sum((p.line.offset + p.line.slope * d[0] - d[1]) ** 2)  # noqa: E731
        return lux.minimize(loss, ps, method="L-BFGS-B", args=(t, y))

    one_by_one = bootstrap(by_minimize, key=key, simulate=simulate, draws=8)
    same = bootstrap(solve, key=key, simulate=simulate, draws=8, vectorized=True)
    assert one_by_one.failed == 0
    np.testing.assert_allclose(one_by_one.params.data, same.params.data, atol=1e-4)
    cases = bootstrap(solve, key=key, samples=(T, Y), draws=500, vectorized=True)
    np.testing.assert_allclose(cases.standard_errors.data, np.sqrt(np.diag(covariance)), rtol=0.6)
    with pytest.raises(ValueError, match="pass one of them"):
        bootstrap(solve, key=key)
    with pytest.raises(ValueError, match=r"3 of 3 fits failed"):
        bootstrap(lambda data: ps * jnp.nan, key=key, samples=(T, Y), draws=3)
    with pytest.raises(ValueError, match="of equal length"):
        bootstrap(solve, key=key, samples=(T, Y[:-1]))


def test_optima_of_several_starts_are_told_apart():
    wells = lambda p: jnp.sum((p.x**2 - 1) ** 2) + 0.1 * p.x[0]  # noqa: E731
    starts = [lux.ComponentVector(x=[a, b]) for a, b in ((-1.5, 0.5), (-0.5, 1.5), (0.9, -1.2), (0.5, 0.4))]
    result = lux.minimize(wells, starts[0], method="L-BFGS-B", starts=[*starts[1:], starts[0] * jnp.nan])
    found = optima(result.runs)
    assert [o.runs for o in found] == [(0, 1), (2,), (3,)] or [len(o.runs) for o in found] == [2, 1, 1]
    assert found[0].result.value == result.value and repr(found).count("\n") == 3
    with pytest.raises(ValueError, match="no run ended"):
        optima([])
