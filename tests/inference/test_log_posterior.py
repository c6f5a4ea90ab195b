"""Log-densities over free vectors: against densities written by hand, by name, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats

import lux_sciml as lux
from lux_sciml.inference import log_posterior


class Normal:
    def log_prob(self, x):
        return stats.norm.logpdf(x)


class Exponential:
    """Of rate 2."""

    support = lux.constraints.Positive(exponential=True)

    def log_prob(self, x):
        return jnp.log(2.0).astype(x.dtype) - 2.0 * x

    def sample(self, key, shape):
        return jax.random.exponential(key, shape) / 2


@pytest.fixture
def ps():
    return lux.ComponentVector(physics={"growth": 0.5, "decay": [0.2, 0.3]}, net={"weight": [[0.1, -0.2]]})


PRIORS = {"*": Normal(), "physics.*": Exponential()}


def log_likelihood(ps):
    return -jnp.sum((ps.physics.decay * ps.physics.growth - 1) ** 2) - jnp.sum(ps.net.weight**4)


@pytest.mark.slow
def test_the_density_is_that_of_the_free_vector(ps):
    density = log_posterior(log_likelihood, ps, PRIORS)
    free = density.start(ps)
    np.testing.assert_allclose(free.data, [*np.log([0.5, 0.2, 0.3]), 0.1, -0.2], rtol=1e-12)
    by_hand = np.sum(np.log(2) - 2 * ps.data[:3]) + np.sum(stats.norm.logpdf(ps.data[3:]))
    np.testing.assert_allclose(density.log_prior(ps), by_hand, rtol=1e-12)
    expected = by_hand + np.sum(np.log(ps.data[:3])) + log_likelihood(ps)
    np.testing.assert_allclose(density(free), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(density)(free), expected, rtol=1e-12)
    assert isinstance(jax.grad(density)(free), lux.ComponentVector)
    both = lux.ComponentVector(jnp.stack([free.data, free.data + 1]), free.layout)
    np.testing.assert_allclose(density.params(both).physics.growth, [0.5, 0.5 * np.e], rtol=1e-12)
    np.testing.assert_allclose(density.free(density.params(both)).data, both.data, rtol=1e-12)


@pytest.mark.exhaustive
def test_numpyro_distributions_of_all_supports(key):
    dist = pytest.importorskip("numpyro.distributions")
    ps = lux.ComponentVector(rate=2.0, share=0.3, mix=[0.2, 0.3, 0.5], scale=[1.5, 1.2], weight=jnp.zeros((2, 3)))
    priors = {
        "rate": dist.LogNormal(0.5, 1.0),
        "share": dist.Beta(2.0, 3.0),
        "mix": dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
        "scale": dist.TruncatedNormal(1.0, 2.0, low=1.0),
        "weight": dist.Normal(jnp.zeros(3), 2.0),  # one for each column
    }
    density = log_posterior(lambda ps: jnp.sum(ps.mix) * 0.0, ps, priors)
    free = density.start(ps)
    assert free.layout.size == ps.size - 1 and free.mix.shape == (2,)
    np.testing.assert_allclose(density.params(free).data, ps.data, rtol=1e-9)
    np.testing.assert_allclose(density.log_prior(ps), sum(np.sum(priors[k].log_prob(ps[k])) for k in priors), rtol=1e-9)

    def square(free):  # without the last share, which follows from the others
        return jnp.delete(density.params(free).data, 4)

    _, volume = jnp.linalg.slogdet(jax.jacfwd(square)(free).data)
    np.testing.assert_allclose(density.prior(free) - density.log_prior(ps), volume, rtol=1e-9)
    draws = density.sample_prior(key, (4000,))
    assert draws.shape == (4000, ps.size) and bool(jnp.all(draws.scale > 1))
    np.testing.assert_allclose(draws.mix.mean(0), [1 / 6, 1 / 3, 1 / 2], atol=0.02)
    np.testing.assert_allclose(jnp.log(draws.rate).mean(), 0.5, atol=0.06)
    with pytest.raises(ValueError, match=r"of `mix` is of shape \(3,\), which does not fit the component's, \(2,\)"):
        log_posterior(log_likelihood, lux.ComponentVector(mix=[0.5, 0.5]), {"mix": priors["mix"]})
    with pytest.raises(ValueError, match="of `rate` is discrete, Poisson"):
        log_posterior(log_likelihood, lux.ComponentVector(rate=1.0), {"rate": dist.Poisson(1.0)})
    with pytest.raises(ValueError, match=r"prior of `rate` is -inf at the start, at -1\."):
        density.start(ps.at["rate"].set(-1.0))


@pytest.mark.slow
def test_what_priors_miss_and_densities_lack_is_said_in_a_sentence(ps, key):
    with pytest.raises(ValueError, match=r"`net\.weight` has no prior: name it"):
        log_posterior(log_likelihood, ps, {"physics.*": Exponential()})
    with pytest.raises(KeyError, match=r"no component matches 'phys\.\*'"):
        log_posterior(log_likelihood, ps, {"*": Normal(), "phys.*": Exponential()})
    with pytest.raises(ValueError, match=r"the prior 'physics\.\*' is of no component, as later ones override it"):
        log_posterior(log_likelihood, ps, {"physics.*": Exponential(), "*": Normal()})
    with pytest.raises(TypeError, match="distribution with `log_prob` and `support`"):
        log_posterior(log_likelihood, ps, {"*": (0.0, 1.0)})
    with pytest.raises(TypeError, match="not its value"):
        log_posterior(jnp.array(1.0), ps, PRIORS)
    with pytest.raises(ValueError, match=r"one number, got shape \(2,\)"):
        log_posterior(lambda ps: ps.physics.decay, ps, PRIORS).start(ps)

    class Wide(Normal):
        def log_prob(self, x):
            return super().log_prob(x - jnp.zeros(3))

    with pytest.raises(ValueError, match=r"`physics\.growth` has a log-density of shape \(3,\), .* shape, \(\)"):
        log_posterior(log_likelihood, ps, {"*": Normal(), "physics.growth": Wide()})
    before = np.array(ps.data)
    density = log_posterior(log_likelihood, ps, PRIORS)
    with pytest.raises(ValueError, match=r"`physics\.growth` of the free vector is nan at the start"):
        density.start(ps.at["physics.growth"].set(-0.5))
    with pytest.raises(ValueError, match=r"`physics\.growth` of .* is nan at the start: .* not on its edge"):
        density.start(ps.at["physics.growth"].set(0.0))
    nowhere = log_posterior(lambda ps: jnp.log(ps.net.weight[0, 1]), ps, PRIORS)
    with pytest.raises(ValueError, match="log-density of the likelihood is nan at the start"):
        nowhere.start(ps)
    with pytest.raises(ValueError, match="is -inf at the start"):
        nowhere.start(ps.at["net.weight"].set(0.0))
    kink = log_posterior(lambda ps: -jnp.sqrt(ps.net.weight[0, 0]), ps, PRIORS)
    with pytest.raises(ValueError, match=r"derivative of the log-density of the likelihood by `net\.weight\[0,0\]` is"):
        kink.start(ps.at["net.weight"].set(0.0))
    with pytest.raises(TypeError, match=r"`net\.weight` has a flat prior, which cannot be drawn from"):
        log_posterior(log_likelihood, ps, {**PRIORS, "*": None, "physics.*": Exponential()}).sample_prior(key)
    with pytest.raises(ValueError, match="the layouts differ"):
        density.start(lux.ComponentVector(growth=1.0))
    np.testing.assert_array_equal(ps.data, before)
