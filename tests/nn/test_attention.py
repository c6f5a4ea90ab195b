"""Attention, positions and what transformers are made of, against plain NumPy formulas."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 4))  # batch, tokens, features
MEMORY = RNG.normal(size=(3, 6, 2))


def numpy_attention(q, k, v, keep=None, scale=None):
    """One head, one sample: (queries, d), (keys, d), (keys, e)."""
    logits = q @ k.T * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(logits) * (1 if keep is None else keep)
    weights /= weights.sum(-1, keepdims=True)
    return weights, weights @ v


def qkv(heads, kv_heads, value_size=4):
    shapes = ((3, 5, heads, 4), (3, 6, kv_heads, 4), (3, 6, kv_heads, value_size))
    return [RNG.normal(size=shape) for shape in shapes]


# --- the functions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "kv_heads", "value_size"), [(1, 1, 4), (4, 2, 4), (4, 1, 3)])
def test_functional_attention(heads, kv_heads, value_size):
    q, k, v = qkv(heads, kv_heads, value_size)
    mask = RNG.random((3, heads, 5, 6)) < 0.7
    mask[..., 0] = True
    y = lux.nn.scaled_dot_product_attention(q, k, v, mask=mask)
    weights = lux.nn.attention_weights(q, k, mask=mask)
    assert y.shape == (3, 5, heads, value_size) and weights.shape == (3, heads, 5, 6)
    for b in range(3):
        for h in range(heads):
            shared = h // (heads // kv_heads)
            expected = numpy_attention(q[b, :, h], k[b, :, shared], v[b, :, shared], mask[b, h])
            assert np.allclose(weights[b, h], expected[0], atol=1e-14) and np.allclose(y[b, :, h], expected[1])


def test_the_weights_are_never_transposed():
    """They are the largest arrays, of queries times keys; the gradient of a sum of products may reorder them."""
    q, k, v = qkv(4, 2, 3)
    jaxpr = jax.make_jaxpr(jax.grad(lambda q, k, v: lux.nn.scaled_dot_product_attention(q, k, v).sum(), (0, 1, 2)))(
        q, k, v
    )
    moved = [eqn.outvars[0].aval.size for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "transpose"]
    assert moved and max(moved) < 3 * 4 * 5 * 6


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def test_both_precisions_do_the_same():
    """float32 is JAX's own function, float64, whose softmax JAX would take in float32, is ours."""
    q, k, v = qkv(4, 2)
    options = {"mask": RNG.random((3, 1, 5, 6)) < 0.8, "bias": RNG.normal(size=(5, 6)), "is_causal": True, "scale": 0.3}
    narrow = {name: x.astype("float32") if name == "bias" else x for name, x in options.items()}
    wide = lux.nn.scaled_dot_product_attention(q, k, v, **options)
    y = lux.nn.scaled_dot_product_attention(*(x.astype("float32") for x in (q, k, v)), **narrow)
    assert y.dtype == "float32" and np.allclose(wide, y, atol=1e-5)
    assert np.allclose(wide, lux.nn.scaled_dot_product_attention(*(x[None] for x in (q, k, v)), **options)[0])


def test_masks_and_causality():
    q, k, v = qkv(2, 2)
    weights = lux.nn.attention_weights(q, k, is_causal=True)
    assert not np.any(np.triu(weights, 1)) and np.allclose(weights.sum(-1), 1)
    nobody = lux.nn.attention_weights(q, k, mask=np.zeros((5, 6), bool))
    assert np.allclose(nobody, 1 / 6)
    gradient = jax.grad(lambda k: lux.nn.scaled_dot_product_attention(q, k, v, mask=np.zeros((5, 6), bool)).sum())(k)
    assert not np.any(gradient)


