"""Every solver of ours with every kind of numbers: real, complex, mixed, in all precisions, all promotion strict."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml.equilibrium.loop import fixed_point

RNG = np.random.default_rng(0)
EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}

# optimistix says of complex numbers that its own solvers may be wrong.
pytestmark = pytest.mark.filterwarnings("ignore:Complex support in Optimistix")


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(params=[lux.Anderson, lux.Broyden])
def solver(request):
    return request.param


def matrix(n, radius, kind=float):
    """A contraction by `radius`."""
    m = RNG.standard_normal((n, n))
    if kind is complex:
        m = m + 1j * RNG.standard_normal((n, n))
    return radius * m / np.linalg.norm(m, 2)


def solve(solver, f, y0, args=None, tolerance=1e-8, max_steps=200, **options):
    tight = solver(tolerance, tolerance, **options)
    return optx.fixed_point(f, tight, y0, args, max_steps=max_steps, throw=False)


@pytest.mark.slow
def test_broadcasting_of_ranks_is_explicit(solver):
    for y0 in (jnp.ones(3), jnp.ones((2, 3)), jnp.ones(())):
        sol = solve(solver, lambda y, a: 0.5 * jnp.cos(y), y0)
        assert sol.result == optx.RESULTS.successful
        np.testing.assert_allclose(sol.value, 0.5 * np.cos(sol.value), atol=1e-7)
    sol = solve(solver, lambda y, a: 0.5 * jnp.cos(y), jnp.ones((2, 3)), per_sample=True)
    assert sol.stats["converged"].tolist() == [True, True]


# --- complex ------------------------------------------------------------------------------------------------------


def test_complex_maps_of_three(solver):
    a = jnp.array([0.9j, -0.5 + 0.5j, 0.8])
    sol = solve(solver, lambda y, a: a * y + 1, jnp.zeros(3, complex), a)
    assert sol.result == optx.RESULTS.successful
    assert sol.stats["num_steps"] <= 7
    assert sol.stats["residual"].dtype == "float64"
    np.testing.assert_allclose(sol.value, 1 / (1 - a), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "radius"), [(12, 0.9), (12, 1.5), (1, 0.95)])
def test_complex_linear_maps(solver, n, radius):
    m = matrix(n, 1, complex)
    m = radius * m / np.abs(np.linalg.eigvals(m)).max()  # 1.5: the plain iteration diverges
    sol = solve(solver, lambda y, m: m @ y + 1, jnp.zeros(n, complex), jnp.asarray(m))
    assert sol.result == optx.RESULTS.successful
    np.testing.assert_allclose(sol.value, np.linalg.solve(np.eye(n) - m, np.ones(n)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conjugate", "modulus", "tanh"])
def test_maps_that_are_not_holomorphic(solver, kind):
    m = jnp.asarray(matrix(12, 0.8, complex))
    f = {
        "conjugate": lambda y, m: (m @ y).conj() + 1,
        "modulus": lambda y, m: m @ (y / (1 + jnp.abs(y) ** 2).astype(complex)) + 1j,
        "tanh": lambda y, m: jnp.tanh(m @ y) + 1j,
    }[kind]
    sol = solve(solver, f, jnp.zeros(12, complex), m)
    assert sol.result == optx.RESULTS.successful
    np.testing.assert_allclose(f(sol.value, m), sol.value, atol=1e-6)


def test_steps_are_those_of_the_normal_equations_with_conjugates():
    """Walker and Ni's formula, with NumPy."""
    y0, rates = np.array([1.0 + 2j, -2.0 + 1j, 0.5j]), np.array([0.3 + 0.5j, -0.8j, 0.2])
    ys = [y0]
    for _ in range(3):
        fs = [rates * y + 1 for y in ys]
        gs = [f - y for f, y in zip(fs, ys, strict=True)]
        dg, df = np.diff(gs, axis=0).T.reshape(3, -1), np.diff(fs, axis=0).T.reshape(3, -1)
        ys.append(fs[-1] - df @ np.linalg.lstsq(dg, gs[-1], rcond=None)[0])
    anderson = lux.Anderson(0.0, 0.0, regularization=0.0, max_growth=jnp.inf)
    y, f = jnp.asarray(y0), lambda y, args: (jnp.asarray(rates) * y + 1, None)
    state = anderson.init(f, y, None, {}, None, None, frozenset())
    for expected in ys[1:]:
        y, state, _ = anderson.step(f, y, None, {}, state, frozenset())
        np.testing.assert_allclose(y, expected, rtol=1e-9)


