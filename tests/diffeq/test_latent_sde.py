"""LatentSDE: divergences against closed forms, gradients against differences, a small fit."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lux_sciml as lux

TS, BATCH = np.array([0.0, 0.5, 1.0]), 4000
RATE, PRIOR_RATE, SIGMA, PULL = 2.0, 0.5, 0.8, 0.3


class Line(lux.Layer):
    """`offset - rate z`, of the first item of a pair too."""

    rate: float
    offset: float = 0.0

    def init_params(self, key):
        return {"offset": jnp.asarray(self.offset)}

    def forward(self, x, ps, st):
        z = x[0] if isinstance(x, tuple) else x
        return ps["offset"] - self.rate * z, st


def as_it_is(x):
    return x


def first_and_small(c):
    """The start: the first context, and a log-variance."""
    return jnp.concatenate([c, jnp.full_like(c, np.log(0.25))], -1)


def constant(z):
    return jnp.full_like(z, SIGMA)


def sees(tx):
    return tx[1]


def linear(posterior, prior, **options):
    model = lux.LatentSDE(sees, first_and_small, posterior, prior, constant, as_it_is, 1, **{"dt0": 1 / 64, **options})
    return model, *lux.setup(jax.random.key(0), model, dtype=jnp.float64)


DATA = np.broadcast_to(np.array([0.4, 0.1, -0.2])[:, None], (BATCH, 3, 1))


@pytest.mark.slow
def test_divergences_of_ornstein_uhlenbeck_processes_are_the_closed_forms():
    """z' = -a z + s W' from N(m, v) against -b z: with E z^2, `(a - b)^2 / 2 s^2` times its integral."""
    model, ps, st = linear(Line(RATE), Line(PRIOR_RATE))
    ps = ps.at["start.mean"].set(-0.3).at["start.log_variance"].set(np.log(0.5))
    path, _ = jax.jit(model)((TS, DATA), ps, st)
    m, v, stationary = 0.4, 0.25, SIGMA**2 / (2 * RATE)
    squares = stationary + (m**2 + v - stationary) * (1 - np.exp(-2 * RATE)) / (2 * RATE)
    expected = (RATE - PRIOR_RATE) ** 2 / (2 * SIGMA**2) * squares
    error = np.std(path.kl_path) / np.sqrt(BATCH)
    assert abs(np.mean(path.kl_path) - expected) < 3 * error + 0.02 * expected  # and the error of the steps
    start = 0.5 * (np.log(0.5 / 0.25) + (0.25 + 0.7**2) / 0.5 - 1)
    np.testing.assert_allclose(path.kl_start, start, rtol=1e-12)
    np.testing.assert_allclose(np.std(path.xs[:, 0]), 0.5, rtol=0.05)  # the start
    moment = stationary + (v - stationary) * np.exp(-2 * RATE)  # and the end of the decoded path
    np.testing.assert_allclose(np.var(path.xs[:, -1]), moment, rtol=0.1)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.EulerHeun()], ids=["Ito", "Stratonovich"])
def test_a_constant_pull_costs_what_it_should_and_none_costs_nothing(solver):
    """Whatever the path is. After the last time of the data there is no pull."""
    model, ps, st = linear(Line(RATE, PULL), Line(RATE), solver=solver)
    call = jax.jit(model)
    expected = PULL**2 / (2 * SIGMA**2)
    for new in ((), (np.array([0.25, 1.0, 1.5]),)):
        path, _ = call((TS, DATA[:2], *new), ps, st)
        np.testing.assert_allclose(path.kl_path, expected, rtol=1e-9)
    path, _ = call((TS, DATA[:2]), ps.at["posterior.offset"].set(0.0), st)
    assert np.all(path.kl_path == 0)
    same = model.replace(batching="vmap")
    separate, _ = jax.jit(same)((np.stack([TS, 2 * TS]), DATA[:2]), ps, st)
    np.testing.assert_allclose(separate.kl_path, [expected, 2 * expected], rtol=1e-9)
    series = lux.diffeq.pad([(TS, DATA[0]), (TS[:2], DATA[1, :2])])  # the second ends half as soon
    ragged = same.replace(encoder=lux.Lambda(lambda series: jnp.nan_to_num(series.data)))
    for new, ends in (((), [1.0, 0.5]), ((np.array([0.25, 0.4]),), [0.4, 0.4])):
        path, _ = jax.jit(ragged)((series, *new) if new else series, ps, st)
        np.testing.assert_allclose(path.kl_path, np.array(ends) * expected, rtol=1e-9)
    drawn = jax.jit(lambda key: model.sample(key, TS, (BATCH,), ps, st))(jax.random.key(1))
    stationary = SIGMA**2 / (2 * RATE)
    assert drawn.shape == (BATCH, 3, 1)
    np.testing.assert_allclose(np.var(drawn[:, -1]), stationary + (1 - stationary) * np.exp(-2 * RATE), rtol=0.1)


def net(**options):
    rnn = lux.Recurrence(lux.GRUCell(3, 4), reverse=True, return_sequence=True)
    joined = lux.Chain(lambda zc: jnp.concatenate(zc, -1), lux.Dense(6, 4, jnp.tanh), lux.Dense(4, 2))
    prior = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2))
    diffusion = lux.Chain(lux.Scale(2, jax.nn.sigmoid), lambda g: g + 0.1)
    return lux.LatentSDE(
        lux.Chain(lux.IrregularSequence(), rnn), lux.Dense(4, 4), joined, prior, diffusion, lux.Dense(2, 1), 2,
        **{"dt0": 0.1, "max_steps": 16, **options},
    )  # fmt: skip


@pytest.mark.exhaustive
def test_gradients_are_differences_and_a_fit_improves_the_bound():
    model = net()
    ps, st = lux.setup(jax.random.key(0), model, dtype=jnp.float64)
    rng = np.random.default_rng(0)
    ts = np.linspace(0.0, 1.0, 6)
    xs = np.sin(3 * ts + rng.normal(0, 0.3, (8, 1)))[..., None]
    xs[0, 2] = np.nan
    xs = jnp.asarray(xs)

    def bound(ps, st):
        path, st = model((ts, xs), ps, st)
        return -lux.diffeq.elbo(path, xs, noise=0.3), st

    grad = jax.jit(jax.value_and_grad(bound, has_aux=True))
    (_, _), got = grad(ps, st)
    direction = rng.normal(size=ps.size)
    up, down = (grad(ps + sign * 1e-5 * direction, st)[0][0] for sign in (1, -1))
    np.testing.assert_allclose(got.data @ direction, (up - down) / 2e-5, rtol=1e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got.tree()["start"]))

    fitted = lux.minimize(lambda ps: bound(ps, st)[0], ps, method=optax.adam(0.02), max_steps=80).params
    (before, st), _ = grad(ps, grad(ps, st)[0][1])  # with other noise than that of the fit
    assert grad(fitted, st)[0][0] < before - 5


@pytest.mark.exhaustive
def test_what_it_does_not_take_is_refused():
    with pytest.raises(ValueError, match="fixed steps, `dt0"):
        net(dt0=None)
    with pytest.raises(ValueError, match="no event"):
        net(event=diffrax.Event(lambda *_, **__: False))
    with pytest.raises(ValueError, match="no events"):
        net(events=[lux.Event(lambda t, y, ps: y[0])])
    with pytest.raises(ValueError, match="whole path"):
        net(output="final")
    model = net()
    ps, st = lux.setup(jax.random.key(0), model, dtype=jnp.float64)
    with pytest.raises(ValueError, match="must increase"):
        model((TS[::-1], DATA[:1]), ps, st)
    with pytest.raises(ValueError, match="a context for each time"):
        few = model.replace(encoder=lux.Lambda(lambda tx: tx[1][..., :1, :]))
        few((TS, DATA[:1]), *lux.setup(jax.random.key(0), few, dtype=jnp.float64))
    with pytest.raises(ValueError, match="means and log-variances of 2 latent features"):
        odd = model.replace(initial=lux.Dense(4, 3))
        odd((TS, DATA[:1]), *lux.setup(jax.random.key(0), odd, dtype=jnp.float64))
