# %% [markdown]
# # A latent ODE for irregular series
#
# Each of 1,000 oscillators is seen at some fifteen random times, with noise, and with values missing: less than one
# period of each. How does it go on? The model is that of Chen et al. (2018) and Rubanova, Chen and Duvenaud (2019),
# the system van der Pol's oscillator (1926), which no model here is told. At the end you will have trained a latent
# ODE on padded series, have forecasts with bands, know how far the bands can be trusted, and have compared it with the
# same model with a recurrent net in place of the equation.

# %%
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import lux_sciml as lux

# %%
lux.plot.style()
SERIES, STEPS, BATCH, DRAWS = 1000, 2500, 64, 100
LATENT, HIDDEN, WIDTH, LEARNING_RATE = 4, 32, 48, 1e-2
PAST, END, BEYOND = 4.0, 8.0, 16.0
NOISE, MISSING = 0.2, 0.2

# %% [markdown]
# ## The data
#
# The oscillator, $\ddot x = (1 - x^2)\, \dot x - x$, has a period of 6.7. It starts anywhere and comes to its cycle.
# Position and velocity are seen at random times, some 15 in four units of time. Each value has noise of standard
# deviation 0.2, and is missing with probability 0.2, independently. The encoder is given what was seen up to the time
# 4, and the loss is of all up to 8. The series of the test go on to 16, where nothing was ever trained.
#
# `pad` makes one record of series of unequal length. With `start=0.0` each begins at the time 0, as a time without an
# observation: there the latent path starts. See [Series](../docs/series.md).


# %%
def van_der_pol(u):
    x, v = u[..., 0], u[..., 1]
    return jnp.stack([v, (1 - x**2) * v - x], -1)


def oscillators(rng, n):
    """Curves as functions of times `(n, times)` from random starts at the time -1, `(n, times, 2)`."""
    exact, start = lux.NeuralODE(van_der_pol, batching="vmap", output="ys"), rng.uniform(-2.5, 2.5, (n, 2))
    return lambda ts: np.asarray(exact((jnp.asarray(start, jnp.float32), with_start(ts)), {}, {})[0])[:, 1:]


def with_start(ts):
    return jnp.concatenate([jnp.full((len(ts), 1), -1.0), ts], 1)


def observe(rng, n, end):
    """Series up to the time 4 and up to the end, and the curves behind them."""
    curve, count = oscillators(rng, n), round(5 * end)
    times = np.sort(rng.uniform(0, end, (n, count))).astype(np.float32)
    values = (curve(times) + NOISE * rng.normal(size=(n, count, 2))).astype(np.float32)
    values[rng.random(values.shape) < MISSING] = np.nan
    seen = rng.random(times.shape) < 0.75

    def padded(chosen):
        pairs = [(t[k], x[k]) for t, x, k in zip(times, values, chosen, strict=True)]
        return lux.diffeq.pad(pairs, start=0.0, length=count + 1)

    return padded(seen & (times < PAST)), padded(seen), curve