def test_masks_hold_booleans_or_integers():
    q, k, v = qkv(2, 2)
    keep = RNG.random((3, 1, 5, 6)) < 0.7
    expected = lux.nn.scaled_dot_product_attention(q, k, v, mask=keep, is_causal=True)
    for mask in (keep.astype("int32"), keep.astype("uint8"), keep.tolist()):
        assert np.array_equal(lux.nn.scaled_dot_product_attention(q, k, v, mask=mask, is_causal=True), expected)
    additive = np.where(keep, 0.0, -np.inf)
    with pytest.raises(TypeError, match=r"a mask holds .* True where .* counts, got float64; .* `bias=`"):
        lux.nn.attention_weights(q, k, mask=additive)
    with pytest.raises(TypeError, match=r"a bias is added to the logits, got booleans: .* is `mask=`"):
        lux.nn.attention_weights(q, k, bias=keep)
    layer = lux.MultiHeadAttention(4, 2)
    with pytest.raises(TypeError, match="a mask holds"):
        layer((X, X, X, np.zeros((5, 5))), *lux.setup(jax.random.key(0), layer))


def nan_where(hidden, x):
    return np.where(hidden.reshape(*hidden.shape, *(1,) * (x.ndim - hidden.ndim)), np.nan, x)


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads_differ", [False, True])
def test_what_is_masked_does_not_matter(is_causal, heads_differ):
    """NaN in keys, values and queries that the mask hides changes neither the others' values nor gradients."""
    q, k, v = qkv(4, 2)
    lengths, queries = np.array([6, 2, 0]), np.array([5, 3, 4])
    hidden, blind = np.arange(6) >= lengths[:, None], np.arange(5) >= queries[:, None]
    mask = ~hidden[:, None, None, :] & ~blind[:, None, :, None]
    if heads_differ:
        mask = mask & (np.arange(4) < 3)[:, None, None]  # the last head sees nothing
    counts = jnp.asarray(~blind[..., None, None])

    def loss(q, k, v):
        y = lux.nn.scaled_dot_product_attention(q, k, v, mask=mask, is_causal=is_causal)
        return jnp.sum(jnp.where(counts, y, 0) ** 2)

    results = [
        jax.value_and_grad(loss, (0, 1, 2))(*map(jnp.asarray, inputs))
        for inputs in ((q, k, v), (nan_where(blind, q), nan_where(hidden, k), nan_where(hidden, v)))
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(b).all() and np.allclose(a, b, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("what", [np.nan, np.inf])
@pytest.mark.parametrize("is_causal", [True, False])
def test_what_some_queries_may_not_see_does_not_reach_them(is_causal, what):
    """Neither in values nor in gradients; those that see it are NaN."""
    q, k, v = (jnp.asarray(x) for x in qkv(4, 2))
    k, v = k[:, :5], v[:, :5]
    mask = None if is_causal else np.tril(np.ones((5, 5), bool))

    def loss(q, k, v):
        y = lux.nn.scaled_dot_product_attention(q, k, v, mask=mask, is_causal=is_causal)
        weights = lux.nn.attention_weights(q, k, mask=mask, is_causal=is_causal)
        return jnp.sum(jnp.sin(y[:, :3])) + jnp.sum(weights[..., :3, :] ** 2), y

    (value, _), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    for i, x in enumerate((q, k, v)):
        given = [q, k, v]
        given[i] = x.at[0, 3, 0, 1].set(what)
        (got, y), moved = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given)
        assert got == value and np.isnan(y[0, 3]).any() and np.isfinite(y[1:]).all()
        for a, b in zip(moved, gradients, strict=True):
            assert np.allclose(a, b, atol=1e-14)


@pytest.mark.slow
def test_a_layer_keeps_tokens_to_those_that_see_them(key):
    layer = lux.MultiHeadAttention(4, 2, is_causal=True, return_weights=True)
    ps, st = lux.setup(key, layer)

    def loss(ps, x):
        (y, weights), _ = layer(x, ps, st)
        return jnp.sum(jnp.sin(y[:, :4])) + jnp.sum(weights[..., :4, :] ** 2), (y, weights)

    x = jnp.asarray(X)
    (value, _), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(ps, x)
    (got, (y, weights)), moved = jax.value_and_grad(loss, (0, 1), has_aux=True)(ps, x.at[:, 4].set(jnp.nan))
    assert np.isclose(got, value, rtol=1e-14) and np.isnan(y[:, 4]).all() and np.isnan(weights[..., 4, :]).all()
    assert np.allclose(moved[0].data, gradients[0].data) and np.allclose(moved[1], gradients[1])


@pytest.mark.slow
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_stack_of_blocks_keeps_tokens_to_those_that_see_them(key, norm_first):
    block = lux.TransformerEncoderBlock(4, 2, 6, is_causal=True, norm_first=norm_first)
    layer = lux.Chain(block, block)
    ps, st = lux.setup(key, layer)

    def loss(ps, x):
        y, _ = layer(x, ps, st)
        return jnp.sum(jnp.sin(y[:, :3])), y

    x = jnp.asarray(X)
    (value, _), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(ps, x)
    (got, y), moved = jax.value_and_grad(loss, (0, 1), has_aux=True)(ps, x.at[:, 3].set(jnp.nan))
    assert np.isclose(got, value, rtol=1e-14) and np.isnan(y[:, 3:]).all()
    assert np.allclose(moved[0].data, gradients[0].data) and np.allclose(moved[1], gradients[1])


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)], ids=str)
def test_a_mask_of_keys_alone(shape):
    q, k, v = qkv(2, 2)
    keep = np.arange(6) < 4
    nans = nan_where(np.broadcast_to(~keep, (3, 6)), k), nan_where(np.broadcast_to(~keep, (3, 6)), v)
    y = lux.nn.scaled_dot_product_attention(q, *nans, mask=keep.reshape(shape))
    assert np.allclose(y, lux.nn.scaled_dot_product_attention(q, k[:, :4], v[:, :4]))


