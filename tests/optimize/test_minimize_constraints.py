"""Constraints by component name, and exact Hessian products, in SciPy's methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.sparse
from scipy.optimize import LinearConstraint, NonlinearConstraint

import lux_sciml as lux
from lux_sciml.optimize.constraints import Constraints
from lux_sciml.optimize.problem import Problem
from lux_sciml.optimize.scipy_backend import CONSTRAINED


def loss(p, target):
    return (p.a[0] - target) ** 2 + (p.a[1] - 1) ** 2 + (p.b + 1) ** 2 + p.a[0] ** 4 / 100


def radius(p, target):
    return lux.ComponentVector(square=p.a[0] ** 2 + p.a[1] ** 2, product=p.a[0] * p.a[1])


@pytest.fixture
def start():
    return lux.ComponentVector(a=[0.1, -0.4], b=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("method", CONSTRAINED)
def test_nonlinear_and_linear_constraints_by_name(method, start):
    disc = NonlinearConstraint(radius, -np.inf, lux.ComponentVector(square=1.0, product=10.0))
    plane = (lux.ComponentVector(a=[0.0, 1.0], b=2.0), 0.0, 0.0)
    result = lux.minimize(loss, start, method=method, args=2.0, constraints=[disc, plane], max_steps=3000)
    angle = np.linspace(-np.pi, np.pi, 2_000_001)
    on_the_edge = (np.cos(angle) - 2) ** 2 + (np.sin(angle) - 1) ** 2 + (1 - np.sin(angle) / 2) ** 2
    best = np.argmin(on_the_edge + np.cos(angle) ** 4 / 100)
    exact = [np.cos(angle[best]), np.sin(angle[best]), -np.sin(angle[best]) / 2]
    assert result.success and np.allclose(result.params.data, exact, atol=1e-5 if method == "SLSQP" else 5e-4)
    assert radius(result.params, 0).square <= 1 + 1e-6 and abs(result.params.a[1] + 2 * result.params.b) < 1e-6


def test_parts_dicts_trees_and_the_best_feasible_point(start):
    line = LinearConstraint(scipy.sparse.csr_array([[1.0, 1.0, 4.0]]), 0.5, np.inf)
    part = lux.minimize(loss, start, method="SLSQP", args=-3.0, constraints=line, trainable="a")
    assert part.success and part.params.b == 0.3 and np.isclose(part.params.a.sum() + 1.2, 0.5)
    keeps = {"type": "ineq", "fun": lambda tree: tree["x"] - 1.0}
    tree = lux.minimize(lambda tree: jnp.sum(tree["x"] ** 2), {"x": np.full(2, 3.0)}, method="SLSQP", constraints=keeps)
    assert tree.success and np.allclose(tree.params["x"], 1, atol=1e-6)
    ahead = lux.minimize(
        loss,
        start,
        method="SLSQP",
        args=9.0,
        constraints=NonlinearConstraint(lambda p, _: p.a[0] ** 2, -np.inf, 0.25),
        callback=lambda step, *_: step == 2,
    )
    assert ahead.stopped and ahead.params.a[0] ** 2 <= 0.25 + 1e-6 and ahead.value < loss(start, 9.0)
    nowhere = [NonlinearConstraint(lambda p, _: p.b**2 + 1, -np.inf, 0.0)]
    assert not lux.minimize(loss, start, method="COBYLA", args=2.0, constraints=nowhere).success


def test_second_derivatives_are_exact(monkeypatch, start):
    """Against central differences of the gradient, and of the Jacobians."""
    problem, inputs = Problem.of(loss, start, 2.0, None, False, None)
    x, u, v = np.array([0.7, -0.2, 0.4]), np.array([0.3, 1.0, -2.0]), np.array([1.5, -0.5])
    limited = Constraints.of(NonlinearConstraint(radius, 0, 1), "trust-constr", problem, start, inputs)
    one = limited.constraints[0]

    def difference(f, h=1e-5):
        return (f(x + h * u) - f(x - h * u)) / (2 * h)

    assert np.allclose(one.jacobian(x), [[1.4, -0.4, 0], [-0.2, 0.7, 0]])
    assert np.allclose(one.products(x, v) @ u, difference(lambda x: v @ one.jacobian(x)), atol=1e-9)
    gradient = jax.grad(lambda flat: loss(lux.ComponentVector(flat, start.layout), 2.0))
    seen = {}
    monkeypatch.setattr(scipy.optimize, "minimize", lambda *_, method, **given: seen.update({method: given}) or 1 / 0)
    for method in ("trust-ncg", "trust-krylov", "Newton-CG", "trust-constr"):
        with pytest.raises(ZeroDivisionError):
            lux.minimize(loss, start, method=method, args=2.0)
        product = seen[method]["hessp"](x, u)
        assert np.allclose(product, difference(lambda x: np.asarray(gradient(jnp.asarray(x)))), atol=1e-8), method


def test_wrong_constraints(start):
    def run(constraints, method="SLSQP"):
        return lux.minimize(loss, start, method=method, args=2.0, constraints=constraints)

    disc = NonlinearConstraint(radius, 0, 1)
    for method, name in (("BFGS", "BFGS"), (optax.adam(0.1), "an optax optimizer")):
        with pytest.raises(ValueError, match=f"{name} takes no constraints; these methods do: SLSQP, trust-constr"):
            run(disc, method)
    with pytest.raises(TypeError, match=r"a constraint is a scipy\.optimize\.NonlinearConstraint.* got a function"):
        run(radius)
    with pytest.raises(TypeError, match=r"the constraint is called as constraint\(ps, args\), got a function of \(p\)"):
        run(NonlinearConstraint(lambda p: p.b, 0, 1))
    with pytest.raises(TypeError, match="has values that are floating-point numbers"):
        run(NonlinearConstraint(lambda p, _: p.b > 0, 0, 1))
    with pytest.raises(ValueError, match="limits of a constraint of 2 values are as many numbers"):
        run(NonlinearConstraint(radius, np.zeros(3), 1))
    with pytest.raises(ValueError, match="the layouts differ"):
        run((lux.ComponentVector(a=[1.0, 1.0], c=1.0), 0, 1))
    with pytest.raises(ValueError, match="rows of one coefficient for each of the 3 parameters"):
        run(LinearConstraint(np.ones((1, 2)), 0, 1))
    with pytest.raises(TypeError, match="a constraint as a dict is"):
        run({"type": "equal", "fun": radius})
    with pytest.raises(ValueError, match="a constraint has no `args` of its own"):
        run({"type": "ineq", "fun": lambda p, _, least=0.0: p.b - least, "args": (1.0,)})
    assert "a constraint is not finite" in run(NonlinearConstraint(lambda p, _: jnp.log(-1 - p.b**2), 0, 1)).message