rng = np.random.default_rng(0)
*training, _ = observe(rng, SERIES, END)
*validation, _ = observe(rng, SERIES // 4, END)
*test, truth = observe(rng, SERIES // 4, BEYOND)
print(training[0].lengths.mean() - 1, "times up to 4,", training[1].lengths.mean() - 1, "up to 8, on average")

# %% [markdown]
# ## The model
#
# The encoder, a recurrent net from the last observation back to the first, is told the gaps between the times, the
# values and which of them are missing. It returns mean and variance of where the latent path starts. From there an
# ordinary equation is solved through the times of each series, and a linear layer reads it out. The baseline keeps
# encoder, decoder and loss, and has a recurrent cell in place of the equation, which goes from one time to the next,
# and is told the gaps too.


# %%
class RecurrentPath(lux.Container):
    """A path from its start, as the states of a recurrent cell that is told the gaps between the times."""

    start: lux.Layer
    rnn: lux.Layer

    def forward(self, x, ps, st):
        z0, ts = x
        ts = ts.times if isinstance(ts, lux.diffeq.Series) else jnp.broadcast_to(ts, (len(z0), len(ts)))
        gaps = jnp.diff(ts, prepend=ts[:, :1])[..., None]
        (carry,), st = self.run(ps, st, start=z0)
        (zs,), st = self.run(ps, st, rnn=(gaps, carry, None))
        return jnp.moveaxis(zs, 1, 0), st  # (times, series, features)


def latent(dynamics, features):
    encoder = lux.Chain(
        lux.IrregularSequence(),
        lux.Recurrence(lux.GRUCell(5, HIDDEN), reverse=True),
        lux.Dense(HIDDEN, 2 * LATENT),
    )
    return lux.LatentODE(encoder, dynamics, lux.Dense(features, 2))


field = lux.MLP(LATENT, (WIDTH, WIDTH), LATENT, activation=jnp.tanh)
fixed = dict(dt0=0.4, stepsize_controller=diffrax.ConstantStepSize())
node = lux.NeuralODE(field, batching="vmap", output="ys", **fixed)
models = {
    "latent ODE": latent(node, LATENT),
    "recurrent": latent(
        RecurrentPath(lux.Dense(LATENT, HIDDEN), lux.Recurrence(lux.GRUCell(1, HIDDEN), return_sequence=True)), HIDDEN
    ),
}

# %% [markdown]
# ## Training
#
# `elbo` is what a variational autoencoder maximizes: the likelihood of what was observed, less the divergence of the
# start from a standard normal distribution. NaN and padding do not count.


# %%
def objective(model, ps, st, batch):
    past, whole = batch
    path, st = model((past, whole), ps, st)  # the second is asked for at its times
    return -lux.diffeq.elbo(path, whole, noise=NOISE), st


def train(model):
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(100.0), optax.adam(schedule))
    state = lux.TrainState.create(model, optimizer, key=jax.random.key(0))
    options = dict(validation=tuple(validation), validate_every=max(STEPS // 10, 1))
    return lux.fit(objective, state, tuple(training), batch_size=BATCH, steps=STEPS, **options)


results = {name: train(model) for name, model in models.items()}
for name, result in results.items():
    print(f"{name:10}  {result.best.ps.size:6,} parameters, validation {result.best.value:.1f}")

# %% [markdown]
# ## The test: curves, forecasts, bands
#
# For each series, draws of the start from what the encoder says of it, each with its curve, have a mean, the forecast,
# and a spread. The spread knows nothing of the error of the learned equation, so the validation says by how much it is
# to be widened: until, with the noise, 95 % of the points there are within 1.96 standard deviations. Forecast and
# bands of the test are compared with the curve without noise, at random times as in training.


# %%
def draws(model, best, past, ts):
    """Curves at some times, `(DRAWS, series, times, 2)`."""

    @jax.jit
    def draw(key):
        return model((past, ts), best.ps, lux.update_state(best.st, "key", key))[0].xs

    return np.stack([draw(key) for key in jax.random.split(jax.random.key(1), DRAWS)])


def widening(xs, series):
    """What the spread of the draws is multiplied by, so that 95 % of the points are in the band of curve and noise."""
    seen = ~np.isnan(series.values)
    error, spread = np.abs(series.values - xs.mean(0))[seen], xs.std(0)[seen]
    scales = np.linspace(1.0, 8.0, 141)
    held = [np.mean(error < 1.96 * np.hypot(scale * spread, NOISE)) for scale in scales]
    return scales[min(np.searchsorted(held, 0.95), len(scales) - 1)]


past, whole = test
ts, curve, widened = whole.times, truth(whole.times), {}
ranges = {"up to 4": ts < PAST, "4 to 8": (ts >= PAST) & (ts < END), "8 to 16": ts >= END}
print(" " * 14 + "RMSE".ljust(30) + "share of the curve in the band of 95 %")
print(" " * 12 + 2 * ("".join(f"{name:>9}" for name in ranges) + "   "))
for name, model in models.items():
    xs = draws(model, results[name].best, past, whole)
    widened[name] = widening(draws(model, results[name].best, *validation), validation[1])
    errors, spread = np.abs(xs.mean(0) - curve), xs.std(0)
    chosen = [whole.mask & part for part in ranges.values()]
    rms = [np.sqrt(np.mean(errors[part] ** 2)) for part in chosen]
    plain, wide = ([np.mean((errors < 1.96 * k * spread)[part]) for part in chosen] for k in (1, widened[name]))
    for label, shares in (("as drawn", plain), (f"widened x {widened[name]:.1f}", wide)):
        print(f"{name:12}" + "".join(f"{x:9.3f}" for x in rms) + "   " + "".join(f"{x:9.0%}" for x in shares), label)

# %% [markdown]
# Two series of the test, the position above and the velocity below. What was seen ends at the first dotted line, what
# was trained at the second.

# %%
grid = np.linspace(0.0, BEYOND, 121, dtype=np.float32)
shown, exact = past[:2], truth(np.broadcast_to(grid, (len(past), len(grid))))
figure, axes = plt.subplots(2, 2, figsize=(9, 4), sharex=True)
for color, (name, model) in zip(("C0", "C1"), models.items(), strict=True):
    xs = draws(model, results[name].best, shown, grid)
    mean, half = xs.mean(0), 1.96 * widened[name] * xs.std(0)
    for (i, j), ax in np.ndenumerate(axes.T):
        for part, line in ((grid <= PAST, "-"), (grid >= PAST, "--")):
            ax.plot(grid[part], mean[i, part, j], line, color=color, label=name if line == "-" else None)
        lower, upper = (mean + sign * half for sign in (-1, 1))
        ax.fill_between(grid, lower[i, :, j], upper[i, :, j], color=color, alpha=0.25, linewidth=0)
for (i, j), ax in np.ndenumerate(axes.T):
    ax.plot(grid, exact[i, :, j], color="0.5", linewidth=1, label="truth")
    ax.plot(shown.times[i], shown.values[i, :, j], "k.")
    ax.axvline(PAST, color="0.4", linestyle=":")
    ax.axvline(END, color="0.4", linestyle=":")
axes[0, 0].set(ylabel="position")
axes[1, 0].set(ylabel="velocity")
for ax in axes[1]:
    ax.set_xlabel("time")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
for ax in axes.flat:
    ax.set_ylim(-4, 4)

# %% [markdown]
# ## What to see
#
# From some fifteen noisy points, less than a period, the latent ODE tells the next two periods with an error as large
# as the noise of a single point or less, also where nothing was trained: the learned equation has a limit cycle, and
# goes on along it. The recurrent net is as good where the data are, falls behind later, and has another weakness,
# which the figure shows: what it says at a time depends on the times that it is asked for. The grid of the figure is
# denser than the times of training, and its curves come early. An equation has one curve for all grids.
#
# As drawn, bands of 95 % hold half of the truth: the encoder is too sure of the start, and the draws know nothing of
# the error of the learned equation. Widened by what the validation says, which reaches to 8, they hold nine tenths of
# it, up to 16; those of the recurrent net less the farther they go. Where curves leave the region of the data, a net
# has nothing to go on with, and no band is to be trusted.
#
# Next: an `ODERNN` as the encoder, a `LatentSDE` where the system itself is noisy, and delays:
# [Series](../docs/series.md); to classify such series, a [neural CDE](neural_cde.ipynb).
