"""Solves by a plain loop take the steps that diffrax takes; programs in plain operations compute what they computed."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from jax import lax
from small_models import Decay, cell, net, times

import lux_sciml as lux
from lux_sciml._compat import equations
from lux_sciml.export.plain_program import in_plain_operations
from lux_sciml.export.plain_solves import plain_solves

timed = lux.Chain(lux.diffeq.concat_time, lux.Dense(4, 3, jnp.tanh))
pid = diffrax.PIDController(1e-5, 1e-6, pcoeff=0.3, icoeff=0.4, dtmax=0.3)


def both_ways(layer, x):
    """The output of a layer as it is, and by plain loops in plain operations, with the operations of the latter."""
    ps, st = lux.setup(jax.random.key(0), layer, dtype=jax.tree.leaves(x)[0].dtype)
    leaves, treedef = jax.tree.flatten(x)

    def call(*leaves):
        with plain_solves():
            return jax.tree.leaves(layer(treedef.unflatten(leaves), ps, st)[0])

    expected = jax.jit(lambda x: jax.tree.leaves(layer(x, ps, st)[0]))(x)
    plain = jax.make_jaxpr(in_plain_operations(call))(*leaves)
    return (
        expected,
        jax.jit(lambda *xs: jax.core.eval_jaxpr(plain.jaxpr, plain.consts, *xs))(*leaves),
        {eqn.primitive.name for eqn in equations(plain)},
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "make",
    [
        lambda: lux.NeuralODE(net, ts=times, output="ys"),
        lambda: lux.NeuralODE(timed, ts=times[::-1], output="ys", time_dependent=True, batching="vmap", rtol=1e-4),
        lambda: lux.NeuralODE(net, ts=times, output="final", solver=diffrax.Dopri8(), stepsize_controller=pid),
        lambda: lux.NeuralODE(net, ts=times, output="ys", stepsize_controller=diffrax.ConstantStepSize(), dt0=0.07),
        lambda: lux.NeuralODE(net, ts=times, output="final", stepsize_controller=diffrax.StepTo(times)),
        lambda: lux.NeuralODE(net, ts=times, output="ys", saveat=diffrax.SaveAt(t0=True, ts=[0.1, 0.2], t1=True)),
        lambda: lux.AugmentedODE(
            lux.NeuralODE(lux.Dense(5, 5), ts=times, output="final", solver=diffrax.Heun(), rtol=1e-3), 2
        ),
    ],
    ids=["adaptive", "backward vmap", "PID", "constant", "StepTo", "saveat", "augmented"],
)
def test_plain_loop_takes_the_steps_of_diffrax(make):
    x = jax.random.normal(jax.random.key(1), (4, 3), float)
    (expected,), (plain,), found = both_ways(make(), x)
    np.testing.assert_allclose(plain, expected, rtol=1e-12, atol=1e-12)
    assert not {"jit", "custom_jvp_call", "gather", "scatter", "nextafter", "cond"} & found


def test_pairs_of_terms_and_times_of_the_call():
    bowl = lux.Lambda(lambda q: jnp.sum(q**2, -1) / 2)
    x = (jnp.array([1.0, 0.5]), jnp.zeros(2)), jnp.linspace(0.0, 2.0, 5)
    expected, plain, _ = both_ways(lux.HamiltonianODE(bowl, bowl, dt0=0.1, output="ys"), x)
    for a, b in zip(expected, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_failed_solves_are_nan():
    layer = lux.NeuralODE(lux.Lambda(lambda y: y**3), ts=times, output="ys", batching="vmap", max_steps=100)
    x = jnp.array([[0.5], [10.0]])
    (expected,), (plain,), _ = both_ways(layer, x)
    assert np.isnan(plain[1]).all()
    np.testing.assert_allclose(plain, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"solver": diffrax.Kvaerno3()}, "Kvaerno3"),
        ({"event": diffrax.Event(lambda t, y, args, **_: jnp.sum(y))}, "an event"),
        ({"saveat": diffrax.SaveAt(steps=True)}, "steps"),
        ({"jumps": lux.Jumps([0.5], lambda t, y, ps: -y)}, "jumps and events"),
        ({"stepsize_controller": diffrax.PIDController(1e-3, 1e-3, jump_ts=[0.5])}, "ClipStepSizeController"),
    ],
)
def test_other_solves_are_refused_by_name(options, name):
    layer = lux.NeuralODE(net, ts=times, **options)
    ps, st = lux.setup(jax.random.key(0), layer)
    with plain_solves(), pytest.raises(ValueError, match=f"not .*{name}.*stablehlo"):
        jax.eval_shape(lambda x: layer(x, ps, st)[0].ys, jnp.ones(3, "float32"))


@pytest.mark.parametrize("interpolation", ["hermite", "linear"])
def test_controls_that_interpolate_are_refused_as_such(interpolation):
    cde = lux.NeuralCDE(lux.Dense(2, 6), lux.Dense(3, 2), interpolation=interpolation, output="final")
    ps, st = lux.setup(jax.random.key(0), cde)
    with plain_solves(), pytest.raises(ValueError, match=r"not controls that interpolate data.*stablehlo"):
        jax.eval_shape(lambda xs: cde((jnp.linspace(0.0, 1.0, 5), xs), ps, st)[0], jnp.ones((5, 2)))


@pytest.mark.slow
def test_roots_by_newtons_steps():
    x = jax.random.normal(jax.random.key(1), (4, 3), float)
    for batching in ("joint", "vmap"):
        (expected,), (plain,), found = both_ways(lux.SteadyState(Decay(net), batching=batching), x)
        np.testing.assert_allclose(plain, expected, rtol=1e-12, atol=1e-12)
        assert not {"lu", "linear_solve", "custom_linear_solve", "argmax"} & found
    with pytest.raises(ValueError, match=r"not the root finder Chord.*stablehlo"):
        both_ways(lux.SteadyState(Decay(net), solver=optx.Chord(1e-5, 1e-5)), x)
    layer = lux.SteadyState(Decay(net))
    ps, st = lux.setup(jax.random.key(0), layer, dtype="float32")
    (batch,) = jax.export.symbolic_shape("batch")
    with pytest.raises(ValueError, match=r"Jacobian of any size.*batching=.vmap"), plain_solves():
        jax.eval_shape(lambda x: layer(x, ps, st)[0], jax.ShapeDtypeStruct((batch, 3), "float32"))


def test_plain_operations():
    """Every rule: indices known and traced, inside and out; batched loops; branches; nested calls."""

    def function(x, i):
        rows = x[jnp.array([2, 0])], jnp.take(x, -1, axis=0), lax.dynamic_index_in_dim(x, i, keepdims=False)
        put = (
            x.at[i].set(7.0),
            x.at[i, 1].set(8.0, mode="clip"),
            lax.dynamic_update_slice(x, x[:2] * 0, (i, jnp.int32(0))),
            x.at[2].add(x[0]),
            x.at[1:3, 1].add(x[1:3, 0]),
            x.at[9].add(x[0]),
        )
        stepped = jax.vmap(lambda row: lax.while_loop(lambda y: y[0] < 9, lambda y: y + row**2 + 1, row))(x)
        branch = lax.cond(i > 1, jnp.sin, jnp.cos, x)
        known = jax.checkpoint(lambda x: lax.cond(np.array(True), jnp.sin, jnp.cos, x))(x)
        doubled = lax.while_loop(lambda c: c[1], lambda c: (2 * c[0], lax.select(c[0] > 5, False, c[0] > 0)), (i, True))
        return *doubled, *rows, *put, stepped, branch, known, jnp.nextafter(x, jnp.inf), jax.nn.relu(x), jnp.diagonal(x)

    x, plain = jax.random.normal(jax.random.key(0), (4, 3), "float32"), in_plain_operations(function)
    for i in (0, 2, 3, 11):
        for a, b in zip(jax.jit(function)(x, jnp.int32(i)), jax.jit(plain)(x, jnp.int32(i)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.exhaustive
def test_equilibria_are_plain_loops_already():
    x = jax.random.normal(jax.random.key(1), (4, 3), float)
    for solver in (None, optx.FixedPointIteration(1e-6, 1e-6)):
        (expected,), (plain,), found = both_ways(lux.DeepEquilibrium(cell, shape=4, solver=solver), x)
        np.testing.assert_allclose(plain, expected, rtol=1e-12, atol=1e-12)
        assert "while" in found and not {"jit", "gather", "scatter", "cond", "platform_index"} & found
