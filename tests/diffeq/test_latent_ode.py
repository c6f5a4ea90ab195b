"""LatentODE, ODERNN, IrregularSequence, elbo: against plain loops, exact posteriors and finite differences."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

TS = np.array([0.0, 0.2, 0.5, 1.0])
XS = np.array([[0.3, 1.0], [-1.0, np.nan], [np.nan, np.nan], [0.7, 2.0]])
FIXED = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.3, "max_steps": 8}
DECAY = lux.Lambda(lambda h: -2.0 * h)


@jax.jit
def call(layer, x, ps, st):
    return layer(x, ps, st)


def ode_rnn(**options):
    rnn = lux.ODERNN(lux.GRUCell(4, 3), DECAY, **options)
    return rnn, *lux.setup(jax.random.key(0), rnn)


def latent_ode(**options):
    encoder = lux.Chain(lux.IrregularSequence(), lux.Recurrence(lux.GRUCell(5, 3), reverse=True), lux.Dense(3, 4))
    dynamics = lux.NeuralODE(lux.Dense(2, 2, jnp.tanh), output="ys", **options)
    model = lux.LatentODE(encoder, dynamics, lux.Dense(2, 2))
    return model, *lux.setup(jax.random.key(0), model)


# --- ODE-RNN ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_ode_rnn_is_a_cell_between_exact_decays(reverse):
    rnn, ps, st = ode_rnn(rtol=1e-9, atol=1e-11, reverse=reverse)
    hs, _ = call(rnn, (jnp.asarray(TS), jnp.asarray(XS)), ps, st)
    h, expected, order = jnp.zeros(3), {}, range(4)[:: -1 if reverse else 1]
    for i, before in zip(order, [None, *order], strict=False):
        if before is not None:  # the time runs backward in reverse, and the decay is a growth
            h = h * np.exp(-2.0 * (TS[i] - TS[before]))
        if not np.isnan(XS[i]).all():
            x = jnp.concatenate([jnp.nan_to_num(XS[i]), 1.0 - np.isnan(XS[i])])
            (_, h), _ = rnn.cell((x, h), ps.cell, {})
        expected[i] = h
    np.testing.assert_allclose(hs, [expected[i] for i in range(4)], rtol=1e-6)
    final, _ = call(rnn.replace(output="final"), (jnp.asarray(TS), jnp.asarray(XS)), ps, st)
    np.testing.assert_allclose(final, expected[order[-1]], rtol=1e-6)


@pytest.mark.slow
def test_ode_rnn_batches_agree_and_may_have_their_own_times():
    rnn, ps, st = ode_rnn(rtol=1e-8)
    xs = jnp.stack([XS, 2 * XS])
    joint, _ = call(rnn, (jnp.asarray(TS), xs), ps, st)
    own, _ = call(rnn.replace(batching="vmap"), (jnp.stack([TS, 2 * TS]), xs), ps, st)
    assert joint.shape == (4, 2, 3)
    np.testing.assert_allclose(joint[:, 0], own[0], rtol=1e-6)
    assert jnp.all(joint[1:, 1] != own[1, 1:])


def test_the_memory_of_an_lstm_stays_between_observations():
    rnn = lux.ODERNN(lux.LSTMCell(4, 3), DECAY)
    ps, st = lux.setup(jax.random.key(0), rnn)
    hs, _ = call(rnn, (jnp.asarray(TS[:2]), jnp.asarray(XS[[0, 3]])), ps, st)
    x = [jnp.concatenate([XS[i], jnp.ones(2)]) for i in (0, 3)]
    (_, (h, c)), _ = rnn.cell(x[0], ps.cell, {})
    (expected, _), _ = rnn.cell((x[1], (h * np.exp(-0.4), c)), ps.cell, {})
    np.testing.assert_allclose(hs[-1], expected, rtol=1e-5)


# --- LatentODE and its bound --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bound_at_the_exact_posterior_is_the_evidence():
    """z ~ N(0, 1), two observations z + 0.5 noise: for the posterior the bound is log p(x), for another one less."""
    n, noise, x = 20000, 0.5, np.array([0.8, 0.2])
    precision = 1 + 2 / noise**2
    mean, log_variance = x.sum() / noise**2 / precision, -np.log(precision)

    def model(shift):
        constant = lux.Lambda(lambda x: jnp.broadcast_to(jnp.array([mean + shift, log_variance]), (n, 2)))
        still = lux.NeuralODE(lux.Lambda(jnp.zeros_like), output="ys", **FIXED)
        layer = lux.LatentODE(constant, still, lux.Lambda(lambda z: z))
        xs = jnp.broadcast_to(jnp.asarray(x)[:, None], (n, 2, 1))
        path, _ = call(layer, (jnp.array([0.0, 1.0]), xs), *lux.setup(jax.random.key(0), layer))
        return path, xs

    covariance = np.ones((2, 2)) + noise**2 * np.eye(2)
    evidence = -0.5 * (x @ np.linalg.solve(covariance, x) + np.log(np.linalg.det(2 * np.pi * covariance)))
    path, xs = model(0.0)
    deviation = np.std(np.sum((xs - path.xs) ** 2, axis=(1, 2)) / (2 * noise**2))
    assert abs(lux.diffeq.elbo(path, xs, noise=noise) - evidence) < 4 * deviation / np.sqrt(n)
    # Another mean loses its Kullback-Leibler divergence from the posterior, shift^2 / (2 variance).
    np.testing.assert_allclose(evidence - lux.diffeq.elbo(*model(0.5), noise=noise), 0.125 * precision, atol=0.05)


def test_the_bound_leaves_out_what_is_missing():
    path = lux.diffeq.LatentPath(jnp.zeros((4, 2)), jnp.array([1.0]), jnp.array([np.log(4.0)]))
    observed = XS[~np.isnan(XS)]
    log_density = -0.5 * np.sum((observed / 0.5) ** 2 + np.log(2 * np.pi * 0.25))
    divergence = 0.5 * (1 + 4 - 1 - np.log(4.0))
    np.testing.assert_allclose(lux.diffeq.elbo(path, jnp.asarray(XS), noise=0.5), log_density - divergence)
    np.testing.assert_allclose(lux.diffeq.elbo(path, jnp.asarray(XS), noise=0.5, kl_weight=0.0), log_density)
    gradient = jax.grad(lambda xs: lux.diffeq.elbo(path._replace(xs=xs), jnp.asarray(XS), noise=0.5))(path.xs)
    np.testing.assert_allclose(gradient, np.nan_to_num(XS) / 0.25)


def test_training_draws_testing_does_not():
    model, ps, st = latent_ode(**FIXED)
    x = (jnp.asarray(TS), jnp.stack([XS, XS]))
    (path, after), (again, _), (other, _) = (call(model, x, ps, s) for s in (st, st, call(model, x, ps, st)[1]))
    np.testing.assert_array_equal(path.xs, again.xs)
    assert jnp.all(path.xs[0] != path.xs[1])  # equal data, noise of its own
    assert jnp.all(path.xs != other.xs)
    assert after["key"] != st["key"]
    tested, kept = call(model, x, ps, lux.testmode(st))
    np.testing.assert_array_equal(tested.xs[0], tested.xs[1])
    assert kept["key"] == st["key"]


@pytest.mark.slow
def test_prediction_at_other_times_for_each_sample():
    model, ps, st = latent_ode(batching="vmap", rtol=1e-8)
    st, xs, ts = lux.testmode(st), jnp.stack([XS, -XS]), jnp.stack([TS, TS])
    at_data, _ = call(model, (ts, xs), ps, st)
    path, _ = call(model, (ts, xs, jnp.array([[0.0, 0.5, 2.0], [0.0, 0.2, 1.0]])), ps, st)
    assert path.xs.shape == (2, 3, 2)
    np.testing.assert_allclose(path.xs[0, :2], at_data.xs[0, [0, 2]], rtol=1e-6)
    np.testing.assert_allclose(path.xs[1], at_data.xs[1, [0, 1, 3]], rtol=1e-6)


@pytest.mark.slow
def test_elbo_trains_a_latent_ode():
    model, ps, st = latent_ode(**FIXED)
    xs = jnp.stack([np.sin(TS + a)[:, None] * np.ones(2) for a in (0.0, 0.5, 1.0)])

    def loss(ps):
        return -lux.diffeq.elbo(model((jnp.asarray(TS), xs), ps, st)[0], xs, noise=0.3)

    result = lux.minimize(loss, ps, method="BFGS", max_steps=20)
    assert result.value < 0.2 * loss(ps)


def with_dynamics(**options):
    model, ps, st = latent_ode()
    model = model.replace(dynamics=model.dynamics.replace(**options))
    return call(model, (jnp.asarray(TS), jnp.ones((4, 2))), ps, st)


def with_no_path():
    model, ps, st = latent_ode()
    model = model.replace(dynamics=lux.Lambda(lambda x: x[0]))
    return call(model, (jnp.asarray(TS), jnp.ones((4, 2))), {**ps.tree(), "dynamics": {}}, st)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.ODERNN(lux.Dense(4, 3), DECAY), "runs a recurrent cell"),
        (lambda: ode_rnn(output="solution"), 'its output is "ys" or "final"'),
        (
            lambda: call(ode_rnn()[0], (jnp.asarray(TS), jnp.ones((3, 2))), *ode_rnn()[1:]),
            r"\(4,\) has shape .*\(3, 2\)",
        ),
        (lambda: call(latent_ode()[0], jnp.ones(3), *latent_ode()[1:]), r"takes the tuple \(times, data\)"),
        (lambda: with_dynamics(ts=TS), "build them without `ts`"),
        (
            lambda: latent_ode()[0].replace(dynamics=lux.NeuralODE(DECAY, output="final")),
            r'all times.*got output="final"',
        ),
        (lambda: with_no_path(), r"path at all times.*got f64\[2\] for 4 times"),
        (
            lambda: lux.diffeq.elbo(
                lux.diffeq.LatentPath(jnp.ones((3, 1)), jnp.ones(1), jnp.ones(1)), jnp.ones((4, 1)), noise=1.0
            ),
            r"the shape of the reconstruction, \(3, 1\), got \(4, 1\)",
        ),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()
