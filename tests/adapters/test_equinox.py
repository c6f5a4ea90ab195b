"""Equinox's modules as layers, and layers as its modules."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import with_gradient

import lux_sciml as lux
from lux_sciml.adapters import from_equinox, to_equinox

KEY = jax.random.key(3)


class Net(eqx.Module):
    """For one sample: with statistics, a mask, integers, arrays of NumPy's and an option."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    rest: list
    order: jax.Array
    shift: np.ndarray
    flip: np.ndarray
    power: int = eqx.field(static=True)

    def __init__(self, key, rate=0.5):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(2, 4, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, "samples", mode="batch", momentum=0.9)
        self.dropout = eqx.nn.Dropout(rate)
        self.rest = [jnp.tanh, eqx.nn.Linear(4, 2, key=keys[1])]
        self.order = jax.random.permutation(keys[2], 4)
        self.shift, self.flip = np.full(2, 0.5), np.array([1, 0])
        self.power = 3

    def __call__(self, x, state, *, key=None):
        y, state = self.norm(self.first(x), state)
        y = self.dropout(y, key=key)[self.order]
        for f in self.rest:
            y = f(y)
        return y[self.flip] ** self.power + self.shift, state


def mlp(key):
    return eqx.nn.MLP(2, 2, 4, 1, jnp.tanh, key=key)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(7), (6, 2))


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, lambda key: Net(key)], ids=["MLP", "Net"])
def test_a_module_is_a_layer_that_keeps_the_contract(make, x):
    layer = from_equinox(make, batch_axes=1)
    lux.testing.check_layer(layer, x, batch_axis=0 if make is mlp else None)
    given = from_equinox(make(KEY), batch_axes=1)
    assert given == from_equinox(make(KEY), batch_axes=1) != from_equinox(make(jax.random.key(0)), batch_axes=1)
    assert lux.setup(KEY, given)[0].equals(lux.setup(jax.random.key(1), given)[0])


@pytest.mark.slow
def test_outputs_gradients_and_state_are_those_of_equinox(x):
    model, state = eqx.nn.make_with_state(Net)(KEY)
    layer = from_equinox(model, state, batch_axes=1)
    ps, st = lux.setup(KEY, layer)
    assert ps["rest.1.weight"].shape == (2, 4) and st["buffers"]["order"].tolist() == model.order.tolist()
    assert ps.size == sum(map(jnp.size, jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))))

    def theirs(model):
        keys = jax.random.split(jax.random.split(st["key"])[0], 6)
        call = jax.vmap(lambda x, s, k: model(x, s, key=k), (0, None, 0), (0, None), axis_name="samples")
        y, after = call(x, state, keys)
        return jnp.sum(y**2), (y, after)

    (_, (expected, after)), gradient = eqx.filter_value_and_grad(theirs, has_aux=True)(model)
    (y, st), ours_gradient = with_gradient(lambda ps: layer(x, ps, st), ps)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(ours_gradient.data, lux.setup(KEY, from_equinox(gradient, after))[0].data, rtol=1e-10)
    np.testing.assert_array_equal(st["state"]["norm"]["batch_counter"], 1)
    np.testing.assert_allclose(
        st["state"]["norm"]["batch_state_index"]["1"], after.get(model.norm.batch_state_index)[1]
    )

    back, state = to_equinox(layer, ps, st)
    assert type(back) is Net and eqx.tree_equal(back, model)
    call = jax.vmap(eqx.nn.inference_mode(back), (0, None), (0, None), axis_name="samples")
    np.testing.assert_allclose(layer(x, ps, lux.testmode(st))[0], call(x, state)[0], rtol=1e-12)


@pytest.mark.slow
def test_a_module_stands_in_chains_solves_and_equilibria(x, tmp_path):
    field = from_equinox(mlp)
    node = lux.NeuralODE(lux.Chain(field, lambda y: -y), ts=[0.0, 1.0], output="final", batching="vmap")
    deq = lux.DeepEquilibrium(from_equinox(lambda key: Pair(key)), rtol=1e-9, atol=1e-9)
    for layer in (node, deq):
        ps, st = lux.setup(KEY, layer)
        loss = jax.jit(
            lambda ps, layer=layer, st=st: jnp.sum(layer(x if layer is node else 0.1 * x[0], ps, st)[0] ** 2)
        )
        lux.save(tmp_path / "ps.safetensors", ps)
        loaded = lux.load(tmp_path / "ps.safetensors", like=ps)
        gradient = jax.grad(loss)(loaded)
        assert gradient.layout is ps.layout
        step = 1e-3 * jax.random.normal(KEY, ps.shape)
        slope = (loss(ps + step) - loss(ps - step)) / 2
        np.testing.assert_allclose(gradient @ step, slope, rtol=1e-4)


