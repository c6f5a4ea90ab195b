"""One training step: against one written by hand, its options, and what it says of wrong objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lux_sciml as lux

MODEL = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 1))
X = np.linspace(-1.0, 1.0, 16, dtype=np.float32).reshape(8, 2)
BATCH = (X, np.float32(1) + X.sum(1, keepdims=True))


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st, {"largest": jnp.max(jnp.abs(y))}


def start(optimizer=None, model=MODEL, **options):
    with jax.enable_x64(False):
        optimizer = optax.adam(0.1) if optimizer is None else optimizer
        return lux.TrainState.create(model, optimizer, key=jax.random.key(0), **options)


def by_hand(ps, optimizer, batches):
    """Parameters and losses of plain JAX and optax."""
    st, memory, losses = lux.setup(jax.random.key(0), MODEL)[1], optimizer.init(ps), []
    for batch in batches:
        (loss, _), slope = jax.value_and_grad(lambda ps, b: objective(MODEL, ps, st, b)[:2], has_aux=True)(ps, batch)
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(slope, memory, ps)
        ps = optax.apply_updates(ps, updates)
        losses.append(loss)
    return ps, losses


@pytest.mark.slow
def test_steps_are_those_written_by_hand():
    with jax.enable_x64(False):
        optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(optax.cosine_decay_schedule(0.1, 10)))
        ps = lux.setup(jax.random.key(0), MODEL)[0]
        batches = [(x + i, y * i) for i, (x, y) in enumerate([BATCH] * 4)]
        expected, losses = by_hand(ps, optimizer, batches)
        alone, state = [], lux.TrainState.create(MODEL, optimizer, params=ps)
        step = lux.train_step(objective)
        for batch in batches:
            before = state
            state, stats = step(state, batch)
            alone.append(stats["loss"])
        assert before.ps.data.is_deleted() and not ps.data.is_deleted()
        assert stats.keys() == {"loss", "finite", "largest"} and stats["finite"]
        np.testing.assert_allclose(state.ps, expected, rtol=1e-5)
        np.testing.assert_allclose(alone, losses, rtol=1e-5)
        assert state.step == 4 and state.skipped == 0
        many = lux.train_step(objective, steps=4)
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches)
        state, stats = many(start(optimizer), stacked)
        np.testing.assert_allclose(state.ps, expected, rtol=1e-5)
        np.testing.assert_allclose(stats["loss"], losses, rtol=1e-5)
        with pytest.raises(ValueError, match="with steps=4 the batch holds 4 along a first axis"):
            many(state, BATCH)


def test_accumulated_gradients_and_halves_of_a_step():
    with jax.enable_x64(False):
        expected, (loss,) = by_hand(lux.setup(jax.random.key(0), MODEL)[0], optax.adam(0.1), [BATCH])
        state, stats = lux.train_step(objective, accumulate=4)(start(), BATCH)
        np.testing.assert_allclose(state.ps, expected, rtol=1e-5)
        np.testing.assert_allclose(stats["loss"], loss, rtol=1e-5)
        with pytest.raises(ValueError, match="accumulate=3 cuts the first axis"):
            lux.train_step(objective, accumulate=3)(start(), BATCH)

        @jax.jit
        def halves(state, batch):
            gradients, stats, state = lux.compute_gradients(objective, state, batch)
            return lux.apply_gradients(state, gradients), stats

        state, stats = halves(start(), BATCH)
        np.testing.assert_allclose(state.ps, expected, rtol=1e-5)
        assert state.step == 1 and stats.keys() == {"loss", "largest"}
        with pytest.raises(ValueError, match="gradients are like the trained parameters"):
            lux.apply_gradients(state, jnp.ones(3))


def test_sums_and_averages_of_half_precision_are_in_single():
    with jax.enable_x64(False):
        ps = lux.ComponentVector(weight=[0.0]).astype("bfloat16")
        model, batch = lux.Scale(1, use_bias=False), jnp.ones((512, 1), "float32")

        def of_mean(model, ps, st, batch):
            return jnp.sum(ps["weight"].astype("float32") * jnp.mean(batch)), st

        state = lux.TrainState.create(model, optax.sgd(1.0), params=ps, state={})
        state, _ = lux.train_step(of_mean, accumulate=512)(state, batch)
        assert state.ps.weight == -1 and state.ps.dtype == jnp.bfloat16

        state = lux.TrainState.create(model, optax.sgd(0.0), params=ps, state={}, ema=0.99).replace(ps=ps + 1)
        state, _ = lux.train_step(of_mean, steps=512)(state, batch)
        np.testing.assert_allclose(state.ema, 1 - 0.99**512, rtol=1e-4)
        assert state.learned.dtype == jnp.bfloat16


def test_averages_parts_and_other_rates_without_a_retrace():
    traces = []

    def traced(*args):
        traces.append(1)
        return objective(*args)

    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    with jax.enable_x64(False):
        state = start(optimizer, ema=0.75, trainable="layer_1")
        first = state.ps.copy()
        step = lux.train_step(traced)
        state, _ = step(state, BATCH)
        moved = state.ps - first
        assert jnp.all(moved.layer_0.data == 0) and jnp.all(moved.layer_1.data != 0)
        np.testing.assert_allclose(state.ema, 0.75 * first + 0.25 * state.ps, rtol=1e-6)
        assert state.learned is state.ema
        for change, factor in (({"learning_rate": 0.25}, 0.5), ({"update_scale": 0.125}, 0.125)):
            other, _ = step(start(optimizer, ema=0.75, trainable="layer_1").adjust(**change), BATCH)
            np.testing.assert_allclose(other.ps - first, factor * moved, rtol=1e-4, atol=1e-7)
        assert len(traces) == 1
        for wrong in ({"momentum": 0.5}, {"update_scale": [1.0, 2.0]}):
            with pytest.raises(ValueError, match=r"optimizer's memory has no hyper|`update_scale` is"):
                state.adjust(**wrong)
        scheduled = optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.5, 0.1, 10))
        with pytest.raises(ValueError, match="`learning_rate` follows a schedule"):
            start(scheduled).adjust(learning_rate=0.1)


def test_mixed_precision():
    seen = []

    def small(model, ps, st, batch):
        y, st = model(batch[0], ps, st)
        seen.append((y.dtype, ps.dtype))
        return jnp.mean(y * jnp.asarray(batch[1], y.dtype)), st

    with jax.enable_x64(False):
        model = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3), lux.Dense(3, 1))
        ones = (X, np.full((8, 1), 3e-7, np.float32))  # gradients that float16 rounds to zero, and 2^15 times as much
        moved = {}
        for dtype in (None, jnp.bfloat16, jnp.float16):
            state = start(optax.sgd(1.0), model, dtype=dtype)
            first = state.ps.copy()
            step = lux.train_step(small)
            state, stats = step(state, ones)
            moved[dtype] = jax.device_get(state.ps - first).data
            assert state.ps.dtype == stats["loss"].dtype == state.st["layer_1"]["running_mean"].dtype == np.float32
        assert [d for d, _ in seen] == [d for _, d in seen] == [np.float32, jnp.bfloat16, np.float16]
        bias = state.ps.layout.slice("layer_2.bias")
        np.testing.assert_allclose(moved[jnp.bfloat16][bias], moved[None][bias], rtol=0.02)
        np.testing.assert_allclose(moved[jnp.float16][bias], moved[None][bias], rtol=0.1)
        assert state.loss_scale.scale == 2.0**15 and state.loss_scale.good == 1
        before = np.array(state.ps)
        state, stats = step(state, (X, np.full((8, 1), 100, np.float32)))  # overflows only as it is scaled
        assert not stats["finite"] and np.isfinite(stats["loss"]) and state.skipped == 0
        assert state.loss_scale.scale == 2.0**14 and np.array_equal(state.ps, before)


def test_what_is_not_finite():
    bad, good = (X * np.nan, BATCH[1]), BATCH
    stacked = jax.tree.map(lambda *xs: np.stack(xs), good, bad, good)
    with jax.enable_x64(False):
        twice, _ = lux.train_step(objective, steps=2)(start(), jax.tree.map(lambda x: x[::2], stacked))
        once, _ = lux.train_step(objective)(start(), good)
        for nonfinite, expected, scale in (("skip", twice, 1), ("stop", once, 1), ("back_off", None, 0.5)):
            state, stats = lux.train_step(objective, steps=3, nonfinite=nonfinite)(start(), stacked)
            assert (
                state.skipped == 1 and state.update_scale == scale and state.step == (2 if nonfinite == "stop" else 3)
            )
            assert stats["finite"].tolist() == [True, False, True] and np.isnan(stats["loss"][1])
            if expected is not None:
                np.testing.assert_allclose(state.ps, expected.ps, rtol=1e-5)
        state, _ = lux.train_step(objective, steps=3, nonfinite="keep")(start(), stacked)
        assert np.isnan(np.asarray(state.ps)).all()


def test_an_ensemble_is_a_vmapped_state():
    with jax.enable_x64(False):
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
        create = jax.vmap(lambda key: lux.TrainState.create(MODEL, optimizer, key=key))
        states = create(jax.random.split(jax.random.key(1), 3)).adjust(learning_rate=jnp.array([0.1, 0.2, 0.0]))
        first = states.ps.copy()
        states, stats = jax.vmap(lux.train_step(objective), in_axes=(0, None))(states, BATCH)
        assert states.ps.shape == (3, 13) and stats["loss"].shape == (3,)
        assert jnp.any(states.ps != first, axis=1).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("outcome", "error", "sentence"),
    [
        (lambda ps, st: ps.layer_0.weight, ValueError, r"must return one number, got shape \(2, 3\): take its mean"),
        (lambda ps, st: jnp.sum(ps.data).astype(int), TypeError, "one floating-point number, got int"),
        (lambda ps, st: (jnp.sum(ps.data), st, {}, 1), TypeError, r"\(loss, st\) or \(loss, st, stats\)"),
        (lambda ps, st: (jnp.sum(ps.data), {"a": 1.0}), ValueError, "must have the structure, shapes and dtypes"),
        (lambda ps, st: (jnp.sum(ps.data), st, 1.0), TypeError, "is a dict of stats, got"),
        (lambda ps, st: (jnp.sum(ps.data), st, {"loss": 1.0}), ValueError, "the stats `loss` are there already"),
        (lambda ps, st: jnp.sum(ps.layer_0.weight**2), UserWarning, "not depend on `layer_0.bias`, `layer_1.weight`, "),
        (
            lambda ps, st: jnp.sum(jax.jit(lambda p: p.layer_1)(ps).data),
            UserWarning,
            "`layer_0.weight`, `layer_0.bias`: the gradient",
        ),
    ],
)
def test_wrong_objectives(outcome, error, sentence):
    raises = pytest.warns if error is UserWarning else pytest.raises
    with jax.enable_x64(False), raises(error, match=sentence):
        jax.eval_shape(lux.train_step(lambda model, ps, st, batch: outcome(ps, st)), start(), BATCH)


@pytest.mark.exhaustive
def test_states_that_do_not_advance_and_other_arguments():
    model = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3))
    ps, st = lux.setup(jax.random.key(0), model)
    with pytest.warns(UserWarning, match="in test mode: dropout is off"):
        lux.TrainState.create(model, optax.sgd(1.0), params=ps, state=lux.testmode(st))
    state = lux.TrainState.create(model, optax.sgd(1.0), params=ps, state=st)
    with pytest.warns(UserWarning, match="returns no state, and the layers are in training"):
        jax.eval_shape(lux.train_step(lambda model, ps, st, x: jnp.sum(model(x, ps, st)[0])), state, jnp.ones((2, 2)))
    for call, sentence in (
        (lambda: lux.train_step(1.0), "the objective is a function of"),
        (lambda: lux.train_step(objective, nonfinite="ignore"), "nonfinite is one of 'skip'"),
        (lambda: lux.train_step(lambda ps: 0.0)(state, 1.0), r"the objective is called as objective\(model, ps, st, b"),
        (lambda: lux.train_step(objective)(ps, BATCH), "a step takes a TrainState"),
        (lambda: lux.TrainState.create(MODEL, "adam", key=jax.random.key(0)), "the optimizer is one of optax"),
        (lambda: lux.TrainState.create(MODEL, optax.sgd(1.0)), r"give `key=jax.random.key\(seed\)`"),
        (lambda: lux.TrainState.create(MODEL, optax.sgd(1.0), params=ps, ema=2.0), "ema is the decay of an average"),
        (lambda: lux.TrainState.create(MODEL, optax.sgd(1.0), params=ps, trainable="layer_9"), "no component matches"),
    ):
        with pytest.raises((TypeError, ValueError, KeyError), match=sentence):
            call()


def test_with_accumulate_line_searches_and_stats_see_all_of_the_batch():
    def counted(model, ps, st, batch):
        loss, st, _ = objective(model, ps, st, batch)
        return loss, st, {"positive": jnp.sum(batch[0] > 0), "any": jnp.any(batch[0] > 0.9)}

    with jax.enable_x64(False):
        ends = []
        for accumulate in (1, 4):
            state = start(optax.lbfgs())
            step = lux.train_step(counted, accumulate=accumulate)
            for _ in range(5):
                state, stats = step(state, BATCH)
            ends.append(state.ps)
            assert float(stats["positive"]) * accumulate == np.sum(X > 0)
            assert float(stats["any"]) == (1 if accumulate == 1 else np.mean((X.reshape(4, -1) > 0.9).any(1)))
        np.testing.assert_allclose(*ends, rtol=1e-3)


def test_gradients_in_half_precision_add_up_in_single():
    x = np.concatenate([np.full((1, 2), 256.0), np.full((255, 2), 0.5)]).astype(np.float32)

    def mean(model, ps, st, x):
        return jnp.sum(ps.scale * jnp.mean(x, 0).astype(ps.dtype)).astype(np.float32)

    with jax.enable_x64(False):
        ps = lux.ComponentVector(scale=np.zeros(2)).astype(jnp.bfloat16)
        state = lux.TrainState.create(lux.Scale((2,)), optax.sgd(1.0), params=ps)
        state, _ = lux.train_step(mean, accumulate=256)(state, x)
        np.testing.assert_allclose(-state.ps.data.astype(np.float32), np.mean(x, 0), rtol=0.01)


def test_what_is_adjusted_is_a_copy():
    with jax.enable_x64(False):
        rate = jnp.float32(0.5) * 1
        inject = optax.inject_hyperparams(optax.sgd)
        optimizer = optax.chain(inject(learning_rate=1.0), inject(learning_rate=1.0))
        state, _ = lux.train_step(objective)(start(optimizer).adjust(learning_rate=rate), BATCH)
        assert rate == 0.5
        np.testing.assert_allclose([s.hyperparams["learning_rate"] for s in state.opt_state], 0.5)
