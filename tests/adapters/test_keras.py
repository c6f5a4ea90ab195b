"""Keras's models, on JAX, as layers: the outputs, gradients and states are Keras's."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import with_gradient

import lux_sciml as lux
from lux_sciml.adapters import from_keras, to_keras

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="takes Keras's models: `make test-extras` installs it")
if keras.backend.backend() != "jax":
    pytest.skip("Keras computes by another backend here", allow_module_level=True)

KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")


@pytest.fixture(autouse=True)
def promoting():
    """Keras computes in float32 by its own policy, and mixes types."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


def net(rate):
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, "tanh"), layers.BatchNormalization(), layers.Dropout(rate), layers.Dense(3)]
    )


def test_outputs_gradients_and_state_are_those_of_keras():
    model = net(0.0)
    layer = from_keras(model)
    ps, st = lux.setup(KEY, layer)
    assert ps.size == 35 and all(name in " ".join(ps.labels()) for name in ("dense", "kernel", "gamma"))

    def theirs(weights):
        others = [v.value for v in model.non_trainable_variables]
        return model.stateless_call(weights, others, X, training=True)

    weights = [v.value for v in model.trainable_variables]
    (expected, new), expected_gradient = with_gradient(theirs, weights)
    (y, after), gradient = with_gradient(jax.jit(lambda ps: layer(X, ps, st)), ps)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(
        gradient.data, np.concatenate([np.ravel(g) for g in expected_gradient]), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(jax.tree.leaves(after["variables"])[0], new[0], rtol=1e-5)
    back = to_keras(layer, ps, after)
    assert back is model
    np.testing.assert_allclose(layer(X, ps, lux.testmode(after))[0], back(X), atol=1e-5)


@pytest.mark.slow
def test_random_layers_draw_from_the_key():
    layer = from_keras(net(0.5))
    ps, st = lux.setup(KEY, layer)
    (a, after), (b, _) = layer(X, ps, st), layer(X, ps, st)
    np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(after) == jax.tree.structure(st) and jnp.any(layer(X, ps, after)[0] != a)
    test = lux.testmode(st)
    y, kept = layer(X, ps, test)
    assert jax.tree.leaves(kept)[0] is jax.tree.leaves(test)[0] and jnp.all(layer(X, ps, kept)[0] == y)
    node = lux.NeuralODE(from_keras(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])), ts=[0.0, 1.0])
    assert node(X, *lux.setup(KEY, node))[0].ys.shape == (2, 6, 2)


class Plain(keras.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def test_a_layer_that_is_not_told_its_mode():
    model = Plain()
    expected = model(X)
    layer = from_keras(model)
    np.testing.assert_array_equal(layer(X, *lux.setup(KEY, layer))[0], expected)


def test_what_does_not_fit_is_told():
    cases = [
        (lambda: from_keras(lux.Dense(2, 3)), TypeError, "got a Dense"),
        (lambda: from_keras(keras.Sequential([keras.layers.Dense(3)])), ValueError, "is not built"),
        (
            lambda: from_keras(keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])),
            ValueError,
            "no trainable variables",
        ),
        (lambda: lux.Chain(net(0.0)), TypeError, r"lux.adapters.from_keras\(model\)"),
        (lambda: to_keras(lux.Dense(2, 2), {}, {}), TypeError, "that from_keras made"),
    ]
    for call, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            call()
