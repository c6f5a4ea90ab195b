"""Convolutions against their formulas, their transposes as gradients, and what they refuse."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)


def convolved(x, weight, stride, pads, dilation, groups):
    """The definition, one output element at a time."""
    n, kernel_size = weight.ndim - 2, weight.shape[:-2]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    space = [
        (s - d * (k - 1) - 1) // step + 1
        for s, d, k, step in zip(x.shape[1:-1], dilation, kernel_size, stride, strict=True)
    ]
    y = np.zeros((len(x), *space, weight.shape[-1]))
    ins, outs = weight.shape[-2], weight.shape[-1] // groups
    for p in itertools.product(*map(range, space)):
        for k in itertools.product(*map(range, kernel_size)):
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


@pytest.mark.parametrize(("space", "kernel_size", "options", "pads"), CASES, ids=str)
def test_conv_is_its_definition(key, space, kernel_size, options, pads):
    layer = lux.Conv(4, 8, kernel_size, jnp.tanh, **options)
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(2, *space, 4))
    n = len(kernel_size)
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


@pytest.mark.parametrize(("space", "kernel_size", "options"), TRANSPOSES, ids=str)
def test_conv_transpose_is_the_gradient_of_conv(key, space, kernel_size, options):
    """With equal weights where there are no groups; with groups, features are mapped within each."""
    groups = options.get("groups", 1)
    back = lux.ConvTranspose(4, 6, kernel_size, use_bias=False, **options)
    shared = {name: value for name, value in options.items() if name != "output_padding"}
    forth = lux.Conv(6, 4, kernel_size, use_bias=False, **shared)
    ps, _ = lux.setup(key, back)
    blocks = np.split(np.asarray(ps.weight), groups, -1)  # (*kernel_size, in / groups, out / groups) for each group
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
    with pytest.raises(ValueError, match=r"Conv with a kernel of 2 axes got a stride for 3: \(1, 1, 1\)"):
        lux.Conv(4, 8, (3, 3), stride=(1, 1, 1))
    with pytest.raises(ValueError, match=r"Conv with a kernel of 1 axes got a padding for 2: \(1, 2\)"):
        lux.Conv(4, 8, 3, padding=(1, 2))
    with pytest.raises(ValueError, match=r"Conv needs a kernel_size of one size for each spatial axis, got \(\)"):
        lux.Conv(4, 8, ())
    for options, says in (
        ({"dilation": 0}, "dilation: expected a whole number of at least 1, got 0"),
        ({"stride": (1, -1)}, r"stride\[1\]: expected a whole number of at least 1, got -1"),
        ({"padding": "FULL"}, """padding: expected "SAME", "VALID" or whole numbers, got 'FULL'"""),
        ({"padding": "circular"}, """.*got 'circular'; what the padding holds is padding_mode="circular\""""),
        ({"padding": (1, -1)}, r"padding\[1\]: expected a whole number of at least 0, got -1"),
        ({"padding": (1, (1, 2, 3))}, r"padding\[1\]: expected .* a pair \(before, after\), got \(1, 2, 3\)"),
        ({"padding": 0.5}, r"padding: expected a whole number, got 0\.5"),
        ({"groups": 0}, "groups: expected a whole number of at least 1, got 0"),
        ({"padding_mode": "wrap"}, "padding_mode: expected 'zeros' or 'circular' or .*, got 'wrap'"),
        ({"activation": "relu"}, r"activation: expected a function such as jnp\.tanh, got 'relu'"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"^Conv\.{says}"):
            lux.Conv(4, 8, (3, 3), **options)
    with pytest.raises(TypeError, match=r"Conv\.kernel_size\[0\]: expected a whole number, got 3\.0"):
        lux.Conv(4, 8, (3.0,))
    with pytest.raises(ValueError, match=r"output_padding from 0 to below stride or dilation \(2,\), got \(2,\)"):
        lux.ConvTranspose(4, 8, 3, stride=2, output_padding=2)


def test_options_that_mean_the_same_are_equal():
    layer = lux.Conv(1, 1, (3, 3))
    assert lux.Conv(1, 1, [3, 3], stride=(1, 1), padding=((0, 0), 0), dilation=np.array([1, 1])) == layer
    assert lux.Conv(1, 1, np.array([3, 3]), padding="VALID") == layer
    assert lux.Conv(1, 1, (3, 3), padding=np.int64(1)) == lux.Conv(1, 1, (3, 3), padding=[[1, 1], 1])
    assert layer.replace(kernel_size=5).window.size == (5,)


