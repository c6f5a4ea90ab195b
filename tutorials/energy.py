# %% [markdown]
# # Hamiltonian and Lagrangian nets
#
# A net that learns an energy, instead of a velocity, keeps that energy for ever. How much is this worth, and what does
# it need to be told? The cases are the noisy pendulum of Greydanus, Dzamba and Yosinski, *Hamiltonian neural networks*
# (2019), here learned from measured paths alone, and the double pendulum of Cranmer et al., *Lagrangian neural
# networks* (2020). At the end you have three models of the first, one of them solved for 150 swings with a symplectic
# method, and a Lagrangian of the second, learned from accelerations.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import lux_sciml as lux

jax.config.update("jax_enable_x64", True)
lux.plot.style()

# %%
WIDTH, ADAM, BFGS = 32, 1000, 120  # of the pendulum's nets: their width, steps on slopes, steps on paths
LONG = 500.0  # time units of the long solve, some 150 swings
STATES, UNITS, STEPS = 20_000, 64, 2500  # of the double pendulum
PATHS = 40  # random starts of the published test of its energy

# %% [markdown]
# ## The pendulum
#
# $H(q, p) = 3 (1 - \cos q) + p^2$. As published: 25 paths to train on, of 45 points over three time units, about one
# swing, from random starts of radius 1.3 to 2.3, with noise of standard deviation 0.1 on both coordinates. The
# authors were given exact slopes beside the noisy states. We take the states alone.


# %%
def pendulum_energy(z):
    q, p = z[..., 0], z[..., 1]
    return 3 * (1 - jnp.cos(q)) + p**2


def random_starts(key, n):
    key_direction, key_radius = jax.random.split(key)
    direction = jax.random.uniform(key_direction, (n, 2), minval=-1.0)
    radius = jax.random.uniform(key_radius, (n, 1), minval=1.3, maxval=2.3)
    return radius * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)


pendulum = lux.HamiltonianNN(pendulum_energy)
truth = lux.NeuralODE(pendulum, output="ys", rtol=1e-10, atol=1e-10)
ts = jnp.linspace(0.0, 3.0, 45)
clean, _ = truth((random_starts(jax.random.key(0), 25), ts), {}, {})  # (times, paths, 2)
data = clean + 0.1 * jax.random.normal(jax.random.key(1), clean.shape)

# %% [markdown]
# Three models, each told more than the one before: a net for the velocity; a net for $H(q, p)$; two nets for
# $H = T(p) + V(q)$. The last layer of an energy has no bias, as no force depends on it.


# %%
class Separable(lux.Container):
    """T(p) + V(q)."""

    kinetic: lux.Layer
    potential: lux.Layer

    def forward(self, z, ps, st):
        q, p = jnp.split(z, 2, axis=-1)
        (t, v), st = self.run(ps, st, kinetic=p, potential=q)
        return t + v, st


def net(features, out, **last):
    hidden = lux.Dense(features, WIDTH, jnp.tanh), lux.Dense(WIDTH, WIDTH, jnp.tanh)
    return lux.Chain(*hidden, lux.Dense(WIDTH, out, **last))


fields = {
    "neural ODE": net(2, 2),
    "H(q, p)": lux.HamiltonianNN(net(2, 1, use_bias=False)),
    "T(p) + V(q)": lux.HamiltonianNN(Separable(net(1, 1, use_bias=False), net(1, 1, use_bias=False))),
}

# %% [markdown]
# Two stages. `collocate` smooths the paths and gives slopes, and a field is regressed on them: no solve is needed, and
# it need not be exact. Then the paths are fitted, with their 25 starts as parameters too, since these were measured
# with noise like all else.

# %%
smooth, slopes = lux.diffeq.collocate(data, ts)


def fit(field):
    ps, st = lux.setup(jax.random.key(2), field)
    node = lux.NeuralODE(field, output="ys", rtol=1e-5, atol=1e-5)

    def on_slopes(ps):
        return jnp.mean((field(smooth, ps, st)[0] - slopes) ** 2)

    def on_paths(ps):
        paths, _ = node((ps.start, ts), ps.field, st)
        return jnp.mean((paths - data) ** 2) + 1e-3 * jnp.mean(ps.field.data**2)

    ps = lux.minimize(on_slopes, ps, method=optax.adam(3e-3), max_steps=ADAM).params
    start = lux.ComponentVector(start=smooth[0], field=ps)
    result = lux.minimize(on_paths, start, method="L-BFGS-B", max_steps=BFGS)
    print(f"{result.value:.5f}")  # the variance of the noise is 0.01
    return result.params.field, st


fitted = {name: fit(field) for name, field in fields.items()}

# %% [markdown]
# The published test: from 15 new starts over 20 time units, seven times as long as the paths of training, the mean
# square error of the energy along the predicted path. The authors, with exact slopes to learn from, have 0.042 for a
# plain net and 0.025 for their Hamiltonian one. These do not compare with ours: their code starts nearer to rest, and
# takes $q^2 + p^2$ for the energy; here it is the true one.

