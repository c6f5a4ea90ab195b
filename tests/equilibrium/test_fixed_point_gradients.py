"""Gradients of fixed points: linear solves, the checked implicit adjoint, phantom gradients."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
W = RNG.standard_normal((5, 5))
W = 0.7 * W / np.linalg.norm(W, 2)
X = RNG.standard_normal((4, 5))
TIGHT = optx.FixedPointIteration(1e-12, 1e-12)


def cell(z, args):
    w, x = args
    return jnp.tanh(z @ w + x)


def solution(args, adjoint, solver=TIGHT, max_steps=300, dtype=None):
    z0 = jnp.zeros(args[1].shape, args[1].dtype)
    return optx.fixed_point(cell, solver, z0, args, adjoint=adjoint, max_steps=max_steps, throw=False).value


def loss(args, adjoint, **options):
    return jnp.sum(solution(args, adjoint, **options) ** 3)


def closed_form(w=W, x=X):
    """dL/dW and dL/dX from the Jacobian of each sample, with NumPy."""
    z = np.zeros_like(x)
    for _ in range(400):
        z = np.tanh(z @ w + x)
    dw, dx = np.zeros_like(w), np.zeros_like(x)
    for i, row in enumerate(z):
        slope = 1 - row**2
        jacobian = slope[:, None] * w.T  # d f_a / d z_b
        adjoint = np.linalg.solve((np.eye(5) - jacobian).T, 3 * row**2)
        dx[i] = adjoint * slope
        dw += np.outer(row, adjoint * slope)
    return dw, dx


def require_close(got, expected, rtol):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


# --- linear solves ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [optx.FixedPointIteration(1e-12, 1e-12), lux.Anderson(1e-12, 1e-12), lux.Broyden(1e-12, 1e-12)]
)
def test_fixed_point_linear_solver_solves_both_signs_and_transposes(solver):
    eye, b = np.eye(5), RNG.standard_normal(5)
    for sign in (-1.0, 1.0):
        linear = lux.FixedPointLinearSolver(solver, relaxation=sign)
        operator = lx.MatrixLinearOperator(jnp.asarray(sign * (eye - W)))
        x = lx.linear_solve(operator, b, linear).value
        np.testing.assert_allclose(x, np.linalg.solve(sign * (eye - W), b), rtol=1e-9)
    state, _ = linear.transpose(linear.init(operator, {}), {})
    x, result, stats = linear.compute(state, jnp.asarray(b), {})
    assert result == lx.RESULTS.successful
    assert 0 < stats["num_steps"] < 100
    np.testing.assert_allclose(x, np.linalg.solve((eye - W).T, b), rtol=1e-9)


def test_linear_solve_is_relative_to_its_right_hand_side():
    operator = lx.MatrixLinearOperator(jnp.asarray(W - np.eye(5)))
    linear, b = lux.FixedPointLinearSolver(optx.FixedPointIteration(1e-8, 1e-8)), RNG.standard_normal(5)
    small, large = (lx.linear_solve(operator, scale * b, linear).value / scale for scale in (1e-12, 1e12))
    np.testing.assert_allclose(small, large, rtol=1e-12)
    np.testing.assert_array_equal(lx.linear_solve(operator, jnp.zeros(5), linear).value, np.zeros(5))


def test_failed_linear_solve_says_so():
    linear = lux.FixedPointLinearSolver(optx.FixedPointIteration(1e-8, 1e-8), max_steps=20)
    operator = lx.MatrixLinearOperator(-jnp.eye(3) + 2 * jnp.ones((3, 3)))  # J = 2 everywhere: expands
    sol = lx.linear_solve(operator, jnp.ones(3), linear, throw=False)
    assert sol.result != lx.RESULTS.successful


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint",
    [
        lux.CheckedImplicitAdjoint(),
        lux.CheckedImplicitAdjoint(lx.LU()),
        lux.CheckedImplicitAdjoint(lx.GMRES(1e-12, 1e-12)),
        optx.ImplicitAdjoint(lux.FixedPointLinearSolver(lux.Anderson(1e-12, 1e-12))),
        optx.RecursiveCheckpointAdjoint(),
        lux.PhantomAdjoint(100),
    ],
    ids=["auto", "dense", "GMRES", "optimistix", "unrolled", "many phantom steps"],
)
def test_gradients_are_those_of_the_closed_form(adjoint):
    got = jax.grad(loss)((jnp.asarray(W), jnp.asarray(X)), adjoint)
    require_close(got, closed_form(), 1e-9)


def test_default_with_anderson_and_float32():
    args = (jnp.asarray(W, "float32"), jnp.asarray(X, "float32"))
    got = jax.grad(loss)(args, lux.CheckedImplicitAdjoint(), solver=lux.Anderson(1e-6, 1e-6))
    assert {leaf.dtype.name for leaf in got} == {"float32"}
    require_close(got, closed_form(), 1e-4)


def test_forward_mode_and_second_order():
    args = (jnp.asarray(W), jnp.asarray(X))
    v = tuple(jnp.asarray(RNG.standard_normal(a.shape)) for a in args)
    h = 1e-5
    up, down = (tuple(a + s * h * b for a, b in zip(args, v, strict=True)) for s in (1, -1))
    f = lambda args: loss(args, lux.CheckedImplicitAdjoint())  # noqa: E731
    gradient = jax.jit(jax.grad(f))
    g, second = jax.jit(lambda args: jax.jvp(jax.grad(f), (args,), (v,)))(args)
    slope = jax.jvp(f, (args,), (v,))[1]
    np.testing.assert_allclose(slope, sum(np.sum(a * b) for a, b in zip(g, v, strict=True)), rtol=1e-9)
    np.testing.assert_allclose(slope, (f(up) - f(down)) / (2 * h), rtol=1e-7)
    differences = [(a - b) / (2 * h) for a, b in zip(gradient(up), gradient(down), strict=True)]
    require_close(second, differences, 1e-6)


def test_phantom_gradients_are_the_damped_series():
    """(1 - (1 - tau + tau a)^k) / (1 - a) for z = a z + x, by hand."""
    a, x = 0.5, jnp.array(1.0)

    def z(x, steps, damping):
        adjoint = lux.PhantomAdjoint(steps, damping)
        return optx.fixed_point(lambda z, x: a * z + x, TIGHT, jnp.array(0.0), x, adjoint=adjoint).value

    for steps, damping in [(1, 1.0), (2, 1.0), (5, 0.5)]:
        expected = (1 - (1 - damping + damping * a) ** steps) / (1 - a)
        np.testing.assert_allclose(jax.grad(z)(x, steps, damping), expected, rtol=1e-12)
    np.testing.assert_allclose(z(x, 3, 0.5), 2.0, rtol=1e-11)  # the value is the solution's
    with pytest.raises(ValueError, match="steps >= 1 and damping"):
        lux.PhantomAdjoint(0)


# --- failures -----------------------------------------------------------------------------------------------------


def scalar(a, steps, on_failure="flag", **options):
    adjoint = lux.CheckedImplicitAdjoint(on_failure=on_failure, **options)
    solver, f = optx.FixedPointIteration(1e-6, 1e-6), lambda y, a: a * y + 1
    return optx.fixed_point(f, solver, jnp.array(0.0), a, max_steps=steps, throw=False, adjoint=adjoint).value


def test_unconverged_solves_have_no_gradient():
    a = jnp.array(0.9)
    np.testing.assert_allclose(jax.grad(scalar)(a, 300), 100.0, rtol=1e-3)
    assert np.isnan(jax.grad(scalar)(a, 5))  # optimistix.ImplicitAdjoint: 40.95
    assert np.isnan(jax.jvp(lambda a: scalar(a, 5), (a,), (a,))[1])
    assert np.isnan(jax.grad(scalar)(a, 95, "nan"))  # five times the tolerance: inexact, not wrong
    np.testing.assert_allclose(jax.grad(scalar)(a, 95), 100.0, rtol=1e-2)
    with pytest.raises(Exception, match="has not converged"):
        jax.block_until_ready(jax.jit(jax.grad(scalar), static_argnums=(1, 2))(a, 5, "raise"))
    with pytest.raises(ValueError, match='"flag", "nan" or "raise"'):
        lux.CheckedImplicitAdjoint(on_failure="ignore")


def test_unconverged_backward_solves_have_no_gradient():
    linear = lux.FixedPointLinearSolver(optx.FixedPointIteration(1e-6, 1e-6), max_steps=5)
    a = jnp.array(0.9)
    assert np.isnan(jax.grad(scalar)(a, 300, linear_solver=linear))
    with pytest.raises(Exception, match="linear solve for the gradient has not converged"):
        jax.block_until_ready(jax.grad(scalar)(a, 300, "raise", linear_solver=linear))


def test_vmapped_batch_leaves_the_others_as_they_are():
    rates = jnp.array([0.5, 1.5, 0.8, jnp.nan])
    got = jax.jit(jax.vmap(jax.grad(lambda a: scalar(a, 200))))(rates)
    np.testing.assert_allclose(got[jnp.array([0, 2])], [4.0, 25.0], rtol=1e-3)
    assert np.isnan(got[jnp.array([1, 3])]).all()
    alone = jax.grad(lambda a: scalar(a, 200))(rates[2])
    np.testing.assert_allclose(got[2], alone, rtol=1e-12)


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_steps():
    args = (jnp.asarray(W), jnp.asarray(X))

    def bytes_of(steps):
        f = jax.jit(jax.grad(lambda args: loss(args, lux.CheckedImplicitAdjoint(), max_steps=steps)))
        return f.lower(args).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(1000) == bytes_of(10)
