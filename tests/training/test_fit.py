"""fit: its steps, the kinds of data, validation, early stopping, ensembles, logs, and what is wrong."""

import csv
import os
import re
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import X, Y, numbers

import lux_sciml as lux
from lux_sciml.training import CSVLog, EarlyStopping, FitError, TensorBoardLog, batches as data_of
from lux_sciml.training.stopping import Watch

MODEL = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 1))


@pytest.fixture(autouse=True)
def single():
    with jax.enable_x64(False):
        yield


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st, {"largest": jnp.max(batch[0])}


def start(optimizer=None, seed=0):
    return lux.TrainState.create(MODEL, optimizer or optax.adam(0.05), key=jax.random.key(seed))


def fit(data=(X, Y), state=None, objective=objective, **options):
    return lux.fit(objective, start() if state is None else state, data, **options)


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(numbers(a), numbers(b), strict=True))


@pytest.mark.slow
def test_it_makes_the_steps_of_train_step_whatever_the_chunks():
    state = start()
    result = fit(state=state, batch_size=4, epochs=7)
    assert result.success and result.message == "all 35 steps made" and result.steps == result.state.step == 35
    assert not state.ps.data.is_deleted()
    source = data_of.Arrays((X, Y), 4, True, "drop", state.key)
    rows, _ = source.rows(0, 35)
    for epoch in rows.reshape(7, 20):
        assert len(set(epoch)) == 20
    assert len({tuple(epoch) for epoch in rows.reshape(7, 20)}) == 7
    assert np.array_equal(source.rows(13, 9)[0], rows[13:22])
    step, losses, by_hand = lux.train_step(objective), [], state
    for chosen in rows:
        by_hand, stats = step(by_hand, (X[chosen], Y[chosen]))
        losses.append(stats["loss"])
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(result.state.ps, by_hand.ps, rtol=1e-4, atol=1e-6)
    seen = []
    one_by_one = fit(batch_size=4, steps=35, callbacks=lambda report: seen.append(report.step), callback_every=1)
    assert seen == list(range(1, 36)) and same(one_by_one.state, result.state)
    on = fit(state=fit(batch_size=4, steps=15).state, batch_size=4, steps=20)
    assert same(on.state, result.state) and on.steps == 20


def test_what_an_objective_reads_is_read_anew_and_nothing_else_compiles_again():
    factor, traces = np.ones(1, np.float32), []

    def objective(model, ps, st, batch):
        traces.append(1)
        y, st = model(batch[0], ps, st)
        return factor[0] * jnp.mean((y - batch[1]) ** 2), st

    options = dict(batch_size=4, steps=3, objective=objective, state=start())
    first, n = fit(**options), len(traces)
    assert same(fit(**options).state, first.state) and len(traces) == n
    factor[0] = 2.0
    np.testing.assert_allclose(fit(**options).history["loss"][0], 2 * first.history["loss"][0], rtol=1e-6)


SCALE = 1.0


@jax.jit
def scaled(y):
    return SCALE * y


def test_what_the_model_the_optimizer_and_jitted_functions_read_is_read_anew(monkeypatch):
    model, optimizer = lux.Chain(lux.Scale(1, use_bias=False), scaled), optax.sgd(lambda step: 0.1 * SCALE)
    ps, st = lux.setup(jax.random.key(0), model)
    x, ones = jnp.ones((4, 1)), 0 * ps + 1

    def objective(model, ps, st, batch):
        y, st = model(batch, ps, st)
        return jnp.mean(scaled(y)), st

    for scale in (1.0, 2.0):  # the loss is SCALE**2 times the weight, and so is its gradient
        monkeypatch.setitem(globals(), "SCALE", scale)
        state = lux.TrainState.create(model, optimizer, params=ones, state=st)
        metrics = {"scale": lambda model, ps, st, batch: scaled(1.0)}
        result = lux.fit(objective, state, x, steps=1, validation=x, metrics=metrics)
        np.testing.assert_allclose(result.history["loss"], scale**2, rtol=1e-6)
        np.testing.assert_allclose(result.state.ps.layer_0.weight, 1 - 0.1 * scale**3, rtol=1e-6)
        assert result.history["validation_scale"][-1] == scale


