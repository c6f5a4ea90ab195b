"""Jacobians, divergence, Laplacian, JVPs and VJPs: against formulas, full Jacobians, and each other, nested."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
MODEL = lux.Chain(lux.Dense(3, 5, jnp.tanh), lux.Dense(5, 2))


@pytest.fixture
def f(key):
    ps, st = lux.setup(key, MODEL)
    return lambda x: MODEL(x, ps, st)[0]


def one_by_one(transform, x):
    """A transform of JAX's at each sample, in a loop."""
    return np.stack([transform(sample) for sample in x])


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_batched_jacobian(f, mode):
    jacobian = lux.derivatives.batched_jacobian(f, X, mode=mode)
    assert jacobian.shape == (4, 2, 3)
    assert np.allclose(jacobian, one_by_one(jax.jacrev(f), X), atol=1e-14)
    assert np.allclose(
        lux.derivatives.batched_jacobian(f, X.reshape(2, 2, 3), mode=mode).reshape(4, 2, 3), jacobian, atol=1e-14
    )
    assert np.allclose(lux.derivatives.batched_jacobian(f, X[0], mode=mode), jacobian[0], atol=1e-14)


def test_auto_takes_the_shorter_side():
    wide = lambda x: jnp.sin(x @ jnp.ones((3, 50)))  # noqa: E731
    for function, x in ((wide, X), (lambda x: wide(x)[..., :2], X)):
        jaxprs = {}
        for mode in ("auto", "forward", "reverse"):
            jacobian = lambda x, m=mode, g=function: lux.derivatives.batched_jacobian(g, x, mode=m)  # noqa: E731
            jaxprs[mode] = str(jax.make_jaxpr(jacobian)(x))
        assert jaxprs["auto"] == jaxprs["forward" if function is wide else "reverse"] and len(set(jaxprs.values())) == 2


def test_divergence_is_the_trace(f):
    square = lambda x: jnp.concatenate([f(x), jnp.prod(x, -1, keepdims=True)], -1)  # noqa: E731
    y, value = lux.derivatives.divergence(square, X)
    traces = np.trace(one_by_one(jax.jacfwd(square), X), axis1=1, axis2=2)
    assert np.allclose(y, square(X)) and np.allclose(value, traces, atol=1e-14)


def test_hutchinson_estimates_the_divergence(key):
    matrix = RNG.normal(size=(3, 3))
    linear = lambda x: x @ matrix.T  # noqa: E731
    probe = jax.random.rademacher(key, (20_000, 1, 3), float)
    exact = np.trace(matrix)
    samples = np.array([lux.derivatives.divergence(linear, X[:1], v)[1][0] for v in probe[:3]])
    assert np.allclose(samples, [v[0] @ matrix @ v[0] for v in probe[:3]], atol=1e-13)
    spread = np.sqrt(np.sum((matrix + matrix.T)[np.triu_indices(3, 1)] ** 2) / 20_000)
    assert abs(lux.derivatives.divergence(linear, X[:1], probe)[1][0] - exact) < 4 * spread
    diagonal = lambda x: x**2  # noqa: E731
    assert np.allclose(lux.derivatives.divergence(diagonal, X, jnp.sign(X))[1], 2 * X.sum(-1))


def test_laplacian(f):
    harmonic = lambda x: x[..., 0] ** 2 - x[..., 1] ** 2 + x[..., 0] * x[..., 2]  # noqa: E731
    assert np.allclose(lux.derivatives.laplacian(harmonic, X), 0, atol=1e-14)
    hessians = one_by_one(jax.hessian(f), X)
    assert np.allclose(lux.derivatives.laplacian(f, X), np.trace(hessians, axis1=2, axis2=3), atol=1e-13)
    modulus = lambda x: jnp.abs(jax.lax.complex(x[..., 0], x[..., 1]))  # noqa: E731  # the radius r in the plane: 1 / r
    assert np.allclose(lux.derivatives.laplacian(modulus, X), 1 / np.hypot(X[:, 0], X[:, 1]), atol=1e-13)
    assert np.all(lux.derivatives.laplacian(modulus, X, axes=()) == 0)


def test_operators_nest_and_differentiate():
    """The biharmonic of |x|^4 in 3 dimensions is 120, and div(grad f) is the Laplacian."""
    quartic = lambda x: jnp.sum(x**2, -1) ** 2  # noqa: E731
    assert np.allclose(lux.derivatives.laplacian(lambda x: lux.derivatives.laplacian(quartic, x), X), 120)
    gradient = lambda x: lux.derivatives.batched_jacobian(lambda x: quartic(x)[..., None], x)[..., 0, :]  # noqa: E731
    assert np.allclose(lux.derivatives.divergence(gradient, X)[1], lux.derivatives.laplacian(quartic, X))
    by_grad = jax.jit(jax.grad(lambda x: lux.derivatives.laplacian(quartic, x).sum()))(X)
    assert np.allclose(by_grad, 40 * X)  # the Laplacian is 20 |x|^2
    assert np.allclose(
        jax.vmap(lambda x: lux.derivatives.laplacian(quartic, x))(X), lux.derivatives.laplacian(quartic, X)
    )


