"""Initializers: their distributions, and that they are values; activations."""

import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import lux_sciml as lux
from lux_sciml import activations, initializers as init
from lux_sciml.core.printing import value_text

INITIALIZERS = [
    init.Uniform(0.1),
    init.Normal(2.0),
    init.TruncatedNormal(1.0, 2.0, -1.0, 4.0),
    init.KaimingUniform(2.0),
    init.KaimingNormal(),
    init.GlorotUniform(),
    init.GlorotNormal(2.0),
    init.Orthogonal(),
    init.Sparse(0.3),
    init.Identity(2.0),
    init.zeros,
    init.ones,
]


@pytest.mark.parametrize("initializer", INITIALIZERS, ids=value_text)
def test_initializers_are_values(key, initializer):
    copy = pickle.loads(pickle.dumps(initializer))
    assert copy == initializer and hash(copy) == hash(initializer)
    layer = lux.Dense(2, 3, init_weight=initializer)
    assert layer == lux.Dense(2, 3, init_weight=copy)
    assert initializer(key, (2, 3)).dtype == jnp.float64
    weight = initializer(key, (2, 3), jnp.float32)
    assert weight.dtype == jnp.float32 and weight.shape == (2, 3)


@pytest.mark.parametrize("initializer", INITIALIZERS[:-2], ids=value_text)
def test_initializers_print_as_the_python_that_makes_them(initializer):
    assert eval(repr(initializer), {"initializers": init}) == initializer


def test_initializers_leave_out_defaults_and_keep_their_options_in_float():
    assert repr(init.Normal()) == "initializers.Normal()" and repr(init.Normal(2)) == "initializers.Normal(2.0)"
    assert repr(init.TruncatedNormal(std=5)) == "initializers.TruncatedNormal(0.0, 5.0)"
    for one in (1, True, np.float64(1)):
        assert repr(init.Uniform(one)) == "initializers.Uniform(1.0)"
        assert type(init.Uniform(one).bound) is float


@pytest.mark.slow
@pytest.mark.parametrize("initializer", INITIALIZERS, ids=value_text)
def test_initializers_draw_in_every_precision(key, initializer):
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        weight = initializer(key, (3, 4), dtype)
        assert weight.dtype == dtype and np.isfinite(weight.astype("float32")).all()
    for default in ((), (float,)):
        assert initializer(key, (3, 4), *default).dtype == jnp.float64
        with jax.enable_x64(False):
            assert initializer(key, (3, 4), *default).dtype == jnp.float32
    assert initializer(key, (0, 4)).shape == (0, 4)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("glorot", [True, False])
def test_variances(key, uniform, glorot):
    make = {
        (True, True): init.GlorotUniform,
        (True, False): init.KaimingUniform,
        (False, True): init.GlorotNormal,
        (False, False): init.KaimingNormal,
    }[uniform, glorot]
    weight = np.asarray(make(3.0)(key, (3, 20, 500)))
    var = 9 * (2 / (3 * (20 + 500)) if glorot else 1 / (3 * 20))
    assert np.isclose(weight.var(), var, rtol=0.05) and abs(weight.mean()) < 5 * math.sqrt(var / weight.size)
    assert (np.abs(weight).max() <= math.sqrt(3 * var)) == uniform


DRAWS = {
    init.Uniform(0.2): lambda *shape: jax.random.uniform(*shape, -0.2, 0.2),
    init.Normal(0.2): lambda *shape: 0.2 * jax.random.normal(*shape),
    init.TruncatedNormal(): lambda key, *shape: jax.random.truncated_normal(key, -2.0, 2.0, *shape),
    init.KaimingUniform(1.3): jax.nn.initializers.variance_scaling(1.3**2, "fan_in", "uniform"),
    init.GlorotNormal(0.7): jax.nn.initializers.variance_scaling(0.7**2, "fan_avg", "normal"),
}


@pytest.mark.slow
@pytest.mark.parametrize("initializer", DRAWS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_elements_do_not_depend_on_how_they_are_drawn(initializer, dtype):
    """Small arrays are the beginning of a long draw where nothing is being traced."""
    for impl in ("threefry2x32", "rbg") if dtype == "float32" else ("threefry2x32",):
        key = jax.random.key(3, impl=impl)
        for shape in ((3, 4), (2, 5, 7), (70, 60), (300, 220)):  # in each size of draws, and above
            expected = DRAWS[initializer](key, shape, dtype)
            got = initializer(key, shape, dtype)
            assert got.dtype == dtype and got.shape == shape and np.array_equal(got, expected)
        compiled = jax.jit(initializer, static_argnums=(1, 2))(key, (2, 5, 7), dtype)
        got = initializer(key, (2, 5, 7), dtype)
        assert np.allclose(compiled, got, rtol=64 * jnp.finfo(dtype).eps, atol=4 * jnp.finfo(dtype).eps)


def test_setup_compiles_no_program_for_each_shape(key, caplog):
    def compiled(widths):
        caplog.clear()
        jax.clear_caches()
        with jax.log_compiles():
            lux.setup(key, lux.MLP(3, widths, 2))
        return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)

    assert compiled(range(5, 35)) == compiled((8, 9)) > 0


