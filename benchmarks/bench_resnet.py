"""ResNet-18 for images of 32x32 (3x3 stem, no max pool), BatchNorm in training: three libraries.

`python bench_resnet.py gradient 32` measures one of forward and gradient at one batch size; else it is all of them.
"""

import sys

import timing

timing.pin_allocator(one_arena=True)

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import peers  # noqa: E402
from flax import nnx  # noqa: E402

import lux_sciml as lux  # noqa: E402

BATCHES, CLASSES = (8, 32), 10
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # features and stride, two blocks each
KEY = jax.random.key(0)


def plan():
    """The blocks, as numbers of features in and out and stride."""
    features = 64
    for width, stride in STAGES:
        for step in (stride, 1):
            yield features, width, step
            features = width


# --- lux_sciml ----------------------------------------------------------------------------------------------------


def conv(features, out, size=3, stride=1):
    return lux.Conv(features, out, (size, size), stride=stride, padding=size // 2, use_bias=False)


def block(features, out, stride):
    body = lux.Chain(
        conv(features, out, stride=stride), lux.BatchNorm(out, jax.nn.relu), conv(out, out), lux.BatchNorm(out)
    )
    if (features, stride) == (out, 1):
        return lux.Chain(lux.SkipConnection(body, jnp.add), jax.nn.relu)
    shortcut = lux.Chain(conv(features, out, 1, stride), lux.BatchNorm(out))
    return lux.Chain(lux.BranchLayer(body, shortcut, connection=jnp.add), jax.nn.relu)


def resnet18():
    blocks = [block(*sizes) for sizes in plan()]
    return lux.Chain(
        conv(3, 64), lux.BatchNorm(64, jax.nn.relu), *blocks, lux.GlobalMeanPool(), lux.Dense(512, CLASSES)
    )


# --- Flax NNX -----------------------------------------------------------------------------------------------------


class FlaxConvNorm(nnx.Module):
    def __init__(self, features, out, size, stride, rngs):
        self.conv = nnx.Conv(features, out, (size, size), stride, padding=size // 2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(out, momentum=0.9, use_running_average=False, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class FlaxBlock(nnx.Module):
    def __init__(self, features, out, stride, rngs):
        self.first = FlaxConvNorm(features, out, 3, stride, rngs)
        self.second = FlaxConvNorm(out, out, 3, 1, rngs)
        self.shortcut = None if (features, stride) == (out, 1) else FlaxConvNorm(features, out, 1, stride, rngs)

    def __call__(self, x):
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class FlaxResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = FlaxConvNorm(3, 64, 3, 1, rngs)
        self.blocks = nnx.List([FlaxBlock(*sizes, rngs) for sizes in plan()])
        self.head = nnx.Linear(512, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for layer in self.blocks:
            x = layer(x)
        return self.head(x.mean((1, 2)))


# --- Equinox ------------------------------------------------------------------------------------------------------


class EquinoxConvNorm(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, features, out, size, stride):
        self.conv = eqx.nn.Conv2d(features, out, size, stride, size // 2, use_bias=False, key=KEY)
        self.norm = eqx.nn.BatchNorm(out, "batch", momentum=0.9, mode="batch")

    def __call__(self, x, state):
        return self.norm(self.conv(x), state)


class EquinoxBlock(eqx.Module):
    first: EquinoxConvNorm
    second: EquinoxConvNorm
    shortcut: EquinoxConvNorm | None

    def __init__(self, features, out, stride):
        self.first = EquinoxConvNorm(features, out, 3, stride)
        self.second = EquinoxConvNorm(out, out, 3, 1)
        self.shortcut = None if (features, stride) == (out, 1) else EquinoxConvNorm(features, out, 1, stride)

    def __call__(self, x, state):
        y, state = self.first(x, state)
        y, state = self.second(jax.nn.relu(y), state)
        if self.shortcut is not None:
            x, state = self.shortcut(x, state)
        return jax.nn.relu(y + x), state


class EquinoxResNet(eqx.Module):
    stem: EquinoxConvNorm
    blocks: list[EquinoxBlock]
    head: eqx.nn.Linear

    def __init__(self):
        self.stem = EquinoxConvNorm(3, 64, 3, 1)
        self.blocks = [EquinoxBlock(*sizes) for sizes in plan()]
        self.head = eqx.nn.Linear(512, CLASSES, key=KEY)

    def __call__(self, x, state):
        x, state = self.stem(x, state)
        x = jax.nn.relu(x)
        for layer in self.blocks:
            x, state = layer(x, state)
        return self.head(x.mean((1, 2))), state


# --- the same weights ---------------------------------------------------------------------------------------------


def weights(ps):
    """The convolutions of ours in the order in which the blocks hold them, and the last layer."""
    tree = ps.tree()
    convs = [tree["layer_0"]]
    for i, (features, out, stride) in enumerate(plan()):
        skip = tree[f"layer_{i + 2}"]["layer_0"]
        plain = (features, stride) == (out, 1)
        body = skip["layer"] if plain else skip["layer_0"]
        convs += [body["layer_0"], body["layer_2"]] + ([] if plain else [skip["layer_1"]["layer_0"]])
    return [conv["weight"] for conv in convs], tree[f"layer_{len(tree) - 1}"]


def load(ps, flax_model, eqx_model):
    kernels, head = weights(ps)
    parts = [flax_model.stem]
    for layer in flax_model.blocks:
        parts += [part for part in (layer.first, layer.second, layer.shortcut) if part is not None]
    for part, kernel in zip(parts, kernels, strict=True):
        nnx.update(part.conv, {"kernel": kernel})
    nnx.update(flax_model.head, {"kernel": head["weight"], "bias": head["bias"]})

    def arrays(model):
        parts = [model.stem]
        for layer in model.blocks:
            parts += [part for part in (layer.first, layer.second, layer.shortcut) if part is not None]
        return [part.conv.weight for part in parts] + [model.head.weight, model.head.bias]

    ours = [kernel.transpose(3, 2, 0, 1) for kernel in kernels] + [head["weight"].T, head["bias"]]
    return eqx.tree_at(arrays, eqx_model, ours)


def main(whats, batches):
    timing.machine()
    model = resnet18()
    ps, st = lux.setup(KEY, model)
    flax_model = FlaxResNet(nnx.Rngs(0))
    eqx_model, state = eqx.nn.make_with_state(EquinoxResNet)()
    eqx_model = load(ps, flax_model, eqx_model)
    print(f"{ps.size:_} parameters in {len(jax.tree.leaves(ps.tree()))} arrays\n")
    rows = []
    for batch in batches:
        x = jax.random.normal(KEY, (batch, 32, 32, 3))
        calls = peers.all_calls((model, ps, st, x), (flax_model, x), (eqx_model, state, jnp.moveaxis(x, -1, 1)))
        for what in whats:
            timed = calls[("forward", "gradient").index(what)]
            if what == "forward":
                peers.agree(timed)
            rows.append(peers.row(f"{what}, batch {batch}", timing.interleaved(timed, turns=20, seconds=40), 1e3))
    timing.table(("ms", *peers.HEAD), rows, "resnet")


if __name__ == "__main__":
    whats = [name for name in sys.argv[1:] if not name.isdigit()]
    batches = [int(number) for number in sys.argv[1:] if number.isdigit()]
    main(whats or ["forward", "gradient"], batches or BATCHES)
