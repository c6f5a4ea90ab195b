"""The gradient of a tanh net through one flat vector against the same gradient through the tree of its leaves."""

import timing

timing.pin_allocator()

import functools  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lux_sciml as lux  # noqa: E402

BATCH = 32


def tree_of(leaves: int, numbers: int) -> dict[str, jax.Array]:
    """The weights of a net of square layers, about as many numbers as asked for in all."""
    width = max(round((numbers / leaves) ** 0.5), 1)
    keys = jax.random.split(jax.random.key(0), leaves)
    return {f"layer_{i}": jax.random.normal(k, (width, width)) / width**0.5 for i, k in enumerate(keys)}


def loss(tree):
    width = next(iter(tree.values())).shape[0]
    x = jnp.ones((BATCH, width))
    for weight in tree.values():
        x = jnp.tanh(x @ weight)
    return jnp.sum(x**2)


by_tree = jax.jit(jax.grad(loss))
by_flat = jax.jit(jax.grad(lambda ps: loss(ps.tree())))


def main():
    timing.machine()
    rows = []
    for leaves in (3, 20, 60, 200):
        for numbers in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
            tree = tree_of(leaves, numbers)
            ps = lux.ComponentVector.from_tree(tree)
            calls = {"flat": functools.partial(by_flat, ps), "tree": functools.partial(by_tree, tree)}
            times = timing.interleaved(calls, seconds=8.0)
            rows.append((leaves, ps.size, times["flat"] * 1e3, times["tree"] * 1e3, times["flat"] / times["tree"]))
    timing.table(("leaves", "numbers", "flat (ms)", "tree (ms)", "ratio"), rows)


if __name__ == "__main__":
    main()
