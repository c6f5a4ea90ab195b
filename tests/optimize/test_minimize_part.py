"""minimize: part of the parameters; what is not finite is named; Hessians through solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import lux_sciml as lux


def quadratic(ps, target):
    return jnp.sum((ps.data - target) ** 2)


START = {"physics": {"growth": 0.0, "decay": 5.0}, "net": {"weight": [[1.0, 2.0]]}}
METHODS = ["L-BFGS-B", optax.adam(0.1), optx.BFGS(1e-8, 1e-8)]


@pytest.mark.parametrize("method", METHODS, ids=["SciPy", "optax", "optimistix"])
def test_only_the_trainable_components_move(method):
    ps = lux.ComponentVector(START)
    seen = []
    result = lux.minimize(
        quadratic,
        ps,
        method=method,
        args=jnp.full(4, 3.0),
        trainable="physics.*",
        callback=lambda step, ps, value: seen.append(ps),
    )
    assert result.params.layout is ps.layout
    np.testing.assert_allclose(result.params.physics.data, [3.0, 3.0], atol=1e-3)
    np.testing.assert_array_equal(result.params.net.data, ps.net.data)
    np.testing.assert_allclose(result.value, 4.0 + 1.0, atol=1e-5)
    assert seen and all(ps.layout is result.params.layout for ps in seen)


def test_bounds_are_those_of_all_components():
    ps = lux.ComponentVector(START)
    bounds = lux.constraints.bounds(ps, {"physics.decay": (4.0, None)})
    result = lux.minimize(quadratic, ps, method="L-BFGS-B", args=jnp.full(4, 3.0), trainable=["physics"], bounds=bounds)
    np.testing.assert_allclose(result.params.physics.data, [3.0, 4.0], atol=1e-5)


def test_tied_components_move_together():
    tree = {"a": jnp.ones(2), "b": jnp.zeros(1), "c": jnp.ones(2)}
    ps = lux.ComponentVector.from_tree(tree, ties=[("a", "c")])

    def loss(ps):
        return jnp.sum((ps["c"] - 2.0) ** 2) + jnp.sum((ps["b"] - 1.0) ** 2)

    result = lux.minimize(loss, ps, method="BFGS", trainable="c")
    np.testing.assert_allclose(result.params["a"], 2.0, atol=1e-5)
    np.testing.assert_array_equal(result.params["b"], 0.0)


def test_the_same_loss_compiles_once_for_a_part():
    traces = []

    def loss(ps, target):
        traces.append(1)
        return quadratic(ps, target)

    ps = lux.ComponentVector(START)
    lux.minimize(loss, ps, method="BFGS", args=jnp.ones(4), trainable="net")
    count = len(traces)
    lux.minimize(loss, ps + 1.0, method="BFGS", args=jnp.zeros(4), trainable="net")
    assert len(traces) == count


def test_bad_parts():
    with pytest.raises(KeyError, match="no component matches 'phisics"):
        lux.minimize(quadratic, lux.ComponentVector(START), method="BFGS", args=jnp.ones(4), trainable="phisics.*")
    with pytest.raises(TypeError, match="needs a ComponentVector"):
        lux.minimize(lambda x: jnp.sum(x), jnp.ones(3), method="BFGS", trainable="a")


@pytest.mark.parametrize("method", METHODS, ids=["SciPy", "optax", "optimistix"])
def test_what_is_not_finite_at_the_start_is_named(method):
    data = {"us": jnp.array([1.0, jnp.nan, 3.0, jnp.nan])}
    ps = lux.ComponentVector(START)
    result = lux.minimize(lambda ps, d: quadratic(ps, d["us"]), ps, method=method, args=data)
    assert not result.success
    assert result.params.equals(ps)
    assert "`args['us']` holds 2 of 4 numbers that are NaN or inf" in result.message


def test_newton_through_a_solve():
    node = lux.NeuralODE(
        lux.Dense(1, 1, use_bias=False), ts=[0.0, 1.0], output="final", max_steps=16, rtol=1e-9, atol=1e-9
    )
    ps = lux.ComponentVector(weight=jnp.array([[0.5]]))
    result = lux.minimize(lambda ps: jnp.sum((node(jnp.ones(1), ps, {})[0] - 0.5) ** 2), ps, method="trust-exact")
    assert result.success
    np.testing.assert_allclose(result.params.weight, np.log(0.5), atol=1e-5)
    assert jax.tree.structure(result.params) == jax.tree.structure(ps)


def test_line_searches_work_on_the_tree():
    ps = lux.ComponentVector(START)
    plain = lux.minimize(quadratic, ps, method=optax.lbfgs(), args=jnp.full(4, 3.0), max_steps=20)
    per_array = lux.minimize(
        quadratic, ps, method=lux.optimize.per_array(optax.lbfgs(), ps), args=jnp.full(4, 3.0), max_steps=20
    )
    np.testing.assert_allclose(per_array.params.data, plain.params.data, rtol=1e-6)
    np.testing.assert_allclose(per_array.params.data, 3.0, atol=1e-6)
