"""The discrete adjoint of explicit methods, against diffrax's own checkpointing of the same steps."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.diffeq.adjoints import record

TS = np.linspace(0.0, 2.0, 5)
MODEL = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2))
Y0 = np.array([[1.0, -0.5], [0.3, 2.0], [-4.0, 1.0]])


def gradients(adjoint, times=None, **options):
    """Gradients of a loss over all outputs, with respect to parameters and initial values; `times` of each sample."""
    options = {"ts": TS, "rtol": 1e-5, **options} if times is None else {"rtol": 1e-5, "batching": "vmap", **options}
    node = lux.NeuralODE(MODEL, adjoint=adjoint, output="ys", **options)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)

    def loss(ps, y0):
        return jnp.sum(jnp.sin(3 * node(y0 if times is None else (y0, times), ps, st)[0]))

    grad_ps, grad_y0 = jax.jit(jax.grad(loss, argnums=(0, 1)))(ps, Y0)
    return grad_ps.data, grad_y0


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"ts": TS[::-1]},
        {"batching": "vmap"},
        {"saveat": diffrax.SaveAt(t1=True), "solver": diffrax.Heun()},
        {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.0031, "batching": "vmap"},  # more steps than slots
        {"ts": [0.0, 0.03, 0.04, 2.0]},
        {"times": np.array([[0.0, 0.5, 2.0], [2.0, 1.99, 1.9], [0.1, 0.4, 0.4]])},
    ],
    ids=["backward", "by sample", "end", "many steps", "few times", "few times of each"],
)
def test_agrees_with_diffrax(options):
    if "stepsize_controller" in options:
        options = {**options, "rtol": 1e-6}
    for a, b in zip(
        gradients("checkpointed", **options), gradients(diffrax.RecursiveCheckpointAdjoint(), **options), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "batching"), [(20, "vmap"), (63, "joint")])
def test_few_states_are_held(steps, batching, monkeypatch):
    """What is between two of them is found again in parts, for which there is room."""
    monkeypatch.setattr(record, "_FEWEST", 4)
    monkeypatch.setattr(record, "_MOST", 4)
    assert record._slots(jnp.ones(2), 64) == 4
    fixed = {
        "stepsize_controller": diffrax.ConstantStepSize(),
        "dt0": 2.0 / steps,
        "max_steps": 64,
        "rtol": 1e-6,
        "batching": batching,
    }
    expected = gradients(diffrax.RecursiveCheckpointAdjoint(), **fixed)
    for a, b in zip(gradients("checkpointed", **fixed), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("batching", ["joint", "vmap"])
def test_batches_of_parameters_and_samples(batching):
    """Gradients inside of a vmap are those of each element, over parameters, over samples, and over both."""
    node = lux.NeuralODE(MODEL, ts=TS, rtol=1e-5, output="final", batching=batching)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
    data = jnp.stack([ps.data, 1.5 * ps.data])
    grad = jax.grad(lambda data, y0: jnp.sum(node(y0, lux.ComponentVector(data, ps.layout), st)[0] ** 2))
    batches = jnp.stack([Y0, 0.5 * Y0])
    pairs = jax.jit(jax.vmap(jax.vmap(grad, in_axes=(None, 0)), in_axes=(0, None)))(data, batches)
    alone = jax.jit(grad)
    for i, j in ((0, 1), (1, 0)):
        np.testing.assert_allclose(pairs[i, j], alone(data[i], batches[j]), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_gradients_of_times():
    """They are diffrax's: dy(t1)/dt1 is the vector field at the end."""
    node = lux.NeuralODE(MODEL, rtol=1e-8, output="final")
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
    slope = MODEL(node((Y0[0], jnp.array([0.0, 2.0])), ps, st)[0], ps, st)[0]
    grad = jax.jit(jax.grad(lambda t: node((Y0[0], jnp.array([0.0, 1.0]) * t), ps, st)[0][0]))(2.0)
    np.testing.assert_allclose(grad, slope[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", ["checkpointed", "reversible"])
def test_a_failed_sample_leaves_the_gradient_of_the_others(adjoint):
    def blows_up(u):
        return u**2 * jnp.where(u > 1.5, 1e3, 1.0)

    model = lux.Chain(lux.Dense(1, 1, use_bias=False), blows_up)
    node = lux.NeuralODE(model, ts=TS[:2], batching="vmap", output="final", adjoint=adjoint)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
    ps = ps.at["layer_0.weight"].set(1.0)
    good, bad = np.array([[0.5], [0.1], [0.8]]), np.array([[0.5], [0.1], [0.8], [9.0]])  # other numbers of steps

    @jax.jit
    def grad(y0):
        def loss(ps):
            ys = node(y0, ps, st)[0]
            return jnp.sum(jnp.where(jnp.isfinite(ys), ys, 0.0))

        return jax.grad(loss)(ps).data

    np.testing.assert_allclose(grad(bad), grad(good), rtol=1e-10)
