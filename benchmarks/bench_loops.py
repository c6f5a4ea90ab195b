"""What grows with the length of a sequence and with the depth of a stack: a recurrence's gradient, compile times."""

import time

import timing

timing.pin_allocator()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lux_sciml as lux  # noqa: E402

LENGTHS, DEPTHS = (50, 100, 200, 400, 800), (2, 4, 8, 16, 32, 64)
KEY = jax.random.key(0)


def gradient(layer, st):
    return jax.jit(jax.grad(lambda ps, x: jnp.mean(layer(x, ps, st)[0] ** 2)))


def recurrence():
    """An LSTM of 64 on batches of 16: the gradient's time, and its temporary memory."""
    layers = {
        "": lux.Recurrence(lux.LSTMCell(32, 64)),
        ", checkpoint": lux.Recurrence(lux.LSTMCell(32, 64), checkpoint=True),
    }
    ps, st = lux.setup(KEY, layers[""])
    calls, memory = {}, {}
    for name, layer in layers.items():
        for length in LENGTHS:
            x = jax.random.normal(KEY, (16, length, 32))
            compiled = gradient(layer, st).lower(ps, x).compile()
            calls[name, length] = lambda f=compiled, x=x: f(ps, x)
            memory[name, length] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    named = {f"lux, length {length}{name}": call for (name, length), call in calls.items()}
    times = dict(zip(calls, timing.interleaved(named, turns=100, seconds=30).values(), strict=True))
    rows = [(f"gradient{name}, ms", *(times[name, length] * 1e3 for length in LENGTHS)) for name in layers]
    rows += [(f"us a step{name}", *(times[name, length] / length * 1e6 for length in LENGTHS)) for name in layers]
    rows += [(f"temporary memory{name}, MiB", *(memory[name, length] for length in LENGTHS)) for name in layers]
    timing.table(("length", *map(str, LENGTHS)), rows, "length")


def stack():
    """Residual blocks of two dense layers, 64 wide: the time to trace and compile the gradient, median of five."""
    block = lux.SkipConnection(lux.Chain(lux.Dense(64, 64, jnp.tanh), lux.Dense(64, 64)), jnp.add)
    models = {"Stack": lambda n: lux.Stack(block, n), "Chain": lambda n: lux.Chain(*[block] * n)}
    seconds = {(name, n): [] for name in models for n in DEPTHS}
    for _ in range(5):
        for name, n in seconds:
            model = models[name](n)
            ps, st = lux.setup(KEY, model)
            jax.clear_caches()
            start = time.perf_counter()
            gradient(model, st).lower(ps, jnp.ones((16, 64))).compile()
            seconds[name, n].append(time.perf_counter() - start)
    times = timing.medians({f"lux.{name}, {n}": t for (name, n), t in seconds.items()})
    rows = [(f"`{name}`", *(float(times[f"lux.{name}, {n}"]) for n in DEPTHS)) for name in models]
    timing.table(("layers", *map(str, DEPTHS)), rows, "depth")


def main():
    timing.machine()
    recurrence()
    print()
    stack()


if __name__ == "__main__":
    main()
