# %% [markdown]
# # The lynx and the hare: when a learned term pays
#
# Hares grow, lynxes die off, and lynxes eat hares: how many, as a function of how many there are? Lotka and Volterra
# say in proportion. A universal equation lets a small net say it, and keeps the rest. The data are the pelts of the
# Hudson's Bay Company, 1900-1920 (Elton and Nicholson, *Journal of Animal Ecology* 11, 1942; MacLulich, 1937): fifteen
# years are fitted, six are forecast and looked at once. There the plain equations forecast better, and this notebook
# says why; beside it is a case where the net wins, and where a formula can be read from it.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import sympy
from matplotlib import pyplot as plt

import lux_sciml as lux

jax.config.update("jax_enable_x64", True)
lux.plot.style()

# %%
STEPS, WIDTH = 60, 4
TRAINED = 15  # years of pelts: 1900-1914

# %%
table = np.loadtxt("data/lynx_hare.csv", delimiter=",", comments=("#", "year"))
years, pelts = table[:, 0], jnp.asarray(np.log(table[:, 1:]))  # logarithms of thousands of pelts, hare and lynx
ts = jnp.asarray(years - years[0])

# %% [markdown]
# ## The model
#
# $$\frac{d\log H}{dt} = \alpha - \frac{f(H)}{H} L,\qquad \frac{d\log L}{dt} = \varepsilon f(H) - \delta,
#   \qquad f(H) = \beta H\, e^{n(H) - n(30)}.$$
#
# $f$ is the functional response: what one lynx eats in a year. Without the net $n$ these are the equations of Lotka and
# Volterra. The net is held at one population, so that $\beta$ keeps its meaning. The start is fitted too.


# %%
def response(hare, p, net):
    """log of f(H) / H."""
    bend = net(jnp.log(hare / 30.0)[None])[0] - net(jnp.zeros(1))[0]
    return jnp.log(p.beta) + bend


def field(u, p, nets):
    hare, lynx = jnp.exp(u)
    each = jnp.exp(response(hare, p, nets.bend))
    return jnp.stack([p.alpha - each * lynx, p.epsilon * each * hare - p.delta])


net = lux.Chain(lux.Dense(1, WIDTH, jnp.tanh), lux.Dense(WIDTH, 1, init_weight=lux.initializers.Normal(0.05)))
constants = {"alpha": 0.55, "beta": 0.027, "epsilon": 1.0, "delta": 0.84}
node = lux.NeuralODE(lux.UDE(field, constants, bend=net), output="ys", max_steps=512)
ps, st = lux.setup(jax.random.key(1), node)
ps = lux.ComponentVector(start=pelts[0], **ps.tree())


def solve(ps, ts):
    return node((ps.start, ts), ps.select("physics", "bend"), st)[0]


# %% [markdown]
# Fits are by least squares, in logarithms. The weights of the net have a normal prior, which are residuals too: with
# errors of 0.2 of the pelts, a weight of size one costs as much as a residual of one error.


# %%
def fit(ts, us, error, learn):
    """The fit of Lotka and Volterra's equations, or, where `learn`, of the universal one from there on."""

    def residual(ps):
        return {"data": (solve(ps, ts) - us) / error, "prior": ps.bend.data}

    plain = ps.replace(start=us[0]).at["bend"].multiply(0.0)
    result = lux.least_squares(residual, plain, trainable=["start", "physics"], max_steps=STEPS)
    if learn:
        begin = result.params.replace(bend=ps.bend)
        result = lux.least_squares(residual, begin, max_steps=STEPS)
    return result


fits = {
    "Lotka-Volterra": fit(ts[:TRAINED], pelts[:TRAINED], 0.2, learn=False),
    "universal": fit(ts[:TRAINED], pelts[:TRAINED], 0.2, learn=True),
}