def test_real_and_complex_arrays_in_one_tree(solver):
    def f(y, args):
        first = 0.5 * jnp.sin(y["real"]) + jnp.sum(y["complex"]).imag.astype("float32") / 8
        return {"real": first + 1, "complex": 0.4j * y["complex"].conj() + first[0].astype("complex128")}

    y0 = {"real": jnp.zeros(3, "float32"), "complex": jnp.zeros((2, 2), "complex128")}
    sol = solve(solver, f, y0, tolerance=1e-5)
    assert sol.result == optx.RESULTS.successful
    assert jax.tree.map(lambda x: x.dtype.name, sol.value) == {"real": "float32", "complex": "complex128"}
    for a, b in zip(*map(jax.tree.leaves, (f(sol.value, None), sol.value)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_the_iterate_of_lowest_residual_is_kept(solver):
    for f, y0 in [
        (lambda y, args: y + 1 + y * y.conj(), jnp.array([2.0 + 1j])),
        (lambda y, args: (y[0] + 1 + y[0] ** 2, y[1] + 1j), (jnp.array([2.0]), jnp.array([0j]))),
        (lambda y, args: y + 1 + y**2, jnp.array([2.0], "float16")),
    ]:
        sol = solve(solver, f, y0, trace=40, max_steps=40)
        assert sol.result == optx.RESULTS.nonlinear_max_steps_reached
        np.testing.assert_allclose(sol.stats["residual"], np.nanmin(sol.stats["residuals"]), rtol=1e-6)
        residual = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), f(sol.value, None), sol.value)
        np.testing.assert_allclose(max(jax.tree.leaves(residual)), sol.stats["residual"], rtol=1e-2)


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize(("n", "radius"), [(4, 0.5), (40, 0.95), (1, 0.9)])
def test_every_precision_is_solved_to_its_own(solver, dtype, n, radius):
    m, b = (jnp.asarray(x, dtype) for x in (matrix(n, radius), RNG.standard_normal(n)))
    sol = solve(solver, lambda y, args: jnp.tanh(args[0] @ y) + args[1], jnp.zeros(n, dtype), (m, b), 1e-8)
    expected = np.zeros(n)
    for _ in range(500):
        expected = np.tanh(np.asarray(m, float) @ expected) + np.asarray(b, float)
    assert sol.value.dtype == dtype
    if EPS[dtype] > 1e-6 or dtype == "float64":
        assert sol.result == optx.RESULTS.successful
    error = np.abs(np.asarray(sol.value, float) - expected).max() / np.abs(expected).max()
    assert error < max(16 * EPS[dtype] / (1 - radius), 1e-6)


def test_sums_of_squares_do_not_overflow_half_precision(solver):
    y0 = jnp.zeros(3, "float16")
    sol = solve(solver, lambda y, args: 0.5 * y + jnp.array([1e4, -2e4, 5e3], "float16"), y0, tolerance=1e-2)
    assert sol.result == optx.RESULTS.successful
    np.testing.assert_allclose(np.asarray(sol.value, float), [2e4, -4e4, 1e4], rtol=1e-2)


def test_precisions_mixed_in_one_tree(solver):
    def f(y, args):
        return {
            "a": 0.25 * y["a"] + (0.25 * y["b"]).astype("bfloat16"),
            "b": 0.3 * y["b"] + 1 + y["a"][0].astype(float),
        }

    sol = solve(solver, f, {"a": jnp.zeros(2, "bfloat16"), "b": jnp.zeros(())})
    assert sol.result == optx.RESULTS.successful
    assert (sol.value["a"].dtype, sol.value["b"].dtype) == ("bfloat16", "float64")
    np.testing.assert_allclose(np.asarray(sol.value["b"]), 1 / (0.7 - 1 / 3), rtol=0.03)


# --- linear solves ------------------------------------------------------------------------------------------------

LINEAR = [
    optx.FixedPointIteration(1e-7, 1e-7),
    lux.Anderson(1e-7, 1e-7),
    lux.Broyden(1e-7, 1e-7),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("inner", LINEAR, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "complex64", "complex128"])
def test_linear_systems_of_every_kind(inner, dtype):
    kind = complex if "complex" in dtype else float
    m, b = (jnp.asarray(x, dtype) for x in (matrix(5, 0.7, kind), matrix(5, 3.0, kind)[0]))
    solver = lux.FixedPointLinearSolver(inner)
    operator = lx.FunctionLinearOperator(lambda x: m @ x - x, jax.eval_shape(lambda: b))
    eps = float(jnp.finfo(dtype).eps)
    for transposed in (False, True):
        exact = np.asarray(m, np.complex128) - np.eye(5)
        here = operator.transpose() if transposed else operator
        x, result, _ = solver.compute(solver.init(here, {}), b, {})
        assert result == lx.RESULTS.successful
        assert x.dtype == dtype
        expected = np.linalg.solve(exact.T if transposed else exact, np.asarray(b, np.complex128))
        error = np.abs(np.asarray(x, np.complex128) - expected).max() / np.abs(expected).max()
        assert error < max(30 * eps, 2e-6)


def test_linear_systems_of_mixed_trees():
    def apply(x):
        real, other = x
        return 0.2 * jnp.sum(other.real).astype("float32") - real, 0.3j * other + real[0].astype("complex128") - other

    b = (jnp.ones(2, "float32"), jnp.array([1.0 + 2j, 3.0]))
    operator = lx.FunctionLinearOperator(apply, jax.eval_shape(lambda: b))
    for inner in LINEAR:
        solver = lux.FixedPointLinearSolver(inner)
        x, result, _ = solver.compute(solver.init(operator, {}), b, {})
        assert result == lx.RESULTS.successful
        for left, right in zip(apply(x), b, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)


def test_plain_loop_in_half_precision():
    y0 = jnp.zeros(3, "float16")
    for solver in (optx.FixedPointIteration(1e-8, 1e-8, norm=optx.rms_norm), optx.Newton(1e-8, 1e-8)):
        sol = fixed_point(lambda y, a: 0.5 * y + jnp.float16(1e4), solver, y0, None, 100)
        assert sol.result == optx.RESULTS.successful
        assert sol.value.dtype == "float16"
        np.testing.assert_allclose(np.asarray(sol.value, float), 2e4, rtol=2e-3)
