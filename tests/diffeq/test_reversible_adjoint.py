"""The reversible adjoint, against diffrax's checkpointing of the same pair of states."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.diffeq.adjoints.reversible import Reversible
from lux_sciml.diffeq.solvers.runge_kutta import unrolled

TS = np.linspace(0.0, 2.0, 5)
MODEL = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2))
Y0 = np.array([[1.0, -0.5], [0.3, 2.0], [-4.0, 1.0]])
CHECKPOINTS = diffrax.RecursiveCheckpointAdjoint()
STEPS = {"stepsize_controller": diffrax.ConstantStepSize()}


def of_loss(adjoint, dtype=jnp.float64, **options):
    """Values at the times, and gradients by parameters and initial values."""
    node = lux.NeuralODE(MODEL, adjoint=adjoint, output="ys", **{"ts": TS, **options})
    ps, st = lux.setup(jax.random.key(0), node, dtype=dtype)
    ps = ps.at["layer_1.weight"].set(jnp.array([[0.2, -1.0], [1.0, 0.1], [-0.4, 0.6], [0.3, -0.5]], dtype))

    def loss(data, y0):
        ys, _ = node(y0, lux.ComponentVector(data, ps.layout), st)
        return jnp.sum(jnp.sin(3 * ys)), ys

    (_, ys), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(ps.data, jnp.asarray(Y0, dtype))
    return ys, *grads


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (diffrax.Tsit5(), {"ts": TS[::-1]}),
        (diffrax.Bosh3(), {"batching": "vmap", "rtol": 1e-4}),
        (diffrax.Heun(), {"saveat": diffrax.SaveAt(t1=True), "rtol": 1e-4}),
        (diffrax.Euler(), STEPS | {"dt0": 0.07, "batching": "vmap"}),  # steps that do not end at the times
    ],
    ids=["backward", "by sample", "end", "Euler"],
)
def test_the_gradient_is_that_of_the_pair(solver, options):
    got = of_loss("reversible", solver=solver, **options)
    want = of_loss(CHECKPOINTS, solver=Reversible(unrolled(solver)), **options)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    if "ts" in options:  # and the solution, between the steps too, is that of the equation
        np.testing.assert_allclose(got[0], of_loss("auto", rtol=1e-9, **options)[0], atol=2e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("dtype", "tol"), [(jnp.float64, 1e-11), (jnp.float32, 2e-4)])
def test_many_steps(dtype, tol):
    """Undoing 4000 steps, against checkpoints of the same pair."""
    options = STEPS | {"dt0": 0.0005, "solver": diffrax.Midpoint(), "dtype": dtype, "ts": TS[::2]}
    got = of_loss("reversible", **options)
    want = of_loss(CHECKPOINTS, **options | {"solver": Reversible(unrolled(diffrax.Midpoint()))})
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


def test_where_the_solution_contracts_the_states_do_not_part_unseen():
    """Of y' = -w y their difference grows like e^(w t): small steps, or none left."""
    node = lux.NeuralODE(lux.Scale(1), ts=[0.0, 10.0], output="final", adjoint="reversible")
    _, st = lux.setup(jax.random.key(0), node)
    run = jax.jit(jax.vmap(lambda w: node(jnp.ones(1), {"weight": -w[None], "bias": jnp.zeros(1)}, st)[0][0]))
    np.testing.assert_allclose(run(jnp.array([0.3, 1.0, 5.0])), [np.exp(-3.0), np.exp(-10.0), np.nan], atol=1e-5)


@pytest.mark.slow
def test_a_gradient_whose_steps_cannot_be_undone_is_nan():
    options = STEPS | {"dt0": 0.005, "solver": diffrax.Midpoint(), "ts": TS[::2], "batching": "vmap"}
    lost = of_loss(lux.ReversibleAdjoint(coupling=0.5, anchors=1), **options)
    assert np.isfinite(lost[0]).all() and np.isnan(lost[1]).all()
    assert np.isfinite(of_loss(lux.ReversibleAdjoint(coupling=0.5, anchors=64), **options)[1]).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    """But for one time each: 8 bytes, here 1 % of a pair of states."""
    memory = {}
    for count in (100, 10_000):
        node = lux.NeuralODE(lux.Dense(100, 100, jnp.tanh), ts=[0.0, 1.0], output="final", adjoint="reversible",
                             dt0=1 / count, max_steps=count + 1, **STEPS)  # fmt: skip
        ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
        grad = jax.jit(jax.grad(lambda ps, node=node, st=st: jnp.sum(node(jnp.ones((64, 100)), ps, st)[0])))
        memory[count] = grad.lower(ps).compile().memory_analysis().temp_size_in_bytes
    assert memory[10_000] - memory[100] < 8 * 10_000


@pytest.mark.exhaustive
def test_what_it_does_not_take_is_refused_by_name():
    def end(y0, **options):
        node = lux.NeuralODE(MODEL, ts=TS, adjoint="reversible", output="final", **options)
        return node(y0, *lux.setup(jax.random.key(0), node, dtype=jnp.float64))[0]

    clipped = diffrax.ClipStepSizeController(diffrax.PIDController(1e-6, 1e-6), jump_ts=jnp.ones(1))
    for options, says in (
        ({"solver": diffrax.Kvaerno5()}, "explicit Runge-Kutta methods, .* not Kvaerno5"),
        ({"stepsize_controller": clipped}, "not of ClipStepSizeController"),
        ({"event": diffrax.Event(lambda t, y, args, **_: y[0, 0])}, "takes no event"),
        ({"max_steps": None}, "takes max_steps"),
        ({"saveat": diffrax.SaveAt(dense=True, t1=True)}, "takes states saved at times or at the end"),
    ):
        with pytest.raises(ValueError, match=says):
            end(jnp.asarray(Y0), **options)
    with pytest.raises(ValueError, match=r"coupling .* above 0 and at most 1"):
        lux.ReversibleAdjoint(coupling=0.0)
    with pytest.raises(ValueError, match="at least one anchor"):
        lux.ReversibleAdjoint(anchors=0)
    with pytest.raises(TypeError, match="adjoint='reversible' has reverse mode only"):
        jax.jacfwd(end)(jnp.asarray(Y0))
