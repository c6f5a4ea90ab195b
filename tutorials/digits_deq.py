"""Handwritten digits read by deep equilibrium models: a dense one, and a convolutional one of two scales.

The data are the 1,797 digits of 8 x 8 pixels that come with scikit-learn. A quarter of them is kept for the test, which
is looked at once, at the end; the options and the epoch were chosen on validation images, taken from the others. Both
models are the fixed point of a cell and are trained by the implicit function theorem; the residual, the steps and the
spectral radius of their solves are plotted. Needs `pip install lux-sciml[tutorials]`.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import lux_sciml as lux

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCH, WIDTH = 64, 256
PENALTY = 0.03  # on the mean square of the Jacobian's rows, which keeps the cells contracting
OPTIONS = {"rtol": 1e-3, "atol": 1e-3, "max_steps": 40, "jacobian_probes": 1}
SMALL = lux.initializers.Normal(0.04)


def join(a, b):
    return jnp.tanh(a + b)


def same(x):
    return x


def dense(**options):
    """z = tanh(z W + x U + b), 256 numbers for an image; the norm of W is at most 0.9, so that the cell contracts."""
    cell = lux.Parallel(join, lux.Dense(WIDTH, WIDTH, use_bias=False, init_weight=SMALL), same)
    deq = lux.DeepEquilibrium(lux.NormalizedCell(cell, bound=0.9), **OPTIONS, **options)
    inject = lux.Chain(lux.Flatten(), lux.Dense(64, WIDTH))
    return lux.Chain(inject=inject, deq=deq, dropout=lux.Dropout(0.2), head=lux.Dense(WIDTH, 10))


def conv(inputs, outputs, size=3, **options):
    return lux.Conv(inputs, outputs, (size, size), padding="SAME", init_weight=SMALL, **options)


def multiscale(**options):
    """Two scales, 8 x 8 with 8 features and 4 x 4 with 16, that find their equilibrium together."""
    down, up = conv(8, 16, stride=2), lux.Chain(conv(16, 8, size=1), lux.Upsample("nearest", scale=2))
    cell = lux.MultiScaleCell(
        branches=(lux.Parallel(jnp.add, conv(8, 8), same), conv(16, 16)),
        fusion=((same, up), (down, same)),
        after=(jnp.tanh, jnp.tanh),
    )
    deq = lux.DeepEquilibrium(lux.NormalizedCell(cell, bound=0.5), shape=((8, 8, 8), (4, 4, 16)), **OPTIONS, **options)
    inject = lux.Conv(1, 8, (3, 3), padding="SAME")
    head = lux.Parallel(jnp.add, *(lux.Chain(lux.Flatten(), lux.Dense(n, 10)) for n in (512, 256)))
    return lux.Chain(inject=inject, deq=deq, head=head)


def load():
    """Images `(n, 8, 8, 1)` of mean zero and their digits: for training 1,097, for validation 250, for the test 450."""
    digits = load_digits()
    images = (digits.images / 8.0 - 0.6).astype(np.float32)[..., None]
    rest, test = split(images, digits.target, 450)
    return *split(*rest, 250), test


def split(images, digits, held_out):
    """Two pairs of images and digits, the second one of a given number."""
    parts = train_test_split(images, digits, test_size=held_out, random_state=0, stratify=digits)
    return (parts[0], parts[2]), (parts[1], parts[3])


def shifted(rng, images):
    """Half of the images moved by at most a pixel each way."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=images.min())
    places = np.where(rng.random((len(images), 1)) < 0.5, rng.integers(0, 3, (len(images), 2)), 1)
    return np.stack([image[i : i + 8, j : j + 8] for image, (i, j) in zip(padded, places, strict=True)])


