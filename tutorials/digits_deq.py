# %% [markdown]
# # A deep equilibrium classifier
#
# A deep equilibrium model (Bai, Kolter and Koltun, 2019) has no number of layers: its output is the fixed point of one
# cell, $z = \tanh(z W + x U + b)$, found by a solver and differentiated by the implicit function theorem. Here it
# reads the 1,797 handwritten digits that come with scikit-learn (Alpaydin and Kaynak, 1998). At the end you will know
# what decides whether the fixed point can be found, how to watch and keep it, and how the model compares with an
# explicit net of the same parameters and with a support vector machine.

# %%
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
EPOCHS, BATCH, WIDTH = 15, 64, 256
LEARNING_RATE, PENALTY = 4e-3, 0.03
DEPTHS = [1, 2, 4, 8, 16, 24]

# %% [markdown]
# ## The data
#
# 450 images are the test, used at the end only; 250 are for validation. The others are for training, each also
# moved by a pixel up, down, left and right.

# %%
digits = load_digits()
images = (digits.images / 8.0 - 0.6).astype(np.float32)  # (1797, 8, 8), mean about 0


def split(images, labels, held_out):
    a, b, y_a, y_b = train_test_split(images, labels, test_size=held_out, random_state=0, stratify=labels)
    return (a, y_a), (b, y_b)


def moved(images, up, left):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=images.min())
    return padded[:, 1 + up : 9 + up, 1 + left : 9 + left].reshape(-1, 64)


rest, (test_images, test_labels) = split(images, digits.target, 450)
plain, (watched_images, watched_labels) = split(*rest, 250)
moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
training = np.concatenate([moved(plain[0], *move) for move in moves]), np.tile(plain[1], len(moves))
validation = watched_images.reshape(-1, 64), watched_labels
test = test_images.reshape(-1, 64), test_labels

# %% [markdown]
# ## The cell, and what keeps it contracting
#
# `DeepEquilibrium` finds the fixed point by Anderson's method; its state tells of the last solve: residual, steps, the
# spectral radius of the cell's Jacobian. Where that radius stays below 1, plain iteration converges; where it comes
# near or goes above, a solve takes long, or fails. Nothing in the loss forbids that. Two things keep it low:
# `NormalizedCell` scales weights down whose norm is above a bound, and a penalty on the Jacobian is added to the loss.
#
# Three models, then: **free**, without either; **kept**, with both; and an **explicit** net, the same cell applied
# twice with plain backpropagation. Applied once it would be a linear layer and a tanh, as $z$ starts at zero.


# %%
def classifier(cell, **options):
    options = dict(rtol=1e-3, atol=1e-3, max_steps=40, jacobian_probes=1) | options
    deq = lux.DeepEquilibrium(cell, **options)
    return lux.Chain(inject=lux.Dense(64, WIDTH), deq=deq, dropout=lux.Dropout(0.2), head=lux.Dense(WIDTH, 10))


def join(z, x):
    return jnp.tanh(z + x)


small = lux.initializers.Normal(0.04)
cell = lux.Parallel(join, lux.Dense(WIDTH, WIDTH, use_bias=False, init_weight=small), lux.NoOp())
models = {
    "free": classifier(cell),
    "kept": classifier(lux.NormalizedCell(cell, bound=0.9)),
    "explicit": classifier(cell, fixed_depth=2),
}
print(models["kept"])

# %% [markdown]
# ## Training
#
# The objective returns the statistics of the solve beside the loss, so that they are in the history of the run. A
# solve that fails has no gradient: `lux.fit` leaves its batch out, and counts it. The spectral radius is looked at on
# the validation images only, as it costs some products with the Jacobian.


# %%
def accuracy(model, ps, st, batch):
    return jnp.mean(jnp.argmax(model(batch[0], ps, st)[0], -1) == batch[1])


def radius(model, ps, st, batch):
    watching = model.replace(deq=model.deq.replace(radius_steps=8))
    return watching(batch[0], ps, st)[1]["deq"]["stats"]["spectral_radius"]


