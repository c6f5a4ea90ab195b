"""Normalizations against their formulas; BatchNorm is in test_nn.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(1.0, 2.0, size=(4, 5, 2, 6))
SCALE, BIAS = RNG.normal(size=(2, 6))


def standard(x, axes, epsilon=1e-5):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def with_parameters(key, layer):
    ps, st = lux.setup(key, layer)
    return ps.replace(scale=SCALE, bias=BIAS), st


@pytest.mark.parametrize("shape", [(4, 5, 2, 6), (4, 6)], ids=str)
def test_group_norm(key, shape):
    layer = lux.GroupNorm(6, 2, jnp.tanh, epsilon=1e-3)
    x = IMAGES.ravel()[: np.prod(shape)].reshape(shape)
    halves = [standard(half, tuple(range(1, len(shape))), 1e-3) for half in np.split(x, 2, -1)]
    expected = np.tanh(np.concatenate(halves, -1) * SCALE + BIAS)
    assert np.allclose(layer(x, *with_parameters(key, layer))[0], expected, atol=1e-13)


def test_instance_norm(key):
    layer = lux.InstanceNorm(6, affine=True)
    ps, st = with_parameters(key, layer)
    y, st = layer(IMAGES, ps, st)
    assert np.allclose(y, standard(IMAGES, (1, 2)) * SCALE + BIAS, atol=1e-13) and st == {}
    assert lux.setup(key, lux.InstanceNorm(6))[0].size == 0


def test_instance_norm_tracks_the_means_over_the_batch(key):
    layer = lux.InstanceNorm(6, track_stats=True, momentum=0.3)
    ps, st = lux.setup(key, layer)
    y, st = layer(IMAGES, ps, st)
    mean, var = IMAGES.mean((0, 1, 2)), IMAGES.var((1, 2), ddof=1).mean(0)
    assert np.allclose(y, standard(IMAGES, (1, 2)), atol=1e-13)
    assert np.allclose(st["running_mean"], 0.3 * mean) and np.allclose(st["running_var"], 0.7 + 0.3 * var)
    y, _ = layer(IMAGES, ps, lux.testmode(st))
    assert np.allclose(y, (IMAGES - 0.3 * mean) / np.sqrt(0.7 + 0.3 * var + 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [lux.BatchNorm(6), lux.InstanceNorm(6, affine=True)], ids=str)
def test_numbers_far_from_zero_keep_their_digits(key, layer):
    """Rounding of 1000 in float32 is 3e-5 of a deviation of 2, and so are the errors; mean squares would lose 3 %."""
    ps, st = with_parameters(key, layer)

    def loss(ps, x):
        return jnp.sum(layer(x, ps, st)[0] ** 3)

    def output_and_gradients(dtype):
        cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)  # noqa: E731
        tree, x = cast(ps.tree()), cast(jnp.asarray(IMAGES + 1000, jnp.float32))
        return jax.tree.leaves((layer(x, tree, lux.setup(key, layer, dtype)[1])[0], jax.grad(loss, (0, 1))(tree, x)))

    with jax.numpy_dtype_promotion("standard"):
        for narrow, wide in zip(output_and_gradients("float32"), output_and_gradients("float64"), strict=True):
            assert np.abs(narrow - wide).max() < 1e-3 * np.abs(wide).max()


@pytest.mark.parametrize("shape", [6, (6,), (2, 6)], ids=str)
def test_layer_norm_and_rms_norm(key, shape):
    axes = (-1,) if isinstance(shape, int) else tuple(range(-len(shape), 0))
    layer, rms = lux.LayerNorm(shape, jnp.tanh), lux.RMSNorm(shape)
    ps, st = with_parameters(key, lux.LayerNorm(shape))
    assert ps.scale.shape == rms.init_params(key)["scale"].shape == (shape if isinstance(shape, tuple) else (shape,))
    assert np.allclose(layer(IMAGES, ps, st)[0], np.tanh(standard(IMAGES, axes) * SCALE + BIAS), atol=1e-13)
    expected = IMAGES / np.sqrt((IMAGES**2).mean(axes, keepdims=True) + 1e-5) * SCALE
    assert np.allclose(rms(IMAGES, {"scale": ps["scale"]}, {})[0], expected, atol=1e-13)


LAYERS = [lux.BatchNorm(6), lux.InstanceNorm(6), lux.GroupNorm(6, 3), lux.LayerNorm(6), lux.RMSNorm(6)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_statistics_of_half_precision_are_in_float32(key, layer):
    """In float16 the squares of these numbers overflow."""
    ps, st = lux.setup(key, layer, "float16")
    x = 1000 * IMAGES
    with jax.numpy_dtype_promotion("standard"):
        y, _ = layer(jnp.asarray(x, jnp.float16), ps, st)
    expected, _ = layer(x, *lux.setup(key, layer, "float64"))
    assert y.dtype == jnp.float16 and np.abs(y.astype(float) - expected).max() < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("layer", [lux.BatchNorm(1, momentum=0.01), lux.InstanceNorm(1, track_stats=True)], ids=str)
def test_running_statistics_arrive_in_half_precision(key, layer, half):
    """In half precision each step of 0.01 of a difference would be less than half a unit of what it is added to."""
    x = jnp.asarray(RNG.normal(3.0, 1.0, size=(4, 128, 1)), half)
    ps, st = lux.setup(key, layer.replace(momentum=0.01), half)
    for _ in range(10):
        y, st = jax.lax.fori_loop(0, 100, lambda _, before: layer(x, ps, before[1]), (jnp.zeros_like(x), st))
    wide = np.asarray(x, float)
    var = wide.var(ddof=1) if isinstance(layer, lux.BatchNorm) else wide.var(1, ddof=1).mean()
    assert y.dtype == half and st["running_mean"].dtype == jnp.float32
    assert np.allclose(st["running_mean"], wide.mean(), rtol=1e-3) and np.allclose(st["running_var"], var, rtol=1e-3)
    y, _ = layer(x, ps, lux.testmode(st))
    assert y.dtype == half and abs(np.asarray(y, float).std() - 1) < 0.02


@pytest.mark.parametrize("shape", [(0, 6), (0, 4, 6), (3, 0, 6)], ids=str)
def test_a_batch_without_samples_leaves_the_statistics(key, shape):
    for layer in (lux.BatchNorm(6), lux.InstanceNorm(6, affine=True, track_stats=True)):
        if isinstance(layer, lux.InstanceNorm) and len(shape) == 2:
            continue
        ps, st = lux.setup(key, layer)
        (y, after), pull = jax.vjp(lambda ps, x, layer=layer, st=st: layer(x, ps, st), ps, jnp.zeros(shape))
        assert y.shape == shape and np.array_equal(after["running_mean"], np.zeros(6))
        gradient, _ = pull((y, jax.tree.map(np.zeros_like, after)))
        assert not np.any(gradient.data)


def test_one_channel_one_group_and_one_time(key):
    x = jnp.full((2, 1, 1), 3.0)
    for layer in (lux.GroupNorm(1, 1), lux.LayerNorm(1), lux.BatchNorm(1)):
        ps, st = lux.setup(key, layer)
        y, pull = jax.vjp(lambda x, layer=layer, ps=ps, st=st: layer(x, ps, st)[0], x)
        assert not np.any(y) and np.isfinite(pull(jnp.ones_like(y))[0]).all()


def test_wrong_features_ranks_and_groups(key):
    with pytest.raises(ValueError, match="GroupNorm cannot split 6 features into 4 equal groups"):
        lux.GroupNorm(6, 4)
    for layer, shape, says in (
        (lux.GroupNorm(6, 2), (4, 5), r"GroupNorm\(6, 2\) expects inputs of shape \(batch, \.\.\., 6\), got \(4, 5\)"),
        (lux.InstanceNorm(6), (4, 6), r"InstanceNorm\(6\) .* \(batch, space, \.\.\., 6\), got \(4, 6\)"),
        (lux.InstanceNorm(6), (4, 1, 6), r"needs more than one value per feature, got shape \(4, 1, 6\)"),
        (lux.LayerNorm((2, 6)), (4, 6), r"LayerNorm\(\(2, 6\)\) .* \(\.\.\., 2, 6\), got \(4, 6\)"),
        (lux.RMSNorm(6), (6, 4), r"RMSNorm\(6\) .* \(\.\.\., 6\), got \(6, 4\)"),
    ):
        with pytest.raises(ValueError, match=says):
            layer(jnp.zeros(shape), *lux.setup(key, layer))


@pytest.mark.exhaustive
def test_options_that_are_wrong_are_refused_by_name():
    for make, says in (
        (lambda: lux.BatchNorm(0), r"BatchNorm\.features: expected a whole number of at least 1, got 0"),
        (lambda: lux.BatchNorm(3, momentum=1.5), r"BatchNorm\.momentum: expected a rate between 0 and 1, got 1\.5"),
        (lambda: lux.LayerNorm(3.0), r"LayerNorm\.shape: expected a whole number, got 3\.0"),
        (lambda: lux.RMSNorm((3, -1)), r"RMSNorm\.shape\[1\]: expected a whole number of at least 1, got -1"),
        (lambda: lux.GroupNorm(6, 0), r"GroupNorm\.groups: expected a whole number of at least 1, got 0"),
        (
            lambda: lux.GroupNorm(6, 2, epsilon=-1),
            r"GroupNorm\.epsilon: expected .* of at least 0, got -1",
        ),
        (lambda: lux.InstanceNorm(6, "tanh"), r"InstanceNorm\.activation: expected a function .* got 'tanh'"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            make()
