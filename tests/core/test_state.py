"""Mode, testmode, trainmode, update_state, and states through JAX's transforms and exports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml import Mode

MODEL = lux.Chain(lux.Dense(2, 3), lux.Chain(norm=lux.BatchNorm(3), drop=lux.Dropout(0.5)))
X = np.linspace(-1, 1, 10).reshape(5, 2)


def modes(st):
    return [x for x in jax.tree.leaves(st, is_leaf=lambda x: isinstance(x, Mode)) if isinstance(x, Mode)]


def test_modes_are_switched_at_all_depths(key):
    _, st = lux.setup(key, MODEL)
    assert modes(st) == [Mode.TRAIN, Mode.TRAIN]
    test = lux.testmode(st)
    assert modes(test) == [Mode.TEST, Mode.TEST] and modes(st) == [Mode.TRAIN, Mode.TRAIN]
    assert modes(lux.trainmode(test)) == [Mode.TRAIN, Mode.TRAIN]
    assert test["layer_1"]["norm"]["running_mean"] is st["layer_1"]["norm"]["running_mean"]


def test_jit_traces_once_for_each_mode(key):
    traces = []

    @jax.jit
    def run(ps, st):
        traces.append(modes(st))
        return MODEL(X, ps, st)

    ps, st = lux.setup(key, MODEL)
    for _ in range(2):
        _, st = run(ps, st)
    run(ps, lux.testmode(st))
    run(ps, lux.testmode(st))
    assert traces == [[Mode.TRAIN] * 2, [Mode.TEST] * 2]


def test_test_mode_leaves_the_state_as_it_is(key):
    ps, st = lux.setup(key, MODEL)
    st = lux.testmode(st)
    _, after = MODEL(X, ps, st)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, st, after))


def test_modes_pass_scan_and_grad(key):
    ps, st = lux.setup(key, MODEL)
    st_end, ys = jax.lax.scan(lambda st, x: MODEL(x, ps, st)[::-1], st, jnp.stack([X, X]))
    assert modes(st_end) == [Mode.TRAIN] * 2 and ys.shape == (2, 5, 3)
    loss = lambda ps: (lambda y, st: (jnp.sum(y), st))(*MODEL(X, ps, st))  # noqa: E731
    (_, st_next), gradient = jax.value_and_grad(loss, has_aux=True)(ps)
    assert modes(st_next) == [Mode.TRAIN] * 2 and gradient.layout is ps.layout


@pytest.mark.parametrize("mode", Mode)
def test_a_state_with_modes_is_exported_and_read_back(key, mode):
    norm = lux.BatchNorm(2)
    ps, st = lux.setup(key, norm)
    st = jax.tree.map(lambda x: mode if isinstance(x, Mode) else x, st, is_leaf=lambda x: isinstance(x, Mode))
    run = jax.jit(lambda x, tree, st: norm(x, tree, st))
    exported = jax.export.export(run)(X, ps.tree(), st)
    restored = jax.export.deserialize(exported.serialize())
    y, st_next = restored.call(X, ps.tree(), st)
    expected, st_expected = run(X, ps.tree(), st)
    assert np.array_equal(y, expected) and modes(st_next) == [mode]
    assert np.array_equal(st_next["running_var"], st_expected["running_var"])


def test_update_state_replaces_entries_by_name(key):
    _, st = lux.setup(key, MODEL)
    new = lux.update_state(st, "running_mean", jnp.ones(3))
    assert new["layer_1"]["norm"]["running_mean"].tolist() == [1, 1, 1]
    assert new["layer_1"]["drop"] == st["layer_1"]["drop"] and st["layer_1"]["norm"]["running_mean"].tolist() == [
        0,
        0,
        0,
    ]
    assert modes(lux.update_state(st, "mode", Mode.TEST)) == [Mode.TEST] * 2
    with pytest.raises(KeyError, match="no entry of the state is called 'running_meen'"):
        lux.update_state(st, "running_meen", 0.0)
