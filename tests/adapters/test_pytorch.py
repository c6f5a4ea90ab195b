"""Weights of PyTorch's nets in ours: the same outputs, and back."""

import functools
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.adapters import load_torch, to_torch

torch = pytest.importorskip("torch", reason="loads weights of PyTorch: `make test-extras` installs it")
nn, KEY = torch.nn, jax.random.key(0)
gelu = functools.partial(jax.nn.gelu, approximate=False)


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shaken(net):
    """The net in test mode, with statistics and affine parameters that are not those of the start."""
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data + 0.3 * torch.rand_like(tensor)
    return net.eval()


def loaded(layer, net, sample, **options):
    """Compare the outputs, and the weights on the way back; return the loaded parameters and state."""
    ps, st = jax.jit(lux.setup)(KEY, layer)
    ps, st = load_torch(layer, ps, st, net.state_dict(), **options)
    y = jax.jit(lambda *args: layer(*args)[0])(jnp.asarray(images_last(sample)), ps, lux.testmode(st))
    theirs = net(torch.tensor(sample))
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    np.testing.assert_allclose(y, images_last(theirs.detach().numpy()), atol=1e-9)
    back = to_torch(layer, ps, st, like=net, **options)
    assert list(back) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    return ps, st


def images_last(x):
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def random(*shape):
    return np.random.default_rng(1).normal(size=shape)


def test_an_mlp_by_name_by_order_and_from_a_file(tmp_path):
    net = shaken(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), nn.LayerNorm(3)))
    x = random(4, 2)
    by_name = lux.Chain(lux.Dense(2, 5), jnp.tanh, lux.Dense(5, 3, use_bias=False), lux.LayerNorm(3))
    ps, st = loaded(by_name, net, x)
    again = to_torch(by_name, ps, st)
    assert list(again) == list(net.state_dict())
    net.load_state_dict(again)
    folded = lux.Chain(lux.Dense(2, 5, jnp.tanh), lux.Dense(5, 3, use_bias=False), lux.LayerNorm(3))
    loaded(folded, net, x)
    frozen, kept, moved = lux.parameters.freeze(folded, *loaded(folded, net, x), which=("layer_0",))
    fresh = lux.setup(jax.random.key(1), frozen)
    kept, moved = load_torch(frozen, *fresh, net)
    np.testing.assert_array_equal(moved["frozen"]["layer_0"]["weight"], net[0].weight.detach().T)
    assert kept.layout is fresh[0].layout

    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({k: v.bfloat16() for k, v in net.state_dict().items()}, tmp_path / "net.safetensors")
    ps, _ = load_torch(by_name, *lux.setup(KEY, by_name), tmp_path / "net.safetensors")
    np.testing.assert_array_equal(ps["layer_0.weight"], net[0].weight.detach().bfloat16().double().T)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"a pickle.*torch\.load\(path, weights_only=True\)"):
        load_torch(by_name, *lux.setup(KEY, by_name), tmp_path / "net.pt")


def test_a_convnet_with_statistics_and_flattened_images():
    net = shaken(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.InstanceNorm2d(4),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.GroupNorm(3, 6), nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(4 * 5 * 3, 2),
        )
    )  # fmt: skip
    layer = lux.Chain(
        lux.Conv(3, 4, (3, 3), padding=1), lux.BatchNorm(4, jax.nn.relu), lux.MaxPool((2, 2)), lux.InstanceNorm(4),
        lux.Conv(4, 6, (3, 3), stride=2, padding=1, groups=2), lux.GroupNorm(6, 3, jax.nn.relu),
        lux.ConvTranspose(6, 4, (3, 3), stride=2, groups=2), lux.Reshape(-1), lux.Dense(4 * 5 * 3, 2),
    )  # fmt: skip
    x = random(2, 3, 8, 4)
    _, st = loaded(layer, net, x, x=jax.ShapeDtypeStruct((2, 8, 4, 3), jnp.float64))
    np.testing.assert_array_equal(st["layer_1"]["running_var"], net[1].running_var)
    with pytest.raises(ValueError, match=r"`layer_8` gets flattened images.*`x=`"):
        load_torch(layer, *lux.setup(KEY, layer), net)


def test_norms_of_whole_images_are_turned():
    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LayerNorm([4, 4, 4]), nn.Conv2d(4, 2, 1)))
    loaded(
        lux.Chain(lux.Conv(3, 4, (3, 3), padding=1), lux.LayerNorm((4, 4, 4)), lux.Conv(4, 2, (1, 1))),
        net,
        random(2, 3, 4, 4),
    )
    tokens = lux.Chain(lux.PatchEmbedding((2, 2), 3, 4), lux.LayerNorm((4, 4)))
    ps, st = lux.setup(KEY, tokens)
    weights = to_torch(tokens, ps, st)
    weights["1.weight"] = torch.rand(4, 4)
    np.testing.assert_array_equal(load_torch(tokens, ps, st, weights)[0]["layer_1.scale"], weights["1.weight"])


