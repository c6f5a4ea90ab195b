"""Pooling, upsampling and pixel shuffle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 6, 3))
REDUCED = {
    lux.MaxPool: lambda x: x.max((1, 2)),
    lux.MeanPool: lambda x: x.mean((1, 2)),
    lux.LPPool: lambda x: np.sqrt((x**2).sum((1, 2))),
}


def pooled(x, reduce, kernel_size, stride, dilation, pads, fill):
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    starts = [
        range(0, size - d * (k - 1), s)
        for size, k, s, d in zip(x.shape[1:3], kernel_size, stride, dilation, strict=True)
    ]
    y = np.zeros((len(x), *map(len, starts), x.shape[-1]))
    for p in itertools.product(*(range(len(s)) for s in starts)):
        cut = [slice(s[i], s[i] + d * k, d) for s, i, k, d in zip(starts, p, kernel_size, dilation, strict=True)]
        y[:, *p] = reduce(x[:, *cut])
    return y


@pytest.mark.parametrize("dilation", [1, (2, 1)], ids=str)
@pytest.mark.parametrize("pool", REDUCED)
def test_pools_are_their_definition(pool, dilation):
    layer = pool((2, 3), stride=(1, 2), padding=((1, 0), (1, 1)), dilation=dilation)
    fill = -np.inf if pool is lux.MaxPool else 0.0
    expected = pooled(X, REDUCED[pool], (2, 3), (1, 2), np.broadcast_to(dilation, 2), ((1, 0), (1, 1)), fill)
    assert np.allclose(layer(X, {}, {})[0], expected, atol=1e-13)


def test_the_window_is_the_default_stride():
    for layer, shape in ((lux.MaxPool((2, 3)), (2, 2, 2, 3)), (lux.MeanPool((2, 3), padding="SAME"), (2, 3, 2, 3))):
        assert lux.output_shape(layer, X) == shape
    assert repr(lux.MaxPool((2, 3), padding=1)) == "MaxPool((2, 3), padding=1)"


def test_padding_may_not_count_in_the_mean():
    ones = np.ones((1, 3, 1))
    assert lux.MeanPool(2, padding=1)(ones, {}, {})[0].ravel().tolist() == [0.5, 1.0]
    assert lux.MeanPool(2, padding=1, count_padding=False)(ones, {}, {})[0].ravel().tolist() == [1.0, 1.0]


def test_sums_of_half_precision_are_in_float32():
    """Of a window of 64 x 64, of numbers whose sum is beyond the largest, and of windows of other numbers."""
    for dtype in (jnp.bfloat16, jnp.float16):
        ones, large = jnp.ones((64, 64, 1), dtype), jnp.full((2, 1), 6e4, dtype)
        assert lux.MeanPool((64, 64))(ones, {}, {})[0].ravel() == 1 == lux.GlobalMeanPool()(ones[None], {}, {})[0]
        assert (
            lux.LPPool((64, 64), p=1)(ones, {}, {})[0].ravel() == 4096 == lux.GlobalLPPool(p=1)(ones[None], {}, {})[0]
        )
        assert lux.MeanPool(2)(large, {}, {})[0].ravel() == large[0]
        x = jnp.asarray(RNG.random((2, 32, 32, 3)), dtype)
        for layer in (lux.MeanPool((16, 16)), lux.LPPool((16, 16), p=3), lux.AdaptiveMeanPool(3)):
            y, expected = layer(x, {}, {})[0], layer(x.astype(float), {}, {})[0]
            assert y.dtype == dtype and np.allclose(y.astype(float), expected, rtol=float(jnp.finfo(dtype).eps))


def test_max_pool_of_booleans():
    x = np.array([[True], [False], [False], [False]])
    for layer in (lux.MaxPool(2), lux.MaxPool(2, stride=1, dilation=2), lux.MaxPool(2, padding=1)):
        y = layer(x, {}, {})[0]
        assert y.dtype == bool and np.array_equal(y, layer(x.astype(float), {}, {})[0])


def test_max_pool_of_integers_and_of_negative_numbers_in_padding():
    for x in (np.full((1, 2, 1), -3), np.full((1, 2, 1), -3.0)):
        for dilation in (1, 2):
            assert np.all(np.asarray(lux.MaxPool(2, padding=1, stride=1, dilation=dilation)(x, {}, {})[0]) == -3)


@pytest.mark.parametrize("pool", REDUCED)
@pytest.mark.parametrize(("mode", "numpy_mode"), [("circular", "wrap"), ("reflect", "reflect"), ("replicate", "edge")])
def test_padding_by_elements_of_the_input(pool, mode, numpy_mode):
    layer = pool((3, 2), stride=(2, 1), padding=((2, 1), 1), padding_mode=mode, dilation=(1, 2))
    padded = np.pad(X, [(0, 0), (2, 1), (1, 1), (0, 0)], mode=numpy_mode)
    expected = pooled(padded, REDUCED[pool], (3, 2), (2, 1), (1, 2), ((0, 0), (0, 0)), np.nan)
    assert np.allclose(layer(X, {}, {})[0], expected, atol=1e-13)


def test_elements_that_are_repeated_always_count():
    with pytest.raises(ValueError, match=r"count_padding=False is for padding_mode=\"zeros\"; .* 'circular' repeats"):
        lux.MeanPool(2, padding=1, padding_mode="circular", count_padding=False)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"padding": 2}, 3), ({"padding": ((0, 3),), "stride": 1}, 3), ({"padding": "SAME", "dilation": 2}, 1)],
    ids=str,
)
def test_windows_that_hold_nothing_but_padding(options, size):
    """Their maximum would be that of no elements, their mean 0 / 0; sums over nothing are zero."""
    x = np.ones((1, size, 1))
    for layer in (lux.MaxPool(2, **options), lux.MeanPool(2, count_padding=False, **options)):
        with pytest.raises(ValueError, match=rf"a window on \({size},\) holds nothing else"):
            layer(x, {}, {})
    for layer in (lux.MeanPool(2, **options), lux.LPPool(2, **options)):
        y, pull = jax.vjp(lambda x, layer=layer: layer(x, {}, {})[0], jnp.asarray(x))
        assert np.min(np.abs(y)) == 0 and np.isfinite(pull(jnp.ones_like(y))[0]).all()


def test_axes_without_elements_are_refused():
    for layer in (lux.GlobalMaxPool(), lux.GlobalMeanPool(), lux.AdaptiveMeanPool(2), lux.Upsample("linear", size=3)):
        with pytest.raises(ValueError, match=r"no spatial axis empty, got \(2, 0, 3\)"):
            layer(np.ones((2, 0, 3)), {}, {})
        assert layer(np.ones((0, 2, 3)), {}, {})[0].shape[0] == 0


def test_options_that_do_not_fit_are_refused_by_name():
    for make, says in (
        (lambda: lux.MaxPool(0), r"MaxPool\.kernel_size: expected a whole number of at least 1, got 0"),
        (lambda: lux.MaxPool(2, stride=0.5), r"MaxPool\.stride: expected a whole number, got 0\.5"),
        (lambda: lux.AdaptiveMeanPool((2, 0)), r"AdaptiveMeanPool\.size\[1\]: expected a whole number of at least 1"),
        (lambda: lux.Upsample(scale=-1), r"Upsample\.scale: expected a finite number above 0, got -1"),
        (lambda: lux.Upsample(size=0), r"Upsample\.size: expected a whole number of at least 1, got 0"),
        (lambda: lux.PixelShuffle(0), r"PixelShuffle\.factor: expected a whole number of at least 1, got 0"),
        (lambda: lux.GlobalMeanPool(keepdims="no"), r"GlobalMeanPool\.keepdims: expected True or False, got 'no'"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            make()


def test_the_norm_has_a_zero_gradient_at_zero():
    for layer in (lux.LPPool(2), lux.GlobalLPPool(p=3), lux.AdaptiveLPPool(2, p=1.5), lux.LPPool(2, p=0.5)):
        gradient = jax.grad(lambda x, layer=layer: layer(x, {}, {})[0].sum())(jnp.zeros((1, 4, 1)))
        assert not np.any(gradient)
    some = jax.grad(lambda x: lux.LPPool(2, p=0.5)(x, {}, {})[0].sum())(jnp.array([[[0.0], [4.0]]]))
    assert np.allclose(some.ravel(), [0, 1])


def test_global_pools():
    assert np.allclose(lux.GlobalMeanPool()(X, {}, {})[0], X.mean((1, 2)))
    assert np.allclose(lux.GlobalMaxPool(keepdims=True)(X, {}, {})[0], X.max((1, 2), keepdims=True))
    assert np.allclose(lux.GlobalLPPool(p=3)(X, {}, {})[0], (np.abs(X) ** 3).sum((1, 2)) ** (1 / 3))


def test_adaptive_pools_share_space_out():
    y = np.asarray(lux.AdaptiveMeanPool((2, 4))(X, {}, {})[0])
    assert y.shape == (2, 2, 4, 3)
    assert np.allclose(y[:, 0, 1], X[:, 0:3, 1:3].mean((1, 2)))  # of 5 and 6: rows 0 to 3, columns 1 to 3
    assert np.allclose(y[:, 1, 3], X[:, 2:5, 4:6].mean((1, 2)))
    assert np.allclose(lux.AdaptiveLPPool(1)(X, {}, {})[0], np.sqrt((X**2).sum((1, 2), keepdims=True)))
    assert lux.AdaptiveMaxPool((4,))(X, {}, {})[0].shape == (2, 5, 4, 3)


def test_upsampling_by_whole_numbers_repeats():
    y = lux.Upsample(scale=(2, 3))(X, {}, {})[0]
    assert np.array_equal(y, X.repeat(2, 1).repeat(3, 2))
    assert lux.Upsample("cubic", size=4)(X[:, 0], {}, {})[0].shape == (2, 4, 3)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_keeps_constants_and_lines(mode):
    line = np.arange(6.0)[None, :, None]
    y = np.asarray(lux.Upsample(mode, size=11, align_corners=True)(line, {}, {})[0]).ravel()
    inside = slice(2, -2) if mode == "cubic" else slice(None)  # at the border, cubic repeats the last number
    assert np.allclose(y[inside], np.linspace(0, 5, 11)[inside])
    assert np.allclose(lux.Upsample(mode, scale=2.5)(np.ones((1, 6, 1)), {}, {})[0], 1.0)
    y = np.asarray(lux.Upsample("linear", scale=2)(line, {}, {})[0]).ravel()
    assert np.allclose(y[1:-1], np.arange(0.25, 5, 0.5)) and y[0] == 0 and y[-1] == 5


def test_upsample_of_integers():
    with jax.numpy_dtype_promotion("standard"):
        y = lux.Upsample("linear", size=3, align_corners=True)(np.array([[[0], [1]]], "int64"), {}, {})[0]
    assert y.ravel().tolist() == [0, 0.5, 1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_sizes_of_one(mode):
    """One cell is repeated; with aligned corners, one cell of many is the first."""
    for aligned in (False, True):
        y = lux.Upsample(mode, size=4, align_corners=aligned)(np.array([[[3.0]]]), {}, {})[0]
        assert np.allclose(y, np.full((1, 4, 1), 3.0))
    x = np.arange(1.0, 5)[None, :, None]
    assert np.allclose(lux.Upsample(mode, size=1, align_corners=True)(x, {}, {})[0], 1.0)
    assert np.allclose(lux.Upsample(mode, size=1)(x, {}, {})[0], 2.5)


def test_pixel_shuffle_makes_space_of_features():
    x = np.arange(2 * 3 * 8.0).reshape(1, 2, 3, 8)
    y = np.asarray(lux.PixelShuffle(2)(x, {}, {})[0])
    assert y.shape == (1, 4, 6, 2)
    for i, j in itertools.product(range(2), range(2)):
        assert np.array_equal(y[:, i::2, j::2], x[..., [2 * i + j, 4 + 2 * i + j]])


def test_bad_options_and_inputs():
    with pytest.raises(
        ValueError, match=r"MaxPool\(\(2, 2\)\) expects .* \(\.\.\., height, width, features\), got \(5, 3\)"
    ):
        lux.MaxPool((2, 2))(X[0, 0, :5], {}, {})
    with pytest.raises(ValueError, match=r"reaches \(7, 2\) does not fit into \(5, 6\)"):
        lux.MeanPool((7, 2))(X, {}, {})
    with pytest.raises(ValueError, match=r"LPPool\.p: expected a finite number above 0, got -1"):
        lux.LPPool(2, p=-1)
    with pytest.raises(
        ValueError, match=r"GlobalMaxPool\(\) expects .* \(batch, \*space, features\), .*, got \(2, 3\)"
    ):
        lux.GlobalMaxPool()(jnp.zeros((2, 3)), {}, {})
    with pytest.raises(ValueError, match=r"cannot pool the spatial axes of an input of shape \(2, 5, 6, 3\)"):
        lux.AdaptiveMaxPool((2, 2, 2))(X, {}, {})
    with pytest.raises(ValueError, match=r"Upsample\.mode: expected 'nearest' or 'linear' or 'cubic', got 'bicubic'"):
        lux.Upsample("bicubic", size=3)
    for options in ({}, {"size": 2, "scale": 2}):
        with pytest.raises(ValueError, match="either size or scale"):
            lux.Upsample(**options)
    with pytest.raises(ValueError, match='mode "nearest" has no align_corners'):
        lux.Upsample(size=2, align_corners=True)
    with pytest.raises(ValueError, match=r"makes a size of 0 from 5"):
        lux.Upsample(scale=0.1)(X, {}, {})
    with pytest.raises(ValueError, match=r"a multiple of 4\), got \(2, 5, 6, 3\)"):
        lux.PixelShuffle(2)(X, {}, {})
