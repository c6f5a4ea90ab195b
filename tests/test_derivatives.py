"""Jacobians and Hessians with names, and the context that solvers read."""

import asyncio
import contextlib
import contextvars
import threading

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.exhaustive
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


@pytest.mark.slow
def test_hessian_aux_trees_and_outputs_that_are_no_numbers(cv):
    H, aux = hessian(lambda cv: (loss(cv), cv.a), has_aux=True)(cv)
    np.testing.assert_array_equal(aux, cv.a)
    np.testing.assert_allclose(H.data, hessian(loss)(cv).data)
    tree = hvp(lambda t: t["b"] ** 3 * t["a"])({"b": 2.0, "a": 5.0}, {"a": 0.0, "b": 1.0})
    assert list(tree) == ["b", "a"] and tree["b"] == 60 and tree["a"] == 12
    for derivative in (hessian(f), lambda cv: hvp(f)(cv, cv)):
        with pytest.raises(TypeError, match=r"a scalar, got one of shape"):
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


@jax.custom_vjp
def reverse_only(x):
    return x**2


reverse_only.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def forward_only(x):
    return jax.lax.while_loop(lambda state: state[0] < 1, lambda state: (state[0] + 1, state[1] ** 2), (0, x))[1]


def test_raw_errors_say_what_to_pass(cv):
    def doubled(cv):
        return jax.lax.while_loop(lambda x: x[0] < 10, lambda x: 2 * x, cv.a)

    with pytest.raises(TypeError, match=r"reverse mode only.*`mode='reverse'`"):
        jacobian(lambda cv: reverse_only(cv.a), mode="forward")(cv)
    with pytest.raises(TypeError, match=r"forward mode only.*`mode='forward'`"):
        jacobian(doubled, mode="reverse")(cv)
    np.testing.assert_array_equal(jacobian(doubled, mode="forward")(cv)[:, "a"], 8 * np.eye(2))

    @jax.custom_vjp
    def solve(x):  # whose gradient is another solve
        return x**2

    solve.defvjp(lambda x: (x**2, x), lambda x, g: (g * reverse_only(x),))
    for f, lacking in ((lambda cv: solve(cv.a).sum(), "reverse"), (lambda cv: doubled(cv).sum(), "forward")):
        for derivative in (hessian(f), lambda cv, f=f: hvp(f)(cv, cv)):
            with pytest.raises(TypeError, match=rf"{lacking} mode only.*second derivatives take both.*adjoint='auto'"):
                derivative(cv)


@pytest.mark.exhaustive
def test_a_solve_of_any_number_of_steps_has_a_forward_mode():
    def decay(p):
        term = diffrax.ODETerm(lambda t, u, p: -p.rate * u)
        controller = diffrax.PIDController(rtol=1e-3, atol=1e-3)
        return diffrax.diffeqsolve(
            term,
            diffrax.Kvaerno3(),
            0.0,
            1.0,
            0.1,
            p.u0,
            p,
            adjoint=diffrax.DirectAdjoint(),
            stepsize_controller=controller,
            max_steps=None,
        ).ys[0]

    p = ComponentVector(rate=1.0, u0=1.0)
    np.testing.assert_allclose(jacobian(decay, mode="forward")(p)[:, "u0"], np.exp(-1), rtol=1e-2)
    with pytest.raises(TypeError, match=r"`max_steps=None`\): take `mode='forward'`, or give `max_steps`"):
        jacobian(decay, mode="reverse")(p)
    with pytest.raises(TypeError, match=r"second derivatives take both: give `max_steps`"):
        hessian(lambda p: decay(p))(p)


@pytest.mark.exhaustive
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


def test_coroutines_keep_their_modes_and_leave_none_behind():
    async def one(mode, seconds):
        with derivatives.mode(mode):
            await asyncio.sleep(seconds)
            inside = derivatives.current()
            await asyncio.sleep(seconds)
            with derivatives.mode("forward"):
                return inside, derivatives.current()

    async def all_of_them():
        seen = await asyncio.gather(one("forward", 0.002), one("reverse", 0.005), one("both", 0.001))
        assert derivatives.current() is None
        return seen

    assert asyncio.run(all_of_them()) == [("forward", "forward"), ("reverse", "both"), ("both", "both")]
    assert derivatives.current() is None and derivatives._jit_key.value is None


def test_tasks_and_threads_made_inside_a_context_have_its_mode_until_it_is_left():
    async def main():
        left = asyncio.Event()

        async def later():
            first = derivatives.current()
            await left.wait()
            return first, derivatives.current()

        with derivatives.mode("forward"):
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
            thread = await asyncio.to_thread(derivatives.current)
        left.set()
        return *(await task), thread

    assert asyncio.run(main()) == ("forward", None, "forward")


