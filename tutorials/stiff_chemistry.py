# %% [markdown]
# # Stiff chemistry
#
# Robertson's reaction (1966) is the classic of stiff equations: its three rates span nine orders of magnitude. It is
# solved here against the reference of the *Test Set for IVP Solvers* (Hairer and Wanner's problem ROBER), its rates
# are recovered from noisy data with confidence intervals, with the scaling of Kim et al. ("Stiff neural ordinary
# differential equations", *Chaos* 31, 2021), and one rate law is learned by a net. At the end you know what to scale,
# and which adjoint to take.

# %%
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import lux_sciml as lux

lux.plot.style()
jax.config.update("jax_enable_x64", True)  # stiff equations want double precision

# %%
POINTS, STEPS, NET_STEPS, HIDDEN = 40, 60, 50, 6
ADJOINTS = ("forward", "checkpointed", "gauss")
LAST, REPEAT = 1e11, 10  # the last time of the reference; runs of each timing
NOISE = 0.02  # of the range of each species

# %% [markdown]
# ## The equation and its reference
#
# $$A \xrightarrow{k_1} B, \qquad 2B \xrightarrow{k_2} B + C, \qquad B + C \xrightarrow{k_3} A + C,$$
#
# with $k_1 = 0.04$, $k_2 = 3 \cdot 10^7$, $k_3 = 10^4$. `lux.UDE` makes a vector field of a function and its
# constants. These are the logarithms of the rates: a rate is positive, and of it we know, at first, at most the order
# of magnitude.


# %%
def kinetics(y, p, nets):
    a, b, c = y
    slow, fast, back = 10**p.k1 * a, 10**p.k2 * b**2, 10**p.k3 * b * c
    return jnp.stack([-slow + back, slow - fast - back, fast])


truth = {"k1": np.log10(0.04), "k2": np.log10(3e7), "k3": 4.0}
field = lux.UDE(kinetics, truth)
start = jnp.array([1.0, 0.0, 0.0])
reference = jnp.array([0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050])  # at 1e11


# %% [markdown]
# Each solver runs to $t = 10^{11}$. An explicit one has to take steps as short as the fastest reaction, a
# millisecond, for ever: it runs out of steps. That is a failed solve, so its values are NaN, with the reason.


# %%
def row(name, solver, rtol, atol):
    node = lux.NeuralODE(field, [0.0, LAST], solver=solver, rtol=rtol, atol=atol)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
    sol, _ = node(start, ps, st)
    error = jnp.max(jnp.abs(sol.ys[-1] / reference - 1))
    print(f"{name:10} {rtol:7.0e} {atol:7.0e} {int(sol.stats['num_steps']):6d} {error:18.1e}")


print(f"{'solver':10} {'rtol':>7} {'atol':>7} {'steps':>6} {'relative error':>18}")
row("Tsit5", diffrax.Tsit5(), 1e-6, 1e-8)
row("Kvaerno3", diffrax.Kvaerno3(), 1e-6, 1e-10)
for rtol, atol in ((1e-6, 1e-10), (1e-8, 1e-12), (1e-8, 1e-14)):
    row("Kvaerno5", diffrax.Kvaerno5(), rtol, atol)

# %% [markdown]
# The error is that of the worst species, $B$, of which there are $8 \cdot 10^{-14}$ left: `atol` decides, and has to
# be well below what still counts. In the fits that is $B$'s largest value, $4 \cdot 10^{-5}$.
#
# ## Data
#
# All three species are measured at times evenly spaced in $\log t$, with an error of 2 % of the range of each.

# %%
ts = np.concatenate([[0.0], np.geomspace(1e-4, 1e5, POINTS)])
options = dict(solver=diffrax.Kvaerno5(), rtol=1e-7, atol=1e-11, output="ys", max_steps=500)
node = lux.NeuralODE(field, ts, **options)
true_ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
exact = node(start, true_ps, st)[0]
scale = jnp.max(exact, 0) - jnp.min(exact, 0)
data = exact[1:] + NOISE * scale * jax.random.normal(jax.random.key(1), (POINTS, 3))
print("range of each species:", scale)

# %% [markdown]
# ## Rates, with their errors
#
# The start is wrong by a factor of ten, up and down. Three fits, by Levenberg-Marquardt on the residuals: with
# logarithms of the rates, and each species divided by its range, as Kim et al. do; without the division; without the
# logarithms.


