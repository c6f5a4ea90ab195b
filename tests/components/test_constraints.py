"""Bounds and constraints by name, optax by array, plots."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import scipy.optimize

from lux_sciml import ComponentVector, Layout
from lux_sciml.components.constraints import Constrained, Interval, Positive, Simplex, bounds
from lux_sciml.optimize import per_array


@pytest.fixture
def ps():
    return ComponentVector(physics={"k": 2, "g": [1, 3]}, net={"w": [[0.1, 0.2]]}, mix=[0.25, 0.25, 0.5])


def test_bounds(ps):
    lb, ub = bounds(ps, {"physics.*": (0, None), "physics.g": ([-1, -2], 5), "mix": (0, 1)})
    assert lb.layout is ub.layout is ps.layout
    np.testing.assert_array_equal(lb.data, [0, -1, -2, -np.inf, -np.inf, 0, 0, 0])
    np.testing.assert_array_equal(ub.data, [np.inf, 5, 5, np.inf, np.inf, 1, 1, 1])
    with pytest.raises(KeyError, match="no component matches 'x'"):
        bounds(ps, {"x": (0, 1)})
    with pytest.raises(ValueError, match=r"the lower bound of physics.g\[1\], 3.0, is above the upper one, 2.0"):
        bounds(ps, {"physics.g": ([1, 3], 2)})
    with pytest.raises(ValueError, match="broadcast"):
        bounds(ps, {"physics.g": ([1, 2, 3], 9)})


def test_bounds_in_scipy():
    """Rosenbrock's function in a box, the example of ComponentArrays."""
    start = ComponentVector(x=0, y=0)
    lb, ub = bounds(start, {"*": (-0.5, 0.5)})

    def rosenbrock(x):
        u = ComponentVector(x, start.layout)
        return (1 - u.x) ** 2 + 100 * (u.y - u.x**2) ** 2

    value_and_grad = jax.jit(jax.value_and_grad(rosenbrock))
    box = scipy.optimize.Bounds(lb.data, ub.data)
    result = scipy.optimize.minimize(value_and_grad, start.data, jac=True, method="L-BFGS-B", bounds=box)
    np.testing.assert_allclose(result.x, [0.5, 0.25], atol=1e-4)


@pytest.mark.parametrize(
    ("constraint", "x"),
    [
        (Positive(), [0.1, 30.0]),
        (Positive(exponential=True), [0.1, 3.0]),
        (Interval(-1, 4), [-0.9, 3.5]),
        (Simplex(), [0.2, 0.5, 0.3]),
    ],
)
def test_constraints_invert_and_log_dets_are_those_of_the_jacobian(constraint, x):
    x = jnp.asarray(x)
    free = constraint.inverse(x)
    np.testing.assert_allclose(constraint.forward(free), x, rtol=1e-12)
    square = jax.jacobian(constraint.forward)(free)[: free.size]
    np.testing.assert_allclose(constraint.log_det(free), jnp.linalg.slogdet(square)[1], rtol=1e-10)
    assert np.isnan(constraint.inverse(-x - 2)).any()
    assert np.isfinite(jax.grad(lambda u: constraint.forward(u)[0])(free)).all()


def test_large_and_small_numbers_stay_exact():
    x = jnp.array([1e-30, 1e-5, 50.0, 800.0])
    np.testing.assert_allclose(Positive().forward(Positive().inverse(x)), x, rtol=1e-12)


def test_constrained_vectors(ps):
    rules = {"physics.*": Positive(), "net.w": Interval(0, 1), "mix": Simplex()}
    constrained = Constrained(ps, rules)
    assert constrained == Constrained(ps.layout, rules) and hash(constrained) == hash(Constrained(ps, rules))
    free = constrained.inverse(ps)
    assert free.size == 7 and free.mix.shape == (2,) and free.layout is constrained.free_layout
    np.testing.assert_allclose(constrained.forward(free).data, ps.data, rtol=1e-12)
    total = Positive().log_det(free.physics.data) + Interval(0, 1).log_det(free.net.w) + Simplex().log_det(free.mix)
    np.testing.assert_allclose(constrained.log_det(free), total)
    assert (constrained.forward(ComponentVector(jnp.full(7, -9.0), free.layout)).physics.data > 0).all()
    gradient = jax.jit(jax.grad(lambda free: constrained.forward(free).physics.k ** 2))(free)
    assert gradient.layout is free.layout and gradient.physics.k > 0
    partly = Constrained(ps, {"physics.k": Positive()})
    np.testing.assert_array_equal(partly.inverse(ps).mix, ps.mix)
    assert Constrained(ps, {}).log_det(ps) == 0
    with pytest.raises(ValueError, match=r"`physics.k` has two constraints"):
        Constrained(ps, {"physics.*": Positive(), "physics.k": Interval(0, 1)})
    with pytest.raises(KeyError, match="no component matches"):
        Constrained(ps, {"x": Positive()})
    with pytest.raises(ValueError, match="low < high, got 2 and 1"):
        Interval(2, 1)


