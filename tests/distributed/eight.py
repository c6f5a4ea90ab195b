"""What test_eight_devices looks at, on eight virtual devices in a process of its own: prints one JSON object.

XLA's optimizations are on, other than in the suite, where memory and collectives are looked at.
"""

import json
import re
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hlo import collectives
from jax.sharding import PartitionSpec as P

import lux_sciml as lux
from lux_sciml.distributed import estimate, gather, mesh, shard

PAGE = Path(__file__).parent.parent.parent / "docs" / "devices.md"
X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))
BLOCK = lux.SkipConnection(lux.Chain(lux.Dense(16, 16, jnp.tanh), lux.Dense(16, 16)), jnp.add)
MODELS = {
    "chain": lux.Chain(lux.Dense(2, 16, jnp.tanh), lux.BatchNorm(16), lux.Dropout(0.1), lux.Dense(16, 1)),
    "rows": lux.Chain(lux.Dense(2, 16), lux.Stack(BLOCK, 3, checkpoint=True, flat_rows=True), lux.Dense(16, 1)),
}


class Narrow(lux.Layer):
    """With a parameter in another type than the vector has."""

    def init_params(self, key):
        return {"scale": jnp.full(16, 1.1, jnp.bfloat16)}

    def forward(self, x, ps, st):
        assert ps["scale"].dtype == jnp.bfloat16
        return x * ps["scale"].astype(x.dtype), st


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st


def create(model, optimizer=None, **options):
    return lux.TrainState.create(model, optimizer or optax.adam(1e-2), key=jax.random.key(0), **options)


def losses_of(state, data=(X, Y), **options):
    """Of 50 steps, and the state after them."""
    step, losses = lux.train_step(objective, **options), []
    for _ in range(50):
        state, stats = step(state, data)
        losses.append(stats["loss"])
    return np.asarray(jax.device_get(losses)), state


