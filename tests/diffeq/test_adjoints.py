"""Which derivative goes with which adjoint: each pairing is exact, or one sentence.

The equation y' = a b y, y(0) = 4, with a = 2, b = 3 has y(t) = 4 exp(6 t); derivatives of y(1/2) are known.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

A, B, T = 2.0, 3.0, 0.5
Y = 4 * np.exp(A * B * T)
GRADIENT = Y * T * np.array([B, A])
HESSIAN = Y * np.array([[(T * B) ** 2, T + T**2 * A * B], [T + T**2 * A * B, (T * A) ** 2]])
PS = {"a": A, "b": B}


class Growth(lux.Layer):
    def init_params(self, key):
        return {"a": jnp.ones(()), "b": jnp.ones(())}

    def forward(self, y, ps, st):
        return ps["a"] * ps["b"] * y, st


def final(adjoint, output="final"):
    """y(1/2) as a function of the parameters."""
    node = lux.NeuralODE(
        Growth(),
        ts=[0.0, T],
        output=output,
        adjoint=adjoint,
        stepsize_controller=diffrax.ConstantStepSize(),
        dt0=T / 60,
        max_steps=64,
    )
    return lambda ps: node(jnp.array(4.0), ps, {})[0].reshape(-1)[-1]


USES = {
    "grad": (lambda f, ps: jax.grad(f)(ps).data, GRADIENT),
    "reverse": (lambda f, ps: lux.jacobian(f, mode="reverse")(ps).data, GRADIENT),
    "forward": (lambda f, ps: lux.jacobian(f, mode="forward")(ps).data, GRADIENT),
    "hessian": (lambda f, ps: lux.hessian(f)(ps).data, HESSIAN),
}
WORKS = {
    "auto": ("grad", "reverse", "forward", "hessian"),
    "checkpointed": ("grad", "reverse", "hessian"),
    "direct": ("grad", "reverse", "forward", "hessian"),
    "backsolve": ("grad", "reverse"),
    "gauss": ("grad", "reverse"),
    "forward": ("forward",),
}


@pytest.mark.parametrize(("adjoint", "use"), [(adjoint, use) for adjoint, uses in WORKS.items() for use in uses])
def test_pairings_that_work_are_exact(adjoint, use):
    derivative, exact = USES[use]
    got = np.asarray(derivative(final(adjoint), lux.ComponentVector(PS)))
    np.testing.assert_allclose(got.reshape(exact.shape), exact, rtol=1e-7)


@pytest.mark.parametrize(
    ("adjoint", "use"),
    [
        ("checkpointed", "forward"),
        ("backsolve", "forward"),
        ("backsolve", "hessian"),
        ("gauss", "forward"),
        ("gauss", "hessian"),
        ("forward", "reverse"),
        ("forward", "hessian"),
    ],
)
def test_other_pairings_are_one_sentence(adjoint, use):
    with pytest.raises(TypeError, match="adjoint='auto'"):
        USES[use][0](final(adjoint, "ys"), lux.ComponentVector(PS))


def test_hessian_of_saved_values_by_the_checkpointed_adjoint():
    got = lux.hessian(final("checkpointed", "ys"))(lux.ComponentVector(PS)).data
    np.testing.assert_allclose(got, HESSIAN, rtol=1e-7)


@pytest.mark.parametrize("adjoint", ["checkpointed", "direct", "backsolve", "gauss"])
def test_single_precision_stays_single_where_double_is_the_default(adjoint):
    node = lux.NeuralODE(NET, ts=[0.0, 1.0], adjoint=adjoint, output="final", max_steps=64)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float32)
    gradient = jax.grad(lambda ps: jnp.sum(node(jnp.asarray(Y0, jnp.float32), ps, st)[0]))
    single, double = gradient(ps), jax.grad(lambda ps: jnp.sum(node(jnp.asarray(Y0), ps, st)[0]))(ps.astype(float))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single.data, double.data, rtol=1e-4, atol=1e-5)


def test_derivative_by_the_final_time():
    node = lux.NeuralODE(Growth(), output="final", max_steps=64, rtol=1e-9, atol=1e-9)
    ps = lux.ComponentVector(PS)
    slope = jax.grad(lambda t1: node((jnp.array(4.0), jnp.stack([jnp.zeros(()), t1])), ps, {})[0])(jnp.array(T))
    np.testing.assert_allclose(slope, A * B * Y, rtol=1e-6)


def test_objects_of_diffrax_are_taken_as_they_are():
    adjoint = diffrax.RecursiveCheckpointAdjoint(checkpoints=4)
    assert lux.NeuralODE(Growth(), adjoint=adjoint).chosen_adjoint() is adjoint
    assert lux.NeuralODE(Growth(), max_steps=None).chosen_adjoint().checkpoints == 64


NET = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2))
Y0 = np.array([[1.0, -0.5], [0.3, 0.7], [-1.2, 0.4]])


def net_gradients(adjoint, ts, **options):
    """Gradients of a sum over all saved values, by parameters and initial values."""
    node = lux.NeuralODE(NET, adjoint=adjoint, output="ys", **options)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
    return jax.grad(lambda ps, y0: jnp.sum(jnp.sin(node((y0, ts), ps, st)[0])), (0, 1))(2 * ps, jnp.asarray(Y0))


@pytest.mark.parametrize("batching", ["joint", "vmap"])
def test_gauss_agrees_with_the_discrete_gradient(batching):
    ts = np.array([[0.5, 0.4, -1.0], [0.0, 0.1, 1.0], [0.0, 0.7, 2.0]])  # backward and forward, not uniform
    ts = ts if batching == "vmap" else ts[0]
    tight = {"rtol": 1e-10, "atol": 1e-12, "batching": batching}
    gauss, checkpointed = (net_gradients(adjoint, ts, **tight) for adjoint in ("gauss", "checkpointed"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), gauss, checkpointed)


def test_gauss_through_a_stiff_solver_and_the_terms_of_a_split_equation():
    stiff = lux.Lambda(lambda y: -200.0 * (y - jnp.cos(y)))
    split = lux.SplitODE(lux.Dense(1, 1), stiff, ts=[0.0, 0.5], output="final", rtol=1e-5, atol=1e-7)
    ps, st = lux.setup(jax.random.key(0), split, dtype=jnp.float64)

    def slope(adjoint):
        return jax.grad(lambda ps: split.replace(adjoint=adjoint)(jnp.ones(1), ps, st)[0][0])(ps).data

    np.testing.assert_allclose(slope("gauss"), slope("checkpointed"), rtol=1e-3)


def test_gauss_is_zero_after_a_failure_and_nan_where_it_fails_itself():
    failed, _ = net_gradients("gauss", np.array([0.0, 5.0]), max_steps=3)
    np.testing.assert_array_equal(failed.data, 0.0)
    tight = lux.GaussAdjoint(rtol=1e-12, atol=1e-14)  # asks for more steps than max_steps backward
    hopeless, _ = net_gradients(tight, np.array([0.0, 5.0]), max_steps=40)
    assert jnp.all(jnp.isnan(hopeless.data))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_steps": None}, "give max_steps"),
        ({"saveat": diffrax.SaveAt(steps=True)}, "t0, t1 and ts only"),
        ({"event": diffrax.Event(lambda t, y, args, **kwargs: t > 0.5)}, "takes no events"),
    ],
)
def test_gauss_refuses_what_it_has_not(options, sentence):
    node = lux.NeuralODE(Growth(), ts=[0.0, T], adjoint="gauss", **options)
    with pytest.raises(ValueError, match=sentence):
        node(jnp.array(4.0), lux.ComponentVector(PS), {})


def test_gauss_refuses_stochastic_equations():
    sde = lux.NeuralDSDE(Growth(), Growth(), ts=[0.0, T], dt0=0.1, adjoint="gauss")
    ps, st = lux.setup(jax.random.key(0), sde)
    with pytest.raises(ValueError, match="one ordinary differential equation"):
        sde(jnp.array(4.0), ps, st)