def train(build, epochs, seed, training, validation):
    """The best epoch's parameters, by the loss on the validation images; a function of them and images; the record.

    The function gives the accuracy, the loss and the statistics of the solve; the record has those of every epoch.
    """
    images, digits = training
    model, watched = build(), build(radius_steps=8)
    ps, st = lux.setup(jax.random.key(seed), model)
    st_test = lux.testmode(st)
    rng, steps = np.random.default_rng(seed), epochs * (len(images) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(4e-3, steps), weight_decay=1e-3)
    optimizer = optax.apply_if_finite(optimizer, 5)  # a solve that fails has no gradient: its batch is left out

    def loss(ps, st, x, y):
        logits, st = model(x, ps, st)
        error = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return error + PENALTY * st["deq"]["stats"]["jacobian_loss"], st

    @jax.jit
    def step(ps, st, moments, x, y):
        (value, st), slope = jax.value_and_grad(loss, has_aux=True)(ps, st, x, y)
        updates, moments = optimizer.update(slope, moments, ps)
        return optax.apply_updates(ps, updates), st, moments, value

    @jax.jit
    def evaluate(ps, images, digits):
        logits, st_now = watched(images, ps, st_test)
        stats = {name: st_now["deq"]["stats"][name] for name in ("residual", "steps", "spectral_radius")}
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, digits).mean()
        return {"accuracy": jnp.mean(jnp.argmax(logits, -1) == digits), "validation_loss": loss, **stats}

    moments, record, best = optimizer.init(ps), [], (np.inf, ps)
    for epoch in range(epochs):
        start = time.perf_counter()
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
        for chosen in order:
            ps, st, moments, value = step(ps, st, moments, shifted(rng, images[chosen]), digits[chosen])
        training_stats = {"loss": float(value), "evaluations": int(st["deq"]["stats"]["evaluations"])}
        seconds = time.perf_counter() - start
        seen = {name: float(x) for name, x in evaluate(ps, *validation).items()}
        record.append({**training_stats, "seconds": seconds, **seen})
        best = min(best, (seen["validation_loss"], ps), key=lambda pair: pair[0])
        if epoch % 20 == 19:
            print(f"  epoch {epoch + 1:3d}: " + ", ".join(f"{k} {v:.4g}" for k, v in record[-1].items()), flush=True)
    return best[1], evaluate, record


def plot(path, records):
    """What was seen on the validation images over the epochs, a line for each seed, a color for each model."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    labels = {
        "accuracy": "accuracy",
        "residual": "residual of the solve",
        "steps": "steps of the solve",
        "spectral_radius": "spectral radius of the cell",
    }
    for axis, (name, label) in zip(axes.flat, labels.items(), strict=True):
        for i, (model, runs) in enumerate(records.items()):
            for j, record in enumerate(runs):
                line = dict(color=f"C{i}", label=None if j else model, linewidth=1.2, alpha=0.8)
                axis.plot(1 + np.arange(len(record)), [row[name] for row in record], **line)
        axis.set_title(label, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(0.9, 1.002)
    axes[0, 1].set_yscale("log")
    for axis in axes[1]:
        axis.set_ylim(0)
        axis.set_xlabel("epoch")
    axes[0, 0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for plots and parameters")
    parser.add_argument("--seeds", type=int, default=1, help="how many times each model is trained")
    parser.add_argument("--model", choices=MODELS, help="only this one")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    training, validation, test = load()
    chosen = {name: MODELS[name] for name in ([options.model] if options.model else MODELS)}
    records = {name: [] for name in chosen}
    for name, (build, epochs) in chosen.items():
        print(f"\n{name}: {build()}\n")
        for seed in range(options.seeds):
            start = time.perf_counter()
            ps, evaluate, record = train(build, epochs, seed, training, validation)
            records[name].append(record)
            accuracy = {"test": evaluate(ps, *test)["accuracy"], "validation": evaluate(ps, *validation)["accuracy"]}
            seconds = time.perf_counter() - start
            says = ", ".join(f"{accuracy[on]:.2%} on the {on} images" for on in accuracy)
            print(f"{name}, seed {seed}: {says}, after {seconds:.0f} s", flush=True)
            lux.save(options.output / f"digits_{name}_{seed}.safetensors", ps)
    plot(options.output / "digits_deq.png", records)
    print(f"\nplots and parameters are in {options.output.resolve()}")


MODELS = {"dense": (dense, 80), "multiscale": (multiscale, 60)}  # and the epochs


if __name__ == "__main__":
    main()