def parts(tree):
    """The elements of the floating-point arrays that the first device has, and all of them."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(x.addressable_shards[0].data.size for x in leaves), sum(x.size for x in leaves)


def losses():
    out = {}
    for name, model in MODELS.items():
        alone, last = losses_of(create(model, ema=0.9))
        for how in ("replicated", "full"):
            state = shard(create(model, ema=0.9), mesh(), how)
            found, after = losses_of(state)
            back = gather(after)
            out[f"{name} {how}"] = {
                "off": float(np.max(np.abs(found - alone))),
                "parameters off": float(jnp.max(jnp.abs(back.ps.data - last.ps.data))),
                "ema off": float(jnp.max(jnp.abs(back.ema.data - last.ema.data))),
                "same names": back.ps.layout is last.ps.layout and back.opt_state[0].mu.layout is last.ps.layout,
                "parts": parts((after.ps, after.opt_state, after.ema)),
                "same place": [str(x.sharding.spec) for x in jax.tree.leaves(state)]
                == [str(x.sharding.spec) for x in jax.tree.leaves(after)],
            }
    plain = lux.Chain(lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 1))
    alone, _ = losses_of(create(plain))
    ps, st = lux.setup(jax.random.key(0), plain, flat=False)
    axes = {"layer_0.weight": P(None, "model"), "layer_0.bias": "model", "layer_1.weight": P("model")}
    state = shard(create(plain, params=ps, state=st), mesh(data=2, model=4), axes)
    found, after = losses_of(state)
    out["patterns"] = {
        "off": float(np.max(np.abs(found - alone))),
        "spec": str(after.opt_state[0].nu["layer_0"]["weight"].sharding.spec),
        "batch": state.placement.batch,
    }
    factored = optax.adafactor(1e-2, min_dim_size_to_factor=2)  # its memory has other shapes
    axes = {"layer_0.weight": P(None, "model")}
    alone, _ = losses_of(create(plain, factored, params=ps, state=st))
    found, _ = losses_of(shard(create(plain, factored, params=ps, state=st), mesh(data=2, model=4), axes))
    out["patterns, factored"] = float(np.max(np.abs(found - alone)))
    mixed = lux.Chain(lux.Dense(2, 16), Narrow(), lux.Stack(BLOCK, 2, flat_rows=True), lux.Dense(16, 1))
    tree, st = lux.setup(jax.random.key(0), mixed, flat=False)
    several = lux.ComponentVector.from_tree(tree, dtype=jnp.float32)
    alone, _ = losses_of(create(mixed, params=several, state=st))
    found, _ = losses_of(shard(create(mixed, params=several, state=st), mesh(), "full"))
    out["several types"] = float(np.max(np.abs(found - alone)))
    decayed = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(optax.cosine_decay_schedule(1e-2, 60)))
    part = {"trainable": "layer_0", "ema": 0.9}  # 48 elements of 65
    for name, options in {"trainable": {}, "trainable accumulate": {"accumulate": 4}}.items():
        alone, last = losses_of(create(plain, decayed, **part), **options)
        found, after = losses_of(shard(create(plain, decayed, **part), mesh(), "full"), **options)
        back = gather(after)
        out[name] = max(
            float(np.max(np.abs(found - alone))),
            *(float(jnp.max(jnp.abs(a.data - b.data))) for a, b in ((back.ps, last.ps), (back.ema, last.ema))),
        )
        mine, whole = parts((after.ps, after.opt_state, after.ema))
        out[f"{name}, not an eighth"] = float(abs(8 * mine - whole))
    for name in ("chain", "rows"):
        model = plain if name == "chain" else MODELS[name]
        alone, _ = losses_of(create(model), accumulate=4)
        for how in ("replicated", "full"):
            found, _ = losses_of(shard(create(model), mesh(), how), accumulate=4)
            out[f"accumulate {name} {how}"] = float(np.max(np.abs(found - alone)))
    return out


class Loader:
    def __iter__(self):
        yield from ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16))


def fits():
    """fit on arrays, with a filled batch, a validation and a loader: on eight devices as on one; and an ensemble."""
    model, out = MODELS["rows"], {}
    data = (X[:60], Y[:60])
    options = {"batch_size": 16, "epochs": 3, "last": "pad", "validation": (X[:9], Y[:9])}

    def masked(model, ps, st, batch):
        y, st = model(batch.data[0], ps, st)
        error = jnp.where(batch.mask[:, None], (y - batch.data[1]) ** 2, 0.0)
        return jnp.sum(error) / jnp.maximum(jnp.sum(batch.mask), 1), st

    alone = lux.fit(masked, create(model), data, **options)
    there = lux.fit(masked, shard(create(model), mesh(), "full"), data, **options)
    for name in ("loss", "validation_loss"):
        out[name] = float(np.max(np.abs(alone.history[name] - there.history[name])))
    batches = Loader()
    alone = lux.fit(objective, create(model), batches, epochs=2)
    there = lux.fit(objective, shard(create(model), mesh(), "full"), batches, epochs=2)
    out["loader"] = float(np.max(np.abs(alone.history["loss"] - there.history["loss"])))
    members = jax.vmap(lambda key: lux.TrainState.create(MODELS["chain"], optax.adam(1e-2), key=key))
    states = members(jax.random.split(jax.random.key(0), 16))
    options = {"batch_size": 16, "epochs": 3, "validation": (X, Y), "early_stopping": lux.training.EarlyStopping(2)}
    alone = lux.fit(objective, states, (X, Y), **options)
    there = lux.fit(objective, shard(states, mesh(), "members"), (X, Y), **options)
    out["members"] = float(np.max(np.abs(alone.history["loss"] - there.history["loss"])))
    out["members' parts"] = parts((there.state.ps, there.state.opt_state, there.best.ps))
    step = jax.jit(jax.vmap(lux.train_step(objective, donate=False), in_axes=(0, None)))
    program = step.lower(shard(states, mesh(), "members"), (X, Y)).compile().as_text()
    out["members' collectives"] = [c.kind for c in collectives(program)]
    return out


def analysed(model, x, n, how="full", trainable=None, **options):
    """A step of a model on n devices: its collectives, and the bytes that XLA counts on each."""
    data = (x, np.zeros_like(x))
    state = shard(create(model, trainable=trainable), mesh(devices=jax.devices()[:n]), how)
    compiled = lux.train_step(objective, **options).lower(state, data).compile()
    memory = compiled.memory_analysis()
    return {
        "size": lux.parameter_length(model),
        "arguments": memory.argument_size_in_bytes,
        "batch": 2 * x.nbytes,
        "temporary": memory.temp_size_in_bytes,
        "collectives": collectives(compiled.as_text()),
    }


WIDE = lux.SkipConnection(lux.Chain(lux.Dense(256, 256, jnp.tanh), lux.Dense(256, 256)), jnp.add)
DEEP = lux.Stack(WIDE, 16, checkpoint=True, flat_rows=True)
TRANSFORMER = lux.Stack(lux.TransformerEncoderBlock(128, 4, 512), 6, checkpoint=True, flat_rows=True)


def programs():
    x = np.ones((64, 256), np.float32)
    chain = lux.Chain([lux.Dense(64, 64, jnp.tanh)] * 8)
    small = np.ones((64, 64), np.float32)
    return {
        "deep": analysed(DEEP, x, 8, nonfinite="keep"),
        "transformer": analysed(TRANSFORMER, np.ones((64, 32, 128), np.float32), 8, nonfinite="keep"),
        "chain": analysed(chain, small, 8),
        "chain accumulate": analysed(chain, small, 8, accumulate=4),
        "chain trainable": analysed(chain, small, 8, trainable="layer_7"),
        "chain replicated": analysed(chain, small, 8, "replicated"),
        "chain replicated accumulate": analysed(chain, small, 8, "replicated", accumulate=4),
    }


def formula():
    """The estimate, and what XLA counts."""
    out, x = [], np.ones((64, 256), np.float32)
    chain = lux.Chain([lux.Dense(256, 256, jnp.tanh)] * 4)
    for n in (1, 2, 4, 8):
        for name, model, how, rows in (
            ("rows", DEEP, "full", 16),
            ("chain", chain, "full", 0),
            ("r", chain, "replicated", 0),
        ):
            found = analysed(model, x, n, how, nonfinite="keep")
            out.append([name, n, found, estimate(found["size"], n, how, rows=rows, reduce_scatter=False)])
    return out


def refused():
    """What is wrong, in a sentence."""
    model, all_of_them = lux.Dense(2, 1), mesh()
    states = jax.vmap(lambda key: lux.TrainState.create(model, optax.sgd(0.1), key=key))(
        jax.random.split(jax.random.key(0), 3)
    )
    ps, st = lux.setup(jax.random.key(0), model, flat=False)
    tree = create(model, params=ps, state=st)
    rows, three = lux.Stack(BLOCK, 2, flat_rows=1), mesh(devices=jax.devices()[:3])
    flat = shard(lux.ComponentVector(a=jnp.ones(5), b=jnp.ones((2, 3))), all_of_them, "full")
    shards = jax.shard_map(lambda v: v.a.sum()[None], mesh=all_of_them, in_specs=P("devices"), out_specs=P("devices"))
    clipped = optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.1))
    masks = jax.tree.map(lambda x: True, lux.setup(jax.random.key(0), model)[0])
    calls = {
        "batch": lambda: lux.train_step(objective)(shard(create(model), all_of_them), (X[:60], Y[:60])),
        "fit": lambda: lux.fit(objective, shard(create(model), all_of_them, "full"), (X, Y), batch_size=20, epochs=1),
        "accumulate": lambda: lux.train_step(objective, accumulate=3)(shard(create(model), all_of_them), (X, Y)),
        "axis": lambda: shard(tree, all_of_them, {"weight": P(None, "model")}),
        "pattern": lambda: shard(tree, all_of_them, {"wait": P("devices")}),
        "divides": lambda: shard(tree, all_of_them, {"weight": P("devices")}),
        "size": lambda: estimate(1.5, 8),
        "axes": lambda: shard(tree, all_of_them, {"weight": P(None, None, "devices")}),
        "flat": lambda: shard(create(model), all_of_them, {"weight": P("devices")}),
        "tree": lambda: shard(tree, all_of_them, "full"),
        "how": lambda: shard(create(model), all_of_them, "fully"),
        "mesh": lambda: mesh(data=3, model=2),
        "no mesh": lambda: shard(create(model), 8),
        "members": lambda: shard(states, all_of_them, "members"),
        "one member": lambda: shard(create(model), all_of_them, "members"),
        "ensemble": lambda: shard(states, all_of_them, "full"),
        "rows": lambda: shard(create(rows), three, "full"),
        "trainable": lambda: shard(create(MODELS["rows"], trainable="layer_0"), all_of_them, "full"),
        "mean": lambda: shard(create(model, clipped), all_of_them, "full"),
        "memory": lambda: shard(create(model, optax.adafactor(0.1)), all_of_them, "full"),
        "norms": lambda: shard(create(MODELS["rows"], optax.lamb(0.1)), all_of_them, "full"),
        "mask": lambda: shard(create(model, optax.masked(optax.adam(0.1), masks)), all_of_them, "full"),
        "axis twice": lambda: shard(tree, all_of_them, {"weight": P("devices", "devices")}),
        "device twice": lambda: mesh(devices=jax.devices()[:1] * 2),
        "shard": lambda: shards(flat),
        "called": lambda: model(X, shard(create(model), all_of_them, "full").ps, st),
        "called with rows": lambda: MODELS["rows"](X, shard(create(MODELS["rows"]), all_of_them, "full").ps, {}),
    }
    out = {}
    for name, call in calls.items():
        try:
            call()
            out[name] = "nothing was raised"
        except Exception as error:
            out[name] = f"{type(error).__name__}: {error}"
    return out


def page():
    """The code of docs/devices.md."""
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), namespace)
    return float(namespace["stats"]["loss"])


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    out, stdout = {}, sys.stdout
    sys.stdout = sys.stderr  # of the page
    for part in (page, losses, fits, refused, programs, formula):
        jax.config.update("jax_disable_most_optimizations", part not in (programs, formula))
        try:
            out[part.__name__] = part()
        except Exception:
            out[part.__name__] = traceback.format_exc()
    json.dump(out, stdout)


if __name__ == "__main__":
    main()
