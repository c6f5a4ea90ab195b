"""Delays that are trained or depend on the state, and steps that adapt: closed forms and the method of steps."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

TS = np.array([0.0, 0.5, 1.3, 2.2, 3.1, 4.0])
TIGHT = {"rtol": 1e-10, "atol": 1e-12, "max_steps": 256}
DELAYED = lux.UDE(lambda x, p, nets: -x[..., 1:], {"tau": 1.0})  # y' = -y(t - tau)


def terms(t, tau, past):
    """The powers of the exact solution, `(-1)^k (t - (k - past) tau)_+^k / k!`, whose past is constant, 1 or 0."""
    return [(k, t - (k - past) * tau) for k in range(12) if t >= (k - past) * tau]


def exact(t, tau, past):
    return sum((-s) ** k / math.factorial(k) for k, s in terms(t, tau, past))


def slope(t, tau, past):
    """The derivative by tau."""
    return sum((k - past) * (-s) ** (k - 1) / math.factorial(k - 1) for k, s in terms(t, tau, past) if k)


@pytest.mark.exhaustive
def test_a_trained_lag_and_its_gradient_are_exact():
    """With a past of 0 the solution jumps at the start, and where that comes back moves with the lag."""
    ps, st = lux.setup(jax.random.key(0), DELAYED)
    for past, history in ((1, None), (0, lambda t, y0: 0 * y0)):
        dde = lux.NeuralDDE(DELAYED, "physics.tau", TS, output="ys", history=history, **TIGHT)

        def run(tau, dde=dde):
            return dde(jnp.ones(1), lux.ComponentVector(physics={"tau": tau}), st)[0][:, 0]

        forward = jax.jit(lambda tau, run=run: jax.jvp(run, (tau,), (jnp.ones(()),)))
        for tau in (1.0, 0.77):
            ys, by_tau = forward(jnp.array(tau))
            np.testing.assert_allclose(ys, [exact(t, tau, past) for t in TS], atol=1e-9)
            np.testing.assert_allclose(by_tau, [slope(t, tau, past) for t in TS], atol=1e-8)
    weights = jnp.arange(6.0)
    gradient = jax.jit(jax.grad(lambda tau: weights @ run(tau)))(jnp.array(tau))
    np.testing.assert_allclose(gradient, weights @ by_tau, rtol=1e-10)
    assert ps.physics.tau == 1.0
    by_number, _ = dde(jnp.ones(1), {"physics": {"tau": 0.77}}, st)  # of Python
    np.testing.assert_allclose(by_number[:, 0], run(0.77), rtol=1e-12)


@pytest.mark.exhaustive
def test_nets_delays_and_pasts_are_as_by_the_method_of_steps():
    """A net that is trained, a past with a parameter, and a lag: each interval is solved by diffrax from the last."""
    net = lux.Dense(4, 2, jnp.tanh)
    model = lux.UDE(lambda x, p, nets: nets.net(x), {"tau": 0.6, "rate": 0.3}, net=net)

    def past(t, y0, ps):
        return y0 * jnp.exp(ps["physics"]["rate"] * t)

    dde = lux.NeuralDDE(model, ["physics.tau"], [0.0, 1.5], history=past, output="final", **TIGHT)
    ps, st = lux.setup(jax.random.key(0), dde)
    y0 = jnp.array([0.5, -1.0])

    def by_hand(ps):
        tau, tree, y = ps.physics.tau, ps.tree(), y0
        before = lambda t: past(t, y0, tree)  # noqa: E731
        for start in range(3):
            field = lambda t, y, args, before=before: jnp.tanh(  # noqa: E731
                jnp.concatenate([y, before(t - tau)]) @ tree["net"]["weight"] + tree["net"]["bias"]
            )
            sol = diffrax.diffeqsolve(
                diffrax.ODETerm(field), diffrax.Dopri8(), start * tau, jnp.minimum((start + 1) * tau, 1.5), None, y,
                saveat=diffrax.SaveAt(t1=True, dense=True), adjoint=diffrax.DirectAdjoint(), max_steps=32,
                stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-11),
            )  # fmt: skip
            before, y = sol.evaluate, sol.ys[0]
        return y

    def program(ps):
        return dde(y0, ps, st)[0]

    v = jnp.ones(ps.size)
    y, moved = jax.jvp(program, (ps,), (lux.ComponentVector(v, ps.layout),))
    expected, tangent = jax.jit(lambda ps: jax.jvp(by_hand, (ps,), (lux.ComponentVector(v, ps.layout),)))(ps)
    np.testing.assert_allclose(y, expected, rtol=1e-7)
    np.testing.assert_allclose(moved, tangent, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_lag_of_the_state():
    """y' = 2 y(sqrt t) has the solution t^2, whose square root is that of the time: sqrt(t) = sqrt(sqrt(y))."""

    def lag(t, y, ps):
        return t - ps["physics"]["scale"] * jnp.sqrt(jnp.sqrt(y[0]))

    model = lux.UDE(lambda x, p, nets: 2 * x[..., 1:], {"scale": 1.0})
    dde = lux.NeuralDDE(model, lag, [4.0, 6.0, 9.0], history=lambda t, y0: jnp.square(t)[None], output="ys", **TIGHT)
    ps, st = lux.setup(jax.random.key(0), dde)
    y0, up = jnp.array([16.0]), jax.jit(lambda ps: dde(jnp.array([16.0]), ps, st)[0][:, 0])
    np.testing.assert_allclose(up(ps), [16.0, 36.0, 81.0], rtol=1e-8)
    h = 1e-4
    difference = (up(ps + h)[-1] - up(ps - h)[-1]) / (2 * h)
    gradient = jax.jit(jax.grad(lambda ps: dde(y0, ps, st)[0][-1, 0]))(ps)
    np.testing.assert_allclose(gradient.physics.scale, difference, rtol=1e-5)
    # a lag that comes to nothing: the solve ends with a code, not with a number
    vanishing = dde.replace(lags=(lambda t, y, ps: 1.0 - (t - 4.0),), output="solution")
    sol, _ = vanishing(y0, ps, st)
    assert not diffrax.is_okay(sol.result) and np.all(np.isnan(sol.ys))


