"""Named flat vectors: layouts, attribute access, compile time and memory, against the tree of the same leaves."""

import timing

timing.pin_allocator()

import functools  # noqa: E402
import pickle  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402

import lux_sciml as lux  # noqa: E402


def layouts():
    """A layout of 10,000 leaves: building, hashing, comparing, pickling."""
    tree = {
        f"layer_{i}": {"weight": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)} for i in range(5000)
    }
    start = time.perf_counter()
    layout = lux.Layout.of(tree)
    first = time.perf_counter() - start
    again = lux.Layout.of(tree)
    calls = {
        "build again": lambda: lux.Layout.of(tree),
        "hash": lambda: hash(layout),
        "compare": lambda: layout == again,
        "pickle and back": lambda: pickle.loads(pickle.dumps(layout)),
    }
    times = {"build": first, **{name: seconds(name, call) for name, call in calls.items()}}
    timing.table(("layout of 10,000 leaves", "time (us)"), [(name, t * 1e6) for name, t in times.items()], "layout")


def access():
    """Attribute access outside of jit."""
    ps, _ = lux.setup(jax.random.key(0), lux.Chain(lux.Dense(3, 32), lux.Dense(32, 32), lux.Dense(32, 2)))
    calls = {
        "ps.layer_1": lambda: ps.layer_1,
        "ps.layer_1.weight": lambda: ps.layer_1.weight,
        'ps["layer_1.weight"]': lambda: ps["layer_1.weight"],
        "ps.tree()": lambda: ps.tree(),
    }
    rows = [(f"`{name}`", seconds(name, call) * 1e6) for name, call in calls.items()]
    timing.table(("outside of jit", "time (us)"), rows, "access")


def deep(leaves, x):
    for weight, bias in leaves:
        x = jnp.tanh(x @ weight + bias)
    return jnp.sum(x)


def attributes():
    """The gradient of 100 layers, whose parameters are read from the tree or layer by layer."""
    layers, width = 100, 32
    key = jax.random.key(0)
    tree = {
        f"layer_{i}": {
            "weight": jax.random.normal(jax.random.fold_in(key, i), (width, width)) / 6,
            "bias": jnp.ones(width),
        }
        for i in range(layers)
    }
    ps, x, names = lux.ComponentVector.from_tree(tree), jnp.ones((16, width)), list(tree)

    def by_tree(ps):
        ps = ps.tree()
        return deep([(ps[name]["weight"], ps[name]["bias"]) for name in names], x)

    def by_attribute(ps):
        return deep([(ps[name].weight, ps[name].bias) for name in names], x)

    def by_slices(ps):
        places = [(ps.layout.slice((name, "weight")), ps.layout.slice((name, "bias"))) for name in names]
        return deep([(ps.data[w].reshape(width, width), ps.data[b]) for w, b in places], x)

    def plain(tree):
        return deep([(tree[name]["weight"], tree[name]["bias"]) for name in names], x)

    calls = {
        "plain tree": (plain, tree),
        "lux, `tree()`": (by_tree, ps),
        "lux, attributes": (by_attribute, ps),
        "slices by hand": (by_slices, ps),
    }
    compared("gradient of 100 layers", calls)


def equal_leaves(count, size):
    """The gradient of a sum over equal leaves: nothing but the map."""
    tree = {f"leaf_{i}": jnp.full(size, 0.1 + i / count) for i in range(count)}
    ps = lux.ComponentVector.from_tree(tree)

    def total(leaves):
        return sum(jnp.sum(jnp.tanh(x) ** 2) for x in leaves)

    calls = {
        "tree": (lambda tree: total(tree.values()), tree),
        "lax.split": (lambda ps: total(lax.split(ps.data, (size,) * count)), ps),
        "lux, flat": (lambda ps: total(ps.tree().values()), ps),
    }
    compared(f"{count} equal leaves of {size:,}", calls)


def compared(title, calls):
    """Compile time, run time and memory of gradients, as a table; the first call is the measure of the ratios."""
    compiled, compile_times = {}, {name: [] for name in calls}
    for _ in range(3):
        for name, (loss, argument) in calls.items():
            if sum(compile_times[name]) > 5:
                continue
            lowered = jax.jit(jax.grad(lambda x, loss=loss: loss(x))).lower(argument)
            start = time.perf_counter()
            program = lowered.compile()
            compile_times[name].append(time.perf_counter() - start)
            compiled[name] = functools.partial(program, argument)
    run = timing.interleaved(compiled, seconds=5.0)
    first = next(iter(calls))
    rows = []
    for name, program in compiled.items():
        memory = program.func.memory_analysis()
        parts = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
        compile_ratio = min(compile_times[name]) / min(compile_times[first])
        rows.append(
            (name, min(compile_times[name]), compile_ratio, run[name] * 1e3, run[name] / run[first], sum(parts) / 1e6)
        )
    timing.table((title, "compile (s)", "ratio", "run (ms)", "ratio", "memory (MB)"), rows, title)


def seconds(name, call):
    return timing.interleaved({f"lux, {name}": call}, seconds=1.0)[f"lux, {name}"]


def main():
    timing.machine()
    for part in (
        layouts,
        access,
        attributes,
        functools.partial(equal_leaves, 20, 2500),
        functools.partial(equal_leaves, 200, 2500),
        functools.partial(equal_leaves, 20, 500_000),
    ):
        part()
        print()


if __name__ == "__main__":
    main()
