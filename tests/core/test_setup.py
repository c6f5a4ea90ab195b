"""setup: keys, dtypes, counts and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux


def same(a, b):
    def numbers(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(numbers(x), numbers(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_appending_a_layer_keeps_the_earlier_parameters_and_state(key):
    layers = [lux.Dense(2, 3), lux.Dropout(0.5), lux.Dense(3, 3)]
    (ps, st), (ps_more, st_more) = (lux.setup(key, lux.Chain(*ls)) for ls in (layers, [*layers, lux.Dense(3, 1)]))
    assert np.array_equal(ps.data, ps_more.data[: ps.size])
    assert all(same(st[name], st_more[name]) for name in st)


def test_parameters_do_not_depend_on_whether_a_layer_has_state(key):
    with_state = lux.setup(key, lux.Chain(lux.Dropout(0.5), lux.Dense(2, 3)))[0]
    without = lux.setup(key, lux.Chain(jnp.tanh, lux.Dense(2, 3)))[0]
    assert with_state.equals(without)


def test_equal_siblings_get_different_parameters_and_keys(key):
    ps, st = lux.setup(key, lux.Chain(lux.Dense(2, 2), lux.Dense(2, 2), lux.Dropout(0.5), lux.Dropout(0.5)))
    assert not np.allclose(ps.layer_0.weight, ps.layer_1.weight)
    assert st["layer_2"]["key"] != st["layer_3"]["key"]


def test_keys(key):
    model = lux.Dense(2, 3)
    ps = lux.setup(key, model)[0]
    assert ps.equals(lux.setup(jax.random.PRNGKey(0), model)[0])
    assert not ps.equals(lux.setup(jax.random.key(1), model)[0])
    for wrong in (jnp.zeros(2), np.random.default_rng(0), None):
        with pytest.raises(TypeError):
            lux.setup(wrong, model)


@pytest.mark.parametrize("wrong", [0, None, 0.5], ids=repr)
def test_a_wrong_key_says_what_is_expected(wrong):
    with pytest.raises(TypeError, match=rf"expected a random key, jax\.random\.key\(seed\), got {wrong}"):
        lux.setup(wrong, lux.Dense(2, 3))


def test_dtypes_of_parameters_and_state(key, dtype):
    ps, st = lux.setup(key, lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3)), dtype)
    assert ps.dtype == dtype and ps.layer_0.weight.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(st)} == {jnp.dtype(dtype)}
    assert st["layer_1"]["mode"] is lux.Mode.TRAIN


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_running_statistics_are_not_in_half_precision(key, half):
    model = lux.Chain(lux.Stack(lux.BatchNorm(3), 2), lux.FourierFeatures(3, 4), lux.Dense(4, 1))
    ps, st = lux.setup(key, model, half)
    assert ps.dtype == half and st["layer_1"]["frequencies"].dtype == half
    assert st["layer_0"]["running_mean"].dtype == st["layer_0"]["running_var"].dtype == jnp.float32


def test_nested_dicts_keep_the_declared_order(key, dtype):
    ps, _ = lux.setup(key, lux.Chain(b=lux.Dense(2, 3), a=lux.Dense(3, 1)), dtype, flat=False)
    assert list(ps) == ["b", "a"] and list(ps["b"]) == ["weight", "bias"]
    flat, _ = lux.setup(key, lux.Chain(b=lux.Dense(2, 3), a=lux.Dense(3, 1)), dtype)
    assert same(ps, flat.tree()) and flat.layout is lux.Layout.of(ps)


def test_setup_takes_functions_and_can_be_traced(key):
    assert lux.setup(key, jnp.sin)[0].size == 0
    model = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3))
    ps, st = jax.jit(lux.setup, static_argnums=1)(key, model)
    eager, eager_st = lux.setup(key, model)
    assert ps.layout is eager.layout and np.allclose(ps.data, eager.data, rtol=1e-15) and same(st, eager_st)
    ensemble = jax.vmap(lambda key: lux.setup(key, model)[0])(jax.random.split(key, 4))
    assert ensemble.shape == (4, 15) and ensemble.layer_0.weight.shape == (4, 2, 3)


def test_counts(key):
    model = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3), lux.Dropout(0.5), jnp.tanh)
    ps, st = lux.setup(key, model)
    assert lux.parameter_length(model) == lux.parameter_length(ps) == lux.parameter_length(ps.tree()) == 15
    assert lux.state_length(model) == lux.state_length(st) == 7 + 2


def test_output_shapes():
    model = lux.Chain(lux.Dense(2, 3), lux.Parallel(None, lux.Dense(3, 1), lux.BatchNorm(3)))
    assert lux.output_shape(model, jnp.ones((8, 2))) == ((8, 1), (8, 3))
    assert lux.output_shape(model, jax.ShapeDtypeStruct((5, 2), jnp.float64)) == ((5, 1), (5, 3))


def test_parameters_that_are_no_numbers_are_refused(key):
    class Wrong(lux.Layer):
        def init_params(self, key):
            return {"inner": {"count": jnp.zeros(3, int)}}

        def forward(self, x, ps, st):
            return x, st

    with pytest.raises(TypeError, match=r"`layer_0\.inner\.count` has dtype int64: .*belong in the state"):
        lux.setup(key, lux.Chain(Wrong()))


def test_layers_without_parameters_follow_the_64_bit_switch(key):
    alive = lux.Layout.of({})  # layouts are interned: this one is that of the layer
    for enabled, dtype in ((True, jnp.float64), (False, jnp.float32), (True, jnp.float64)):
        with jax.enable_x64(enabled):
            assert lux.setup(key, lux.Chain())[0].dtype == alive.flat_dtype == dtype


WIDTH = 2


class AsWide(lux.Layer):
    def init_params(self, key):
        return {"weight": jnp.ones(WIDTH)}

    def forward(self, x, ps, st):
        return x * ps["weight"].sum(), st


def test_parameters_whose_shapes_follow_a_global_fit_after_it_has_changed(key, monkeypatch):
    layer = AsWide()
    for width in (2, 3, 4):
        monkeypatch.setitem(globals(), "WIDTH", width)
        ps, st = lux.setup(key, layer)
        assert lux.parameter_length(layer) == width
        assert layer(1.0, ps, st)[0] == layer(1.0, ps.tree(), st)[0] == layer(1.0, ps.data, st)[0] == width
    with pytest.raises(ValueError, match="not the parameters of this AsWide"):
        layer(1.0, lux.ComponentVector(weight=[1.0]), st)
