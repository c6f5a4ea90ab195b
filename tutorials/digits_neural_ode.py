# %% [markdown]
# # Reading digits with a neural ODE
#
# A neural ODE (Chen et al., 2018) as a classifier: an image becomes a vector, the vector flows along a learned field
# from time 0 to 1, and a last layer reads the digit from where it arrives. The data are the 1,797 handwritten digits
# of 8 x 8 pixels that come with scikit-learn (Alpaydin and Kaynak, 1998). At the end you will have trained it with
# `lux.fit`, with validation, early stopping and checkpoints, have broken the run off and gone on with it, and have
# compared it with a support vector machine, a residual net and a convolutional net.

# %%
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import lux_sciml as lux

# %%
lux.plot.style()
EPOCHS, PATIENCE, BATCH, WIDTH = 30, 10, 64, 64
LEARNING_RATE = 4e-3

# %% [markdown]
# ## The data
#
# A quarter of the images is the test, used at the end only. Another 250 are for validation: they say
# when to stop. The rest is for training, each image also moved by a pixel up, down, left and right.

# %%
digits = load_digits()
images = (digits.images / 8.0 - 0.6).astype(np.float32)[..., None]  # (1797, 8, 8, 1), mean about 0


def split(images, labels, held_out):
    """Two pairs of images and labels, the second one of a given number, both with the same share of each digit."""
    a, b, y_a, y_b = train_test_split(images, labels, test_size=held_out, random_state=0, stratify=labels)
    return (a, y_a), (b, y_b)


def moved(images, up, left):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=images.min())
    return padded[:, 1 + up : 9 + up, 1 + left : 9 + left]


rest, test = split(images, digits.target, 450)
plain, validation = split(*rest, 250)
moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
training = np.concatenate([moved(plain[0], *move) for move in moves]), np.tile(plain[1], len(moves))
print(f"training {len(plain[0])} x {len(moves)}, validation {len(validation[0])}, test {len(test[0])} images")

# %% [markdown]
# ## The models
#
# The neural ODE: 64 numbers flow along the field of a net of one hidden layer. The tolerance is loose, as the classes
# need no more. The residual net has the same net in place of the field, applied once: one step of Euler's method, and
# the same parameters. The convolutional net has another structure, made for images, and a state: the running
# statistics of its `BatchNorm` layers.


# %%
def field():
    return lux.Chain(lux.Dense(WIDTH, 64, jnp.tanh), lux.Dense(64, WIDTH))


def classifier(middle):
    inject = lux.Chain(lux.Flatten(), lux.Dense(64, WIDTH), jnp.tanh)
    return lux.Chain(inject=inject, middle=middle, dropout=lux.Dropout(0.2), head=lux.Dense(WIDTH, 10))


def block(inputs, outputs):
    conv = lux.Conv(inputs, outputs, (3, 3), padding="SAME", use_bias=False)
    return lux.Chain(conv, lux.BatchNorm(outputs), jax.nn.relu)


pool = lux.MaxPool((2, 2))
models = {
    "neural ODE": classifier(lux.NeuralODE(field(), ts=[0.0, 1.0], output="final", rtol=1e-3, atol=1e-3)),
    "residual net": classifier(lux.SkipConnection(field(), jnp.add)),
    "convolutional net": lux.Chain(
        features=lux.Chain(block(1, 16), block(16, 32), pool, block(32, 32), pool),
        flatten=lux.Flatten(),
        dropout=lux.Dropout(0.3),
        head=lux.Dense(128, 10),
    ),
}
print(models["neural ODE"])

# %% [markdown]
# ## Training, broken off and resumed
#
# One function trains any of the three. The objective returns the loss and the new state, in which are the keys of the
# dropout and the statistics of the normalization. The learning rate falls along half a cosine. What is validated, and
# kept, is an exponential average of the parameters. See [Training](../docs/training.md).


# %%
def objective(model, ps, st, batch):
    logits, st = model(batch[0], ps, st)
    return lux.losses.cross_entropy(logits, batch[1]), st


def accuracy(model, ps, st, batch):
    return jnp.mean(jnp.argmax(model(batch[0], ps, st)[0], -1) == batch[1])


steps = EPOCHS * (len(training[0]) // BATCH)
optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=1e-3)


def train(model, **options):
    return lux.fit(
        objective,
        lux.TrainState.create(model, optimizer, key=jax.random.key(0), ema=0.99),
        training,
        batch_size=BATCH,
        epochs=EPOCHS,
        validation=validation,
        metrics={"accuracy": accuracy},
        early_stopping=lux.training.EarlyStopping(patience=PATIENCE),
        **options,
    )