def test_a_physics_informed_loss_has_a_gradient(key):
    ps, st = lux.setup(key, MODEL)

    def loss(ps):
        return jnp.mean(lux.derivatives.laplacian(lambda x: MODEL(x, ps, st)[0], X) ** 2)

    v = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape)), ps)
    slope = (loss(ps + 1e-5 * v) - loss(ps - 1e-5 * v)) / 2e-5
    assert np.isclose(jnp.vdot(jax.grad(loss)(ps).data, v.data), slope, rtol=1e-7)


def test_operators_refuse_what_mixes_samples():
    with pytest.raises(ValueError, match=r"keeps the leading axes \(4,\) of inputs \(4, 3\), this one gives \(3,\)"):
        lux.derivatives.batched_jacobian(lambda x: x.sum(0), X)
    with pytest.raises(ValueError, match=r"leading axes \(4,\) of inputs \(4, 3\), this one gives \(\)"):
        lux.derivatives.laplacian(jnp.sum, X)
    with pytest.raises(ValueError, match=r"inputs that are an array \(\.\.\., n\), got"):
        lux.derivatives.laplacian(jnp.square, 3.0)
    with pytest.raises(TypeError, match=r"returns an array .* this one gives \(f64\[4\],\)"):
        lux.derivatives.partial(lambda x: (x[:, 0],), X, 0)
    with pytest.raises(ValueError, match=r"keeps the shape \(4, 3\), this one gives \(4, 2\)"):
        lux.derivatives.divergence(lambda x: x[:, :2], X)
    with pytest.raises(ValueError, match=r"probe of inputs \(4, 3\) has their shape, or \(k, \*that\), got \(3,\)"):
        lux.derivatives.divergence(jnp.sin, X, X[0])
    with pytest.raises(ValueError, match="'auto', 'forward' or 'reverse', got 'backward'"):
        lux.derivatives.batched_jacobian(jnp.sin, X, mode="backward")


def test_jvp_and_vjp_of_a_layer(key):
    ps, st = lux.setup(key, MODEL)
    zeros = jnp.zeros_like(X), ps.zeros_like()
    dx, dps = jnp.asarray(RNG.normal(size=X.shape)), lux.ComponentVector(RNG.normal(size=ps.shape), ps.layout)
    dy = jnp.asarray(RNG.normal(size=(4, 2)))
    y, pullback, st_next = jax.vjp(lambda x, ps: MODEL(x, ps, st), X, ps, has_aux=True)
    assert np.array_equal(y, MODEL(X, ps, st)[0]) and st_next == st
    of_x, of_ps = pullback(dy)
    assert isinstance(of_ps, lux.ComponentVector)
    for directions, expected in (
        ((dx, zeros[1]), jnp.vdot(of_x, dx)),
        ((zeros[0], dps), jnp.vdot(of_ps.data, dps.data)),
        ((dx, dps), jnp.vdot(of_x, dx) + jnp.vdot(of_ps.data, dps.data)),
    ):
        _, tangent, _ = jax.jvp(lambda x, ps: MODEL(x, ps, st), (jnp.asarray(X), ps), directions, has_aux=True)
        assert np.isclose(jnp.vdot(tangent, dy), expected, rtol=1e-12)


@pytest.mark.slow
def test_jvp_and_vjp_hand_the_state_on(key):
    layer, x = lux.BatchNorm(3), jnp.asarray(X)
    ps, st = lux.setup(key, layer)
    expected = layer(X, ps, st)[1]["running_mean"]
    for _, _, st_next in (
        jax.jvp(lambda x: layer(x, ps, st), (x,), (x,), has_aux=True),
        jax.vjp(lambda x: layer(x, ps, st), x, has_aux=True),
    ):
        assert np.allclose(st_next["running_mean"], expected)


@pytest.mark.exhaustive
def test_integers_half_precision_and_no_samples():
    D = lux.derivatives

    def f(x):
        return jnp.concatenate([x**2, jnp.sum(x, -1, keepdims=True) ** 3], -1)

    def keeping(x):
        return x**2

    for integers in (jnp.array([[1, 2], [3, 0]]), np.array([[1, 2], [3, 0]], np.uint8), jnp.array([[True, False]])):
        x = jnp.asarray(integers, float)
        for g in (f, keeping):
            np.testing.assert_array_equal(D.batched_jacobian(g, integers), D.batched_jacobian(g, x))
            np.testing.assert_array_equal(D.laplacian(g, integers), D.laplacian(g, x))
        np.testing.assert_array_equal(D.divergence(keeping, integers)[1], D.divergence(keeping, x)[1])
    x = jnp.ones((3, 2))
    signs = jax.random.rademacher(jax.random.key(0), (5, 3, 2))
    assert signs.dtype != x.dtype
    np.testing.assert_array_equal(D.divergence(keeping, x, signs)[1], [4, 4, 4])
    for dtype in ("float16", "bfloat16"):
        wide = jnp.full((1, 4096), 0.5, dtype)
        assert D.divergence(keeping, wide)[1].dtype == dtype and D.divergence(keeping, wide)[1] == 4096
    for shape in ((0, 2), (3, 0, 2)):
        empty = jnp.ones(shape)
        assert D.batched_jacobian(f, empty).shape == (*shape[:-1], 3, 2)
        assert D.batched_jacobian(f, empty, mode="reverse").shape == (*shape[:-1], 3, 2)
        assert D.laplacian(f, empty).shape == (*shape[:-1], 3)
        for probe in (None, jnp.ones(shape), jnp.ones((4, *shape))):
            assert D.divergence(keeping, empty, probe)[1].shape == shape[:-1]
