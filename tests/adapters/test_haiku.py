"""Haiku's functions as layers: the outputs, gradients and states are Haiku's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import with_gradient

import lux_sciml as lux
from lux_sciml.adapters import from_haiku, to_haiku

hk = pytest.importorskip("haiku", reason="takes Haiku's functions: `make test-extras` installs it")
KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(6, 2))


@pytest.fixture(autouse=True)
def promoting():
    """These libraries mix types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def net(x, is_training):
    x = hk.Linear(4)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    x = hk.dropout(hk.next_rng_key(), 0.5, jnp.tanh(x)) if is_training else jnp.tanh(x)
    return hk.nets.MLP([3, 1], activation=jnp.tanh)(x)


@pytest.mark.slow
def test_a_function_is_a_layer_that_keeps_the_contract():
    layer = from_haiku(net, X)
    lux.testing.check_layer(layer, X, batch_axis=None, dtypes=["float64"], derivatives=["forward", "reverse"])


def test_outputs_gradients_and_state_are_those_of_haiku(tmp_path):
    transformed = hk.transform_with_state(net)
    params, state = transformed.init(KEY, X, is_training=True)
    layer = from_haiku(net, X, params=params, state=state)
    ps, st = lux.setup(KEY, layer)
    key = jax.random.split(st["key"])[0]

    def theirs(params):
        return transformed.apply(params, state, key, X, is_training=True)

    (y, st), gradient = with_gradient(lambda ps: layer(X, ps, st), ps)
    (expected, new), expected_gradient = with_gradient(theirs, params)
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    np.testing.assert_allclose(gradient.layout.ravel(expected_gradient), gradient.data, rtol=1e-8)
    assert ps["mlp/~/linear_0"]["w"].shape == (4, 3)
    name = "batch_norm/~/mean_ema"
    np.testing.assert_allclose(st["state"][name]["average"], new[name]["average"], rtol=1e-8)
    y, _ = transformed.apply(*to_haiku(layer, ps, st), None, X, is_training=False)
    np.testing.assert_allclose(layer(X, ps, lux.testmode(st))[0], y, rtol=1e-10)
    lux.save(tmp_path / "ps.safetensors", ps)
    assert lux.load(tmp_path / "ps.safetensors").equals(ps)


@pytest.mark.slow
def test_a_function_stands_in_a_solve_and_what_does_not_fit_is_told():
    plain = hk.transform(lambda x: jnp.tanh(hk.Linear(2)(x)))
    node = lux.NeuralODE(from_haiku(plain, X[0]), ts=[0.0, 1.0], output="final")
    ps, st = lux.setup(KEY, node)
    assert st == {} and node(X[0], ps, st)[0].shape == (2,)
    cases = [
        (lambda: from_haiku(hk.Linear, X), TypeError, "takes a function that uses Haiku's modules"),
        (lambda: from_haiku(lambda x: jnp.sin(x), X), ValueError, "has no parameters"),
        (
            lambda: from_haiku(plain, X, params={"linear": {"w": np.ones((2, 3))}}),
            ValueError,
            r"`params.linear.b` should be|`params.linear.w` should be \(2, 2\), and is",
        ),
        (lambda: to_haiku(lux.Dense(2, 2), {}, {}), TypeError, "that from_haiku made"),
        (lambda: lux.Chain(plain), TypeError, r"`lux\.adapters\.from_haiku\(transformed, x\)` makes a layer of it"),
    ]
    for call, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            call()
