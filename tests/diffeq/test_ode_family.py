"""Augmented, second-order, split, controlled and regularized equations; events."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import lux_sciml as lux

TS = np.linspace(0.0, 1.0, 4)
DECAY = lux.Dense(1, 1, use_bias=False)
RATE = {"weight": -np.ones((1, 1))}


@pytest.mark.slow
def test_augmented_features_start_from_zero():
    node = lux.AugmentedODE(lux.NeuralODE(lux.Lambda(jnp.ones_like), ts=TS, output="ys"), 2)
    ys, _ = node(jnp.array([[5.0]]), {}, {})
    assert ys.shape == (4, 1, 3)
    np.testing.assert_allclose(ys[:, 0], np.array([5.0, 0.0, 0.0]) + TS[:, None], rtol=1e-6)
    per_call = lux.AugmentedODE(lux.NeuralODE(lux.Lambda(jnp.ones_like), output="ys"), 2)
    np.testing.assert_allclose(per_call((jnp.array([[5.0]]), TS), {}, {})[0], ys, rtol=1e-6)
    with pytest.raises(ValueError, match="extra: expected a whole number of at least 1, got 0"):
        lux.AugmentedODE(lux.NeuralODE(DECAY), 0)
    learned = node.replace(extra=lux.Dense(1, 2))  # and these from a layer of the others
    ps, st = lux.setup(jax.random.key(0), learned)
    ys, _ = learned(jnp.array([[5.0]]), ps, st)
    start = np.append(5.0, learned.extra(jnp.array([5.0]), ps.extra, {})[0])
    np.testing.assert_allclose(ys[:, 0], start + TS[:, None], rtol=1e-6)
    assert np.all(np.isfinite(node.replace(extra=jnp.sin)(jnp.array([[5.0]]), {}, {})[0]))
    with pytest.raises(ValueError, match="`extra` of an AugmentedODE returns"):
        node.replace(extra=lux.Lambda(lambda y: y[0]))(jnp.ones((2, 1)), {}, {})


def test_second_order_oscillates():
    model = lux.SecondOrder(lux.Dense(2, 1, use_bias=False))  # x'' = -x
    node = lux.NeuralODE(model, ts=TS, output="ys")
    x, v = node((jnp.ones(1), jnp.zeros(1)), {"weight": jnp.array([[-1.0], [0.0]])}, {})[0]
    np.testing.assert_allclose(x[:, 0], np.cos(TS), atol=1e-6)
    np.testing.assert_allclose(v[:, 0], -np.sin(TS), atol=1e-6)


def test_split_equation_steps_over_the_stiff_part():
    stiff = lux.Lambda(lambda y: -1e4 * (y - 1.0))  # y relaxes at once to 1 + 1e-4
    node = lux.SplitODE(lux.Lambda(jnp.ones_like), stiff, ts=TS, rtol=1e-4, atol=1e-6)
    sol, _ = node(jnp.zeros(1), {"explicit": {}, "implicit": {}}, {"explicit": {}, "implicit": {}})
    np.testing.assert_allclose(sol.ys[1:], 1.0 + 1e-4, atol=1e-5)
    assert sol.stats["num_steps"] < 1000  # stability alone asks an explicit method for about 1e4 / 3.3


def controlled(**options):
    """y' = w (u(t) - y)."""
    return lux.NeuralODE(lux.Lambda(lambda yu: yu[1] - yu[0]), controlled=True, output="ys", **options)


def test_controls_are_followed():
    ramp = diffrax.LinearInterpolation(ts=jnp.array([0.0, 1.0]), ys=jnp.array([[0.0], [1.0]]))
    exact = TS - 1 + np.exp(-TS)  # y' = t - y, y(0) = 0
    ys, _ = controlled(ts=TS)((jnp.zeros(1), ramp), {}, {})
    np.testing.assert_allclose(ys[:, 0], exact, atol=1e-6)
    ys, _ = controlled()((jnp.zeros(1), TS, ramp), {}, {})
    np.testing.assert_allclose(ys[:, 0], exact, atol=1e-6)


@pytest.mark.slow
def test_gradient_with_respect_to_a_control():
    def final(top):
        ramp = diffrax.LinearInterpolation(ts=jnp.array([0.0, 1.0]), ys=jnp.stack([jnp.zeros(1), top]))
        return controlled(ts=[0.0, 1.0])((jnp.zeros(1), ramp), {}, {})[0][-1, 0]

    np.testing.assert_allclose(jax.grad(final)(jnp.ones(1)), [np.exp(-1)], rtol=1e-5)  # linear in the control


def test_every_sample_may_have_its_own_control():
    ys = jnp.array([[[0.0], [1.0]], [[0.0], [2.0]]])
    ramps = jax.vmap(diffrax.LinearInterpolation)(jnp.array([[0.0, 1.0]] * 2), ys)
    ys, _ = controlled(ts=TS, batching="vmap")((jnp.zeros((2, 1)), ramps), {}, {})
    np.testing.assert_allclose(ys[1], 2 * ys[0], rtol=1e-5, atol=1e-7)


