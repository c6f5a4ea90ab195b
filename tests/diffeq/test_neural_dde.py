"""NeuralDDE against exact solutions."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

DELAYED = lux.Lambda(lambda x: -x[..., 1:])  # y' = -y(t - lag)


def exact_steps(ts, constant_past):
    """1 after the past 0: sum_k (-1)^k (t - k)_+^k / k!. After the past 1: the same with one more power of each."""
    shift = 1 if constant_past else 0
    return [
        sum((-1) ** k * max(t - k + shift, 0.0) ** k / math.factorial(k) for k in range(int(t) + 1 + shift)) for t in ts
    ]


def test_the_piecewise_polynomial_is_exact_up_to_degree_four():
    ts = np.linspace(0.0, 4.0, 17)
    sol, _ = lux.NeuralDDE(DELAYED, [1.0], ts, dt0=0.125)(jnp.ones((2, 1)), {}, {})
    assert isinstance(sol, diffrax.Solution)
    assert sol.ys.shape == (17, 2, 1)
    assert sol.stats["num_steps"] == 32
    np.testing.assert_allclose(sol.ys[:, 1, 0], exact_steps(ts, constant_past=True), atol=1e-14)


def test_a_history_that_jumps_at_the_start():
    ts = np.linspace(0.0, 4.0, 9)
    dde = lux.NeuralDDE(DELAYED, [1.0], ts, history=lambda t, y0: 0 * y0, dt0=0.25)
    sol, _ = dde(jnp.ones(1), {}, {})
    np.testing.assert_allclose(sol.ys[:, 0], exact_steps(ts, constant_past=False), atol=1e-14)


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Tsit5(), 4), (diffrax.Heun(), 2)], ids=repr)
def test_the_order_with_a_history(solver, order):
    """y' = (-y(t - pi/2) + y(t - 3 pi/2)) / 2 has the solution sin t; saved between the steps."""
    field = lux.Lambda(lambda x: (x[..., 2:] - x[..., 1:2]) / 2)
    lags, ts = [np.pi / 2, 3 * np.pi / 2], np.linspace(0.0, 7.0, 6)
    errors = []
    for steps in (6, 12):
        dde = lux.NeuralDDE(
            field, lags, ts, history=lambda t, y0: jnp.sin(t)[None], dt0=np.pi / 2 / steps, solver=solver
        )
        errors.append(np.abs(dde(jnp.zeros(1), {}, {})[0].ys[:, 0] - np.sin(ts)).max())
    assert errors[0] < 0.02
    assert np.log2(errors[0] / errors[1]) > order - 0.3


def test_steps_that_do_not_divide_the_lag_and_time_in_single_precision():
    """y' = y(t - 0.3) exp(0.3) c'(t) with y = exp(c), c = t: exp t."""
    field = lux.Lambda(lambda tx: tx[1][..., 1:] * jnp.exp(0.3 + 0 * tx[0]))
    dde = lux.NeuralDDE(
        field, [0.3], [1.0, 2.0], history=lambda t, y0: jnp.exp(t) * jnp.ones_like(y0), dt0=0.07, time_dependent=True
    )
    final, _ = dde.replace(output="final")(jnp.full(1, np.e, "float32"), {}, {})
    assert final.dtype == "float32"
    np.testing.assert_allclose(final, [np.e**2], rtol=1e-5)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences_in_both_modes():
    model = lux.Chain(lux.Dense(4, 3, jnp.tanh), lux.Dense(3, 2))
    dde = lux.NeuralDDE(model, [0.3], [0.0, 0.5, 1.1], dt0=0.1)
    ps, st = lux.setup(jax.random.key(0), dde)
    v = jax.random.normal(jax.random.key(1), ps.shape)

    def loss(q):
        return jnp.sum(dde(q[1], q[0], st)[0].ys ** 2)

    q, direction = (ps, jnp.array([1.0, -0.5])), (lux.ComponentVector(v, ps.layout), jnp.array([0.3, 0.8]))
    value = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(q)
    slope = gradient[0] @ v + gradient[1] @ direction[1]
    up, down = (value(jax.tree.map(lambda a, b, h=h: a + h * b, q, direction)) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-8)
    np.testing.assert_allclose(jax.jvp(loss, (q,), (direction,))[1], slope, rtol=1e-12)


def test_a_bad_sample_leaves_the_others_exact():
    dde = lux.NeuralDDE(DELAYED, [1.0], [0.0, 1.5], batching="vmap")
    sol, _ = dde(jnp.array([[1.0], [np.nan]]), {}, {})
    np.testing.assert_allclose(sol.ys[0, :, 0], exact_steps([0.0, 1.5], constant_past=True), atol=1e-14)
    assert jnp.all(jnp.isnan(sol.ys[1]))
    with pytest.raises(RuntimeError, match=r"by sample 1 of 2"):
        lux.raise_if_failed(sol)


def test_in_a_chain_with_frozen_state_and_print():
    model = lux.Chain(lux.Dense(4, 2), lux.Dropout(0.5))
    dde = lux.NeuralDDE(model, [0.5], [0.0, 1.0], output="final")
    chain = lux.Chain(dde, lux.Dense(2, 1))
    ps, st = lux.setup(jax.random.key(0), chain)
    assert chain(jnp.ones((3, 2)), ps, lux.testmode(st))[0].shape == (3, 1)
    with pytest.raises(ValueError, match=r"`layer_1` \(Dropout\(0.5\)\) updates its state"):
        chain(jnp.ones((3, 2)), ps, st)
    after = lux.Chain(dde.replace(on_state_update="discard"), lux.Dense(2, 1))(jnp.ones((3, 2)), ps, st)[1]
    assert after["layer_0"]["layer_1"]["key"] != st["layer_0"]["layer_1"]["key"]
    assert "lags = 0.5" in repr(dde)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lags": []}, "one or more positive times"),
        ({"lags": [1.0, -1.0]}, "one or more positive times"),
        ({"dt0": 1.5}, "at most as long as the shortest lag, 1.0, got dt0=1.5"),
        ({"throw": True, "saveat": diffrax.SaveAt(dense=True)}, "has no saveat, throw"),
        ({"solver": diffrax.Kvaerno5()}, "an explicit Runge-Kutta solver"),
        ({"ts": [1.0, 0.0]}, "increase"),
        ({"dt0": 1e-4}, "takes 10000 steps of 0.0001, more than max_steps=4096"),
        ({"model": lux.Lambda(lambda x: x)}, r"takes \(2,\), present and past values, and returns float64 \(1,\)"),
        ({"history": lambda t, y0: jnp.ones(3)}, r"shape of the initial value, \(1,\); got \(3,\)"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        lux.NeuralDDE(**{"model": DELAYED, "lags": [1.0], "ts": [0.0, 1.0], **options})(jnp.ones(1), {}, {})


def test_times_are_known_while_tracing():
    with pytest.raises(ValueError, match="known while tracing"):
        jax.jit(lambda ts: lux.NeuralDDE(DELAYED, [1.0])((jnp.ones(1), ts), {}, {})[0].ys)(jnp.array([0.0, 1.0]))