def trajectory(tx, ps, loss):
    state = tx.init(ps)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(ps), state, ps)
        ps = optax.apply_updates(ps, updates)
    return ps


def transformations(tree):
    labels = {"dense": {"weight": "a", "bias": "b"}}
    mask = {"dense": {"weight": True, "bias": False}}
    return {
        "lamb": optax.lamb(0.1),
        "lars": optax.lars(0.1),
        "muon": optax.contrib.muon(0.1),
        "masked decay": optax.adamw(0.1, weight_decay=0.5, mask=mask),
        "multi": optax.multi_transform({"a": optax.sgd(0.1), "b": optax.adam(0.2)}, labels),
        "block": optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(1.0)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", transformations(None))
def test_optax_sees_the_tree(name, key):
    tree = {"dense": {"weight": jax.random.normal(key, (3, 4), "float32"), "bias": jnp.ones(4, "float32")}}
    ps, tx = ComponentVector.from_tree(tree), transformations(tree)[name]

    def loss(tree):
        return jnp.sum(jnp.tanh(tree["dense"]["weight"]) ** 2) + jnp.sum(tree["dense"]["bias"] ** 4)

    with jax.numpy_dtype_promotion("standard"):
        expected = trajectory(tx, tree, loss)
        flat = trajectory(per_array(tx, ps), ps, lambda ps: loss(ps.tree()))
        plain = trajectory(per_array(tx, ps.layout), ps.data, lambda flat: loss(ps.layout.unravel(flat)))
    np.testing.assert_allclose(flat.data, ps.layout.ravel(expected), rtol=1e-5)
    np.testing.assert_allclose(plain, flat.data, rtol=1e-6)
    assert isinstance(flat, ComponentVector) and flat.layout is ps.layout


def test_plot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from lux_sciml.plot import plot

    ts = jnp.linspace(0, 1, 5)
    ys = jax.vmap(lambda t: ComponentVector(S=1 - t, I=[t, t**2]))(ts)
    nothing = dict.fromkeys(("interpolation", "solver_state", "controller_state", "made_jump", "event_mask"))
    solution = diffrax.Solution(0.0, 1.0, ts, ys, stats={}, result=diffrax.RESULTS.successful, **nothing)
    ax = plot(solution)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["S", "I[0]", "I[1]"]
    np.testing.assert_allclose(ax.lines[2].get_ydata(), ys["I"][:, 1])
    assert len(plot(solution, "I", ax=plt.subplots()[1], linestyle=":").lines) == 2
    plt.close("all")
    with pytest.raises(TypeError, match="start the solve from a ComponentVector"):
        plot(dataclasses.replace(solution, ys=ys.data))


def test_limits_that_are_no_pairs_and_options_of_numpy():
    ps = ComponentVector(a=1, b=[2, 3])
    for limit in (0, None, (1, 2, 3), "ab"):
        with pytest.raises(ValueError, match=r"the limits of 'a' are a pair, \(lower, upper\), got"):
            bounds(ps, {"a": limit})
    assert Interval(np.float64(0), np.int64(2)) == Interval(0, 2) and type(Interval(0, np.float32(2)).high) is float
    x = jnp.zeros(2, jnp.float32)
    assert Interval(np.float64(0), np.float64(2)).forward(x).dtype == x.dtype


@pytest.mark.slow
@pytest.mark.parametrize("constraint", [Positive(), Positive(exponential=True), Interval(0, 1), Simplex()], ids=str)
def test_integers_scalars_and_half_precision(constraint):
    free = [1, 0, -1]
    x = constraint.forward(jnp.array(free, float))
    for other in (jnp.array(free), np.array(free, np.int8)):
        np.testing.assert_array_equal(constraint.forward(other), x)
        np.testing.assert_array_equal(constraint.log_det(other), constraint.log_det(jnp.array(free, float)))
    np.testing.assert_array_equal(constraint.inverse(jnp.array([1, 1])), constraint.inverse(jnp.ones(2)))
    if not isinstance(constraint, Simplex):
        assert constraint.forward(0.5).shape == constraint.log_det(0.5).shape == ()
    half = jnp.linspace(-1, 1, 300).astype("bfloat16")
    c = Constrained(Layout.of(jnp.ones(300 + isinstance(constraint, Simplex), "bfloat16")), {"*": constraint})
    free = ComponentVector(half, c.free_layout)
    exact = constraint.forward(half.astype("float32"))
    assert c.forward(free).dtype == c.log_det(free).dtype == jnp.bfloat16
    np.testing.assert_array_equal(c.forward(free).data, exact.astype("bfloat16"))
    exact = constraint.log_det(half.astype(float))
    np.testing.assert_allclose(c.log_det(free).astype(float), exact, rtol=float(jnp.finfo("bfloat16").eps))
