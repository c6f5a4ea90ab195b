"""SciPy's global methods, with bounds by component name."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import NonlinearConstraint

import lux_sciml as lux
from lux_sciml.optimize.global_methods import METHODS

CALLS = []


def rastrigin(p):
    """The lowest of many minima is at x = 0.5, y = (-0.5, -0.5)."""
    CALLS.append(None)
    x, y = p.x - 0.5, p.y + 0.5
    return 0.3 * jnp.sum(y**2 + 10 - 10 * jnp.cos(2 * jnp.pi * y)) + x**2 + jnp.where(p.x > 1.5, jnp.nan, 0.0)


@pytest.fixture
def start():
    return lux.ComponentVector(x=-1.0, y=[0.6, -1.4])


@pytest.fixture
def box():
    return lux.ComponentVector(x=-2.0, y=[-4.0, -4.0]), lux.ComponentVector(x=2.0, y=[4.0, 3.0])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_global_methods_find_the_lowest_minimum(method, start, box):
    CALLS.clear()
    steps = {"basinhopping": 25, "shgo": 4}.get(method, 200)
    options = {"stepsize": 1.0} if method == "basinhopping" else {}
    seen = []
    result = lux.minimize(
        rastrigin,
        start,
        method=method,
        bounds=box,
        max_steps=steps,
        options=options,
        callback=lambda *x: seen.append(x),
    )
    assert result.success and result.value < 1e-9 and np.allclose(result.params.data, [0.5, -0.5, -0.5], atol=1e-5)
    assert len(CALLS) <= 1 and result.steps == len(seen) > 0 and result.evaluations > 100
    assert all((box[0] <= ps).all() and (ps <= box[1]).all() for _, ps, _ in seen[:3])
    if method == "basinhopping":  # the slowest one
        return
    again = lux.minimize(rastrigin, start, method=method, bounds=box, max_steps=steps, options=options)
    assert np.array_equal(result.history, again.history)


def test_constraints_limits_and_stops(start, box):
    ring = NonlinearConstraint(lambda p: p.x**2 + p.y[0] ** 2, 2.0, 3.0)
    result = lux.minimize(rastrigin, start, method="differential_evolution", bounds=box, constraints=ring)
    inside = result.params.x**2 + result.params.y[0] ** 2
    assert result.success and 2 - 1e-6 <= inside <= 3 + 1e-6 and result.value < 3.0
    few = lux.minimize(rastrigin, start, method="differential_evolution", bounds=box, max_steps=3)
    assert not few.success and "Maximum number of iterations" in few.message and few.value < few.history[0]
    stopped = lux.minimize(rastrigin, start, method="dual_annealing", bounds=box, callback=lambda *_: True)
    assert stopped.stopped and stopped.steps == 1
    patient = lux.minimize(rastrigin, start, method="basinhopping", bounds=box, patience=5)
    assert patient.message == "ended: no lower loss in patience=5 steps" and patient.steps < 100


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_finite_nowhere_is_a_failure(method, start, box):
    data = np.array([1.0, np.nan])
    result = lux.minimize(
        lambda p, data: jnp.sum((p.x - data) ** 2), start, args=data, method=method, bounds=box, max_steps=2
    )
    assert not result.success and np.isnan(result.value) and result.params.equals(start)
    assert "is not finite" in result.message and "`args` holds 1 of 2 elements" in result.message


def test_wrong_calls(start, box):
    with pytest.raises(ValueError, match="dual_annealing searches within bounds: pass finite ones"):
        lux.minimize(rastrigin, start, method="dual_annealing")
    with pytest.raises(ValueError, match="shgo searches within bounds"):
        lux.minimize(rastrigin, start, method="SHGO", bounds=(box[0], np.inf))
    with pytest.raises(ValueError, match="basinhopping takes no constraints"):
        lux.minimize(rastrigin, start, method="basinhopping", constraints=NonlinearConstraint(lambda p: p.x, 0, 1))
