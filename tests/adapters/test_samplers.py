"""Posteriors by NumPyro and BlackJAX, against what is known in closed form; and for ArviZ, with names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.inference import Draws, log_posterior

dist = pytest.importorskip("numpyro.distributions")
numpyro = pytest.importorskip("numpyro")
blackjax = pytest.importorskip("blackjax")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

T = np.linspace(-1.0, 1.0, 9)
Y = 0.7 + 1.2 * T + 0.3 * np.random.default_rng(0).normal(size=9)
PRIORS = {"line.*": dist.Normal(0.0, 2.0), "rate": dist.LogNormal(0.0, 0.5)}


def log_likelihood(ps):
    predicted = ps.line.offset + ps.line.slope * jnp.asarray(T)
    return -jnp.sum((predicted - Y) ** 2) / (2 * 0.3**2)  # the rate has no part in it


@pytest.fixture
def ps():
    return lux.ComponentVector(line={"offset": 0.0, "slope": 0.0}, rate=1.0)


@pytest.fixture
def exact():
    """Mean, standard deviations, and the logarithm of the evidence, without the constant of the likelihood."""
    design = np.stack([np.ones_like(T), T], 1)
    precision = design.T @ design / 0.3**2 + np.eye(2) / 4
    covariance = np.linalg.inv(precision)
    mean = covariance @ design.T @ Y / 0.3**2
    evidence = 0.5 * (mean @ precision @ mean - Y @ Y / 0.3**2 - np.linalg.slogdet(4 * precision)[1])
    return mean, np.sqrt(np.diag(covariance)), evidence


def agrees(draws, exact, close):
    mean, error, _ = exact
    flat = draws.flat
    np.testing.assert_allclose(flat.line.data.mean(0), mean, atol=close * error.max())
    np.testing.assert_allclose(flat.line.data.std(0), error, rtol=close)
    np.testing.assert_allclose(jnp.log(flat.rate).mean(), 0.0, atol=0.5 * close)
    np.testing.assert_allclose(jnp.log(flat.rate).std(), 0.5, rtol=close)


@pytest.mark.slow
def test_samplers_of_blackjax_find_the_posterior(ps, exact, key):
    density = log_posterior(log_likelihood, ps, PRIORS)
    near = lux.adapters.blackjax.pathfinder(density, ps, key, draws=1000, max_steps=30)
    assert near.params.shape == (1, 1000, 3)
    agrees(near, exact, 0.15)  # its covariance is that of L-BFGS
    starts = lux.ComponentVector(near.params.data[0, :2], ps.layout)
    draws = lux.adapters.blackjax.nuts(density, starts, key, chains=2, warmup=200, draws=1000)
    assert draws.params.shape == (2, 1000, 3) and draws.log_density.shape == (2, 1000)
    assert isinstance(draws.params, lux.ComponentVector) and not draws.stats["diverging"].any()
    agrees(draws, exact, 0.1)
    np.testing.assert_allclose(
        draws.log_density[1, 5], density(density.free(lux.ComponentVector(draws.params.data[1, 5], ps.layout)))
    )
    particles = lux.adapters.blackjax.smc(density, key, particles=1000)
    agrees(particles, exact, 0.1)
    np.testing.assert_allclose(particles.stats["log_evidence"][0, 0], exact[2], atol=0.2)
    with pytest.raises(ValueError, match=r"prior of `rate` is -inf at the start"):
        lux.adapters.blackjax.nuts(density, ps.at["rate"].set(-1.0), key)
    nowhere = log_posterior(lambda ps: -jnp.inf * ps.rate, ps, PRIORS)
    with pytest.raises(ValueError, match="log-density of the likelihood is -inf at the start"):
        lux.adapters.blackjax.pathfinder(nowhere, ps, key)
    with pytest.raises(ValueError, match=r"\(100, 3\), one vector for each particle, got shape \(3,\)"):
        lux.adapters.blackjax.smc(density, key, particles=100, start=ps)
    with pytest.raises(ValueError, match="target_ess is a share of the particles, between 0 and 1, got 2"):
        lux.adapters.blackjax.smc(density, key, target_ess=2.0)
    for wrong, sentence in (
        ({"warmup": 0}, "warmup: expected a whole number of at least 1, got 0"),
        ({"draws": 0}, "draws: expected a whole number of at least 1, got 0"),
        ({"target_acceptance": 1.5}, "target_acceptance is a probability, between 0 and 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=sentence):
            lux.adapters.blackjax.nuts(density, ps, key, **wrong)
    with pytest.raises(ValueError, match="moves: expected a whole number of at least 1, got 0"):
        lux.adapters.blackjax.smc(density, key, moves=0)
    with pytest.raises(TypeError, match="samplers start at parameters with names"):
        lux.adapters.blackjax.pathfinder(density, ps.data, key)
    with pytest.raises(TypeError, match=r"what lux.inference.log_posterior makes, got a function"):
        lux.adapters.blackjax.nuts(log_likelihood, ps, key)
    with pytest.raises(ValueError, match="one for each of 2 chains"):
        lux.adapters.blackjax.nuts(density, lux.ComponentVector(near.params.data[0, :3], ps.layout), key, chains=2)


@pytest.mark.slow
def test_parameters_are_sites_of_a_hierarchical_model(ps, key):
    def model():
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        drawn = lux.adapters.numpyro.sample(ps.layout, PRIORS | {"line.*": dist.Normal(0.0, scale)}, "p")
        assert isinstance(drawn, lux.ComponentVector)
        numpyro.factor("likelihood", log_likelihood(drawn))

    with jax.numpy_dtype_promotion("standard"):
        sampler = numpyro.infer.MCMC(numpyro.infer.NUTS(model), num_warmup=300, num_samples=1000, progress_bar=False)
        sampler.run(key)
    samples = sampler.get_samples()
    assert set(samples) == {"scale", "p.line.offset", "p.line.slope", "p.rate"}
    draws = lux.adapters.numpyro.collect(samples, ps.layout, "p")
    assert draws.shape == (1000, 3)
    np.testing.assert_allclose(draws.line.slope, samples["p.line.slope"])
    design = np.stack([np.ones_like(T), T], 1)
    covariance = np.linalg.inv(design.T @ design / 0.3**2 + np.eye(2))  # of a scale near 1
    mean = covariance @ design.T @ Y / 0.3**2
    np.testing.assert_allclose(draws.line.data.mean(0), mean, atol=0.05)
    with pytest.raises(KeyError, match=r"no site 'line\.offset'"):
        lux.adapters.numpyro.collect(samples, ps.layout)
    with pytest.raises(ValueError, match=r"'p\.rate' should have the shape \(1000,\), draws of .*, got \(999,\)"):
        lux.adapters.numpyro.collect(samples | {"p.rate": samples["p.rate"][1:]}, ps.layout, "p")
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(ValueError, match="`rate` has no prior"):
        lux.adapters.numpyro.sample(ps.layout, {"line.*": dist.Normal(0.0, 1.0)})
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(TypeError, match="`rate` is no distribution of NumPyro"):
        lux.adapters.numpyro.sample(ps.layout, PRIORS | {"rate": Flat()})


class Flat:
    def log_prob(self, x):
        return 0.0 * x


def test_a_random_layer_is_a_function(key):
    net = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 1))
    ps, st = lux.setup(key, net)
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as sites:
        f = lux.adapters.numpyro.random_layer(net, ps, st, {"*": dist.Normal(0.0, 1.0)}, "net")
        y = f(jnp.ones((4, 2)))
    assert y.shape == (4, 1) and sites["net.layer_0.weight"]["value"].shape == (2, 3)
    drawn = lux.adapters.numpyro.collect({name: site["value"][None] for name, site in sites.items()}, ps.layout, "net")
    np.testing.assert_allclose(net(jnp.ones((4, 2)), row(drawn), st)[0], y)
    noisy = lux.Chain(net, lux.Dropout(0.5))
    ps, st = lux.setup(key, noisy)
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(ValueError, match=r"updates its state.*lux\.testmode"):
        lux.adapters.numpyro.random_layer(noisy, ps, st, {"*": dist.Normal(0.0, 1.0)})(jnp.ones(2))


def row(draws):
    return lux.ComponentVector(draws.data[0], draws.layout)


def test_arviz_has_every_component_by_name(key):
    arviz = pytest.importorskip("arviz")
    layout = lux.ComponentVector(u0=[1.0, 2.0], physics={"growth": 1.0}, net={"weight": jnp.ones((2, 3))}).layout
    params = lux.ComponentVector(jax.random.normal(key, (4, 50, 9)), layout)
    draws = Draws(params, np.zeros((4, 50)), {"diverging": np.zeros((4, 50), bool)})
    species = {"species": ["hare", "lynx"]}
    data = lux.adapters.arviz.to_arviz(
        draws, dims={"u0": ["species"]}, coords=species, prior=draws.flat, observed_data={"y": np.ones(3)}
    )
    posterior = data["posterior"]
    assert (
        posterior["u0"].dims == ("chain", "draw", "species") and list(posterior["species"].values) == species["species"]
    )
    np.testing.assert_allclose(posterior["u0"].sel(species="lynx"), params.u0[..., 1])
    np.testing.assert_allclose(posterior["net.weight"].values, params.net.weight)
    assert posterior["net.weight"].dims[2:] == ("net.weight_dim_0", "net.weight_dim_1")
    assert data["sample_stats"]["diverging"].shape == (4, 50) and data["prior"]["physics.growth"].shape == (1, 200)
    assert "u0[lynx]" in arviz.summary(data).index
    with pytest.raises(KeyError, match="dims name 'growth', and there is no such array"):
        lux.adapters.arviz.to_arviz(draws, dims={"growth": ["x"]})
    with pytest.raises(KeyError, match="coords name the axis 'spices', and there is none such"):
        lux.adapters.arviz.to_arviz(draws, dims={"u0": ["species"]}, coords={"spices": species["species"]})
    for wrong in ("species", ["species", "year"]):
        with pytest.raises(ValueError, match="the dims of 'u0' are a list of names, one for each of its 1 axes"):
            lux.adapters.arviz.to_arviz(draws, dims={"u0": wrong})
    with pytest.raises(
        ValueError, match=r"'y' of log_likelihood has .* each draw, \(4, 50, '...'\), got shape \(50, 3\)"
    ):
        lux.adapters.arviz.to_arviz(draws, log_likelihood={"y": np.ones((50, 3))})
    with pytest.raises(ValueError, match=r"draws of the prior are a batch .*, got shape \(9,\)"):
        lux.adapters.arviz.to_arviz(draws, prior=row(draws.flat))
    with pytest.raises(TypeError, match=r"draws have names, .*, got f64\[4,50,9\]"):
        lux.adapters.arviz.to_arviz(params.data)
    with pytest.raises(ValueError, match=r"a batch \(chains, draws, 9\), got shape \(200, 9\)"):
        lux.adapters.arviz.to_arviz(draws.flat)
