"""Layers that rearrange; freezing, sharing, mapping over layers; debug mode."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2))
MODEL = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dropout(0.5), lux.Dense(3, 1))


# --- shapes -------------------------------------------------------------------------------------------------------


def test_layers_that_rearrange():
    x = RNG.normal(size=(2, 3, 4, 5))
    for layer, expected in (
        (lux.NoOp(), x),
        (lux.Flatten(), x.reshape(2, 60)),
        (lux.Flatten(2), x.reshape(2, 3, 20)),
        (lux.Flatten(4), x.reshape(120)),
        (lux.Reshape(6, -1), x.reshape(2, 6, 10)),
        (lux.Reshape((60,)), x.reshape(2, 60)),
        (lux.Reshape(np.array([6, 10])), x.reshape(2, 6, 10)),
        (lux.SelectDim(1, -1), x[:, -1]),
        (lux.SelectDim(-1, 2), x[..., 2]),
    ):
        assert np.array_equal(layer(x, {}, {})[0], expected), layer
        assert eval(repr(layer), vars(lux)) == layer
    assert lux.Flatten()(np.ones(3), {}, {})[0].shape == (3, 1)


def test_they_refuse_what_does_not_fit():
    for layer, says in (
        (lux.Reshape(2, 4), r"Reshape\(2, 4\) cannot take samples of 6 elements, of an input \(4, 2, 3\)"),
        (lux.Reshape(4, -1), r"samples of 6 elements"),
        (lux.Flatten(4), r"Flatten\(4\) needs an input of 4 axes or more, got \(4, 2, 3\)"),
        (lux.SelectDim(3, 0), r"item 0 along axis 3, got an input \(4, 2, 3\)"),
        (lux.SelectDim(1, 2), r"item 2 along axis 1, got an input \(4, 2, 3\)"),
    ):
        with pytest.raises(ValueError, match=says):
            layer(jnp.ones((4, 2, 3)), {}, {})
    with pytest.raises(ValueError, match=r"Reshape\.shape: expected sizes, of which one may be -1, .* got \(-1, -1\)"):
        lux.Reshape(-1, -1)
    with pytest.raises(ValueError, match=r"Flatten\.axes: expected a whole number of at least 1, got 0"):
        lux.Flatten(0)
    with pytest.raises(TypeError, match=r"SelectDim\.index: expected a whole number, got 0\.5"):
        lux.SelectDim(1, 0.5)


# --- freeze -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [None, ("layer_0",), ("layer_0.weight", "layer_2"), "layer_2.bias", ()], ids=str)
def test_frozen_parameters_move_to_the_state_and_back(key, which):
    ps, st = lux.setup(key, MODEL)
    layer, kept, frozen_st = lux.parameters.freeze(MODEL, ps, st, which=which)
    sizes = {None: 13, ("layer_0",): 9, ("layer_0.weight", "layer_2"): 10, "layer_2.bias": 1, (): 0}
    assert ps.size - kept.size == sizes[which] and lux.parameter_length(layer) == kept.size
    y, after = layer(X, kept, frozen_st)
    expected, st_next = MODEL(X, ps, st)
    assert np.array_equal(y, expected) and after["layer"]["layer_1"]["key"] == st_next["layer_1"]["key"]
    again, ps_again, st_again = lux.parameters.unfreeze(layer, kept, after)
    assert again == MODEL and ps_again.equals(ps) and st_again is after["layer"]


def test_training_leaves_frozen_parameters(key):
    ps, st = lux.setup(key, MODEL)
    layer, kept, frozen_st = lux.parameters.freeze(MODEL, ps, st, which=["layer_0"])
    gradient = jax.grad(lambda ps: jnp.sum(layer(X, ps, frozen_st)[0] ** 2))(kept)
    full = jax.grad(lambda ps: jnp.sum(MODEL(X, ps, st)[0] ** 2))(ps)
    assert np.allclose(gradient.data, full.layer_2.data)
    _, trained, _ = lux.parameters.unfreeze(layer, kept - gradient, frozen_st)
    assert trained.layer_0.equals(ps.layer_0) and not trained.layer_2.equals(ps.layer_2)


def test_freezing_plain_dicts_and_layers_alone(key):
    ps, st = lux.setup(key, MODEL, flat=False)
    _, kept, _ = lux.parameters.freeze(MODEL, ps, st, which=["layer_0.bias"])
    assert list(kept["layer_0"]) == ["weight"] and lux.parameters.unfreeze(lux.parameters.freeze(MODEL)) == MODEL
    with pytest.raises(TypeError, match="expected a frozen layer, got Chain"):
        lux.parameters.unfreeze(MODEL, ps, st)
    with pytest.raises(ValueError, match=r"no parameter 'layer_0\.wieght': 'wieght' is not found, .* weight, bias"):
        lux.parameters.freeze(MODEL, ps, st, which=["layer_0.wieght"])
    with pytest.raises(ValueError, match=r"'layer_0' and 'layer_0\.weight' overlap"):
        lux.parameters.freeze(MODEL, which=["layer_0.weight", "layer_0"])


# --- share --------------------------------------------------------------------------------------------------------


def test_shared_parameters_are_one(key):
    model = lux.Chain(lux.Dense(2, 2, jnp.tanh), lux.Dense(2, 2), lux.Dense(2, 2))
    ps, st = lux.setup(key, model)
    shared = lux.parameters.share_parameters(ps, [("layer_0", "layer_2"), ("layer_1.bias", "layer_1.weight")][:1])
    assert shared.size == 12 and np.array_equal(shared.layer_2.weight, ps.layer_0.weight)
    assert np.allclose(model(X, shared, st)[0], model(X, ps.replace(layer_2=ps.layer_0), st)[0])
    loss = lambda ps: jnp.sum(model(X, ps, st)[0] ** 2)  # noqa: E731
    gradient, apart = jax.grad(loss)(shared), jax.grad(loss)(ps.replace(layer_2=ps.layer_0))
    assert np.allclose(gradient.layer_0.weight, apart.layer_0.weight + apart.layer_2.weight)
    with jax.numpy_dtype_promotion("standard"):
        solver = optax.adam(0.1)
        updates, _ = solver.update(gradient, solver.init(shared), shared)
    trained = shared + updates
    assert np.array_equal(trained.layer_0.weight, trained.layer_2.weight)
    assert not np.array_equal(trained.layer_0.weight, shared.layer_0.weight)
    given = lux.parameters.share_parameters(ps.tree(), [("layer_0.bias", "layer_1.bias")], [jnp.array([5.0, 6.0])])
    assert given.layer_1.bias.tolist() == [5, 6]


def test_overlapping_and_unequal_shares_are_refused(key):
    ps, _ = lux.setup(key, lux.Chain(lux.Dense(2, 2), lux.Dense(2, 2), lux.Dense(2, 3)))
    for groups, says in (
        ([("layer_0", "layer_1"), ("layer_1.bias", "layer_2.bias")], r"'layer_1' and 'layer_1\.bias' overlap"),
        ([("layer_0", "layer_0")], "'layer_0' and 'layer_0' overlap"),
        ([("layer_0", "layer_2")], "only equal shapes and dtypes can be tied"),
    ):
        with pytest.raises(ValueError, match=says):
            lux.parameters.share_parameters(ps, groups)


# --- layer_map ----------------------------------------------------------------------------------------------------


def test_layer_map_goes_through_containers_and_wrappers(key):
    model = lux.Chain(
        lux.Dense(2, 3),
        lux.SkipConnection(lux.MLP(3, 3, 3), jnp.add),
        lux.Recurrence(lux.StackedCells(lux.RNNCell(3, 2), jnp.sin)),
    )
    ps, st = lux.setup(key, model)
    seen = []

    def zero_dense(layer, ps, st, path):
        seen.append(path)
        if isinstance(layer, lux.Dense):
            return layer.replace(activation=jnp.cos), jax.tree.map(jnp.zeros_like, ps), st
        return layer, ps, st

    new, new_ps, new_st = lux.parameters.layer_map(zero_dense, model, ps, st)
    assert seen == ["layer_0", "layer_1.layer.layer_0", "layer_1.layer.layer_1", "layer_2.layer_0", "layer_2.layer_1"]
    assert new.layer_0 == lux.Dense(2, 3, jnp.cos) and new.layer_1.layer.layers.layer_1.activation is jnp.cos
    assert not np.any(new_ps.layer_1.data) and new_ps.layer_2.equals(ps.layer_2) and new_ps.layout is ps.layout
    assert np.allclose(new.layer_1(jnp.zeros(3), new_ps.layer_1, new_st["layer_1"])[0], 1)
    assert isinstance(lux.parameters.layer_map(zero_dense, model, ps.tree(), st)[1], dict)


def test_layer_map_gets_the_parameters_of_wrapped_layers_as_they_are_called_with(key):
    dense = lux.Dense(3, 3)
    model = lux.Chain(
        lux.Stack(dense, 2), lux.WeightNorm(dense), lux.SpectralNorm(dense), lux.Frozen(dense, ("weight",)),
        lux.StatefulRecurrentCell(lux.RNNCell(3, 3), (4,)),
    )  # fmt: skip
    x, (ps, st) = np.ones((4, 3)), lux.setup(key, model)
    seen = {}

    def double(layer, ps, st, path):
        seen[path] = jax.tree.map(jnp.shape, ps)
        return layer, jax.tree.map(lambda leaf: 2 * leaf, ps), st

    new, new_ps, new_st = lux.parameters.layer_map(double, model, ps, st)
    assert new == model and jax.tree.structure(new_st) == jax.tree.structure(st)
    one = {"weight": (3, 3), "bias": (3,)}
    assert seen["layer_0"] == {"weight": (2, 3, 3), "bias": (2, 3)}
    assert seen["layer_1"] == seen["layer_2"] == seen["layer_3"] == one
    assert np.allclose(new_ps["layer_1.weight.g"], 2 * ps["layer_1.weight.g"])
    assert np.allclose(new_st["layer_3"]["frozen"]["weight"], 2 * st["layer_3"]["frozen"]["weight"])
    for name in ("layer_1", "layer_3"):
        old, doubled = model[name](x, ps[name], st[name])[0], model[name](x, new_ps[name], new_st[name])[0]
        assert np.allclose(doubled, 2 * old)


# --- debug --------------------------------------------------------------------------------------------------------

FAILING = lux.Chain(
    first=lux.Dense(2, 2), inner=lux.Chain(jnp.abs, lux.SkipConnection(lux.Lambda(jnp.log), jnp.add)), last=jnp.cos
)


@pytest.mark.slow
def test_debug_changes_nothing_where_all_is_finite(key):
    ps, st = lux.setup(key, MODEL)
    y, after = lux.check_finite(MODEL)(X, ps, st)
    expected, st_next = MODEL(X, ps, st)
    assert np.array_equal(y, expected) and after["layer_1"]["key"] == st_next["layer_1"]["key"]
    loss = lambda layer: jax.jit(jax.grad(lambda ps: jnp.sum(layer(X, ps, st)[0] ** 2)))  # noqa: E731
    assert np.allclose(loss(lux.check_finite(MODEL))(ps).data, loss(MODEL)(ps).data)
    forward = lux.check_finite(MODEL, check="forward")
    assert np.allclose(jax.jvp(lambda ps: forward(X, ps, st)[0], (ps,), (ps,))[1],
                       jax.jvp(lambda ps: MODEL(X, ps, st)[0], (ps,), (ps,))[1])  # fmt: skip
    run = lux.Recurrence(lux.StackedCells(lux.RNNCell(2, 3), lux.Dropout(0.5)))
    ps, st = lux.setup(key, run)
    assert np.array_equal(lux.check_finite(run)(X, ps, st)[0], run(X, ps, st)[0])


SAYS = r"appears in the output of `inner\.layer_1\.layer`, Lambda\(log\)"


def test_debug_names_the_first_layer_forward(key):
    ps, st = lux.setup(key, FAILING)
    ps = jax.tree.map(jnp.zeros_like, ps)
    watched = lux.check_finite(FAILING)
    with pytest.raises(FloatingPointError, match=SAYS):
        watched(X, ps, st)
    with pytest.raises(FloatingPointError, match=SAYS):
        jax.grad(lambda ps: watched(X, ps, st)[0].sum())(ps)
    with pytest.raises(jax.errors.JaxRuntimeError, match=SAYS):
        jax.block_until_ready(jax.jit(watched.__call__)(X, ps, st))
    with pytest.raises(FloatingPointError, match="is in the input of the model"):
        watched(X * np.nan, ps, st)


def test_debug_names_the_layer_backward(key):
    """The root at zero is finite, and its derivative is not."""
    model = lux.Chain(lux.Dense(2, 2, use_bias=False), jnp.sqrt, lux.Dense(2, 1))
    ps, st = lux.setup(key, model)
    watched = lux.check_finite(model)
    loss = lambda ps: watched(0 * X, ps, st)[0].sum()  # noqa: E731
    says = r"in the gradient of `layer_1`, Lambda\(sqrt\)"
    assert np.isfinite(loss(ps))
    with pytest.raises(FloatingPointError, match=says):
        jax.grad(loss)(ps)
    with pytest.raises(jax.errors.JaxRuntimeError, match=says):
        jax.block_until_ready(jax.jit(jax.grad(loss))(ps))
    with pytest.raises(FloatingPointError, match="in the gradient that the loss gives the model"):
        jax.grad(lambda ps: jnp.sqrt(0 * loss(ps)))(ps)
    unwatched = lux.check_finite(model, check="forward")
    assert not np.all(np.isfinite(jax.grad(lambda ps: unwatched(0 * X, ps, st)[0].sum())(ps)))


def test_debug_reaches_into_wrappers_that_keep_parameters_in_another_form(key):
    model = lux.Chain(lux.Stack(lux.Chain(jnp.sin, lux.Dense(2, 2)), 3), lux.WeightNorm(lux.Dense(2, 1)))
    ps, st = lux.setup(key, model)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"in the output of `layer_0\.layer_1`, "):
        jax.block_until_ready(lux.check_finite(model)(X, ps.at["layer_0.layer_1.bias"].set(jnp.nan), st))
    with pytest.raises(FloatingPointError, match="in the output of `layer_1`, Dense"):
        lux.check_finite(model)(X, ps.at["layer_1.weight.g"].set(jnp.inf), st)


def test_debug_knows_its_checks():
    model = lux.Dense(2, 3)
    with pytest.raises(ValueError, match="'both', 'forward', 'backward', got 'none'"):
        lux.check_finite(model, check="none")
