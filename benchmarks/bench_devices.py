"""Parameters over devices: on paper for many, and what a compiled step holds and moves on eight virtual ones.

The tables of docs/devices.md. Times are not measured: eight virtual devices share the cores of one processor.
"""

import sys
from pathlib import Path

import timing

timing.pin_allocator()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec as P  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import lux_sciml as lux  # noqa: E402
from lux_sciml.distributed import estimate, mesh, shard  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "distributed"))
from hlo import collectives  # noqa: E402

ROWS = 48
MODELS = {
    "deep MLP, 16 blocks": (
        lux.SkipConnection(lux.Chain(lux.Dense(256, 256, jnp.tanh), lux.Dense(256, 256)), jnp.add),
        16,
        np.ones((64, 256), np.float32),
    ),
    "transformer, 6 blocks": (lux.TransformerEncoderBlock(128, 4, 512), 6, np.ones((64, 32, 128), np.float32)),
}


def size(number):
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:.3g} {unit}"
        number /= 1000


def on_paper():
    rows = []
    for n in (10**6, 10**7, 10**8, 10**9, 10**10):
        for devices in (1, 8, 64, 1024):
            cases = [estimate(n, devices, "replicated"), estimate(n, devices), estimate(n, devices, rows=ROWS)]
            cells = [f"{size(x.state + x.work)} / {size(x.moved)}" for x in cases]
            rows.append((f"1e{len(str(n)) - 1}", devices, *cells))
    timing.table(("parameters", "devices", "replicated", "full, one vector", f"full, {ROWS} rows"), rows, "on paper")


def objective(model, ps, st, batch):
    y, st = model(batch, ps, st)
    return jnp.mean((y - batch) ** 2), st


def by_leaf(model, over):
    """As other libraries do: each array of a tree divided along its largest axis."""
    ps, st = lux.setup(jax.random.key(0), model, flat=False)
    state = lux.TrainState.create(model, optax.adam(1e-3), params=ps, state=st)

    def put(x):
        largest = int(np.argmax(x.shape)) if x.ndim else None
        divides = largest is not None and x.shape[largest] % over.size == 0
        spec = P(*("devices" if i == largest else None for i in range(x.ndim))) if divides else P()
        return jax.device_put(x, NamedSharding(over, spec))

    return jax.tree.map(put, state)


def compiled():
    over = mesh()
    for name, (block, n, x) in MODELS.items():
        chain, stack = lux.Chain([block] * n), lux.Stack(block, n, checkpoint=True)
        x = jax.device_put(x, NamedSharding(over, P("devices")))
        states = {
            "replicated": shard(create(chain), over),
            "full, a chain in one vector": shard(create(chain), over, "full"),
            "tree by arrays, a chain": by_leaf(chain, over),
            "tree by arrays, a checkpointed stack": by_leaf(stack, over),
            "full, a checkpointed stack with flat rows": shard(create(stack.replace(flat_rows=True)), over, "full"),
        }
        rows = []
        for how, state in states.items():
            program = lux.train_step(objective, nonfinite="keep").lower(state, x).compile()
            memory, found = program.memory_analysis(), collectives(program.as_text())
            moved = sum(c.bytes * c.trips for c in found)
            numbers = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, moved)
            rows.append((how, len(found), *map(size, numbers)))
        timing.table(
            (name, "collectives", "arguments", "temporary", "results of collectives"), rows, name.partition(",")[0]
        )
        print(flush=True)


def create(model):
    return lux.TrainState.create(model, optax.adam(1e-3), key=jax.random.key(0))


if __name__ == "__main__":
    timing.machine()
    print(f"On paper, Adam in float32: bytes each device holds beside activations / sends in a step; rows: {ROWS}\n")
    on_paper()
    print()
    compiled()
