"""One step of Adam on a 4-32-32-4 tanh MLP, batch 32: the flat vector, the tree, Equinox and PyTorch.

The floor is a step that does nothing: the arguments of the flat vector's, with one added to each.
"""

import timing

timing.pin_allocator()

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402
from low_overhead import COMPILER, flattened, torch_compiled  # noqa: E402

import lux_sciml as lux  # noqa: E402

BATCH, SIZES = 32, (4, 32, 32, 4)


def ours(x, y, flat):
    model = lux.Chain(lux.Dense(4, 32, jnp.tanh), lux.Dense(32, 32, jnp.tanh), lux.Dense(32, 4))
    ps, st = lux.setup(jax.random.key(0), model, flat=flat)
    tx = optax.adam(1e-3)

    @jax.jit
    def step(ps, opt_state, x, y):
        loss, grads = jax.value_and_grad(lambda ps: jnp.mean((model(x, ps, st)[0] - y) ** 2))(ps)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(ps, updates), opt_state, loss

    @jax.jit
    def nothing(ps, opt_state, x, y):
        return *jax.tree.map(lambda a: a + 1, (ps, opt_state)), x[0, 0] + y[0, 0]

    def chain(step):
        carry = [ps, tx.init(ps)]

        def call():
            *carry[:], loss = step(*carry, x, y)
            return loss

        return call

    return chain(step), chain(nothing)


def equinox_step(x, y, low_overhead):
    model = eqx.nn.MLP(4, 4, 32, 2, jnp.tanh, key=jax.random.key(0))
    tx = optax.adam(1e-3)

    def step(carry, batch):
        model, opt_state = carry
        x, y = batch
        loss, grads = eqx.filter_value_and_grad(lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2))(model)
        updates, opt_state = tx.update(grads, opt_state)
        return loss, (eqx.apply_updates(model, updates), opt_state)

    start = (model, tx.init(eqx.filter(model, eqx.is_array)))
    step, start = flattened(step, start) if low_overhead else (eqx.filter_jit(step), start)
    carry = [start]

    def call():
        loss, carry[0] = step(carry[0], (x, y))
        return loss

    return call


def torch_step(x, y, fused=False, compiled=False):
    torch.set_num_threads(1)  # faster than two here
    x, y = torch.tensor(jax.device_get(x)), torch.tensor(jax.device_get(y))
    layers = [torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=fused)
    loss = lambda x, y: torch.mean((model(x) - y) ** 2)  # noqa: E731
    loss = torch_compiled(loss) if compiled else loss

    def call():
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    return call


def main():
    timing.machine()
    x, y = jax.random.normal(jax.random.key(1), (2, BATCH, 4))
    flat, nothing = ours(x, y, True)
    calls = {
        "lux_sciml, flat vector": flat,
        "lux_sciml, nested dict": ours(x, y, False)[0],
        "floor: a step that does nothing": nothing,
        "Equinox, `filter_jit`": equinox_step(x, y, False),
        "Equinox, flattened": equinox_step(x, y, True),
        "PyTorch, eager": torch_step(x, y),
        "PyTorch, eager, fused Adam": torch_step(x, y, fused=True),
    }
    if COMPILER:
        calls["PyTorch, `torch.compile`, fused Adam"] = torch_step(x, y, fused=True, compiled=True)
    times = timing.interleaved(calls, turns=400, chained=True)
    base = times["lux_sciml, flat vector"]
    rows = [(n, t * 1e6, f"{t.spread:.0%}", t / base) for n, t in times.items()]
    timing.table(("step", "median (us)", "spread", "times the flat vector's"), rows, "step")


if __name__ == "__main__":
    main()
