# %% [markdown]
# # First steps
#
# How strong will a concrete be? A small net is fitted to 1030 strength tests of 427 mixes (I.-C. Yeh, *Cement and
# Concrete Research* 28, 1998), compared with two baselines, saved and loaded; then a differential equation is fitted to
# the growth of pines (F. H. Kung, 1986). At the end you know layers, parameters, state, gradients, `lux.fit`,
# `lux.minimize`, and what a neural ODE is.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression

import lux_sciml as lux

lux.plot.style()

# %%
STEPS, MEMBERS, WIDTH = 2000, 8, 64
ODE_STEPS = 300

# %% [markdown]
# ## Layers, parameters, state
#
# A layer is a description: it holds no numbers and prints as the calls that make it.

# %%
model = lux.Chain(
    lux.Dense(8, WIDTH, jnp.tanh),
    lux.Dropout(0.1),
    lux.Dense(WIDTH, WIDTH, jnp.tanh),
    lux.Dense(WIDTH, 1),
)
print(model)

# %% [markdown]
# Its numbers are made by `lux.setup`, from a random key. What is trained is `ps`, one flat vector with names. All else
# that a layer keeps is the state `st`: here the random key of the dropout, and whether the model is in training.

# %%
ps, st = lux.setup(jax.random.key(0), model)
print(ps.table())
print("\nstate of layer_1:", list(st["layer_1"]), st["layer_1"]["mode"])

# %% [markdown]
# A layer is called as a pure function, `y, st = model(x, ps, st)`. The same state gives the same output, dropout
# included; the state that comes back gives another one. `lux.testmode` switches dropout off.

# %%
x = jnp.ones((4, 8))
y, st_next = model(x, ps, st)
print("the same state: ", bool((y == model(x, ps, st)[0]).all()))
print("the next state: ", bool((y == model(x, ps, st_next)[0]).all()))
print("output, dropout off:", model(x, ps, lux.testmode(st))[0][0])

# %% [markdown]
# So plain JAX works on it. A gradient has the names of the parameters.

# %%
gradient = jax.grad(lambda ps: jnp.mean(model(x, ps, st)[0] ** 2))(ps)
print(gradient.layer_3.bias, "among", gradient.size, "elements;", gradient.labels()[:2])

# %% [markdown]
# ## The data
#
# Seven ingredients in kg per cubic meter, the age in days, and the strength in MPa. Many rows are the same mix at
# another age. A split of the *rows* would put a mix both into the training and into the test set, so the *mixes* are
# split: 70% to train, 15% to stop in time, 15% to test, once. Strength grows about with the logarithm of the age.

# %%
table = np.loadtxt("data/concrete.csv", delimiter=",", skiprows=3)
_, mix = np.unique(table[:, :7], axis=0, return_inverse=True)
place = np.random.default_rng(0).permutation(mix.max() + 1)[mix] / (mix.max() + 1)
train, stop, test = place < 0.7, (0.7 <= place) & (place < 0.85), place >= 0.85

features = np.column_stack([table[:, :7], np.log(table[:, 7])])
strength = table[:, 8:]
center, scale = features[train].mean(0), features[train].std(0)
mean, deviation = strength[train].mean(), strength[train].std()
inputs = ((features - center) / scale).astype(np.float32)
targets = ((strength - mean) / deviation).astype(np.float32)
print(len(np.unique(mix)), "mixes;", train.sum(), "rows to train,", stop.sum(), "to stop,", test.sum(), "to test")

# %% [markdown]
# ## A fit
#
# The objective returns the loss and the new state. `lux.fit` goes through the batches, keeps the parameters with the
# best validation, and is given an optimizer of optax. Eight nets from different random keys are one program here,
# by `jax.vmap`: their mean predicts better than one of them, and their spread says where they do not know.


# %%
def objective(model, ps, st, batch):
    x, y = batch
    prediction, st = model(x, ps, st)
    return lux.losses.mse(prediction, y), st


optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS), weight_decay=1e-2)
keys = jax.random.split(jax.random.key(0), MEMBERS)
states = jax.vmap(lambda key: lux.TrainState.create(model, optimizer, key=key))(keys)
result = lux.fit(
    objective,
    states,
    (inputs[train], targets[train]),
    batch_size=64,
    steps=STEPS,
    validation=(inputs[stop], targets[stop]),
)
print(result.message, "- best steps:", result.best.step)


# %%
def predict(ps, st, features):
    """Strengths in MPa by each member: `(members, rows)`."""
    x = jnp.asarray((features - center) / scale, jnp.float32)
    y = jax.vmap(lambda ps, st: model(x, ps, lux.testmode(st))[0][:, 0])(ps, st)
    return mean + deviation * np.asarray(y)


ensemble = predict(result.best.ps, result.best.st, features)

# %% [markdown]
# ## Beside baselines
#
# A linear regression of the same features, and gradient boosting, which is hard to beat on tables. Both are given the
# rows for stopping too.

# %%
known = train | stop
linear = LinearRegression().fit(features[known], strength[known, 0])
boosting = HistGradientBoostingRegressor(random_state=0).fit(features[known], strength[known, 0])


def error(prediction):
    return np.sqrt(np.mean((prediction - strength[test, 0]) ** 2))