# %% [markdown]
# The first run of the neural ODE ends after a quarter of the steps, as if the machine had gone down. The second call
# is the same but for the callback: it finds the newest checkpoint and goes on. To show that nothing was lost, the
# whole is run once more without a break.

# %%
results = {}
with tempfile.TemporaryDirectory() as folder:
    checkpoints = lux.training.Checkpoints(folder, every=500, keep_best=1, asynchronous=True)
    survives = dict(checkpoints=checkpoints, resume=True)
    first = train(
        models["neural ODE"], callbacks=lambda report: report.step >= steps // 4, callback_every=1, **survives
    )
    results["neural ODE"] = train(models["neural ODE"], **survives)

unbroken = train(models["neural ODE"])
print("first: ", first.message)
print("second:", results["neural ODE"].message)
same = np.array_equal(unbroken.state.ps.data, results["neural ODE"].state.ps.data)
print("bits of the parameters as without the break:", same)

# %% [markdown]
# ## The others, and the test
#
# The two other nets are trained by the same call. The support vector machine with its usual kernel is what
# scikit-learn's own example takes for these data; it sees the same moved images, and its penalty is chosen on the
# validation. Only now the test images are read. With 450 of them, an accuracy of 98 % has a standard error of 0.7 %.

# %%
for name in ("residual net", "convolutional net"):
    results[name] = train(models[name])


def flat(data):
    return data[0].reshape(-1, 64), data[1]


machines = [SVC(C=c).fit(*flat(training)) for c in (1.0, 10.0)]
machine = max(machines, key=lambda machine: machine.score(*flat(validation)))
rows = [("support vector machine", "", machine.score(*flat(validation)), machine.score(*flat(test)))]
for name, model in models.items():
    best = results[name].best
    scores = [float(accuracy(model, best.ps, lux.testmode(best.st), data)) for data in (validation, test)]
    rows.append((name, best.ps.size, *scores))
print("                        parameters  validation    test")
for name, size, *scores in rows:
    error = np.sqrt(scores[1] * (1 - scores[1]) / len(test[0]))
    print(f"{name:23} {size!s:>10} {scores[0]:11.1%}  {scores[1]:6.1%} +- {error:.1%}")

# %% [markdown]
# ## How the images flow
#
# The path of every test image, in the plane of the two directions in which the ends of the paths differ most
# (principal components). The field was never told about classes before the last layer; it pulls them apart.

# %%
ode, best = models["neural ODE"], results["neural ODE"].best
st = lux.testmode(best.st)
starts, _ = ode.inject(test[0], best.ps.inject, st["inject"])
path = ode.middle.replace(ts=jnp.linspace(0.0, 1.0, 21), output="ys")
ys, _ = path(starts, best.ps.middle, st["middle"])  # (times, images, WIDTH)
center = ys[-1].mean(0)
plane = np.linalg.svd(np.asarray(ys[-1] - center), full_matrices=False)[2][:2].T
points = np.asarray((ys - center) @ plane)

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), width_ratios=(1.1, 1, 1))
lux.plot.losses(results["neural ODE"], ax=axes[0])
axes[0].axvline(first.steps, color="0.4", linestyle=":", label="broken off")
axes[0].axvline(best.step, color="0.4", linestyle="--", label="kept")
axes[0].legend(fontsize="small")
colors, limits = plt.get_cmap("tab10")(test[1]), [(x.min(), x.max()) for x in points.reshape(-1, 2).T]
for ax, i, title in zip(axes[1:], (0, -1), ("time 0", "time 1"), strict=True):
    ax.scatter(*points[i].T, c=colors, s=6)
    ax.set(title=title, xlim=limits[0], ylim=limits[1])
for digit in range(10):
    axes[2].annotate(str(digit), points[-1][test[1] == digit].mean(0), weight="bold", ha="center", va="center")

# %% [markdown]
# ## What to see
#
# The validation is best long before the training loss is at its lowest; ten epochs later early stopping ends the run,
# and the parameters of the dashed line are kept. The break at the dotted line leaves no trace. The clouds of the
# digits, one on top of the other at time 0, stand apart at time 1. Ten classes do not fit into a plane: what overlaps
# here need not overlap in 64 dimensions.
#
# The neural ODE reads the digits as well as the residual net of the same size, within the errors, and the other two
# are better: the support vector machine takes a second to fit, and the convolutional net knows that images have
# neighbors. On images of fixed size that is what to expect, for depth that adapts buys nothing here. Where time is
# real, as in [irregular series](latent_ode.ipynb), this changes. Next: the same digits by an
# [equilibrium](digits_deq.ipynb), other [adjoints](../docs/adjoints.md), several seeds at once as an ensemble
# ([Training](../docs/training.md)).