# %%
starts, far = random_starts(jax.random.key(3), 15), jnp.linspace(0.0, 20.0, 201)
true_path, _ = truth((starts, far), {}, {})
print("model          energy MSE   state MSE")
for name, field in fields.items():
    path, _ = lux.NeuralODE(field, output="ys")((starts, far), *fitted[name])
    of_energy = jnp.mean((pendulum_energy(path) - pendulum_energy(true_path)) ** 2)
    print(f"{name:12} {of_energy:12.4f} {jnp.mean((path - true_path) ** 2):11.4f}")

# %% [markdown]
# ## Solved for long
#
# What a Hamiltonian net keeps is its own energy, and only as well as the solver does. `Tsit5` at a loose tolerance
# loses some at each step. `HamiltonianODE` takes the two nets of the separable model, with the parameters as they are,
# and a symplectic method: its error in the energy swings, and does not grow.

# %%
name = "T(p) + V(q)"
model, (ps, st) = fields[name].model, fitted[name]
symplectic = lux.HamiltonianODE(
    model.kinetic, model.potential, solver=lux.Yoshida4(), dt0=0.1, output="ys", max_steps=100_000
)
long_ts = jnp.linspace(0.0, LONG, 2001)
start = starts[:1]
(q, p), _ = symplectic(((start[:, :1], start[:, 1:]), long_ts), ps, st)
options = {"output": "ys", "max_steps": 100_000}
loose = {"rtol": 1e-4, "atol": 1e-4, **options}
paths = {
    "neural ODE, Tsit5": lux.NeuralODE(fields["neural ODE"], **options)((start, long_ts), *fitted["neural ODE"])[0],
    "T + V, Tsit5, rtol 1e-4": lux.NeuralODE(fields[name], **loose)((start, long_ts), ps, st)[0],
    "T + V, Yoshida4, dt 0.1": jnp.concatenate((q, p), -1),
}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot(data[:, :8, 0], data[:, :8, 1], "k.", markersize=2)
for color, (label, path) in zip(("C1", "C2", "C0"), paths.items(), strict=True):
    left.plot(path[:160, 0, 0], path[:160, 0, 1], color, linewidth=1)
    right.plot(long_ts, pendulum_energy(path[:, 0]), color, linewidth=1, label=label)
right.axhline(pendulum_energy(start[0]), color="k", linestyle="--", linewidth=1, label="truth")
left.set(xlabel="q", ylabel="p", title="eight paths of the data, and 40 time units")
right.set(xlabel="time", ylim=(2.9, 4.6), title="true energy along the path")
legend = right.legend(fontsize=8)

# %% [markdown]
# ## The double pendulum
#
# Here the momenta depend on the masses and lengths, which one would rather not know. A Lagrangian takes velocities:
# $\ddot q = L_{vv}^{-1} (L_q - L_{vq} v)$. With the derivatives of the library that is a few lines; `LagrangianNN` is
# the same as a layer. First the truth, two masses and two lengths of one.


# %%
def true_lagrangian(z, gravity=9.8):
    (a, b), (v, w) = jnp.moveaxis(z[..., :2], -1, 0), jnp.moveaxis(z[..., 2:], -1, 0)
    return v**2 + w**2 / 2 + v * w * jnp.cos(a - b) + gravity * (2 * jnp.cos(a) + jnp.cos(b))


def true_energy(z):
    still = z.at[..., 2:].set(0.0)  # L = T - V, and T is zero at rest
    return true_lagrangian(z) - 2 * true_lagrangian(still)


def acceleration(lagrangian, z):
    gradient = jax.grad(lambda z: jnp.sum(lagrangian(z)))
    n = z.shape[-1] // 2
    second = lux.derivatives.batched_jacobian(lambda z: gradient(z)[..., n:], z)  # of the momenta, by q and v
    force = gradient(z)[..., :n] - jnp.einsum("...ij,...j->...i", second[..., :n], z[..., n:])
    return jnp.linalg.solve(second[..., n:], force[..., None])[..., 0]


double = lux.LagrangianNN(true_lagrangian)
z = jax.random.normal(jax.random.key(4), (5, 4))
print(jnp.abs(acceleration(true_lagrangian, z) - double(z, {}, {})[0][..., 2:]).max())

# %% [markdown]
# A net for all of $L$ can be trained, but slowly, since nothing keeps its mass matrix from being singular. What holds
# of any mechanical system may be said: $L = \tfrac12 v^T M(q) v - V(q)$ with $M$ positive definite, so by a factor of
# Cholesky's. Masses, lengths and gravity stay unknown. The plain model is a net for the accelerations, with twice the
# inputs. Angles come as sines and cosines in both.


