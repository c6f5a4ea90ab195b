"""The dense equilibrium model of tutorials/digits_deq.py, and the same model in torchdeq.

Both have the same data, split, augmentation, optimizer and epochs, Anderson's method to 1e-3, implicit gradients and
Jacobian regularization. torchdeq's tolerance is on the 2-norm of a sample, ours on its largest number; its spectral
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


class Dense(torch.nn.Module):
    """z = tanh(z W + x U + b), with the norm of W at most 0.9."""

    def __init__(self):
        super().__init__()
        self.inject = torch.nn.Linear(64, WIDTH)
        self.cell = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        torch.nn.init.normal_(self.cell.weight, std=0.04)
        self.dropout, self.head = torch.nn.Dropout(0.2), torch.nn.Linear(WIDTH, 10)
        apply_norm(self.cell, "spectral_norm", learn_scale=False, target_norm=0.9, clip=True)
        tolerances = {"f_max_iter": 40, "f_tol": 1e-3, "f_stop_mode": "abs", "b_max_iter": 40, "b_tol": 1e-3}
        self.deq = torchdeq.get_deq(core="sliced", f_solver="anderson", ift=True, b_solver="anderson", **tolerances)
        self.evaluations = 0

    def step(self, z, injected):
        self.evaluations += 1
        return torch.tanh(self.cell(z) + injected)

    def forward(self, x):
        reset_norm(self.cell)
        injected = self.inject(x.flatten(1))
        z, info = self.deq(lambda z: self.step(z, injected), torch.zeros_like(injected))
        return self.head(self.dropout(z[-1])), z[-1], injected, info


def train_torch(epochs, seed, training, validation, test):
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), Dense()
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


def train_jax(epochs, seed, training, validation, test):
    ps, evaluate, record = tutorial.train(tutorial.dense, epochs, seed, training, validation)
    seconds = [row["seconds"] for row in record[1:]]  # the first one compiles
    return float(evaluate(ps, *test)["accuracy"]), float(np.median(seconds)), record


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peer", choices=("lux_sciml", "torchdeq"), help="only this one")
    options = parser.parse_args()
    timing.machine()
    training, validation, test = tutorial.load()
    rows = []
    for name, train in {"lux_sciml": train_jax, "torchdeq": train_torch}.items():
        if options.peer in (name, None):
            for seed in range(options.seeds):
                accuracy, seconds, used = train(options.epochs, seed, training, validation, test)
                if name == "lux_sciml":
                    used = float(np.mean([row["evaluations"] for row in used]))
                rows.append((name, seed, f"{accuracy:.2%}", seconds, used))
    timing.table(("", "seed", "test accuracy", "s an epoch", "cell evaluations a solve"), rows)


if __name__ == "__main__":
    main()
