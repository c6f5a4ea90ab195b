"""The equilibrium models of tutorials/digits_deq.py, and the same models in torchdeq.

All have the same data, split, augmentation, optimizer and epochs, Anderson's method to 1e-3, implicit gradients and
Jacobian regularization. torchdeq's tolerance is on the 2-norm of a sample, ours on its largest element; its spectral
norm is its own, which keeps its vectors from one step to the next.
"""

import argparse
import sys
import time
from pathlib import Path

import timing

timing.pin_allocator()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchdeq  # noqa: E402
from torchdeq.loss import jac_reg  # noqa: E402
from torchdeq.norm import apply_norm, reset_norm  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent / "tutorials"))
import digits_deq as tutorial  # noqa: E402

WIDTH, BATCH = tutorial.WIDTH, tutorial.BATCH


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


def dense():
    inject = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, WIDTH))
    return Model(inject, DenseCell(), WIDTH, bound=0.9, dropout=0.2)


def multiscale():
    return Model(torch.nn.Conv2d(1, 8, 3, padding=1), MultiScaleCell(), 768, bound=0.5, dropout=0.0)


TORCH = {"dense": dense, "multiscale": multiscale}


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
            x, y = torch.tensor(tutorial.shifted(rng, images[chosen])), torch.tensor(digits[chosen])
            logits, z, injected, _ = model(x)
            z = z.detach().requires_grad_()
            penalty = jac_reg(model.step(z, injected), z)
            loss = torch.nn.functional.cross_entropy(logits, y) + tutorial.PENALTY * penalty
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
    ps, evaluate, record = tutorial.train(tutorial.MODELS[name][0], epochs, seed, training, validation)
    seconds = [row["seconds"] for row in record[1:]]  # the first one compiles
    used = [row["evaluations"] for row in record]
    return float(evaluate(ps, *test)["accuracy"]), float(np.median(seconds)), float(np.mean(used))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", choices=tutorial.MODELS, help="only this one")
    options = parser.parse_args()
    timing.machine()
    images, rows = tutorial.load(), []
    for name in [options.model] if options.model else tutorial.MODELS:
        for peer, train in {"lux_sciml": train_jax, "torchdeq": train_torch}.items():
            for seed in range(options.seeds):
                accuracy, seconds, used = train(name, tutorial.MODELS[name][1], seed, *images)
                rows.append((name, peer, seed, f"{accuracy:.2%}", seconds, used))
    timing.table(("model", "", "seed", "test accuracy", "s an epoch", "cell evaluations a solve"), rows, "digits")


if __name__ == "__main__":
    main()