# %%
class Mechanical(lux.Container):
    """v M(q) v / 2 - V(q)."""

    factor: lux.Layer
    potential: lux.Layer

    def forward(self, z, ps, st):
        q, v = jnp.split(z, 2, axis=-1)
        features = jnp.concatenate([jnp.sin(q), jnp.cos(q)], -1)
        (l, potential), st = self.run(ps, st, factor=features, potential=features)
        d = 0.1 + jax.nn.softplus(l[..., :2])
        u = jnp.stack([d[..., 0] * v[..., 0] + l[..., 2] * v[..., 1], d[..., 1] * v[..., 1]], -1)
        return jnp.sum(u**2, -1) / 2 - potential[..., 0], st


class Accelerations(lux.Wrapper):
    net: lux.Layer

    def forward(self, z, ps, st):
        q, v = jnp.split(z, 2, axis=-1)
        a, st = self.net.forward(jnp.concatenate([jnp.sin(q), jnp.cos(q), v / 5], -1), ps, st)
        return jnp.concatenate([v, 10 * a], -1), st


def wide(features, width, out, **last):
    hidden = [lux.Dense(n, width, jax.nn.silu) for n in (features, width)]
    return lux.Chain(*hidden, lux.Dense(width, out, **last))


models = {
    "accelerations": Accelerations(wide(6, 2 * UNITS, 2)),
    "Lagrangian": lux.LagrangianNN(Mechanical(wide(4, UNITS, 3), wide(4, UNITS, 1, use_bias=False))),
}


# %%
def random_states(key, n, speed):
    low = -jnp.array([jnp.pi, jnp.pi, speed, speed])
    return jax.random.uniform(key, (n, 4), minval=low, maxval=-low)


states, test = random_states(jax.random.key(5), STATES, 10.0), random_states(jax.random.key(6), 2000, 10.0)
measured, expected = (double(z, {}, {})[0][..., 2:] for z in (states, test))
scale = jnp.std(measured)


def objective(model, ps, st, batch):
    slope, st = model(batch[0], ps, st)
    return jnp.mean(jnp.abs(slope[..., 2:] - batch[1])) / scale, st


learned = {}
print("model           relative L1 error of the acceleration")
for name, model in models.items():
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))
    state = lux.TrainState.create(model, optimizer, key=jax.random.key(0))
    state = lux.fit(objective, state, (states, measured), batch_size=256, steps=STEPS).state
    learned[name] = state.ps, state.st
    print(f"{name:14} {objective(model, state.ps, state.st, (test, expected))[0]:8.4f}")

# %% [markdown]
# Cranmer et al. started 40 paths at random, and found energies wrong by 8% of the largest potential energy with a plain
# net, and by 0.4% with theirs. Their code looks at the end of 100 time units, ours at the mean over 10. They trained on
# 600,000 states, 30 times as many.

# %%
starts, ts = random_states(jax.random.key(7), PATHS, 3.0), jnp.linspace(0.0, 10.0, 101)
errors = {}
for name, model in models.items():
    node = lux.NeuralODE(model, ts, output="ys", batching="vmap", max_steps=8192)
    path, _ = node(starts, *learned[name])
    errors[name] = jnp.abs(true_energy(path) - true_energy(starts)[:, None]) / (3 * 9.8)
    print(f"{name:14} {100 * jnp.mean(errors[name]):.2f}% on average")

# %%
fig, ax = plt.subplots(figsize=(6, 3.2))
for color, (name, error) in zip(("C1", "C0"), errors.items(), strict=True):
    low, middle, high = np.quantile(100 * error, [0.1, 0.5, 0.9], axis=0)
    ax.semilogy(ts[1:], middle[1:], color, label=name)
    ax.fill_between(ts[1:], low[1:], high[1:], color=color, alpha=0.25, linewidth=0)
ax.set(xlabel="time", ylabel="error of the energy, %", title=f"{PATHS} paths: median, and 80% of them")
legend = ax.legend()

# %% [markdown]
# ## What to see
#
# From the same noisy paths of about one swing, each thing that the model is told pays: the energy along new paths is
# seven times as good with a Hamiltonian, and thirty times with a separable one, and that without the slopes that the
# published nets were given. The plain net invents a friction, or its opposite, and ends on a cycle of its own. The
# separable one keeps its energy where the solver does: with a symplectic method for ever, with Tsit5 for as long as its
# tolerance lasts. Its true energy swings a little, as the learned energy is not quite the true one.
#
# The two models of the double pendulum know the acceleration equally well, and yet the errors of their
# energies differ nearly twentyfold, 8% and 0.45%, as the published ones do, 8% and 0.4%. That is the worth of the
# structure, and all of it: the motion is chaotic, and no model of it follows the true path for long.
#
# All of this is for systems without losses; for friction and forces there is `lux.PortHamiltonian`. Solvers that keep
# an energy stand in [what to choose](../docs/choosing.md), starts from slopes in [debugging](../docs/debugging.md).