def test_truncated_normal_stays_within_its_bounds(key):
    numbers = np.asarray(init.TruncatedNormal(1.0, 2.0, -1.0, 4.0)(key, (20_000,)))
    assert -1 <= numbers.min() < -0.95 and 3.95 < numbers.max() <= 4
    expected = scipy.stats.truncnorm(-1.0, 1.5, loc=1.0, scale=2.0)
    assert abs(numbers.mean() - expected.mean()) < 4 * expected.std() / math.sqrt(20_000)
    assert np.isclose(numbers.std(), expected.std(), rtol=0.02)
    with pytest.raises(ValueError, match=r"TruncatedNormal needs lower < upper, got 2.0 and 1"):
        init.TruncatedNormal(lower=2.0, upper=1.0)


def test_orthogonal(key):
    weight = np.asarray(init.Orthogonal(3.0)(key, (2, 2, 5))).reshape(4, 5)
    assert np.allclose(weight @ weight.T, 9 * np.eye(4))


def test_sparse_has_zeros_in_every_column(key):
    weight = np.asarray(init.Sparse(0.3, std=2.0)(key, (10, 400)))
    assert ((weight == 0).sum(0) == 3).all() and len(np.unique(weight == 0, axis=1).T) > 50
    assert np.isclose(weight[weight != 0].std(), 2.0, rtol=0.06)
    assert not init.Sparse(1.0)(key, (3, 2)).any() and init.Sparse(0.0)(key, (3, 2)).all()
    with pytest.raises(ValueError, match=r"Sparse makes matrices \(in, out\), got the shape \(3, 3, 2\)"):
        init.Sparse(0.3)(key, (3, 3, 2))
    with pytest.raises(ValueError, match=r"Sparse needs a share between 0 and 1, got 1.5"):
        init.Sparse(1.5)


@pytest.mark.parametrize("window", [(3,), (4,), (3, 2)], ids=str)
def test_identity_passes_on_the_input(key, window):
    layer = lux.Conv(2, 3, window, padding="SAME", use_bias=False, init_weight=init.Identity())
    x = np.random.default_rng(0).normal(size=(2, *(5,) * len(window), 2))
    y = np.asarray(layer(x, *lux.setup(key, layer))[0])
    assert np.array_equal(y[..., :2], x) and not y[..., 2].any()
    with pytest.raises(ValueError, match=r"Identity makes weights \(\*kernel, in, out\), got the shape \(3,\)"):
        init.Identity()(key, (3,))


def test_activations():
    x = np.array([-2.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 2.0])
    for f, expected in (
        (activations.lisht, x * np.tanh(x)),
        (activations.tanhshrink, x - np.tanh(x)),
        (activations.softshrink, np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)),
        (activations.hardshrink, np.where(np.abs(x) > 0.5, x, 0)),
        (activations.trelu, np.where(x > 1, x, 0)),
        (activations.logcosh, np.log(np.cosh(x))),
    ):
        assert np.allclose(f(jnp.asarray(x)), expected, atol=1e-15), f
    assert np.isfinite(jax.vmap(jax.grad(activations.logcosh))(jnp.array([-1e3, 0.0, 1e3]))).all()


def test_gains_are_those_of_torch():
    torch = {jnp.tanh: 5 / 3, jax.nn.tanh: 5 / 3, jax.nn.relu: 2**0.5, jax.nn.selu: 0.75, jax.nn.sigmoid: 1.0}
    assert {activation: activations.gain(activation) for activation in torch} == torch
    assert activations.gain(jax.nn.leaky_relu) == math.sqrt(2 / (1 + 0.01**2))


def test_the_gain_of_a_leaky_relu_knows_its_slope():
    leaky = jax.tree_util.Partial(jax.nn.leaky_relu, negative_slope=0.5)
    assert activations.gain(leaky) == math.sqrt(2 / 1.25)
    assert activations.gain(jax.tree_util.Partial(jax.nn.leaky_relu)) == activations.gain(jax.nn.leaky_relu)
