"""A failed solve has a gradient of zero, and leaves that of the other samples as it is, with every adjoint."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

GOOD, FAILED = [0.9, 1.05], [-1.0, 0.1, 9.0, np.nan]
IMPLICIT = {"solver": diffrax.Kvaerno3()}
FIXED = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.05}
ADJOINTS = {
    "checkpointed": {},
    "checkpointed, implicit": IMPLICIT,
    "checkpointed, fixed steps": FIXED,
    "direct": {},
    "direct, implicit": IMPLICIT,
    "backsolve": {},
    "gauss": {},
    "gauss, implicit": IMPLICIT,
}


class Field(lux.Layer):
    """y' = w y^2 - sqrt(y): from 9 it blows up, from 0.1 it falls to zero and below, at -1 it has no value."""

    def init_params(self, key):
        return {"w": jnp.ones(())}

    def forward(self, x, ps, st):
        y, u = x if isinstance(x, tuple) else (x, 0.0)
        return ps["w"] * y**2 - jnp.sqrt(y) + u, st


def sum_of_finite(ys):
    return jnp.sum(jnp.where(jnp.isfinite(ys), ys, 0.0))


FORMS = [(name, "final") for name in ADJOINTS] + [(name, "ys") for name in ("checkpointed", "backsolve", "gauss")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "output"), FORMS)
def test_failures_stay_to_themselves(name, output):
    options = {"adjoint": name.split(",")[0], "max_steps": 64, "batching": "vmap", **ADJOINTS[name]}
    node = lux.NeuralODE(Field(), ts=[0.0, 0.5, 1.0], output=output, **options)

    @jax.jit
    def gradient(y0, weights):
        """By the parameter, and by the initial values."""

        def loss(w, y0):
            ys = node(y0[:, None], {"w": w}, {})[0]
            return sum_of_finite(jnp.moveaxis(ys, 0, -1) * weights), ys

        return jax.grad(loss, (0, 1), has_aux=True)(jnp.array(1.0), y0)

    weights = jnp.array([1.0] * len(GOOD) + [0.0] * len(FAILED))
    exact, _ = gradient(jnp.array(GOOD + [1.0] * len(FAILED)), weights)
    (by_w, by_y0), ys = gradient(jnp.array(GOOD + FAILED), jnp.ones_like(weights))
    assert not np.isnan(ys[: len(GOOD)]).any() and np.isnan(ys[len(GOOD) :]).all()
    np.testing.assert_allclose(by_w, exact[0], rtol=1e-6)
    np.testing.assert_allclose(by_y0[: len(GOOD)], exact[1][: len(GOOD)], rtol=1e-6)
    np.testing.assert_array_equal(by_y0[len(GOOD) :], 0.0)
    (by_w, by_y0), _ = gradient(jnp.array(FAILED + FAILED[:2]), jnp.ones_like(weights))  # none is left
    np.testing.assert_array_equal(by_w, 0.0)
    np.testing.assert_array_equal(by_y0, 0.0)


def kicked(t, y, ps):
    return y + 0.01 * ps["w"]


