"""Jacobians and Hessians with names, and the context that solvers read."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lux_sciml import ComponentMatrix, ComponentVector, derivatives, hessian, hvp, jacobian


@pytest.fixture
def cv():
    return ComponentVector(a=[1.5, 2.0], b={"c": 3.0, "d": [[0.5, 0.25]]})


def f(cv, scale=1.0):
    """Five numbers with names in two components."""
    u = jnp.sin(cv.a) * cv.b.c * scale
    return ComponentVector(u=u, v=jnp.outer(u, cv.b.d[0] ** 2)[:, 0] + cv.b.c, w=cv.a[0] ** 3)


def finite_differences(f, x, step=1e-6):
    columns = [(f(x + e * step) - f(x - e * step)) / (2 * step) for e in np.eye(x.size)]
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("mode", [None, "forward", "reverse"])
def test_jacobian_agrees_with_finite_differences(cv, mode):
    J = jacobian(f, mode=mode)(cv)
    assert isinstance(J, ComponentMatrix) and J.columns is cv.layout and J.rows is f(cv).layout
    expected = finite_differences(lambda x: np.asarray(f(ComponentVector(x, cv.layout))), np.asarray(cv))
    np.testing.assert_allclose(J.data, expected, atol=1e-8)
    assert J["u", "b.d"].shape == (2, 1, 2) and J["w", "a"].shape == (2,)
    np.testing.assert_allclose(J["w", "a"], [3 * 1.5**2, 0])


def test_jacobian_of_outputs_without_names(cv):
    J = jacobian(lambda cv: cv.b.d * cv.a[:, None])(cv)
    assert J.shape == (4, 5) and J[:, "a"].shape == (2, 2, 2) and J[0, "b.d"].shape == (2, 1, 2)
    gradient = jacobian(lambda cv: cv.a.sum() ** 2)(cv)
    np.testing.assert_allclose(gradient[:, "a"], [7, 7])
    tree = jacobian(lambda cv: {"z": cv.a, "y": (cv.b.c,)})(cv)
    assert list(tree.rows.children) == ["z", "y"] and tree["y.0", "b.c"] == 1


def test_jacobian_by_arrays_and_trees():
    J = jacobian(lambda x: x**2)(jnp.arange(3.0))
    np.testing.assert_array_equal(J.data, np.diag([0, 2, 4]))
    J = jacobian(lambda t: t["b"] * t["a"])({"b": jnp.ones(2), "a": 3.0})
    np.testing.assert_array_equal(J[:, "b"], 3 * np.eye(2))
    with pytest.raises(TypeError, match="`count` has dtype int64"):
        jacobian(lambda t: t["count"] * 1.0)({"count": jnp.arange(2)})


@pytest.mark.parametrize("mode", [None, "forward", "reverse"])
def test_arguments_aux_and_jit(cv, mode):
    expected = jacobian(f)(cv, 2.0).data

    def g(cv, scale, name):
        return f(cv, scale), {name: cv.a.sum(), "text": scale}

    J, aux = jacobian(g, mode=mode, has_aux=True)(cv, 2.0, "total")
    np.testing.assert_allclose(J.data, expected)
    assert aux["total"] == 3.5 and aux["text"] == 2.0
    np.testing.assert_allclose(jax.jit(jacobian(f, mode=mode))(cv, 2.0)["u", "a"], J["u", "a"])
    batch = jax.vmap(jacobian(f, mode=mode), (None, 0))(cv, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(batch.data[1], expected)


def test_the_mode_has_the_fewer_passes(cv):
    def seen(output):
        modes = []

        def f(cv):
            modes.append(derivatives.current())
            return output(cv)

        jacobian(f)(cv)
        return modes[-1]

    assert seen(lambda cv: cv.a.sum()) == "reverse"
    assert seen(lambda cv: cv) == "forward"
    assert seen(lambda cv: jnp.tile(cv.data, 3)) == "forward"
    with pytest.raises(ValueError, match="mode is 'forward', 'reverse' or None, got 'fwd'"):
        jacobian(f, mode="fwd")


def loss(cv, scale=1.0):
    return scale * jnp.sum(f(cv).data ** 2)


def test_hessian_and_hvp(cv, key):
    H = hessian(loss)(cv, 2.0)
    assert H.rows is H.columns is cv.layout and H["a", "b.d"].shape == (2, 1, 2)
    gradient = jax.grad(loss)
    expected = finite_differences(lambda x: np.asarray(gradient(ComponentVector(x, cv.layout), 2.0)), np.asarray(cv))
    np.testing.assert_allclose(H.data, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(H.data, H.T.data)
    v = ComponentVector(jax.random.normal(key, (5,), float), cv.layout)
    product = hvp(loss)(cv, v, 2.0)
    assert product.layout is cv.layout
    np.testing.assert_allclose(product.data, (H @ v).data)
    np.testing.assert_allclose(jax.jit(hvp(loss))(cv, v.data, 2.0).data, product.data)
    np.testing.assert_allclose(jax.jit(hessian(loss))(cv, 2.0).data, H.data)


def test_hessian_aux_trees_and_outputs_that_are_no_numbers(cv):
    H, aux = hessian(lambda cv: (loss(cv), cv.a), has_aux=True)(cv)
    np.testing.assert_array_equal(aux, cv.a)
    np.testing.assert_allclose(H.data, hessian(loss)(cv).data)
    tree = hvp(lambda t: t["b"] ** 3 * t["a"])({"b": 2.0, "a": 5.0}, {"a": 0.0, "b": 1.0})
    assert list(tree) == ["b", "a"] and tree["b"] == 60 and tree["a"] == 12
    for derivative in (hessian(f), lambda cv: hvp(f)(cv, cv)):
        with pytest.raises(TypeError, match=r"one number, got one of shape"):
            derivative(cv)
    with pytest.raises(ValueError, match="layouts differ"):
        hvp(loss)(cv, ComponentVector(x=[1, 2, 3, 4, 5]))


def test_ties_in_derivatives():
    tied = ComponentVector.from_tree({"x": jnp.ones(2), "z": jnp.ones(2)}, ties=[("x", "z")])
    J = jacobian(lambda cv: 3 * cv.x + cv.tree()["z"] ** 2)(tied)
    np.testing.assert_array_equal(J[:, "z"], 5 * np.eye(2))


# --- the context ----------------------------------------------------------------------------------------------


def test_contexts_add_up_and_end():
    assert derivatives.current() is None
    with derivatives.mode("forward"):
        assert derivatives.current() == "forward"
        with derivatives.mode("forward"):
            assert derivatives.current() == "forward"
        with derivatives.mode("reverse"):
            assert derivatives.current() == "both"
        assert derivatives.current() == "forward"
    with pytest.raises(RuntimeError), derivatives.mode("both"):
        raise RuntimeError
    assert derivatives.current() is None
    with (
        pytest.raises(ValueError, match="one of 'forward', 'reverse', 'both', got 'backward'"),
        derivatives.mode("backward"),
    ):
        pass


def test_jit_traces_anew_where_the_context_changes(cv):
    seen = []

    @jax.jit
    def f(cv):
        seen.append(derivatives.current())
        return jnp.sum(cv.data**2)

    for _ in range(2):
        jax.grad(f)(cv)
        jacobian(f, mode="forward")(cv)
        jacobian(f, mode="reverse")(cv)
        hessian(f)(cv)
        hvp(f)(cv, cv)
    assert sorted(map(str, set(seen))) == ["None", "both", "forward", "reverse"]
    assert len(seen) == 4, "one trace for each"


def test_derivatives_of_derivatives_ask_for_both(cv):
    seen = []

    def f(cv):
        seen.append(derivatives.current())
        return cv.a**2

    jacobian(lambda cv: jacobian(f, mode="reverse")(cv).data, mode="forward")(cv)
    assert seen[-1] == "both"


def test_raw_errors_say_what_to_pass(cv):
    @jax.custom_vjp
    def reverse_only(x):
        return x**2

    reverse_only.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))

    def forward_only(cv):
        return jax.lax.while_loop(lambda x: x[0] < 10, lambda x: 2 * x, cv.a)

    with pytest.raises(TypeError, match=r"reverse mode only.*`mode='reverse'`"):
        jacobian(lambda cv: reverse_only(cv.a), mode="forward")(cv)
    with pytest.raises(TypeError, match=r"forward mode only.*`mode='forward'`"):
        jacobian(forward_only, mode="reverse")(cv)
    np.testing.assert_array_equal(jacobian(forward_only, mode="forward")(cv)[:, "a"], 8 * np.eye(2))


def test_a_solver_can_follow_the_context():
    def decay(p):
        adjoint = {
            "reverse": diffrax.RecursiveCheckpointAdjoint(),
            "forward": diffrax.ForwardMode(),
        }[derivatives.current()]
        term = diffrax.ODETerm(lambda t, u, p: -p.rate * u)
        save = diffrax.SaveAt(ts=jnp.array([0.5, 1.0]))
        return diffrax.diffeqsolve(
            term, diffrax.Heun(), 0.0, 1.0, 0.01, p.u0, p, adjoint=adjoint, saveat=save, max_steps=128
        ).ys

    p, ts = ComponentVector(rate=2, u0=3), jnp.array([0.5, 1.0])
    for mode in ("forward", "reverse"):
        J = jacobian(decay, mode=mode)(p)
        np.testing.assert_allclose(J[:, "rate"], -ts * 3 * jnp.exp(-2 * ts), rtol=1e-3)
        np.testing.assert_allclose(J[:, "u0"], jnp.exp(-2 * ts), rtol=1e-3)