def test_conv_prints_its_options():
    layer = lux.Conv(3, 8, [3, 3], jax.nn.relu, stride=2, padding="SAME", use_bias=False)
    assert repr(layer).startswith("Conv(3, 8, (3, 3), jax.nn.relu, stride=2, padding='SAME', use_bias=False)")
    assert eval(repr(layer), {"Conv": lux.Conv, "jax": jax}) == layer


# --- padding by elements of the input -------------------------------------------------------------------------------

MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}  # and NumPy's names
PADDED = [
    ((7,), (3,), {"padding": 2, "stride": 2}, ((2, 2),)),
    ((5, 6), (4, 3), {"padding": "SAME", "groups": 2}, ((1, 2), (1, 1))),
    ((4, 5), (3, 2), {"padding": ((2, 1), 1), "dilation": (1, 2)}, ((2, 1), (1, 1))),
    ((3, 4, 3), (2, 3, 2), {"padding": (0, (1, 2), 1)}, ((0, 0), (1, 2), (1, 1))),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("space", "kernel_size", "options", "pads"), PADDED, ids=str)
def test_conv_pads_with_elements_of_the_input(key, mode, space, kernel_size, options, pads):
    layer = lux.Conv(4, 2, kernel_size, padding_mode=mode, **options)
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(2, *space, 4))
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], mode=MODES[mode])
    expected = layer.replace(padding=0, padding_mode="zeros")(padded, ps, st)[0]
    assert np.allclose(layer(x, ps, st)[0], expected, atol=1e-13)


@pytest.mark.parametrize("kernel_size", [(3,), (3, 2), (3, 2, 4), (2, 1, 3, 2)], ids=str)
def test_circular_convolutions_commute_with_shifts(key, kernel_size):
    """As operators on periodic domains do."""
    n = len(kernel_size)
    options = {"padding": "SAME", "padding_mode": "circular"}
    model = lux.Chain(
        lux.Conv(1, 2, kernel_size, jnp.tanh, **options), lux.MaxPool(kernel_size[::-1], stride=1, **options)
    )
    ps, st = lux.setup(key, model)
    x = RNG.normal(size=(2, *(6, 5, 4, 3)[:n], 1))
    shifts, axes = (2, 3, 1, 1)[:n], tuple(range(1, n + 1))
    y, shifted = (model(x, ps, st)[0] for x in (x, np.roll(x, shifts, axes)))
    assert y.shape == (*x.shape[:-1], 2) and np.allclose(shifted, np.roll(y, shifts, axes), atol=1e-13)


def test_the_heat_equation_on_a_circle():
    """Explicit Euler steps: a wave decays by the eigenvalue of the periodic second difference."""
    n, r = 16, 0.2
    step = lux.Conv(1, 1, 3, padding=1, padding_mode="circular", use_bias=False)
    ps = {"weight": jnp.array([r, 1 - 2 * r, r]).reshape(3, 1, 1)}
    wave = np.sin(2 * np.pi * 3 * np.arange(n) / n + 0.4)[:, None]
    y = wave
    for _ in range(10):
        y = step(y, ps, {})[0]
    eigenvalue = 1 - 2 * r * (1 - np.cos(2 * np.pi * 3 / n))
    assert np.allclose(y, eigenvalue**10 * wave, atol=1e-13)


def test_padding_that_an_axis_cannot_give_is_refused(key):
    layer = lux.Conv(1, 1, 3, padding=4, padding_mode="reflect")
    ps, st = lux.setup(key, layer)
    assert layer(np.ones((5, 1)), ps, st)[0].shape == (11, 1)
    with pytest.raises(ValueError, match=r"cannot pad an axis of 4 elements by \(4, 4\): reflected .* is narrower"):
        layer(np.ones((4, 1)), ps, st)
    for mode in ("circular", "replicate"):
        other = layer.replace(padding_mode=mode)
        assert other(np.ones((1, 1)), ps, st)[0].shape == (7, 1)
        with pytest.raises(ValueError, match=r"an axis of 0 elements by \(4, 4\): an empty axis has nothing to repeat"):
            other(np.ones((0, 1)), ps, st)
    with pytest.raises(ValueError, match=r"^ConvTranspose\.padding_mode: expected 'zeros', got 'circular'"):
        lux.ConvTranspose(1, 1, 3, padding_mode="circular")
