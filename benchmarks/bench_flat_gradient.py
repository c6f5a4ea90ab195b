"""The gradient of a tanh net through one flat vector against the same gradient through the tree of its leaves."""

import timing

timing.pin_allocator(one_arena=True)

import functools  # noqa: E402
import itertools  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lux_sciml as lux  # noqa: E402

LEAVES, NUMBERS = (3, 20, 60, 200), (10**3, 10**4, 10**5, 10**6, 10**7)


def tree_of(leaves: int, numbers: int) -> dict[str, jax.Array]:
    """The weights of a net of square layers, about as many parameters as asked for in all."""
    width = max(round((numbers / leaves) ** 0.5), 1)
    keys = jax.random.split(jax.random.key(0), leaves)
    return {f"layer_{i}": jax.random.normal(k, (width, width)) / width**0.5 for i, k in enumerate(keys)}


def loss(tree, x):
    for weight in tree.values():
        x = jnp.tanh(x @ weight)
    return jnp.sum(x**2)


by_tree = jax.jit(jax.grad(loss))
by_flat = jax.jit(jax.grad(lambda ps, x: loss(ps.tree(), x)))


def main():
    timing.machine()
    rows, ratios = [], {}
    for batch, leaves, numbers in itertools.product((32, 256), LEAVES, NUMBERS):
        tree = tree_of(leaves, numbers)
        ps = lux.ComponentVector.from_tree(tree)
        x = jnp.ones((batch, tree["layer_0"].shape[0]))
        calls = {"lux, flat": functools.partial(by_flat, ps, x), "tree": functools.partial(by_tree, tree, x)}
        times = timing.interleaved(calls, seconds=4.0)
        ratio = ratios[numbers, batch, leaves] = times["lux, flat"] / times["tree"]
        rows.append((batch, leaves, ps.size, times["lux, flat"] * 1e3, times["tree"] * 1e3, ratio))
    timing.table(("batch", "leaves", "parameters", "flat (ms)", "tree (ms)", "ratio"), rows)
    print()
    rows = [
        (f"{numbers:.0e}".replace("+0", ""), batch, *(ratios[numbers, batch, leaves] for leaves in LEAVES))
        for numbers, batch in itertools.product(NUMBERS, (32, 256))
    ]
    timing.table(("parameters", "batch", *(f"{leaves} leaves" for leaves in LEAVES)), rows, "ratios")


if __name__ == "__main__":
    main()