def test_keys_shared_by_samples_with_masks_of_their_own():
    q, k, v = qkv(2, 2)
    keep = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], bool)[:, None, None]
    k, v = (nan_where(np.arange(6) > 3, x[0]) for x in (k, v))
    y = lux.nn.scaled_dot_product_attention(q, k[None], v[None], mask=keep)
    for one in range(3):
        seen = keep[one].ravel()
        assert np.allclose(y[one], lux.nn.scaled_dot_product_attention(q[one], k[seen], v[seen]))


def test_attention_to_no_keys_and_of_no_queries():
    q, k, v = qkv(2, 2)
    assert not np.any(lux.nn.scaled_dot_product_attention(q, k[:, :0], v[:, :0]))
    assert lux.nn.scaled_dot_product_attention(q[:, :0], k, v, is_causal=True).shape == (3, 0, 2, 4)


def test_functions_refuse_what_does_not_fit():
    q, k, v = qkv(3, 2)
    with pytest.raises(ValueError, match="3 query heads do not split into groups for 2 key heads"):
        lux.nn.scaled_dot_product_attention(q, k, v)
    with pytest.raises(ValueError, match="queries have 4 features a head, keys 3"):
        lux.nn.attention_weights(q, k[..., :3])
    with pytest.raises(
        ValueError, match=r"values of shape \(3, 5, 2, 4\) do not belong to keys of shape \(3, 6, 2, 4\)"
    ):
        lux.nn.scaled_dot_product_attention(q[:, :, :2], k, v[:, :5])


# --- the layer ----------------------------------------------------------------------------------------------------


def test_self_attention_is_cross_attention_with_itself(key):
    layer = lux.MultiHeadAttention(4, 2)
    ps, st = lux.setup(key, layer)
    y = layer(X, ps, st)[0]
    for x in ((X, X), (X, X, X), (X, X, X, None), (X, X, X, np.ones((5, 5), bool))):
        assert np.allclose(layer(x, ps, st)[0], y, atol=1e-14)
    first = layer.replace(is_causal=True)(X, ps, st)[0][:, 0]
    assert np.allclose(first, layer(X[:, :1], ps, st)[0][:, 0])


