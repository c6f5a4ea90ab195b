# %% [markdown]
# # A Bayesian neural differential equation of lynx and hare
#
# The pelts of the Hudson's Bay Company again (Elton and Nicholson, *Journal of Animal Ecology* 11, 1942; MacLulich,
# 1937), as in [the lynx and the hare](lynx_hare.ipynb): hares grow, lynxes die off, and a small net corrects how they
# meet. Here nothing is fitted. All constants and weights have priors, and the no-U-turn sampler draws from what the
# years 1900-1914 leave of them, on the one flat vector. At the end there are bands that forecast 1915-1920, and the
# share of the pelts that lie in these.

# %%
import warnings

warnings.filterwarnings("ignore", message="IProgress")  # progress bars of BlackJAX want widgets

import arviz
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from matplotlib import pyplot as plt

import lux_sciml as lux

jax.config.update("jax_enable_x64", True)
lux.plot.style()

# %%
CHAINS, WARMUP, DRAWS = 4, 300, 300
TRAINED = 15  # years: 1900-1914

# %%
table = np.loadtxt("data/lynx_hare.csv", delimiter=",", comments=("#", "year"))
years, us = table[:, 0], jnp.asarray(np.log(table[:, 1:]))  # logarithms of thousands of pelts, hare and lynx
ts = jnp.asarray(years - years[0])

# %% [markdown]
# ## The model
#
# $$\frac{d\log H}{dt} = \alpha \left(1 - e^{n_0} \frac{L}{\bar L}\right),\qquad
#   \frac{d\log L}{dt} = \delta \left(e^{n_1} \frac{H}{\bar H} - 1\right),$$
#
# with a net $n$ of both populations. Growth $\alpha$ and decay $\delta$, and the populations $\bar H$ and $\bar L$ that
# stand still: these constants the data tell apart, where rates of meeting go with growth and decay. The net is linear
# in its weights, a Kolmogorov-Arnold layer of Legendre polynomials; a tanh net of three units took ten times as many
# steps of the sampler's integrator. The solver takes fixed steps of half a year, whose error is looked at below.


# %%
def field(u, p, nets):
    hare, lynx = jnp.exp(u)
    bend = jnp.exp(nets.bend(u - 3.0))
    return jnp.stack([p.growth * (1 - bend[0] * lynx / p.lynx), p.decay * (bend[1] * hare / p.hare - 1)])


net = lux.Chain(jnp.tanh, lux.KANLayer(2, 2, lux.nn.LegendreBasis(3), activation=None))
ude = lux.UDE(field, {"growth": 0.55, "decay": 0.84, "hare": 31.0, "lynx": 20.0}, bend=net)
fixed = dict(stepsize_controller=diffrax.ConstantStepSize(), dt0=0.5, max_steps=64)
node = lux.NeuralODE(ude, output="ys", **fixed)
ps, st = lux.setup(jax.random.key(0), node)
ps = lux.ComponentVector(u0=us[0], sigma=[0.25, 0.25], **ps.tree())


def solve(ps, ts, node=node):
    return node((ps.u0, ts), ps.select("physics", "bend"), st)[0]


# %% [markdown]
# ## Priors, and a density over one vector
#
# Constants are sampled as logarithms, by their log-normal priors. The weights have a narrow prior, which shrinks the
# net to nothing, that is to Lotka and Volterra: without it more wiggles always fit fifteen years better.

# %%
SHRUNK = 0.1
priors = {
    "u0": dist.Normal(us[0], 0.5),
    "sigma": dist.LogNormal(jnp.log(0.25), 0.3),
    "physics.growth": dist.LogNormal(jnp.log(0.55), 0.5),
    "physics.decay": dist.LogNormal(jnp.log(0.84), 0.5),
    "physics.hare": dist.LogNormal(jnp.log(31.0), 0.5),
    "physics.lynx": dist.LogNormal(jnp.log(20.0), 0.5),
    "bend.*": dist.Normal(0.0, SHRUNK),
}


def log_likelihood(ps):
    return jnp.sum(jax.scipy.stats.norm.logpdf(us[:TRAINED], solve(ps, ts[:TRAINED]), ps.sigma))


density = lux.inference.log_posterior(log_likelihood, ps, priors)

# %% [markdown]
# ## Starts near the simpler model
#
# The maximum of the density is one of those wiggles, so no chain starts there. All start near the fit with all weights
# at zero, a third of a standard deviation of its Laplace approximation away; its covariance is the first mass matrix.

