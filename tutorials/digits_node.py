"""Handwritten digits read by a neural ODE, trained by `lux.fit`: validation, checkpoints, a run broken off and resumed.

The data are scikit-learn's 1,797 digits of 8 x 8 pixels, split as in digits_deq.py; a quarter is kept for the test,
which is looked at once, at the end. An image becomes 64 numbers, these flow along a learned field from time 0 to 1, and
a last layer reads the digit. The first run is stopped half-way, as a machine would by going down; the second goes on
from its checkpoint, and has the result that a single one would have had. Needs `pip install lux-sciml[tutorials]`.
"""

import argparse
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_deq import load, plt

import lux_sciml as lux
from lux_sciml.training import Checkpoints, EarlyStopping

BATCH, EPOCHS, WIDTH = 64, 40, 64


def build():
    """64 pixels to 64 numbers, which flow along a field of a net, and 10 logits of them."""
    field = lux.Chain(lux.Dense(WIDTH, 64, jnp.tanh), lux.Dense(64, WIDTH))
    node = lux.NeuralODE(field, ts=[0.0, 1.0], output="final", rtol=1e-3, atol=1e-3)
    inject = lux.Chain(lux.Flatten(), lux.Dense(64, WIDTH), jnp.tanh)
    return lux.Chain(inject=inject, node=node, dropout=lux.Dropout(0.2), head=lux.Dense(WIDTH, 10))


def objective(model, ps, st, batch):
    """The mean cross-entropy of a batch of images and digits."""
    images, digits = batch
    logits, st = model(images, ps, st)
    return optax.softmax_cross_entropy_with_integer_labels(logits, digits).mean(), st


def accuracy(model, ps, st, batch):
    images, digits = batch
    return jnp.mean(jnp.argmax(model(images, ps, st)[0], -1) == digits)


def with_shifts(images, digits):
    """The images, and the same moved by one pixel up, down, left and right."""
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=images.min())
    moved = [padded[:, 1 + i : 9 + i, 1 + j : 9 + j] for i, j in moves]
    return np.concatenate(moved), np.tile(digits, len(moves))


def train(build, epochs, learning_rate, seed, training, validation, folder):
    """The result of a run of which the first half and the second are two processes' work."""
    images = with_shifts(*training)
    steps = epochs * (len(images[0]) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=1e-3)
    state = lux.TrainState.create(build(), optimizer, key=jax.random.key(seed), ema=0.99)
    shutil.rmtree(folder, ignore_errors=True)

    def run(**options):
        return lux.fit(
            objective,
            state,
            images,
            batch_size=BATCH,
            epochs=epochs,
            validation=validation,
            metrics={"accuracy": accuracy},
            early_stopping=EarlyStopping(patience=20),
            checkpoints=Checkpoints(folder, every=500, keep_best=1, asynchronous=True),
            resume=True,
            log=folder.with_suffix(".csv"),
            **options,
        )

    first = run(callbacks=lambda report: report.step >= steps // 2)
    print(f"  {first.message}; going on from the checkpoint", flush=True)
    return run(progress=True)


def plot(path, result):
    """Losses, and the accuracy on the validation images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    lux.plot.losses(result, ax=left)
    history = result.history
    right.plot(history["validation_step"], history["validation_accuracy"])
    right.axvline(result.best.step, color="0.6", linestyle="--", label="the parameters that are kept")
    right.set(xlabel="step", ylabel="accuracy, validation", ylim=(0.9, 1.005))
    right.legend()
    figure.savefig(path, dpi=120)


def tell(name, build, epochs, learning_rate):
    """Train, test, plot and save a model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for plots and parameters")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    training, validation, test = load()
    print(f"{name}: {build()}\n", flush=True)
    start = time.perf_counter()
    folder = options.output / name
    result = train(build, epochs, learning_rate, options.seed, training, validation, folder)
    found = accuracy(build(), result.best.ps, lux.testmode(result.best.st), test)
    seconds = time.perf_counter() - start
    print(f"{name}: {result.message}; {float(found):.2%} of the test images are read, after {seconds:.0f} s")
    lux.save(options.output / f"{name}.safetensors", {"ps": result.best.ps, "st": result.best.st})
    plot(options.output / f"{name}.png", result)
    print(f"plots, the log, parameters and checkpoints are in {options.output.resolve()}")


if __name__ == "__main__":
    tell("digits_node", build, EPOCHS, 4e-3)