# %%
def report(fits, ts, us, trained):
    print("root mean square errors of the logarithms      fitted   forecast")
    for name, result in fits.items():
        errors = np.asarray(solve(result.params, ts) - us) ** 2
        print(f"  {name:<42} {np.sqrt(errors[:trained].mean()):8.3f} {np.sqrt(errors[trained:].mean()):10.3f}")
    print("\nconstants, 95% intervals" + "".join(f"{name:>26}" for name in fits))
    ends = {name: result.confidence_intervals(0.95, absolute=True) for name, result in fits.items()}
    for constant in constants:
        row = (tuple(float(end.physics[constant]) for end in ends[name]) for name in fits)
        print(f"  {constant:<22}" + "".join(f"      ({low:8.4f}, {high:8.4f})" for low, high in row))


report(fits, ts, pelts, TRAINED)

# %% [markdown]
# The universal equation fits the fifteen years more closely, and forecasts the next six worse. The bands say why.


# %%
def eaten(ps, hares):
    """f(H), by the fitted parameters."""
    call = lambda x: net(x, ps.bend, st["bend"])[0]  # noqa: E731
    return jax.vmap(lambda hare: hare * jnp.exp(response(hare, ps.physics, call)))(hares)


def plot(fits, ts, us, trained, start, unit):
    dense, axes = jnp.linspace(ts[0], ts[-1], 161), plt.subplots(1, 3, figsize=(9, 3.2))[1]
    late = dense >= ts[trained - 1]
    hares = jnp.exp(jnp.linspace(us[:trained, 0].min(), us[:trained, 0].max(), 60))
    for name, color in (("universal", "C0"), ("Lotka-Volterra", "C1")):
        value, low, high = jax.tree.map(jnp.exp, fits[name].confidence_band(lambda ps: solve(ps, dense), absolute=True))
        for i in (0, 1):
            axes[i].plot(start + dense[~late], value[~late, i], color)
            axes[i].plot(start + dense[late], value[late, i], color + "--")
            axes[i].fill_between(start + dense, low[:, i], high[:, i], color=color, alpha=0.25, lw=0)
        value, low, high = fits[name].confidence_band(lambda ps: eaten(ps, hares), absolute=True)
        axes[2].plot(hares, value, color, label=name)
        axes[2].fill_between(hares, low, high, color=color, alpha=0.25, lw=0)
    for i, species in enumerate(("hares", "lynxes")):
        axes[i].plot(start + ts[:trained], jnp.exp(us[:trained, i]), "ko", markersize=3)
        axes[i].plot(start + ts[trained:], jnp.exp(us[trained:, i]), "ko", markersize=3, markerfacecolor="w")
        axes[i].set(title=species, xlabel="year", ylabel=unit, ylim=(0, 1.6 * float(jnp.exp(us[:, i].max()))))
    axes[2].set(title="what a lynx eats in a year", xlabel="hares", ylabel="$f(H)$", ylim=(0, None))
    axes[2].legend()
    return axes


_ = plot(fits, ts, pelts, TRAINED, 1900, "thousands of pelts")

# %% [markdown]
# ## Why the plain equations forecast better here
#
# Thirty numbers with errors of a fifth hold one cycle and a half. On the right, the straight line of Lotka and Volterra
# lies within the band of the learned response: the data do not tell that it bends. What the net adds is then no
# knowledge of the animals; it follows the errors of these years, and its freedom makes the forecast less certain. A
# model that is wrong in a small way and has six parameters is the better one for so few data.
#
# ## A case where the net wins
#
# The same constants, but a response that saturates, Holling's third (*Canadian Entomologist* 91, 1959),
# $f = c H^2 / (K^2 + H^2)$, with $K = 40$ and $c = 2.33$: lynxes switch to hares when these are many. Forty-six
# counts with errors of 5%, over fifteen years; fifteen more are forecast.

# %%
ERROR, COUNTS = 0.05, 46
TRUE = {"c": 2.33, "K": 40.0}


def holling(u):
    hare, lynx = jnp.exp(u)
    eats = TRUE["c"] * hare**2 / (TRUE["K"] ** 2 + hare**2)
    return jnp.stack([0.55 - eats * lynx / hare, eats - 0.84])


times = jnp.linspace(0.0, 30.0, 2 * COUNTS - 1)
truth = lux.NeuralODE(holling, ts=times, output="ys")(jnp.log(jnp.array([12.0, 12.0])), {}, {})[0]
counts = truth + ERROR * jax.random.normal(jax.random.key(2), truth.shape)
cases = {
    "Lotka-Volterra": fit(times[:COUNTS], counts[:COUNTS], ERROR, learn=False),
    "universal": fit(times[:COUNTS], counts[:COUNTS], ERROR, learn=True),
}
report(cases, times, counts, COUNTS)