# %%
is_net = ps.layout.mask("bend.*")
free = density.start(ps)
free = lux.ComponentVector(jnp.where(is_net, 0.0, free.data), free.layout)
plain = lux.minimize(lambda x: -density(x), free, method="BFGS", trainable=["u0", "sigma", "physics"]).params
precision = lux.hessian(lambda x: -density(x))(plain).data
precision = jnp.where(is_net[:, None] | is_net, 0.0, precision) + jnp.diag(is_net / SHRUNK**2)
laplace = lux.inference.laplace_approximation(plain, lux.ComponentMatrix(precision, plain, plain))

key, near = jax.random.split(jax.random.key(0))
draws = laplace.sample(near, (CHAINS,)).data
starts = density.params(lux.ComponentVector(plain.data + 0.3 * (draws - plain.data), plain.layout))

# %% [markdown]
# ## The draws
#
# All chains at once, by `vmap`.

# %%
posterior = lux.adapters.blackjax.nuts(
    density,
    starts,
    key,
    chains=CHAINS,
    warmup=WARMUP,
    draws=DRAWS,
    covariance=laplace.covariance,
    target_acceptance=0.95,
)
assert np.isfinite(posterior.params.data).all()
stats = posterior.stats
print(f"{stats['n_steps'].mean():.0f} steps of the integrator a draw, {stats['diverging'].sum()} divergent draws")

names = dict(dims={"u0": ["species"], "sigma": ["species"]}, coords={"species": ["hare", "lynx"]})
summary = arviz.summary(
    lux.adapters.arviz.to_arviz(posterior, **names), var_names=["sigma", "physics"], filter_vars="like"
)
print(summary[["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]].to_string())

# %% [markdown]
# ## Checks of the posterior
#
# The fixed steps, against tight tolerances, on twenty draws; and the share of the pelts that lie in the bands of the
# posterior predictive, of the years trained on and of those forecast.

# %%
exact = node.replace(stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8), dt0=None, max_steps=4096)
flat = posterior.flat
some = lux.ComponentVector(flat.data[:: max(len(flat.data) // 20, 1)], flat.layout)
step_error = jnp.max(jnp.abs(jax.vmap(lambda ps: solve(ps, ts) - solve(ps, ts, exact))(some)))
assert step_error < 0.01  # errors of measurement are 0.2
print(f"largest error of the fixed steps, in log(pelts): {step_error:.1e}\n")


def measured(ts):
    return lambda ps, key: solve(ps, ts) + ps.sigma * jax.random.normal(key, (len(ts), 2))


def coverage(draws, level):
    _, low, high = lux.inference.sampled_band(measured(ts), draws, level, key=jax.random.key(1))
    inside = np.asarray((low < us) & (us < high))
    return inside[:TRAINED].mean(), inside[TRAINED:].mean()


print("pelts within the band    1900-1914   1915-1920")
for level in (0.5, 0.9):
    trained, forecast = coverage(flat, level)
    print(f"  of {level:.0%} {trained:22.0%} {forecast:11.0%}")

# %% [markdown]
# ## The forecast

# %%
dense = jnp.linspace(ts[0], ts[-1], 81)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for level in (0.9, 0.5):
    median, low, high = lux.inference.sampled_band(measured(dense), flat, level, key=jax.random.key(1))
    for i in (0, 1):
        ends = jnp.exp(low[:, i]), jnp.exp(high[:, i])
        axes[i].fill_between(years[0] + dense, *ends, color="C0", alpha=0.25, lw=0, label=f"{level:.0%} band")
for i, species in enumerate(("hares", "lynxes")):
    axes[i].plot(years[0] + dense, jnp.exp(median[:, i]), "C0", label="median")
    axes[i].plot(years[:TRAINED], jnp.exp(us[:TRAINED, i]), "ko", label="trained on")
    axes[i].plot(years[TRAINED:], jnp.exp(us[TRAINED:, i]), "ko", markerfacecolor="w", label="forecast")
    axes[i].set(
        title=species, ylabel="thousands of pelts", xticks=years[::5], ylim=(0, 1.6 * float(jnp.exp(us[:, i].max())))
    )
_ = axes[0].legend(ncols=2)

# %% [markdown]
# ## What to see
#
# The chains agree (r-hat near 1, many effective draws), so this is the posterior of this model and these priors. That
# is not the truth: the bands hold the pelts that were trained on at least as often as they say, and too few of the
# forecast, for hares fell lower after 1915 than in any year that the model has seen. A posterior knows what the data
# leave open within its model, not what the model leaves out. Try a wider prior of the weights (`SHRUNK`), or a Student
# distribution of the errors. [Inference](../docs/inference.md) goes from standard errors over profiles to samplers.
