"""One step of Adam on a 4-32-32-4 tanh MLP, batch 32: the flat vector, the tree, Equinox and PyTorch."""

import timing

timing.pin_allocator()

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402

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

    carry = [ps, tx.init(ps)]

    def call():
        *carry[:], loss = step(*carry, x, y)
        return loss

    return call


def equinox_step(x, y):
    model = eqx.nn.MLP(4, 4, 32, 2, jnp.tanh, key=jax.random.key(0))
    tx = optax.adam(1e-3)

    @eqx.filter_jit
    def step(model, opt_state, x, y):
        loss, grads = eqx.filter_value_and_grad(lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2))(model)
        updates, opt_state = tx.update(grads, opt_state)
        return eqx.apply_updates(model, updates), opt_state, loss

    carry = [model, tx.init(eqx.filter(model, eqx.is_array))]

    def call():
        *carry[:], loss = step(*carry, x, y)
        return loss

    return call


def torch_step(x, y):
    x, y = torch.tensor(jax.device_get(x)), torch.tensor(jax.device_get(y))
    layers = [torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def call():
        optimizer.zero_grad()
        torch.mean((model(x) - y) ** 2).backward()
        optimizer.step()

    return call


def main():
    timing.machine()
    x, y = jax.random.normal(jax.random.key(1), (2, BATCH, 4))
    calls = {
        "lux_sciml, flat vector": ours(x, y, True),
        "lux_sciml, nested dict": ours(x, y, False),
        "Equinox, filter_jit": equinox_step(x, y),
        f"PyTorch {torch.__version__}, eager": torch_step(x, y),
    }
    times = timing.interleaved(calls, turns=400, chained=True)
    base = times["lux_sciml, flat vector"]
    timing.table(("step", "median (us)", "times the flat vector's"), [(n, t * 1e6, t / base) for n, t in times.items()])


if __name__ == "__main__":
    main()