@pytest.mark.exhaustive
def test_what_cannot_be_solved_is_nan_for_its_sample():
    dde = lux.NeuralDDE(lux.Lambda(lambda x: -x[..., 1:]), [1.0], batching="vmap", adaptive=True, max_steps=64)
    ts = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, np.nan, 2.0]])
    y0 = jnp.array([[1.0], [np.nan], [1.0], [1.0]])
    run = jax.jit(lambda y0, ts: dde((y0, ts), {}, {})[0])
    sol = run(y0, ts)
    np.testing.assert_allclose(sol.ys[0, :, 0], [1.0, 0.0, -0.5], atol=1e-8)
    assert np.all(np.isnan(sol.ys[1:]))
    gradient = jax.grad(lambda y0: jnp.sum(jnp.where(jnp.isnan(y0)[:1] | True, run(y0, ts).ys[0], 0)))(y0)
    np.testing.assert_allclose(gradient[:, 0], [0.5, 0, 0, 0], atol=1e-8)
    named = lux.NeuralDDE(DELAYED, "physics.tau", [0.0, 1.0], max_steps=64)
    sol, _ = named(jnp.ones(1), lux.ComponentVector(physics={"tau": -1.0}), {})
    assert sol.result == diffrax.RESULTS.nonfinite and np.all(np.isnan(sol.ys))
    few = lux.NeuralDDE(DELAYED, "physics.tau", [0.0, 9.0], max_steps=4)
    sol, _ = few(jnp.ones(1), lux.ComponentVector(physics={"tau": 1.0}), {})
    assert sol.result == diffrax.RESULTS.max_steps_reached and np.all(np.isnan(sol.ys))


@pytest.mark.exhaustive
def test_single_precision_joint_batches_and_several_lags():
    """y' = (-y(t - pi/2) + y(t - 3 pi/2)) / 2 has the solution sin t; one lag is trained, the other is not."""
    model = lux.UDE(lambda x, p, nets: (x[..., 2:] - x[..., 1:2]) / 2, {"tau": np.pi / 2})
    lags, ts = ["physics.tau", 3 * np.pi / 2], np.linspace(0.0, 7.0, 6)
    dde = lux.NeuralDDE(model, lags, ts, history=lambda t, y0: jnp.sin(t) + 0 * y0, rtol=1e-5, max_steps=128)
    ps, st = lux.setup(jax.random.key(0), dde, dtype="float32")
    sol, _ = dde(jnp.zeros((3, 1), "float32"), ps, st)
    assert sol.ys.dtype == "float32" and sol.ys.shape == (6, 3, 1)
    np.testing.assert_allclose(sol.ys[:, 1, 0], np.sin(ts), atol=1e-4)
    assert sol.stats["num_accepted_steps"] < 64


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lags": "physics.rate"}, r"names a parameter of the model, which has no 'rate' but tau"),
        ({"lags": "physics"}, "names one parameter of the model, and there are tau"),
        ({"lags": ["physics.tau", -1.0]}, "one or more positive times, names of parameters or functions"),
        ({"lags": lambda t, y, ps: y}, r"a lag of the state is one number, got the shape \(1,\)"),
        ({"adaptive": False}, "leave out adaptive=False"),
        ({"lags": [1.0], "rtol": 1e-3, "adaptive": False}, "a tolerance is for steps that adapt"),
        ({"max_steps": None}, "keeps room for all of them"),
        ({"ts": [1.0, 0.0]}, "increase"),
        ({"history": lambda t, y0, ps: jnp.ones(3)}, r"shape of the initial value, \(1,\); got \(3,\)"),
        ({"saveat": diffrax.SaveAt(dense=True)}, "has no saveat"),
        ({"lags": [1.0], "ts": None}, "give it adaptive=True"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        dde = lux.NeuralDDE(**{"model": DELAYED, "lags": "physics.tau", "ts": [0.0, 1.0], "max_steps": 64} | options)
        x = (jnp.ones((1, 1)), lux.diffeq.Series([[0.0, 1.0]])) if dde.ts is None else jnp.ones(1)
        dde(x, *lux.setup(jax.random.key(0), dde))
