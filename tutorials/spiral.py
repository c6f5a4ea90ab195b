# %% [markdown]
# # A spiral, by three optimizers
#
# The example that made neural ODEs known: a spiral, $du/dt = u^3 A$, whose equation a net is to find from the
# trajectory alone (Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018). The
# same net is fitted by Adam, by L-BFGS, and by Levenberg-Marquardt. At the end you know which one to take, how to put
# them in turn, and how to judge what was learned where there are no data.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import lux_sciml as lux

jax.config.update("jax_enable_x64", True)  # second-order methods use more digits than float32 has
lux.plot.style()

# %%
WIDTH, WARM_UP, ADAM, LBFGS, LM = 32, 300, 2000, 1000, 40

# %% [markdown]
# ## The data
#
# The spiral from $t = 0$ to 10, without noise, at 201 times; what comes after, to $t = 25$, is kept for the test. One
# solve through all of the data would be a bad start: the field is wrong at first, errors grow along the trajectory, and
# the loss is full of valleys. So, as in the paper, the data are cut into short pieces. Each piece starts at a known
# point; all of them are one batch, and one solve.

# %%
matrix = jnp.array([[-0.1, 2.0], [-2.0, -0.1]])


def spiral(u):
    return u**3 @ matrix


times = jnp.linspace(0.0, 25.0, 501)
start = jnp.array([2.0, 0.0])
truth, _ = lux.NeuralODE(spiral, times, output="ys", rtol=1e-9, atol=1e-11)(start, {}, {})
known = 201
pieces = truth[np.arange(0, known - 1, 8)[:, None] + np.arange(9)]  # 25 pieces of 9 points
print(pieces.shape)

# %%
model = lux.Chain(lambda u: u**3, lux.Dense(2, WIDTH, jnp.tanh), lux.Dense(WIDTH, 2))
node = lux.NeuralODE(model, times[:9], output="ys")
ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)


def residuals(ps):
    ys, _ = node(pieces[:, 0], ps, st)  # (times, pieces, 2)
    return ys[1:] - jnp.moveaxis(pieces, 1, 0)[1:]


def loss(ps):
    return jnp.mean(residuals(ps) ** 2)


print(model, "\n\nloss at the start:", f"{loss(ps):.2e}")

# %% [markdown]
# ## Three ways
#
# All begin with the same 300 steps of Adam, for second-order methods want to begin near a valley. Then Adam goes on,
# with a learning rate that falls to zero; or L-BFGS takes over, which learns the curvature from gradients; or
# Levenberg-Marquardt, which is given the residuals one by one, and has the curvature from their Jacobian.

# %%
warm_up = lux.minimize(loss, ps, method=optax.adam(0.02), max_steps=WARM_UP)
adam = lux.minimize(loss, warm_up.params, method=optax.adam(optax.cosine_decay_schedule(0.01, ADAM)), max_steps=ADAM)
lbfgs = lux.minimize(loss, warm_up.params, method="L-BFGS-B", tol=1e-12, max_steps=LBFGS)
lm = lux.least_squares(residuals, warm_up.params, max_steps=LM)

# %% [markdown]
# A step of Adam or L-BFGS is about one gradient; one of Levenberg-Marquardt is a Jacobian of 400 residuals by 162
# parameters, and a linear system. The numbers of steps are such that the three take about as long, compiling included.

# %%
fits = {
    "Adam": (adam.params, [warm_up.history, adam.history]),
    "L-BFGS": (lbfgs.params, [warm_up.history, lbfgs.history]),
    "Levenberg-Marquardt": (lm.params, [warm_up.history, 2 * lm.history / lm.residuals.size]),  # it has half the sum
}
whole = node.replace(ts=times)
paths = {name: whole(start, params, st)[0] for name, (params, _) in fits.items()}


def error(path, rows):
    return jnp.sqrt(jnp.mean((path - truth)[rows] ** 2))


print(f"{'':20} {'steps':>5}  {'loss':>8}  error of one solve: t <= 10  to t = 25")
for name, (_, stages) in fits.items():
    inside, beyond = error(paths[name], slice(known)), error(paths[name], slice(known, None))
    print(f"{name:20} {len(stages[1]) - 1:5}  {stages[1].min():8.1e}{inside:29.1e}{beyond:11.1e}")

# %% [markdown]
# ## Losses, field, forecast

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
for name, (_, stages) in fits.items():
    lux.plot.losses(stages, ax=left)
    left.lines[-1].set_label(name)
left.legend(handles=[line for line in left.lines if line.get_label() in fits])
left.set(title="The dashed line: where the second stage begins")
lux.plot.phase_portrait(lambda u: model(u, lm.params, st)[0], ((-2.2, 2.2), (-2.2, 2.2)), ax=right)
right.plot(*truth[:known:3].T, "k.", label="data")
right.plot(*paths["Levenberg-Marquardt"].T, label="one solve, t = 0 to 25", linewidth=1)
right.set(title="The field that Levenberg-Marquardt learned", xlabel="$u_0$", ylabel="$u_1$")
legend = right.legend(loc="lower right", fontsize="small", frameon=True)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
left.plot(times[:known:4], truth[:known:4, 0], "k.", label="data")
left.plot(times, truth[:, 0], color="k", linewidth=0.5)
for name, path in paths.items():
    left.plot(times, path[:, 0], "--", label=name, linewidth=1.2)
    right.semilogy(times[1:], jnp.linalg.norm(path - truth, axis=1)[1:], label=name)
left.set(xlabel="time", ylabel="$u_0$", title="Past the data, after t = 10")
right.set(xlabel="time", ylabel="distance from the truth", title="How far off")
right.axvline(10.0, color="0.6", linestyle=":")
for axis in (left, right):
    axis.legend(fontsize="small")

# %% [markdown]
# Does the field hold where no trajectory went? On a grid of the square that the spiral winds through, beside the truth:

# %%
grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-2.0, 2.0, 41)] * 2), -1).reshape(-1, 2)
near = jnp.min(jnp.linalg.norm(grid[:, None] - truth[None, :known], axis=-1), axis=1) < 0.15
for name, (params, _) in fits.items():
    off = jnp.linalg.norm(model(grid, params, st)[0] - spiral(grid), axis=1)
    print(f"{name:20} mean error of the field: {off[near].mean():.1e} near data, {off[~near].mean():.1e} elsewhere")
print(f"{'the field itself':20} mean size:               {jnp.linalg.norm(spiral(grid), axis=1).mean():.1e}")

# %% [markdown]
# ## What to see
#
# * **The methods.** In about the same time Levenberg-Marquardt ends four orders of magnitude below L-BFGS, and L-BFGS
#   one below Adam. For a sum of squares with some hundreds of parameters it is the one to take. With noise in the data
#   none of this counts once the loss is that of the noise: all that differs then is the time to come there.
# * **The field.** The loss is of short pieces; the test is one solve through all of the data and 15 units of time
#   beyond, where the spiral winds on inward. Away from the data the field is 10 to 60 times worse: a low loss says
#   nothing of places where no trajectory went.
# * **Try** Levenberg-Marquardt from the random weights, without Adam: it stays higher up. Leave out `u**3`, and the net
#   has to find the cubes as well; add noise; or fit all data in one solve, and see what
#   [multiple shooting](multiple_shooting.ipynb) is for.
# * **Next.** [Fitting](../docs/fitting.md) compares methods on other problems, [choosing](../docs/choosing.md) says
#   which solver and which optimizer to take.