# %%
first = true_ps.replace(physics={"k1": truth["k1"] + 1, "k2": truth["k2"] - 1, "k3": truth["k3"] + 1})
weights = jnp.broadcast_to(1 / (NOISE * scale), data.shape)


def misfit(ps):
    return node(start, ps, st)[0][1:] - data


def misfit_of_rates(rates):  # the rates themselves
    return misfit(true_ps.replace(physics=jax.tree.map(lambda k: jnp.log10(jnp.abs(k)), dict(rates.physics.items()))))


rates = first.replace(physics={name: 10**value for name, value in first.physics.items()})
both = lux.least_squares(misfit, first, weights=weights, max_steps=STEPS)
unscaled = lux.least_squares(misfit, first, max_steps=STEPS)
no_logarithm = lux.least_squares(misfit_of_rates, rates, weights=weights, max_steps=STEPS)

# %%
print(f"{'fit':22} {'steps':>5}   factors by which k1, k2, k3 are missed")
found = {"logarithm and scaling": both.params.data, "no scaling": unscaled.params.data}
found["no logarithm"] = jnp.log10(jnp.abs(no_logarithm.params.data))
for (name, log_rates), fit in zip(found.items(), (both, unscaled, no_logarithm), strict=True):
    factors = 10 ** jnp.abs(log_rates - true_ps.data)
    print(f"{name:22} {fit.steps:5d}   " + "  ".join(f"{factor:9.3f}" for factor in factors))

lower, upper = both.confidence_intervals(0.95)
print(f"\n{'rate':4} {'truth':>9} {'fit':>9}   95% interval")
for i, name in enumerate(truth):
    fit, low, high = 10 ** both.params.data[i], 10 ** lower.data[i], 10 ** upper.data[i]
    print(f"{name:4} {10 ** true_ps.data[i]:9.3g} {fit:9.3g}   {low:.3g} to {high:.3g}")

# %% [markdown]
# Without scaling the residuals of $B$ are some thirty thousand times smaller than those of $A$, and two of the three
# rates are lost. The logarithm turns out not to matter to this method, which scales parameters itself and started
# within a factor of ten; it keeps rates positive, and it is what a gradient method needs, since a step of Adam is the
# same for all.
#
# ## A rate law by a net
#
# Now suppose that the order of the second reaction is unknown, and $k_1$, $k_3$ are known. A net of $\log b$ gives
# $\log_{10}(\mathrm{rate} / b)$, so that the reaction stops where there is no $B$. The baseline is what a chemist
# would write: a power law $k\, b^n$, with two unknowns. A net of 19 parameters would follow the noise; the residuals
# of a prior keep its weights small.


# %%
def with_law(law):
    def kinetics(y, p, nets):
        a, b, c = y
        slow, fast, back = 0.04 * a, b * 10 ** law(b, p, nets), 1e4 * b * c
        return jnp.stack([-slow + back, slow - fast - back, fast])

    return kinetics


def decades(b):
    return jnp.log10(jnp.maximum(b, 1e-12)) + 6  # 0 at 1e-6


def by_net(b, p, nets):
    return 2 + nets.law(decades(b)[None])[0]


def by_power(b, p, nets):
    return p.k + (p.n - 1) * decades(b)


net = lux.Chain(lux.Dense(1, HIDDEN, jnp.tanh), lux.Dense(HIDDEN, 1))
fields = {"net": lux.UDE(with_law(by_net), law=net), "power law": lux.UDE(with_law(by_power), {"k": 2.0, "n": 1.0})}
PRIOR = {"net": 1.0, "power law": 0.0}  # one over the standard deviation of a parameter, before there are data
fits, states = {}, {}
for name, of_law in fields.items():
    layer = lux.NeuralODE(of_law, ts, **options)
    ps, states[name] = lux.setup(jax.random.key(2), layer, dtype=jnp.float64)
    fits[name] = lux.least_squares(
        lambda ps, layer=layer, st=states[name], prior=PRIOR[name]: {
            "data": (layer(start, ps, st)[0][1:] - data) * weights,
            "prior": prior * ps.data,
        },
        ps,
        max_steps=NET_STEPS,
    )

