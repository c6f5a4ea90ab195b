"""10,000 steps of Adam on a 4-32-16-4 tanh MLP, batch 32: `fit`, a hand-written scan, Equinox, PyTorch and NumPy.

All begin with the same weights, see the same batches in the same order, and their losses are compared. A call is the
whole of a run: `fit` copies the state, shuffles, and keeps a history. Then what `fit` costs on a large step.
"""

import functools
import importlib.util
import time

import timing

timing.pin_allocator()

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from low_overhead import COMPILER, flattened, torch_compiled  # noqa: E402

import lux_sciml as lux  # noqa: E402
from lux_sciml.training.batches import Arrays  # noqa: E402
from lux_sciml.training.state import copied  # noqa: E402

STEPS, BATCH, SAMPLES, RATE = 10_000, 32, 32_000, 1e-3
TURNS = 2 if timing.QUICK else 5
MODEL = lux.Chain(lux.Dense(4, 32, jnp.tanh), lux.Dense(32, 16, jnp.tanh), lux.Dense(16, 4))
TX = optax.adam(RATE)


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st


def with_fit(start, data, rows):
    def run():
        return lux.fit(objective, start, data, batch_size=BATCH, steps=STEPS).history["loss"]

    return run


def with_scan(start, data, rows):
    """As one writes it by hand: the batches gathered beforehand, one program."""

    @jax.jit
    def many(ps, memory, batches):
        def step(carry, batch):
            ps, memory = carry
            loss, slope = jax.value_and_grad(lambda ps: objective(MODEL, ps, start.st, batch)[0])(ps)
            updates, memory = TX.update(slope, memory, ps)
            return (optax.apply_updates(ps, updates), memory), loss

        return jax.lax.scan(step, (ps, memory), batches)[1]

    batches = tuple(jnp.asarray(x[rows]) for x in data)
    return lambda: np.asarray(many(start.ps, TX.init(start.ps), batches))


def with_train_step(start, data, rows):
    step = lux.train_step(objective)

    def run():
        state, losses = copied(start), []
        for chosen in rows:
            state, stats = step(state, (data[0][chosen], data[1][chosen]))
            losses.append(stats["loss"])
        return np.asarray(jax.device_get(losses))

    return run


def with_equinox(low_overhead, start, data, rows):
    model = eqx.nn.Sequential(
        [layer for n, m in ((4, 32), (32, 16), (16, 4)) for layer in (linear(n, m), eqx.nn.Lambda(jnp.tanh))][:-1]
    )
    weights = [x for i in range(3) for x in (start.ps[f"layer_{i}.weight"].T, start.ps[f"layer_{i}.bias"])]
    model = eqx.tree_at(lambda m: [x for i in (0, 2, 4) for x in (m[i].weight, m[i].bias)], model, weights)

    def step(carry, batch):
        model, memory = carry
        x, y = batch
        loss, slope = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(model)
        updates, memory = TX.update(slope, memory)
        return loss, (eqx.apply_updates(model, updates), memory)

    begin = (model, TX.init(eqx.filter(model, eqx.is_array)))
    step, begin = flattened(step, begin) if low_overhead else (eqx.filter_jit(step), begin)

    def run():
        carry, losses = begin, []
        for chosen in rows:
            loss, carry = step(carry, (data[0][chosen], data[1][chosen]))
            losses.append(loss)
        return np.asarray(jax.device_get(losses))

    return run


def linear(n, m):
    return eqx.nn.Linear(n, m, key=jax.random.key(0))


def with_torch(fused, compiled, start, data, rows):
    import torch

    torch.set_num_threads(1)  # faster than two here
    x, y = (torch.tensor(a) for a in data)
    index = torch.tensor(rows.astype(np.int64))

    def mean_square(model, x, y):
        return torch.mean((model(x) - y) ** 2)

    objective = torch_compiled(mean_square) if compiled else mean_square

    def run():
        layers = [torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 16), torch.nn.Tanh()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 4))
        for i, layer in enumerate(model[::2]):
            layer.weight.data = torch.tensor(np.asarray(start.ps[f"layer_{i}.weight"]).T.copy())
            layer.bias.data = torch.tensor(np.asarray(start.ps[f"layer_{i}.bias"]))
        optimizer, losses = torch.optim.Adam(model.parameters(), RATE, fused=fused), []
        for chosen in index:
            loss = objective(model, x[chosen], y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).numpy()

    return run


