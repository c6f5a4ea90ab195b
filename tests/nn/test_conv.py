"""Convolutions against their formulas, their transposes as gradients, and what they refuse."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.testing import check_layer

RNG = np.random.default_rng(0)


def convolved(x, weight, stride, pads, dilation, groups):
    """The definition, one output number at a time."""
    n, window = weight.ndim - 2, weight.shape[:-2]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    space = [
        (s - d * (k - 1) - 1) // step + 1 for s, d, k, step in zip(x.shape[1:-1], dilation, window, stride, strict=True)
    ]
    y = np.zeros((len(x), *space, weight.shape[-1]))
    ins, outs = weight.shape[-2], weight.shape[-1] // groups
    for p in itertools.product(*map(range, space)):
        for k in itertools.product(*map(range, window)):
            place = tuple(stride[i] * p[i] + dilation[i] * k[i] for i in range(n))
            for g in range(groups):
                numbers = x[(slice(None), *place, slice(g * ins, (g + 1) * ins))]
                y[(slice(None), *p, slice(g * outs, (g + 1) * outs))] += (
                    numbers @ weight[k][:, g * outs : (g + 1) * outs]
                )
    return y


CASES = [
    ((7,), (3,), {"stride": 2}, ((0, 0),)),
    ((7,), (2,), {"padding": ((2, 1),), "groups": 2}, ((2, 1),)),
    ((5, 6), (3, 2), {"padding": 1, "stride": (1, 2), "dilation": (1, 2)}, ((1, 1), (1, 1))),
    ((5, 6), (3, 2), {"padding": "SAME", "groups": 4}, ((1, 1), (0, 1))),
    ((3, 4, 3), (2, 3, 1), {"padding": (0, (1, 0), 0), "groups": 2}, ((0, 0), (1, 0), (0, 0))),
]


@pytest.mark.parametrize(("space", "window", "options", "pads"), CASES, ids=str)
def test_conv_is_its_definition(key, space, window, options, pads):
    layer = lux.Conv(4, 8, window, jnp.tanh, **options)
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(2, *space, 4))
    n = len(window)
    stride, dilation = (np.broadcast_to(options.get(name, 1), n) for name in ("stride", "dilation"))
    expected = convolved(x, np.asarray(ps.weight), stride, pads, dilation, options.get("groups", 1))
    assert np.allclose(layer(x, ps, st)[0], np.tanh(expected + np.asarray(ps.bias)), atol=1e-12)


def test_conv_takes_any_leading_axes(key):
    layer = lux.Conv(2, 3, (2,), use_bias=False)
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(3, 2, 5, 2))
    y = layer(x, ps, st)[0]
    assert y.shape == (3, 2, 4, 3)
    assert np.allclose(y[1, 0], layer(x[1, 0], ps, st)[0], atol=1e-14)


def test_conv_promotes_integers(key):
    layer = lux.Conv(1, 1, (2, 2), init_weight=lux.initializers.ones, use_bias=False)
    with jax.numpy_dtype_promotion("standard"):
        y = layer(np.arange(9, dtype="uint8").reshape(1, 3, 3, 1), *lux.setup(key, layer))[0]
    assert y.dtype == jnp.float64 and y.ravel().tolist() == [8, 12, 20, 24]


def test_conv_counts_its_parameters_and_starts_like_dense(key):
    layer = lux.Conv(6, 300, (5, 5), jax.nn.relu, groups=3)
    ps, _ = lux.setup(key, layer)
    assert ps.weight.shape == (5, 5, 2, 300) and ps.size == 5 * 5 * 2 * 300 + 300
    bound = math.sqrt(2) * math.sqrt(3 / 50)
    assert 0.99 * bound < np.abs(ps.weight).max() <= bound
    assert 0.97 / math.sqrt(50) < np.abs(ps.bias).max() <= 1 / math.sqrt(50)


TRANSPOSES = [
    ((7,), (3,), {"stride": 2, "padding": 1}),
    ((8,), (3,), {"stride": 3, "output_padding": 2}),
    ((6, 5), (3, 2), {"stride": 2, "padding": "SAME"}),
    ((6, 6), (1, 4), {"stride": (3, 2), "padding": "SAME", "groups": 2}),
    ((7, 8), (2, 3), {"dilation": 2, "padding": ((1, 0), (2, 1)), "groups": 2}),
]


@pytest.mark.parametrize(("space", "window", "options"), TRANSPOSES, ids=str)
def test_conv_transpose_is_the_gradient_of_conv(key, space, window, options):
    """With equal weights where there are no groups; with groups, features are mapped within each."""
    groups = options.get("groups", 1)
    back = lux.ConvTranspose(4, 6, window, use_bias=False, **options)
    forth = lux.Conv(6, 4, window, use_bias=False, **{k: v for k, v in options.items() if k != "output_padding"})
    ps, _ = lux.setup(key, back)
    blocks = np.split(np.asarray(ps.weight), groups, -1)  # (*window, in / groups, out / groups) for each group
    weight = np.concatenate([np.swapaxes(block, -1, -2) for block in blocks], -1)
    x = RNG.normal(size=(2, *space, 6))
    y, pull = jax.vjp(lambda x: forth(x, {"weight": weight}, {})[0], jnp.asarray(x))
    v = RNG.normal(size=y.shape)
    expected, found = pull(v)[0], back(v, ps, {})[0]
    if options.get("padding") == "SAME":  # of the inputs that have the output of this size, the largest
        stride = np.broadcast_to(options["stride"], len(space))
        assert found.shape[1:-1] == tuple(stride * y.shape[1:-1])
        found = found[tuple(map(slice, expected.shape))]
    assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-13)


def test_conv_refuses_what_does_not_fit(key):
    layer = lux.Conv(4, 8, (3, 3))
    ps, st = lux.setup(key, layer)
    for shape in ((2, 5, 5, 3), (5, 4)):
        with pytest.raises(
            ValueError, match=r"Conv\(4, 8, \(3, 3\)\) expects .* \(\.\.\., height, width, 4\), got \(\d"
        ):
            layer(jnp.zeros(shape), ps, st)
    with pytest.raises(ValueError, match=r"a window that reaches \(3, 3\) does not fit into \(2, 5\)"):
        layer(jnp.zeros((1, 2, 5, 4)), ps, st)
    with pytest.raises(ValueError, match="Conv: 3 groups must divide the features, got 4 in and 6 out"):
        lux.Conv(4, 6, (3,), groups=3)
    with pytest.raises(ValueError, match=r"Conv with a window of 2 axes got a stride of 3: \(1, 1, 1\)"):
        lux.Conv(4, 8, (3, 3), stride=(1, 1, 1))
    with pytest.raises(ValueError, match=r"Conv needs a dilation of 1 or more, got \(0, 0\)"):
        lux.Conv(4, 8, (3, 3), dilation=0)
    with pytest.raises(ValueError, match=r"window of 1 axes got a padding for 2: \(1, 2\)"):
        lux.Conv(4, 8, 3, padding=(1, 2))
    with pytest.raises(ValueError, match='Conv knows the paddings "SAME" and "VALID", got \'FULL\''):
        lux.Conv(4, 8, 3, padding="FULL")
    with pytest.raises(ValueError, match=r"output_padding from 0 to below stride or dilation \(2,\), got \(2,\)"):
        lux.ConvTranspose(4, 8, 3, stride=2, output_padding=2)


def test_conv_prints_its_options():
    layer = lux.Conv(3, 8, [3, 3], jax.nn.relu, stride=2, padding="SAME", use_bias=False)
    assert repr(layer).startswith("Conv(3, 8, (3, 3), jax.nn.relu, stride=2, padding='SAME', use_bias=False)")
    assert eval(repr(layer), {"Conv": lux.Conv, "jax": jax}) == layer


LAYERS = [
    (lux.Conv(2, 4, 3, jnp.tanh, stride=2, padding="SAME", groups=2), (2, 5, 2)),
    (lux.Conv(2, 3, (2, 3), dilation=(1, 2), padding=((0, 1), (2, 1))), (2, 3, 4, 2)),
    (lux.ConvTranspose(2, 2, (3, 2), jnp.tanh, stride=2, output_padding=1, groups=2), (2, 2, 3, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_convolutions_keep_the_contract(layer, shape):
    check_layer(layer, RNG.normal(size=shape))
