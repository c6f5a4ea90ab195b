"""Real cases of series: spirals sampled at unequal times, and the concentrations of theophylline."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

DATA = Path(__file__).parents[2] / "tutorials" / "data" / "theophylline.csv"


def spirals(count, most, seed):
    """Series of 4 to `most` points on spirals, `y' = (-0.3 x - 2 y, 2 x - 0.3 y)`, at times of their own."""
    draw = np.random.default_rng(seed)
    out = []
    for n in draw.integers(4, most + 1, count):
        ts = np.concatenate([[0.0], np.sort(draw.uniform(0.05, 2.0, n - 1))])
        angle, size = draw.uniform(0, 2 * np.pi), draw.uniform(0.5, 1.5)
        curve = size * np.exp(-0.3 * ts)[:, None] * np.stack([np.cos(2 * ts + angle), np.sin(2 * ts + angle)], -1)
        out.append((ts, curve))
    return lux.diffeq.pad(out, length=most)


@pytest.mark.exhaustive
def test_a_neural_ode_learns_spirals_sampled_at_unequal_times():
    """A few steps, on a third of the values missing; on new spirals, at new times, it is as good."""
    node = lux.NeuralODE(lux.Chain(lux.Dense(2, 8, jnp.tanh), lux.Dense(8, 2)), batching="vmap", output="ys",
                         rtol=1e-4, atol=1e-5, max_steps=64)  # fmt: skip
    ps, st = lux.setup(jax.random.key(0), node)
    known, new = spirals(12, 7, 0), spirals(12, 7, 1)
    missing = np.random.default_rng(2).uniform(size=known.values.shape) < 1 / 3
    missing[:, 0] = False
    holed = lux.diffeq.Series(known.times, np.where(missing, np.nan, known.values), known.mask)

    def loss(ps, series):
        ys, _ = node((series.data[:, 0], series), ps, st)
        return lux.losses.mse(ys, series)

    result = lux.minimize(loss, ps, method="BFGS", args=holed, max_steps=40)
    before, after = loss(ps, new), loss(result.params, new)
    assert result.value < 1e-3 < 0.3 < before and after < 3e-3


@pytest.mark.exhaustive
def test_theophylline_is_fitted_as_by_nlme():
    """With the variances of nlme's fit with effects on lKa and lCl (Pinheiro and Bates, 2000), its constants."""
    published, sigma, spread = {"lKe": -2.455, "lKa": 0.466, "lCl": -3.227}, 0.709, {"lKa": 0.644, "lCl": 0.167}
    subject, _, dose, time, concentration = np.loadtxt(DATA, delimiter=",", skiprows=2).T
    series = lux.diffeq.pad({"id": subject, "time": time, "concentration": concentration})
    doses = lux.diffeq.pad({"id": subject, "time": time, "dose": dose}).values[:, 0]

    def field(u, p, nets):
        absorbed = jnp.exp(p.lKa) * u.depot
        return lux.ComponentVector(depot=-absorbed, blood=absorbed - jnp.exp(p.lKe) * u.blood)

    guess = {"lKe": -2.0, "lKa": 0.0, "lCl": -3.0}
    node = lux.NeuralODE(lux.UDE(field, guess), jumps=lux.Jumps([0.0]), output="ys",
                         rtol=1e-5, atol=1e-7, max_steps=256)  # fmt: skip
    ps, st = lux.setup(jax.random.key(0), node)
    ps = lux.ComponentVector(fixed=ps.physics, effects={name: jnp.zeros(len(series)) for name in spread})

    def residual(ps):
        def of_one(effects, times, dose):
            own = {name: ps.fixed[name] + effects.get(name, 0.0) for name in published}
            empty = lux.ComponentVector(depot=0.0, blood=0.0)
            ys, _ = node((empty, times, {"amounts": {"depot": dose}}), {"physics": own}, st)
            return ys.blood[:, None] * jnp.exp(own["lKe"] - own["lCl"])

        effects = {name: ps.effects[name] for name in spread}
        misses = jax.vmap(of_one)(effects, series, doses) - series.values
        effects = {name: ps.effects[name] / spread[name] for name in spread}
        return {"data": jnp.where(series.mask[..., None], misses, 0) / sigma, "effects": effects}

    result = lux.least_squares(residual, ps, max_steps=50)
    for name, value in published.items():
        assert abs(result.params.fixed[name] - value) < 6e-4  # in all printed digits
