"""What every layer does with integers, booleans, half precision, and batches without samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)


def numbers(*shape):
    """Whole numbers from 0 to 3, so that all types hold them."""
    return RNG.integers(0, 4, size=shape)


BLOCK = lux.Dense(3, 3, jnp.tanh)
X = numbers(4, 3)
SERIES = numbers(4, 5, 3)
IMAGES = numbers(4, 6, 6, 4)
TOKENS = numbers(4, 5, 8)
LAYERS = [
    (lux.Dense(3, 2, jnp.tanh), X),
    (lux.Dense(3, 2), SERIES),
    (lux.Scale(3, init_weight=lux.initializers.Normal()), X),
    (lux.Bilinear(3, 2, 2), (X, X[:, :2])),
    (lux.Conv(4, 6, (3, 2), jnp.tanh, padding="SAME", groups=2), IMAGES),
    (lux.Conv(4, 2, (3, 3), padding=2, padding_mode="circular"), IMAGES),
    (lux.ConvTranspose(4, 2, (3, 2), stride=2), IMAGES),
    (lux.MaxPool(3, stride=1, padding=1), SERIES),
    (lux.MaxPool(2, dilation=2, stride=1), SERIES),
    (lux.MeanPool((3, 2), padding=1, count_padding=False), IMAGES),
    (lux.MeanPool((64, 64)), 40 + numbers(1, 64, 64, 1)),
    (lux.LPPool((64, 64), p=1), 1 + numbers(1, 64, 64, 1)),
    (lux.LPPool(2), 50 * SERIES),
    (lux.GlobalMaxPool(), IMAGES),
    (lux.GlobalMeanPool(), 40 + IMAGES),
    (lux.GlobalLPPool(p=3), 15 * IMAGES),
    (lux.AdaptiveMaxPool(4), IMAGES),
    (lux.AdaptiveMeanPool((2, 4)), IMAGES),
    (lux.AdaptiveLPPool(2), 50 * IMAGES),
    (lux.Upsample(scale=1.5), IMAGES),
    (lux.Upsample("linear", size=(9, 3)), IMAGES),
    (lux.Upsample("cubic", size=9, align_corners=True), IMAGES),
    (lux.PixelShuffle(2), IMAGES),
    (lux.BatchNorm(3, jnp.tanh), X),
    (lux.BatchNorm(4), 50 * IMAGES),
    (lux.InstanceNorm(4, affine=True, track_stats=True), IMAGES),
    (lux.GroupNorm(4, 2), 50 * IMAGES),
    (lux.LayerNorm((5, 8)), TOKENS),
    (lux.RMSNorm(8), 50 * TOKENS),
    (lux.Dropout(0.5), X),
    (lux.Dropout(0.0), X),
    (lux.VariationalHiddenDropout(0.5), X),
    (lux.AlphaDropout(0.5), X),
    (lux.RReLU(), X),
    (lux.PeriodicEmbedding((0, 2), (2.5, 0.3)), X),
    (lux.FourierFeatures(3, 8), X),
    (lux.FourierFeatures(3, 8, trainable=True), X),
    (lux.SinusoidalPositionalEmbedding(8), X),
    (lux.RotaryPositionalEmbedding(4), numbers(300, 1, 4)),
    (lux.RotaryPositionalEmbedding(4), (numbers(4, 5, 1, 4), X[:, :1])),
    (lux.LearnedPositionalEmbedding(5, 8), TOKENS),
    (lux.ClassTokens(8, init=lux.initializers.Normal()), TOKENS),
    (lux.PatchEmbedding(3, 4, 5), IMAGES),
    (lux.MultiHeadAttention(8, 4, num_kv_heads=2, is_causal=True), TOKENS),
    (lux.MultiHeadAttention(8, 2), (TOKENS, TOKENS, TOKENS, np.ones((4, 1, 1, 5), bool))),
    (lux.TransformerEncoderBlock(8, 2, 6), (TOKENS, np.ones((4, 1, 1, 5), bool))),
    (lux.SpectralConv(4, 2, (3, 2)), IMAGES),
    (lux.FourierBlock(3, 2), SERIES),
    (lux.FNO(3, 2, width=4, modes=2, depth=2), SERIES),
    (lux.DeepONet(lux.Dense(3, 6), lux.Dense(2, 3), out_features=2), (X, numbers(4, 5, 2))),
    (lux.Flatten(), IMAGES),
    (lux.Reshape(2, -1), IMAGES),
    (lux.SelectDim(1, -1), IMAGES),
    (lux.NoOp(), X),
    (lux.Chain(BLOCK, lux.Dense(3, 2)), X),
    (lux.Parallel(jnp.add, BLOCK, lux.Dense(3, 3)), X),
    (lux.SkipConnection(BLOCK, jnp.add), X),
    (lux.BranchLayer(BLOCK, lux.Dense(3, 2)), X),
    (lux.PairwiseFusion(jnp.add, BLOCK, lux.Dense(3, 3)), X),
    (lux.Maxout(BLOCK, lux.Dense(3, 3)), X),
    (lux.AlternatePrecision(BLOCK, "float32"), X),
    (lux.MLP(3, (4, 4), 2, norm=lux.LayerNorm, residual=True), X),
    (lux.Siren(3, 4, 2, omega=1.0, first_omega=1.0), X),
    (lux.Siren(3, 16, 2), X),
    (lux.MonotoneMLP(3, 4, 1), X),
    (lux.MonotoneMLP(3, 4, 1, signs=(1, -1, 1)), X),
    (lux.ConvexMLP(3, 4, 1), X),
    (lux.KANLayer(3, 2), X),
    (lux.KANLayer(3, 2, lux.SineBasis(6), activation=None), X),
    (lux.Spline([0.0, 0.7, 1.6, 3.0], 2, kind="linear", init_values=lux.initializers.Normal()), X),
    (lux.Spline(lux.Constant([0.0, 0.7, 1.6, 2.5, 3.0]), init_values=lux.initializers.Normal()), X),
    (lux.TensorProduct((lux.ChebyshevBasis(3), lux.FourierBasis(3), lux.PolynomialBasis(2)), 2), X),
    (lux.TensorProduct((lux.LegendreBasis(3), lux.SineBasis(3), lux.BSplineBasis(5, low=0.0, high=3.0)), 2), X),
    (lux.TensorProduct((lux.CosineBasis(3),) * 3, 2), X),
    (lux.PositiveDefinite(BLOCK, np.array([0.5, 0.2, 0.1])), X),
    (lux.PositiveDefinite(BLOCK), X),
    (lux.Pinned(lux.Dense(3, 1), [0.5, 0.7, 0.1], [5.5]), X),
    (lux.HardConstraint(lux.Dense(3, 2), lambda x: x[..., :1] * (4 - x[..., :1]), lambda x: x[..., 1:]), X),
    (lux.Recurrence(lux.RNNCell(3, 2)), SERIES),
    (lux.Recurrence(lux.GRUCell(3, 2), return_sequence=True), (SERIES, None, np.ones((4, 5), bool))),
    (lux.BidirectionalRNN(lux.LSTMCell(3, 2)), SERIES),
    (lux.Recurrence(lux.StackedCells(lux.RNNCell(3, 2), lux.GRUCell(2, 2))), SERIES),
    (lux.Recurrence(lux.LSTMCell(3, 2, train_carry=True), reverse=True, checkpoint=True), SERIES),
    (lux.LSTMCell(3, 2), X),
    (lux.StackedCells(lux.RNNCell(3, 2), jnp.sin, lux.GRUCell(2, 2)), X),
    (lux.WeightNorm(lux.Dense(3, 2)), X),
    (lux.SpectralNorm(lux.Dense(3, 2)), X),
    (lux.Frozen(lux.Dense(3, 2), "weight"), X),
    (lux.StatefulRecurrentCell(lux.GRUCell(3, 2), (4,)), X),
    (lux.ReverseSequence(), SERIES),
    (lux.RepeatedLayer(BLOCK, 3), X),
    (lux.Stack(BLOCK, 3), X),
]
KEEPING = (
    lux.MaxPool, lux.GlobalMaxPool, lux.AdaptiveMaxPool, lux.PixelShuffle, lux.ReverseSequence,
    lux.Flatten, lux.Reshape, lux.SelectDim, lux.NoOp,
)  # fmt: skip
ACTIVATIONS = ("lisht", "tanhshrink", "softshrink", "hardshrink", "trelu", "logcosh")
ELSEWHERE = {"Embedding", "RecurrentCell", "RNNCell", "GRUCell", "LSTMCell", "StackedCells"}  # and bases


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own: 32 bits and its promotion of types."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def cast(tree, dtype):
    """The numbers of a tree in a type; masks stay."""

    def one(x):
        return x if x.dtype == bool else jnp.asarray(x % 2 if dtype == "bool" else x, dtype)

    return jax.tree.map(one, tree)


def widened(tree):
    return jax.tree.map(lambda x: x.astype("float32") if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def modes(st):
    """The state in each mode that it knows."""
    tests = any(isinstance(leaf, lux.Mode) for leaf in jax.tree.leaves(st, is_leaf=lambda x: isinstance(x, lux.Mode)))
    return (st, lux.testmode(st)) if tests else (st,)


def same(a, b, rtol, dtype=None):
    """Whether two trees hold the same numbers, relative to the largest of an array, and `a` the types of `b`."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = map(jax.random.key_data, (x, y))
        assert x.dtype == (dtype or y.dtype) and x.shape == y.shape
        x, y = (np.asarray(z, "float32") for z in (x, y))
        assert np.isfinite(x).all()
        assert np.abs(x - y).max(initial=0) <= rtol * np.abs(y).max(initial=0)


