"""LevenbergMarquardt as an optimistix solver, and its linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize

import lux_sciml as lux
from lux_sciml import _compat
from lux_sciml.optimize import damped_systems
from lux_sciml.optimize.levenberg_marquardt import forward_jacobian, reverse_jacobian
from lux_sciml.optimize.robust_losses import LOSSES, Robust


def rosenbrock(y, _):
    return {"valley": 10 * (y["b"] - y["a"] ** 2), "slope": 1 - y["a"]}


START = {"a": jnp.array([-1.2, 0.5]), "b": jnp.array([1.0, 2.0])}


def solver(**settings):
    return lux.LevenbergMarquardt(rtol=1e-10, atol=1e-12, **settings)


# --- it solves problems under optimistix's own entry point --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *damped_systems.SOLVERS])
def test_optimistix_runs_it(name, dtype):
    start = jax.tree.map(lambda x: x.astype(dtype), START)
    tolerance = 1e-10 if dtype == "float64" else 1e-6
    method = lux.LevenbergMarquardt(tolerance, tolerance, solver=name)
    solution = optx.least_squares(rosenbrock, method, start, max_steps=100)
    assert all(x.dtype == dtype for x in jax.tree.leaves(solution.value))
    for x in jax.tree.leaves(solution.value):
        np.testing.assert_allclose(x, 1.0, rtol=100 * tolerance)
    assert int(solution.stats["num_steps"]) < 30


def test_aux_derivatives_and_named_vectors_go_through_optimistix():
    def residual(p, target):
        return jnp.stack([p.x**2 - target, p.x * p.y - 1.0]), {"x": p.x}

    def root(target):
        start = lux.ComponentVector(x=1.0, y=1.0)
        return optx.least_squares(residual, solver(), start, target, has_aux=True)

    solution = root(jnp.array(4.0))
    assert isinstance(solution.value, lux.ComponentVector)
    np.testing.assert_allclose(solution.value.data, [2.0, 0.5], rtol=1e-9)
    np.testing.assert_allclose(solution.aux["x"], 2.0, rtol=1e-9)
    gradient = jax.grad(lambda target: root(target).value.x)(jnp.array(4.0))  # by the implicit function theorem
    np.testing.assert_allclose(gradient, 0.25, rtol=1e-6)


@pytest.mark.parametrize("jac", ["fwd", "bwd"])
def test_modes_of_the_jacobian(jac):
    solution = optx.least_squares(rosenbrock, solver(), START, options={"jac": jac})
    np.testing.assert_allclose(solution.value["a"], 1.0, rtol=1e-9)
    x = jnp.array([0.3, -0.7, 1.1])
    f = lambda x: (jnp.stack([x @ x, x[0] * x[2]]), x.sum())  # noqa: E731
    exact = np.array([2 * x, [x[2], 0, x[0]]])
    for jacobian in (forward_jacobian, reverse_jacobian):
        value, matrix, aux = jacobian(f, x)
        np.testing.assert_allclose(matrix, exact, rtol=1e-12)
        np.testing.assert_allclose(value, f(x)[0], rtol=1e-15)
        np.testing.assert_allclose(aux, x.sum(), rtol=1e-15)


def test_a_start_that_is_not_finite_and_a_wall_are_failures():
    def wall(y, _):
        return jnp.where(y < 1.0, jnp.nan, y - 0.5)

    for start in (0.0, 1.0):
        solution = optx.least_squares(wall, solver(), jnp.array(start), throw=False)
        assert solution.result == optx.RESULTS.nonlinear_divergence


# --- the linear systems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 7), (7, 30)])
def test_the_four_linear_solvers_agree(shape):
    m, n = shape
    rng = np.random.default_rng(0)
    jacobian, r, b = (jnp.asarray(rng.standard_normal(s)) for s in ((m, n), m, m))
    scale, damping = jnp.asarray(rng.uniform(0.5, 2, n)), jnp.array(1e-2)
    normal = jacobian.T @ jacobian + damping * jnp.diag(scale**2)
    for name in ("qr", "cholesky", "dual"):
        step, solve = damped_systems.system(name, jacobian, r, scale, damping)
        np.testing.assert_allclose(normal @ step, -jacobian.T @ r, atol=1e-10)
        np.testing.assert_allclose(normal @ solve(b), -jacobian.T @ b, atol=1e-10)
    plain = jacobian.T @ jacobian + damping * jnp.eye(n)
    step, solve = damped_systems.system_of_products(
        lambda v: jacobian @ v, lambda w: jacobian.T @ w, r, damping, 1e-12, 200
    )
    np.testing.assert_allclose(plain @ step, -jacobian.T @ r, atol=1e-9)
    np.testing.assert_allclose(plain @ solve(b), -jacobian.T @ b, atol=1e-9)


def test_qr_does_not_square_the_condition():
    """Where J'J is singular to precision, the step by QR is still exact."""
    left, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 6)))
    jacobian = jnp.asarray(left * np.logspace(0, -10, 6))
    x = np.ones(6)
    step, _ = damped_systems.system("qr", jacobian, -jacobian @ x, jnp.ones(6), jnp.array(1e-30))
    np.testing.assert_allclose(step, x, rtol=1e-4)


