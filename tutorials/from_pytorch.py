# %% [markdown]
# # A PyTorch model, and what comes on top
#
# A small convolutional network is trained in PyTorch on the 1797 handwritten digits of 8 x 8 pixels of scikit-learn
# (Alpaydin and Kaynak, UCI, 1998). We move it over, weights and running statistics, check that it is the same function,
# with the same gradient, and that the way back is open. Then we do with it what is easier here: an approximate
# posterior of its last layer, taken by name, and whether it makes the network's confidence any better.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import lux_sciml as lux

lux.plot.style()
torch.manual_seed(0)
torch.set_num_threads(1)  # the net is small

# %%
EPOCHS, WIDTH = 15, 16
DRAWS = 300

# %% [markdown]
# ## Trained in PyTorch
#
# 800 digits to train with, 400 to choose one number by, 597 for the test.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
x, y = (images[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1), labels[order]
train, validation, test = ((x[part], y[part]) for part in (slice(800), slice(800, 1200), slice(1200, None)))

net = torch.nn.Sequential(
    torch.nn.Conv2d(1, WIDTH, 3, padding=1, bias=False),
    torch.nn.BatchNorm2d(WIDTH),
    torch.nn.ReLU(),
    torch.nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, stride=2),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(2 * WIDTH * 4 * 4, 32),
    torch.nn.Tanh(),
    torch.nn.Linear(32, 10),
)

# %%
as_torch = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y)
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for _ in range(EPOCHS):
    for rows in torch.randperm(800).split(50):
        loss = torch.nn.functional.cross_entropy(net(as_torch[0][rows]), as_torch[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
net = net.eval()

# %% [markdown]
# ## The same network here
#
# Written in the same order it needs no table of names, whatever they are here: `load_torch` finds them. Kernels are
# turned, the statistics of the batch norm go into the state, and the rows of the first dense layer are reordered, for
# images have their channels last here and first in PyTorch; an example input tells it how large they are.

# %%
body = lux.Chain(
    lux.Conv(1, WIDTH, (3, 3), padding=1, use_bias=False),
    lux.BatchNorm(WIDTH),
    jax.nn.relu,
    lux.Conv(WIDTH, 2 * WIDTH, (3, 3), padding=1, stride=2),
    jax.nn.relu,
    lux.Flatten(),
    lux.Dense(2 * WIDTH * 4 * 4, 32),
    jnp.tanh,
)
model = lux.Chain(body=body, head=lux.Dense(32, 10))
ps, st = lux.setup(jax.random.key(0), model)
ps, st = lux.adapters.load_torch(model, ps, st, net.state_dict(), x=test[0])
st = lux.testmode(st)


@jax.jit
def logits(ps, x):
    return model(x, ps, st)[0]


with torch.no_grad():
    theirs = net(torch.tensor(test[0]).permute(0, 3, 1, 2)).numpy()
ours = logits(ps, test[0])
difference = np.abs(ours - theirs).max()
print(f"{ps.size} parameters; logits up to {np.abs(theirs).max():.1f}, largest difference {difference:.1e}")

# %% [markdown]
# The gradient is the same as well: that of the loss by the input, which in PyTorch is `x.grad`, here is `jax.grad` of a
# function.

# %%
leaf = torch.tensor(test[0][:8]).permute(0, 3, 1, 2).requires_grad_()
torch.nn.functional.cross_entropy(net(leaf), torch.tensor(test[1][:8])).backward()

gradient = jax.grad(lambda x: lux.losses.cross_entropy(logits(ps, x), test[1][:8]))(test[0][:8])
difference = np.abs(gradient - leaf.grad.permute(0, 2, 3, 1).numpy()).max()
print(f"gradients up to {np.abs(gradient).max():.1e}, largest difference {difference:.1e}")

# %% [markdown]
# And back: the state dict loads into a fresh PyTorch model, with the names that it wants.

# %%
again = lux.adapters.to_torch(model, ps, st, like=net, x=test[0])
print(all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items()))

# %% [markdown]
# ## A posterior of the last layer
#
# Under noise the network reads less, and stays surer than it should be. Its last layer is logistic regression on 32
# features, with 330 weights, `ps.head`. Around those that PyTorch found we put a normal distribution, by Laplace's
# approximation: the inverse of the Hessian of the loss with a normal prior, by the name of the layer, all other weights
# held (Kristiadi, Hein and Hennig, "Being Bayesian, even just a bit, fixes overconfidence in ReLU networks", ICML
# 2020). The answer is the average of the probabilities over it. The simpler remedy, which it has to beat, is a
# temperature: all logits divided by one number.


# %%
@jax.jit
def features(x):
    return body(x, ps.body, st["body"])[0]


train_z = features(train[0])


def answer(head, z):
    return model.head(z, head, st["head"])[0]


def negative_log_posterior(head, data):
    z, y, variance = data
    return lux.losses.cross_entropy(answer(head, z), y, "sum") + 0.5 * jnp.sum(head.data**2) / variance


@jax.jit
def by_posterior(variance, z):
    hessian = lux.hessian(negative_log_posterior)(ps.head, (train_z, train[1], variance))
    draws = lux.inference.laplace_approximation(ps.head, hessian).sample(jax.random.key(1), (DRAWS,))
    return jax.nn.softmax(jax.vmap(answer, (0, None))(draws, z)).mean(0)


@jax.jit
def by_temperature(temperature, z):
    return jax.nn.softmax(answer(ps.head, z) / temperature)


def scores(p, y):
    """Accuracy, confidence (the mean of the largest probability), and minus the log likelihood of a digit."""
    p = np.asarray(p)
    return np.mean(p.argmax(-1) == y), np.mean(p.max(-1)), -np.mean(np.log(p[np.arange(len(y)), y]))


# %% [markdown]
# One number is chosen for each way, by the likelihood of validation digits with noise of all levels together.

# %%
levels = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7], np.float32)


