"""A NeuralODE until its steady state: the state, its gradients, and what happens where there is none."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

GOAL = np.array([[0.6, -0.2], [0.3, 0.9]])


class Relaxing(lux.Layer):
    """`tanh(y goal) + bias - y`; for a rate below zero it never rests."""

    rate: float = 1.0

    def init_params(self, key):
        return {"goal": jnp.asarray(GOAL), "bias": jnp.array([0.5, -0.3])}

    def forward(self, y, ps, st):
        return jnp.tanh(y @ ps["goal"]) + ps["bias"] - self.rate * y, st


def node(**options):
    return lux.NeuralODE(Relaxing(), ts=[0.0, jnp.inf], **options)


Y0 = np.array([[0.1, 0.2], [1.5, -2.0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tol"), [({"batching": "vmap"}, 1e-6), ({"adjoint": "checkpointed", "rtol": 1e-8, "atol": 1e-10}, 1e-5)]
)
def test_it_ends_where_the_roots_are_with_their_gradients(options, tol):
    layer = node(output="final", **{"rtol": 1e-9, "atol": 1e-9} | options)
    ps, st = lux.setup(jax.random.key(0), layer, dtype=jnp.float64)
    root = lux.SteadyState(Relaxing(), rtol=1e-12, atol=1e-12)

    def total(layer):
        return jax.jit(jax.value_and_grad(lambda ps: jnp.sum(jnp.sin(layer(jnp.asarray(Y0), ps, st)[0]))))(ps)

    (value, grad), (expected, exact) = total(layer), total(root)
    np.testing.assert_allclose(value, expected, rtol=tol)
    np.testing.assert_allclose(grad.data, exact.data, rtol=10 * tol)


@pytest.mark.slow
def test_the_solution_says_when_and_what_is_not_reached_is_nan():
    layer = node()
    ps, st = lux.setup(jax.random.key(0), layer, dtype=jnp.float64)
    sol, _ = layer(jnp.asarray(Y0[0]), ps, st)
    assert sol.ys.shape == (1, 2) and 5 < sol.ts[0] < 100
    assert np.linalg.norm(layer.model(sol.ys[0], ps, st)[0]) < 1e-5
    for restless in (layer.replace(max_steps=5), layer.replace(model=Relaxing(-1.0))):
        sol, _ = restless(jnp.asarray(Y0[0]), ps, st)
        assert np.isnan(sol.ys).all() and not bool(diffrax.is_okay(sol.result))
    lost, _ = layer(jnp.full(2, jnp.nan), ps, st)
    assert np.isnan(lost.ys).all() and not bool(diffrax.is_okay(lost.result))


def test_what_has_no_steady_state_is_refused():
    with pytest.raises(ValueError, match="has no time_dependent"):
        node(time_dependent=True)
    with pytest.raises(ValueError, match="times of a NeuralDSDE are finite"):
        lux.NeuralDSDE(Relaxing(), Relaxing(), ts=[0.0, jnp.inf], dt0=0.1)
    with pytest.raises(ValueError, match="times that are not finite"):
        lux.NeuralODE(Relaxing(), ts=[0.0, 1.0, jnp.inf])
    with pytest.raises(ValueError, match="up to a last time"):
        lux.WithCosts(node())
