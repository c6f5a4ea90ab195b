"""Jumps at known times: closed forms, derivatives by all adjoints, doses, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
OTHERS = ("direct", "forward", "gauss", "reversible")
ADJOINTS = ["auto", "backsolve", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS)]


def decay(y):
    return -0.5 * y


def exact(ts, times, amounts, y0):
    """The decay with amounts added, each with its jump at its own time."""
    ts = np.asarray(ts)[:, None]
    since = ts - np.asarray(times)
    return y0 * np.exp(-0.5 * ts[:, 0]) + np.sum(np.where(since >= 0, amounts * np.exp(-0.5 * since), 0), -1)


def differences(f, x, h=1e-6):
    steps = h * np.eye(x.size)
    return np.array([(f(x + d) - f(x - d)) / (2 * h) for d in steps])


@pytest.mark.exhaustive
def test_limits_and_saved_values():
    """A jump at the first time, at one of `ts`, between them, and at the last; both limits of each."""
    ts, times = np.array([0.0, 1.0, 2.0, 3.0]), [0.0, 1.0, 2.5, 3.0]
    jumps = lux.Jumps(times, lambda t, y, ps: y + 1.0, limits=True)
    node = lux.NeuralODE(decay, ts=ts, jumps=jumps, **TIGHT)
    sol, _ = node(jnp.array([2.0]), {}, {})
    np.testing.assert_allclose(sol.ys[:, 0], exact(ts, times, 1.0, 2.0), rtol=1e-8)
    log = sol.stats["jumps"]
    np.testing.assert_array_equal(log["times"], times)
    np.testing.assert_allclose(log["right"], log["left"] + 1, rtol=1e-12)
    np.testing.assert_allclose(log["right"][2], exact([2.5], times, 1.0, 2.0), rtol=1e-8)
    before = node.replace(jumps=jumps.replace(saves="left"))
    left = before(jnp.array([2.0]), {}, {})[0].ys
    np.testing.assert_allclose(left[:, 0], sol.ys[:, 0] - np.isin(ts, times).astype(float), rtol=1e-8)
    for layer, ys in ((node, sol.ys), (before, left)):
        final, _ = layer.replace(output="final")(jnp.array([2.0]), {}, {})
        np.testing.assert_allclose(final, ys[-1], rtol=1e-12)


@pytest.mark.slow
def test_equal_times_follow_each_other_and_time_may_run_backward():
    jumps = lux.Jumps([1.0, 1.0, np.inf], amounts=[1.0, 2.0, 4.0])
    node = lux.NeuralODE(jnp.zeros_like, ts=[0.0, 2.0], jumps=jumps, output="final")
    assert node(jnp.zeros(1), {}, {})[0] == 3
    back = node.replace(ts=[2.0, 0.0], jumps=lux.Jumps([1.5, 1.0], lambda t, y, ps: 2 * y + t))
    assert back(jnp.zeros(1), {}, {})[0] == 4  # (0 + 1.5) * 2 + 1.0
    ahead = back.replace(ts=[0.0, 2.0])
    assert ahead(jnp.zeros(1), {}, {})[0] == 3.5  # (0 + 1.0) * 2 + 1.5
    never = back.replace(jumps=lux.Jumps([1.5, 1.0, np.inf], amounts=[1.0, 2.0, 4.0], durations=[0.0, 0.0, 1.0]))
    assert never(jnp.zeros(1), {}, {})[0] == 3  # a dose at once has no end, and the last one no start
    none = never.replace(jumps=lux.Jumps(amounts=1.0, limits=True), output="solution")
    sol, _ = none((jnp.ones(1), {"times": jnp.zeros(0)}), {}, {})
    assert (sol.ys == 1).all() and sol.stats["jumps"]["left"].shape == (0, 1)


@pytest.mark.slow
def test_times_of_each_sample_may_be_learned():
    times = np.array([[0.5, 1.0], [1.5, 2.0]])
    jumps = lux.Jumps(times, amounts=lux.ComponentVector(x=1.0, n=2.0), trainable="times")  # the same each time
    node = lux.NeuralODE(lambda y: lux.ComponentVector(x=-0.5 * y.x, n=0.0), ts=[0.0, 3.0], jumps=jumps,
                         batching="vmap", output="final", **TIGHT)  # fmt: skip
    ps, st = lux.setup(jax.random.key(0), node, dtype="float64")
    y0 = lux.ComponentVector(jnp.zeros((2, 2)), lux.ComponentVector(x=0.0, n=0.0).layout)
    ys, slope = jax.value_and_grad(lambda ps: node(y0, ps, st)[0].x.sum())(ps)
    np.testing.assert_allclose(ys, np.sum(np.exp(-0.5 * (3 - times))), rtol=1e-8)
    np.testing.assert_allclose(slope.jumps.times, 0.5 * np.exp(-0.5 * (3 - times)), rtol=1e-7)
    with pytest.raises(ValueError, match=r"the jump at 4\.0 of sample 1 is outside of the span of the solve, 0"):
        node.replace(jumps=lux.Jumps([[0.5], [4.0]], amounts=1.0))(y0, {}, {})


@pytest.mark.exhaustive
def test_derivatives_by_the_times_of_the_call():
    """Those by the first time too, which the pieces start from."""
    node = lux.NeuralODE(decay, output="ys", jumps=lux.Jumps([1.5], amounts=1.0), **TIGHT)
    ts = np.array([0.1, 1.0, 2.0])
    got = jax.jacrev(lambda ts: node((jnp.array([2.0]), ts), {}, {})[0][:, 0])(jnp.asarray(ts))

    def closed(ts):
        return 2 * np.exp(-0.5 * (ts - ts[0])) + np.where(ts > 1.5, np.exp(-0.5 * (ts - 1.5)), 0)

    np.testing.assert_allclose(got, differences(closed, ts).T, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_derivatives_by_amounts_times_and_state(adjoint):
    ts, times = np.array([0.0, 0.7, 2.0, 3.0]), np.array([0.5, 1.0, 2.5])
    jumps = lux.Jumps(times, amounts=[1.0, 2.0, 3.0], trainable=("times", "amounts"))
    node = lux.NeuralODE(decay, ts=ts, jumps=jumps, adjoint=adjoint, **TIGHT)
    ps, st = lux.setup(jax.random.key(0), node, dtype="float64")
    assert ps.labels() == [f"jumps.{n}[{i}]" for n in ("times", "amounts") for i in range(3)]

    def loss(z):
        return jnp.sum(node(z[:1], lux.ComponentVector(z[1:], ps.layout), st)[0].ys ** 2)

    def closed(z):
        return np.sum(exact(ts, z[1:4], z[4:], z[0]) ** 2)

    z = jnp.concatenate([jnp.array([2.0]), ps.data])
    got = jax.jit(jax.jacfwd(loss) if adjoint == "forward" else jax.grad(loss))(z)
    rtol = 1e-5 if adjoint == "direct" else 1e-6  # it differentiates the size of the first step, too
    np.testing.assert_allclose(got, differences(closed, np.asarray(z)), rtol=rtol)
    if adjoint == "direct":  # second derivatives, by times too
        hessian = np.array(differences(lambda z: differences(closed, z, 1e-4), np.asarray(z), 1e-4))
        np.testing.assert_allclose(jax.jit(jax.hessian(loss))(z), hessian, rtol=1e-4, atol=1e-4)


def two_compartments(y):
    return lux.ComponentVector(depot=-y["depot"], blood=y["depot"] - 0.1 * y["blood"])


@pytest.mark.exhaustive
def test_an_infusion_and_a_bolus_into_a_named_component():
    ts, start = np.linspace(0.0, 10.0, 21), lux.ComponentVector(depot=0.0, blood=0.0)
    doses = lux.Jumps([1.0, 4.0], amounts={"depot": [5.0, 7.0]}, durations=[2.0, 0.0], trainable=("times", "durations"))
    node = lux.NeuralODE(two_compartments, ts=ts, jumps=doses, **TIGHT)
    ps, st = lux.setup(jax.random.key(0), node, dtype="float64")

    def depot(t, begin, second, lasts):
        in_it, after = 1 - np.exp(begin - t), (1 - np.exp(-lasts)) * np.exp(begin + lasts - t)
        infused = np.where(t < begin, 0, np.where(t < begin + lasts, in_it, after)) * 5 / lasts
        return infused + np.where(t >= second, 7 * np.exp(second - t), 0)

    np.testing.assert_allclose(node(start, ps, st)[0].ys["depot"], depot(ts, 1.0, 4.0, 2.0), atol=1e-9)

    def loss(data):  # at 2.5, in the infusion, at 3.5, after it, and after the bolus
        ys = node(start, lux.ComponentVector(data, ps.layout), st)[0].ys["depot"]
        return jnp.sum(ys[jnp.array([5, 7, 10])] ** 2)

    want = differences(lambda x: np.sum(depot(ts[[5, 7, 10]], *x) ** 2), np.array([1.0, 4.0, 2.0]))
    np.testing.assert_allclose(jax.grad(loss)(ps.data)[:3], want, rtol=1e-6)


@pytest.mark.exhaustive
def test_times_and_doses_of_each_sample_in_the_call():
    """As each sample alone, gradients too; an infinite time is no jump."""
    ts = np.linspace(0.0, 10.0, 5)
    times = jnp.array([[1.0, 2.0, jnp.inf], [0.0, 0.0, 5.0], [3.0, 6.0, 10.0]])
    given = {"times": times, "amounts": {"depot": jnp.array([[5.0, 7.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])}}
    node = lux.NeuralODE(two_compartments, ts=ts, jumps=lux.Jumps(), batching="vmap", **TIGHT)
    start = lux.ComponentVector(jnp.zeros((3, 2)), lux.ComponentVector(depot=0.0, blood=0.0).layout)

    def loss(given, node, start):
        ys = node((start, given), {}, {})[0].ys.data
        return jnp.sum(ys[..., 2, :] ** 2), ys

    (_, ys), got = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(given, node, start)
    alone = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], given)
        (_, want), slope = alone(one, node.replace(batching="joint"), jax.tree.map(lambda x, i=i: x[i], start))
        np.testing.assert_allclose(ys[i], want, rtol=1e-9, atol=1e-12)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(slope), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-7, atol=1e-10)


@pytest.mark.exhaustive
def test_samples_whose_pieces_have_other_lengths_by_two_adjoints():
    """One is at its end, or has not begun, where another goes on and saves."""
    node = lux.NeuralODE(lux.Scale(1), ts=[0.0, 1.0, 2.0, 3.0], jumps=lux.Jumps(amounts=1.0), batching="vmap",
                         output="ys", max_steps=64)  # fmt: skip

    def total(ps, times, adjoint):
        y0 = jnp.array([[1.0], [2.0], [3.0], [4.0]])
        return jnp.sum(node.replace(adjoint=adjoint)((y0, {"times": times}), ps, {})[0] ** 2)

    ps, times = {"weight": jnp.array([-0.5]), "bias": jnp.array([0.1])}, jnp.array([[0.5], [3.0], [jnp.inf], [0.0]])
    got, want = (jax.jit(jax.grad(total, (0, 1)), static_argnums=2)(ps, times, name) for name in ("direct", "auto"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.exhaustive
def test_an_effect_that_is_a_layer_and_one_that_reads_the_parameters():
    net = lux.Dense(2, 2, jnp.tanh)
    kick = lux.NeuralODE(lux.Lambda(jnp.zeros_like), ts=[0.0, 1.0], jumps=lux.Jumps([0.5], net), output="final")
    ps, st = lux.setup(jax.random.key(0), kick)
    np.testing.assert_allclose(kick(jnp.ones(2), ps, st)[0], net(jnp.ones(2), ps.jumps.effect, {})[0], rtol=1e-6)
    split = lux.SplitODE(net, lux.Lambda(jnp.zeros_like), ts=[0.0, 1.0], output="final", batching="vmap",
                         jumps=lux.Jumps([0.5], lambda t, y, ps: 0 * y + ps["explicit"]["bias"]))  # fmt: skip
    ps, st = lux.setup(jax.random.key(1), split)
    later = lux.NeuralODE(net, ts=[0.5, 1.0], output="final")(ps.explicit.bias, ps.explicit, {})[0]
    np.testing.assert_allclose(split(jnp.ones((3, 2)), ps, st)[0], jnp.broadcast_to(later, (3, 2)), rtol=1e-4)
    masked = kick.replace(jumps=lux.Jumps([0.5], lux.Chain(net, lux.Dropout(0.5))), on_state_update="discard")
    _, st = lux.setup(jax.random.key(0), masked)
    _, after = masked(jnp.ones(2), {"model": {}, "jumps": {"effect": {"layer_0": {"weight": jnp.eye(2),
                      "bias": jnp.ones(2)}, "layer_1": {}}}}, st)  # fmt: skip
    before, now = (x["jumps"]["effect"]["layer_1"]["key"] for x in (st, after))
    assert before != now


def test_an_effect_that_sets_a_component_to_a_number():
    def rate(y):
        return {"x": y["v"], "v": -2.0}

    stop = lux.Jumps([1.0], lambda t, y, ps: {**y, "v": 0})
    ys, _ = lux.NeuralODE(rate, ts=[0.0, 2.0], jumps=stop, output="final")(dict.fromkeys("xv", jnp.array(0.0)), {}, {})
    np.testing.assert_allclose([ys["x"], ys["v"]], [-2.0, -2.0], rtol=1e-6)  # -1, and -1 from the rest


@pytest.mark.slow
def test_fixed_jumps_leave_parameters_and_the_program_without_them_as_they_are():
    net = lux.Dense(2, 2)
    node = lux.NeuralODE(net, ts=[0.0, 1.0])
    ps, st = lux.setup(jax.random.key(0), node)
    jumping = node.replace(jumps=lux.Jumps([0.5], amounts=1.0))
    assert lux.setup(jax.random.key(0), jumping)[0].equals(ps)

    def program(node):
        return str(jax.make_jaxpr(lambda y: node(y, ps, st)[0].ys)(jnp.ones(2)))

    assert "scan" not in program(node) and "scan" in program(jumping)
    few, many = (node.replace(jumps=lux.Jumps(np.linspace(0, 1, k), amounts=1.0)) for k in (10, 50))
    assert program(few).count(" = ") == program(many).count(" = ")  # one program, however many jumps


@pytest.mark.exhaustive
def test_what_is_refused():
    def solved(jumps, **options):
        return lux.NeuralODE(decay, ts=[0.0, 1.0], jumps=jumps, **options)(jnp.ones(2), {}, {})[0]

    def add(t, y, ps):
        return y + 1

    for make, sentence in {
        lambda: lux.Jumps([0.5, jnp.nan], add): "got NaN at the position",
        lambda: lux.Jumps([0.5, 0.2, 0.7], add): "these turn back",
        lambda: lux.Jumps([0.5], add, amounts=1.0): "either an effect or amounts",
        lambda: lux.Jumps(amounts=1.0, trainable="times"): "give times=",
        lambda: solved(lux.Jumps([2.0], add)): "the jump at 2.0 is outside of the span of the solve, 0.0 to 1.0",
        lambda: solved(lux.Jumps([0.5], lambda t, y, ps: y[:1])): "the effect of Jumps must keep the shape",
        lambda: solved(lux.Jumps([0.5], lambda t, y, ps: (y, y))): "the effect of Jumps must return what its state is",
        lambda: solved(lux.Jumps([0.5], lambda t, y, ps: y.astype("float32"))): "the effect of Jumps returns float32",
        lambda: lux.Jumps([0.5], lambda y: y): r"a function of \(t, y, ps\), got .*: too many positional",
        lambda: solved(lux.Jumps([0.5], amounts={"depot": 1.0})): "added to 'depot', but the state is a",
        lambda: solved(lux.Jumps([0.5, 0.6], amounts=[1.0, 2.0, 3.0])): "have shape",
        lambda: solved(lux.Jumps(effect=add)): "built without times, so its input ends in a dict",
        lambda: lux.NeuralODE(decay, ts=[0.0, 1.0], jumps=lux.Jumps(effect=add))(
            (jnp.ones(2), {"times": lux.diffeq.Series([[0.2, 0.4]])}), {}, {}
        ): r"of a Series, np.where\(doses.mask, doses.times, np.inf\)",
        lambda: solved(lux.Jumps([0.5], add), adjoint="implicit"): "has no derivatives of solves in pieces",
        lambda: solved(lux.Jumps([0.5], add), throw=True): "takes no throw",
        lambda: lux.NeuralDDE(decay, [0.5], ts=[0.0, 1.0], dt0=0.1, jumps=lux.Jumps([0.5], add)): "has no jumps",
        lambda: lux.NeuralODE(decay, jumps=[0.5]): "expected jumps, lux.Jumps",
        lambda: lux.diffeq.multiple_shooting(
            lux.NeuralODE(decay, jumps=lux.Jumps([0.5], add)), {}, {}, jnp.ones((3, 1)), [0.0, 1.0, 2.0], group_size=2
        ): "takes a layer without jumps",
    }.items():
        with pytest.raises((TypeError, ValueError), match=sentence):
            make()
    infused = lux.NeuralODE(decay, ts=[0.0, 1.0], jumps=lux.Jumps([0.5]), output="final")
    given = {"amounts": jnp.ones(1)}
    for bad in (-1.0, np.nan, np.inf):  # none of them is a dose that is given at once, or not at all
        with pytest.raises(ValueError, match=f"finite and at least 0, .*; got {bad}"):
            infused((jnp.ones(1), {**given, "durations": jnp.array([bad])}), {}, {})
    late = jax.jit(lambda d: infused((jnp.ones(1), {**given, "durations": d}), {}, {})[0])
    assert all(jnp.isnan(late(jnp.array([bad]))) for bad in (-1.0, np.nan, np.inf))
    traced = lux.NeuralODE(decay, ts=[0.0, 1.0], jumps=lux.Jumps(amounts=1.0))
    for bad in (jnp.array([2.0]), jnp.array([jnp.nan])):
        sol, _ = jax.jit(lambda t: traced((jnp.ones(1), {"times": t}), {}, {}))(bad)
        assert jnp.isnan(sol.ys).all()
        with pytest.raises(RuntimeError, match="a NaN or an infinity was met"):
            lux.raise_if_failed(sol)
