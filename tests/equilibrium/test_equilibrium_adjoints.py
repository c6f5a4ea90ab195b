"""Gradients of fixed points: every precision, complex numbers, and equations that are nearly singular."""

import diffrax
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml.equilibrium.tolerances import Tolerances

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


class Linear(lux.Layer):
    """z' = z A + x."""

    n: int

    def init_params(self, key):
        return {"A": jnp.zeros((self.n, self.n))}

    def forward(self, x, ps, st):
        z, x = x
        return z @ ps["A"] + x, st


def linear(n, **options):
    model = lux.DeepEquilibrium(Linear(n), **options)
    st = lux.setup(jax.random.key(0), model, "float32")[1]

    def loss(a, x):
        z, after = model(x, {"cell": {"A": a}}, st)
        return jnp.sum(z**2), after["stats"]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def exact(a, x):
    """The gradient of |z|^2 by A, where z = z A + x."""
    a, x = np.asarray(a, float), np.asarray(x, float)
    inverse = np.linalg.inv(np.eye(len(a)) - a)
    z = x @ inverse
    return z.T @ (2 * z @ inverse.T)


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("n", [4, 40])
def test_gradients_in_half_precision_are_those_of_single(dtype, n):
    """Dense for 4 unknowns, iterated for 40."""
    w, b = (RNG.standard_normal(shape) / np.sqrt(n) for shape in ((n, n), n))
    results = []
    for kind in (dtype, "float32"):
        args = tuple(jnp.asarray(jnp.asarray(x, dtype), kind) for x in (0.3 * w, b))

        def value(args, kind=kind):
            f = lambda y, args: jnp.tanh(y @ args[0] + args[1])  # noqa: E731
            adjoint = lux.CheckedImplicitAdjoint()
            sol = optx.fixed_point(f, lux.Anderson(1e-2, 1e-2), jnp.zeros(n, kind), args, adjoint=adjoint, throw=False)
            return jnp.sum(sol.value.astype("float32") ** 2)

        results.append(jax.jit(jax.grad(value))(args))
        assert all(leaf.dtype == kind for leaf in results[-1])
    for got, expected in zip(*results, strict=True):
        error = np.abs(np.asarray(got, float) - np.asarray(expected, float)).max()
        assert error < 0.05 * np.abs(np.asarray(expected)).max()


@pytest.mark.slow
@pytest.mark.parametrize("solver", [lx.LU(), lx.QR(), lx.SVD(), lx.GMRES(1e-3, 1e-3)], ids=lambda s: type(s).__name__)
def test_linear_solvers_of_others_get_single_precision(solver):
    def value(a):
        adjoint = lux.CheckedImplicitAdjoint(solver)
        f = lambda y, a: a * y + jnp.array([1.0, 2.0], a.dtype)  # noqa: E731
        sol = optx.fixed_point(f, lux.Anderson(1e-2, 1e-2), jnp.zeros(2, a.dtype), a, adjoint=adjoint, throw=False)
        return jnp.sum(sol.value)

    np.testing.assert_allclose(float(jax.grad(value)(jnp.bfloat16(0.5))), 12.0, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 40])
def test_layers_in_half_precision_are_solved_in_single(n):
    a, x = (RNG.standard_normal(shape) / np.sqrt(n) for shape in ((n, n), (2, n)))

    class Tanh(Linear):
        def forward(self, x, ps, st):
            z, x = x
            return jnp.tanh(z @ ps["A"] + x), st

    model = lux.DeepEquilibrium(Tanh(n))  # with its default tolerances
    results = {}
    for dtype in ("bfloat16", "float16", "float32"):
        _, st = lux.setup(jax.random.key(0), model, dtype)
        args = [jnp.asarray(jnp.asarray(v, "bfloat16"), dtype) for v in (0.5 * a, x)]

        def loss(a, x, st=st):
            z, st = model(x, {"cell": {"A": a}}, st)
            return jnp.sum(z.astype("float32") ** 2), (z, st["stats"])

        g, (z, stats) = jax.jit(jax.grad(loss, has_aux=True))(*args)
        assert z.dtype == g.dtype == dtype
        assert stats["converged"]
        results[dtype] = np.asarray(z, float), np.asarray(g, float)
    for dtype, eps in {"bfloat16": 2**-8, "float16": 2**-11}.items():
        for got, expected in zip(results[dtype], results["float32"], strict=True):
            np.testing.assert_allclose(got, expected, rtol=2 * eps, atol=2 * eps * np.abs(expected).max())


