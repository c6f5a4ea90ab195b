"""Layers and losses against PyTorch's, with the same weights: outputs and gradients to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

torch = pytest.importorskip("torch", reason="compares with PyTorch: `make test-extras` installs it")
nn, F = torch.nn, torch.nn.functional

RNG = np.random.default_rng(0)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def first(x):
    """Features first after the batch, as PyTorch has them."""
    return np.moveaxis(x, -1, 1)


def last(x):
    return np.moveaxis(x, 1, -1)


def array(tensor):
    return tensor.detach().numpy()


def compare(ours, theirs, x, ps=None, st=None, weights=(), features_first=True):
    """Compare outputs and the gradients of a sum of outputs with weights, by the input and by the parameters.

    `weights` holds, for each parameter, its path, the tensor, and the function that makes the one of the other.
    """
    to, back = (first, last) if features_first else (np.asarray, np.asarray)
    ps = {} if ps is None else ps

    def loss(ps, x):
        y, _ = ours(x, ps, {} if st is None else st)
        return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)), y

    (of_ps, of_x), y = jax.grad(loss, (0, 1), has_aux=True)(ps, jnp.asarray(x))
    their_x = torch.tensor(np.array(to(x)), requires_grad=True)
    their_y = theirs(their_x)
    np.testing.assert_allclose(y, back(array(their_y)), **CLOSE)
    their_y.backward(torch.tensor(np.array(to(np.sin(np.arange(y.size)).reshape(y.shape)))))
    np.testing.assert_allclose(of_x, back(array(their_x.grad)), **CLOSE)
    for path, tensor, convert in weights:
        np.testing.assert_allclose(of_ps[path], convert(array(tensor.grad)), **CLOSE, err_msg=path)


def loaded(weights, ps):
    """The parameters with those of PyTorch."""
    assert {path for path, _, _ in weights} == {".".join(leaf.path) for leaf in ps.layout.leaves}
    for path, tensor, convert in weights:
        ps = ps.at[path].set(convert(array(tensor)))
    return ps


def check(ours, theirs, x, weights=(), features_first=True, mode=lux.trainmode):
    ps, st = lux.setup(jax.random.key(0), ours)
    compare(ours, theirs, x, loaded(weights, ps), mode(st), weights, features_first)


# --- linear ---------------------------------------------------------------------------------------------------------


def test_linear():
    theirs = nn.Linear(3, 4, dtype=torch.float64)
    weights = [("weight", theirs.weight, np.transpose), ("bias", theirs.bias, np.asarray)]
    check(lux.Dense(3, 4), theirs, RNG.normal(size=(2, 3)), weights, features_first=False)


def test_bilinear():
    theirs = nn.Bilinear(3, 3, 4, dtype=torch.float64)
    weights = [("weight", theirs.weight, lambda w: np.moveaxis(w, 0, -1)), ("bias", theirs.bias, np.asarray)]
    check(lux.Bilinear(3, 3, 4), lambda x: theirs(x, x), RNG.normal(size=(2, 3)), weights, features_first=False)


def test_embedding():
    theirs = nn.Embedding(5, 2, dtype=torch.float64)
    ours, ps, indices = lux.Embedding(5, 2), {"weight": jnp.asarray(array(theirs.weight))}, np.array([[0, 4], [4, 1]])
    gradient = jax.grad(lambda ps: jnp.sum(ours(indices, ps, {})[0] ** 2))(ps)
    y = theirs(torch.tensor(indices))
    (y**2).sum().backward()
    assert np.array_equal(ours(indices, ps, {})[0], array(y))
    np.testing.assert_allclose(gradient["weight"], theirs.weight.grad, **CLOSE)


# --- convolutions ---------------------------------------------------------------------------------------------------

CONVOLUTIONS = [
    (1, (7,), 3, {"stride": 2, "padding": 1, "groups": 2}),
    (2, (6, 5), (3, 2), {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}),
    (2, (4, 5), (3, 3), {"padding": 1, "groups": 4, "bias": False}),
    (3, (3, 4, 3), (2, 3, 1), {"padding": (0, 1, 2)}),
    (1, (7,), 4, {"padding": 3, "padding_mode": "circular", "stride": 2}),
    (1, (7,), 3, {"padding": "same", "padding_mode": "circular"}),
    (2, (6, 5), (3, 2), {"padding": (4, 1), "padding_mode": "reflect", "groups": 2}),
    (2, (4, 5), (3, 4), {"padding": "same", "padding_mode": "replicate"}),
    (3, (3, 4, 3), (2, 3, 2), {"padding": (2, 1, 2), "padding_mode": "circular", "dilation": (1, 2, 1)}),
    (3, (3, 4, 3), (2, 3, 1), {"padding": (1, 2, 0), "padding_mode": "replicate"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "space", "kernel_size", "options"), CONVOLUTIONS, ids=str)
def test_conv(n, space, kernel_size, options):
    theirs = getattr(nn, f"Conv{n}d")(4, 8, kernel_size, dtype=torch.float64, **options)
    weights = [("weight", theirs.weight, lambda w: np.moveaxis(w, (0, 1), (-1, -2))), ("bias", theirs.bias, np.asarray)]
    check_convolution(lux.Conv, theirs, n, space, kernel_size, options, weights)


TRANSPOSES = [
    (1, (4,), 3, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    (2, (3, 4), (3, 2), {"stride": (1, 3), "padding": (1, 0), "dilation": (2, 1)}),
    (3, (2, 3, 2), 2, {"stride": 2, "groups": 4, "bias": False}),
]


@pytest.mark.parametrize(("n", "space", "kernel_size", "options"), TRANSPOSES, ids=str)
def test_conv_transpose(n, space, kernel_size, options):
    theirs = getattr(nn, f"ConvTranspose{n}d")(4, 8, kernel_size, dtype=torch.float64, **options)
    groups = options.get("groups", 1)

    def convert(w):  # (in, out / groups, *kernel_size)
        w = np.moveaxis(w.reshape(groups, 4 // groups, 8 // groups, *w.shape[2:]), (1, 0, 2), (-3, -2, -1))
        return w.reshape(*w.shape[:-2], 8)

    weights = [("weight", theirs.weight, convert), ("bias", theirs.bias, np.asarray)]
    check_convolution(lux.ConvTranspose, theirs, n, space, kernel_size, options, weights)


def check_convolution(kind, theirs, n, space, kernel_size, options, weights):
    options = dict(options)
    use_bias = options.pop("bias", True)
    if options.get("padding") == "same":
        options["padding"] = "SAME"
    kernel_size = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * n
    ours = kind(4, 8, kernel_size, use_bias=use_bias, **options)
    check(ours, theirs, RNG.normal(size=(2, *space, 4)), weights if use_bias else weights[:1])


def test_rrelu_in_testing():
    check(lux.RReLU(0.1, 0.5), nn.RReLU(0.1, 0.5).eval(), RNG.normal(size=(2, 3)), mode=lux.testmode)


# --- space ----------------------------------------------------------------------------------------------------------

POSITIVE = RNG.uniform(0.1, 2.0, size=(2, 5, 7, 3))  # PyTorch's LPPool takes powers without absolute values
SPACE = {
    "max pool": (lux.MaxPool((3, 2), stride=(2, 1), padding=1), nn.MaxPool2d((3, 2), (2, 1), 1)),
    "padded max pool": (
        lux.MaxPool(3, padding=2, stride=2, padding_mode="circular"),
        lambda x: F.max_pool1d(F.pad(x, (2, 2), mode="circular"), 3, 2),
    ),
    "padded mean pool": (
        lux.MeanPool((3, 2), padding=((2, 1), (0, 1)), padding_mode="reflect"),
        lambda x: F.avg_pool2d(F.pad(x, (0, 1, 2, 1), mode="reflect"), (3, 2)),
    ),
    "dilated max pool": (lux.MaxPool((2, 3), stride=1, dilation=2), nn.MaxPool2d((2, 3), 1, dilation=2)),
    "mean pool": (lux.MeanPool((3, 2), padding=1), nn.AvgPool2d((3, 2), padding=1)),
    "mean pool without padding": (
        lux.MeanPool((3, 2), stride=2, padding=1, count_padding=False),
        nn.AvgPool2d((3, 2), 2, padding=1, count_include_pad=False),
    ),
    "p-norm pool": (lux.LPPool((3, 2), p=3), nn.LPPool2d(3, (3, 2))),
    "adaptive max pool": (lux.AdaptiveMaxPool((2, 5)), nn.AdaptiveMaxPool2d((2, 5))),
    "adaptive mean pool": (lux.AdaptiveMeanPool((2, 5)), nn.AdaptiveAvgPool2d((2, 5))),
    "nearest": (lux.Upsample(size=(7, 3)), nn.Upsample((7, 3), mode="nearest-exact")),
    "linear": (lux.Upsample("linear", scale=(1.5, 0.6)), nn.Upsample(scale_factor=(1.5, 0.6), mode="bilinear")),
    "linear with corners": (
        lux.Upsample("linear", size=(8, 3), align_corners=True),
        nn.Upsample((8, 3), mode="bilinear", align_corners=True),
    ),
    "cubic": (lux.Upsample("cubic", size=(9, 4)), nn.Upsample((9, 4), mode="bicubic")),
    "cubic with corners": (
        lux.Upsample("cubic", size=(9, 4), align_corners=True),
        nn.Upsample((9, 4), mode="bicubic", align_corners=True),
    ),
    "a line": (lux.Upsample("linear", scale=2), nn.Upsample(scale_factor=2, mode="linear")),
    "a volume": (lux.Upsample("linear", scale=2), nn.Upsample(scale_factor=2, mode="trilinear")),
    "pixels": (lux.PixelShuffle(2), nn.PixelShuffle(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), SPACE.values(), ids=SPACE)
def test_space(request, ours, theirs):
    name = request.node.callspec.id
    x = {
        "a line": POSITIVE[:, 0],
        "padded max pool": POSITIVE[:, 0],
        "a volume": POSITIVE[..., None],
        "pixels": POSITIVE.reshape(1, 5, 7, 6)[..., :4],
    }
    check(ours, theirs, x.get(name, POSITIVE))


# --- normalizations -------------------------------------------------------------------------------------------------

X = RNG.normal(1.0, 2.0, size=(3, 4, 5, 6))
NORMS = {
    "batch": (lux.BatchNorm(6), nn.BatchNorm2d(6, dtype=torch.float64)),
    "instance": (
        lux.InstanceNorm(6, affine=True, track_stats=True),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True, dtype=torch.float64),
    ),
    "group": (lux.GroupNorm(6, 3), nn.GroupNorm(3, 6, dtype=torch.float64)),
    "layer": (lux.LayerNorm((5, 6)), nn.LayerNorm((5, 6), dtype=torch.float64)),
    "root mean square": (lux.RMSNorm(6), nn.RMSNorm(6, eps=1e-5, dtype=torch.float64)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), NORMS.values(), ids=NORMS)
def test_norms(ours, theirs):
    features_first = not isinstance(ours, lux.LayerNorm | lux.RMSNorm)
    names = {"scale": "weight", "bias": "bias"}
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    weights = [(path, getattr(theirs, name), np.asarray) for path, name in names.items() if hasattr(theirs, name)]
    ps, st = lux.setup(jax.random.key(0), ours)
    ps = loaded(weights, ps)
    compare(ours, theirs, X, ps, st, weights, features_first)
    if st:
        _, st = ours(X, ps, st)
        np.testing.assert_allclose(st["running_mean"], array(theirs.running_mean), **CLOSE)
        np.testing.assert_allclose(st["running_var"], array(theirs.running_var), **CLOSE)
        theirs.eval().zero_grad()
        compare(ours, theirs, X, ps, lux.testmode(st), weights)


def test_weight_norm():
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, (2, 2), dtype=torch.float64))
    g, v = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    with torch.no_grad():
        g.mul_(1.5)
    weights = [
        ("weight.g", g, np.ravel),
        ("weight.v", v, lambda w: np.moveaxis(w, (0, 1), (-1, -2))),
        ("bias", theirs.bias, np.asarray),
    ]
    check(lux.WeightNorm(lux.Conv(2, 3, (2, 2))), theirs, RNG.normal(size=(1, 3, 4, 2)), weights)


def test_spectral_norm():
    theirs = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4, dtype=torch.float64), n_power_iterations=1000)
    weight = theirs.parametrizations.weight.original
    weights = [("weight", weight, np.transpose), ("bias", theirs.bias, np.asarray)]
    ours = lux.SpectralNorm(lux.Dense(3, 4), iterations=1000)
    check(ours, theirs, RNG.normal(size=(2, 3)), weights, features_first=False)


# --- functions ------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "tanhshrink": (lux.activations.tanhshrink, F.tanhshrink),
    "softshrink": (lux.activations.softshrink, F.softshrink),
    "hardshrink": (lux.activations.hardshrink, F.hardshrink),
    "trelu": (lux.activations.trelu, lambda x: F.threshold(x, 1.0, 0.0)),
}


@pytest.mark.parametrize(("ours", "theirs"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations(ours, theirs):
    compare(lux.Lambda(ours), theirs, np.linspace(-2, 2, 12)[None], features_first=False)


def test_gains():
    for name, activation in {"tanh": jnp.tanh, "relu": jax.nn.relu, "selu": jax.nn.selu, "linear": lambda x: x}.items():
        assert lux.activations.gain(activation) == pytest.approx(nn.init.calculate_gain(name))


P, LABELS = RNG.normal(size=(4, 3)), np.array([0, 2, 1, 1])
Y = RNG.uniform(0.1, 0.9, size=(4, 3))
SOFT = Y / Y.sum(1, keepdims=True)
LOSSES = {
    "mse": (lux.losses.mse, F.mse_loss, P, Y),
    "mae": (lux.losses.mae, F.l1_loss, P, Y),
    "huber": (
        lambda p, y, r: lux.losses.huber(p, y, r, delta=0.4),
        lambda p, y, reduction: F.huber_loss(p, y, reduction=reduction, delta=0.4),
        P,
        Y,
    ),
    "poisson": (
        lambda p, y, r: lux.losses.poisson(p, y, r, epsilon=1e-8),
        lambda p, y, reduction: F.poisson_nll_loss(p, y, log_input=False, reduction=reduction),
        Y,
        np.abs(P),
    ),
    "cross_entropy": (
        lambda p, y, r: lux.losses.cross_entropy(p, y, r, label_smoothing=0.2),
        lambda p, y, reduction: F.cross_entropy(p, y, label_smoothing=0.2, reduction=reduction),
        P,
        SOFT,
    ),
    "cross_entropy of labels": (lux.losses.cross_entropy, F.cross_entropy, P, LABELS),
    "binary_cross_entropy": (lux.losses.binary_cross_entropy, F.binary_cross_entropy_with_logits, P, Y),
    "binary_cross_entropy of probabilities": (
        lambda p, y, r: lux.losses.binary_cross_entropy(p, y, r, logits=False),
        F.binary_cross_entropy,
        Y,
        SOFT,
    ),
    "kl_divergence": (
        lux.losses.kl_divergence,
        lambda p, y, reduction: F.kl_div(
            F.log_softmax(p, -1), y, reduction="batchmean" if reduction == "mean" else reduction
        ),
        P,
        SOFT,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("ours", "theirs", "prediction", "target"), LOSSES.values(), ids=LOSSES)
def test_losses(ours, theirs, prediction, target, reduction):
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(prediction), target, reduction)
    tensor = torch.tensor(prediction, requires_grad=True)
    expected = theirs(tensor, torch.tensor(target), reduction=reduction)
    expected.backward()
    np.testing.assert_allclose(value, array(expected), **CLOSE)
    np.testing.assert_allclose(gradient, tensor.grad, **CLOSE)