print("root mean square error on mixes never seen, MPa")
print(f"  linear regression        {error(linear.predict(features[test])):5.2f}")
print(f"  gradient boosting        {error(boosting.predict(features[test])):5.2f}")
print(f"  one net, on average      {np.mean([error(y[test]) for y in ensemble]):5.2f}")
print(f"  mean of {MEMBERS} nets           {error(ensemble.mean(0)[test]):5.2f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
left.errorbar(strength[test, 0], ensemble.mean(0)[test], ensemble.std(0)[test], fmt="o", linewidth=0.6, alpha=0.7)
left.plot([0, 80], [0, 80], "k", linewidth=0.8)
left.set(xlabel="measured strength (MPa)", ylabel="predicted", title="Mixes never seen")

days = np.geomspace(1, 365, 60)
lasting = [m for m in np.unique(mix[test]) if len(set(table[mix == m, 7])) >= 5][:3]
for color, m in zip(lux.plot.COLORS, lasting, strict=False):
    ingredients = table[mix == m][0, :7]
    curves = predict(result.best.ps, result.best.st, np.column_stack([np.tile(ingredients, (60, 1)), np.log(days)]))
    right.plot(days, curves.mean(0), color=color, label=f"water/cement {ingredients[3] / ingredients[0]:.2f}")
    right.fill_between(days, curves.min(0), curves.max(0), color=color, alpha=0.25, linewidth=0)
    right.plot(*table[mix == m][:, [7, 8]].T, "o", color=color)
right.set(xscale="log", xlabel="age (days)", ylabel="strength (MPa)", title="Three of them while they cure")
legend = right.legend()

# %% [markdown]
# ## Save and load
#
# One file, in the safetensors format, without pickle. What is loaded has its names and predicts the same.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "concrete.safetensors"
    lux.save(path, {"ps": result.best.ps, "st": result.best.st, "center": center, "scale": scale})
    loaded = lux.load(path)
again = predict(loaded["ps"], loaded["st"], features)
print("the same predictions:", np.array_equal(again, ensemble))

# %% [markdown]
# ## A first neural ODE
#
# The heights of 14 pines at six ages. How fast does a pine of height $h$ grow? Let a net say, $dh/dt = f(h)$, and fit
# the *solution* of this equation to the heights. Of every third tree the equation is told the height at three years
# only, and is to tell the rest. A softplus at the end says that trees do not shrink, and a small penalty on the
# parameters keeps the net smooth where there are no data.

# %%
pines = np.loadtxt("data/loblolly.csv", delimiter=",", skiprows=3)
ages, heights = np.array([3.0, 5.0, 10.0, 15.0, 20.0, 25.0]), jnp.asarray(pines[:, 1:].T[..., None], jnp.float32)
third = np.arange(14) % 3 == 2
known, new = heights[:, ~third], heights[:, third]  # (ages, trees, 1)

speed = lux.Chain(lambda h: h / 30 - 1, lux.Dense(1, 8, jnp.tanh), lux.Dense(8, 1, jax.nn.softplus))
node = lux.NeuralODE(speed, ages, output="ys")
ps, st = lux.setup(jax.random.key(0), node)


def loss(ps):
    return lux.losses.mse(node(known[0], ps, st)[0], known) + 0.1 * jnp.mean(ps.data**2)


fit = lux.minimize(loss, ps, method="L-BFGS-B", max_steps=ODE_STEPS)
print(f"{fit.steps} steps, loss {fit.value:.3f}")

# %% [markdown]
# That is all: any layer is a vector field. The textbook's curve for these data, $h = A - (A - h_0) e^{-k (t - t_0)}$,
# is the equation $dh/dt = k (A - h)$, a straight line: a layer too, `lux.Dense(1, 1)`.

# %%
line = lux.Chain(lambda h: h / 30 - 1, lux.Dense(1, 1))
line_node = lux.NeuralODE(line, ages, output="ys")
line_start, _ = lux.setup(jax.random.key(0), line_node)
line_fit = lux.minimize(
    lambda ps: lux.losses.mse(line_node(known[0], ps, st)[0], known), line_start, method="L-BFGS-B", max_steps=ODE_STEPS
)
fits = {"net": (node, fit.params), "straight line": (line_node, line_fit.params)}
for name, (layer, params) in fits.items():
    errors = [lux.losses.mse(layer(h[0], params, st)[0][1:], h[1:]) ** 0.5 for h in (known, new)]
    print(f"{name:14} root mean square error {errors[0]:.2f} feet, on trees never seen {errors[1]:.2f} feet")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
ts, h = np.linspace(3.0, 25.0, 60), np.linspace(3.5, 62.0, 100, dtype=np.float32)[:, None]
left.plot(ages, new[..., 0], "ko")
right.plot((heights[1:] + heights[:-1])[..., 0] / 2, np.diff(heights[..., 0], axis=0) / np.diff(ages)[:, None], "k.")
for i, (name, (layer, params)) in enumerate(fits.items()):
    curves, _ = layer.replace(ts=ts)(new[0], params, st)
    lines = left.plot(ts, curves[..., 0], color=f"C{i}", linestyle=("-", "--")[i], linewidth=1)
    lines[0].set_label(name)
    right.plot(h, (speed, line)[i](h, params, st)[0], color=f"C{i}", linestyle=("-", "--")[i], label=name)
left.set(xlabel="age (years)", ylabel="height (feet)", title="Trees never seen")
right.set(xlabel="height (feet)", ylabel="growth (feet per year)", title="What was learned")
for axis in (left, right):
    axis.legend()

# %% [markdown]
# ## What to see
#
# * **Concrete.** The nets and gradient boosting are about equal, and the linear regression is far behind. On other
#   splits of the mixes boosting and the mean of the nets take turns: with 700 rows neither is better. Papers that split
#   the rows report 5.2 to 6.0 MPa for small nets (Hernández-Lobato and Adams 2015; Gal and Ghahramani 2016;
#   Lakshminarayanan and others 2017), an easier task. The bands are the spread of the nets, which is smaller than their
#   error: they leave out the scatter of the measurements themselves.
# * **Pines.** The net learned that a young tree speeds up before it slows down, which the straight line cannot say. The
#   points in the right picture are slopes between two measurements; the net was never shown them. What is left of the
#   error is not the curve's: trees of the same height at three years come from different seeds.
# * **Next.** [Training](../docs/training.md) has all that `lux.fit` does, [minimize](../docs/minimize.md) bounds and
#   several starts, [state](../docs/state.md) what layers keep; [flat_vector.ipynb](flat_vector.ipynb) is about the
#   parameters, [spiral.ipynb](spiral.ipynb) about fitting neural ODEs well.
