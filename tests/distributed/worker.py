"""One process of a run, on two virtual devices: `python worker.py TASK INDEX COUNT PORT FOLDER`; prints JSON lines."""

import hashlib
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lux_sciml as lux
from lux_sciml import distributed

X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))
BLOCK = lux.SkipConnection(lux.Chain(lux.Dense(8, 8, jnp.tanh), lux.Dense(8, 8)), jnp.add)
MODEL = lux.Chain(lux.Dense(2, 8), lux.Stack(BLOCK, 3, checkpoint=True, flat_rows=True), lux.Dense(8, 1))


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st


def create(seed=0, **options):
    return lux.TrainState.create(MODEL, optax.adam(1e-2), key=jax.random.key(seed), **options)


class Loader:
    """A process's own samples of each batch of 16."""

    def __init__(self, index, count, batches=4):
        self.rows = [np.arange(16 * i, 16 * i + 16).reshape(count, -1)[index] for i in range(batches)]

    def __iter__(self):
        yield from ((X[rows], Y[rows]) for rows in self.rows)


def say(**values):
    print(json.dumps(values), flush=True)


def checksum(state):
    return hashlib.sha256(np.asarray(distributed.gather(state).ps.data).tobytes()).hexdigest()


def train(folder, how, steps, **options):
    """A run with checkpoints, that is started or goes on."""
    state = distributed.shard(create(), distributed.mesh(), how)
    if folder:
        checkpoints = lux.training.OrbaxCheckpoints(folder, every=20)
        options = {"checkpoints": checkpoints, "resume": True, **options}
    return lux.fit(objective, state, (X, Y), batch_size=16, steps=steps, **options)


def refusals(index):
    """What differs between processes, in a sentence."""
    mesh, out = distributed.mesh(), {}

    def changed(model, ps, st, batch):
        loss, st = objective(model, ps, st, batch)
        return loss * (1.0 + index), st

    state = distributed.shard(create(), mesh)
    other = create(1).replace(ps=create(1).ps.at["layer_2.bias"].add(float(index)))
    calls = {
        "values": lambda: distributed.shard(other, mesh),
        "entries": lambda: distributed.shard(create(ema=0.9 if index else None), mesh),
        "code": lambda: lux.train_step(changed)(state, (X, Y)),
        "shapes": lambda: lux.train_step(objective)(state, (X[: 16 + 16 * index], Y[: 16 + 16 * index])),
        "loader": lambda: lux.fit(objective, state, iter([(X[: 4 + 4 * index], Y[: 4 + 4 * index])])),
        "odd": lambda: lux.fit(objective, state, iter([(X[:3], Y[:3])])),
        "save": lambda: lux.save("nowhere", distributed.shard(create(), mesh, "full").ps),
        "files": lambda: lux.fit(objective, state, (X, Y), steps=1, checkpoints="nowhere"),
    }
    for name, call in calls.items():
        try:
            call()
            out[name] = "nothing was raised"
        except Exception as error:
            out[name] = f"{type(error).__name__}: {error}"
    sent = distributed.gather(distributed.shard(other, mesh, broadcast=True))
    out["broadcast"] = bool(sent.ps.equals(create(1).ps))
    return out


def members():
    """How far an ensemble of four is from what it is in this process alone."""
    create = jax.vmap(lambda key: lux.TrainState.create(lux.Dense(2, 1), optax.sgd(0.1), key=key))
    states = create(jax.random.split(jax.random.key(0), 4))
    there = distributed.shard(states, distributed.mesh(), "members")
    rule = lux.training.EarlyStopping(1)
    runs = [
        lux.fit(objective, s, (X, Y), batch_size=16, epochs=2, validation=(X, Y), early_stopping=rule)
        for s in (states, there)
    ]
    return float(np.max(np.abs(runs[0].history["loss"] - runs[1].history["loss"])))


def main():
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    task, index, count, port, folder = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    if task == "slurm":
        names = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": count, "PROCID": index, "LOCALID": index}
        os.environ.update({f"SLURM_{name}": str(value) for name, value in names.items()})
        os.environ["JAX_COORDINATOR_PORT"] = str(port)
        say(index=distributed.initialize(timeout=5))
    elif count > 1:
        say(index=distributed.initialize(f"localhost:{port}", count, index, timeout=5))
    if task in ("same", "slurm"):
        for how in ("replicated", "full"):
            result = train("", how, 50, validation=(X[:10], Y[:10]))
            state = distributed.shard(create(), distributed.mesh(), how)
            loader = lux.fit(objective, state, Loader(index, count), epochs=3, accumulate=2)
            say(
                how=how,
                losses=result.history["loss"][[0, 9, 49]].tolist(),
                validation=result.history["validation_loss"][-1].item(),
                loader=loader.history["loss"][[0, 11]].tolist(),
                parts=sum(x.data.size for x in jax.tree.leaves(result.state.ps)[-1].addressable_shards),
                devices=len(jax.devices()),
                end=checksum(result.state),
            )
        if count > 1:
            say(**refusals(index), members=members())
    if task == "run":

        def slowly(report):
            say(step=report.step)
            time.sleep(0.02)

        result = train(folder, "full", 80, callbacks=slowly, callback_every=1)
        say(steps=result.steps, loss=result.history["loss"][-1].item(), end=checksum(result.state))
    if task == "read":  # nothing is left to do: what was written on other devices, as it lies on these
        result = train(folder, "full", 80)
        matrix = result.state.opt_state[0].mu.rows["layer_1.rows"]
        shape = list(matrix.addressable_shards[0].data.shape)
        say(steps=result.steps, loss=result.history["loss"][-1].item(), end=checksum(result.state), part=shape)
    if task == "raise":
        train("", "full", 5)
        if index == 1:
            raise RuntimeError("of one process")
        train("", "full", 500)


if __name__ == "__main__":
    main()
