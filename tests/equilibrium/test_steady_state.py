"""SteadyState: roots of equations, and their gradients."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux


class Michaelis(lux.Layer):
    """Two species: inflow, conversion by an enzyme, decay. The steady state has a closed form."""

    def init_params(self, key):
        return {"inflow": jnp.array(0.5), "rate": jnp.array(2.0), "half": jnp.array(0.7), "decay": jnp.array(0.4)}

    def forward(self, u, ps, st):
        conversion = ps["rate"] * u["a"] / (ps["half"] + u["a"])
        return {"a": ps["inflow"] - conversion, "b": conversion - ps["decay"] * u["b"]}, st


class Forced(lux.Layer):
    """du/dt = x - k u^3."""

    def init_params(self, key):
        return {"k": jnp.array(2.0)}

    def forward(self, x, ps, st):
        u, x = x
        return x - ps["k"] * u**3, st


def closed_form(ps):
    a = ps["half"] * ps["inflow"] / (ps["rate"] - ps["inflow"])
    return {"a": a, "b": ps["inflow"] / ps["decay"]}


START = {"a": np.float64(0.1), "b": np.float64(1.0)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [None, optx.LevenbergMarquardt(1e-9, 1e-9), optx.Dogleg(1e-9, 1e-9), diffrax.Kvaerno5()],
    ids=["Newton", "LM", "dogleg", "pseudo-transient"],
)
def test_solutions_and_gradients_are_those_of_the_closed_form(key, solver):
    tolerances = {"rtol": 1e-9, "atol": 1e-9} if solver is None or isinstance(solver, diffrax.AbstractSolver) else {}
    layer = lux.SteadyState(Michaelis(), solver=solver, max_steps=1000, **tolerances)
    ps, st = lux.setup(key, layer)

    def total(ps, solve):
        u = solve(ps)
        return u["a"] + 3 * u["b"] ** 2

    value, got = jax.value_and_grad(total)(ps, lambda ps: layer(START, ps, st)[0])
    expected_value, expected = jax.value_and_grad(total)(ps, closed_form)
    np.testing.assert_allclose(value, expected_value, rtol=1e-7)
    np.testing.assert_allclose(got.data, expected.data, rtol=1e-6)


def test_forcing_has_gradients_and_batches_are_solved_one_by_one(key):
    layer = lux.SteadyState(Forced(), with_input=True, batching="vmap")
    ps, st = lux.setup(key, layer)
    x = jnp.array([0.5, 2.0, jnp.nan])
    u, pull = jax.vjp(lambda x: layer((jnp.ones(3), x), ps, st)[0], x)
    np.testing.assert_allclose(u[:2], (x[:2] / 2) ** (1 / 3), rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(3))[0][:2], (x[:2] / 2) ** (-2 / 3) / 6, rtol=1e-6)
    assert np.isnan(u[2])


def test_no_root_is_nan_and_never_a_hang(key):
    layer = lux.SteadyState(lux.Lambda(lambda u: 1 + u**2), max_steps=30)
    ps, st = lux.setup(key, layer)
    assert np.isnan(layer(jnp.array(0.3), ps, st)[0])
    with pytest.raises(Exception, match="has not converged"):
        jax.block_until_ready(layer.replace(on_failure="raise")(jnp.array(0.3), ps, st))


def test_component_vectors_pass_through(key):
    layer = lux.SteadyState(lux.Lambda(lambda u: u.replace(x=1 - u.x, y=4 - u.y**2)))
    u, _ = layer(lux.ComponentVector(x=0.0, y=1.0), *lux.setup(key, layer))
    np.testing.assert_allclose(u.y, 2.0, rtol=1e-5)


def test_bad_input(key):
    with pytest.raises(ValueError, match="must return"):
        layer = lux.SteadyState(lux.Dense(3, 2))
        layer(jnp.ones(3), *lux.setup(key, layer))
    with pytest.raises(ValueError, match="takes the tuple"):
        layer = lux.SteadyState(Forced(), with_input=True)
        layer(jnp.ones(3), *lux.setup(key, layer))
    with pytest.raises(ValueError, match="updates its state"):
        layer = lux.SteadyState(lux.Chain(lux.Dense(3, 3), lux.BatchNorm(3)))
        layer(jnp.ones((2, 3)), *lux.setup(key, layer))
