"""Checkpoints: what is kept, and runs that were broken off, resumed to the same bits."""

import os
import random
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import optax
import pytest
from runs import X, Y, bits

import lux_sciml as lux
from lux_sciml.training import Checkpoints, EarlyStopping, FitError

MODEL = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.BatchNorm(4), lux.Dropout(0.5), lux.Dense(4, 1))


@pytest.fixture(autouse=True)
def single():
    with jax.enable_x64(False):
        yield


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st


def test_what_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a", keep_last=2, keep_best=2, asynchronous=True)
    with pytest.raises(FileNotFoundError, match="there are no checkpoints in"):
        checkpoints.load()
    x = jnp.arange(3.0)
    with checkpoints.writing():
        for step, metric in enumerate([3.0, 1.0, 2.0, 5.0, 4.0, None]):
            checkpoints.save(step, {"x": x, "n": step}, metric)
            checkpoints.wait() if step == 0 else None
        x.delete()  # the copy is what is written
        other = Checkpoints(tmp_path / "a")
        with pytest.raises(RuntimeError, match="another run writes checkpoints to"), other.writing():
            pass
    assert checkpoints.steps() == [1, 2, 4, 5] and checkpoints.load(1)["n"] == 1
    assert checkpoints.load(like={"x": jnp.zeros(3), "n": 0})["x"].tolist() == [0, 1, 2]
    checkpoints.path(5).write_bytes(checkpoints.path(5).read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step_000000000005.* cannot be loaded: it is cut off.*the checkpoint before"):
        assert checkpoints.load()["n"] == 4
    with pytest.raises(ValueError, match="is not like `like`"):
        checkpoints.load(4, like={"x": jnp.zeros(2), "n": 0})
    checkpoints.path(1).write_bytes(b"")  # its metric is not known any more
    checkpoints.save(7, {"x": jnp.zeros(3), "n": 7}, 0.5)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 7]
    checkpoints.folder = tmp_path / "a" / ".lock"  # no folder: what the other thread raises comes out
    with pytest.raises(OSError):
        checkpoints.save(6, {})
        checkpoints.wait()


class Batches:
    def __iter__(self):
        return iter([(X[i : i + 4], Y[i : i + 4]) for i in range(0, 20, 4)])


class WithState:
    """An iterator as Grain's are."""

    def __init__(self):
        self.i = 0

    def __iter__(self):
        return WithState()

    def __next__(self):
        if self.i == 5:
            raise StopIteration
        self.i += 1
        return X[4 * self.i - 4 : 4 * self.i], Y[4 * self.i - 4 : 4 * self.i]

    def get_state(self):
        return {"i": self.i}

    def set_state(self, state):
        assert state["i"] <= 5
        self.i = state["i"]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("data", [(X, Y), Batches(), WithState()], ids=["arrays", "iterable", "with state"])
def test_a_run_that_is_broken_off_goes_on_to_the_same_bits(data, tmp_path):
    batch_size = 4 if isinstance(data, tuple) else None

    def run(folder, at=(), **options):
        state = lux.TrainState.create(MODEL, optax.adam(0.05), key=jax.random.key(3), ema=0.9)

        def callback(report):
            if report.step in at:
                raise KeyboardInterrupt

        rule, checkpoints = EarlyStopping(3, min_delta=0.01), Checkpoints(tmp_path / folder, every=3, keep_best=1)
        options |= {"batch_size": batch_size, "epochs": 6, "callbacks": callback, "callback_every": 1}
        options |= {"validation": (X, Y), "early_stopping": rule, "checkpoints": checkpoints}
        return lux.fit(objective, state, data, **options)

    whole = run("whole")
    assert whole.success and whole.steps > 15
    parts = [run("parts", at=(at,), resume=True) for at in (4, 5, 11)]
    assert [part.message for part in parts] == [f"interrupted after {at} steps" for at in (4, 5, 11)]
    with pytest.raises(ValueError, match="has checkpoints of a run, up to step 11: resume=True goes on"):
        run("parts")
    end = run("parts", resume=True)
    assert end.message == whole.message
    for a, b in ((end.state, whole.state), (end.best, whole.best), (end.history, whole.history)):
        assert bits(a) == bits(b)
    again = run("parts", resume=True)
    assert bits(again.state) == bits(end.state) and again.steps == end.steps
    if batch_size:
        with pytest.raises(ValueError, match=r"the run that is resumed had data of .*'batch_size': 4"):
            batch_size = 5
            run("parts", resume=True)


def test_rows_of_another_layout_of_equal_length_are_refused(tmp_path):
    def run(*widths):
        layers = [lux.Dense(a, b) for a, b in zip((2, *widths), (*widths, 2), strict=True)]
        model = lux.Stack(lux.Chain(layers), 2, flat_rows=True)
        state = lux.TrainState.create(model, optax.sgd(0.1), key=jax.random.key(0))
        options = {"batch_size": 8, "checkpoints": Checkpoints(tmp_path), "resume": True}
        return lux.fit(objective, state, (X, X), steps=2, **options)

    run(3, 5)
    assert run(3, 5).steps == 2
    with pytest.raises(ValueError, match=r"had stacks with rows of .*weight \(2, 3\).*, and these are .*\(2, 5\)"):
        run(5, 3)


