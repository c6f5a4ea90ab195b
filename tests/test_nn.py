"""Dense, BatchNorm, Dropout, initializers and activations against plain NumPy formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.activations import gain
from lux_sciml.testing import check_layer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3))
IMAGES = RNG.normal(1.0, 2.0, size=(4, 5, 2, 3))


# --- Dense --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (6, 3), (2, 4, 3), (0, 3)], ids=str)
def test_dense_maps_the_last_axis(key, shape):
    layer = lux.Dense(3, 4, jnp.tanh)
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=shape)
    y, st_next = layer(x, ps, st)
    assert y.shape == (*shape[:-1], 4) and st_next == {}
    assert np.allclose(y, np.tanh(x @ np.asarray(ps.weight) + np.asarray(ps.bias)), atol=1e-14)


def test_dense_without_a_bias_and_with_initializers(key):
    layer = lux.Dense(3, 3, use_bias=False, init_weight=jax.nn.initializers.constant(2.0))
    ps, st = lux.setup(key, layer)
    assert list(ps.keys()) == ["weight"]
    assert np.allclose(layer(X, ps, st)[0], 2 * X.sum(1, keepdims=True).repeat(3, 1))
    assert lux.setup(key, lux.Dense(3, 2, init_bias=lux.initializers.ones))[0].bias.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(), (2,), (3, 2)], ids=str)
def test_dense_refuses_other_numbers_of_features(key, shape):
    layer = lux.Dense(3, 4, jnp.tanh)
    with pytest.raises(ValueError, match=r"Dense\(3, 4, tanh\) expects inputs of shape \(\.\.\., 3\), got \("):
        layer(jnp.zeros(shape), *lux.setup(key, layer))


@pytest.mark.parametrize(("activation", "factor"), [(None, 1.0), (jnp.tanh, 5 / 3), (jax.nn.relu, 2**0.5)], ids=str)
def test_dense_starts_with_the_variance_of_the_activation(key, activation, factor):
    layer = lux.Dense(200, 300) if activation is None else lux.Dense(200, 300, activation)
    ps, _ = lux.setup(key, layer)
    bound = factor * math.sqrt(3 / 200)
    weight, bias = map(np.asarray, ps.unpack("weight", "bias"))
    assert 0.999 * bound < np.abs(weight).max() <= bound
    assert np.isclose(weight.var(), bound**2 / 3, rtol=0.02)  # 60_000 numbers: 6 standard errors
    assert 0.97 / math.sqrt(200) < np.abs(bias).max() <= 1 / math.sqrt(200)


def test_dense_of_no_features(key):
    layer = lux.Dense(0, 2)
    assert layer(jnp.zeros((5, 0)), *lux.setup(key, layer))[0].shape == (5, 2)


# --- BatchNorm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [X, IMAGES], ids=["features", "images"])
def test_batch_norm_in_training(key, x):
    layer = lux.BatchNorm(3, jnp.tanh, epsilon=1e-3, momentum=0.3)
    ps, st = lux.setup(key, layer)
    ps = ps.replace(scale=[1.0, 2.0, 3.0], bias=[0.5, 0.0, -0.5])
    st = {**st, "running_mean": jnp.array([1.0, 2.0, 3.0]), "running_var": jnp.array([0.5, 1.0, 2.0])}
    rows = x.reshape(-1, 3)
    mean, biased, unbiased = rows.mean(0), rows.var(0), rows.var(0, ddof=1)

    y, st_next = layer(x, ps, st)
    expected = (x - mean) / np.sqrt(biased + 1e-3) * np.array([1.0, 2.0, 3.0]) + np.array([0.5, 0.0, -0.5])
    assert np.allclose(y, np.tanh(expected), atol=1e-13)
    assert np.allclose(st_next["running_mean"], 0.7 * np.array([1.0, 2.0, 3.0]) + 0.3 * mean, rtol=1e-13)
    assert np.allclose(st_next["running_var"], 0.7 * np.array([0.5, 1.0, 2.0]) + 0.3 * unbiased, rtol=1e-13)


def test_batch_norm_in_testing_uses_the_running_statistics(key):
    layer = lux.BatchNorm(3)
    ps, st = lux.setup(key, layer)
    for _ in range(3):
        _, st = layer(X, ps, st)
    y, after = layer(X[:1], ps, lux.testmode(st))
    mean, var = np.asarray(st["running_mean"]), np.asarray(st["running_var"])
    weight = 1 - 0.9**3
    assert np.allclose(mean, weight * X.mean(0)) and np.allclose(var, 0.9**3 + weight * X.var(0, ddof=1))
    assert np.allclose(y, (X[:1] - mean) / np.sqrt(var + 1e-5), rtol=1e-12)
    assert after["running_mean"] is st["running_mean"]


def test_batch_norm_without_statistics_or_parameters(key):
    layer = lux.BatchNorm(3, affine=False, track_stats=False)
    ps, st = lux.setup(key, layer)
    assert ps.size == 0 and st == {}
    expected = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)
    assert np.allclose(layer(X, ps, st)[0], expected, rtol=1e-12)


def test_running_statistics_have_no_gradient(key):
    layer = lux.BatchNorm(3)
    ps, st = lux.setup(key, layer)
    assert not np.any(jax.grad(lambda x: layer(x, ps, st)[1]["running_mean"].sum())(jnp.asarray(X)))
    assert np.allclose(jax.grad(lambda x: layer(x, ps, st)[0].sum())(jnp.asarray(X)), 0, atol=1e-12)


def test_batch_norm_refuses_what_it_cannot_normalize(key):
    layer = lux.BatchNorm(3)
    ps, st = lux.setup(key, layer)
    for shape in ((3,), (4, 2)):
        with pytest.raises(ValueError, match=r"BatchNorm\(3\) expects inputs of shape \(batch, \.\.\., 3\), got"):
            layer(jnp.zeros(shape), ps, st)
    with pytest.raises(ValueError, match=r"more than one value a feature, got shape \(1, 3\)"):
        layer(jnp.zeros((1, 3)), ps, st)
    assert layer(jnp.zeros((1, 3)), ps, lux.testmode(st))[0].shape == (1, 3)


# --- Dropout ------------------------------------------------------------------------------------------------------


def test_dropout_drops_at_its_rate_and_keeps_the_mean(key):
    layer = lux.Dropout(0.25)
    ps, st = lux.setup(key, layer)
    y, st_next = layer(jnp.ones(40_000), ps, st)
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert abs(np.mean(np.asarray(y) == 0) - 0.25) < 0.01  # 4.6 standard errors
    assert np.array_equal(y, layer(jnp.ones(40_000), ps, st)[0])
    other = np.asarray(layer(jnp.ones(40_000), ps, st_next)[0])
    assert abs(np.mean((other == 0) & (np.asarray(y) == 0)) - 0.0625) < 0.01


def test_dropout_is_the_identity_in_testing_and_at_rate_zero(key):
    for layer, mode in ((lux.Dropout(0.5), lux.testmode), (lux.Dropout(0.0), lux.trainmode)):
        st = mode(lux.setup(key, layer)[1])
        y, st_next = layer(jnp.asarray(X), {}, st)
        assert np.array_equal(y, X) and st_next is st


def test_dropout_at_rate_one_gives_zeros_and_a_zero_gradient(key):
    layer = lux.Dropout(1)
    st = lux.setup(key, layer)[1]
    assert not np.any(layer(jnp.asarray(X), {}, st)[0])
    assert not np.any(jax.grad(lambda x: layer(x, {}, st)[0].sum())(jnp.asarray(X)))


@pytest.mark.parametrize("axes", [(0, -1), (-1,), -1, (1, 2)], ids=str)
def test_dropout_shares_its_mask_along_the_other_axes(key, axes):
    layer = lux.Dropout(0.5, axes=axes)
    y = np.asarray(layer(jnp.ones((8, 5, 6, 16)), {}, lux.setup(key, layer)[1])[0])
    varying = {axis % 4 for axis in np.atleast_1d(axes)}
    for axis in range(4):
        assert (np.ptp(y, axis=axis).max() > 0) == (axis in varying)


def test_dropout_refuses_wrong_rates_and_axes(key):
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"Dropout needs a rate between 0 and 1, got {rate}"):
            lux.Dropout(rate)
    layer = lux.Dropout(0.5, axes=(0, 3))
    with pytest.raises(ValueError, match=r"Dropout with axes \(0, 3\) got an input of shape \(6, 3\)"):
        layer(jnp.asarray(X), {}, lux.setup(key, layer)[1])


# --- initializers and activations ---------------------------------------------------------------------------------


def test_initializers_are_values(key):
    assert lux.initializers.Uniform(0.1) == lux.initializers.Uniform(0.1) != lux.initializers.Uniform(0.2)
    assert lux.Dense(2, 3, init_weight=lux.initializers.Uniform(0.1)) == lux.Dense(
        2, 3, init_weight=lux.initializers.Uniform(0.1)
    )
    for init in (lux.initializers.Uniform(0.1), lux.initializers.KaimingUniform(), lux.initializers.zeros):
        assert init(key, (2, 3), jnp.float32).dtype == jnp.float32
        assert init(key, (2, 3)).dtype == jnp.float64
    weight = lux.initializers.KaimingUniform(gain=2.0)(key, (3, 3, 20, 50))
    assert np.isclose(np.var(weight), 4 / (9 * 20), rtol=0.05)


def test_gains_are_those_of_torch():
    torch = {jnp.tanh: 5 / 3, jax.nn.tanh: 5 / 3, jax.nn.relu: 2**0.5, jax.nn.selu: 0.75, jax.nn.sigmoid: 1.0}
    assert {activation: gain(activation) for activation in torch} == torch
    assert gain(jax.nn.leaky_relu) == math.sqrt(2 / (1 + 0.01**2))


# --- the contract -------------------------------------------------------------------------------------------------

TEST = {"mode": lux.Mode.TEST}
LAYERS = [
    (lux.Dense(3, 4, jnp.tanh), X, {}),
    (lux.Dense(3, 2, use_bias=False), X[0], {"batch_axis": None}),
    (lux.BatchNorm(3, jax.nn.softplus), X, {"batch_axis": None}),
    (lux.BatchNorm(3), IMAGES, TEST),
    (lux.BatchNorm(3, affine=False, track_stats=False), IMAGES, {"batch_axis": None}),
    (lux.Dropout(0.5), X, {"batch_axis": None}),
    (lux.Dropout(0.5, axes=(-1,)), X, {}),
    (lux.Dropout(0.5), X, TEST),
    (lux.Lambda(jnp.sin), X, {}),
    (
        lux.Chain(lux.Dense(3, 4, jnp.tanh), lux.BatchNorm(4), lux.Dropout(0.3), lux.Dense(4, 1)),
        X,
        {"batch_axis": None},
    ),
]


@pytest.mark.parametrize(("layer", "x", "options"), LAYERS, ids=lambda value: type(value).__name__)
def test_layers_keep_the_contract(layer, x, options):
    check_layer(layer, x, **options)