PIECES = {
    "events": {"events": [lux.Event(lambda t, y, ps: jnp.sqrt(y[0] + 10) - 3.2, kicked, max_count=4)]},
    "jumps": {"jumps": lux.Jumps(effect=kicked)},
}


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["auto", pytest.param("backsolve", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", PIECES)
def test_failures_stay_to_themselves_in_pieces(kind, adjoint):
    """What moves with the time of an event or a jump is computed for all samples."""
    options = {"output": "final", "adjoint": adjoint, "batching": "vmap", "max_steps": 64, **PIECES[kind]}
    node = lux.NeuralODE(Field(), ts=[0.0, 1.0], **options)

    @jax.jit
    @jax.grad
    def gradient(inputs, weights):
        w, y0, times = inputs
        x = (y0[:, None], {"times": times}) if kind == "jumps" else y0[:, None]
        return sum_of_finite(node(x, {"w": w}, {})[0][:, 0] * weights)

    w, times, good = jnp.array(1.0), jnp.full((6, 1), 0.25), jnp.array([1.0] * len(GOOD) + [0.0] * len(FAILED))
    exact = gradient((w, jnp.array(GOOD + [1.0] * len(FAILED)), times), good)
    got = gradient((w, jnp.array(GOOD + FAILED), times), jnp.ones_like(good))
    for a, b in zip(got, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("start", FAILED)
def test_one_failed_solve_has_a_gradient_of_zero(start):
    node = lux.NeuralODE(Field(), ts=[0.0, 1.0], output="final", max_steps=64)
    gradient = jax.grad(lambda w, y0: sum_of_finite(node(y0, {"w": w}, {})[0]), (0, 1))
    np.testing.assert_array_equal(gradient(jnp.array(1.0), jnp.array(start)), (0.0, 0.0))


@pytest.mark.slow
def test_forward_mode_of_a_failed_sample_is_zero():
    node = lux.NeuralODE(Field(), ts=[0.0, 1.0], output="final", adjoint="forward", batching="vmap", max_steps=64)
    y0 = jnp.array(GOOD + FAILED)[:, None]
    slopes = jax.jacfwd(lambda w: jax.vmap(sum_of_finite)(node(y0, {"w": w}, {})[0]))(jnp.array(1.0))
    assert (slopes[: len(GOOD)] > 0.5).all()
    np.testing.assert_array_equal(slopes[len(GOOD) :], 0.0)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", ["checkpointed", "direct"])
def test_a_control_that_is_not_finite(adjoint):
    node = lux.NeuralODE(
        Field(), ts=[0.0, 1.0], output="final", controlled=True, batching="vmap", adjoint=adjoint, max_steps=64
    )
    ts = jnp.array([0.0, 0.5, 1.0])

    @jax.jit
    def gradient(u):
        def loss(w, u):
            controls = jax.vmap(lambda u: diffrax.LinearInterpolation(ts, u))(u)
            return sum_of_finite(node((jnp.ones((3, 1)), controls), {"w": w}, {})[0])

        return jax.grad(loss, (0, 1))(jnp.array(1.0), u)

    u = jnp.zeros((3, 3, 1)).at[1].set(0.1)
    exact = gradient(u)
    for bad in (np.nan, np.inf):
        by_w, by_u = gradient(u.at[2, 1].set(bad))
        np.testing.assert_allclose(by_u[:2], exact[1][:2], rtol=1e-6)
        assert np.isfinite(by_w) and 0 < by_w < exact[0]
        np.testing.assert_array_equal(by_u[2], 0.0)


@pytest.mark.slow
def test_a_steady_state_that_is_not_reached():
    node = lux.NeuralODE(Field(), ts=[0.0, 5.0], output="final", adjoint="implicit", batching="vmap", max_steps=64)
    gradient = jax.grad(lambda w: sum_of_finite(node(jnp.array([*GOOD, -1.0, np.nan])[:, None], {"w": w}, {})[0]))
    with jax.numpy_dtype_promotion("standard"):  # diffrax multiplies times by integers
        assert np.isfinite(gradient(jnp.array(1.0)))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options", [{"adjoint": "direct"}, {"adjoint": "checkpointed", **IMPLICIT}], ids=["direct", "implicit"]
)
def test_a_rejected_step_out_of_the_domain_of_the_field(options):
    """y' = -sqrt(y) from 1, with a first step to below zero: y(t) = (1 - t / 2)^2."""
    field = lux.Lambda(lambda y: -jnp.sqrt(y))
    node = lux.NeuralODE(field, ts=[0.0, 1.9], output="final", dt0=1.9, max_steps=64, **options)
    sol = node.replace(output="solution")(jnp.array(1.0), {}, {})[0]
    assert sol.stats["num_rejected_steps"] > 0
    gradient = jax.grad(lambda y0: node(y0, {}, {})[0])(jnp.array(1.0))  # (sqrt(y0) - t / 2) / sqrt(y0)
    np.testing.assert_allclose(gradient, 0.05, rtol=1e-4)


@pytest.mark.exhaustive
def test_curvature_at_an_exact_fit():
    """Where all residuals are zero so are the cotangents, but not their derivatives: the Hessian is 2 J^T J."""
    node = lux.NeuralODE(lux.Lambda(jnp.sin), ts=[0.0, 1.0], output="final", batching="vmap", max_steps=64)
    y0 = jnp.array([[0.5], [1.0]])
    data = node(y0, {}, {})[0]
    hessian = jax.hessian(lambda y0: jnp.sum((node(y0, {}, {})[0] - data) ** 2))(y0)
    slope = jax.grad(lambda y0: node(y0, {}, {})[0].sum())(y0)
    np.testing.assert_allclose(hessian.reshape(2, 2), np.diag(2 * slope.ravel() ** 2), rtol=1e-6)


@jax.custom_vjp
def with_a_rule(x):
    return x


with_a_rule.defvjp(lambda x: (x, None), lambda _, ct: (2 * ct,))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options", [{"adjoint": "direct"}, {"adjoint": "checkpointed", **IMPLICIT}], ids=["direct", "implicit"]
)
def test_fields_with_rules_and_captured_arrays_keep_their_gradients(options):
    def value(a, scale):
        field = lux.Lambda(lambda y: with_a_rule(a) * scale + 0 * y)
        return lux.NeuralODE(field, ts=[0.0, 1.0], output="final", max_steps=64, **options)(jnp.array(1.0), {}, {})[0]

    np.testing.assert_allclose(jax.grad(value, (0, 1))(jnp.array(3.0), jnp.array(5.0)), (10.0, 3.0), rtol=1e-6)
