"""WeightNorm and SpectralNorm: parameters in another form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
NET = lux.Chain(lux.Dense(3, 5, jnp.tanh), lux.Dense(5, 2))
PATHS = ("layer_0.weight", "layer_1.weight")


# --- WeightNorm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "x", "paths"),
    [(NET, X, PATHS), (lux.Conv(3, 4, 2), X[None], ("weight", "bias")), (lux.Dense(3, 2), X, [])],
    ids=["chain", "conv", "nothing"],
)
def test_weight_norm_starts_as_the_layer(key, layer, x, paths):
    wrapped = lux.WeightNorm(layer, paths)
    ps, st = lux.setup(key, layer)
    ps_wrapped, st_wrapped = lux.setup(key, wrapped)
    assert np.allclose(wrapped(x, ps_wrapped, st_wrapped)[0], layer(x, ps, st)[0], atol=1e-13)
    assert ps_wrapped.size == ps.size + sum(ps[path].shape[-1] for path in paths)


def test_weight_norm_is_its_formula(key):
    layer = lux.WeightNorm(lux.Conv(2, 3, (2, 2), use_bias=False))
    ps, st = lux.setup(key, layer)
    ps = ps.replace(weight={"g": [1.0, 2.0, -3.0]})
    v = np.asarray(ps.weight.v)
    assert list(ps.weight.keys()) == ["g", "v"]
    weight = v / np.sqrt((v**2).sum((0, 1, 2))) * np.array([1.0, 2.0, -3.0])
    x = RNG.normal(size=(1, 3, 3, 2))
    assert np.allclose(layer(x, ps, st)[0], layer.layer(x, {"weight": weight}, {})[0], atol=1e-13)


def test_one_path_is_a_string():
    assert repr(lux.WeightNorm(lux.Dense(2, 2), "bias")).splitlines()[1] == "    parameters = 'bias',"
    assert lux.WeightNorm(lux.Dense(2, 2), "bias") == lux.WeightNorm(lux.Dense(2, 2), ["bias"])
    assert lux.parameter_length(lux.SpectralNorm(lux.Dense(2, 2), "bias")) == 6
    assert lux.parameter_length(lux.WeightNorm(lux.Dense(2, 2), "bias")) == 8


def test_weight_norm_of_zeros_is_finite(key):
    layer = lux.WeightNorm(lux.Dense(3, 2, init_weight=lux.initializers.zeros))
    for dtype in ("float32", "float64"):
        ps, st = lux.setup(key, layer, dtype)
        gradient = jax.grad(lambda ps, st=st, dtype=dtype: layer(X.astype(dtype), ps, st)[0].sum())(ps)
        assert np.isfinite(gradient.data).all()


# --- SpectralNorm -------------------------------------------------------------------------------------------------


def test_spectral_norm_finds_the_largest_singular_value(key):
    layer = lux.SpectralNorm(NET, PATHS, iterations=60)
    ps, st = lux.setup(key, layer)
    _, st = layer(X, ps, st)
    for state in (st, lux.testmode(st)):
        plain = ps.tree()
        weights = {name: plain[name]["weight"] for name in plain}
        scaled = {name: {**plain[name], "weight": w / jnp.linalg.norm(w, 2)} for name, w in weights.items()}
        assert np.allclose(layer(X, ps, state)[0], NET(X, scaled, {"layer_0": {}, "layer_1": {}})[0], rtol=1e-6)
    assert np.allclose(jnp.linalg.norm(st["u"]["layer_0"]["weight"]), 1.0)


@pytest.mark.parametrize("size", [1e-9, 1e12])
def test_spectral_norm_of_weights_whose_fourth_powers_are_beyond_single_precision(key, size):
    layer = lux.SpectralNorm(lux.Dense(4, 3, use_bias=False), iterations=60)
    ps, st = lux.setup(key, layer, "float32")
    jacobian, _ = layer(jnp.eye(4, dtype="float32"), ps * np.float32(size), st)
    assert np.isclose(jnp.linalg.norm(jacobian, 2), 1.0, rtol=1e-4)


def test_spectral_norm_iterates_in_training_only(key):
    layer = lux.SpectralNorm(lux.Conv(2, 3, 2))
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(1, 4, 2))
    matrix, u = np.asarray(ps.weight).reshape(4, 3), np.asarray(st["u"]["weight"])
    _, st_train = layer(x, ps, st)
    u = matrix.T @ matrix @ u
    assert np.allclose(st_train["u"]["weight"], u / np.linalg.norm(u), atol=1e-14)
    st_test = lux.testmode(st)
    assert layer(x, ps, st_test)[1]["u"]["weight"] is st_test["u"]["weight"]


def test_the_gradient_of_spectral_norm_treats_the_vector_as_constant(key):
    layer = lux.SpectralNorm(lux.Dense(3, 2), iterations=200)
    ps, st = lux.setup(key, layer)

    def exact(ps):
        return layer.layer(X, {**ps.tree(), "weight": ps["weight"] / jnp.linalg.norm(ps["weight"], 2)}, {})[0].sum()

    found = jax.grad(lambda ps: layer(X, ps, st)[0].sum())(ps)
    assert np.allclose(found.data, jax.grad(exact)(ps).data, atol=1e-10)


def test_spectral_norm_survives_zero_weights(key):
    layer = lux.SpectralNorm(lux.Dense(3, 2, init_weight=lux.initializers.zeros))
    ps, st = lux.setup(key, layer)
    y, st_next = layer(X, ps, st)
    assert np.isfinite(y).all() and np.array_equal(st_next["u"]["weight"], st["u"]["weight"])


# --- half precision -----------------------------------------------------------------------------------------------


def in_single(tree):
    return jax.tree.map(lambda x: x.astype("float32") if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.mark.slow
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("bound", [0.0, 2e-4, 1.0, 1e3])
@pytest.mark.parametrize("wrapper", [lux.WeightNorm, lux.SpectralNorm])
def test_in_half_precision_weights_have_the_norms_of_single_precision(key, wrapper, bound, half):
    layer = wrapper(lux.Dense(3, 2, use_bias=False, init_weight=lux.initializers.Uniform(bound)))
    ps, st = lux.setup(key, layer, half, flat=False)
    x = jnp.asarray(X, half)

    def outputs(ps, st, x):
        y, st_next = layer(x, ps, st)
        return jnp.mean(jnp.square(y.astype("float32"))), (y, st_next)

    gradient, (y, st_next) = jax.grad(outputs, has_aux=True)(ps, st, x)
    wide = in_single(ps), in_single(st), in_single(x)
    expected, (y_wide, st_wide) = jax.grad(outputs, has_aux=True)(*wide)
    digit = 4 * float(jnp.finfo(half).eps)
    assert y.dtype == half and [x.dtype for x in jax.tree.leaves(st_next)] == [x.dtype for x in jax.tree.leaves(st)]
    pairs = zip(jax.tree.leaves((y, st_next, gradient)), jax.tree.leaves((y_wide, st_wide, expected)), strict=True)
    for got, right in pairs:
        if jnp.issubdtype(got.dtype, jnp.floating):
            got, right = np.asarray(got, "float32"), np.asarray(right)
            assert np.isfinite(got).all() and np.allclose(got, right, rtol=digit, atol=digit * np.abs(right).max())


@pytest.mark.slow
@pytest.mark.parametrize("half", ["float16", "bfloat16", "float32"])
def test_weights_of_zero_are_trained_in_every_precision(key, half):
    layer = lux.WeightNorm(lux.Dense(3, 2, use_bias=False, init_weight=lux.initializers.zeros))
    ps, st = lux.setup(key, layer, half)
    x = jnp.ones((1, 3), half)
    for _ in range(10):
        ps = ps - 0.1 * jax.grad(lambda ps: jnp.sum((layer(x, ps, st)[0] - 1) ** 2))(ps)
    assert np.allclose(layer(x, ps, st)[0].astype("float32"), 1, atol=0.05)


# --- paths --------------------------------------------------------------------------------------------------------

DOTTED = lux.Chain(**{"a.b": lux.Dense(3, 3), "a": lux.Chain(b=lux.Dense(3, 3)), "c": lux.Dense(3, 3)})
TWINS = (("a.b", "weight"), ("a", "b", "weight"))


@pytest.mark.parametrize("wrapper", [lux.WeightNorm, lux.SpectralNorm])
def test_names_with_dots_are_no_other_paths(key, wrapper):
    layer = wrapper(DOTTED, TWINS)
    ps, st = lux.setup(key, layer)
    weights = [ps[path] for path in TWINS]
    if wrapper is lux.WeightNorm:
        plain = lux.setup(key, DOTTED)[0]
        assert all(map(np.array_equal, [weight.v for weight in weights], [plain[path] for path in TWINS]))
    else:
        a, b = st["u"]["a.b"]["weight"], st["u"]["a"]["b"]["weight"]
        assert not np.array_equal(a, b)
        _, st = layer(X, ps, st)
        assert not np.array_equal(st["u"]["a.b"]["weight"], a) and not np.array_equal(st["u"]["a"]["b"]["weight"], b)
    assert wrapper(DOTTED, "a.b.weight").parameters == ("a.b.weight",)
    found = wrapper(DOTTED, "a.b.weight")  # the key with the dot is found first
    ps, st = lux.setup(key, found)
    assert isinstance(ps[TWINS[1]], jax.Array)
    assert found(X, ps, st)[0].shape == (4, 3)


@pytest.mark.parametrize(
    ("which", "frozen_paths"),
    [
        ((TWINS[0],), ["a.b.weight of a.b"]),
        ((TWINS[1],), ["a.b.weight of a"]),
        ("a.b", ["a.b.weight of a.b", "a.b.bias of a.b"]),
        ((("a", "b"),), ["a.b.weight of a", "a.b.bias of a"]),
        (TWINS, ["a.b.weight of a.b", "a.b.weight of a"]),
        (
            ("c", ("a", "b"), "a.b.bias"),
            ["c.weight of c", "c.bias of c", "a.b.weight of a", "a.b.bias of a", "a.b.bias of a.b"],
        ),
    ],
    ids=str,
)
def test_freezing_by_tuples(key, which, frozen_paths):
    ps, st = lux.setup(key, DOTTED)
    layer, kept, frozen = lux.parameters.freeze(DOTTED, ps, st, which=which)
    assert np.array_equal(layer(X, kept, frozen)[0], DOTTED(X, ps, st)[0])
    gone = {leaf.path for leaf in ps.layout.leaves} - {leaf.path for leaf in kept.layout.leaves}
    assert {f"{'.'.join(path)} of {path[0]}" for path in gone} == set(frozen_paths)
    again, ps_again, _ = lux.parameters.unfreeze(layer, kept, frozen)
    assert again == DOTTED and ps_again.equals(ps) and ps_again.layout is ps.layout


def test_sharing_by_tuples(key):
    ps, _ = lux.setup(key, DOTTED)
    shared = lux.parameters.share_parameters(ps, [TWINS], [jnp.ones((3, 3))])
    assert shared.size == ps.size - 9
    assert all(np.array_equal(shared[path], np.ones((3, 3))) for path in TWINS)
    with pytest.raises(ValueError, match=r"'a\.b' and 'a\.b\.weight' overlap"):
        lux.parameters.share_parameters(ps, [(("a", "b"), "c"), (("a", "b", "weight"), "c.weight")])
    lux.parameters.share_parameters(ps, [(("a", "b"), "c"), (("a.b",), "c")][:1])
    with pytest.raises(TypeError, match=r"expected groups of paths, such as .*, got \['ab'\]"):
        lux.parameters.share_parameters(ps, ["ab"])
    with pytest.raises(ValueError, match=r"there is no parameter 'a\.d': 'd' is not found, the names here are b"):
        lux.parameters.share_parameters(ps, [("a.d", "c")])


def test_layer_map_over_names_with_dots(key):
    ps, st = lux.setup(key, DOTTED)
    seen = []

    def double(layer, ps, st, path):
        seen.append(path)
        return layer, jax.tree.map(lambda leaf: len(seen) * leaf, ps), st

    _, new, _ = lux.parameters.layer_map(double, DOTTED, ps, st)
    assert seen == ["a.b", "a.b", "c"]
    assert all(np.allclose(new[path], (i + 1) * ps[path]) for i, path in enumerate((*TWINS, ("c", "weight"))))


def test_layer_map_sees_the_copies_of_a_stack_with_flat_rows(key):
    model = lux.Stack(lux.Dense(3, 3), 2)
    flat = model.replace(flat_rows=True)

    def halved(layer, ps, st, path):
        return layer.replace(use_bias=False), {"weight": ps["weight"] / 2}, st

    _, expected, _ = lux.parameters.layer_map(halved, model, *lux.setup(key, model))
    new, ps, _ = lux.parameters.layer_map(halved, flat, *lux.setup(key, flat))
    assert ps.rows.shape == (2, 128) and np.array_equal(new.named(ps).weight, expected.weight)


def test_shared_parameters_stay_shared(key):
    model = lux.Chain(lux.Dense(3, 3), lux.Dense(3, 3), lux.Dense(3, 1))
    plain, st = lux.setup(key, model)
    ps = lux.parameters.share_parameters(plain, [("layer_0.weight", "layer_1.weight")])
    layer, kept, frozen = lux.parameters.freeze(model, ps, st, which="layer_2")
    assert kept.size == ps.size - 4 and kept.layout.ties == ps.layout.ties
    assert lux.parameters.unfreeze(layer, kept, frozen)[1].equals(ps)
    _, doubled, _ = lux.parameters.layer_map(lambda layer, ps, st, path: (layer, ps, st), model, ps, st)
    assert doubled.equals(ps)
    with pytest.raises(ValueError, match=r"'layer_0.weight' and 'layer_1.weight' are one: freeze both or neither"):
        lux.parameters.freeze(model, ps, st, which="layer_0")


def test_wrong_options_are_refused_where_they_are_given():
    dense = lux.Dense(2, 2)
    for make in (lux.WeightNorm, lux.SpectralNorm, lux.Frozen):
        with pytest.raises(ValueError, match="there is no parameter 'wieght': 'wieght' is not found, the names here"):
            make(dense, "wieght")
        with pytest.raises(ValueError, match="'weight' and 'weight' overlap: name one of them"):
            make(dense, ("weight", ("weight",)))
        with pytest.raises(TypeError, match=r"expected paths of parameters, 'layer_0.weight' or .*, got 3"):
            make(dense, 3)
    for iterations, error in ((0, "at least 1, got 0"), (1.5, "expected a whole number")):
        with pytest.raises((TypeError, ValueError), match=rf"SpectralNorm\.iterations: .*{error}"):
            lux.SpectralNorm(dense, iterations=iterations)
    with pytest.raises(ValueError, match=r"WeightNorm normalizes arrays with an axis .*; 'scale' is a scalar"):
        lux.WeightNorm(lux.compact(scale=jnp.array(1.0))(lambda self, x: self.scale * x), "scale")


def test_wrong_calls_get_one_sentence(key):
    ps, st = lux.setup(key, NET)
    frozen, kept, frozen_st = lux.parameters.freeze(NET, ps, st, which="layer_0")
    for call in (
        lambda: lux.parameters.freeze(NET, ps),
        lambda: lux.parameters.freeze(NET, st=st),
        lambda: lux.parameters.unfreeze(frozen, kept),
    ):
        with pytest.raises(TypeError, match=r"takes parameters and state together, (un)?freeze\(layer, ps, st\)"):
            call()
    assert lux.parameters.unfreeze(frozen, kept, frozen_st)[1].equals(ps)
    with pytest.raises(
        TypeError, match=r"the function of layer_map returns \(layer, ps, st\), got a dict for `layer_0`"
    ):
        lux.parameters.layer_map(lambda layer, ps, st, path: ps, NET, ps, st)
    with pytest.raises(ValueError, match="a value for each of 1 groups of shared parameters, got 2"):
        lux.parameters.share_parameters(lux.setup(key, DOTTED)[0], [("a.b", "c")], [1.0, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", [lux.WeightNorm, lux.SpectralNorm, lux.Frozen])
@pytest.mark.parametrize("kind", ["int32", "uint8", "bool"])
def test_wrappers_take_integers_and_empty_batches(key, wrapper, kind):
    layer = wrapper(lux.Dense(3, 2), "weight")
    ps, st = lux.setup(key, layer)
    x = np.array([[0, 1, 1], [1, 0, 1]], kind)
    with jax.numpy_dtype_promotion("standard"):
        assert np.allclose(layer(x, ps, st)[0], layer(x.astype(float), ps, st)[0])
    empty = jnp.zeros((0, 3))
    assert layer(empty, ps, st)[0].shape == (0, 2)
    assert not np.any(jax.grad(lambda ps: layer(empty, ps, st)[0].sum())(ps).data)


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [lux.WeightNorm, lux.SpectralNorm])
def test_wrong_paths(key, wrapper):
    with pytest.raises(ValueError, match=r"no parameter 'layer_0.kernel': 'kernel' is not found, the names here are"):
        lux.setup(key, wrapper(NET, ("layer_0.kernel",)))
    with pytest.raises(ValueError, match=r"no parameter 'weight.a': 'a' is not found, nothing is below"):
        lux.setup(key, wrapper(lux.Dense(2, 2), ("weight.a",)))
    with pytest.raises(ValueError, match=f"{wrapper.__name__} normalizes arrays .*; 'layer_0' is a dict"):
        lux.setup(key, wrapper(NET, ("layer_0",)))