def test_a_function_may_make_new_functions_with_its_modules(x):
    layer = from_equinox(lambda key: eqx.nn.MLP(2, 3, 4, 1, lambda x: jnp.sin(x), key=key), batch_axes=1)
    ps, st = lux.setup(KEY, layer)
    assert layer(x, ps, st)[0].shape == (6, 3) and not ps.equals(lux.setup(jax.random.key(0), layer)[0])
    sizes = itertools.chain([4], itertools.repeat(5))
    layer = from_equinox(lambda key: eqx.nn.Linear(2, next(sizes), key=key))
    with pytest.raises(ValueError, match=r"makes another module now: `ps.weight` should be \(4, 2\), and is \(5, 2\)"):
        lux.setup(KEY, layer)


class Pair(eqx.Module):
    inner: eqx.nn.Linear

    def __init__(self, key):
        self.inner = eqx.tree_at(lambda f: f.weight, eqx.nn.Linear(2, 2, key=key), 0.3 * jnp.eye(2))

    def __call__(self, pair):
        z, x = pair
        return jnp.tanh(self.inner(z)) + x


def test_a_layer_is_a_module_that_stands_in_a_sequential(x):
    layer = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.BatchNorm(3), lux.Dropout(0.5))
    ps, st = lux.setup(KEY, layer)
    module, state = to_equinox(layer, ps, st)
    net = eqx.nn.Sequential([module, eqx.nn.Lambda(jnp.sin)])

    def loss(net):
        y, after = net(x, state)
        return jnp.sum(y), (y, after)

    gradient, (y, after) = eqx.filter_grad(loss, has_aux=True)(net)
    expected, next_st = layer(x, ps, st)
    np.testing.assert_allclose(y, jnp.sin(expected))
    ours = jax.grad(lambda ps: jnp.sum(jnp.sin(layer(x, ps, st)[0])))(ps)
    np.testing.assert_allclose(gradient.layers[0].ps.data, ours.data)
    y, _ = eqx.nn.inference_mode(net)(x, after)
    np.testing.assert_allclose(y, jnp.sin(layer(x, ps, lux.testmode(next_st))[0]))
    with pytest.raises(ValueError, match=r"call `y, state = module\(x, state\)`"):
        module(x)
    plain = to_equinox(lux.Dense(2, 3), *lux.setup(KEY, lux.Dense(2, 3)))
    assert eqx.filter_jit(plain)(x).shape == (6, 3)


def test_what_does_not_fit_is_told(x):
    model, state = eqx.nn.make_with_state(Net)(KEY)
    layer = from_equinox(model, state)
    ps, st = lux.setup(KEY, layer)
    with pytest.raises(ValueError, match=r"unbound axis name: samples.*from_equinox\(module, batch_axes=1\)"):
        layer(x[0], ps, st)
    with pytest.raises(ValueError, match=r"updates its state.*lux.testmode"):
        lux.NeuralODE(from_equinox(model, state, batch_axes=1), ts=[0.0, 1.0])(x, ps, st)
    cases = [
        (lambda: from_equinox(model), ValueError, r"made with a State: give both"),
        (lambda: from_equinox(eqx.nn.Lambda(jnp.sin)), ValueError, "has no floating-point arrays.*lux.Lambda"),
        (lambda: from_equinox(eqx.nn.MLP), TypeError, "got the class MLP"),
        (lambda: from_equinox(type("Bare", (eqx.Module,), {})()), TypeError, "Bare has no `__call__`"),
        (lambda: from_equinox(lambda key: 3), TypeError, "got a int"),
        (
            lambda: from_equinox(mlp, batch_axes=1)(x[0, 0], lux.setup(KEY, from_equinox(mlp))[0], {}),
            ValueError,
            "first 1 axes",
        ),
        (lambda: from_equinox(mlp)(x[0], lux.setup(KEY, lux.Dense(2, 2))[0], {}), ValueError, "not the parameters"),
        (lambda: lux.Chain(mlp(KEY)), TypeError, r"lux.adapters.from_equinox\(module\)"),
        (
            lambda: jax.jit(lambda w: from_equinox(eqx.tree_at(lambda m: m.layers[0].weight, mlp(KEY), w)) and w)(
                jnp.ones((4, 2))
            ),
            TypeError,
            "traced",
        ),
    ]
    for call, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            call()
