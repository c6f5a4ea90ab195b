"""Universal differential equations: known terms, constants and nets in one vector."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

NET = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 2))


def lotka_volterra(u, p, nets):
    return jnp.array([p.alpha, -p.delta]) * u + p["scale"] * nets.missing(u)


def ude():
    return lux.UDE(lotka_volterra, {"alpha": 1.3, "delta": 2, "scale": np.array([1.0, 2.0])}, missing=NET)


def test_constants_and_nets_have_names_in_one_vector():
    ps, st = lux.setup(jax.random.key(0), ude())
    assert list(ps.keys()) == ["physics", "missing"]
    assert ps.physics.equals(lux.ComponentVector(alpha=1.3, delta=2, scale=[1.0, 2.0]))
    assert ps.size == 4 + lux.parameter_length(NET)
    u = jnp.array([0.4, 4.6])
    du, _ = ude()(u, ps, st)
    expected = jnp.array([1.3, -2.0]) * u + jnp.array([1.0, 2.0]) * NET(u, ps.missing, st["missing"])[0]
    np.testing.assert_allclose(du, expected, rtol=1e-14)
    text = repr(ude())
    assert "physics = {'alpha': 1.3, 'delta': 2, 'scale': Constant([1.0, 2.0])}" in text and "missing = Chain(" in text


def test_nets_keep_their_state_from_call_to_call():
    layer = lux.UDE(lambda u, p, nets: nets.drop(u) + nets.drop(u), drop=lux.Dropout(0.5))
    ps, st = lux.setup(jax.random.key(0), layer)
    y, after = layer(jnp.ones(64), ps, st)
    assert len(np.unique(y)) == 3  # two masks, not one twice
    assert after["drop"]["key"] != st["drop"]["key"]
    with pytest.raises(ValueError, match=r"`drop` \(Dropout\(0.5\)\) updates its state"):
        lux.NeuralODE(layer, ts=[0.0, 1.0])(jnp.ones(64), ps, st)


def test_constants_and_the_start_are_found_together():
    """u' = -k u from noise-free data: k = 2 and u(0) = 3."""
    ts = np.linspace(0.0, 1.0, 6)
    node = lux.NeuralODE(lux.UDE(lambda u, p, nets: -p.k * u, {"k": 1.0}), ts, output="ys", max_steps=64)
    ps, st = lux.setup(jax.random.key(0), node, "float64")
    q = lux.ComponentVector(u0=[1.0], ude=ps)

    def loss(q):
        return jnp.sum((node(q.u0, q.ude, st)[0][:, 0] - 3 * np.exp(-2 * ts)) ** 2)

    found = lux.minimize(loss, q, method="BFGS").params
    np.testing.assert_allclose(found.u0, [3.0], rtol=1e-4)
    np.testing.assert_allclose(found.ude.physics.k, 2.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.UDE(lotka_volterra, physics_=1), "expected a layer or a function, got 1"),
        (lambda: lux.UDE({"alpha": 1.0}), r"starts with a function \(u, p, nets\), got"),
        (lambda: lux.UDE(lambda t, u, p, nets: u), r"f\(\(t, u\), p, nets\); got a function of \(t, u, p, nets\)"),
        (lambda: lux.UDE(lambda u, p, nets: u, jnp.ones(2)), "a dict of numbers or arrays by name"),
        (lambda: lux.UDE(lotka_volterra, {"a": "b"}), r"UDE\.physics\['a'\]: expected numbers, got .*'b'"),
        (lambda: lux.UDE(lotka_volterra).replace(function="f"), r"starts with a function \(u, p, nets\), got 'f'"),
        (lambda: lux.UDE(lotka_volterra).replace(physics=3), "a dict of numbers or arrays by name, got 3"),
        (lambda: lux.UDE(lotka_volterra).replace(nets={"net": 3}), r"UDE\.nets\['net'\]: expected a layer or a functi"),
        (lambda: lux.UDE(lambda u, p, nets: p.beta, {"alpha": 1.0})(*_arguments()), "no constant 'beta'; it has alpha"),
        (lambda: lux.UDE(lambda u, p, nets: nets.net(u), {"alpha": 1.0})(*_arguments()), "no net 'net'; it has none"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises((TypeError, AttributeError), match=sentence):
        make()


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda t, u, p: lux.ComponentVector(x=-p.rate * u.x), "(t, u, p)"),
        (lambda t, y, args: -args["rate"] * y, "(t, y, args)"),
        (lambda u, p, t: -p.rate * u * jnp.sin(t), "(u, p, t)"),
    ],
)
@pytest.mark.parametrize("time_dependent", [False, True])
def test_functions_in_the_order_of_other_libraries_are_told_that_of_a_ude(function, names, time_dependent):
    node = lux.NeuralODE(lux.UDE(function, {"rate": 1.0}), [0.0, 1.0], time_dependent=time_dependent)
    sentence = f"called as f(u, p, nets), with time_dependent=True as f((t, u), p, nets); got a function of {names}"
    with pytest.raises(TypeError, match=re.escape(sentence)):
        node(lux.ComponentVector(x=1.0), *lux.setup(jax.random.key(0), node))


def test_a_fourth_argument_with_a_default_is_not_the_time():
    layer = lux.UDE(lambda u, p, nets, t=0.0: -p.speed * u + t, {"rate": 2.0})
    with pytest.raises(AttributeError, match="this UDE has no constant 'speed'; it has rate"):
        layer(jnp.ones(()), *lux.setup(jax.random.key(0), layer))


def test_a_third_argument_that_is_not_used_may_have_any_name():
    layer = lux.UDE(lambda u, p, t: -p.rate * u, {"rate": 2.0})
    assert layer(jnp.ones(()), *lux.setup(jax.random.key(0), layer))[0] == -2.0


def _arguments():
    return jnp.ones(2), {"physics": {"alpha": jnp.ones(())}}, {}