def noisy(x, seed):
    noise = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    return [features(x + level * noise) for level in levels]


validation_z, test_z = noisy(validation[0], 1), noisy(test[0], 2)
grids = {by_temperature: np.linspace(1.0, 4.0, 16), by_posterior: np.geomspace(0.01, 10.0, 10)}
ways = {"PyTorch": lambda z: by_temperature(1.0, z)}
for way, grid in grids.items():
    valid = [np.mean([scores(way(k, z), validation[1])[2] for z in validation_z]) for k in grid]
    best = grid[np.argmin(valid)]
    ways[way.__name__] = lambda z, way=way, best=best: way(best, z)
    print(f"{way.__name__:15} {best:.2f}, -log likelihood of the validation digits {min(valid):.3f}")

# %% [markdown]
# The test digits, once:

# %%
rows = {name: np.array([scores(way(z), test[1]) for z in test_z]) for name, way in ways.items()}
print(f"{'':8}{'accuracy':>10}{'confidence':>24}{'':8}{'-log likelihood':>24}")
print("noise   " + " " * 10 + 2 * "".join(f"{name.removeprefix('by_'):>12}" for name in rows))
for k, level in enumerate(levels):
    cells = "".join(f"{row[k, 1]:12.1%}" for row in rows.values()) + "".join(
        f"{row[k, 2]:12.3f}" for row in rows.values()
    )
    print(f"{level:<8.1f}{rows['PyTorch'][k, 0]:10.1%}{cells}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot(levels, rows["PyTorch"][:, 0], "k.-", label="accuracy")
for (name, row), style in zip(rows.items(), ("C1s-", "C2^-", "C0o-"), strict=True):
    left.plot(levels, row[:, 1], style, label=f"confidence, {name.removeprefix('by_')}")
    right.plot(levels, row[:, 2], style, label=name.removeprefix("by_"))
left.set(xlabel="noise (standard deviation)", ylim=(0, 1.02), title="how right, and how sure")
left.legend(fontsize="small")
right.set(xlabel="noise (standard deviation)", ylabel="-log likelihood per digit", ylim=(0, None))
_ = right.legend(fontsize="small")

# %% [markdown]
# ## What to see
#
# What was moved is the same function, to rounding, with the same gradient, and goes back unchanged. With growing noise
# the network of PyTorch stays surer than it is right; both remedies, chosen at all levels of noise together, bring its
# confidence nearer to its accuracy from a noise of 0.4 on, and are too modest below: on clean digits the plain network
# has the best likelihood. The posterior does as well as a temperature, not better. Its merit is elsewhere: it comes by
# the name of a layer, needs no training, and would give a band around any output (see
# [Inference](../docs/inference.md)). [Adapters](../docs/adapters.md) has the other ways in and out: `from_equinox`,
# `from_nnx`, safetensors files.