# %%
axes = plot(cases, times, counts, COUNTS, 0, "thousands")
hares = np.exp(np.linspace(counts[:COUNTS, 0].min(), counts[:COUNTS, 0].max(), 60))
axes[2].plot(hares, TRUE["c"] * hares**2 / (TRUE["K"] ** 2 + hares**2), "k:", label="truth")
_ = axes[2].legend()

# %% [markdown]
# ## The formula in the net
#
# `lux.symbolic` writes the net down as it is, which is exact and says little. Its values say more: a response that
# saturates is a polynomial when turned over, $H^2 / f$. Its terms are looked for where the fitted run has been; each
# further one has to bring the error down by 70% (`gain`), as the net itself is known to a few percent only.

# %%
found = cases["universal"].params
(expression,) = lux.symbolic(net, found.bend, st["bend"], variables=("x",))
print("n(x), x = log(H / 30):", sympy.N(expression, 3), "\n")

seen = jnp.exp(solve(found, times[:COUNTS])[:, :1]) / 30.0
values = seen**2 / eaten(found, 30.0 * seen[:, 0])[:, None]
library = lux.discovery.polynomials(("h",), degree=3)
sparse = lux.sparse_regression(seen, values, library, outputs=("turned",), gain=0.7)
print(sparse, "with h = H / 30")
for step in sparse.path["turned"]:
    print(f"  {len(step.terms)} terms, relative error {step.error:.4f}: {', '.join(step.terms)}")

# %% [markdown]
# The terms then stand in place of the net, and are fitted to the counts: now their coefficients have errors.


# %%
def formula(u, p, nets):
    hare, lynx = jnp.exp(u)
    eats = (hare / 30.0) ** 2 / nets.turned((hare / 30.0)[None])[0]
    return jnp.stack([p.alpha - eats * lynx / hare, p.epsilon * eats - p.delta])


known = {name: found.physics[name] for name in ("alpha", "epsilon", "delta")}
sparse_node = lux.NeuralODE(lux.UDE(formula, known, turned=sparse.layer), output="ys", max_steps=512)
_, sparse_st = lux.setup(jax.random.key(0), sparse_node)


def run(ps, ts):
    return sparse_node((ps.start, ts), ps.select("physics", "turned"), sparse_st)[0]


begin = lux.ComponentVector(start=found.start, physics=known, turned=sparse.params)
refit = lux.least_squares(lambda ps: (run(ps, times[:COUNTS]) - counts[:COUNTS]) / ERROR, begin, max_steps=STEPS)
low, high = refit.confidence_intervals(0.95, absolute=True)
truths = {"1": (TRUE["K"] / 30) ** 2 / TRUE["c"], "h^2": 1 / TRUE["c"]}
for label, a, b in zip(sparse.params.labels(), low.turned.data, high.turned.data, strict=True):
    print(f"  {label:<12} ({a:.3f}, {b:.3f})")
print("in truth    ", ", ".join(f"{term}: {value:.3f}" for term, value in truths.items()))
off = run(refit.params, times)[COUNTS:]
print(f"root mean square error of its forecast: {float(jnp.sqrt(jnp.mean((off - counts[COUNTS:]) ** 2))):.3f}")

# %% [markdown]
# ## What to see
#
# The same equation, the same net, the same priors: on six-year forecasts of the pelts the plain equations win, on the
# fifteen-year forecast of the counts the universal one does, because there the response bends more than the errors
# hide. The band of the learned term says before any forecast which of the two it is: does it leave the straight line?
# Errors of the pelts are not independent in truth, so that the bands of the first case are, if anything, too narrow.
# Try more pelts' worth of data with larger errors (`ERROR`, `COUNTS`), or sample in place of fitting, as in
# [the Bayesian notebook](bayesian_neural_ode.ipynb). [Equations from what was learned](../docs/symbolic.md) goes on
# from the formula to its refit.
