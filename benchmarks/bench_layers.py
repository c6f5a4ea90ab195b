"""Layers, forward and gradient, against Flax NNX and Equinox with the same weights, at a small and a real size.

`python bench_layers.py dense conv` measures some of dense, conv, batch_norm, lstm, attention; else it is all of them.
"""

import sys

import timing

timing.pin_allocator()

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import peers  # noqa: E402
from flax import nnx  # noqa: E402

import lux_sciml as lux  # noqa: E402

SECONDS = 2.5  # for each row
KEY, RNGS = jax.random.key(0), nnx.Rngs(0)


def dense(batch, features):
    layer = lux.Dense(features, features)
    ps, st = lux.setup(KEY, layer)
    x = jax.random.normal(KEY, (batch, features))
    theirs, eqx_model = nnx.Linear(features, features, rngs=RNGS), eqx.nn.Linear(features, features, key=KEY)
    nnx.update(theirs, {"kernel": ps.weight, "bias": ps.bias})
    eqx_model = with_leaves(eqx_model, {"weight": ps.weight.T, "bias": ps.bias})
    return (layer, ps, st, x), (theirs, x), (eqx_model, None, x)


def conv(batch, size, features):
    layer = lux.Conv(features, features, (3, 3), padding="SAME")
    ps, st = lux.setup(KEY, layer)
    x = jax.random.normal(KEY, (batch, size, size, features))
    theirs = nnx.Conv(features, features, (3, 3), rngs=RNGS)
    nnx.update(theirs, {"kernel": ps.weight, "bias": ps.bias})
    eqx_model = eqx.nn.Conv2d(features, features, 3, padding="SAME", key=KEY)
    eqx_model = with_leaves(eqx_model, {"weight": ps.weight.transpose(3, 2, 0, 1), "bias": ps.bias[:, None, None]})
    return (layer, ps, st, x), (theirs, x), (eqx_model, None, channels_first(x))


def batch_norm(*shape):
    layer = lux.BatchNorm(shape[-1])
    ps, st = lux.setup(KEY, layer)
    x = 2 * jax.random.normal(KEY, shape) + 1
    eqx_model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(shape[-1], "batch", momentum=0.9, mode="batch")
    theirs = nnx.BatchNorm(shape[-1], momentum=0.9, use_running_average=False, rngs=RNGS)
    return (layer, ps, st, x), (theirs, x), (eqx_model, state, channels_first(x))


class EquinoxLSTM(eqx.Module):
    """The scan of the docstring of `eqx.nn.LSTMCell`, here with the outputs of all steps."""

    cell: eqx.nn.LSTMCell

    def __call__(self, xs):
        def step(carry, x):
            carry = self.cell(x, carry)
            return carry, carry[0]

        start = (jnp.zeros(self.cell.hidden_size), jnp.zeros(self.cell.hidden_size))
        return jax.lax.scan(step, start, xs)[1]


def lstm(batch, time, features, hidden):
    layer = lux.Recurrence(lux.LSTMCell(features, hidden), return_sequence=True)
    ps, st = lux.setup(KEY, layer)
    x = jax.random.normal(KEY, (batch, time, features))
    theirs = nnx.RNN(nnx.OptimizedLSTMCell(features, hidden, rngs=RNGS))
    bias = ps.bias_ih + ps.bias_hh
    nnx.update(
        theirs, {"cell": {"dense_i": {"kernel": ps.weight_ih}, "dense_h": {"kernel": ps.weight_hh, "bias": bias}}}
    )
    cell = eqx.nn.LSTMCell(features, hidden, key=KEY)
    weights = {"weight_ih": ps.weight_ih.T, "weight_hh": ps.weight_hh.T, "bias": bias}
    return (layer, ps, st, x), (theirs, x), (EquinoxLSTM(with_leaves(cell, weights)), None, x)


class EquinoxSelfAttention(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return self.attention(x, x, x)


def attention(batch, tokens, features, heads):
    layer = lux.MultiHeadAttention(features, heads)
    ps, st = lux.setup(KEY, layer)
    x = jax.random.normal(KEY, (batch, tokens, features))
    theirs = nnx.MultiHeadAttention(heads, features, decode=False, rngs=RNGS)
    per_head = {name: {"kernel": ps[name].weight.reshape(features, heads, -1), "bias": ps[name].bias.reshape(heads, -1)}
                for name in ("query", "key", "value")}  # fmt: skip
    out = {"kernel": ps.output.weight.reshape(heads, -1, features), "bias": ps.output.bias}
    nnx.update(theirs, per_head | {"out": out})
    biases = dict.fromkeys(("use_query_bias", "use_key_bias", "use_value_bias", "use_output_bias"), True)
    eqx_model = eqx.nn.MultiheadAttention(heads, features, **biases, key=KEY)
    for name in ("query", "key", "value", "output"):
        linear = with_leaves(getattr(eqx_model, f"{name}_proj"), {"weight": ps[name].weight.T, "bias": ps[name].bias})
        eqx_model = with_leaves(eqx_model, {f"{name}_proj": linear})
    return (layer, ps, st, x), (theirs, x), (EquinoxSelfAttention(eqx_model), None, x)


def with_leaves(model, leaves):
    return eqx.tree_at(lambda model: [getattr(model, name) for name in leaves], model, list(leaves.values()))


def channels_first(x):
    return jnp.moveaxis(x, -1, 1)


CASES = {
    "dense": [(dense, (32, 64)), (dense, (256, 1024))],
    "conv": [(conv, (2, 8, 4)), (conv, (32, 32, 64))],
    "batch_norm": [(batch_norm, (32, 64)), (batch_norm, (64, 32, 32, 64))],
    "lstm": [(lstm, (4, 100, 4, 16)), (lstm, (64, 100, 128, 256))],
    "attention": [(attention, (2, 8, 16, 2)), (attention, (16, 128, 256, 8))],
}


def main(names):
    timing.machine()
    rows = []
    for name in names:
        for make, sizes in CASES[name]:
            both = peers.all_calls(*make(*sizes))
            peers.agree(both[0])
            for what, calls in zip(("forward", "gradient"), both, strict=True):
                times = timing.interleaved(calls, turns=200, seconds=SECONDS)
                rows.append(peers.row(f"{name} {'x'.join(map(str, sizes))}, {what}", times, 1e6))
    timing.table(("us", *peers.HEAD), rows, "layers")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
