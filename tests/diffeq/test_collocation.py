"""Collocation: exact where local regression is, near where it is not, and every kernel a density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import lux_sciml as lux
from lux_sciml.diffeq.fitting.collocation import KERNELS

TS = np.sort(np.random.default_rng(0).uniform(0.0, 3.0, 40))


def test_there_are_eleven_kernels():
    assert len(KERNELS) == 11


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_symmetric_densities(name):
    end = 1.0 if KERNELS[name](np.array(1.5)) == 0 else 60.0
    x = np.linspace(-end, end, 20_001)
    values = np.asarray(KERNELS[name](x))
    np.testing.assert_allclose(scipy.integrate.simpson(values, x=x), 1.0, rtol=1e-6)
    np.testing.assert_allclose(values, values[::-1], atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_up_to_the_degree_of_the_local_polynomials(kernel):
    line, parabola = 2.0 - 3.0 * TS, 1.0 + TS - 0.5 * TS**2
    us, dus = lux.diffeq.collocate(np.stack([line, parabola], 1), TS, kernel=kernel)
    np.testing.assert_allclose(us[:, 0], line, atol=1e-9)
    np.testing.assert_allclose(dus, np.stack([np.full(40, -3.0), 1.0 - TS], 1), atol=1e-8)
    assert np.max(np.abs(us[:, 1] - parabola)) > 1e-6  # local lines do not bend


def test_sine_and_its_derivative_with_shapes_of_the_data():
    ts = np.linspace(0.0, 2 * np.pi, 300)
    data = np.stack([np.sin(ts), np.cos(ts)], 1)[:, None, :]
    us, dus = lux.diffeq.collocate(data, ts, kernel="epanechnikov", bandwidth=0.05)
    assert us.shape == dus.shape == (300, 1, 2)
    np.testing.assert_allclose(us, data, atol=0.015)
    np.testing.assert_allclose(dus[..., 0], data[..., 1], atol=0.05)
    halved = lux.diffeq.collocate(data, ts, kernel="epanechnikov", bandwidth=0.025)[1]
    inner = slice(30, -30)
    errors = [np.abs(d[inner, 0, 0] - np.cos(ts)[inner]).max() for d in (dus, halved)]
    assert errors[1] < 0.3 * errors[0]  # second order in the bandwidth


def test_noise_is_averaged_out():
    ts = np.linspace(0.0, 2 * np.pi, 1000)
    data = np.sin(ts) + 0.1 * np.random.default_rng(1).standard_normal(1000)
    us, dus = lux.diffeq.collocate(data, ts)
    inner = slice(100, -100)
    assert np.std((us - np.sin(ts))[inner]) < 0.04
    assert np.std((dus - np.cos(ts))[inner]) < 0.1


@pytest.mark.slow
def test_other_times_single_precision_and_derivatives():
    data = jnp.asarray(1.0 + TS - 0.5 * TS**2, "float32")
    _, dus = lux.diffeq.collocate(data, TS, at=[0.5, 2.0])
    assert dus.dtype == "float32"
    np.testing.assert_allclose(dus, [0.5, -1.0], atol=1e-3)
    jacobian = jax.jacobian(lambda data: lux.diffeq.collocate(data, TS, at=[0.5])[1])(data)
    np.testing.assert_allclose(jacobian @ data, lux.diffeq.collocate(data, TS, at=[0.5])[1], atol=1e-3)


def test_the_default_bandwidth():
    for n, h in ((30, 0.3505), (300, 0.1758)):
        ts = np.linspace(0.0, 1.0, n)
        default, given = (lux.diffeq.collocate(np.sin(5 * ts), ts, bandwidth=b)[0] for b in (None, h))
        np.testing.assert_allclose(default, given, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kernel": "box"}, "the kernel is one of epanechnikov, .*; got 'box'"),
        ({"bandwidth": 0.01}, r"at the time 0\.0: take a larger bandwidth than 0\.01"),
        ({"data": np.ones(7)}, r"with 10 times; got \(7,\)"),
        ({"ts": np.zeros(10)}, "strictly increase"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        lux.diffeq.collocate(**{"data": np.ones(10), "ts": np.linspace(0.0, 1.0, 10), **options})


@pytest.mark.parametrize("kernel", ["epanechnikov", "triangular", "quartic", "triweight", "tricube", "cosine"])
@pytest.mark.parametrize("bandwidth", [0.4, 0.4 * (1 + 1e-15), 0.4 * (1 - 1e-15)])
def test_neighbors_at_the_edge_of_a_kernel_are_none(kernel, bandwidth):
    """In their rounding they have a weight; two neighbors are not enough for a parabola."""
    ts = np.linspace(0.0, 1.0, 6)
    with pytest.raises(ValueError, match="fewer than three data have weight at the time 0"):
        lux.diffeq.collocate(1 + 3 * ts, ts, kernel=kernel, bandwidth=bandwidth)


@pytest.mark.slow
def test_what_is_missing_is_missing_where_it_has_weight_only():
    ts = np.linspace(0.0, 1.0, 11)
    data = jnp.stack([1 + 3 * ts, ts], 1)
    holes = data.at[0, 0].set(jnp.nan)
    us, dus = lux.diffeq.collocate(holes, ts, bandwidth=0.35)
    for y, right in ((us, data), (dus, np.array([3.0, 1.0]) * np.ones((11, 1)))):
        np.testing.assert_array_equal(np.isnan(y[:, 0]), np.arange(11) < 4)
        np.testing.assert_allclose(y[4:], right[4:], rtol=1e-10)
        np.testing.assert_allclose(y[:, 1], right[:, 1], atol=1e-10)
    slope = jax.grad(lambda x: lux.diffeq.collocate(x, ts, bandwidth=0.35)[1][4:].sum())
    np.testing.assert_allclose(slope(holes), slope(data), atol=1e-10)
