"""Pieces of physics-informed nets: derivatives by inputs, hard constraints, Sobol and adaptive samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml import _compat

D = lux.derivatives
X = np.random.default_rng(0).normal(size=(4, 3))
LAYERS = (lux.Dense(3, 5, jnp.tanh), lux.LayerNorm(5), lux.Dense(5, 5, jax.nn.gelu), lux.Dense(5, 2, jax.nn.softplus))
NET = lux.Chain(*LAYERS)


def hard(x):
    """Of programs with loops, branches, sorting, integers, custom rules, constants, and products of what varies."""

    def body(carry, i):
        return (carry[0] * jnp.sin(x[..., 0]) + x[..., 1] ** 2, carry[1] + i), carry[0]

    (last, _), all_of_them = jax.lax.scan(body, (x[..., 0], 0), jnp.arange(3))
    largest = jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1)[..., 0]
    matrix = x[..., :, None] * x[..., None, :] + 2.0 * jnp.eye(3)
    branch = jax.lax.cond(True, lambda: x[..., 2] ** 3, lambda: x[..., 0])
    smooth = jax.nn.relu(jnp.sort(x, -1)[..., 0] + 3) ** 3 * jnp.where(x[..., 0] > 0, x[..., 1], 2.0)
    squared = jnp.sum(matrix @ matrix, (-2, -1))
    outputs = (last * largest, squared + branch, smooth, jnp.sum(all_of_them, 0), jnp.ones(x.shape[:-1]))
    return jnp.stack(outputs, -1)


@pytest.mark.exhaustive
def test_values_gradients_and_laplacians_in_one_pass(key, monkeypatch):
    ps, st = lux.setup(key, NET)

    def net(x, ps=ps):
        return NET(x, ps, st)[0]

    def f(x):
        return jnp.concatenate([hard(x), net(x)], -1)

    @jax.jit
    def ours(x):
        space = jax.vmap(lambda x: D.laplacian(f, x, axes=(1, -1)))(x)
        return *D.value_gradient_laplacian(f, x), space, D.partial(f, x, 0, 2)

    value, gradient, laplacian, space, mixed = ours(X)
    by_jax = jax.jit(jax.vmap(lambda x: (jax.jacfwd(f)(x), jax.hessian(f)(x))))
    gradients, hessians = by_jax(X)
    assert np.allclose(value, f(X)) and np.allclose(gradient, gradients, atol=1e-13)
    assert np.allclose(laplacian, np.trace(hessians, axis1=-2, axis2=-1), atol=1e-12)
    assert np.allclose(space, hessians[..., 1, 1] + hessians[..., 2, 2], atol=1e-12)
    assert np.allclose(mixed, hessians[..., 0, 2], atol=1e-12)

    def loss(ps, laplacian):
        return jnp.mean(laplacian(lambda x: net(x, ps), X) ** 2)

    def of_hessians(f, x):
        return jax.vmap(lambda x: jnp.trace(jax.hessian(f)(x), 0, -2, -1))(x)

    ours, theirs = jax.jit(lambda ps: (jax.grad(loss)(ps, D.laplacian), jax.grad(loss)(ps, of_hessians)))(ps)
    assert np.allclose(ours, theirs, atol=1e-12)
    assert _compat.runs_equations()
    monkeypatch.setattr("lux_sciml._forward_laplacian.runs_equations", lambda: False)
    assert np.allclose(jax.jit(lambda x: D.laplacian(net, x))(X), laplacian[..., 5:], atol=1e-12)


def test_partial_derivatives():
    def f(x):
        return x[..., 0] ** 2 * x[..., 1] ** 3 + jnp.sin(x[..., 2])

    x, y, z = X.T
    assert np.allclose(D.partial(f, X, 0, 1), 6 * x * y**2) and np.allclose(D.partial(f, X, 1, 0, 0), 6 * y**2)
    assert np.allclose(D.partial(f, X, -1, 2, 2, 2), np.sin(z)) and np.array_equal(D.partial(f, X), f(X))
    assert D.partial(f, np.array([1, 2, 0]), 1) == 12
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 3\) have the axes 0 to 2 to differentiate by"):
        D.partial(f, X, 0, 3)
    with pytest.raises(ValueError, match="keeps the leading axes"):
        D.partial(jnp.sum, X, 0)


def test_a_laplacian_takes_fewer_products_than_second_derivatives_one_by_one():
    weights = [np.ones((10, 10))] * 3

    def f(x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    def flops(g):
        return jax.jit(g).lower(np.ones(10)).compile().cost_analysis()["flops"]

    assert flops(lambda x: D.laplacian(f, x)) < 0.7 * flops(lambda x: jnp.trace(jax.hessian(f)(x)))


def test_hard_constraints(key):
    layer = lux.HardConstraint(lux.MLP(2, 4, 3), lambda x: x[..., :1] * (1 - x[..., :1]), lambda x: 2 * x[..., 1:])
    ps, st = lux.setup(key, layer)
    edge = np.array([[0.0, 0.3], [1.0, -0.7]])
    assert np.array_equal(layer(edge, ps, st)[0], np.repeat(2 * edge[:, 1:], 3, axis=1))
    inside = np.array([0.25, 0.5])
    assert np.allclose(layer(inside, ps, st)[0], 0.1875 * layer.model(inside, ps, st)[0] + 1)
    wrong = layer.replace(factor=lambda x: x[..., 0])
    with pytest.raises(ValueError, match=r"factor of shape \(2,\) beside a model's output \(2, 3\): it must return"):
        wrong(edge, ps, st)


def test_sobol_samples(key):
    lower, upper = np.array([-1.0, 2.0]), np.array([1.0, 5.0])
    x = lux.sobol_samples(key, 256, lower, upper)
    cells = np.floor((x - lower) / (upper - lower) * 16).astype(int)
    assert x.dtype == "float64" and len(set(map(tuple, cells.tolist()))) == 256  # one point in each of 16 x 16 cells
    assert not np.array_equal(x, lux.sobol_samples(jax.random.key(1), 256, lower, upper))
    vector = lux.ComponentVector(a=-1.0, b=[0.0, 2.0])
    batch = lux.sobol_samples(key, 5, vector, vector + 1)
    assert batch.shape == (5, 3) and batch.b.shape == (5, 2) and bool(jnp.all((batch.a >= -1) & (batch.a <= 0)))
    with pytest.raises(ValueError, match=r"`b\[1\]` from 2 to 0"):
        lux.sobol_samples(key, 5, vector, lux.ComponentVector(a=0.0, b=[1.0, 0.0]))
    for n in (0, 2.5):
        with pytest.raises((TypeError, ValueError), match=r"n: expected a whole number"):
            lux.sobol_samples(key, n, lower, upper)
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda key: lux.sobol_samples(key, 4, lower, upper))(key)


@pytest.mark.slow
def test_adaptive_samples_follow_the_density(key):
    x = np.linspace(0.0, 1.0, 20_000)
    residual = np.stack([3 * x, 4 * x], -1)
    chosen = jax.jit(lambda key: lux.adaptive_samples(key, {"x": x}, jnp.asarray(residual), 400, uniform=0.5))(key)["x"]
    share = float(np.mean(chosen < 0.5))  # the integral of (2 x + 1/2) / (3/2) up to one half
    assert len(set(chosen.tolist())) == 400 and abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / 400)
    large = jnp.where(jnp.arange(1000) < 500, 300, 1).astype("float16")  # whose square float16 does not hold
    assert np.mean(lux.adaptive_samples(key, jnp.arange(1000), large, 100, uniform=0.01) < 500) > 0.9
    nowhere = lux.adaptive_samples(key, x, jnp.zeros(x.size).at[0].set(jnp.nan), 400)
    assert abs(float(np.mean(nowhere < 0.5)) - 0.5) < 0.1
    with pytest.raises(ValueError, match="expected from 1 to 3, got 4"):
        lux.adaptive_samples(key, jnp.ones(3), jnp.ones(3), 4)
