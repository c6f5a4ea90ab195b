"""Linear layers, BatchNorm and dropout against plain NumPy formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.core.printing import value_text

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


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40)], ids=str)
@pytest.mark.parametrize("outputs", [2, 30])
def test_gradients_of_few_outputs_of_many_inputs_are_products_with_the_wider_matrix_last(key, outputs, shape):
    layer, x = lux.Dense(40, outputs, jnp.sin), RNG.normal(size=shape)
    ps, st = lux.setup(key, layer)

    def loss(ps, x):
        return jnp.sum(layer(x, ps, st)[0])

    flat = x.reshape(-1, 40)
    slope = np.cos(flat @ np.asarray(ps.weight) + np.asarray(ps.bias))
    got, of_x = jax.grad(loss, (0, 1))(ps, x)
    assert np.allclose(got.weight, flat.T @ slope, atol=1e-12) and np.allclose(got.bias, slope.sum(0), atol=1e-12)
    assert np.allclose(of_x.reshape(-1, 40), slope @ np.asarray(ps.weight).T, atol=1e-12)
    forward = jax.jacfwd(loss)(ps, x)
    assert np.allclose(forward.weight, got.weight, atol=1e-12)
    barrier = "optimization_barrier"
    assert (barrier in str(jax.make_jaxpr(jax.grad(loss))(ps.tree(), x))) == (outputs == 2)
    assert barrier not in str(jax.make_jaxpr(jax.grad(loss, 1))(ps.tree(), x))


@pytest.mark.parametrize("shape", [(), (2,), (3, 2)], ids=str)
def test_dense_refuses_other_numbers_of_features(key, shape):
    layer = lux.Dense(3, 4, jnp.tanh)
    with pytest.raises(ValueError, match=r"Dense\(3, 4, tanh\) expects inputs of shape \(\.\.\., 3\), got \("):
        layer(jnp.zeros(shape), *lux.setup(key, layer))


@pytest.mark.parametrize(
    ("activation", "factor"), [(None, 1.0), (jnp.tanh, 5 / 3), (jax.nn.relu, 2**0.5)], ids=value_text
)
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


# --- Scale, Bilinear, Embedding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [3, (6, 3)], ids=str)
def test_scale(key, shape):
    layer = lux.Scale(shape, jnp.tanh)
    ps, st = lux.setup(key, layer)
    sizes = (shape,) if isinstance(shape, int) else shape
    assert np.array_equal(ps.weight, np.ones(sizes)) and np.array_equal(ps.bias, np.zeros(sizes))
    weight, bias = RNG.normal(size=(2, *sizes))
    assert np.allclose(layer(X, ps.replace(weight=weight, bias=bias), st)[0], np.tanh(weight * X + bias), atol=1e-14)
    with pytest.raises(ValueError, match=r"Scale\(.*, tanh\) expects inputs of shape \(\.\.\., .*3\), got \(6, 2\)"):
        layer(X[:, :2], ps, st)


def test_bilinear(key):
    layer = lux.Bilinear(3, 2, 4, jnp.tanh)
    ps, st = lux.setup(key, layer)
    x, z = X, RNG.normal(size=(6, 2))
    expected = [np.tanh(x[i] @ np.asarray(ps.weight)[:, :, o] @ z[i] + ps.bias[o]) for i in range(6) for o in range(4)]
    assert np.allclose(layer((x, z), ps, st)[0].ravel(), expected, atol=1e-14)
    assert np.abs(ps.data).max() <= 1 / math.sqrt(3) and ps.size == 3 * 2 * 4 + 4
    square = lux.Bilinear(3, 3, 1, use_bias=False)
    ps, st = lux.setup(key, square)
    assert np.array_equal(square(x, ps, st)[0], square((x, x), ps, st)[0])
    with pytest.raises(ValueError, match=r"shapes \(\.\.\., 3\) and \(\.\.\., 2\), got \(6, 3\) and \(6, 3\)"):
        layer(x, *lux.setup(key, layer))


def test_embedding(key):
    layer = lux.Embedding(5, 2)
    ps, st = lux.setup(key, layer)
    weight = np.asarray(ps.weight)
    indices = np.array([[0, 4, 2], [2, 1, 0]])
    assert np.array_equal(layer(indices, ps, st)[0], weight[indices])
    outside = np.asarray(layer(np.array([-1, 5, 3]), ps, st)[0])
    assert np.isnan(outside[:2]).all() and np.array_equal(outside[2], weight[3])
    gradient = jax.grad(lambda ps: layer(indices, ps, st)[0].sum())(ps)
    assert np.array_equal(gradient.weight, np.bincount(indices.ravel(), minlength=5)[:, None] * np.ones((1, 2)))


def test_embedding_takes_indices_of_all_forms(key):
    layer = lux.Embedding(300, 2)
    ps, st = lux.setup(key, layer)
    weight = np.asarray(ps.weight)
    assert np.array_equal(layer(3, ps, st)[0], weight[3]) and np.array_equal(layer([1, 2], ps, st)[0], weight[1:3])
    for dtype in ("uint8", "int8", "int32"):
        indices = np.array([0, 100, 127], dtype)
        assert np.array_equal(layer(indices, ps, st)[0], weight[[0, 100, 127]])
    for wrong in (1.5, [1.0], np.array([True])):
        with pytest.raises(TypeError, match=r"Embedding\(300, 2\) expects integers, got (float64|bool)"):
            layer(wrong, ps, st)


def test_embedding_of_a_grid(key):
    layer = lux.Embedding((3, 4), 2)
    ps, st = lux.setup(key, layer)
    i, j = np.array([0, 2]), np.array([3, 1])
    assert ps.weight.shape == (3, 4, 2) and np.array_equal(layer((i, j), ps, st)[0], np.asarray(ps.weight)[i, j])
    with pytest.raises(ValueError, match=r"Embedding\(\(3, 4\), 2\) expects 2 arrays of indices, got 1"):
        layer(i, ps, st)
    with pytest.raises(TypeError, match=r"expects integers, got float64"):
        layer((X, X), ps, st)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lux.Dense(2, 2, "tanh"), r"Dense\.activation: expected a function such as jnp\.tanh, got 'tanh'"),
        (lambda: lux.Dense(-1, 2), r"Dense\.in_features: expected a whole number of at least 0, got -1"),
        (lambda: lux.Dense(2, 0), r"Dense\.out_features: expected a whole number of at least 1, got 0"),
        (lambda: lux.Dense(2.0, 2), r"Dense\.in_features: expected a whole number, got 2\.0"),
        (lambda: lux.Dense(2, 2, use_bias="no"), r"Dense\.use_bias: expected True or False, got 'no'"),
        (lambda: lux.Dense(2, 2, init_weight=0.1), r"Dense\.init_weight: expected a function .* got 0\.1"),
        (lambda: lux.Scale((2, 0)), r"Scale\.shape\[1\]: expected a whole number of at least 1, got 0"),
        (lambda: lux.Bilinear(2, 2, "3"), r"Bilinear\.out_features: expected a whole number, got '3'"),
        (lambda: lux.Embedding(0, 2), r"Embedding\.num_embeddings: expected a whole number of at least 1, got 0"),
        (lambda: lux.Dropout("0.5"), r"Dropout\.rate: expected a number, got '0\.5'"),
        (lambda: lux.Dropout(0.5, axes=0.5), r"Dropout\.axes: expected a whole number, got 0\.5"),
        (lambda: lux.RReLU(None), r"RReLU\.lower: expected a number, got None"),
        (lambda: lux.FourierFeatures(0, 2), r"FourierFeatures\.in_features: expected a whole number of at least 1"),
        (lambda: lux.PeriodicEmbedding((0,), (0.0,)), r"periods\[0\]: expected a finite number above 0, got 0\.0"),
    ],
)
def test_wrong_options_are_refused_by_name(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()


def test_options_may_be_numbers_and_arrays_of_numpy(key):
    layer = lux.Dropout(np.float32(0.5), axes=np.int64(0))
    assert layer == lux.Dropout(0.5, axes=0) and lux.Dense(np.int32(2), np.int64(3)) == lux.Dense(2, 3)
    assert lux.Scale(np.array([2, 3])) == lux.Scale((2, 3)) and lux.Embedding(np.array(3), 2) == lux.Embedding(3, 2)
    assert lux.MaxPool(2, padding=np.int64(1)) == lux.MaxPool(2, padding=1)
    assert lux.PeriodicEmbedding(np.array([0]), np.array([2.5])) == lux.PeriodicEmbedding(0, 2.5)
    assert lux.FNO(1, 1, width=2, modes=np.array([2, 2])) == lux.FNO(1, 1, width=2, modes=(2, 2))


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
    with pytest.raises(ValueError, match=r"more than one value per feature, got shape \(1, 3\)"):
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


@pytest.mark.parametrize("layer", [lux.Dropout(0.5), lux.AlphaDropout(0.5), lux.VariationalHiddenDropout(0.5)], ids=str)
def test_the_type_of_the_output_does_not_depend_on_the_mode(key, layer):
    st = lux.setup(key, layer)[1]
    for x, dtype in ((np.arange(4), float), (np.array([True]), float), (np.arange(4.0).astype("float16"), "float16")):
        assert layer(x, {}, st)[0].dtype == layer(x, {}, lux.testmode(st))[0].dtype == dtype
    assert np.array_equal(layer(np.arange(4), {}, st)[0], layer(np.arange(4.0), {}, st)[0])


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
        with pytest.raises(ValueError, match=rf"Dropout\.rate: expected a rate between 0 and 1, got {rate}"):
            lux.Dropout(rate)
    layer = lux.Dropout(0.5, axes=(0, 3))
    with pytest.raises(ValueError, match=r"Dropout with axes \(0, 3\) got an input of shape \(6, 3\)"):
        layer(jnp.asarray(X), {}, lux.setup(key, layer)[1])


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_alpha_dropout_keeps_mean_and_variance(key, rate):
    layer = lux.AlphaDropout(rate)
    st = lux.setup(key, layer)[1]
    x = jax.random.normal(key, (100_000,))
    y, st_next = layer(x, {}, st)
    assert abs(np.mean(y)) < 0.02 and abs(np.var(y) - 1) < 0.02  # 6 and 4 standard errors
    a = 1 / np.sqrt((1 - rate) * (1 + rate * 1.7580993408473766**2))
    dropped = a * -1.7580993408473766 * (1 - rate)
    assert abs(np.mean(np.isclose(y, dropped)) - rate) < 0.01
    assert not np.array_equal(y, layer(x, {}, st_next)[0])


def test_rrelu_has_random_slopes_in_training(key):
    layer = lux.RReLU(0.1, 0.4)
    ps, st = lux.setup(key, layer)
    x = np.full(10_000, -2.0)
    slopes = layer(x, ps, st)[0] / x
    assert 0.1 <= slopes.min() < 0.11 and 0.39 < slopes.max() <= 0.4 and abs(slopes.mean() - 0.25) < 0.005
    assert np.array_equal(layer(-x, ps, st)[0], -x)
    with pytest.raises(ValueError, match=r"lower <= upper, got 0\.5 and 0\.1"):
        lux.RReLU(0.5, 0.1)


def test_alpha_dropout_at_its_ends(key):
    x = jnp.asarray(X)
    assert not np.any(layer_output(lux.AlphaDropout(1.0), x))
    assert np.array_equal(layer_output(lux.AlphaDropout(0.0), x), x)
    assert jax.nn.selu(-1e9) == pytest.approx(-1.7580993408473766)


def layer_output(layer, x):
    return layer(x, {}, lux.setup(jax.random.key(0), layer)[1])[0]


def test_variational_dropout_keeps_its_mask_until_a_new_one_is_asked_for(key):
    layer, traces = lux.VariationalHiddenDropout(0.25), []

    @jax.jit
    def call(x, st):
        traces.append(x.shape)
        return layer(x, {}, st)

    st = lux.setup(key, layer)[1]
    first, st = call(jnp.ones(10_000), st)
    second, st = call(jnp.ones(10_000), st)
    third, st = call(jnp.ones(10_000), lux.update_state(st, "update_mask", True))
    fourth, st = call(jnp.ones(10_000), st)
    assert np.array_equal(first, second) and np.array_equal(third, fourth) and len(traces) == 1
    assert set(np.unique(first)) == {0.0, 1 / 0.75}
    both = np.mean((np.asarray(first) == 0) & (np.asarray(third) == 0))
    assert abs(np.mean(np.asarray(first) == 0) - 0.25) < 0.02 and abs(both - 0.0625) < 0.012  # 5 standard errors
    y, st_test = layer(X, {}, lux.testmode(st))
    assert y is X and not st_test["update_mask"]
