"""Broyden's method: the compact form, the window, the line search."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((6, 6)) / 4
SHIFT = RNG.standard_normal(6)


def f(y, args):
    return jnp.tanh(y @ MATRIX) + SHIFT


def solve(solver, f=f, y0=None, max_steps=200, **options):
    return optx.fixed_point(f, solver, jnp.zeros(6) if y0 is None else y0, max_steps=max_steps, throw=False, **options)


def test_iterates_are_those_of_the_rank_one_updates():
    """Sherman-Morrison updates of the inverse, with NumPy."""
    inverse, y = -np.eye(6), np.zeros(6)
    residual = lambda y: np.tanh(y @ MATRIX) + SHIFT - y  # noqa: E731
    expected, g = [], residual(y)
    for _ in range(5):
        dy = -inverse @ g
        y, g, old = y + dy, residual(y + dy), g
        expected.append(y)
        change = inverse @ (g - old)
        inverse = inverse + np.outer(dy - change, dy @ inverse) / (dy @ change)
    solver = lux.Broyden(0.0, 0.0, max_growth=jnp.inf)
    with_aux = lambda y, args: (f(y, args), None)  # noqa: E731
    y = jnp.zeros(6)
    state = solver.init(with_aux, y, None, {}, None, None, frozenset())
    step = jax.jit(lambda y, state: solver.step(with_aux, y, None, {}, state, frozenset())[:2])
    for reference in expected:
        y, state = step(y, state)
        np.testing.assert_allclose(y, reference, rtol=1e-9)


@pytest.mark.parametrize("history", [1, 3, 10])
def test_short_memories_converge_too(history):
    sol = solve(lux.Broyden(0.0, 1e-10, history_length=history))
    assert sol.result == optx.RESULTS.successful
    np.testing.assert_allclose(f(sol.value, None), sol.value, atol=1e-10)


def test_maps_that_do_not_contract():
    expanding = lambda y, args: 3 * y - jnp.cos(y)  # noqa: E731
    assert solve(optx.FixedPointIteration(0.0, 1e-8), expanding).result != optx.RESULTS.successful
    sol = solve(lux.Broyden(0.0, 1e-8), expanding)
    np.testing.assert_allclose(2 * sol.value, np.cos(sol.value), atol=1e-7)


def test_line_search_helps_where_full_steps_diverge():
    """arctan: Newton's and Broyden's full steps from 2 overshoot, farther each time."""
    far = lambda y, args: y - 5 * jnp.arctan(y)  # noqa: E731
    y0 = jnp.array([2.0])
    sol = solve(lux.Broyden(0.0, 1e-8, max_growth=1.0, trace=30), far, y0)
    assert sol.result == optx.RESULTS.successful
    np.testing.assert_allclose(sol.value, 0.0, atol=1e-8)


def test_float32_and_samples():
    y0 = jnp.zeros((2, 6), "float32")
    g = lambda y, args: jnp.tanh(y @ jnp.asarray(MATRIX, "float32")) + jnp.asarray(SHIFT, "float32")  # noqa: E731
    sol = solve(lux.Broyden(1e-5, 1e-5, per_sample=True), g, y0)
    assert sol.value.dtype == "float32"
    np.testing.assert_array_equal(sol.value[0], sol.value[1])
    np.testing.assert_allclose(g(sol.value, None), sol.value, atol=1e-4)


def test_implicit_gradient():
    def loss(shift):
        g = lambda y, shift: jnp.tanh(y @ MATRIX) + shift  # noqa: E731
        adjoint = lux.CheckedImplicitAdjoint()
        sol = optx.fixed_point(g, lux.Broyden(0.0, 1e-12), jnp.zeros(6), shift, adjoint=adjoint)
        return jnp.sum(sol.value**3)

    shift, v = jnp.asarray(SHIFT), jnp.asarray(RNG.standard_normal(6))
    slope = (loss(shift + 1e-5 * v) - loss(shift - 1e-5 * v)) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(shift) @ v, slope, rtol=1e-7)


def test_options_out_of_range():
    with pytest.raises(ValueError, match="history_length of one or more"):
        lux.Broyden(1e-3, 1e-3, history_length=0)