def test_convolutions_stay_out_of_loops():
    """On the CPU they take 50 times as long inside of them."""
    conv = lux.Chain(lux.Conv(1, 2, (3,)), lux.Flatten(), lux.Dense(4, 1))
    x = np.ones((8, 4, 1), np.float32)

    def objective(model, ps, st, x):
        y, st = model(x, ps, st)
        return jnp.mean((y - 1) ** 2), st

    for model, data, loops in ((MODEL, x[..., :2, 0], True), (conv, x, False)):
        state = lux.TrainState.create(model, optax.sgd(0.1), key=jax.random.key(0))
        traced = lux.train_step(objective, accumulate=2).trace(state, data)
        assert ("stablehlo.while" in traced.lower().as_text()) == loops
        assert "stablehlo.while" in traced.lower(lowering_platforms=("cuda",)).as_text()
        losses = fit(data, state, objective, batch_size=4, steps=3).history["loss"]
        step, by_hand = lux.train_step(objective), []
        for _ in range(3):
            state, stats = step(state, data[:4])
            by_hand.append(stats["loss"])
        np.testing.assert_allclose(losses, by_hand, rtol=1e-5)


class Batches:
    """As a loader has it: each time from the start, with a smaller one at the end."""

    def __iter__(self):
        return iter([[X[i : i + 4], Y[i : i + 4]] for i in range(0, 22, 4)])


def test_kinds_of_data_give_the_same_run(monkeypatch):
    seen = []

    def objective(model, ps, st, batch):
        seen.append(batch[0].shape)
        y, st = model(batch[0], ps, st)
        return jnp.mean((y - batch[1]) ** 2), st

    arrays = fit(batch_size=4, epochs=2, shuffle=False, objective=objective)
    monkeypatch.setattr(data_of, "RESIDENT", 0)
    on_host = fit(batch_size=4, epochs=2, shuffle=False, objective=objective)
    monkeypatch.undo()
    iterable = fit(Batches(), epochs=2, objective=objective)
    once = fit((batch for _ in range(2) for batch in Batches()), objective=objective)
    assert once.success and once.message == "the data ended after 10 steps"
    short = fit(iter(Batches()), epochs=2, objective=objective)
    assert not short.success and short.message == "the data ended after 5 steps"
    for other in (on_host, iterable, once):
        np.testing.assert_allclose(other.history["loss"], arrays.history["loss"], rtol=1e-5)
        assert other.steps == 10
    assert same(on_host.state, iterable.state) and set(seen) == {(4, 2)}
    with pytest.raises(FitError, match="the data raised ValueError: the first batch has 4 samples, and a later one 5"):
        fit(iter([(X[:4], Y[:4]), (X[:5], Y[:5])]))


def test_the_last_batch_filled_and_masked():
    def objective(model, ps, st, batch):
        y, st = model(batch.data[0], ps, st)
        errors = jnp.where(batch.mask, jnp.sum((y - batch.data[1]) ** 2, 1), 0.0)
        return jnp.sum(errors) / 4, st, {"n": jnp.sum(batch.mask)}

    result = fit(batch_size=4, epochs=2, last="pad", objective=objective, validation=(X[:6], Y[:6]))
    assert result.history["n"].tolist() == [4, 4, 4, 4, 4, 2] * 2
    assert result.history["validation_n"].tolist() == [(4 * 4 + 2 * 2) / 6] * 2
    whole = fit(epochs=3, last="pad", objective=objective)
    assert whole.history["n"].tolist() == [22] * 3
    streamed = fit(Batches(), epochs=2, last="pad", objective=objective)
    assert streamed.history["n"].tolist() == result.history["n"].tolist()


@pytest.mark.slow
def test_validation_is_of_all_samples_in_test_mode_and_the_best_is_kept():
    model = lux.Chain(lux.Dense(2, 4), lux.BatchNorm(4), lux.Dropout(0.5), lux.Dense(4, 1))
    state = lux.TrainState.create(model, optax.adam(0.05), key=jax.random.key(0), ema=0.5)

    def error(model, ps, st, batch):
        return jnp.mean(jnp.abs(model(batch[0], ps, st)[0] - batch[1]))

    options = dict(validation=(X, Y), metrics={"error": error})
    result = fit(state=state, batch_size=4, steps=8, validate_every=3, **options)
    assert result.history["validation_step"].tolist() == [3, 6, 8]
    expected = error(model, result.state.ema, lux.testmode(result.state.st), (X, Y))
    np.testing.assert_allclose(result.history["validation_error"][-1], expected, rtol=1e-5)
    assert result.history.keys() >= {"validation_loss", "validation_largest", "largest", "finite"}
    i = int(np.argmin(result.history["validation_loss"]))
    assert result.best.step == [3, 6, 8][i] and result.best.value == result.history["validation_loss"][i]
    rule = EarlyStopping(patience=2, min_delta=1e9)
    stopped = fit(state=state, batch_size=4, epochs=20, early_stopping=rule, validation=Batches())
    assert stopped.success and stopped.steps == 15
    assert stopped.message == "stopped early: `validation_loss` was not better in 2 validations"
    higher = fit(
        state=state,
        batch_size=4,
        epochs=2,
        early_stopping=EarlyStopping(monitor="validation_error", higher=True),
        **options,
    )
    assert higher.best.value == np.max(higher.history["validation_error"])


