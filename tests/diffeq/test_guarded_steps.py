"""Where a solve is ended because no smaller step can help: at the resolution of the time at which it is."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux


def final(f, ts, y0, **options):
    node = lux.NeuralODE(lux.Lambda(f), ts=ts, **options)
    sol = node(y0, {}, {})[0]
    return sol.ys[-1], int(sol.stats["num_steps"]), sol.result


def stiff(y):
    """The first component follows the cosine of the second within 1e-6, the second falls in 1e11."""
    return jnp.stack([-1e6 * (y[0] - jnp.cos(y[1])), -1e-11 * y[1]])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("end", [1e11, -1e11])
def test_small_steps_near_zero_of_a_long_solve(dtype, end):
    y, steps, _ = final(
        lambda y: math.copysign(1.0, end) * stiff(y), [0.0, end], jnp.array([5.0, 1.0], dtype),
        solver=diffrax.Kvaerno5(), rtol=1e-5, atol=1e-7,
    )  # fmt: skip
    np.testing.assert_allclose(y, [np.cos(np.exp(-1)), np.exp(-1)], rtol=1e-4)
    assert steps < (100 if dtype == "float64" else 400)


@pytest.mark.parametrize("rate", [1e-7, 1.0])
@pytest.mark.parametrize("ts", [[1.7e9, 1.8e9], [-1.7e9, -1.6e9]])
def test_large_times_in_single_precision(rate, ts):
    y, steps, result = final(lambda y: -rate * y, ts, jnp.ones(1, jnp.float32), rtol=1e-5, atol=1e-7)
    if rate == 1e-7:
        np.testing.assert_allclose(y, np.exp(-10), rtol=1e-2)
        assert steps < 50
    else:  # eight units in the last place of these times are 1024 seconds
        assert result == diffrax.RESULTS.dt_min_reached and np.isnan(y).all() and steps < 5


@pytest.mark.exhaustive
@pytest.mark.parametrize("ts", [[0.0, 1.0], [0.0, 1e11], [0.0, -1.0], [5.0, 6.0]])
@pytest.mark.parametrize("field", [lambda s: jnp.where(s > 0, jnp.nan, 1.0), lambda s: 1 / s**2], ids=["nan", "pole"])
def test_a_solve_that_is_stuck_ends_soon(dtype, ts, field):
    def f(x):
        return field(jnp.abs(x[0] - ts[0])) * x[1]

    y, steps, result = final(f, ts, jnp.ones(1, dtype), time_dependent=True)
    assert result != diffrax.RESULTS.successful and np.isnan(y).all() and steps < 60


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{}, {"dt0": 0.1}, {"solver": diffrax.Kvaerno5(), "dt0": 0.1}])
def test_a_field_that_is_nan_is_told_from_steps_that_are_too_small(options):
    for first in (0.0, 0.5):  # from the start, and on the way

        def f(x, first=first):
            return jnp.where(x[0] >= first, jnp.nan, 1.0) * x[1]

        y, _, result = final(f, [0.0, 1.0], jnp.ones(1), time_dependent=True, **options)
        assert result == diffrax.RESULTS.nonfinite and np.isnan(y).all()
    _, _, result = final(lambda y: y**2, [0.0, 2.0], jnp.ones(1), **options)
    assert result == diffrax.RESULTS.dt_min_reached


@pytest.mark.slow
def test_a_start_that_is_not_finite_ends_at_once():
    for options in ({"dt0": 0.1}, {"solver": diffrax.Kvaerno5()}):
        y, steps, result = final(lambda y: -y, [0.0, 1.0], jnp.array([1.0, np.nan]), **options)
        assert result == diffrax.RESULTS.nonfinite and np.isnan(y).all() and steps <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ts", "saved", "steps"),
    [
        ([0.0, 2.0, 1.0], None, None),
        ([1.0, 0.0, 2.0], None, None),
        ([0.0, 1.0], [0.5, 3.0], None),
        ([0.0, 1.0], [0.5, 0.2], None),
        ([0.0, 1.0], None, [0.0, 0.5, 2.0]),
    ],
)
def test_times_that_go_another_way_are_a_failure_where_they_are_traced(ts, saved, steps):
    node = lux.NeuralODE(
        lux.Lambda(jnp.negative),
        saveat=None if saved is None else diffrax.SaveAt(ts=jnp.array(saved)),
        stepsize_controller=None if steps is None else diffrax.StepTo(jnp.array(steps)),
    )
    with pytest.raises(ValueError, match=r"times|`ts`"):
        node((jnp.ones(2), np.array(ts)), {}, {})
    sol = jax.jit(lambda ts: node((jnp.ones(2), ts), {}, {})[0])(jnp.array(ts))
    assert np.isnan(sol.ys).all()
    with pytest.raises(RuntimeError, match=r"times \(in one direction"):
        lux.raise_if_failed(sol)


@pytest.mark.exhaustive
def test_a_batch_keeps_the_samples_whose_times_are_right():
    node = lux.NeuralODE(lux.Lambda(jnp.negative), output="ys", batching="vmap")
    ts = jnp.array([[0.0, 0.5, 1.0], [0.0, 1.0, 0.5]])
    ys = jax.jit(lambda ts: node((jnp.ones((2, 1)), ts), {}, {})[0])(ts)
    np.testing.assert_allclose(ys[0, :, 0], np.exp(-ts[0]), rtol=1e-5)
    assert np.isnan(ys[1]).all()