def train(model, penalty):
    def objective(model, ps, st, batch):
        logits, st = model(batch[0], ps, st)
        stats = st["deq"]["stats"]
        loss = lux.losses.cross_entropy(logits, batch[1]) + penalty * stats["jacobian_loss"]
        return loss, st, {"residual": stats["residual"], "steps": stats["steps"]}

    schedule = optax.cosine_decay_schedule(LEARNING_RATE, EPOCHS * (len(training[0]) // BATCH))
    state = lux.TrainState.create(model, optax.adamw(schedule, weight_decay=1e-3), key=jax.random.key(0))
    metrics = {"accuracy": accuracy, "radius": radius}
    return lux.fit(objective, state, training, batch_size=BATCH, epochs=EPOCHS, validation=validation, metrics=metrics)


results = {name: train(model, PENALTY if name == "kept" else 0.0) for name, model in models.items()}
for name, result in results.items():
    print(f"{name:10} {result.message}, {int(result.state.skipped)} batches left out")

# %% [markdown]
# ## Is the gradient right?
#
# The gradient by the implicit function theorem needs no memory for the iterations. Here it stands beside the one by
# backpropagation through 60 of them.

# %%
model, best = models["kept"], results["kept"].best
unrolled = model.replace(deq=model.deq.replace(fixed_depth=60))
exact = model.replace(deq=model.deq.replace(rtol=1e-5, atol=1e-5))


def slope(model):
    def loss(ps):
        return lux.losses.cross_entropy(model(validation[0], ps, lux.testmode(best.st))[0], validation[1])

    return jax.jit(jax.grad(loss))(best.ps).data


through = slope(unrolled)
for name, variant in {"tolerance 1e-3": model, "tolerance 1e-5": exact}.items():
    difference = jnp.linalg.norm(slope(variant) - through) / jnp.linalg.norm(through)
    print(f"implicit gradient, {name}: differs by {difference:.1e} from that through 60 iterations")

# %% [markdown]
# ## The test
#
# The parameters are those of the epoch with the best validation. The support vector machine with its usual kernel is
# what scikit-learn's own example takes for these data; it sees the same moved images, and its penalty is chosen on the
# validation.

# %%
machines = [SVC(C=c).fit(*training) for c in (1.0, 10.0)]
machine = max(machines, key=lambda machine: machine.score(*validation))
print("                          parameters  validation    test          steps  radius")
print(f"{'support vector machine':25} {'':10}  {machine.score(*validation):9.1%}  {machine.score(*test):7.1%}")
for name, model in models.items():
    best = results[name].best
    ps, st = best.ps, lux.testmode(best.st)
    on_validation, on_test = (float(accuracy(model, ps, st, data)) for data in (validation, test))
    error = np.sqrt(on_test * (1 - on_test) / len(test[0]))
    steps = "2" if name == "explicit" else model(test[0], ps, st)[1]["deq"]["stats"]["steps"]
    numbers = f"{on_validation:9.1%}  {on_test:7.1%} +- {error:.1%}  {steps:>5}  {radius(model, ps, st, test):6.2f}"
    print(f"{name:25} {ps.size:10}  {numbers}")

# %% [markdown]
# ## What decides the depth
#
# Left, the spectral radius over the epochs. In the middle, the residual on the validation images after a number of
# applications of the cell from zero, and, dashed, by as many steps of Anderson's method. Right, what each net reads if
# its cell is applied that often.


# %%
def after(model, result, **options):
    """The residual and the accuracy on the validation images of a model with other options of its equilibrium."""
    ps, st = result.best.ps, lux.testmode(result.best.st)
    logits, st = model.replace(deq=model.deq.replace(**options))(validation[0], ps, st)
    return float(st["deq"]["stats"]["residual"]), float(jnp.mean(jnp.argmax(logits, -1) == validation[1]))


figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for (name, model), color in zip(models.items(), ("C1", "C0", "C2"), strict=True):
    result = results[name]
    plain = np.array([after(model, result, fixed_depth=depth) for depth in DEPTHS])
    anderson = np.array([after(model, result, fixed_depth=None, max_steps=n, rtol=0.0, atol=1e-6) for n in DEPTHS])
    axes[0].plot(1 + np.arange(len(result.history["validation_radius"])), result.history["validation_radius"], color)
    axes[1].plot(DEPTHS, plain[:, 0], color, label=name)
    axes[1].plot(DEPTHS, anderson[:, 0], color, linestyle="--")
    axes[2].plot(DEPTHS, plain[:, 1], color)
axes[0].axhline(1.0, color="0.4", linestyle=":")
axes[0].set(ylabel="spectral radius", ylim=0)
axes[1].set(ylabel="residual", yscale="log")
axes[1].legend()
axes[2].set(ylabel="accuracy, validation")
for ax, label in zip(axes, ("epoch", "applications of the cell, or steps", "applications of the cell"), strict=True):
    ax.set_xlabel(label)

# %% [markdown]
# ## What to see
#
# All nets read the digits alike, and the support vector machine, which takes a second to fit, is as good or better: on
# small images nobody needs an equilibrium. What differs is what they are. Left alone, the **free** model learns a
# cell with a spectral radius of 0.8 to 0.9, estimated from below, by eight products for a whole batch. After 24
# applications its residual is still about 1, and that of Anderson's method 0.03: its solves end at the limit of 40
# steps, dozens of batches had to be left out, and it is a net of some forty layers rather than an equilibrium, if one
# that reads the same from the eighth on. The **kept** model is solved to 0.001 in ten steps, and by plain iteration in
# some thirteen: its depth is not an option but a tolerance. The **explicit** net, trained at depth 2, is right there
# and nowhere else; nothing kept its radius below 1.
#
# So watch `steps` and `converged` in training, not the loss alone: the loss does not tell these two apart. Next: other
# solvers, backward passes and cells that have a fixed point whatever their weights are
# ([Equilibria](../docs/equilibrium.md)), and the same digits by a [neural ODE](digits_neural_ode.ipynb).