def test_members_of_an_ensemble_stop_one_by_one():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    create = jax.vmap(lambda key: lux.TrainState.create(MODEL, optimizer, key=key))
    states = create(jnp.stack([jax.random.key(0), jax.random.key(5)])).adjust(learning_rate=jnp.array([0.1, 0.0]))
    rule = EarlyStopping(patience=2)
    result = fit(state=states, batch_size=4, epochs=6, validation=(X, Y), early_stopping=rule)
    assert result.history["loss"].shape == (30, 2) and result.history["validation_loss"].shape == (6, 2)
    best = 5 + 5 * np.argmin(result.history["validation_loss"][:, 0])
    assert result.state.step.tolist() == [30, 15] and result.best.step.tolist() == [best, 5]
    alone = fit(state=start(optimizer).adjust(learning_rate=0.1), batch_size=4, epochs=6)
    np.testing.assert_allclose(result.history["loss"][:, 0], alone.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(result.state.ps.data[0], alone.state.ps, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(result.best.ps.data[1], states.ps.data[1])


def test_members_that_are_not_finite_are_told():
    states = jax.vmap(lambda key: lux.TrainState.create(MODEL, optax.sgd(0.1), key=key))(
        jax.random.split(jax.random.key(0), 2)
    )
    one = fit(
        state=states.replace(ps=jax.tree.map(lambda x: x.at[0].set(jnp.nan), states.ps)), steps=2, nonfinite="stop"
    )
    assert one.success and one.message.endswith("; 1 of the members stopped, as their loss or gradient was not finite")
    states = states.replace(ps=states.ps * jnp.nan)
    result = fit(state=states, batch_size=4, epochs=9, nonfinite="stop")
    assert not result.success and result.state.step.tolist() == [1, 1]
    assert "`ps['layer_0']['weight']` holds 16 of 16 elements that are NaN" in result.message


@pytest.mark.slow
@pytest.mark.parametrize("nonfinite", ["skip", "back_off", "stop"])
def test_steps_that_are_not_finite(nonfinite):
    x = X.copy()
    x[5] = np.nan
    result = fit((x, Y), batch_size=2, steps=24, shuffle=False, nonfinite=nonfinite)
    lost = [2, 13] if nonfinite != "stop" else [2]
    assert np.flatnonzero(~result.history["finite"]).tolist() == lost and np.isfinite(np.asarray(result.state.ps)).all()
    if nonfinite == "stop":
        assert not result.success and result.steps == result.state.step == 3
        assert result.message == (
            "stopped at step 3, whose loss or gradient is not finite "
            "(`data[0]` holds 2 of 44 elements that are NaN or inf)"
        )
    else:
        assert result.success and result.message == (
            "all 24 steps made; 2 steps were left out, as the loss or its gradient was not finite"
        )
        assert result.state.update_scale == (1 if nonfinite == "skip" else 0.25)
    if nonfinite == "stop":  # an overflow in float16 is mended, and is no reason to stop
        state = lux.TrainState.create(MODEL, optax.adam(0.05), key=jax.random.key(0), dtype=jnp.float16)
        state = state.replace(loss_scale=state.loss_scale._replace(scale=jnp.float32(2.0**20)))
        result = fit(state=state, batch_size=2, steps=40, nonfinite="stop")
        overflows = int((~result.history["finite"]).sum())
        assert result.success and 0 < overflows < 20 and result.state.opt_state[0].count == 40 - overflows
    if nonfinite == "skip":
        result = fit((X * np.nan, Y), batch_size=2, steps=9999)
        assert not result.success and 100 <= result.steps < 9999
        assert "of 100 in a row the loss or the gradient is not finite (`data[0]` holds" in result.message
        result = fit((X, Y * np.inf), batch_size=4, epochs=2)
        assert not result.success and "steps made; 10 steps were left out, as the loss" in result.message
        assert "`data[1]` holds 22 of 22 elements" in result.message


def test_what_data_and_callbacks_raise_leaves_the_state():
    def data():
        yield from list(Batches())[:3]
        raise OSError("no such file")

    with pytest.raises(FitError, match="the data raised OSError: no such file, after 3 steps") as error:
        fit(data())
    assert error.value.result.steps == 3 and len(error.value.result.history["loss"]) == 3
    assert isinstance(error.value.__cause__, OSError) and error.value.result.state.step == 3

    def unlike():
        yield from list(Batches())[:2]
        yield (X[:4],)

    with pytest.raises(FitError, match=r"the objective raised .*, after 2 steps") as error:
        fit(unlike())
    assert error.value.result.state.step == 2 and len(error.value.result.history["loss"]) == 2

    def callback(report):
        report.state.ps.data.block_until_ready()
        return 1 / 0 if report.step == 4 else False

    with pytest.raises(FitError, match="the callback raised ZeroDivisionError") as error:
        fit(batch_size=4, steps=10, callbacks=[callback], callback_every=2)
    assert error.value.result.steps == 4
    stopped = fit(batch_size=4, steps=10, callbacks=lambda report: report.epoch == 1, callback_every=1)
    assert stopped.success and stopped.message == "stopped by a callback after 5 steps"
    assert fit(batch_size=4, steps=1, callbacks=None).steps == 1


def test_ctrl_c_ends_between_steps_and_at_once_in_code_of_others(capsys):
    seen = []

    def callback(report):
        seen.append(report.step)
        if len(seen) == 2:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    result = fit(batch_size=4, steps=10**6, callbacks=callback)
    assert not result.success and result.message == f"interrupted after {result.steps} steps"
    assert len(result.history["loss"]) == result.steps == result.state.step

    def waiting():
        yield from Batches()
        os.kill(os.getpid(), signal.SIGINT)
        yield (X[:4], Y[:4])

    result = fit(waiting(), progress=True)
    assert (
        result.message == "interrupted after 5 steps" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    assert re.search(r"fit: step 5, \d+ s, loss=", capsys.readouterr().err)

    class Validation:
        def __iter__(self):
            return waiting()

    result = fit(batch_size=4, epochs=3, validation=Validation())
    assert result.message == "interrupted after 5 steps" and "validation_loss" not in result.history


def test_logs(tmp_path):
    result = fit(batch_size=4, epochs=2, validation=(X, Y), log=tmp_path / "run.csv")
    with open(tmp_path / "run.csv") as file:
        rows = list(csv.DictReader(file))
    validated = [row for row in rows if row["validation_loss"]]
    assert [int(row["step"]) for row in validated] == [5, 10] and rows[-1]["epoch"] == "2"
    np.testing.assert_allclose([float(row["validation_loss"]) for row in validated], result.history["validation_loss"])
    with open(tmp_path / "run.csv", "a") as file:
        file.write("11,2,0.")
    log = CSVLog(tmp_path / "run.csv")
    log.start(5)
    log.write(6, 1, {"loss": 1.0, "other": 2.0})
    with open(tmp_path / "run.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)][-2:] == ["5", "6"]
    log = TensorBoardLog(tmp_path / "board")
    log.start(0)
    log.write(300, 1, {"loss": 0.5})
    log.write(301, 1, {"loss": 1e300})  # infinite in its single precision
    log.close()
    (path,) = (tmp_path / "board").iterdir()
    content = path.read_bytes()
    # The masked CRC-32C of a length, as TFRecords have it: 24 bytes, computed by TensorFlow.
    assert content[:8] == (24).to_bytes(8, "little") and content[8:12].hex() == "a37f4b22"
    event_file_loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    events = list(event_file_loader.EventFileLoader(str(path)).Load())
    assert events[1].step == 300 and {value.tag for value in events[1].summary.value} == {"loss", "epoch"}


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (dict(), ValueError, "how long"),
        (dict(steps=1, epochs=1), ValueError, "give `epochs` or `steps`, not both"),
        (dict(steps=0), ValueError, "steps: expected a whole number of at least 1"),
        (dict(epochs=1, batch_size=30), ValueError, "there are 22 samples for batches of 30"),
        (dict(epochs=1, data=(X, Y[:3])), ValueError, "samples along their first axis, and equally many"),
        (dict(epochs=1, data="file"), TypeError, "data are arrays with samples"),
        (dict(epochs=1, data=Batches(), batch_size=3), ValueError, "leave `batch_size` out"),
        (dict(epochs=1, last="keep"), ValueError, "last is 'drop' or 'pad'"),
        (dict(epochs=1, metrics={}), ValueError, "give `validation=`"),
        (dict(epochs=1, metrics={"loss": abs}, validation=(X, Y)), ValueError, "has a `validation_loss` already"),
        (dict(epochs=1, validation=(X, Y), early_stopping=EarlyStopping(2, "accuracy")), ValueError, "got 'accuracy'"),
        (dict(epochs=1, early_stopping=EarlyStopping()), ValueError, "watches the validation"),
        (dict(epochs=1, validation=iter(Batches())), TypeError, "yields the same batches each time"),
        (dict(epochs=1, resume=True), ValueError, "give `checkpoints=`"),
        (dict(epochs=1, callbacks=[1]), TypeError, "callbacks are functions of a Report"),
        (dict(epochs=1, log=1), TypeError, "a log is a path"),
        (dict(epochs=1, checkpoints=1), TypeError, "or the path of a folder, got 1"),
        (dict(epochs=1, data=(X[:0], Y[:0])), ValueError, "the data have no samples"),
        (dict(epochs=1, validation=(X[:0], Y[:0])), ValueError, "the validation has no samples"),
        (dict(epochs=1, validation=(X, Y), metrics={"a": 1}), TypeError, "metrics are a dict of functions"),
        (dict(epochs=1, validation=(X, Y), metrics=[abs]), TypeError, "metrics are a dict of functions"),
        (dict(epochs=1, validation=(X, Y), metrics={"a": lambda *_: None}), FitError, "None"),
        (
            dict(epochs=1, validation=(X, Y), metrics={"a": lambda y, target: y}),
            FitError,
            r"the metric a is called as a\(model, ps, st, batch\), got a function of \(y, target\)",
        ),
        (dict(epochs=1, data=iter([])), FitError, "the data yield no batches"),
        (dict(epochs=1, state=1), TypeError, "fit takes a TrainState"),
    ],
)
def test_wrong_arguments(options, error, sentence):
    with pytest.raises(error, match=sentence):
        fit(**options)


def test_what_is_not_a_number_is_never_the_best():
    for values, higher, best, step in (
        ([np.nan, 3.0, np.nan, 2.0], False, 2.0, 3),
        ([np.nan, 3.0, np.nan, 2.0], True, 3.0, 1),
        ([[np.nan, 1.0], [2.0, np.nan]], False, [2.0, 1.0], [1, 0]),
    ):
        watch = Watch(EarlyStopping(2, higher=higher), np.shape(values)[1:])
        state = start() if np.ndim(values) == 1 else jax.tree.map(lambda x: jnp.stack([x, x]), start())
        for i, value in enumerate(values):
            watch.see(state, {"validation_loss": np.asarray(value)}, i)
        assert np.array_equal(watch.best.value, best) and np.array_equal(watch.best.step, step)
        assert watch.cost({"validation_loss": np.array([np.nan, 5.0])}) == (-5.0 if higher else 5.0)


def test_what_the_model_reads_is_read_anew():
    scale = np.ones(1, np.float32)
    model = lux.Chain(lambda x: x * scale[0], lux.Dense(2, 1))
    state = lux.TrainState.create(model, optax.sgd(0.1), key=jax.random.key(0))

    def first_loss():
        return fit(state=state, objective=objective, steps=1).history["loss"][0]

    first_loss()
    scale[0] = 3.0
    np.testing.assert_allclose(first_loss(), objective(model, state.ps, state.st, (X, Y))[0], rtol=1e-6)


def test_names_that_are_taken_or_not_there_are_told_and_cost_no_state():
    named = lambda *given: (*objective(*given)[:2], {"step": 1.0})  # noqa: E731
    rule = EarlyStopping(monitor="validation_acuracy")
    for options, sentence in (
        (dict(early_stopping=rule), "the validation raised ValueError: early stopping watches `validation_acuracy`; t"),
        (dict(objective=named), "the history has a `validation_step` already: give the stats `step` another name"),
    ):
        with pytest.raises(FitError, match=sentence) as error:
            fit(batch_size=4, epochs=3, validation=(X, Y), **options)
        assert error.value.result.state.step == 5
