"""Flax's modules, NNX and Linen, as layers: the outputs, gradients and states are Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import with_gradient

import lux_sciml as lux
from lux_sciml.adapters import from_linen, from_nnx, to_linen, to_nnx

nnx = pytest.importorskip("flax.nnx", reason="takes Flax's modules: `make test-extras` installs it")
nn = pytest.importorskip("flax.linen")
KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")


@pytest.fixture(autouse=True)
def promoting():
    """Flax mixes types, and keeps statistics in float32."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


class Net(nnx.Module):
    """With statistics, a mask, a list and a counter."""

    def __init__(self, rngs, rate=0.5):
        self.first = nnx.Linear(2, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(4, 3, rngs=rngs)])

    def __call__(self, x):
        x = self.dropout(jnp.tanh(self.norm(self.first(x))))
        for layer in self.rest:
            x = layer(x)
        return x


class LinenNet(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(3)(x)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: from_nnx(lambda rngs: Net(rngs)), lambda: from_linen(LinenNet(), X)])
def test_a_module_is_a_layer_that_keeps_the_contract(make):
    lux.testing.check_layer(make(), X, batch_axis=None, dtypes=["float64"], derivatives=["reverse"])


def test_nnx_computes_the_same_without_randomness():
    module = Net(nnx.Rngs(0), rate=0.0)
    layer = from_nnx(module)
    ps, st = lux.setup(KEY, layer)
    assert ps["rest.0.kernel"].shape == (4, 3)

    def theirs(module):
        y = module(X)
        return jnp.sum(y**2), y

    (y, st), gradient = with_gradient(lambda ps: layer(X, ps, st), ps)
    (_, expected), expected_gradient = nnx.value_and_grad(theirs, has_aux=True)(module)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    expected_gradient = lux.ComponentVector.from_tree(nnx.to_pure_dict(expected_gradient)["rest"][0])
    np.testing.assert_allclose(gradient["rest.0.kernel"], expected_gradient["kernel"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(st["variables"]["norm"]["mean"], module.norm.mean.get_value(), rtol=1e-4, atol=1e-6)
    module.eval()
    np.testing.assert_allclose(layer(X, ps, lux.testmode(st))[0], module(X), rtol=1e-5)
    back = to_nnx(layer, ps, st)
    assert type(back) is Net
    back.eval()
    np.testing.assert_allclose(back(X), module(X), rtol=1e-5)


def test_linen_computes_the_same():
    module = LinenNet()
    variables = module.init(KEY, X, train=False)
    layer = from_linen(module, X, variables=variables)
    ps, st = lux.setup(KEY, layer)
    key = jax.random.fold_in(jax.random.split(st["key"])[0], 0)

    def theirs(params):
        given = {**variables, "params": params}
        return module.apply(given, X, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

    (y, st), gradient = with_gradient(lambda ps: layer(X, ps, st), ps)
    (expected, new), expected_gradient = with_gradient(theirs, variables["params"])
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.layout.ravel(expected_gradient), gradient.data, rtol=1e-4, atol=1e-6)
    mean = st["variables"]["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, new["batch_stats"]["BatchNorm_0"]["mean"], rtol=1e-4, atol=1e-6)
    back, given = to_linen(layer, ps, st)
    np.testing.assert_allclose(layer(X, ps, lux.testmode(st))[0], back.apply(given, X, train=False), rtol=1e-5)


class Field(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, t, y):
        return jnp.tanh(self.linear(y)) * t


def field(rngs):
    return Field(rngs)


@pytest.mark.slow
def test_modules_stand_in_solves_and_files(tmp_path):
    own = from_nnx(lambda rngs: nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), lambda x: jnp.sin(x)))  # new for each key
    net = lux.Chain(from_nnx(field, spread=True), own, from_linen(nn.Sequential([nn.Dense(2)]), X[0]), jnp.tanh)
    node = lux.NeuralODE(net, ts=[0.0, 1.0], time_dependent=True, output="final")
    ps, st = lux.setup(KEY, node)
    lux.save(tmp_path / "ps.safetensors", ps)
    loaded = lux.load(tmp_path / "ps.safetensors", like=ps)
    y = node(X[0], loaded, st)[0]
    euler, step = X[0], jax.jit(lambda t, y: y + 1e-2 * net((t, y), ps, st)[0])
    for t in np.arange(0, 1, 1e-2, "float32"):
        euler = step(t, euler)
    np.testing.assert_allclose(y, euler, atol=1e-2)
    with pytest.raises(ValueError, match=r"updates its state.*lux.testmode"):
        layer = from_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs))
        lux.NeuralODE(layer, ts=[0.0, 1.0])(X[0], *lux.setup(KEY, layer))


def test_a_module_of_randomness_alone_is_a_layer():
    layer = from_linen(nn.Dropout(0.5), X)
    ps, st = lux.setup(KEY, layer)
    assert ps.size == 0 and bool(jnp.any(layer(X, ps, st)[0] == 0))
    np.testing.assert_array_equal(layer(X, ps, lux.testmode(st))[0], X)


def test_what_does_not_fit_is_told():
    other = nn.Dense(5).init(KEY, X)
    cases = [
        (lambda: from_nnx(nnx.Linear), TypeError, "got the class Linear"),
        (lambda: from_nnx(type("Bare", (nnx.Module,), {})()), TypeError, "Bare has no `__call__`"),
        (lambda: from_linen(type("Bare", (nn.Module,), {})(), X), TypeError, "Bare has no `__call__`"),
        (lambda: from_nnx(nn.Dense(3)), TypeError, r"lux.adapters.from_linen\(module, x\)"),
        (lambda: from_linen(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), X), TypeError, "got a Linear"),
        (
            lambda: from_linen(nn.Dense(3), X, variables=other),
            ValueError,
            r"`params.bias` should be \(3,\), and is \(5,\)",
        ),
        (lambda: from_nnx(lambda rngs: nnx.Sequential(jnp.tanh)), ValueError, "the Sequential has no parameters"),
        (lambda: from_linen(nn.Sequential([jnp.tanh]), X), ValueError, "the Sequential has no parameters"),
        (lambda: lux.Chain(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), TypeError, r"lux.adapters.from_nnx\(module\)"),
        (lambda: lux.Chain(nn.Dense(3)), TypeError, r"lux.adapters.from_linen\(module, x\)"),
        (lambda: from_linen(nn.Dropout(0.5), X, rngs=("noise",)), ValueError, r"rngs=\('noise',\) does not name"),
        (lambda: to_nnx(lux.Dense(2, 2), {}, {}), TypeError, "that from_nnx made"),
    ]
    for call, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            call()
