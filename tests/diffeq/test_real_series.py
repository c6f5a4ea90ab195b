"""Real cases of series: spirals sampled at unequal times, and the tutorial on theophylline."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lux_sciml as lux

TUTORIALS = Path(__file__).parents[2] / "tutorials"


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


def test_theophylline_is_fitted_as_by_nlme(tmp_path):
    """The constants are within half a standard error of the published ones."""
    spec = importlib.util.spec_from_file_location("theophylline", TUTORIALS / "theophylline.py")
    tutorial = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tutorial)
    (result,) = tutorial.main(["--short", "--output", str(tmp_path)]).values()
    errors = result.standard_errors(absolute=True)
    for name, published in tutorial.PUBLISHED.items():
        assert abs(result.params.fixed[name] - published) < 0.5 * errors.fixed[name]
    assert len(list(tmp_path.glob("*.png"))) == 2
