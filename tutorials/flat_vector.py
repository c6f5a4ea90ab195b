# %% [markdown]
# # One flat vector, with names
#
# A `ComponentVector` is one flat array in which every element has a name. Optimizers see an array, people see names.
# Here it carries a fit that statisticians know: how a drug leaves the blood of six people (Kwan and others, 1976), two
# exponentials, with standard errors beside those that R publishes. At the end you can address, freeze, fit, and judge
# parameters by name, whichever library does the work.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import scipy.optimize
import scipy.stats
from matplotlib import pyplot as plt

import lux_sciml as lux

jax.config.update("jax_enable_x64", True)
lux.plot.style()

# %%
STEPS, POINTS = 2000, 8

# %% [markdown]
# ## Names
#
# It is built from its components, in any nesting. Names lead to *views* of the flat array; updates return a new
# vector.

# %%
p = lux.ComponentVector(fast={"A": 2.0, "log_rate": 0.7}, slow={"A": 0.2, "log_rate": -1.3})
print(p)
print(p.data, p.fast.A, p["slow.log_rate"])
print(p.labels())
print(p.replace(slow={"A": 0.3}))
print(p.at["fast.A"].multiply(10.0))

# %% [markdown]
# Where a component stands in the array, its layout knows. Patterns go over all names: here all rates. This is what a
# penalty, a bound or a mask is written with.

# %%
print("slice of `slow`:      ", p.layout.slice("slow"))
print("mask of `*.log_rate`: ", p.layout.mask("*.log_rate"))
print("all rates per hour:   ", jnp.exp(p.data[p.layout.mask("*.log_rate")]))

# %% [markdown]
# Vectors of the same names can be added; of other names, they say what differs. JAX's transforms return vectors again,
# also matrices with names in rows and columns.


# %%
def product(p):
    return p.fast.A**2 * p.slow.A


print("gradient:", jax.grad(product)(p))
print("an element of the Hessian:", lux.hessian(product)(p)["fast.A", "slow.A"])
try:
    p + lux.ComponentVector(fast={"A": 1.0, "rate": 0.0}, slow={"A": 0.0, "log_rate": 0.0})
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# ## A fit
#
# The concentration in the blood after an injection, $c(t) = A_1 e^{-k_1 t} + A_2 e^{-k_2 t}$, of the first subject. The
# parameters are amplitudes and logarithms of rates, as in R's `SSbiexp`, whose documentation has what `nls` finds.

# %%
subject, hours, concentration = np.loadtxt("data/indometacin.csv", delimiter=",", skiprows=2).T
first = subject == 1
t, c = hours[first], concentration[first]


def curve(p, t):
    return sum(part.A * jnp.exp(-jnp.exp(part.log_rate) * t) for part in (p.fast, p.slow))


fit = lux.least_squares(lambda p: curve(p, t) - c, p)
errors = fit.standard_errors()
published = {"fast.A": (2.0293, 0.1099), "fast.log_rate": (0.5794, 0.1247),
             "slow.A": (0.1915, 0.1106), "slow.log_rate": (-1.7878, 0.7871)}  # fmt: skip
print(f"{'':14}  {'ours':>7} {'error':>7}  {'R nls':>8} {'error':>7}")
for name, (value, error) in published.items():
    print(f"{name:14}  {fit.params[name]:7.4f} {errors[name]:7.4f}  {value:8.4f} {error:7.4f}")
print("residual standard error:", f"{np.sqrt(2 * fit.value / (len(t) - p.size)):.5f}, of R 0.04103")

# %% [markdown]
# ## The same vector everywhere
#
# SciPy's quasi-Newton method, one of optimistix, and Adam by one call; and SciPy and optax as they are, without
# `lux.minimize`: a `ComponentVector` is an array to the one, a pytree to the other.


# %%
def loss(p):
    return jnp.sum((curve(p, t) - c) ** 2) / 2


def show(name, p, evaluations):
    print(f"{name:26} {loss(p):.8f} after {evaluations:4} evaluations, {p}")


for name, method in {
    "SciPy's L-BFGS-B": "L-BFGS-B",
    "optimistix.BFGS": optimistix.BFGS(1e-10, 1e-10),
    "optax.adam": optax.adam(0.05),
}.items():
    result = lux.minimize(loss, p, method=method, max_steps=STEPS)
    show(name, result.params, result.evaluations)

function = jax.jit(jax.value_and_grad(lambda flat: loss(lux.ComponentVector(flat, p.layout))))
raw = scipy.optimize.minimize(function, p, jac=True, method="BFGS")
show("scipy.optimize, by itself", lux.ComponentVector(raw.x, p.layout), raw.nfev)

adam, by_hand = optax.adam(0.05), p
memory = adam.init(by_hand)
step = jax.jit(lambda p, memory: adam.update(jax.grad(loss)(p), memory, p))
for _ in range(STEPS):
    update, memory = step(by_hand, memory)
    by_hand = optax.apply_updates(by_hand, update)
show("optax, by itself", by_hand, STEPS)

# %% [markdown]
# ## Freezing, bounds
#
# `trainable` names what is fitted, by patterns; all else stays. With the slow rate held at one in eight hours, the
# other parameters seem to be known better, the slow amplitude nearly four times: it was assumed, not measured.

# %%
eighth = fit.params.replace(slow={"log_rate": np.log(1 / 8)})
held = lux.least_squares(lambda p: curve(p, t) - c, eighth, trainable=["fast", "slow.A"])
print("fitted: ", held.params)
print("errors: ", held.standard_errors())