def test_times_outside_of_a_control_are_refused():
    ramp = diffrax.LinearInterpolation(ts=jnp.array([0.0, 0.5]), ys=jnp.array([[0.0], [1.0]]))
    with pytest.raises(ValueError, match=r"from 0 to 0\.5, the times ask for 0 to 1"):
        controlled(ts=TS)((jnp.zeros(1), ramp), {}, {})
    ys = jax.jit(lambda ramp: controlled(ts=TS)((jnp.zeros(1), ramp), {}, {})[0])(ramp)
    assert jnp.all(jnp.isnan(ys))
    with pytest.raises(ValueError, match="takes the tuple"):
        controlled(ts=TS)(jnp.zeros(1), {}, {})


@pytest.mark.slow
def test_costs_of_a_linear_trajectory_are_exact():
    node = lux.NeuralODE(DECAY, ts=[0.0, 1.0])
    layer = lux.WithCosts(node, ("kinetic", "jacobian", "acceleration"))
    _, st = lux.setup(jax.random.key(0), layer)
    (sol, costs), after = layer(jnp.full((3, 1), 2.0), RATE, st)
    np.testing.assert_array_equal(sol.ys, node(jnp.full((3, 1), 2.0), RATE, {})[0].ys)  # the same steps
    integral = 4 * (1 - np.exp(-2)) / 2  # of |f|^2 = |y''|^2 = 4 exp(-2 t)
    np.testing.assert_allclose(costs["kinetic"], integral, rtol=1e-5)
    np.testing.assert_allclose(costs["acceleration"], integral, rtol=1e-5)
    probe = jax.random.normal(jax.random.split(st["key"])[0], (3, 1))
    np.testing.assert_allclose(costs["jacobian"], probe[:, 0] ** 2, rtol=1e-6)  # the Jacobian is -1
    assert jnp.all(after["key"] != st["key"])
    assert jax.tree.structure(after) == jax.tree.structure(st)


def test_bad_costs():
    with pytest.raises(ValueError, match="'kinetic', 'jacobian', 'acceleration', got 'speed'"):
        lux.WithCosts(lux.NeuralODE(DECAY, ts=TS), ("speed",))


@pytest.mark.exhaustive
def test_the_time_of_an_event_is_differentiable():
    """A ball falls from a height h: it meets the floor at sqrt(2 h / g)."""
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0][0], optimistix.Newton(1e-12, 1e-12))
    fall = lux.NeuralODE(
        lux.SecondOrder(lux.Lambda(lambda xv: jnp.full(1, -9.81))),
        ts=[0.0, 5.0],
        event=event,
        saveat=diffrax.SaveAt(t1=True),
        rtol=1e-9,
        atol=1e-9,
    )

    def landing(height):
        return fall((height, jnp.zeros(1)), {}, {})[0].ts[-1]

    time, slope = jax.value_and_grad(landing)(jnp.array([2.0]))
    np.testing.assert_allclose(time, np.sqrt(4 / 9.81), rtol=1e-8)
    np.testing.assert_allclose(slope, 1 / np.sqrt(4 * 9.81), rtol=1e-6)


def test_weights_that_vary_in_time():
    field = lux.Galerkin(lux.Dense(1, 1, use_bias=False), lux.PolynomialBasis(2))  # y' = (c0 + c1 t) y
    node = lux.NeuralODE(field, ts=TS, time_dependent=True, output="ys")
    ps, st = lux.setup(jax.random.key(0), node)
    np.testing.assert_array_equal(ps.weight[1], 0.0)
    ys, _ = node(jnp.ones(1), {"weight": jnp.array([[[0.5]], [[-2.0]]])}, st)
    np.testing.assert_allclose(ys[:, 0], np.exp(0.5 * TS - TS**2), rtol=1e-5)


DELAYED = lux.NeuralDDE(lux.Lambda(lambda x: -x[..., 1:]), [1.0])
GALERKIN = lux.NeuralODE(lux.Galerkin(DECAY, lux.PolynomialBasis(2)), ts=TS)
AUGMENTED = lux.AugmentedODE(lux.NeuralODE(DECAY, ts=TS), 1)


@pytest.mark.parametrize(
    ("layer", "x", "error", "sentence"),
    [
        (GALERKIN, jnp.ones(1), ValueError, "give the NeuralODE time_dependent=True"),
        (AUGMENTED, jnp.array(1.0), ValueError, r"AugmentedODE is one array of shape \(\.\.\., features\)"),
        (AUGMENTED, {"a": jnp.ones(1)}, ValueError, r"AugmentedODE is one array of shape \(\.\.\., features\)"),
        (AUGMENTED, "x", TypeError, "the initial value of a AugmentedODE is an array"),
        (DELAYED, jnp.ones(1), ValueError, r"takes the tuple \(initial value, times\)"),
        (DELAYED, (jnp.array(1.0), TS), ValueError, r"NeuralDDE is one array of shape \(\.\.\., features\)"),
        (DELAYED, (jnp.ones(1), TS[::-1]), ValueError, "the times of a NeuralDDE increase"),
        (DELAYED, (jnp.ones(1), np.stack([TS, TS])), ValueError, r"have shape \(times,\); got shape \(2, 4\)"),
    ],
)
def test_bad_input_is_one_sentence(layer, x, error, sentence):
    with pytest.raises(error, match=sentence):
        layer(x, *lux.setup(jax.random.key(0), layer))