class Validation:
    """One that raises when it is iterated the given time; `fit` looks at an iterator of it first."""

    def __init__(self, at=None):
        self.i, self.at = 0, at

    def __iter__(self):
        self.i += 1
        if self.i == self.at:
            raise OSError("no such file")
        return iter([(X, Y)])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("data", [(X, Y), Batches()], ids=["arrays", "iterable"])
def test_what_ends_a_run_leaves_no_trace_in_one_that_goes_on(data, tmp_path, monkeypatch):
    def run(folder, key=3, validation=None, patience=2, **options):
        state = lux.TrainState.create(MODEL, optax.adam(0.05), key=jax.random.key(key))
        batch_size = 4 if isinstance(data, tuple) else None
        rule = EarlyStopping(patience, min_delta=0.05)
        options = {"epochs": 30, "callback_every": 1, "early_stopping": rule, "resume": True} | options
        checkpoints = Checkpoints(tmp_path / folder, every=5)
        return lux.fit(
            objective,
            state,
            data,
            batch_size=batch_size,
            validation=validation or Validation(),
            checkpoints=checkpoints,
            **options,
        )

    stop = run("parts", callbacks=lambda report: report.step == 7)  # and validates there, as the whole does not
    assert stop.history["validation_step"].tolist() == [5, 7]
    with pytest.raises(FitError, match="the validation raised OSError: no such file, after 15 steps") as error:
        run("parts", key=4, validation=Validation(3))  # its key is the checkpoint's
    assert error.value.result.state.step == 15 and error.value.result.history["validation_step"].tolist() == [5, 10]
    assert Checkpoints(tmp_path / "parts").steps() == [10, 15]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: exec('raise OSError(28, "No space left on device")'))
        with pytest.raises(
            FitError, match=r"the checkpoints raised OSError: .* No space left.*, after 20 steps"
        ) as error:
            run("parts")
    assert error.value.result.history["validation_step"].tolist()[:3] == [5, 10, 15]
    short, whole = run("parts"), run("whole")
    assert bits(short.state) == bits(whole.state) and bits(short.history) == bits(whole.history)
    assert short.message.startswith("stopped early: `validation_loss` was not better in 2")
    longer, whole = run("parts", patience=4), run("patient", patience=4)
    assert longer.steps == whole.steps > short.steps and bits(longer.state) == bits(whole.state)


def test_what_a_run_raises_is_behind_a_checkpoint(tmp_path):
    def data():
        yield from list(Batches())[:3]
        raise OSError("no such file")

    state = lux.TrainState.create(MODEL, optax.adam(0.05), key=jax.random.key(3))
    with pytest.raises(FitError, match="the data raised OSError"):
        lux.fit(objective, state, data(), checkpoints=tmp_path)
    assert Checkpoints(tmp_path).steps() == [3]
    result = lux.fit(objective, state, (batch for batch in Batches()), checkpoints=tmp_path, resume=True)
    assert result.steps == 5
    other = lux.TrainState.create(MODEL, optax.sgd(0.05), key=jax.random.key(3))
    with pytest.raises(ValueError, match=r"`tree.state.opt_state.0` should be"):
        lux.fit(objective, other, iter(Batches()), checkpoints=tmp_path, resume=True)


RUN = """
    import sys, tempfile, jax, jax.numpy as jnp, numpy as np, optax
    import lux_sciml as lux
    from lux_sciml.training import Checkpoints
    jax.config.update("jax_disable_most_optimizations", True)  # which would take longer than the run
    model = lux.Chain(lux.Dense(2, 4), lux.Dropout(0.5), lux.Dense(4, 1))
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    def objective(model, ps, st, batch):
        y, st = model(batch, ps, st)
        return jnp.mean((y - 1) ** 2), st
    def callback(report):
        print("step", report.step, flush=True)
    def run(folder):
        state = lux.TrainState.create(model, optax.adam(0.05), key=jax.random.key(0))
        checkpoints = Checkpoints(folder, every=20, asynchronous=sys.argv[2] == "asynchronous")
        options = dict(batch_size=8, steps=1000, callbacks=callback, callback_every=10)
        result = lux.fit(objective, state, x, checkpoints=checkpoints, resume=True, **options)
        return np.asarray(result.state.ps).tobytes() + result.history["loss"].tobytes()
    resumed = run(sys.argv[1])
    print("end", resumed == run(tempfile.mkdtemp()), flush=True)
"""


def kill_and_resume(folder, kills, seed):
    """Whether a run that is killed at random moments, and resumed, ends with the bits of one that is not."""
    wait = random.Random(seed)
    for i in range(kills + 1):
        how = "asynchronous" if i % 2 else "at once"
        command = [sys.executable, "-c", textwrap.dedent(RUN), str(folder), how]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if i < kills and line.startswith("step"):
                    time.sleep(wait.uniform(0, 0.3))
                    process.kill()
                    break
                if line.startswith("end"):
                    return line == "end True\n"
    raise AssertionError("no run came to its end")


@pytest.mark.exhaustive
def test_kill_9_at_random_moments(tmp_path):
    """benchmarks/kill_runs.py kills fifty times."""
    assert kill_and_resume(tmp_path, 2, 1)
    names = sorted(os.listdir(tmp_path))
    assert names == [".lock", "step_000000000980.safetensors", "step_000000001000.safetensors"]


def test_a_metric_that_is_not_a_number_is_no_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1)
    for step, metric in enumerate([float("nan"), 1.0, 2.0, 3.0]):
        checkpoints.save(step, {"n": step}, metric)
    assert checkpoints.steps() == [1, 3]
