"""The products of attention as they are written here against `jax.nn.dot_product_attention`: forward and gradient."""

import functools

import timing

timing.pin_allocator(one_arena=True)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import lux_sciml as lux  # noqa: E402

FUNCTIONS = {"lux_sciml": lux.nn.scaled_dot_product_attention, "jax.nn": jax.nn.dot_product_attention}
SIZES = [  # batch, tokens, heads, heads of keys and values, features of a head, causal
    (16, 64, 4, 4, 32, False),
    (8, 128, 8, 8, 32, True),
    (4, 256, 8, 2, 64, False),
    (2, 512, 8, 8, 64, True),
]


def calls(batch, tokens, heads, kv_heads, size, is_causal):
    """The two functions as calls without arguments: forward, and the gradient by queries, keys and values."""
    keys, shape = jax.random.split(jax.random.key(0), 3), (batch, tokens, kv_heads, size)
    q, k, v = (jax.random.normal(key, shape) for key in keys)
    q = jnp.repeat(q, heads // kv_heads, -2)

    def compiled(f):
        attend = functools.partial(f, is_causal=is_causal)
        gradient = jax.grad(lambda *qkv: jnp.sum(attend(*qkv) ** 2), (0, 1, 2))
        return [functools.partial(jax.jit(call), q, k, v) for call in (attend, gradient)]

    forward, gradient = zip(*map(compiled, FUNCTIONS.values()), strict=True)
    assert np.allclose(*(call() for call in forward), atol=1e-5)
    return [dict(zip(FUNCTIONS, both, strict=True)) for both in (forward, gradient)]


def main():
    timing.machine()
    rows = []
    for sizes in SIZES:
        batch, tokens, heads, kv_heads, size, is_causal = sizes
        shape = f"{batch} x {tokens} tokens, {heads} heads of {size}, {kv_heads} of keys{', causal' * is_causal}"
        for what, both in zip(("forward", "gradient"), calls(*sizes), strict=True):
            ours, theirs = timing.interleaved(both, seconds=5.0).values()
            rows.append((f"{shape}: {what}", 1e3 * ours, 1e3 * theirs, ours / theirs))
    timing.table(("ms", *FUNCTIONS, "ours / theirs"), rows, "attention")


if __name__ == "__main__":
    main()
