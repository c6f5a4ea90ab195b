"""Simulation-based calibration of the whole chain: prior, data, log-posterior, sampler.

Talts et al., "Validating Bayesian inference algorithms with simulation-based calibration", arXiv:1804.06788: where
parameters are drawn from the prior, and data by them, their ranks among draws of the posterior are uniform.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import lux_sciml as lux
from lux_sciml.inference import log_posterior

dist = pytest.importorskip("numpyro.distributions")
blackjax = pytest.importorskip("blackjax")

T = np.array([0.2, 0.6, 1.2])
SIMULATIONS, DRAWS, THINNED, BINS = 256, 15 * 8, 15, 8


def ranks(key, wrong=0.0):
    """The ranks of true parameters among thinned draws, `(simulations, 2)`; the posterior errs by `wrong`."""
    layout = lux.ComponentVector(rate=1.0, level=[0.0]).layout
    priors = {"rate": dist.LogNormal(0.0, 0.5), "level": dist.Normal(1.0, 0.5)}

    def predict(ps):
        return ps.level[0] * jnp.exp(-ps.rate * jnp.asarray(T))

    def density_of(y):
        return log_posterior(lambda ps: -jnp.sum((predict(ps) - y) ** 2) / (2 * 0.2**2), layout, priors)

    def one(key):
        first, second, third = jax.random.split(key, 3)
        density = density_of(0.0)
        truth = density.sample_prior(first)
        y = predict(truth) + 0.2 * jax.random.normal(second, T.shape) + wrong
        density = density_of(y)
        kernel = blackjax.nuts(density, step_size=0.5, inverse_mass_matrix=jnp.array([0.2, 0.1]), max_num_doublings=4)
        state = kernel.init(density.free(truth))  # a draw of the posterior: the chain starts in equilibrium

        def step(state, key):
            state, _ = kernel.step(key, state)
            return state, density.params(state.position).data

        _, draws = jax.lax.scan(step, state, jax.random.split(third, DRAWS))
        return jnp.sum(draws[7::8] < truth.data, axis=0)

    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, SIMULATIONS)))


def statistic(ranks):
    """Pearson's, of the counts of ranks in bins, for each parameter."""
    counts = np.stack([np.bincount(column * BINS // (THINNED + 1), minlength=BINS) for column in ranks.T])
    expected = SIMULATIONS / BINS
    return ((counts - expected) ** 2 / expected).sum(axis=1)


@pytest.mark.slow
def test_ranks_are_uniform_and_those_of_a_wrong_posterior_are_not(key):
    most = chi2.ppf(1 - 1e-3 / 2, BINS - 1)
    assert (statistic(ranks(key)) < most).all()
    assert (statistic(ranks(key, wrong=0.1)) > most).any()
