"""Several methods, each from where the one before ended."""

import numpy as np
import optax
import optimistix as optx
import pytest

import lux_sciml as lux

START = {"x": -1.2, "y": 1.0}


def rosenbrock(p):
    return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2


def test_each_begins_where_the_one_before_ended():
    methods, steps = [optax.adam(0.05), optx.BFGS(rtol=1e-8, atol=1e-8), "BFGS"], []
    told = lambda step, ps, value: steps.append(step)  # noqa: E731
    result = lux.minimize(rosenbrock, START, method=methods, max_steps=[30, 5, 100], callback=told, callback_every=1)
    adam, quasi_newton, scipy = result.runs
    assert result.success and np.allclose([result.params["x"], result.params["y"]], 1, atol=1e-5)
    assert (adam.steps, quasi_newton.steps) == (30, 5) and np.isclose(quasi_newton.history[0], adam.value, rtol=1e-14)
    assert np.isclose(scipy.history[0], quasi_newton.value, rtol=1e-14)
    assert result.message.startswith("method 3 of 3: Optimization")
    assert result.steps == 35 + scipy.steps and steps == list(range(result.steps + 1))
    assert len(result.history) == result.steps + 1 and result.evaluations == sum(r.evaluations for r in result.runs)
    assert repr(result.runs).splitlines()[1].split()[:4] == ["0", f"{adam.value:.6g}", "True", "30"]


def test_where_one_is_stopped_no_other_begins():
    told, methods = lambda step, *_: step > 0, (optax.sgd(1e-4), "BFGS")
    stopped = lux.minimize(rosenbrock, START, method=methods, max_steps=50, callback=told, callback_every=3)
    assert stopped.success and stopped.stopped and stopped.steps == 3 and len(stopped.runs) == 1
    timed = lux.minimize(rosenbrock, START, method=methods, max_steps=10**9, max_seconds=0.3)
    assert len(timed.runs) == 1 and timed.stopped


def test_wrong_lists_are_refused_before_the_first_method_runs():
    def run(method, **given):
        return lux.minimize(lambda p: 1 / 0, START, method=method, **given)

    with pytest.raises(ValueError, match="SciPy has no method 'BFG'"):
        run([optax.adam(0.1), "BFG"])
    with pytest.raises(ValueError, match="optimistix minimizers take no bounds"):
        run([optax.adam(0.1), optx.BFGS(1e-3, 1e-3)], bounds=(0, 1))
    with pytest.raises(ValueError, match="max_steps is one number, or one for each of 2 methods, got 3"):
        run([optax.adam(0.1), "BFGS"], max_steps=[1, 2, 3])
    with pytest.raises(ValueError, match="methods in turn take no `starts`, which is of one method"):
        run([optax.adam(0.1), "BFGS"], starts=3, bounds=(0, 1))
    with pytest.raises(ValueError, match="there is no method in the list of methods"):
        run([])


def test_a_state_that_a_later_method_cannot_carry_and_its_steps_are_refused_before_the_first_runs():
    calls = []

    def loss(p, st):
        calls.append(1)
        return (p["x"] - 1) ** 2 + p["y"] ** 2, {"n": st["n"] + 1}

    told = lambda *_: pytest.fail("the first method ran")  # noqa: E731
    with pytest.raises(ValueError, match="the loss updates `n` of the state, and BFGS evaluates it"):
        lux.minimize(
            loss, START, method=[optax.adam(0.1), "BFGS"], state={"n": np.zeros(())}, callback=told, max_steps=3
        )
    with pytest.raises(ValueError, match="max_steps: expected a whole number of at least 1, got 0"):
        lux.minimize(rosenbrock, START, method=[optax.adam(0.1), "BFGS"], max_steps=[3, 0], callback=told)