class Heads(nn.Module):
    """With two heads on flattened images, one of them square."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm1d(24)
        self.mean, self.gate, self.end = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.back = nn.Sequential(nn.Unflatten(1, (4, 2, 3)), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 3, stride=2))

    def forward(self, x):
        x = self.norm(torch.tanh(self.conv(x).flatten(1)))
        return self.back(torch.tanh(self.end(self.mean(x) * self.gate(x))))


class OwnHeads(lux.Container):
    """The same as a container of one's own."""

    norm: lux.Layer = lux.BatchNorm(24)
    mean: lux.Layer = lux.Dense(24, 24)
    gate: lux.Layer = lux.Dense(24, 24)

    def forward(self, x, ps, st):
        (x,), st = self.run(ps, st, norm=x)
        (mean,), st = self.run(ps, st, mean=x)
        (gate,), st = self.run(ps, st, gate=x)
        return mean * gate, st


@pytest.mark.slow
def test_flattened_images_meet_norms_and_heads_and_are_made_again():
    x, given = random(2, 3, 2, 3), jax.ShapeDtypeStruct((2, 2, 3, 3), jnp.float64)
    start = [lux.Conv(3, 4, (3, 3), jnp.tanh, padding=1), lux.Flatten()]
    heads = lux.BranchLayer(lux.Dense(24, 24), lux.Dense(24, 24), connection=jnp.multiply)
    back = [lux.Reshape(2, 3, -1), lux.BatchNorm(4), lux.ConvTranspose(4, 2, (3, 3), stride=2)]
    loaded(lux.Chain(*start, lux.BatchNorm(24), heads, lux.Dense(24, 24, jnp.tanh), *back), shaken(Heads()), x, x=given)

    plain = nn.Sequential(nn.Flatten(), nn.LayerNorm(18), nn.Linear(18, 18), nn.Tanh(), nn.Linear(18, 18))
    net = nn.Sequential(plain, nn.Unflatten(1, (3, 2, 3)))  # no convolution
    layers = [lux.LayerNorm(18), lux.Dense(18, 18, jnp.tanh), lux.Dense(18, 18), lux.Reshape(2, 3, 3)]
    loaded(lux.Chain(lux.Flatten(), *layers), shaken(net), x, x=given)
    first = lux.Chain(lux.Flatten(), lux.Dense(18, 2))  # of images or not
    with pytest.raises(ValueError, match=r"`layer_1` gets flattened images.*give an input, `x=`"):
        load_torch(first, *lux.setup(KEY, first), nn.Sequential(nn.Flatten(), nn.Linear(18, 2)))
    for unknown in (lux.GroupNorm(24, 2), lux.SkipConnection(lux.Dense(24, 24), jnp.add)):
        layer = lux.Chain(*start, unknown)
        with pytest.raises(ValueError, match=r"`layer_2`, .*gets flattened images.*only Dense, BatchNorm"):
            load_torch(layer, *lux.setup(KEY, layer), {}, x=given)

    narrow = Heads()
    narrow.mean, narrow.gate = nn.Linear(24, 5), nn.Linear(24, 5)
    narrow.end, narrow.back = nn.Identity(), nn.Identity()
    own = OwnHeads(mean=lux.Dense(24, 5), gate=lux.Dense(24, 5))
    loaded(lux.Chain(*start, own, jnp.tanh), shaken(narrow), x, x=given)


def test_names_that_are_words_come_before_the_order():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first, self.end = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.end(torch.tanh(self.second(torch.tanh(self.first(x)))))

    first, second, last = lux.Dense(3, 3, jnp.tanh), lux.Dense(3, 3, jnp.tanh), lux.Dense(3, 3)
    loaded(lux.Chain(first=first, second=second, last=last), Net(), random(4, 3))


@pytest.mark.slow
def test_the_resnet_18_of_torchvision():
    net = torchvision().models.resnet18(num_classes=10)
    for tensor in net.buffers():
        if tensor.is_floating_point():
            tensor.data = tensor.data + torch.rand_like(tensor)
    x = random(1, 3, 32, 32)
    ps, _ = loaded(resnet18(10), net.eval(), x)
    assert ps.size == sum(p.numel() for p in net.parameters())