# --- complex numbers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("n", [3, 24])
@pytest.mark.parametrize("holomorphic", [True, False])
def test_gradients_of_complex_fixed_points(n, holomorphic):
    m = RNG.standard_normal((n, n)) + 1j * RNG.standard_normal((n, n))
    m = 0.5 * m / np.linalg.norm(m, 2)

    class Cell(lux.Layer):
        def init_params(self, key):
            return {"angle": jnp.zeros(n), "size": jnp.ones(n)}

        def forward(self, x, ps, st):
            z, x = x
            u = jnp.asarray(m) @ z
            u = jnp.tanh(u) if holomorphic else 0.7 * u.conj() + 0.2 * z.real.astype(complex)
            return u * lax_polar(ps["size"], ps["angle"]) + x, st

    def lax_polar(size, angle):
        return jax.lax.complex(size * jnp.cos(angle), size * jnp.sin(angle))

    model = lux.DeepEquilibrium(Cell(), rtol=1e-12, atol=1e-12, max_steps=400)
    ps, st = lux.setup(jax.random.key(0), model, "float64")
    x = jnp.asarray(RNG.standard_normal(n) + 1j * RNG.standard_normal(n))

    @jax.jit
    def loss(ps, x):
        z, after = model(x, ps, st)
        return jnp.sum(jnp.abs(z) ** 2 + z.real**3), after["stats"]["converged"]

    assert loss(ps, x)[1]
    (g, gx), v = jax.grad(lambda *a: loss(*a)[0], (0, 1))(ps, x), RNG.standard_normal(ps.size)
    shift = 1e-5 * lux.ComponentVector(v, ps.layout)
    slope = (loss(ps + shift, x)[0] - loss(ps - shift, x)[0]) / 2e-5
    np.testing.assert_allclose(g.data @ v, slope, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(lambda ps: loss(ps, x)[0], (ps,), (shift / 1e-5,))[1], slope, rtol=1e-6)
    v = RNG.standard_normal(n) + 1j * RNG.standard_normal(n)
    slope = (loss(ps, x + 1e-5 * v)[0] - loss(ps, x - 1e-5 * v)[0]) / 2e-5
    np.testing.assert_allclose(np.sum(np.asarray(gx) * v).real, slope, rtol=1e-6)  # JAX's gradients are conjugate


@pytest.mark.slow
def test_complex_roots_by_the_solvers_of_others():
    square = lux.Lambda(lambda u: u[0].conj() ** 2 - u[1])
    for solver in (None, optx.LevenbergMarquardt(1e-10, 1e-10)):
        tight = {"rtol": 1e-10, "atol": 1e-10} if solver is None else {}
        layer = lux.SteadyState(square, with_input=True, solver=solver, **tight)
        x = jnp.array([3.0 + 4j])
        u, _ = layer((jnp.array([1.0 - 0.5j]), x), {}, {})
        np.testing.assert_allclose(u, [2.0 - 1j], rtol=1e-8)
        g = jax.grad(lambda x: layer((jnp.array([1.0 - 0.5j]), x), {}, {})[0][0].real)(x)  # noqa: B023
        du = 1 / (2 * u[0].conj())  # the conjugate of du by dx
        np.testing.assert_allclose(np.sum(np.asarray(g) * 1j).real, (1j * du).conj().real, rtol=1e-6)


# --- nearly singular ----------------------------------------------------------------------------------------------


