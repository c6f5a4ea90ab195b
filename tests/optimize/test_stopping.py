"""When a run ends: steps, seconds, patience, and what success means then."""

import time

import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml.optimize import convergence

START = {"x": -1.2, "y": 1.0}


def rosenbrock(p):
    return (1 - p.x) ** 2 + 100 * (p.y - p.x**2) ** 2


def minimize(method, **given):
    return lux.minimize(rosenbrock, lux.ComponentVector(START), method=method, **given)


@pytest.mark.parametrize("family", ["scipy", "optimistix", "optax"])
def test_steps_and_seconds_are_limits_where_a_method_has_a_criterion_and_the_plan_elsewhere(family):
    method = {"scipy": "BFGS", "optimistix": optx.BFGS(1e-9, 1e-9), "optax": optax.adam(1e-3)}[family]
    planned = family == "optax"
    few = minimize(method, max_steps=3)
    assert (few.success, few.steps, few.stopped) == (planned, 3, False) and len(few.history) == 4
    begin = time.monotonic()
    timed = minimize(method, max_steps=10**9, max_seconds=0.0)
    assert time.monotonic() - begin < 30 and timed.stopped and timed.steps < 1000
    assert "max_seconds=0 were over after" in timed.message and jnp.isfinite(timed.value)
    assert timed.success == (planned and timed.value < few.history[0])


def test_a_method_of_all_its_steps_uses_up_its_seconds_and_with_a_tolerance_these_are_a_limit():
    timed = minimize(optax.adam(1e-3), max_steps=10**9, max_seconds=0.5)
    assert timed.success and timed.stopped and timed.value < 1.0
    assert not minimize(optax.adam(1e-6), max_steps=10**9, max_seconds=0.2, tol=1e-9).success


@pytest.mark.parametrize("family", ["scipy", "optimistix", "optax"])
def test_patience_counts_steps_without_a_lower_loss(family):
    method = {"scipy": "Nelder-Mead", "optimistix": optx.NelderMead(1e-9, 1e-9), "optax": optax.adam(0.3)}[family]
    result = minimize(method, max_steps=5000, patience=3)
    values = result.history[: -1 if family == "optimistix" else None]  # which ends with the point that it returns
    waited = [min(values[i - 2 : i + 1]) >= min(values[: i - 2]) for i in range(3, len(values))]
    assert result.success and result.message == "ended: no lower loss in patience=3 steps"
    assert waited == [False] * (len(values) - 4) + [True]


@pytest.mark.exhaustive
def test_wrong_calls():
    with pytest.raises(ValueError, match="max_seconds: expected a number of at least 0, got -1"):
        minimize("BFGS", max_seconds=-1.0)
    with pytest.raises(ValueError, match="patience: expected"):
        minimize("BFGS", patience=0)


def narrow(x):
    return 12 + 1e7 * (x[0] - 0.06) ** 2 + (x[1] - 25) ** 2


@pytest.mark.parametrize(
    ("loss", "at", "falls"),
    [
        (narrow, [0.06 + 1e-6, 25.0], {"float64"}),
        (narrow, [0.06 + 1e-4, 25.0], {"float32", "float64"}),
        (narrow, [0.06 + 1e-6, 20.0], {"float32", "float64"}),  # along the valley
        (lambda x: abs(x[0] - 1) + x[1] ** 2, [1.0, 0.0], set()),  # a kink
        (lambda x: x[0] + x[1] ** 2, [0.0, 0.0], set()),  # at a bound
        (lambda x: x[0] + x[1] ** 2, [0.5, 0.0], {"float32", "float64"}),
    ],
)
def test_a_gradient_that_is_steep_is_a_doubt_where_the_loss_falls_along_it(loss, at, falls, dtype):
    x, size = np.array(at), 1e-9
    gradient = np.array([(loss(x + size * e) - loss(x - size * e)) / (2 * size) for e in np.eye(2)])
    lower = np.array([0.0, -100.0])
    found = convergence.descends(x, loss(x), gradient, loss, lambda x: np.maximum(x, lower), np.dtype(dtype))
    assert found == (dtype in falls)


def test_a_fit_at_its_minimum_in_single_precision_is_a_success():
    """A change of the rate by its own rounding changes the gradient by a hundredth of the loss."""

    def loss(p):
        return 12 + 1e6 * (p.rate - 0.06) ** 2 + (p.volume - 25) ** 2

    start = lux.ComponentVector(rate=np.float32(0.1), volume=np.float32(15.0))
    for method in ("L-BFGS-B", "TNC", optx.BFGS(1e-5, 1e-5)):
        result = lux.minimize(loss, start, method=method)
        assert result.success and result.value < 12.001
