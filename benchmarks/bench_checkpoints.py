"""Files of a run: 1e7 parameters with Adam, saved and loaded, against the disk's own copy; checkpoints beside a loop.

The copy reads the same file and writes it, with fsync, in pieces of 16 MiB. Asynchronous checkpoints are measured on a
loop of steps of some tens of milliseconds, one every 50 steps, against the loop without any.
"""

import os
import pickle
import shutil
import tempfile
import time
from pathlib import Path

import timing

timing.pin_allocator(one_arena=True)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import lux_sciml as lux  # noqa: E402

N, TURNS, STEPS, EVERY = 10_000_000, 9, 200, 50


def seconds(call):
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def copy(source, target):
    with open(source, "rb") as a, open(target, "wb") as b:
        shutil.copyfileobj(a, b, 1 << 24)
        b.flush()
        os.fsync(b.fileno())


def pickled(tree, path):
    with open(path, "wb") as file:
        pickle.dump(jax.device_get(tree), file, protocol=5)
        file.flush()
        os.fsync(file.fileno())


def unpickled(path):
    with open(path, "rb") as file:
        return jax.tree.map(jnp.asarray, pickle.load(file))


def files(folder):
    weights = np.random.default_rng(0).normal(size=N).astype(np.float32)
    params = lux.ComponentVector(weight=weights)
    state = lux.TrainState.create(lux.Scale((N,), use_bias=False), optax.adam(1e-3), params=params, state={})
    path, other = folder / "state.safetensors", folder / "other"
    arrays = {"ps": state.ps.data, "mu": state.opt_state[0].mu.data, "nu": state.opt_state[0].nu.data}
    calls = {
        "floor: copy of the file, fsync": lambda: copy(path, other),
        "`lux.save`": lambda: lux.save(path, state),
        "`lux.load(like=state)`": lambda: lux.load(path, like=state),
        "pickle, fsync": lambda: pickled(arrays, folder / "pickle"),
        "unpickle": lambda: unpickled(folder / "pickle"),
    }
    times = {name: [] for name in calls}
    calls["`lux.save`"]()
    calls["pickle, fsync"]()
    for _ in range(TURNS):
        for name, call in calls.items():
            times[name].append(seconds(call))
    found = timing.medians(times)
    base = next(iter(found.values()))
    rows = [(name, t * 1e3, f"{t.spread:.0%}", t / base) for name, t in found.items()]
    timing.table((f"{path.stat().st_size / 1e6:.0f} MB", "median (ms)", "spread", "times the copy"), rows, "files")
    print()


def loops(folder):
    """Seconds of a run, without checkpoints, and with them written at once and beside."""
    model = lux.Chain(lux.Dense(512, 1024, jnp.tanh), lux.Dense(1024, 512))
    x = np.random.default_rng(0).normal(size=(2048, 512)).astype(np.float32)
    state = lux.TrainState.create(model, optax.adam(1e-3), key=jax.random.key(0))

    def objective(model, ps, st, x):
        y, st = model(x, ps, st)
        return jnp.mean((y - x) ** 2), st

    def run(**options):
        shutil.rmtree(folder / "run", ignore_errors=True)
        if options:
            options = {"checkpoints": lux.training.Checkpoints(folder / "run", every=EVERY, **options)}
        lux.fit(objective, state, x, batch_size=512, steps=STEPS, **options)

    kinds = {"floor: without": {}, "lux, asynchronous": {"asynchronous": True}, "lux, at once": {"asynchronous": False}}
    times = {name: [] for name in kinds}
    run()
    for _ in range(5):
        for name, options in kinds.items():
            start = time.perf_counter()
            run(**options)
            times[name].append(time.perf_counter() - start)
    found = timing.medians(times)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.ps, state.opt_state))) / 1e6
    rows = [(name, float(t), f"{t.spread:.0%}", t / found["floor: without"]) for name, t in found.items()]
    timing.table(
        (f"{STEPS} steps, {size:.0f} MB every {EVERY}", "median (s)", "spread", "times without"), rows, "loops"
    )


def main():
    timing.machine()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        files(Path(folder))
        loops(Path(folder))


if __name__ == "__main__":
    main()