def with_numpy(start, data, rows):
    """Forward, backward and Adam on one flat vector, written out."""
    layout = start.ps.layout
    x, y = data

    def run():
        flat = np.array(start.ps.data)
        views = [flat[layout.slice(f"layer_{i}.{n}")] for i in range(3) for n in ("weight", "bias")]
        w1, b1, w2, b2, w3, b3 = (v.reshape(layout.find(f"layer_{i // 2}.{('weight', 'bias')[i % 2]}")[1].shape)
                                  for i, v in enumerate(views))  # fmt: skip
        slope, first, second = np.empty_like(flat), np.zeros_like(flat), np.zeros_like(flat)
        places = [layout.slice(f"layer_{i}.{n}") for i in range(3) for n in ("weight", "bias")]
        losses = np.empty(len(rows), np.float32)
        for t, chosen in enumerate(rows, 1):
            a0 = x[chosen]
            a1 = np.tanh(a0 @ w1 + b1)
            a2 = np.tanh(a1 @ w2 + b2)
            error = a2 @ w3 + b3 - y[chosen]
            losses[t - 1] = np.mean(error**2)
            d3 = error * np.float32(2 / error.size)
            d2 = (d3 @ w3.T) * (1 - a2 * a2)
            d1 = (d2 @ w2.T) * (1 - a1 * a1)
            for place, g in zip(
                places, (a0.T @ d1, d1.sum(0), a1.T @ d2, d2.sum(0), a2.T @ d3, d3.sum(0)), strict=True
            ):
                slope[place] = g.ravel()
            first += np.float32(0.1) * (slope - first)
            second += np.float32(0.001) * (slope * slope - second)
            scale = np.float32(1 / (1 - 0.999**t))
            flat -= np.float32(RATE / (1 - 0.9**t)) * first / (np.sqrt(second * scale) + np.float32(1e-8))
        return losses

    return run


def large_step():
    """What fit costs where a step takes long: a loop of train_step over the same batches, and fit, in turns."""
    model = lux.Chain(lux.Dense(1024, 1024, jnp.tanh), lux.Dense(1024, 1024, jnp.tanh), lux.Dense(1024, 1024))
    x = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    start = lux.TrainState.create(model, TX, key=jax.random.key(0))
    step, steps = lux.train_step(objective, donate=False), 40

    def by_hand():
        state = start
        for i in range(steps):
            rows = slice(i % 4 * 256, (i % 4 + 1) * 256)
            state, _ = step(state, (x[rows], x[rows]))
        jax.block_until_ready(state)

    def fitted():
        lux.fit(objective, start, (x, x), batch_size=256, steps=steps, shuffle=False)

    times = {"train_step": [], "fit": []}
    for _ in range(6):
        for name, call in (("train_step", by_hand), ("fit", fitted)):
            begin = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - begin) / steps)
    found = timing.medians({f"lux.{name}": t[1:] for name, t in times.items()})
    rows = [(f"`{name}`", t * 1e3, f"{t.spread:.0%}", t / found["lux.fit"]) for name, t in found.items()]
    timing.table(("a step of 3 x 1024, batch 256", "median (ms)", "spread", "times `fit`'s"), rows, "large step")


def main():
    timing.machine()
    x = np.random.default_rng(0).normal(size=(SAMPLES, 4)).astype(np.float32)
    data = (x, np.sin(x))
    start = lux.TrainState.create(MODEL, TX, key=jax.random.key(0))
    rows, _ = Arrays(data, BATCH, True, "drop", start.key).rows(0, STEPS)
    makes = {"floor: hand-written scan": with_scan, "lux.fit": with_fit}
    makes |= {"lux.train_step, one call a step": with_train_step, "NumPy, written by hand": with_numpy}
    makes["Equinox, `filter_jit`"] = functools.partial(with_equinox, False)
    makes["Equinox, flattened"] = functools.partial(with_equinox, True)
    if importlib.util.find_spec("torch"):
        makes["PyTorch, eager, Adam"] = functools.partial(with_torch, False, False)
        makes["PyTorch, eager, fused Adam"] = functools.partial(with_torch, True, False)
        if COMPILER:
            makes["PyTorch, `torch.compile`, fused Adam"] = functools.partial(with_torch, True, True)
    else:
        print("PyTorch is not installed: pip install lux-sciml[bench]\n")
    runs = {name: make(start, data, rows) for name, make in makes.items()}
    losses = {name: run() for name, run in runs.items()}  # and what compiles
    times = {name: [] for name in runs}
    for turn in range(TURNS):
        for name, run in list(runs.items())[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) / STEPS)
    times = timing.medians(times)
    table = [
        (name, t * 1e6, f"{t.spread:.0%}", t / times["lux.fit"], *map(float, losses[name][[0, 99, 999]]))
        for name, t in times.items()
    ]
    head = ("10,000 steps", "us a step", "spread", "times `fit`'s", "loss 1", "loss 100", "loss 1000")
    timing.table(head, table, "steps")
    print()
    if not timing.QUICK:
        large_step()


if __name__ == "__main__":
    main()