def torchvision():
    """Its nets, also where its compiled operations, which they do not use, are those for another build of PyTorch."""
    try:
        return pytest.importorskip("torchvision", reason="has a ResNet-18: `make test-extras` installs it")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        LIBRARIES.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operation in ("nms", "qnms"):
            LIBRARIES[0].define(f"{operation}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return importlib.import_module("torchvision")


LIBRARIES = []  # operations are there as long as their library is


def resnet18(classes):
    """As torchvision has it."""

    def conv(features, out, size=3, stride=1):
        return lux.Conv(features, out, (size, size), stride=stride, padding=size // 2, use_bias=False)

    def block(features, out, stride):
        body = lux.Chain(
            conv(features, out, stride=stride), lux.BatchNorm(out, jax.nn.relu), conv(out, out), lux.BatchNorm(out)
        )
        if stride == 1:
            return lux.Chain(lux.SkipConnection(body, jnp.add), jax.nn.relu)
        shortcut = lux.Chain(conv(features, out, 1, stride), lux.BatchNorm(out))
        return lux.Chain(lux.BranchLayer(body, shortcut, connection=jnp.add), jax.nn.relu)

    sizes = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    stages = [lux.Chain(block(*size), block(size[1], size[1], 1)) for size in sizes]
    stem = [conv(3, 64, 7, 2), lux.BatchNorm(64, jax.nn.relu), lux.MaxPool((3, 3), stride=2, padding=1)]
    return lux.Chain(*stem, *stages, lux.GlobalMeanPool(), lux.Dense(512, classes))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrences(kind):
    cell = getattr(lux, f"{kind}Cell")
    x = random(4, 5, 2)
    one = lux.Recurrence(cell(2, 3), return_sequence=True)
    loaded(one, getattr(nn, kind)(2, 3, batch_first=True), x)
    if kind != "LSTM":
        return
    deep = getattr(nn, kind)(2, 3, num_layers=2, batch_first=True)
    loaded(lux.Recurrence(lux.StackedCells(cell(2, 3), lux.Dropout(0.1), cell(3, 3)), return_sequence=True), deep, x)
    chain = lux.Chain(one, lux.Recurrence(cell(3, 3), return_sequence=True))
    loaded(chain, deep, x)
    both = lux.Chain(lux.BidirectionalRNN(cell(2, 3)), lux.BidirectionalRNN(cell(6, 3)))
    loaded(both, getattr(nn, kind)(2, 3, num_layers=2, batch_first=True, bidirectional=True), x)
    np.testing.assert_array_equal(to_torch(cell(2, 3), *lux.setup(KEY, cell(2, 3)))["bias_ih"].shape, (12,))


@pytest.mark.slow
def test_attention_and_a_transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
    net = shaken(nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False))
    block = lux.TransformerEncoderBlock(8, 2, 12, gelu)
    ps, _ = loaded(lux.Chain(block, block, lux.LayerNorm(8)), net, random(3, 5, 8))
    stack = lux.Chain(lux.Stack(block, 2), lux.LayerNorm(8))
    stacked, _ = load_torch(stack, *jax.jit(lux.setup)(KEY, stack), net)
    np.testing.assert_array_equal(stacked["layer_0.attention.query.weight"][1], ps["layer_1.attention.query.weight"])
    loaded(lux.Chain(lux.Stack(block, 2, flat_rows=True), lux.LayerNorm(8)), net, random(3, 5, 8))
    theirs = shaken(nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True))
    ours = lux.MultiHeadAttention(8, 2, key_features=4, value_features=6)
    ps, st = load_torch(ours, *lux.setup(KEY, ours), theirs)
    q, k, v = random(3, 5, 8), random(3, 7, 4), random(3, 7, 6)
    expected = theirs(*map(torch.tensor, (q, k, v)))[0].detach()
    np.testing.assert_allclose(ours(tuple(map(jnp.asarray, (q, k, v))), ps, st)[0], expected, atol=1e-10)


class Gained(lux.Container):
    """With a parameter of its own beside those of its child, and one that PyTorch does not have."""

    body: lux.Layer
    tail: lux.Layer = lux.Scale(3)

    def init_params(self, key):
        return {**super().init_params(key), "gain": jnp.ones(3)}

    def forward(self, x, ps, st):
        (y,), st = self.run(ps, st, body=x)
        (y,), st = self.run(ps, st, tail=y * ps["gain"])
        return y, st