def test_the_linear_solver_follows_from_the_size():
    assert damped_systems.choose(1000, 100) == damped_systems.choose(60, 252) == "qr"
    assert damped_systems.choose(10_000, 1000) == "cholesky"
    assert damped_systems.choose(1000, 10_000) == "dual"
    assert damped_systems.choose(10**6, 10**4) == damped_systems.choose(7000, 7000) == "cg"


# --- robust losses ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_robust_losses_are_scipys(name):
    r = jnp.array([0.01, -0.3, 0.9, -2.5, 40.0])
    loss = Robust(name, 0.7)
    same = scipy.optimize.least_squares(lambda _: np.asarray(r), np.zeros(1), loss=name, f_scale=0.7)
    np.testing.assert_allclose(loss.value(r), same.cost, rtol=1e-12)
    rows, curved = loss.scales(r)
    gradient, hessian = jax.grad(loss.value)(r), jnp.diag(jax.hessian(loss.value)(r))
    np.testing.assert_allclose(rows * curved * r, gradient, rtol=1e-10)
    convex = hessian > rows**2 - 1e-9  # all but the outliers
    assert convex[:2].all()
    np.testing.assert_allclose((rows**2)[convex], hessian[convex], rtol=1e-6)


# --- geodesic acceleration ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_geodesic_acceleration_is_the_second_order_step():
    """Along a curved line the accelerated step is nearer to the line than the plain one; differences agree."""

    def residual(y, _):
        return jnp.stack([y[0] * y[1] - 1.5, y[0] ** 2 + jnp.sin(y[1]) - 2.0, 0.3 * y[1] ** 3])

    x = jnp.array([1.0, 0.8])
    trials = {}
    for geodesic in ("exact", "difference", None):
        method = solver(damping=1e-6, geodesic=geodesic)
        state = method.init(lambda y, a: (residual(y, a), None), x, None, {}, jnp.zeros(3), None, frozenset())
        _, state, _ = method.step(lambda y, a: (residual(y, a), None), x, None, {}, state, frozenset())
        trials[geodesic] = np.asarray(state.trial - x)
    jacobian = jax.jacfwd(residual)(x, None)
    d = trials[None]
    np.testing.assert_allclose(d, -np.linalg.lstsq(jacobian, residual(x, None))[0], rtol=1e-4)
    second = jnp.einsum("ijk,j,k", jax.hessian(residual)(x, None), d, d)
    acceleration = -np.linalg.lstsq(jacobian, second)[0]
    np.testing.assert_allclose(trials["exact"], d + acceleration / 2, rtol=1e-4)
    np.testing.assert_allclose(trials["difference"], trials["exact"], rtol=1e-2)
    with pytest.raises(ValueError, match="geodesic is 'exact', 'difference' or None"):
        solver(geodesic="yes")


@pytest.mark.exhaustive
def test_factorizations_take_one_thread_where_it_is_said():
    libraries = _compat.openblas_threads()
    before = [number() for number, _ in libraries]
    with _compat.one_blas_thread():
        assert all(number() == 1 for number, _ in libraries)
    assert [number() for number, _ in libraries] == before


@pytest.mark.parametrize("solver", ["qr", "cg"])
def test_a_derivative_that_is_not_finite_is_no_convergence(solver):
    result = lux.least_squares(lambda p: jnp.sqrt(jnp.abs(p)) - 1.0, jnp.zeros(2), jacobian="forward", solver=solver)
    assert not result.success and "finite" in result.message and np.array_equal(result.params, [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["qr", "cg"])
def test_where_it_sticks_is_no_success(solver):
    """Meyer's problem, MGH10 of NIST's, from its far start."""
    y = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]
    samples = np.arange(50.0, 126.0, 5.0), np.array(y, float)
    start = jnp.array([2.0, 400_000.0, 25_000.0])
    for loss in ("linear", "huber"):
        result = lux.least_squares(
            lambda p, s: p[0] * jnp.exp(p[1] / (s[0] + p[2])) - s[1],
            start, samples=samples, solver=solver, loss=loss, loss_scale=1e3, max_steps=400,
        )  # fmt: skip
        assert not result.success and ("max_steps" in result.message or "is not small" in result.message)