def test_threads_have_modes_of_their_own(cv):
    seen = {}

    @jax.jit
    def f(cv):
        seen.setdefault(threading.current_thread().name, []).append(derivatives.current())
        return jnp.sum(cv.data**2)

    def work(mode):
        with jax.enable_x64(True), derivatives.mode(mode):
            barrier.wait()
            f(cv)
            barrier.wait()
        assert derivatives.current() is None

    barrier = threading.Barrier(3)
    threads = [threading.Thread(target=work, args=(mode,), name=mode) for mode in ("forward", "reverse", "both")]
    with derivatives.mode("forward"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {mode: [mode] for mode in ("forward", "reverse", "both")}
    f(cv)
    assert seen[threading.current_thread().name] == [None]


def test_generators_that_take_turns_leave_no_mode_behind():
    def steps(mode):
        with derivatives.mode(mode):
            yield
            yield

    first, second = steps("forward"), steps("both")
    next(first), next(second)
    assert derivatives.current() == "both", "as every context entered in a generator, until it is left"
    first.close()
    assert derivatives.current() == "both"
    second.close()
    assert derivatives.current() is None and derivatives._jit_key.value is None

    other = steps("reverse")
    contextvars.copy_context().run(next, other)
    assert derivatives.current() is None
    context = contextvars.copy_context()
    third = steps("reverse")
    context.run(next, third)
    third.close()  # here, where it was not entered
    assert context.run(derivatives.current) is None and derivatives._jit_key.value is None
    other.close()

    async def asynchronous():
        async def steps():
            with derivatives.mode("forward"):
                yield derivatives.current()
                yield

        return await anext(steps())

    assert asyncio.run(asynchronous()) == "forward"
    assert derivatives.current() is None


@pytest.fixture
def jitted():
    """A jitted loss with a derivative in the mode of its trace only, and the modes it was traced in."""
    traces = []

    @jax.jit
    def loss(cv):
        traces.append(derivatives.current())
        square = {None: reverse_only, "reverse": reverse_only, "forward": forward_only, "both": jnp.square}[traces[-1]]
        return jnp.sum(square(cv.data))

    return loss, traces


def entered(mode, f):
    def call(x):
        with derivatives.mode(mode):
            return f(x)

    return call


DERIVATIVES = {
    "None": jax.grad,
    "forward": lambda f: jacobian(f, mode="forward"),
    "reverse": lambda f: jacobian(f, mode="reverse"),
    "both": hessian,
    "entered forward": lambda f: entered("forward", jax.jacfwd(f)),
    "entered both": lambda f: entered("both", jax.grad(f)),
}


def check(derivative, loss, cv):
    got = DERIVATIVES[derivative](loss)(cv).data
    np.testing.assert_allclose(np.squeeze(got), 2 * np.eye(5) if derivative == "both" else 2 * cv.data)


def test_one_jitted_loss_has_the_right_trace_in_every_coroutine_and_thread(jitted, cv):
    loss, traces = jitted

    async def task(derivative):
        for _ in range(3):
            await asyncio.sleep(0.001)
            check(derivative, loss, cv)

    def thread(derivative):
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            check(derivative, loss, cv)

    async def main():
        await asyncio.gather(*map(task, DERIVATIVES))
        await asyncio.gather(*(asyncio.to_thread(thread, derivative) for derivative in DERIVATIVES))

    asyncio.run(main())
    assert sorted(map(str, traces)) == ["None", "both", "forward", "reverse"]


@pytest.mark.slow
def test_coroutines_that_wait_inside_a_context_do_not_disturb_others(jitted, cv):
    loss, traces = jitted
    check("None", loss, cv)

    @contextlib.contextmanager
    def wrapped(mode):
        with derivatives.mode(mode):
            yield

    async def waiting(mode, transform):
        for context in (derivatives.mode, wrapped):
            with context(mode):
                for _ in range(3):
                    await asyncio.sleep(0)
                    got = transform(loss)(cv)
                    assert derivatives.current() == mode
                np.testing.assert_allclose(np.ravel(got.data), 2 * cv.data)

    async def plain():
        for _ in range(8):
            await asyncio.sleep(0)
            for derivative in DERIVATIVES:
                check(derivative, loss, cv)

    async def main():
        await asyncio.gather(waiting("forward", jax.jacfwd), plain(), waiting("reverse", jax.grad), plain())

    asyncio.run(main())
    assert sorted(map(str, traces)) == ["None", "both", "forward", "reverse"]
    assert derivatives.current() is None and derivatives._jit_key.value is None and not derivatives._thread.waiting


@pytest.mark.exhaustive
def test_outputs_that_are_no_floats_are_named(cv):
    with pytest.raises(TypeError, match=r"derivatives are of floating-point outputs: `n` has dtype int64"):
        jacobian(lambda cv: {"n": cv.a.astype(int)})(cv)
