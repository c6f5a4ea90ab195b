"""Checkpoints of Orbax: parts of devices, onto other devices, with all that is static compared; runs resumed."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from runs import X, Y, bits

import lux_sciml as lux
from lux_sciml.training import OrbaxCheckpoints

pytest.importorskip("orbax.checkpoint")

PAGE = Path(__file__).parent.parent.parent / "docs" / "training.md"
MODEL = lux.Chain(lux.Dense(2, 5, jnp.tanh), lux.Dropout(0.5), lux.Dense(5, 1, use_bias=False))  # 20 numbers


@pytest.fixture(autouse=True)
def single():
    with jax.enable_x64(False):
        yield


def sharding():
    return NamedSharding(jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,)), P("d"))


def sharded(tree, n):
    """What has n numbers, over two devices."""
    return jax.tree.map(lambda x: jax.device_put(x, sharding()) if jnp.shape(x) == (n,) else x, tree)


def new_state():
    return lux.TrainState.create(MODEL, optax.adam(0.05), key=jax.random.key(3))


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st


def devices(x):
    """Over how many devices the numbers are divided."""
    sharding = x.data.sharding
    return 1 if sharding.is_fully_replicated else len(sharding.device_set)


def test_parts_onto_other_devices_with_all_compared(tmp_path):
    alone = new_state()
    parts = sharded(alone, 20)
    checkpoints = OrbaxCheckpoints(tmp_path / "a", keep_last=9)
    small = {
        "n": 3,
        "x": 0.1,
        "text": "a",
        "none": np.zeros((0, 3)),
        "z": np.array([1j, 2]),
        "keys": jax.random.split(jax.random.key(1), 2),
    }
    with checkpoints.writing():
        checkpoints.save(1, {"state": parts, **small})
        checkpoints.save(2, {"state": alone, **small})
        checkpoints.save(3, small)
    assert len(list((tmp_path / "a" / "step_000000000001.orbax").rglob("*"))) > 5
    for step in (1, 2):
        for like, count in ((parts, 2), (alone, 1)):
            found = checkpoints.load(step, like={"state": like, **small})
            assert bits(found["state"]) == bits(alone)
            assert jax.tree.structure(found["state"]) == jax.tree.structure(like)
            assert devices(found["state"].ps) == devices(found["state"].opt_state[0].mu) == count
            assert found["text"] == "a" and found["x"] == 0.1 and found["none"].shape == (0, 3)
    found = checkpoints.load(3)
    assert bits(found["keys"]) == bits(small["keys"]) and found["z"].tolist() == [1j, 2] and found["n"] == 3

    # what differs is told by its path: another layout of equal length, a kind of key, a shape, and what is odd
    ps = lux.ComponentVector(other=parts.ps.data)
    tests = {
        r"`tree.state.ps`: .*other": {"state": parts.replace(ps=sharded(ps, 20)), **small},
        r"`tree.state.key` should be .*rbg": {"state": parts.replace(key=jax.random.key(0, impl="rbg")), **small},
        r"`tree.keys` should be": {"state": parts, **small, "keys": jax.random.key(0)},
        r"`tree.more` is missing": {"state": parts, **small, "more": 1},
    }
    for message, like in tests.items():
        with pytest.raises(ValueError, match=message):
            checkpoints.load(1, like=like)
    tested = checkpoints.load(1, like={"state": parts.replace(st=lux.testmode(parts.st)), **small})["state"]
    assert jax.tree.structure(tested) == jax.tree.structure(parts)  # the mode is that of the checkpoint, as in lux.load
    checkpoints.save(4, {"v": jnp.arange(9.0)})
    with pytest.raises(ValueError, match=r"`tree.v` of shape \(9,\) is not like `like`.* 2 devices .*divide it.*pad_"):
        checkpoints.load(like={"v": jax.ShapeDtypeStruct((9,), jnp.float32, sharding=sharding())})
    with pytest.raises(ValueError, match=r"`tree.v` should be float32\[8\]"):
        checkpoints.load(4, like={"v": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding())})


def test_what_is_kept(tmp_path):
    checkpoints = OrbaxCheckpoints(tmp_path, keep_last=1, keep_best=2, asynchronous=True)
    with checkpoints.writing():
        for step, metric in enumerate([3.0, 1.0, 2.0, 5.0, None]):
            x, y = jax.device_put(jnp.arange(4.0), sharding()), np.arange(3)
            checkpoints.save(step, {"x": x, "y": y, "n": step}, metric)
            x.delete()
            y[:] = 0  # what is written is what was there
    assert checkpoints.steps() == [1, 2, 4]
    found = checkpoints.load()
    assert (found["x"].tolist(), found["y"].tolist(), found["n"]) == ([0, 1, 2, 3], [0, 1, 2], 4)

    # killed while step 4 was written anew, and 5
    checkpoints.path(4).rename(tmp_path / "step_000000000004.orbax.old")
    for step in (4, 5):
        (tmp_path / f"step_00000000000{step}.orbax.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.steps() == [1, 2]
    with checkpoints.writing():
        assert checkpoints.steps() == [1, 2, 4] and not list(tmp_path.glob("*tmp"))
        checkpoints.save(4, {"n": 44})  # in the place of the other
    assert sorted(p.name for p in tmp_path.glob("step*")) == [checkpoints.path(step).name for step in (1, 2, 4)]
    assert checkpoints.load() == {"n": 44}
    with pytest.raises(TypeError, match="`tree` is of type function"):
        checkpoints.save(5, lambda: 0)
    for path in checkpoints.path(4).rglob("*"):
        path.unlink() if path.is_file() and path.name != "_CHECKPOINT_METADATA" else None
    with pytest.warns(UserWarning, match="step_000000000004.orbax' cannot be loaded: .*the checkpoint before it"):
        assert checkpoints.load()["n"] == 2
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoints.load(7)


@pytest.mark.slow
def test_a_sharded_run_that_is_broken_off_goes_on_to_the_same_bits(tmp_path):
    def run(folder, stop=None, asynchronous=False):
        state = sharded(new_state(), 20)
        checkpoints = OrbaxCheckpoints(tmp_path / folder, every=4, keep_best=1, asynchronous=asynchronous)
        options = {"batch_size": 4, "epochs": 3, "validation": (X, Y), "callback_every": 1, "resume": True}

        def callback(report):
            if report.step == stop:
                raise KeyboardInterrupt

        return lux.fit(objective, state, (X, Y), checkpoints=checkpoints, callbacks=callback, **options)

    whole = run("whole")
    assert whole.steps == 15 and devices(whole.state.ps) == devices(whole.state.opt_state[0].mu) == 2
    assert [run("parts", stop, True).steps for stop in (6, 8)] == [6, 8]
    end = run("parts", asynchronous=True)
    for a, b in ((end.state, whole.state), (end.best, whole.best), (end.history, whole.history)):
        assert bits(a) == bits(b)

    options = {"batch_size": 4, "epochs": 3, "resume": True}
    page = {"jax": jax, "jnp": jnp, "lux": lux, "objective": objective, "state": new_state(), "x": X, "y": Y}
    page |= {"options": options, "folder": tmp_path / "page"}
    (code,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, PAGE.name, "exec"), page)
    learned = lux.distributed.gather(page["result"].state).ps
    assert np.allclose(learned, whole.state.ps, atol=1e-5) and options["checkpoints"].steps() == [15]


def test_without_orbax(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install lux-sciml\[orbax\]"):
        with OrbaxCheckpoints(tmp_path).writing():
            pass