def name(value):
    return type(value).__name__ if isinstance(value, lux.Layer) else ""


def test_every_layer_is_here():
    here = {type(layer).__name__ for layer, _ in LAYERS} | ELSEWHERE
    assert not [name for name in lux.nn.__all__ if name not in here and not name.endswith("Basis")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=name)
def test_integers_are_floating_point_where_a_layer_computes(key, layer, x):
    ps, st = lux.setup(key, layer)
    keeps = isinstance(layer, KEEPING)
    for now in modes(st):
        for dtype in ("int32", "uint8", "bool"):
            given = cast(x, dtype)
            y, after = layer(given, ps, now)
            expected, after_expected = layer(cast(given, "float32"), ps, now)
            same(y, expected, 1e-6, dtype if keeps else None)
            same(after, after_expected, 1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=name)
def test_half_precision_is_float32_to_its_rounding(key, layer, x):
    run = jax.jit(lambda ps, x, st: layer(x, ps, st))
    for dtype in ("bfloat16", "float16"):
        ps, st = lux.setup(key, layer, dtype)
        given, few = cast(x, dtype), 8 * float(jnp.finfo(dtype).eps)
        for now in modes(st):
            y, after = run(ps, given, now)
            expected, after_expected = run(ps.astype("float32"), widened(given), widened(now))
            same(y, expected, few, dtype)
            same(widened(after), widened(after_expected), few)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lux.Dense(3, 2), (32, 512, 3)),
        (lux.Scale(3), (32, 512, 3)),
        (lux.Conv(3, 2, 1), (16, 512, 3)),
        (lux.Recurrence(lux.RNNCell(3, 2), return_sequence=True), (1, 1024, 3)),
        (lux.RepeatedLayer(lux.Scale(3, use_bias=False), 1024), (1, 3)),
        (lux.Embedding(2, 3), (2048,)),
    ],
    ids=name,
)
def test_gradients_of_shared_parameters_in_half_precision_are_summed_in_single(key, layer, shape):
    ps, st = lux.setup(key, layer, "bfloat16")
    x = jnp.asarray(RNG.integers(0, 2, shape)) if len(shape) == 1 else jnp.ones(shape, "bfloat16")

    @jax.jit
    def gradient(ps, x, weight):
        return jax.grad(lambda ps: jnp.sum(layer(x, ps, st)[0].astype("float32") * weight))(ps)

    weight = jnp.asarray(RNG.uniform(0.5, 1.0, layer(x, ps, st)[0].shape), "float32")
    same(widened(gradient(ps, x, weight)), gradient(ps.astype("float32"), widened(x), weight), 8 * 2.0**-8)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "bfloat16", "float16"])
