"""Several starts: at once where the method allows, the best returned, all reported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import lux_sciml as lux

WELLS = np.array([2.0, 0.5, 1.0])


def wells(p):
    """Minima near -1 and 1 for each element, lower at -1."""
    return jnp.sum(WELLS * (p.x**2 - 1) ** 2 + 0.3 * p.x) + (p.y - 2.0) ** 2


@pytest.fixture
def ps():
    return lux.ComponentVector(x=np.full(3, 0.9), y=0.0)


@pytest.fixture
def box():
    return lux.ComponentVector(x=np.full(3, -1.5), y=-3.0), 3.0


METHODS = {"optax": optax.adam(0.05), "optimistix": optx.BFGS(rtol=1e-6, atol=1e-6), "scipy": "L-BFGS-B"}


@pytest.mark.slow
@pytest.mark.parametrize("family", METHODS)
def test_all_starts_are_those_of_runs_one_by_one(family, ps, box):
    method, starts = METHODS[family], lux.sobol_samples(jax.random.key(3), 4, box[0], ps + 0.6)
    result = lux.minimize(wells, ps, method=method, starts=starts, max_steps=60)
    assert len(result.runs) == 5 and result.value == min(run.value for run in result.runs) < result.runs[0].value
    assert result.runs.best.value == result.value and np.array_equal(result.params.data, result.runs.best.params.data)
    for i, run in ((0, ps), (3, lux.ComponentVector(starts.data[2], ps.layout))):
        alone, run = lux.minimize(wells, run, method=method, max_steps=60), result.runs[i]
        assert (alone.success, alone.message, alone.steps) == (run.success, run.message, run.steps)
        assert np.allclose(alone.history, run.history, rtol=1e-9) and np.allclose(alone.params.data, run.params.data)
    assert len(repr(result.runs).splitlines()) == 6


def test_a_number_of_starts_is_spread_over_the_bounds_of_what_is_fitted(ps, box):
    points = []
    told = lambda step, ps, value: points.append(value)  # noqa: E731
    result = lux.minimize(
        wells, ps, method=optax.adam(0.1), bounds=box, starts=8, max_steps=40, trainable="x", callback=told
    )
    assert len(result.runs) == 8 and result.value < result.runs[0].value - 0.5 and result.params.y == 0.0
    assert len({run.history[0] for run in result.runs}) == 8 and points[-1] == result.value
    tree = lux.minimize(
        lambda t: wells(lux.ComponentVector(t)), ps.tree(), method="L-BFGS-B", bounds=(-2.0, 3.0), starts=3
    )
    assert isinstance(tree.params, dict) and len(tree.runs) == 3


def test_a_start_that_is_not_finite_fails_alone(ps):
    for method in METHODS.values():
        result = lux.minimize(wells, ps, method=method, starts=[ps * np.nan, -ps], max_steps=50)
        assert result.value == result.runs[2].value < result.runs[0].value and not np.isfinite(result.runs[1].value)
        assert not result.runs[1].success and "not finite at the start" in result.runs[1].message
        assert "`ps['x']` holds 3 of 3" in result.runs[1].message


def test_stops_and_wrong_calls(ps):
    told = lambda step, *_: step > 0  # noqa: E731
    stopped = lux.minimize(wells, ps, method=optax.adam(0.01), starts=[-ps], callback=told, callback_every=5)
    assert all(run.stopped and run.steps == 5 for run in stopped.runs)
    one = lux.minimize(wells, ps, method="BFGS", starts=[-ps], callback=told)
    assert one.runs[1].message == "not run: stopped before"
    with pytest.raises(ValueError, match="starts=4 draws them within finite bounds: pass `bounds"):
        lux.minimize(wells, ps, method="BFGS", starts=4)
    with pytest.raises(ValueError, match="within finite bounds, and `y` has none"):
        lux.minimize(
            wells, ps, method="L-BFGS-B", starts=4, bounds=(lux.ComponentVector(x=np.zeros(3), y=-np.inf), 1.0)
        )
    with pytest.raises(ValueError, match=r"starts\[0\] is not like the parameters"):
        lux.minimize(wells, ps, method="BFGS", starts=[lux.ComponentVector(x=1.0)])
    with pytest.raises(
        TypeError, match=r"starts are a number, a list of parameters, or a batch \(k, 4\), got float64\[4\]"
    ):
        lux.minimize(wells, ps, method="BFGS", starts=ps)
