# %% [markdown]
# # A Bayesian universal differential equation of lynx and hare
#
# The record of the fur trade again, as in lynx_hare.py: hares grow, lynxes die off, and how they meet is not quite
# what Lotka and Volterra wrote, so that a small net corrects both rates of meeting. Here nothing is fitted: all
# constants and weights have priors, and the no-U-turn sampler draws from what the years 1900-1914 leave of them. The
# draws forecast 1915-1920, with bands, and how many of the pelts lie in these is told as it is.
#
# What makes it run in minutes is the geometry:
#
# * constants are sampled as logarithms, by their log-normal priors, and are those that the data tell apart: in place
#   of the rates of meeting, which go with growth and decay, the populations at which hares and lynxes stand still;
# * the net is small and linear in its weights, a Kolmogorov-Arnold layer of Legendre polynomials of both populations:
#   a tanh net of three units took ten times as many steps of the integrator for a draw;
# * a narrow prior shrinks it to nothing: to Lotka and Volterra. Without that more wiggles always fit fifteen years
#   better, and the densest point of all is one of those;
# * therefore no chain starts at the maximum of the density: all start near the fit of Lotka and Volterra's model, with
#   deviations by its Laplace approximation, whose covariance is the first mass matrix. Not farther: a chain that began
#   where constants and weights together miss the data stayed where errors of measurement explain them all;
# * chains run at once, by `vmap`; the solver takes fixed steps of half a year, whose error is checked below.
#
# `python tutorials/bayesian_lynx_hare.py`; `--short` makes a run of seconds, for tests, that proves nothing.

# %%
import argparse
import time
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import lux_sciml as lux

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DATA = Path(__file__).parent / "data" / "lynx_hare.csv"
TRAINED = 15  # years: 1900-1914
STEP = 0.5  # years
SHRUNK = 0.1  # the standard deviation of the prior of weights
NEAR = 0.3  # of the width of the Laplace approximation: how far apart the chains start


def load():
    """Years, times since the first one, and the logarithms of the thousands of pelts, `(years, 2)`."""
    table = np.loadtxt(DATA, delimiter=",", comments=("#", "year"))
    return table[:, 0].astype(int), jnp.asarray(table[:, 0] - table[0, 0]), jnp.asarray(np.log(table[:, 1:]))


# %% [markdown]
# ## The model
#
# In logarithms, `d log H / dt = growth (1 - e^(n_0) L / lynx)`, `d log L / dt = decay (e^(n_1) H / hare - 1)`, with a
# net `n` of both.


# %%
def field(u, p, nets):
    hare, lynx = jnp.exp(u)
    bend = jnp.exp(nets.bend(u - 3.0))
    return jnp.stack([p.growth * (1 - bend[0] * lynx / p.lynx), p.decay * (bend[1] * hare / p.hare - 1)])


def build(us):
    """The layer, its state, and parameters to start from: initial values, errors of measurement, constants, weights."""
    net = lux.Chain(jnp.tanh, lux.KANLayer(2, 2, lux.nn.LegendreBasis(3), activation=None))
    ude = lux.UDE(field, {"growth": 0.55, "decay": 0.84, "hare": 31.0, "lynx": 20.0}, bend=net)
    fixed = dict(stepsize_controller=diffrax.ConstantStepSize(), dt0=STEP, max_steps=64)
    node = lux.NeuralODE(ude, output="ys", **fixed)
    ps, st = lux.setup(jax.random.key(0), node)
    return node, st, lux.ComponentVector(u0=us[0], sigma=[0.25, 0.25], **ps.tree())


def priors(us):
    import numpyro.distributions as dist

    return {
        "u0": dist.Normal(us[0], 0.5),
        "sigma": dist.LogNormal(jnp.log(0.25), 0.3),
        "physics.growth": dist.LogNormal(jnp.log(0.55), 0.5),
        "physics.decay": dist.LogNormal(jnp.log(0.84), 0.5),
        "physics.hare": dist.LogNormal(jnp.log(31.0), 0.5),
        "physics.lynx": dist.LogNormal(jnp.log(20.0), 0.5),
        "bend.*": dist.Normal(0.0, SHRUNK),
    }


# %% [markdown]
# ## Starts and the first mass matrix
#
# The simpler model: the same density, with all weights at zero. Constants and weights are taken to be independent.


# %%
def starts(density, ps, key, chains):
    """Parameters near Lotka and Volterra, `(chains, n)`, and a covariance of the free vector."""
    free = density.start(ps)
    net = ps.layout.mask("bend.*")
    free = lux.ComponentVector(jnp.where(net, 0.0, free.data), free.layout)
    fit = lux.minimize(lambda free: -density(free), free, method="BFGS", trainable=["u0", "sigma", "physics"])
    precision = lux.hessian(lambda free: -density(free))(fit.params).data
    constants = jnp.where(net[:, None] | net, 0.0, precision)
    precision = lux.ComponentMatrix(constants + jnp.diag(net / SHRUNK**2), free, free)
    laplace = lux.inference.laplace_approximation(fit.params, precision)
    draws = laplace.sample(key, (chains,)).data
    near = lux.ComponentVector(fit.params.data + NEAR * (draws - fit.params.data), free.layout)
    return density.params(near), laplace.covariance


