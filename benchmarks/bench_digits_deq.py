"""Two equilibrium models of scikit-learn's 8 x 8 digits, a dense one and one of two scales, and the same in torchdeq.

All have the same data, split, augmentation, optimizer and epochs, Anderson's method to 1e-3, implicit gradients and
Jacobian regularization. torchdeq's tolerance is on the 2-norm of a sample, ours on its largest element; its spectral
norm is its own, which keeps its vectors from one step to the next.
"""

import argparse
import time

import timing

timing.pin_allocator()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402
import torchdeq  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from torchdeq.loss import jac_reg  # noqa: E402
from torchdeq.norm import apply_norm, reset_norm  # noqa: E402

import lux_sciml as lux  # noqa: E402

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
    for _ in range(epochs):
        start = time.perf_counter()
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
        for chosen in order:
            ps, st, moments, value = step(ps, st, moments, shifted(rng, images[chosen]), digits[chosen])
        training_stats = {"loss": float(value), "evaluations": int(st["deq"]["stats"]["evaluations"])}
        seconds = time.perf_counter() - start
        seen = {name: float(x) for name, x in evaluate(ps, *validation).items()}
        record.append({**training_stats, "seconds": seconds, **seen})
        best = min(best, (seen["validation_loss"], ps), key=lambda pair: pair[0])
    return best[1], evaluate, record


class DenseCell(torch.nn.Module):
    """z = tanh(z W + x)."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, z, x):
        return torch.tanh(self.weight(z) + x)


class MultiScaleCell(torch.nn.Module):
    """Two scales, 8 x 8 with 8 features and 4 x 4 with 16, side by side in `z`."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1)
        self.down, self.up = torch.nn.Conv2d(8, 16, 3, stride=2), torch.nn.Conv2d(16, 8, 1)

    def forward(self, z, x):
        z, coarse = z.split((512, 256), dim=1)
        u, coarse = self.fine(z.view(-1, 8, 8, 8)) + x, self.coarse(coarse.view(-1, 16, 4, 4))
        up = torch.nn.functional.interpolate(self.up(coarse), scale_factor=2)
        down = self.down(torch.nn.functional.pad(u, (0, 1, 0, 1)))
        return torch.cat([torch.tanh(u + up).flatten(1), torch.tanh(down + coarse).flatten(1)], dim=1)


class Model(torch.nn.Module):
    """A linear head behind the equilibrium of a cell, whose weights have a norm of at most `bound`."""

    def __init__(self, inject, cell, size, bound, dropout):
        super().__init__()
        self.inject, self.cell, self.size = inject, cell, size
        for name, parameter in cell.named_parameters():
            torch.nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else 0.04)
        self.head = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(size, 10))
        apply_norm(cell, "spectral_norm", learn_scale=False, target_norm=bound, clip=True)
        tolerances = {"f_max_iter": 40, "f_tol": 1e-3, "f_stop_mode": "abs", "b_max_iter": 40, "b_tol": 1e-3}
        self.deq = torchdeq.get_deq(core="sliced", f_solver="anderson", ift=True, b_solver="anderson", **tolerances)
        self.evaluations = 0

    def step(self, z, injected):
        self.evaluations += 1
        return self.cell(z, injected)

    def forward(self, x):
        reset_norm(self.cell)
        injected = self.inject(x.view(-1, 1, 8, 8))
        z, info = self.deq(lambda z: self.step(z, injected), torch.zeros(len(x), self.size))
        return self.head(z[-1]), z[-1], injected, info


def torch_dense():
    inject = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, WIDTH))
    return Model(inject, DenseCell(), WIDTH, bound=0.9, dropout=0.2)


def torch_multiscale():
    return Model(torch.nn.Conv2d(1, 8, 3, padding=1), MultiScaleCell(), 768, bound=0.5, dropout=0.0)


TORCH = {"dense": torch_dense, "multiscale": torch_multiscale}
MODELS = {"dense": (dense, 80), "multiscale": (multiscale, 60)}  # and the epochs


def train_torch(name, epochs, seed, training, validation, test):
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), TORCH[name]()
    images, digits = training
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def accuracy_and_loss(pair):
        model.eval()
        with torch.no_grad():
            logits, target = model(torch.tensor(pair[0]))[0], torch.tensor(pair[1])
            accuracy = (logits.argmax(-1) == target).float().mean()
            return float(accuracy), float(torch.nn.functional.cross_entropy(logits, target))

    best, seconds, used = (np.inf, None), [], []
    for _ in range(epochs):
        start, model.evaluations = time.perf_counter(), 0
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
        model.train()
        for chosen in order:
            x, y = torch.tensor(shifted(rng, images[chosen])), torch.tensor(digits[chosen])
            logits, z, injected, _ = model(x)
            z = z.detach().requires_grad_()
            penalty = jac_reg(model.step(z, injected), z)
            loss = torch.nn.functional.cross_entropy(logits, y) + PENALTY * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - start)
        used.append(model.evaluations / len(order))
        validation_loss = accuracy_and_loss(validation)[1]
        if validation_loss < best[0]:
            best = (validation_loss, {name: value.clone() for name, value in model.state_dict().items()})
    model.load_state_dict(best[1])
    return accuracy_and_loss(test)[0], float(np.median(seconds)), float(np.mean(used))


def train_jax(name, epochs, seed, training, validation, test):
    ps, evaluate, record = train(MODELS[name][0], epochs, seed, training, validation)
    seconds = [row["seconds"] for row in record[1:]]  # the first one compiles
    used = [row["evaluations"] for row in record]
    return float(evaluate(ps, *test)["accuracy"]), float(np.median(seconds)), float(np.mean(used))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", choices=MODELS, help="only this one")
    options = parser.parse_args()
    timing.machine()
    images, rows = load(), []
    for name in [options.model] if options.model else MODELS:
        for peer, train in {"lux_sciml": train_jax, "torchdeq": train_torch}.items():
            for seed in range(options.seeds):
                accuracy, seconds, used = train(name, MODELS[name][1], seed, *images)
                rows.append((name, peer, seed, f"{accuracy:.2%}", seconds, used))
    timing.table(("model", "", "seed", "test accuracy", "s an epoch", "cell evaluations a solve"), rows, "digits")


if __name__ == "__main__":
    main()