# %% [markdown]
# Bounds go by pattern as well. Which of the exponentials becomes the fast one is otherwise a matter of the start; here
# the fast one is faster than once an hour, and the slow one is slower.

# %%
bounds = lux.constraints.bounds(p, {"fast.log_rate": (0.0, None), "slow.log_rate": (None, 0.0), "*.A": (0.0, None)})
same = p.replace(fast={"A": 1.0, "log_rate": 0.0}, slow={"A": 1.0, "log_rate": 0.0})
print("from two equal exponentials:", lux.least_squares(lambda p: curve(p, t) - c, same, bounds=bounds).params)

# %% [markdown]
# ## Curvature and covariance by name
#
# The Hessian of the loss and the covariance $s^2 (J^T J)^{-1}$ are matrices with names in rows and columns.

# %%
print("curvature in the slow exponential:", lux.hessian(loss)(fit.params)["slow", "slow"], sep="\n")
covariance = fit.covariance()
scale = np.sqrt(covariance.diagonal().data)
correlation = covariance / np.outer(scale, scale)
print(f"\ncorrelation of slow.A and slow.log_rate: {correlation['slow.A', 'slow.log_rate']:.3f}")

# %% [markdown]
# The two go together: a lower amplitude that stays longer fits as well. With an error of 0.79 in a logarithm, the
# normal approximation that standard errors stand for is doubtful. The profile likelihood does without: it holds one
# element, fits all others again, and sees how fast the fit gets worse.


# %%
def nll(p):
    variance = 2 * fit.value / (len(t) - p.size)
    return loss(p) / variance


profile = lux.inference.profile_likelihood(nll, fit.params, "slow.log_rate", points=POINTS)["slow.log_rate"]
value, error = fit.params.slow.log_rate, errors.slow.log_rate
print(f"95% interval of slow.log_rate by the standard error: {value - 1.96 * error:.2f} to {value + 1.96 * error:.2f}")
print(f"                              by the profile:        {profile.interval[0]:.2f} to {profile.interval[1]:.2f}")
print("the profile ends:", profile.ends)

# %% [markdown]
# ## Six subjects, one shared parameter
#
# A sequence of equal components is read one by one, `every.subjects[2]`, or stacked, `every.subjects.slow.A`. All 24
# parameters are fitted at once. Then the six slow rates are *tied*: they stand once in the vector, so that 19
# parameters are left, and the model, which reads them by name, stays as it is.


# %%
def residuals(every):
    parts = [curve(part, hours[subject == i + 1]) for i, part in enumerate(every.subjects)]
    return jnp.concatenate(parts) - concentration


every = lux.ComponentVector(subjects=[p.tree()] * 6)
ties = [[f"subjects.{i}.slow.log_rate" for i in range(6)]]
tied = lux.ComponentVector.from_tree(every.tree(), ties=ties)
separate, shared = (lux.least_squares(residuals, start) for start in (every, tied))
for name, result in {"separate": separate, "shared": shared}.items():
    print(f"{name}: {result.params.size} parameters, sum of squares {2 * result.value:.4f}")
    print("  slow.log_rate", np.round(result.params.subjects.slow.log_rate, 2))
    print("  error        ", np.round(result.standard_errors().subjects.slow.log_rate, 2))

more, left = separate.params.size - shared.params.size, len(hours) - separate.params.size
ratio = (shared.value - separate.value) / more / (separate.value / left)
print(f"F = {ratio:.2f} with {more} and {left} degrees of freedom, p = {scipy.stats.f.sf(ratio, more, left):.3f}")

# %%
figure, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(9, 3.8))
grid = np.linspace(0.2, 8.0, 100)
for i, color in zip((0, 2), lux.plot.COLORS, strict=False):
    middle, low, high = shared.confidence_band(lambda every, i=i: curve(every.subjects[i], grid))
    measured = (hours[subject == i + 1], concentration[subject == i + 1])
    lux.plot.band(grid, middle, (low, high), label=f"subject {i + 1}", ax=left_axis)
    left_axis.plot(*measured, "o", color=color)
left_axis.set(
    yscale="log", ylim=(0.02, 3), xlabel="hours", ylabel="concentration (mcg/mL)", title="The slow rate shared"
)
lux.plot.profile(profile, ax=right_axis)
normal = np.linspace(value - 2.5 * error, value + 2.5 * error, 100)
right_axis.plot(normal, ((normal - value) / error) ** 2 / 2, "--", label="by the standard error")
right_axis.set(xlim=(-6, 0), ylim=(0, 4), title="Subject 1 alone: profile of the slow rate")
legend = right_axis.legend()

# %% [markdown]
# ## What to see
#
# * **Beside R.** All four values, their errors and the residual error agree with `nls` in every digit that R prints.
# * **The profile** is open on the left: a slow part that never decays fits the eight hours nearly as well, and so the
#   data of one subject only bound the slow rate from above. The interval of the standard error hides this.
# * **Sharing** the slow rate costs 0.06 in the sum of squares for five parameters less, which the F test does not
#   reject at 5%, and makes it known up to eight times better. It stands between no sharing and the mixed-effects model
#   that a pharmacologist would fit next; the tutorial on [theophylline](theophylline.ipynb) fits one.
# * The points at the end lie near the limit of detection, and the errors are surely not the same at 2 and at 0.05
#   mcg/mL: try `weights=1 / concentration`, or the residuals of logarithms.
# * **Next.** [Flat vectors](../docs/flat_vectors.md) says what a flat vector costs for large nets,
#   [fitting](../docs/fitting.md) more of least squares, [inference](../docs/inference.md) more of profiles and
#   posteriors.
