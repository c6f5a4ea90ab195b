"""Anderson acceleration: steps, guards, samples, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux

RATES = np.linspace(0.5, 0.99, 50)


def affine(y, rates):
    return rates * y + 1


def solve(solver, f=affine, y0=None, args=None, max_steps=2000, **options):
    y0 = jnp.zeros(50) if y0 is None else y0
    args = jnp.asarray(RATES) if args is None else args
    return optx.fixed_point(f, solver, y0, args, max_steps=max_steps, throw=False, **options)


def test_ill_conditioned_map_needs_few_steps():
    plain = solve(optx.FixedPointIteration(0.0, 1e-6))
    sol = solve(lux.Anderson(0.0, 1e-6))
    assert plain.stats["num_steps"] > 1200
    assert sol.stats["num_steps"] <= 89
    residual = np.abs(affine(sol.value, RATES) - sol.value).max()
    assert residual < 1e-6
    np.testing.assert_allclose(sol.stats["residual"], residual, rtol=1e-6)
    np.testing.assert_allclose(sol.value, 1 / (1 - RATES), rtol=1e-4)


def test_two_steps_by_hand(dtype):
    """Walker and Ni's formula, with NumPy."""
    y0, rates, damp = np.array([1.0, -2.0]), np.array([0.3, -0.8]), 0.25
    ys = [y0]
    for _ in range(3):
        fs = [rates * y + 1 for y in ys]
        gs = [f - y for f, y in zip(fs, ys, strict=True)]
        dg, df = np.diff(gs, axis=0).T.reshape(2, -1), np.diff(fs, axis=0).T.reshape(2, -1)
        weights = np.linalg.lstsq(dg, gs[-1], rcond=None)[0]
        ys.append((1 - damp) * fs[-1] + damp * ys[-1] - (df - damp * dg) @ weights)
    solver = lux.Anderson(0.0, 0.0, damp=damp, regularization=0.0, max_growth=jnp.inf, history_length=3)
    y, args = jnp.asarray(y0, dtype), jnp.asarray(rates, dtype)

    def f(y, args):
        return affine(y, args), None

    state = solver.init(f, y, args, {}, None, None, frozenset())
    step = jax.jit(lambda y, state: solver.step(f, y, args, {}, state, frozenset())[:2])
    for expected in ys[1:]:
        y, state = step(y, state)
        assert y.dtype == dtype
        np.testing.assert_allclose(y, expected, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_relative_regularization_does_not_depend_on_scale():
    steps = [
        int(solve(lux.Anderson(0.0, 1e-6 * scale), lambda y, r, s=scale: r * y + s).stats["num_steps"])
        for scale in (1.0, 2.0**-20)
    ]
    assert abs(steps[0] - steps[1]) <= 2


def test_steps_that_grow_are_halved():
    def f(y, args):
        return jnp.where(y > 2, 1e4 * y, jnp.tanh(3 * y) + 0.1)  # far away it blows up

    def run(growth):
        solver = lux.Anderson(0.0, 1e-10, max_growth=growth, history_length=2)
        return solve(solver, f, jnp.array([0.05]), max_steps=60)

    guarded = run(2.0)
    assert guarded.result == optx.RESULTS.successful
    np.testing.assert_allclose(f(guarded.value, None), guarded.value, atol=1e-9)


def test_numbers_that_are_not_finite_are_stepped_back_from():
    def f(y, args):
        return jnp.where(y > 1.4, jnp.nan, 1.5 - 0.1 * y)  # the first plain step lands in the NaNs

    sol = solve(lux.Anderson(0.0, 1e-8), f, jnp.array([0.0]), max_steps=60)
    assert sol.result == optx.RESULTS.successful
    np.testing.assert_allclose(sol.value, 1.5 / 1.1, rtol=1e-7)


def test_start_that_is_not_finite_ends_at_once():
    sol = solve(lux.Anderson(0.0, 1e-6), lambda y, args: y * jnp.nan, jnp.ones(3), max_steps=None)
    assert sol.result == optx.RESULTS.nonfinite
    assert sol.stats["num_steps"] <= 2


def test_no_fixed_point_ends_with_the_lowest_residual():
    sol = solve(lux.Anderson(0.0, 1e-6, trace=40), lambda y, args: y + 1 + y**2, jnp.array([2.0]), max_steps=40)
    assert sol.result == optx.RESULTS.nonlinear_max_steps_reached
    residual = np.abs(1 + np.asarray(sol.value) ** 2).max()
    np.testing.assert_allclose(sol.stats["residual"], residual, rtol=1e-6)
    np.testing.assert_allclose(residual, np.nanmin(sol.stats["residuals"]), rtol=1e-12)
    assert not sol.stats["converged"]


def test_trace_of_residuals():
    sol = solve(lux.Anderson(0.0, 1e-6, trace=5))
    assert sol.stats["residuals"].shape == (5,)
    np.testing.assert_allclose(sol.stats["residuals"][0], 1.0)
    short = solve(lux.Anderson(0.0, 0.9, trace=5), args=0.1 * jnp.ones(50))
    assert np.isnan(short.stats["residuals"][-1])


def test_samples_have_weights_and_convergence_of_their_own():
    rates = jnp.stack([0.1 * jnp.ones(50), 0.9 * jnp.asarray(RATES), jnp.full(50, 3.0)])
    f = lambda y, r: jnp.where(r > 2, jnp.nan, affine(y, r))  # noqa: E731  the last one is broken
    solver = lux.Anderson(0.0, 1e-6, per_sample=True, trace=3)
    sol = solve(solver, f, jnp.zeros((3, 50)), rates)
    assert sol.result == optx.RESULTS.nonfinite
    np.testing.assert_array_equal(sol.stats["converged"], [True, True, False])
    assert sol.stats["residuals"].shape == (3, 3)
    for i in range(2):
        alone = solve(solver, f, jnp.zeros((1, 50)), rates[i : i + 1])
        np.testing.assert_allclose(sol.value[i], alone.value[0], rtol=1e-12)
    with pytest.raises(ValueError, match="samples along the first axis"):
        solve(solver, lambda y, args: y, (jnp.zeros(3), jnp.zeros(4)))


def test_vmapped_batch_leaves_the_others_as_they_are():
    together = jax.jit(
        jax.vmap(lambda r: (lambda sol: (sol.value, sol.result))(solve(lux.Anderson(0.0, 1e-6), args=r)))
    )
    rates = jnp.asarray(RATES)
    values, results = together(jnp.stack([rates, jnp.nan * rates]))
    np.testing.assert_array_equal(values[0], together(jnp.stack([rates, 0.5 * rates]))[0][0])
    np.testing.assert_allclose(values[0], 1 / (1 - RATES), rtol=1e-4)
    assert (results == optx.RESULTS.successful).tolist() == [True, False]


def test_trees_of_mixed_precision_keep_it():
    y0 = {"a": jnp.zeros((2, 3), "float32"), "b": jnp.zeros((), "float64")}
    f = lambda y, args: {"a": 0.5 * y["a"] + 1, "b": 0.25 * y["b"] + 3}  # noqa: E731
    sol = solve(lux.Anderson(0.0, 1e-5), f, y0, args=())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), sol.value) == {
        "a": ((2, 3), "float32"),
        "b": ((), "float64"),
    }
    np.testing.assert_allclose(sol.value["b"], 4.0, rtol=1e-4)


def test_derivatives_pass_through_the_iteration():
    """Sixteen steps, written out: the solver is differentiable as it stands, without NaNs from its guards."""
    rates, solver = jnp.asarray(RATES)[:4] - 0.3, lux.Anderson(0.0, 1e-12, history_length=3)

    def value(rates):
        f = lambda y, args: (affine(y, rates), None)  # noqa: E731
        y = jnp.zeros(4)
        state = solver.init(f, y, None, {}, None, None, frozenset())
        (y, state), _ = jax.lax.scan(
            lambda carry, _: (solver.step(f, carry[0], None, {}, carry[1], frozenset())[:2], None),
            (y, state),
            length=16,
        )
        return jnp.sum(solver.postprocess(f, y, None, None, {}, state, frozenset(), None)[0] ** 2)

    np.testing.assert_allclose(jax.grad(value)(rates), 2 / (1 - rates) ** 3, rtol=1e-6)


@pytest.mark.parametrize("options", [{"history_length": 0}, {"damp": 1.0}, {"regularization": -1.0}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lux.Anderson(1e-3, 1e-3, **options)