# %% [markdown]
# ## The run


# %%
def coverage(lower, upper, us):
    inside = (lower < us) & (us < upper)
    return float(jnp.mean(inside[:TRAINED])), float(jnp.mean(inside[TRAINED:]))


def plot_bands(path, years, ts, us, bands):
    """Populations: the record, and the bands of the posterior predictive."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for i, (axis, species) in enumerate(zip(axes, ("hare", "lynx"), strict=True)):
        for level, (median, lower, upper) in bands.items():
            ends = (jnp.exp(lower[:, i]), jnp.exp(upper[:, i]))
            lux.plot.band(
                float(years[0]) + ts, jnp.exp(median[:, i]), ends, ax=axis, label=f"{level:.0%} of measurements"
            )
        axis.plot(years[:TRAINED], jnp.exp(us[:TRAINED, i]), "ko", label="pelts, trained on")
        axis.plot(years[TRAINED:], jnp.exp(us[TRAINED:, i]), "wo", markeredgecolor="k", label="pelts, forecast")
        axis.set(ylabel=f"{species} (thousands)", ylim=(0, 2.5 * float(jnp.exp(us[:, i].max()))))
    axes[0].legend(ncols=2, fontsize="small")
    axes[1].set_xticks(years[::5])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(folder, chains=4, warmup=500, draws=500):
    """Sample, report, plot. Returns the summary of ArviZ, the draws and the coverage of the bands."""
    import arviz

    start = time.perf_counter()
    years, ts, us = load()
    node, st, ps = build(us)

    def solve(ps, ts):
        return node((ps.u0, ts), ps.select("physics", "bend"), st)[0]

    def log_likelihood(ps):
        return jnp.sum(jax.scipy.stats.norm.logpdf(us[:TRAINED], solve(ps, ts[:TRAINED]), ps.sigma))

    density = lux.inference.log_posterior(log_likelihood, ps, priors(us))
    first, second, third = jax.random.split(jax.random.key(0), 3)
    points, covariance = starts(density, ps, first, chains)
    posterior = lux.adapters.blackjax.nuts(
        density,
        points,
        second,
        chains=chains,
        warmup=warmup,
        draws=draws,
        covariance=covariance,
        target_acceptance=0.95,
    )
    seconds = time.perf_counter() - start
    stats = posterior.stats
    print(f"{chains} chains of {warmup} + {draws} steps in {seconds:.0f} s, compiling included")
    print(f"{stats['n_steps'].mean():.0f} steps of the integrator a draw, {stats['diverging'].sum()} divergent draws")

    data = lux.adapters.arviz.to_arviz(posterior, dims={"u0": ["species"]}, coords={"species": ["hare", "lynx"]})
    summary = arviz.summary(data, var_names=["u0", "sigma", "physics"], filter_vars="like")
    print(summary.to_string())

    flat = posterior.flat
    exact = node.replace(stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8), dt0=None, max_steps=4096)
    some = lux.ComponentVector(flat.data[:: max(len(flat.data) // 20, 1)], flat.layout)
    coarse = jax.vmap(lambda ps: solve(ps, ts))(some)
    fine = jax.vmap(lambda ps: exact((ps.u0, ts), ps.select("physics", "bend"), st)[0])(some)
    print(f"largest error of the fixed steps, in log(pelts): {float(jnp.max(jnp.abs(coarse - fine))):.1e}")

    def measured(ts):
        return lambda ps, key: solve(ps, ts) + ps.sigma * jax.random.normal(key, (len(ts), 2))

    covered = {}
    for level in (0.5, 0.9):
        _, lower, upper = lux.inference.sampled_band(measured(ts), flat, level, key=third)
        covered[level] = coverage(lower, upper, us)
        trained, forecast = covered[level]
        print(f"the {level:.0%} band holds {trained:.0%} of the pelts of 1900-1914 and {forecast:.0%} of 1915-1920")
    dense = jnp.linspace(ts[0], ts[-1], 81)
    bands = {level: lux.inference.sampled_band(measured(dense), flat, level, key=third) for level in (0.9, 0.5)}
    plot_bands(folder / "bayesian_forecast.png", years, dense, us, bands)
    print(f"the plot is {(folder / 'bayesian_forecast.png').resolve()}")
    return summary, posterior, covered


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the plot")
    parser.add_argument("--short", action="store_true", help="few steps")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    run(given.output, **(dict(chains=2, warmup=20, draws=10) if given.short else {}))
