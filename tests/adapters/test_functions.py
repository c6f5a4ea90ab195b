"""Layers as pure functions, in the hands of optax and optimistix."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest

import lux_sciml as lux
from lux_sciml.adapters import as_function, init_apply

KEY = jax.random.key(0)
X = np.linspace(-1, 1, 12)[:, None]
Y = np.sin(2 * X)


def test_a_pair_of_functions_trains_by_optax():
    init, apply = init_apply(lux.Chain(lux.Dense(1, 8, jnp.tanh), lux.Dropout(0.1), lux.Dense(8, 1)), flat=False)
    ps, st = init(KEY, X)
    assert type(ps) is dict
    method = optax.sgd(0.3)

    @jax.jit
    def step(ps, st, memory):
        def loss(ps):
            y, after = apply(ps, st, X)
            return jnp.mean((y - Y) ** 2), after

        (value, st_next), gradient = jax.value_and_grad(loss, has_aux=True)(ps)
        updates, memory = method.update(gradient, memory)
        return optax.apply_updates(ps, updates), st_next, memory, value

    memory, values = method.init(ps), []
    for _ in range(80):
        ps, st, memory, value = step(ps, st, memory)
        values.append(float(value))
    assert values[-1] < values[0] / 5


@pytest.mark.exhaustive
def test_a_function_is_fitted_by_optimistix_and_refuses_updates():
    layer = lux.MLP(1, 6, 1)
    ps, st = lux.setup(KEY, layer)
    f = as_function(layer, st)
    solver = optimistix.LevenbergMarquardt(rtol=1e-6, atol=1e-6)
    result = optimistix.least_squares(lambda ps, x: (f(ps, x) - Y).ravel(), solver, ps, X, throw=False, max_steps=60)
    assert result.value.layout is ps.layout and jnp.mean((f(result.value, X) - Y) ** 2) < 1e-3
    noisy = lux.Chain(layer, lux.Dropout(0.5))
    ps, st = lux.setup(KEY, noisy)
    with pytest.raises(ValueError, match=r"updates its state \(`layer_1.key`\).*testmode"):
        as_function(noisy, st)(ps, X)
    assert as_function(noisy, lux.testmode(st))(ps, X).shape == (12, 1)
    assert jnp.any(as_function(noisy, st, on_state_update="discard")(ps, X) == 0)
