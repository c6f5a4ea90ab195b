"""BoundedLBFGS against SciPy's L-BFGS-B, and inside of jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize

import lux_sciml as lux

RNG = np.random.default_rng(0)
MATRIX = (lambda a: a @ a.T + np.diag(np.logspace(-2, 2, 30)))(RNG.normal(size=(30, 30)))
SIDE = RNG.normal(size=30)


def rosenbrock(y, _):
    return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)


def quadratic(y, _):
    return y @ (MATRIX @ y) / 2 - SIDE @ y


def hs5(y, _):
    """Hock & Schittkowski, problem 5."""
    return jnp.sin(y[0] + y[1]) + (y[0] - y[1]) ** 2 - 1.5 * y[0] + 2.5 * y[1] + 1


def hs25(y, _):
    """Hock & Schittkowski, problem 25, which is flat to rounding at its start."""
    i = jnp.arange(1.0, 100.0) / 100
    u = 25 + (-50 * jnp.log(i)) ** (2 / 3)
    return jnp.sum((jnp.exp(-(jnp.abs(u - y[1]) ** y[2]) / y[0]) - i) ** 2)


ALTERNATING = np.where(np.arange(15) % 2 == 0, 1.0, -100.0)  # problem 25 of More, Garbow and Hillstrom, with bounds
CASES = {
    "rosenbrock": (rosenbrock, np.full(10, -1.2), -2.0, 2.0),
    "rosenbrock at a bound": (rosenbrock, np.full(10, -1.2), -2.0, 0.8),
    "alternating bounds": (rosenbrock, np.full(15, 3.0), ALTERNATING, 100.0),
    "quadratic": (quadratic, np.zeros(30), -0.1, 0.2),
    "without bounds": (quadratic, np.zeros(30), -np.inf, np.inf),
    "hs5": (hs5, np.zeros(2), np.array([-1.5, -3.0]), np.array([4.0, 3.0])),
    "hs25": (hs25, np.array([100.0, 12.5, 3.0]), np.array([0.1, 0.0, 0.0]), np.array([100.0, 25.6, 5.0])),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_minima_are_those_of_scipy(case):
    f, start, lower, upper = CASES[case]
    both = jax.jit(jax.value_and_grad(lambda y: f(y, None)))
    box = scipy.optimize.Bounds(*(np.broadcast_to(side, start.shape).astype(float) for side in (lower, upper)))
    scipys = scipy.optimize.minimize(
        lambda y: tuple(map(np.asarray, both(y))), start, jac=True, method="L-BFGS-B", bounds=box,
        options=dict(ftol=1e-15, gtol=1e-9, maxfun=10_000),
    )  # fmt: skip
    solver = lux.BoundedLBFGS(rtol=1e-10, atol=1e-10)
    ours = optx.minimise(f, solver, jnp.asarray(start), options=dict(lower=lower, upper=upper), max_steps=1000)
    y = np.asarray(ours.value)
    value, gradient = both(y)
    assert (box.lb <= y).all() and (y <= box.ub).all() and np.isclose(value, scipys.fun, rtol=1e-9, atol=1e-10)
    assert np.max(np.abs(y - np.clip(y - gradient, box.lb, box.ub))) < 1e-5
    assert ours.stats["num_steps"] < 4 * scipys.nfev + 30


@pytest.mark.slow
def test_inside_of_jit_and_vmap_with_named_vectors_and_gradients():
    start = lux.ComponentVector(x=-1.2, y=1.0)

    def valley(p, a):
        return 100 * (p.y - p.x**2) ** 2 + (a - p.x) ** 2

    def best(a, upper):
        box = dict(lower=lux.ComponentVector(x=-2.0, y=-2.0), upper=upper)
        return optx.minimise(valley, lux.BoundedLBFGS(1e-10, 1e-10), start, a, options=box, max_steps=500).value

    uppers = lux.ComponentVector(np.array([[0.5, 2.0], [2.0, 2.0], [2.0, 0.25]]), start.layout)
    found = jax.jit(jax.vmap(best))(jnp.ones(3), uppers)
    assert np.allclose(found.data[:2], [[0.5, 0.25], [1, 1]], atol=1e-6) and np.isclose(found.y[2], 0.25)
    half = start.astype("float32")
    single = optx.minimise(valley, lux.BoundedLBFGS(1e-5, 1e-5), half, jnp.float32(1), max_steps=500).value
    assert single.dtype == "float32" and np.allclose(single.data, 1, atol=1e-2)
    with pytest.raises(ValueError, match="the layouts differ"):
        best(1.0, lux.ComponentVector(y=2.0, x=0.5))
    slope = jax.jacfwd(lambda a: best(a, 2.0).x)(1.0)
    assert np.isclose(slope, 1.0, atol=1e-4)


@pytest.mark.exhaustive
def test_by_name_in_minimize():
    start = lux.ComponentVector(x=-1.2, y=1.0)

    def valley(p):
        return 100 * (p.y - p.x**2) ** 2 + (1 - p.x) ** 2 + jnp.where(p.x < -1.9, jnp.nan, 0.0)

    upper = lux.ComponentVector(x=0.5, y=2.0)
    result = lux.minimize(valley, start, method="BoundedLBFGS", bounds=(-2.0, upper), starts=5)
    assert result.success and np.allclose(result.params.data, [0.5, 0.25], atol=1e-6) and len(result.runs) == 5
    assert all(run.params.x <= 0.5 for run in result.runs)
    half = lux.minimize(valley, start, method="BoundedLBFGS", bounds=(-2.0, upper), max_steps=6)
    whole = lux.minimize(valley, start, method="BoundedLBFGS", bounds=(-2.0, upper), max_steps=12)
    rest = lux.minimize(valley, start, method="BoundedLBFGS", bounds=(-2.0, upper), max_steps=6, resume=half)
    assert np.array_equal(whole.history, rest.history) and np.array_equal(whole.params.data, rest.params.data)