def test_parameters_of_ones_own_are_found_by_their_names():
    layer = lux.Chain(lux.Dense(2, 3), Gained(lux.Dense(3, 3)))
    ps, st = lux.setup(KEY, layer)
    weights = {name: 2 * tensor for name, tensor in to_torch(layer, ps, st).items()}
    assert {"1.gain", "1.body.weight", "1.tail.weight"} < set(weights)
    np.testing.assert_array_equal(load_torch(layer, ps, st, weights)[0].data, 2 * ps.data)
    del weights["1.gain"]
    with pytest.raises(ValueError, match=r"`layer_1`, Gained.*, finds no module of gain"):
        load_torch(layer, ps, st, weights)


def test_names_lead_layers_to_modules():
    net = nn.ModuleDict({"head": nn.Linear(3, 2), "table": nn.Embedding(7, 3), "pair": nn.Bilinear(2, 2, 4)})
    layer = lux.Chain(embed=lux.Embedding(7, 3), out=lux.Dense(3, 2), pair=lux.Bilinear(2, 2, 4))
    names = {"embed": "table", "out": "head"}
    ps, st = load_torch(layer, *lux.setup(KEY, layer), net, names=names)
    i = jnp.array([1, 5])
    y = torch.tensor(np.array(i))
    expected = net["head"](net["table"](y))
    expected = net["pair"](expected, expected).detach()
    np.testing.assert_allclose(layer(i, ps, st)[0], expected, rtol=1e-10)
    assert set(to_torch(layer, ps, st, names=names)) == set(net.state_dict())
    layer, one = lux.Chain(lux.Dense(3, 3), lux.Dense(3, 3)), nn.Linear(3, 3)
    ps, st = lux.setup(KEY, layer)
    tied = lux.parameters.share_parameters(ps, [("layer_0", "layer_1")])
    assert load_torch(layer, tied, st, nn.Sequential(one, one))[0].size == 12
    with pytest.raises(ValueError, match="tied, but hold different values"):
        load_torch(layer, tied, st, nn.Sequential(one, nn.Linear(3, 3)))


def test_the_gradient_is_that_of_pytorch():
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    layer, x = lux.MLP(2, 5, 1), random(4, 2)
    ps, st = load_torch(layer, *lux.setup(KEY, layer), net)
    gradient = jax.grad(lambda ps: jnp.sum(layer(x, ps, st)[0] ** 2))(ps)
    (net(torch.tensor(x)) ** 2).sum().backward()
    expected, _ = load_torch(layer, ps, st, {name: p.grad for name, p in net.named_parameters()})
    np.testing.assert_allclose(gradient.data, expected.data, rtol=1e-9)


def test_what_does_not_fit_is_listed_by_path():
    layer = lux.Chain(lux.Dense(2, 5, jnp.tanh), lux.Dense(5, 3))
    ps, st = lux.setup(KEY, layer)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    right = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    cases = [
        (
            right | {"2.weight": np.ones((4, 5))},
            r"`2.weight`, for `layer_1`, Dense\(5, 3\), has the shape \(4, 5\), where \(3, 5\)",
        ),
        (right | {"0.bias": np.ones(5, int)}, r"`0.bias`, for `layer_0`.* is of type int64, where float64 is expected"),
        (right | {"2.scale": np.ones(3)}, r"`2.scale` float64\[3\] finds no layer"),
        ({"scale": np.ones(3)} | right, r"model:\n  `scale` float64\[3\] finds no layer\n`names=`"),
        (dict(list(right.items())[:2]), r"`layer_1`, Dense\(5, 3\), finds no module of weight, bias"),
        (nn.LSTM(2, 5), r"`layer_0`.*finds no module[\s\S]*`weight_ih_l0` float64\[20, 2\] finds no layer"),
        (right | {"2.weight": np.ones((3, 5), complex)}, "is of type complex128"),
    ]
    for weights, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            load_torch(layer, ps, st, weights)
    with pytest.warns(UserWarning, match="has the shape"):
        part, _ = load_torch(layer, ps, st, cases[0][0], strict=False)
    assert part.layer_1.weight is not None and jnp.all(part.layer_1.weight == ps.layer_1.weight)
    np.testing.assert_array_equal(part.layer_0.weight, right["0.weight"].T)
    for names, sentence in [
        ({"layer_9": "0"}, "`names` has the layer `layer_9`; the layers with weights are layer_0"),
        ({"layer_0": "0", "layer_1": "0"}, "leads the layers layer_0, layer_1 to the same module"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            load_torch(layer, ps, st, right, names=names)
    for weights, sentence in [({"model": right}, "give the state dict in a checkpoint"), ([1], "got a list")]:
        with pytest.raises(TypeError, match=sentence):
            load_torch(layer, ps, st, weights)