def test_cross_attention_with_sizes_of_its_own(key):
    layer = lux.MultiHeadAttention(
        4, 4, key_features=2, qk_features=8, v_features=12, out_features=5, num_kv_heads=2, return_weights=True
    )
    ps, st = lux.setup(key, layer)
    (y, weights), _ = layer((X, MEMORY), ps, st)
    assert y.shape == (3, 5, 5) and weights.shape == (3, 4, 5, 6)
    assert ps.key.weight.shape == (2, 4) and ps.value.weight.shape == (2, 6)
    assert ps.size == (4 * 8 + 8) + (2 * 4 + 4) + (2 * 6 + 6) + (12 * 5 + 5)
    inputs = ((X[0], ps.query), (MEMORY[0], ps.key), (MEMORY[0], ps.value))
    q, k, v = (x @ np.asarray(p.weight) + np.asarray(p.bias) for x, p in inputs)
    q, k, v = q.reshape(5, 4, 2), k.reshape(6, 2, 2), v.reshape(6, 2, 3)
    heads = [numpy_attention(q[:, h], k[:, h // 2], v[:, h // 2]) for h in range(4)]
    assert np.allclose(weights[0], np.stack([w for w, _ in heads]))
    mixed = np.concatenate([part for _, part in heads], -1)
    assert np.allclose(y[0], mixed @ np.asarray(ps.output.weight) + np.asarray(ps.output.bias))
    assert np.allclose(layer.replace(return_weights=False)((X, MEMORY), ps, st)[0], y)


def test_padding_mask_hides_keys(key):
    layer = lux.MultiHeadAttention(4, 2, key_features=2)
    ps, st = lux.setup(key, layer)
    keep = np.arange(6) < np.array([6, 4, 1])[:, None]
    y = layer((X, MEMORY, MEMORY, keep[:, None, None]), ps, st)[0]
    assert np.allclose(y[1], layer((X[1], MEMORY[1, :4]), ps, st)[0])


@pytest.mark.slow
@pytest.mark.parametrize("norm_first", [True, False])
def test_nan_in_padding_has_no_effect_on_the_gradients_of_layers(key, norm_first):
    """As keys and values of attention, and in all places of a block."""
    lengths = np.array([5, 2, 3])
    hidden = np.arange(5) >= lengths[:, None]
    mask = ~hidden[:, None, None]
    attention = lux.MultiHeadAttention(4, 2, is_causal=True)
    block = lux.TransformerEncoderBlock(4, 2, 3, norm_first=norm_first)

    def attend(x):
        return X, x, x, mask

    for layer, inputs in ((attention, attend), (lux.Chain(block), lambda x: (x, mask))):
        ps, st = lux.setup(key, layer)

        def loss(ps, x, layer=layer, inputs=inputs, st=st):
            y = layer(inputs(x), ps, st)[0]
            return jnp.sum(jnp.where(hidden[..., None], 0, y) ** 2)

        results = [jax.value_and_grad(loss, (0, 1))(ps, jnp.asarray(x)) for x in (X, nan_where(hidden, X))]
        for a, b in zip(*map(jax.tree.leaves, results), strict=True):
            assert np.isfinite(b).all() and np.allclose(a, b, atol=1e-12)
        assert not np.any(results[1][1][1][hidden])


def test_dropout_acts_on_the_weights(key):
    layer = lux.MultiHeadAttention(4, 2, dropout_rate=0.5, return_weights=True)
    ps, st = lux.setup(key, layer)
    (_, weights), st_next = layer(X, ps, st)
    (y, sound), _ = layer(X, ps, lux.testmode(st))
    dropped = np.asarray(weights == 0)
    assert 0.3 < dropped.mean() < 0.7 and np.allclose(weights[~dropped], 2 * sound[~dropped])
    assert st_next["dropout"]["key"] != st["dropout"]["key"]
    plain = lux.MultiHeadAttention(4, 2)
    assert np.allclose(plain(X, ps, lux.setup(key, plain)[1])[0], y)


def test_layers_refuse_numbers_that_do_not_divide():
    for arguments, says in (
        ({"num_heads": 3}, "4 features into 3 heads"),
        ({"num_heads": 2, "v_features": 5}, "5 value features into 2 heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "4 heads into 3 groups of num_kv_heads"),
    ):
        with pytest.raises(ValueError, match=f"MultiHeadAttention cannot split {says}"):
            lux.MultiHeadAttention(4, **arguments)
    with pytest.raises(ValueError, match="got a tuple of 5"):
        lux.MultiHeadAttention(4)((X,) * 5, *lux.setup(jax.random.key(0), lux.MultiHeadAttention(4)))


def test_options_that_are_wrong_are_refused_by_name():
    for make, says in (
        (lambda: lux.MultiHeadAttention(4, 0), r"MultiHeadAttention\.num_heads: expected .* at least 1, got 0"),
        (lambda: lux.MultiHeadAttention(4, num_kv_heads=1.0), r"num_kv_heads: expected a whole number, got 1\.0"),
        (lambda: lux.MultiHeadAttention(4, dropout_rate=2), r"dropout_rate: expected a rate between 0 and 1, got 2"),
        (lambda: lux.TransformerEncoderBlock(4, 2, 3, "gelu"), r"TransformerEncoderBlock\.activation: expected a func"),
        (lambda: lux.PatchEmbedding((2, 0), 1, 1), r"PatchEmbedding\.patch_size\[1\]: expected .* at least 1, got 0"),
        (lambda: lux.nn.rotary_angles(jnp.arange(3), 3), "expected an even number of features, .* got 3"),
        (lambda: lux.nn.apply_rotary(jnp.ones((5, 2, 4)), jnp.ones((5, 3))), "got 4 features and 3 angles"),
        (lambda: lux.RotaryPositionalEmbedding(3), r"features: expected an even number of features, .* got 3"),
        (
            lambda: lux.SinusoidalPositionalEmbedding(4, min_freq=0),
            r"min_freq: expected .* above 0, got 0",
        ),
        (lambda: lux.ClassTokens(-1), r"ClassTokens\.features: expected a whole number of at least 1, got -1"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            make()


def test_layers_made_from_options_print_on_one_line():
    layer = lux.MultiHeadAttention(4, 2, is_causal=True)
    assert repr(layer).startswith("MultiHeadAttention(4, 2, is_causal=True)") and "80 parameters" in repr(layer)
    assert layer.replace(features=8).query == lux.Dense(8, 8)


# --- positions ----------------------------------------------------------------------------------------------------


def test_sinusoidal_embedding():
    layer = lux.SinusoidalPositionalEmbedding(6, min_freq=1e-2, max_freq=10.0)
    positions = np.array([[0.0, 1.5], [2.0, -3.0]])
    angles = positions[..., None] * np.array([10.0, 10 ** (-0.5), 1e-2])
    expected = np.sqrt(1 / 3) * np.concatenate([np.sin(angles), np.cos(angles)], -1)
    assert np.allclose(layer(positions, {}, {})[0], expected, atol=1e-13)
    assert np.allclose(np.linalg.norm(layer(jnp.arange(4), {}, {})[0], axis=-1), 1)
    turns = layer.replace(full_turns=True, scale=1.0, min_freq=1.0, max_freq=2.0)
    angles = 2 * np.pi * np.arange(4)[:, None] * np.array([2.0, 2**0.5, 1.0])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    assert np.allclose(turns(jnp.arange(4), {}, {})[0], expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"features: expected an even number of features, which make pairs, got 5"):
        lux.SinusoidalPositionalEmbedding(5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_angles_of_half_precision_are_in_float32(dtype):
    """In bfloat16 itself, positions above 256 are rounded to even ones."""
    layer, x = lux.RotaryPositionalEmbedding(8), jnp.ones((600, 1, 8), dtype)
    few = 2 * float(jnp.finfo(dtype).eps)
    expected = layer(x.astype(float), {}, {})[0]
    for given in (x, (x, jnp.arange(600)), (x, np.arange(600.0))):
        y = layer(given, {}, {})[0]
        assert y.dtype == dtype and np.allclose(y.astype(float), expected, atol=few)
    assert lux.nn.rotary_angles(jnp.arange(600), 4, dtype=dtype).dtype == jnp.float32
    layer = lux.SinusoidalPositionalEmbedding(8)
    positions = jnp.arange(256).astype(dtype)
    y, expected = layer(positions, {}, {})[0], layer(positions.astype(float), {}, {})[0]
    assert y.dtype == dtype and np.allclose(y.astype(float), expected, atol=few)


def test_rotary_embedding_knows_distances_only():
    layer = lux.RotaryPositionalEmbedding(8)
    q, k = RNG.normal(size=(2, 7, 1, 8))
    turned = layer(q, {}, {})[0]
    assert np.allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(q, axis=-1)) and np.allclose(turned[0], q[0])
    products = np.einsum("qhd,khd->qk", turned, layer((k, jnp.arange(7)), {}, {})[0])
    shifted = np.einsum(
        "qhd,khd->qk", layer((q, jnp.arange(7) + 11), {}, {})[0], layer((k, jnp.arange(7) + 11), {}, {})[0]
    )
    assert np.allclose(products, shifted)
    angle = 3 * 10_000 ** (-2 / 8)
    assert np.isclose(turned[3, 0, 1], q[3, 0, 1] * np.cos(angle) - q[3, 0, 5] * np.sin(angle))
    with pytest.raises(ValueError, match=r"\(\.\.\., tokens, heads, 8\), got \(7, 8\)"):
        layer(q[:, 0], {}, {})


def test_learned_embedding(key):
    layer = lux.LearnedPositionalEmbedding(5, 4)
    ps, st = lux.setup(key, layer)
    assert np.allclose(layer(X, ps, st)[0], X + np.asarray(ps.embedding)) and 0.01 < np.std(ps.embedding) < 0.03
    with pytest.raises(ValueError, match=r"\(\.\.\., 5, 4\), got \(3, 4, 4\)"):
        layer(X[:, :4], ps, st)


# --- transformers -------------------------------------------------------------------------------------------------


def test_class_tokens(key):
    layer = lux.ClassTokens(4, init=lux.initializers.ones)
    y, _ = layer(X, *lux.setup(key, layer))
    assert np.array_equal(y[:, 1:], X) and np.all(y[:, 0] == 1)
    with pytest.raises(
        ValueError, match=r"ClassTokens\(4, init=ones\) expects inputs of shape \(\.\.\., 4\), got \(3, 3\)"
    ):
        layer(jnp.ones((3, 3)), *lux.setup(key, layer))


def test_patches_are_a_convolution_with_stride(key):
    layer = lux.PatchEmbedding((2, 3), 2, 5)
    ps, st = lux.setup(key, layer)
    images = jnp.asarray(RNG.normal(size=(3, 4, 6, 2)))
    expected = jax.lax.conv_general_dilated(
        images, ps.weight, (2, 3), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert np.allclose(layer(images, ps, st)[0], expected.reshape(3, 4, 5) + ps.bias)
    assert np.allclose(layer(images[0], ps, st)[0], layer(images, ps, st)[0][0])
    with pytest.raises(ValueError, match=r"2 features on spatial axes that patches \(2, 3\) fill, got \(3, 4, 5, 2\)"):
        layer(images[:, :, :5], ps, st)


def test_a_vision_transformer_has_as_many_parameters_as_it_says(key):
    block = lux.TransformerEncoderBlock(8, 2, 16)
    model = lux.Chain(
        lux.PatchEmbedding(4, 3, 8), lux.ClassTokens(8), lux.Stack(block, 3), lux.SelectDim(-2, 0), lux.Dense(8, 10)
    )
    a_block = 4 * (8 * 8 + 8) + (8 * 16 + 16) + (16 * 8 + 8) + 2 * 16
    assert lux.parameter_length(block) == a_block
    assert lux.parameter_length(model) == (4 * 4 * 3 * 8 + 8) + 8 + 3 * a_block + (8 * 10 + 10)
    assert lux.output_shape(model, jnp.ones((2, 16, 16, 3))) == (2, 10)
