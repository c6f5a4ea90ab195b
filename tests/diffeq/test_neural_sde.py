"""NeuralSDE and NeuralDSDE: moments, strong solutions, gradients along a fixed path, the key, faults."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

THETA, MU, SIGMA = 1.5, 0.5, 0.4
MOTION = lux.NeuralDSDE(
    lux.Lambda(jnp.zeros_like), lux.Lambda(jnp.ones_like), ts=[0.0, 1.0], dt0=1 / 4, output="final"
)  # y is W


@jax.jit
def call(layer, x, ps, st):
    return layer(x, ps, st)


def run(layer, x):
    """The output of a layer without parameters, for the state of one seed."""
    return call(layer, x, *lux.setup(jax.random.key(0), layer))[0]


def nets(**options):
    drift, diffusion = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 2)), lux.Dense(2, 2, jnp.tanh)
    sde = lux.NeuralDSDE(drift, diffusion, ts=[0.0, 0.2, 0.4], dt0=0.1, max_steps=8, output="ys", **options)
    return sde, *lux.setup(jax.random.key(1), sde)


# --- distributions ------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_moments_of_the_ornstein_uhlenbeck_process():
    n, ts = 4000, np.array([0.0, 0.5, 2.0])
    options = {"ts": ts, "dt0": 0.02, "solver": diffrax.Heun(), "trajectories": n}
    drift, diffusion = lux.Lambda(lambda y: THETA * (MU - y)), lux.Lambda(lambda y: jnp.full_like(y, SIGMA))
    sde = lux.NeuralDSDE(drift, diffusion, **options)
    sol = run(sde, jnp.array([2.0]))
    mean, variance = lux.diffeq.ensemble_moments(sol.ys)
    decay = np.exp(-THETA * ts[1:])
    exact_mean, exact_variance = MU + (2.0 - MU) * decay, SIGMA**2 / (2 * THETA) * (1 - decay**2)
    # Four standard errors of n independent normal numbers; Heun's own error, (theta dt)^2 / 6, is a tenth of one.
    np.testing.assert_array_less(abs(mean[1:, 0] - exact_mean), 4 * np.sqrt(exact_variance / n))
    np.testing.assert_array_less(abs(variance[1:, 0] - exact_variance), 4 * exact_variance * np.sqrt(2 / (n - 1)))
    assert sol.ys.shape == (3, n, 1)


def test_general_noise_has_the_covariance_of_its_matrix():
    matrix, n = np.array([[1.0, 0.5, 0.0], [0.0, -0.3, 0.8]]), 4000
    options = {"ts": [0.0, 0.5], "dt0": 0.25, "trajectories": n, "output": "final"}
    diffusion = lux.Lambda(lambda y: jnp.broadcast_to(jnp.asarray(matrix), (*y.shape, 3)))
    sde = lux.NeuralSDE(MOTION.drift, diffusion, **options)
    y = run(sde, jnp.zeros(2))
    exact = 0.5 * matrix @ matrix.T
    error = 4 * np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / n)  # of a sample covariance
    np.testing.assert_array_less(abs(np.cov(y.T) - exact), error)


# --- strong solutions: along the same Brownian path ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("solver", "ito", "order"),
    [(diffrax.Euler(), True, 0.5), (diffrax.ItoMilstein(), True, 1.0), (diffrax.Heun(), False, 1.0)],
    ids=["Euler", "ItoMilstein", "Heun"],
)
def test_geometric_brownian_motion_converges_with_the_order_of_the_solver(solver, ito, order):
    a, b = 0.3, 0.7
    sde = MOTION.replace(drift=lux.Lambda(lambda y: a * y), diffusion=lux.Lambda(lambda y: b * y), solver=solver)

    w = run(MOTION.replace(batching="vmap"), jnp.zeros((512, 1)))  # the path does not depend on the steps: see below
    exact = np.exp((a - b**2 / 2 if ito else a) + b * w)

    def error(dt0):
        y = run(sde.replace(dt0=dt0, batching="vmap"), jnp.ones((512, 1)))
        return np.sqrt(np.mean((y - exact) ** 2))

    coarse, fine = error(1 / 16), error(1 / 256)
    # A root mean square over 512 paths is known to some 10 percent (its square is heavy-tailed), the order to 0.05.
    np.testing.assert_allclose(np.log(coarse / fine) / np.log(16), order, atol=0.15)
    assert fine < (0.05 if order < 1 else 0.005)


@pytest.mark.slow
def test_the_path_does_not_depend_on_the_steps():
    values = [run(MOTION.replace(dt0=dt0), jnp.zeros(2)) for dt0 in (1 / 4, 1 / 32)]
    np.testing.assert_allclose(*values, rtol=1e-12)


@pytest.mark.exhaustive
def test_general_noise_with_a_diagonal_matrix_is_diagonal_noise():
    sde, ps, st = nets()
    general = lux.NeuralSDE(sde.drift, lux.Lambda(lambda y: y[..., None] * jnp.eye(2)), ts=sde.ts, dt0=0.1, output="ys")
    diagonal = sde.replace(diffusion=lux.Lambda(lambda y: y))
    ps, st = {"drift": ps.drift.tree(), "diffusion": {}}, {**st, "diffusion": {}}
    got, expected = (call(layer, jnp.ones((3, 2)), ps, st) for layer in (general, diagonal))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("solver", [diffrax.SPaRK(), diffrax.ShARK()], ids=["SPaRK", "ShARK"])
def test_adaptive_steps_and_solvers_with_levy_areas(solver):
    controller = diffrax.PIDController(rtol=1e-3, atol=1e-3, pcoeff=0.1, icoeff=0.3)
    sde = lux.NeuralDSDE(
        lux.Lambda(jnp.negative), lux.Lambda(lambda y: jnp.full((2,), SIGMA)), ts=[0.0, 1.0], dt0=1 / 128, solver=solver
    )
    fixed, adaptive = (run(layer, jnp.ones(2)) for layer in (sde, sde.replace(stepsize_controller=controller)))
    assert adaptive.stats["num_steps"] < 100 < fixed.stats["num_steps"]
    np.testing.assert_allclose(adaptive.ys[-1], fixed.ys[-1], atol=5e-3)


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_checkpointed_gradients_are_those_of_direct_ones():
    sde, ps, st = nets(solver=diffrax.ReversibleHeun())
    gradient = jax.jit(jax.grad(lambda ps, layer: jnp.sum(layer(jnp.ones((3, 2)), ps, st)[0] ** 2)), static_argnums=1)
    checkpointed, direct = (gradient(ps, layer) for layer in (sde, sde.replace(adjoint=diffrax.DirectAdjoint())))
    assert checkpointed.layout is ps.layout
    np.testing.assert_allclose(checkpointed.data, direct.data, rtol=1e-10)


def test_one_path_per_state_and_the_key_is_renewed():
    sde, ps, st = nets()
    (first, after), (again, _) = (call(sde, jnp.ones(2), ps, st) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert after["key"] != st["key"]
    assert jax.tree.structure(after) == jax.tree.structure(st)
    assert jnp.all(call(sde, jnp.ones(2), ps, after)[0][-1] != first[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (3, 3, 2)), ({"batching": "vmap"}, (3, 3, 2)), ({"batching": "vmap", "trajectories": 4}, (3, 3, 4, 2))],
)
def test_samples_and_trajectories_have_paths_of_their_own(options, shape):
    sde, ps, st = nets(**options)
    ys, _ = call(sde, jnp.ones((3, 2)), ps, st)
    assert ys.shape == shape
    last = ys[:, -1] if options else ys[-1]
    assert len(np.unique(last)) == last.size


def test_frozen_dropout_in_the_drift():
    model = MOTION.replace(drift=lux.Dropout(0.5))
    ps, st = lux.setup(jax.random.key(0), model)
    with pytest.raises(ValueError, match=r"Dropout.*updates its state"):
        model(jnp.ones(2), ps, st)
    _, after = model.replace(on_state_update="discard")(jnp.ones(2), ps, st)
    assert after["drift"]["key"] != st["drift"]["key"]


@pytest.mark.exhaustive
def test_training_by_moments():
    """The factor that gives these paths of a Brownian motion the variance 0.25 after one unit of time."""
    diffusion = lux.Chain(jnp.ones_like, lux.Dense(1, 1, use_bias=False))
    sde = MOTION.replace(diffusion=diffusion, dt0=1.0, trajectories=200, max_steps=2, output="ys")
    ps, st = lux.setup(jax.random.key(0), sde)

    def variance(ps):
        return lux.diffeq.ensemble_moments(sde(jnp.zeros(1), ps, st)[0])[1][-1, 0]

    fitted = lux.minimize(lambda ps: (variance(ps) - 0.25) ** 2, ps, method="BFGS").params
    np.testing.assert_allclose(variance(fitted), 0.25, rtol=1e-5)


# --- faults and bad input -----------------------------------------------------------------------------------------


def test_too_few_steps_are_nan():
    sol = run(MOTION.replace(max_steps=2, output="solution"), jnp.zeros(2))
    assert sol.result == diffrax.RESULTS.max_steps_reached
    assert jnp.all(jnp.isnan(sol.ys))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.NeuralDSDE(MOTION.drift, MOTION.diffusion, ts=[0.0, 1.0]), "takes fixed steps, `dt0=...`"),
        (lambda: MOTION.replace(rtol=1e-3), "takes fixed steps"),
        (lambda: MOTION.replace(ts=[1.0, 0.0]), "forward in time"),
        (
            lambda: run(MOTION.replace(diffusion=lux.Lambda(lambda y: jnp.ones((2, 3)))), jnp.zeros(2)),
            r"diffusion of a NeuralDSDE has shape \(2,\) here, got \(2, 3\)",
        ),
        (
            lambda: run(lux.NeuralSDE(MOTION.drift, MOTION.diffusion, ts=[0.0, 1.0], dt0=0.1), jnp.zeros(2)),
            r"diffusion of a NeuralSDE has shape \(2, noises\) here, got \(2,\)",
        ),
        (lambda: lux.diffeq.ensemble_moments(jnp.ones((3, 1))), "two paths or more along axis 1"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.exhaustive
def test_gradients_of_values_saved_where_steps_end():
    """0.6 as a save time is one unit in the last place after the end of a step."""
    sde = lux.NeuralDSDE(lux.Dense(1, 1), lux.Dense(1, 1), ts=np.linspace(0.0, 1.0, 6), dt0=0.1, output="ys")
    ps, st = lux.setup(jax.random.key(0), sde, dtype=jnp.float64)
    call = jax.jit(lambda p: sde(jnp.ones(1), p, st)[0][:, 0])
    reverse = jax.jit(jax.jacrev(call))(ps)
    for i in range(2):
        step = 1e-6 * jnp.eye(ps.size)[i]
        np.testing.assert_allclose(reverse.data[:, i], (call(ps + step) - call(ps - step)) / 2e-6, rtol=1e-6, atol=1e-8)