# %%
b = jnp.geomspace(jnp.min(exact[1:, 1]), jnp.max(exact[:, 1]), 60)
net_ps, power = fits["net"].params, fits["power law"].params.physics
log_rate = {
    "truth": jnp.log10(3e7 * b**2),
    "net": jnp.log10(b) + 2 + net(decades(b)[:, None], net_ps.law, states["net"]["law"])[0][:, 0],
    "power law": jnp.log10(b) + power.k + (power.n - 1) * decades(b),
}
print(f"{'law':10} {'parameters':>10} {'chi2 / residuals':>17}   largest, median factor by which the rate is missed")
for name, fit in fits.items():
    missed = 10 ** jnp.abs(log_rate[name] - log_rate["truth"])
    chi2 = jnp.mean(fit.residuals["data"] ** 2)
    print(f"{name:10} {fit.params.size:10d} {chi2:17.2f}   {jnp.max(missed):.3f}, {jnp.median(missed):.3f}")
low, high = fits["power law"].confidence_intervals(0.95)
print(f"order of the reaction: {power.n:.4f}, 95% interval {low.physics.n:.4f} to {high.physics.n:.4f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
smooth = np.concatenate([[0.0], np.geomspace(1e-5, 1e5, 100)])
curves = lux.NeuralODE(fields["net"], smooth, **options)(start, net_ps, states["net"])[0] / scale
for i, name in enumerate("ABC"):
    left.semilogx(smooth[1:], curves[1:, i], label=name)
    left.plot(ts[1:], data[:, i] / scale[i], "o", color="k", markersize=2.5)
left.set(xlabel="time", ylabel="concentration / range", title="the fit with a net")
left.legend()
right.loglog(b, 10 ** log_rate["net"], label="net")
right.loglog(b, 10 ** log_rate["power law"], "--", label="power law")
right.loglog(b, 10 ** log_rate["truth"], "k:", label="truth, $3 \\cdot 10^7 b^2$")
right.set(xlabel="b", ylabel="rate", title="the law of the second reaction")
_ = right.legend()

# %% [markdown]
# ## Which adjoint
#
# The gradient of the misfit by the three rates, against forward mode at tolerances a hundred times tighter. The cost
# is that of the gradient, in units of the misfit alone, by the processor's time.


# %%
def misfit_with(adjoint, rtol=1e-7, atol=1e-11):
    settings = {**options, "rtol": rtol, "atol": atol, "adjoint": adjoint, "max_steps": 4000}
    layer = lux.NeuralODE(field, ts, **settings)
    return lambda ps: jnp.mean(((layer(start, ps, st)[0][1:] - data) * weights) ** 2)


def cost(f):
    jax.block_until_ready(f(first))
    begin = time.process_time()
    for _ in range(REPEAT):
        jax.block_until_ready(f(first))
    return time.process_time() - begin


tight = jax.jit(jax.jacfwd(misfit_with("forward", 1e-9, 1e-13)))(first).data
alone = cost(jax.jit(misfit_with("auto")))
print(f"{'adjoint':13} {'error of the gradient':>22} {'cost':>6}")
for adjoint in ADJOINTS:
    derivative = jax.jacfwd if adjoint == "forward" else jax.grad
    gradient = jax.jit(derivative(misfit_with(adjoint)))
    error = jnp.linalg.norm(gradient(first).data - tight) / jnp.linalg.norm(tight)
    print(f"{adjoint:13} {error:22.1e} {cost(gradient) / alone:6.1f}")

# %% [markdown]
# ## What to see
#
# * All three rates lie within their intervals. The net's law is right to 5 % at the median, and worst, by a factor of
#   1.7, where there is least $B$ and the noise covers it; nothing is known of it beyond the range of $b$ in the right
#   picture. The power law, two numbers, is the better model here, as it contains the truth: use a net to find the
#   shape, then write it down ([symbolic regression](../docs/symbolic.md) does).
# * `"auto"` is right: forward mode where least squares asks for a Jacobian, checkpoints for a gradient, and both have
#   the same error. `"gauss"` fails at these tolerances, and says so by NaN; see [Which adjoint](../docs/adjoints.md).
# * Scale the residuals, by the range of each species or, better, the error of its measurement; see
#   [Fitting](../docs/fitting.md). What the data say of each rate beyond the linearized fit:
#   [inference](../docs/inference.md).