def test_activations_of_all_types(dtype):
    x = cast(np.arange(4), dtype)
    for f in (jnp.tanh, *(getattr(lux.activations, name) for name in ACTIVATIONS)):
        few = 1e-6 if x.dtype.itemsize == 4 else float(jnp.finfo("bfloat16").eps)
        same(f(x), f(x.astype("float32")), few, dtype if "float" in dtype else "float32")


ANY = lux.Container | lux.Wrapper | lux.NoOp | lux.Spline  # they take trees, or lists
OF_ARRAYS = [layer for layer, x in LAYERS if not isinstance(layer, ANY)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("layer", [*OF_ARRAYS, lux.MultiHeadAttention(3)], ids=name)
def test_lists_and_tuples_are_no_arrays(key, layer):
    ps, st = lux.setup(key, layer)
    for x, says in (
        ([1.0, 2.0, 3.0], "a list of 3"),
        ((jnp.ones(3),) * 5, r"(a tuple of 5|\(3,\) and \(3,\))"),
        ("abc", "str"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"got {says}"):
            layer(x, ps, st)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=name)
def test_an_output_has_the_precision_of_input_and_parameters(key, layer, x):
    ps, st = lux.setup(key, layer)
    for now in modes(st):
        y, after = jax.eval_shape(lambda ps, x, now=now: layer(x, ps, now), ps, cast(x, "bfloat16"))
        narrow = ps.size == 0 or isinstance(layer, lux.AlternatePrecision)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(y)} == {"bfloat16" if narrow else "float32"}
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(st), strict=True):
            assert a.dtype == b.dtype


