"""Handwritten digits read by deep equilibrium models: a dense one, and a convolutional one of two scales.

The data are the 1,797 digits of 8 x 8 pixels that come with scikit-learn, a quarter of them kept for testing. Both
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


def conv(inputs, outputs, window=3, **options):
    return lux.Conv(inputs, outputs, (window, window), padding="SAME", init_weight=SMALL, **options)


def multiscale(**options):
    """Two scales, 8 x 8 with 8 features and 4 x 4 with 16, that find their equilibrium together."""
    down, up = conv(8, 16, stride=2), lux.Chain(conv(16, 8, window=1), lux.Upsample("nearest", scale=2))
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
    """Images `(n, 8, 8, 1)` of mean zero and their digits, for training and for testing."""
    digits = load_digits()
    images = (digits.images / 8.0 - 0.6).astype(np.float32)[..., None]
    return train_test_split(images, digits.target, test_size=450, random_state=0, stratify=digits.target)


def shifted(rng, images):
    """Half of the images moved by at most a pixel each way."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=images.min())
    places = np.where(rng.random((len(images), 1)) < 0.5, rng.integers(0, 3, (len(images), 2)), 1)
    return np.stack([image[i : i + 8, j : j + 8] for image, (i, j) in zip(padded, places, strict=True)])


def train(build, epochs, images, digits, test_images, test_digits):
    """Parameters, and for each epoch the loss, the test accuracy and the figures of the last solve."""
    model, watched = build(), build(radius_steps=8)
    print(f"{model}\n")
    ps, st = lux.setup(jax.random.key(0), model)
    rng, steps = np.random.default_rng(0), epochs * (len(images) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(4e-3, steps), weight_decay=1e-3)
    optimizer = optax.apply_if_finite(optimizer, 5)  # a solve that fails has no gradient: its batch is left out

    def loss(ps, st, x, y):
        logits, st = model(x, ps, st)
        error = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return error + PENALTY * st["deq"]["info"]["jacobian_loss"], st

    @jax.jit
    def step(ps, st, moments, x, y):
        (value, st), slope = jax.value_and_grad(loss, has_aux=True)(ps, st, x, y)
        updates, moments = optimizer.update(slope, moments, ps)
        return optax.apply_updates(ps, updates), st, moments, value

    @jax.jit
    def evaluate(ps, st):
        logits, st = watched(test_images, ps, lux.testmode(st))
        return jnp.mean(jnp.argmax(logits, -1) == test_digits), st["deq"]["info"]

    moments, record = optimizer.init(ps), []
    for epoch in range(epochs):
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
        for chosen in order:
            ps, st, moments, value = step(ps, st, moments, shifted(rng, images[chosen]), digits[chosen])
        accuracy, info = evaluate(ps, st)
        figures = {name: float(info[name]) for name in ("residual", "steps", "spectral_radius", "converged")}
        record.append({"loss": float(value), "accuracy": float(accuracy), **figures})
        if epoch % 10 == 9:
            print(f"  epoch {epoch + 1:3d}: " + ", ".join(f"{k} {v:.4g}" for k, v in record[-1].items()))
    return ps, record


def plot(path, records):
    """Accuracy, residual, steps and spectral radius over the epochs, on the test images."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for axis, name in zip(axes.flat, ("accuracy", "residual", "steps", "spectral_radius"), strict=True):
        for model, record in records.items():
            axis.plot(1 + np.arange(len(record)), [row[name] for row in record], label=model)
        axis.set(ylabel=name.replace("_", " "), xlabel="epoch")
    axes[0, 0].set_ylim(0.9, 1.0)
    axes[0, 1].set_yscale("log")
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for plots and parameters")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    images, test_images, digits, test_digits = load()
    records = {}
    for name, (build, epochs) in {"dense": (dense, 80), "multiscale": (multiscale, 60)}.items():
        print(f"\n{name}")
        start = time.perf_counter()
        ps, records[name] = train(build, epochs, images, digits, test_images, test_digits)
        last = records[name][-1]
        print(f"test accuracy {last['accuracy']:.2%} after {time.perf_counter() - start:.0f} s")
        lux.save(options.output / f"digits_{name}.npz", ps)
    plot(options.output / "digits_deq.png", records)
    print(f"\nplots and parameters are in {options.output.resolve()}")


if __name__ == "__main__":
    main()