def rotation(n, seed):
    """An orthogonal matrix of odd size with the eigenvalue one: I - A is singular, up to rounding."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    q[:, 0] *= np.sign(np.linalg.det(q))
    return jnp.asarray(q, "float32"), jnp.asarray(rng.standard_normal((1, n)), "float32")


SOLVERS = {
    "Anderson": {},
    "loose": {"rtol": 1e-2, "atol": 1e-2},
    "Broyden": {"solver": lux.Broyden(1e-5, 1e-5)},
    "plain": {"solver": optx.FixedPointIteration(1e-2, 1e-2)},
    "Newton": {"solver": optx.Newton(1e-5, 1e-5)},
    "pseudo-transient": {"solver": diffrax.Tsit5()},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_no_fixed_point_is_found_far_away(name):
    run = linear(3, max_steps=400, **SOLVERS[name])
    for seed in range(8):
        (_, stats), g = run(*rotation(3, seed))
        assert not stats["converged"]
        assert np.isnan(g).any()


def test_no_fixed_point_of_many_unknowns():
    run = linear(33, max_steps=400)
    for seed in range(3):
        (_, stats), g = run(*rotation(33, seed))
        assert not stats["converged"]
        assert np.isnan(g).any()


@pytest.mark.slow
def test_samples_without_a_fixed_point_leave_the_others():
    for batching in ("joint", "vmap"):
        model = lux.DeepEquilibrium(lux.Lambda(lambda zx: zx[1][..., :1] * zx[0] + 1), shape=1, batching=batching)
        model = model.replace(batch_shape=2)
        ps, st = lux.setup(jax.random.key(0), model)

        def loss(x, model=model, ps=ps, st=st):
            z, st = model(x, ps, st)
            return jnp.sum(z), st["stats"]

        g, stats = jax.grad(loss, has_aux=True)(jnp.array([[0.5], [1.0]]))
        assert np.isnan(g[1])
        if batching == "vmap":
            np.testing.assert_array_equal(stats["converged"], [True, False])
            np.testing.assert_allclose(g[0], 4.0, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-8])
def test_gradients_near_a_singular_equation_are_right_or_nan(gap):
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    for dtype in ("float32", "float64"):
        a = jnp.asarray(q @ np.diag([1 - gap, 0.5, -0.9]) @ q.T, dtype)
        x = jnp.asarray(rng.standard_normal((1, 3)), dtype)
        for options in ({}, SOLVERS["Broyden"], SOLVERS["Newton"]):
            (_, stats), g = linear(3, max_steps=400, **options)(a, x)
            expected = exact(a, x)
            good = np.abs(np.asarray(g) - expected).max() < 0.1 * np.abs(expected).max()
            assert good or (np.isnan(g).all() and not (dtype == "float64" and stats["converged"]))
            assert good or gap * float(jnp.finfo(dtype).eps) ** -0.5 < 1  # where it can be had, it is had


def test_forward_mode_sees_it_too():
    run = linear(3, max_steps=400)
    a, x = rotation(3, 0)
    loss = lambda a: run(a, x)[0][0]  # noqa: E731
    _, slope = jax.jvp(loss, (a,), (jnp.ones((3, 3), "float32"),))
    assert np.isnan(slope)
    _, slope = jax.jvp(loss, (0.5 * a,), (jnp.ones((3, 3), "float32"),))
    np.testing.assert_allclose(slope, exact(0.5 * a, x).sum(), rtol=1e-4)


@pytest.mark.slow
def test_steady_states_of_equations_that_never_rest_are_nan():
    drift = lux.Lambda(lambda u: 1.0 + 0.0 * u)
    for solver in (None, diffrax.Tsit5(), diffrax.Kvaerno5()):
        layer = lux.SteadyState(drift, solver=solver, max_steps=1000)
        assert np.isnan(layer(jnp.zeros(2), {}, {})[0]).all()


def test_slow_equations_have_gradients():
    """Rates of 1e-7 are no sign of a singular equation."""
    layer = lux.SteadyState(lux.Lambda(lambda u: 1e-7 * (u[1] - u[0] ** 3)), with_input=True, atol=1e-12)
    x = jnp.array([8.0, 27.0], "float32")
    u, pull = jax.vjp(lambda x: layer((jnp.ones(2, "float32"), x), {}, {})[0], x)
    np.testing.assert_allclose(u, [2.0, 3.0], rtol=1e-4)
    np.testing.assert_allclose(pull(jnp.ones(2, "float32"))[0], [1 / 12, 1 / 27], rtol=1e-3)


def test_check_of_the_backward_solve_sees_it():
    run = linear(33, check_backward=True, max_steps=50)
    a, x = rotation(33, 0)
    assert run(a, x)[0][1]["backward_residual"] > 1
    assert run(0.5 * a, x)[0][1]["backward_residual"] <= 1


def test_solvers_without_tolerances_are_named():
    with pytest.raises(ValueError, match="the solver Dopri5 has no tolerances `rtol` and `atol`"):
        Tolerances.of(diffrax.Dopri5())