@pytest.mark.exhaustive
@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=name)
def test_a_batch_without_samples_has_an_output_without_samples(key, layer, x):
    """And a gradient of zero."""
    layer = layer.replace(batch_shape=(0,)) if isinstance(layer, lux.StatefulRecurrentCell) else layer
    ps, st = lux.setup(key, layer)
    x = cast(jax.tree.map(lambda leaf: leaf[:0], x), "float32")

    @jax.jit
    def gradients(ps, x):
        y, pull = jax.vjp(lambda ps, x: layer(x, ps, st)[0], ps, x)
        return y, pull(jax.tree.map(jnp.ones_like, y))

    y, (of_ps, of_x) = gradients(ps, x)
    assert all(leaf.size == 0 for leaf in jax.tree.leaves((y, of_x)))
    assert not np.any(of_ps.data)


# --- complex elements -----------------------------------------------------------------------------------------------

Z = np.array([[[1 + 1j], [2 - 1j], [0.5j], [0.0]]], "complex64")  # (batch, space, features)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms_of_complex_elements_are_those_of_their_moduli(p):
    for layer in (lux.LPPool(2, p=p), lux.GlobalLPPool(p=p), lux.AdaptiveLPPool(2, p=p)):
        y, _ = layer(Z, {}, {})
        same(y, layer(np.abs(Z), {}, {})[0], 1e-6, "float32")
        assert np.isfinite(jax.grad(lambda z, layer=layer: layer(z, {}, {})[0].sum())(jnp.asarray(Z))).all()


def test_the_root_mean_square_of_complex_features_is_that_of_their_moduli(key):
    layer = lux.RMSNorm(4, epsilon=0.0, affine=False)
    y, _ = layer(Z[..., 0], {}, {})
    np.testing.assert_allclose(y, Z[..., 0] / np.sqrt(np.mean(np.abs(Z[..., 0]) ** 2)), rtol=1e-6)
    V = lux.PositiveDefinite(lux.NoOp())
    np.testing.assert_allclose(V(Z[..., 0], {}, {})[0].ravel(), 2 * np.sum(np.abs(Z) ** 2), rtol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        lux.MaxPool(2), lux.GlobalMaxPool(), lux.AdaptiveMaxPool(2), lux.RReLU(), lux.SpectralConv(1, 1, 1),
        lux.BatchNorm(1), lux.MultiHeadAttention(1),
    ],
    ids=name,
)  # fmt: skip
def test_layers_that_have_no_complex_form_refuse_it_in_a_sentence(key, layer):
    with pytest.raises(TypeError, match=r"real.* got complex64"):
        layer(Z, *lux.setup(key, layer))


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", [lux.WeightNorm, lux.SpectralNorm])
def test_complex_weights_have_the_norms_of_their_moduli(key, wrapper):
    def init(key, shape, dtype):
        return jax.random.normal(key, shape, "complex64")

    dense = lux.Dense(3, 3, use_bias=False, init_weight=init)
    layer = wrapper(dense, iterations=100) if wrapper is lux.SpectralNorm else wrapper(dense)
    ps, st = lux.setup(key, layer)
    weight = ps["weight"]["v"] if wrapper is lux.WeightNorm else ps["weight"]
    expected = weight / np.linalg.norm(weight, 2) if wrapper is lux.SpectralNorm else weight
    np.testing.assert_allclose(layer(jnp.eye(3), ps, st)[0], expected, atol=1e-5)
    assert np.isfinite(jax.grad(lambda ps: jnp.abs(layer(jnp.eye(3), ps, st)[0]).sum())(ps).data).all()
