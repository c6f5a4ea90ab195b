"""SSBFGS and SSBroyden: the update, the line search, and both as optimistix minimizers and by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml.optimize.self_scaled import Point, State, _line_search

METHODS = (lux.SSBFGS, lux.SSBroyden)


def rosenbrock(y, _=None):
    return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)


START = np.array([-1.2, 1.0, -0.5, 0.8])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_they_find_minima(method, dtype):
    tolerance = 1e-10 if dtype == "float64" else 1e-6
    solution = optx.minimise(rosenbrock, method(tolerance, tolerance), jnp.asarray(START, dtype), max_steps=300)
    np.testing.assert_allclose(solution.value, 1.0, rtol=1e-7 if dtype == "float64" else 1e-2)
    assert solution.value.dtype == dtype and solution.stats["num_steps"] < 150

    def named(p, target):
        return (p.a - target) ** 2 + 10 * (p.b[0] - p.a) ** 2 + jnp.cosh(p.b[1])

    result = lux.minimize(
        named, lux.ComponentVector(a=0.0, b=[3.0, 2.0]).astype(dtype), method=method.__name__, args=jnp.ones((), dtype)
    )
    assert result.success, result.message
    np.testing.assert_allclose(result.params.data, [1, 1, 0], atol=1e-6 if dtype == "float64" else 2e-3)
    assert result.history.shape == (result.steps + 1,) and np.all(np.diff(result.history) <= 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_update_solves_the_secant_equation_and_stays_positive(method):
    """H+ z = s for every member; and SSBroyden's lies where its factors say, against the formula in full."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = 6
        root = rng.standard_normal((n, n))
        old, gradient = root @ root.T + 0.1 * np.eye(n), rng.standard_normal(n)
        t = rng.uniform(0.3, 3)
        s = -t * old @ gradient
        hessian = np.diag(rng.uniform(0.01, 10, n))
        z = hessian @ s
        no, none = jnp.array(False), jnp.array(0.0)
        state = State(none, jnp.asarray(gradient), jnp.asarray(old), no, None, no)
        found = Point(jnp.array(t), none, none, jnp.asarray(s), jnp.asarray(gradient + z), None)
        new, usable = method(1e-8, 1e-8)._updated(state, jnp.asarray(s), found)
        assert usable
        np.testing.assert_allclose(new @ z, s, rtol=1e-8, atol=1e-8 * np.abs(s).max())
        assert np.linalg.eigvalsh(new).min() > 0
        sz, zhz = s @ z, z @ old @ z
        b, h = s @ np.linalg.solve(old, s) / sz, zhz / sz
        if method is lux.SSBFGS:
            v = np.sqrt(zhz) * (s / sz - old @ z / zhz)
            bfgs = old - np.outer(old @ z, old @ z) / zhz + np.outer(v, v)
            np.testing.assert_allclose(new, bfgs / min(1, 1 / b) + np.outer(s, s) / sz, rtol=1e-7, atol=1e-9)
        tau, phi = method(1e-8, 1e-8).factors(*map(jnp.asarray, (b * h - 1, b, h)), n)
        assert 0 < tau <= 1 + 1e-12 and phi > -1 / (b * h - 1)  # beyond it H is not positive


def test_quadratics_take_few_steps():
    matrix = jnp.diag(jnp.array([1.0, 5.0, 30.0, 2.0])) + 0.3
    for method in METHODS:
        solution = optx.minimise(lambda y, _: 0.5 * y @ matrix @ y - y.sum(), method(1e-12, 1e-14), jnp.asarray(START))
        np.testing.assert_allclose(matrix @ solution.value, 1.0, rtol=1e-6)
        assert solution.stats["num_steps"] < 40


def test_the_line_search_meets_the_wolfe_conditions():
    functions = [
        lambda t: (t - 3.0) ** 2,
        lambda t: (t - 0.01) ** 2,
        lambda t: jnp.cos(3 * t) + 0.1 * t,
        lambda t: jnp.where(t < 2.0, -t, jnp.inf) + 0.3 * t**2,
        lambda t: -t / (t**2 + 2.0),
        lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
    ]
    search = jax.jit(_line_search, static_argnums=0)
    for f in functions:
        loss = lambda x, f=f: (f(x[0] + 0.1), None)  # noqa: E731
        value, gradient = jax.value_and_grad(lambda x: loss(x)[0])(jnp.zeros(1))  # noqa: B023
        for t in (1e-3, 1.0, 100.0):
            p = -jnp.sign(gradient)
            start = Point(jnp.array(0.0), value, gradient @ p, jnp.zeros(1), gradient, None)
            found, accepted = search(loss, start, p, jnp.array(t), jnp.array(False))
            assert accepted and found.value <= value + 1e-4 * found.t * start.slope
            assert abs(found.slope) <= 0.9 * abs(start.slope) or t == 1e-3  # the last one reaches far with 30 trials
            np.testing.assert_allclose(found.value, loss(found.x)[0], rtol=1e-12)


def test_starts_that_are_not_finite_fail():
    result = lux.minimize(lambda p: jnp.log(p.x), lux.ComponentVector(x=-1.0), method="SSBroyden")
    assert not result.success and "not finite at the start" in result.message
    solution = optx.minimise(lambda y, _: jnp.log(y), lux.SSBFGS(1e-6, 1e-6), jnp.array(-1.0), throw=False)
    assert solution.result == optx.RESULTS.nonlinear_divergence
