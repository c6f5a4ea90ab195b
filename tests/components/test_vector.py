"""ComponentVector: names, arithmetic, updates, printing."""

import copy
import dataclasses
import operator
import pickle
from collections import OrderedDict

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from lux_sciml import ComponentVector, Layout, concat
from tests.components.test_layout import Physics, Point


@pytest.fixture
def cv():
    return ComponentVector(a=1, b=[2, 3], c={"d": [[4, 5, 6], [7, 8, 9]], "e": 10})


# --- construction ---------------------------------------------------------------------------------------------


def test_keywords_keep_order_and_make_floats(cv):
    assert list(cv.keys()) == ["a", "b", "c"] and cv.dtype == np.float64
    np.testing.assert_array_equal(cv, np.arange(1.0, 11))
    assert cv.c.d.shape == (2, 3) and cv.a.shape == ()
    assert ComponentVector(c=1j, d=2j).dtype == np.complex128


@pytest.mark.parametrize(
    "tree",
    [
        {"x": 1, "y": [2, 3]},
        [1, [2, 3], {"z": 4}],
        (1.0, (2, 3)),
        Point(1, [2.0, 3]),
        Physics(9.81, drag={"k": [0, 1]}),
        [{"a": 1}, {"a": 2}],
        {},
    ],
)
def test_one_tree(tree):
    back = ComponentVector(tree).tree()
    assert type(back) is type(tree)
    expected, got = (jax.tree.leaves(dataclasses.astuple(t) if isinstance(t, Physics) else t) for t in (tree, back))
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in (*got, [])]), np.asarray(expected, float))


def test_lists_of_traced_numbers_are_arrays():
    like = ComponentVector(b=[1.0, 2.0])

    @jax.jit
    def f(x):
        return ComponentVector(b=[x, 2 * x])

    assert f(3.0).layout is like.layout


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ComponentVector(shape=1), ValueError, "'shape' is a method or property"),
        (lambda: ComponentVector(a="x"), TypeError, "`a` is the str 'x'"),
        (lambda: ComponentVector(a=True), TypeError, "`a` is the bool True"),
        (lambda: ComponentVector(a=np.arange(3)), TypeError, "`a` has dtype int64"),
        (lambda: ComponentVector({"a": 1}, b=2), TypeError, "by keyword, one tree of them"),
        (lambda: ComponentVector(1, 2, 3), TypeError, "by keyword, one tree of them"),
        (lambda: ComponentVector(jnp.ones(3), Layout.of({"a": 1.0})), ValueError, r"shape \(..., 1\), got \(3,\)"),
        (lambda: ComponentVector(jnp.ones(()), Layout.of({"a": 1.0})), ValueError, r"got \(\)"),
        (lambda: ComponentVector(jnp.ones(1, int), Layout.of({"a": 1.0})), TypeError, "got int64"),
    ],
)
def test_bad_construction(build, error, message):
    with pytest.raises(error, match=message):
        build()


# --- reading --------------------------------------------------------------------------------------------------


def test_every_way_to_a_component(cv):
    for d in (cv.c.d, cv["c"]["d"], cv["c.d"], cv["c", "d"], cv.unpack("c")[0].d, dict(cv.items())["c"].d):
        np.testing.assert_array_equal(d, [[4, 5, 6], [7, 8, 9]])
    assert isinstance(cv.c, ComponentVector) and cv.c.e == 10
    assert cv[1] == 2 and cv[-1] == 10 and cv[np.array([0, 2])].tolist() == [1, 3] and cv[:2].tolist() == [1, 2]
    assert "c.d" in cv and "c.x" not in cv and "a" in dir(cv)
    assert len(cv) == 10 and [float(x) for x in cv][:2] == [1, 2]
    assert cv.shape == (10,) and cv.ndim == 1 and cv.size == 10
    assert len(cv.values()) == 3


def test_unknown_components(cv):
    with pytest.raises(AttributeError, match="no component 'x'; what there is: a, b, c"):
        _ = cv.x
    with pytest.raises(KeyError, match="no component 'x'; what there is: d, e"):
        cv["c.x"]
    with pytest.raises(KeyError, match="an array has no components"):
        cv["a.x"]
    assert not hasattr(cv, "__wrapped__")


def test_arrays_of_components():
    cv = ComponentVector(a=0, b=[{"a": 1, "c": [2, 3]}, {"a": 4, "c": [5, 6]}])
    assert cv.b[1].a == 4 and cv.b[-1].a == 4 and len(cv.b) == 2 and cv["b.1.a"] == 4
    for stacked in (cv.b.a, cv["b.a"], jax.jit(lambda cv: cv.b.a)(cv)):
        np.testing.assert_array_equal(stacked, [1, 4])
    np.testing.assert_array_equal(cv.b.c, [[2, 3], [5, 6]])
    np.testing.assert_array_equal([item.a for item in cv.b], [1, 4])
    batch = jax.vmap(lambda s: cv * s)(jnp.arange(3.0))
    assert batch.b.c.shape == (3, 2, 2)
    gradient = jax.grad(lambda cv: (cv.b.a * jnp.array([2.0, 3.0])).sum() + cv.b.c.sum())(cv)
    np.testing.assert_array_equal(gradient.data, [0, 2, 1, 1, 3, 1, 1])
    with pytest.raises(TypeError, match=r"takes an integer, got slice"):
        cv.b[0:1]
    with pytest.raises(IndexError):
        cv.b[2]


def test_stacked_access_splits_once():
    cv = ComponentVector(b=[{"a": 1, "c": [2, 3]}, {"a": 4, "c": [5, 6]}])
    text = str(jax.make_jaxpr(lambda cv: cv.b.a.sum() + cv.b.c.sum() + cv.b.a[0])(cv))
    assert text.count("split[") == 2, "the two items, and the names of the stack"
    assert "slice" not in text.replace("squeeze", "").split("split[")[1]


def test_unequal_items_do_not_stack():
    cv = ComponentVector(b=[{"a": 1}, {"a": [2, 3]}])
    with pytest.raises(AttributeError, match="no component 'a'; what there is: 0, 1"):
        _ = cv.b.a


def test_select_in_the_order_asked(cv):
    chosen = cv.select("c", "a")
    assert list(chosen.keys()) == ["c", "a"]
    np.testing.assert_array_equal(chosen, [4, 5, 6, 7, 8, 9, 10, 1])
    assert cv.select().shape == (0,)
    with pytest.raises(ValueError, match="twice"):
        cv.select("a", "a")
    with pytest.raises(KeyError, match="no component 'x'"):
        cv.select("x")


def test_equals(cv):
    assert cv.equals(ComponentVector(cv.data, cv.layout)) and not cv.equals(cv + 1)
    assert not cv.equals(cv.data) and not ComponentVector(a=1).equals(ComponentVector(b=1))
    assert isinstance(cv == cv, jax.Array)
    with pytest.raises(TypeError, match="unhashable"):
        hash(cv)


# --- updating -------------------------------------------------------------------------------------------------


def test_replace(cv):
    new = cv.replace(a=5, c={"e": 0.5})
    assert new.a == 5 and new.c.e == 0.5 and new.layout is cv.layout
    np.testing.assert_array_equal(new.c.d, cv.c.d)
    np.testing.assert_array_equal(cv.replace(b=7).b, [7, 7])
    np.testing.assert_array_equal(cv.replace(c=cv.c * 2).c.d, cv.c.d * 2)
    items = ComponentVector(b=[{"a": 1}, {"a": 2}])
    np.testing.assert_array_equal(items.replace(b=[{"a": 3}, {"a": 4}]), [3, 4])
    with pytest.raises(KeyError, match=r"no component `c.x`"):
        cv.replace(c={"x": 1})
    with pytest.raises(ValueError, match=r"`b` has shape \(2,\), got \(3,\)"):
        cv.replace(b=[1, 2, 3])
    with pytest.raises(TypeError, match="`a` is real, got a complex value"):
        cv.replace(a=1j)
    with pytest.raises(ValueError, match="the layouts differ: `d` is missing"):
        cv.replace(c=ComponentVector(e=1))
    with pytest.raises(TypeError, match=r"is immutable: cv.at\[name\].set\(...\)"):
        cv["a"] = 5.0
    with pytest.raises(AttributeError, match=r"use cv.replace\(a=...\) or cv.at\['a'\].set"):
        cv.a = 3


def test_at(cv):
    assert cv.at["a"].set(5).a == 5
    assert cv.at["c.e"].add(1).c.e == 11
    np.testing.assert_array_equal(cv.at["c"].multiply(0), [1, 2, 3, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(cv.at["b"].apply(jnp.flip).b, [3, 2])
    np.testing.assert_array_equal(cv.at["c"].set({"d": 0, "e": 1}).c, [0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(cv.at["c"].set(cv.c + 1).c, cv.c + 1)
    np.testing.assert_array_equal(cv.at["c"].set(0).c, np.zeros(7))
    assert jax.jit(lambda cv: cv.at["a"].set(cv.b.sum()))(cv).a == 5
    with pytest.raises(KeyError, match="what there is"):
        cv.at["x"]
    with pytest.raises(ValueError, match=r"`b` has shape \(2,\)"):
        cv.at["b"].set(jnp.ones(3))


def test_merge_and_concat(cv):
    merged = cv.merge(new=42, a=[1, 2])
    assert list(merged.keys()) == ["a", "b", "c", "new"] and merged.new == 42
    np.testing.assert_array_equal(merged.a, [1, 2])
    np.testing.assert_array_equal(concat(ComponentVector(x=1), cv), [1, *range(1, 11)])
    assert concat().shape == (0,)
    with pytest.raises(ValueError, match="'a' is in two"):
        concat(cv, cv)
    with pytest.raises(ValueError, match="'data' is a method or property"):
        cv.merge(data=1)
    with pytest.raises(TypeError, match="named components"):
        ComponentVector([1, 2]).merge(a=1)


def test_tied_components_change_together():
    tree = {"encoder": {"w": [1.0, 2.0]}, "b": [3.0], "decoder": {"w": jnp.ones(2), "b": [4.0]}}
    tree = jax.tree.map(jnp.asarray, tree, is_leaf=lambda x: isinstance(x, list))
    cv = ComponentVector.from_tree(
        {"encoder": tree["encoder"], "b": tree["b"], "decoder": {"w": tree["decoder"]["w"], "b": tree["decoder"]["b"]}},
        ties=[("encoder.w", "decoder.w")],
    )
    assert cv.size == 4
    np.testing.assert_array_equal(cv.data, [1, 2, 3, 4])

    def reads(cv):
        return [cv.encoder.w, cv.decoder.w, cv["decoder.w"], cv["decoder"]["w"], cv.tree()["decoder"]["w"]]

    for w in [*reads(cv), *jax.jit(reads)(cv)]:
        np.testing.assert_array_equal(w, [1, 2])
    np.testing.assert_array_equal(cv.decoder, [1, 2, 4])
    for new in (cv.replace(decoder={"w": 9}), cv.at["decoder.w"].set(9), cv.at["encoder"].set(9)):
        np.testing.assert_array_equal(new.data, [9, 9, 3, 4])
    np.testing.assert_array_equal((cv.at["decoder"].multiply(2)).data, [2, 4, 3, 8])
    with pytest.raises(ValueError, match=r"`encoder.w` and `decoder.w` are tied: give a value for one of them"):
        cv.replace(encoder={"w": 1}, decoder={"w": 2})
    batch = jax.vmap(lambda s: cv * s)(jnp.arange(3.0))
    assert batch.decoder.w.shape == (3, 2)
    np.testing.assert_array_equal(batch.decoder.w, batch.encoder.w)
    gradient = jax.grad(lambda cv: 3 * cv.encoder.w.sum() + 13 * cv.decoder.w.sum() + cv.decoder.b.sum())(cv)
    np.testing.assert_array_equal(gradient.data, [16, 16, 0, 1])
    assert cv.select("decoder", "encoder").size == 3 and cv.select("decoder").size == 3
    assert cv.merge(b=[1, 2]).size == 5 and cv.merge(encoder=1.0).size == 5
    assert concat(cv, ComponentVector(x=1)).layout.ties == cv.layout.ties
    assert "decoder.w = encoder.w" in cv.table() and "decoder=(w=[1, 2], b=[4])" in repr(cv)
    assert pickle.loads(pickle.dumps(cv)).equals(cv)


def test_tied_parameters_in_a_model():
    import lux_sciml as lux

    model = lux.Chain(lux.Dense(2, 2, jnp.tanh, use_bias=False), lux.Dense(2, 2, use_bias=False))
    ps, state = lux.setup(jax.random.key(0), model)
    tied = ComponentVector.from_tree(ps.tree(), ties=[("layer_0.weight", "layer_1.weight")])
    x = jnp.ones(2)
    w = ps.layer_0.weight
    np.testing.assert_allclose(model(x, tied, state)[0], jnp.tanh(x @ w) @ w, rtol=1e-6)
    gradient = jax.grad(lambda ps: model(x, ps, state)[0].sum())(tied)
    expected = jax.grad(lambda w: (jnp.tanh(x @ w) @ w).sum())(w)
    np.testing.assert_allclose(gradient.layer_1.weight, expected, rtol=1e-6)


def test_copies(cv):
    assert copy.copy(cv) is cv and copy.deepcopy(cv) is cv
    assert cv.copy().equals(cv) and cv.copy().data.unsafe_buffer_pointer() != cv.data.unsafe_buffer_pointer()
    assert pickle.loads(pickle.dumps(cv)).equals(cv)
    assert cv.zeros_like().layout is cv.layout and not np.any(cv.zeros_like())
    assert cv.astype("float32").c.e.dtype == np.float32 and cv.astype("bfloat16").tree()["a"].dtype == jnp.bfloat16
    half = cv.astype("bfloat16")
    assert pickle.loads(pickle.dumps(half)).equals(half)
    with pytest.raises(TypeError, match="floating-point"):
        cv.astype(int)


# --- arithmetic -----------------------------------------------------------------------------------------------

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow]
COMPARE = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
numbers = st.floats(0.5, 4, width=16)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(BINARY),
    st.lists(numbers, min_size=3, max_size=3),
    st.lists(numbers, min_size=3, max_size=3),
    st.sampled_from(["number", "array", "numpy", "vector"]),
    st.booleans(),
)
def test_arithmetic_agrees_with_numpy_and_keeps_names(f, x, y, kind, reflected):
    cv = ComponentVector(a=x[:1], b=x[1:])
    x, y = np.asarray(x), np.asarray(y)
    other = {"number": float(y[0]), "array": jnp.asarray(y), "numpy": y, "vector": ComponentVector(y, cv.layout)}[kind]
    y = y[0] if kind == "number" else y
    if reflected and kind != "array":
        got, expected = f(other, cv), f(y, x)
    else:
        got, expected = f(cv, other), f(x, y)
    assert isinstance(got, ComponentVector) and got.layout is cv.layout
    np.testing.assert_allclose(got.data, expected, rtol=1e-14)


@pytest.mark.parametrize("f", COMPARE)
def test_comparisons_give_arrays(f, cv):
    np.testing.assert_array_equal(f(cv, 5), f(np.asarray(cv), 5))
    assert isinstance(f(cv, cv), jax.Array)


def test_arithmetic_refuses_other_names_and_sizes(cv):
    with pytest.raises(ValueError, match="the layouts differ: `b` is missing"):
        cv + ComponentVector(a=1)
    for other in (np.ones(3), jnp.ones((10, 1))):
        with pytest.raises(ValueError, match=r"does not fit a vector of 10 elements"):
            cv + other
    with pytest.raises(TypeError):
        cv + "text"
    with pytest.raises(TypeError):
        cv + [1.0] * 10
    tied = ComponentVector.from_tree({"x": jnp.ones(1), "y": jnp.ones(1)}, ties=[("x", "y")])
    with pytest.raises(ValueError, match="should be tied"):
        tied + ComponentVector(x=[1], y=[1])


def test_as_an_array(cv):
    assert jnp.sum(cv) == np.sum(np.asarray(cv)) == 55
    assert type(jnp.exp(cv)) is not ComponentVector and type(jnp.ones(10) + cv) is not ComponentVector
    assert isinstance(np.ones(10) * cv, ComponentVector) and (-cv).a == -1 and abs(-cv).a == 1 and (+cv).a == 1
    assert cv @ cv == 385 and (np.eye(10) @ cv).shape == (10,) and (cv @ np.eye(10)).shape == (10,)
    named = ComponentVector(jnp.ones(10) + cv, cv.layout)
    assert named.a == 2
    assert np.asarray(cv, dtype=np.float32).dtype == np.float32 and np.array(cv, copy=True).tolist() == cv.data.tolist()


def test_transforms_keep_names(cv):
    gradient = jax.grad(lambda cv: (cv.a * cv.b).sum())(cv)
    assert gradient.a == 5 and gradient.layout is cv.layout
    _, tangent = jax.jvp(lambda cv: cv * 2, (cv,), (cv,))
    assert tangent.equals(cv * 2)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adam(0.1)
        updates, _ = optimizer.update(gradient, optimizer.init(cv), cv)
        assert isinstance(optax.apply_updates(cv, updates), ComponentVector)
    with pytest.raises(ValueError, match="different pytree metadata"):
        jax.tree.map(jnp.add, cv, ComponentVector(a=1))


# --- printing -------------------------------------------------------------------------------------------------


def test_empty_components_print_their_brackets():
    cv = ComponentVector(a=[], b={}, c=None, d={"e": {}, "f": 1.0})
    assert repr(cv) == "ComponentVector(a=[], b=(), c=None, d=(e=(), f=1))"


def test_repr(cv):
    assert repr(cv) == "ComponentVector(a=1, b=[2, 3], c=(d=float64[2,3], e=10))"
    assert repr(ComponentVector([{"a": 1}, {"a": 2}])) == "ComponentVector((a=1), (a=2))"
    assert repr(ComponentVector({"a": None, "b": []})) == "ComponentVector(a=None, b=[])"
    assert repr(ComponentVector([1.0, 2.0])) == "ComponentVector([1, 2])"
    assert repr(ComponentVector(a=1).astype("bfloat16")) == "ComponentVector(a=1)"
    assert repr(ComponentVector(a=1 + 2j)) == "ComponentVector(a=1+2j)"
    assert "and 80 more" in repr(ComponentVector({f"x{i}": 0 for i in range(100)}))
    assert repr(jax.vmap(lambda s: cv * s)(jnp.ones(3))) == f"ComponentVector(float64[3,10], {cv.layout!r})"
    assert "10 elements" in repr(jax.eval_shape(lambda cv: cv, cv))
    jax.jit(lambda cv: repr(cv))
    assert "10 elements" in repr(jax.tree.map(lambda x: None, cv))


def test_table(cv):
    assert cv.table() == (
        "component  shape   dtype    place  values\n"
        "-----------------------------------------\n"
        "a          ()      float64  0:1    [1]\n"
        "b          (2,)    float64  1:3    [2, 3]\n"
        "c.d        (2, 3)  float64  3:9    [4, 5, 6, 7, 8, 9]\n"
        "c.e        ()      float64  9:10   [10]"
    ).replace("-" * 41, "-" * max(len(line) for line in cv.table().splitlines() if "-" not in line))
    assert "0 to 9" in ComponentVector(a=np.arange(10.0)).table()
    assert "c.d" in jax.eval_shape(lambda cv: cv, cv).table()


# --- state vectors --------------------------------------------------------------------------------------------


def solve(field, u0):
    ts = jnp.linspace(0.0, 20.0, 5)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        0.0,
        20.0,
        None,
        u0,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
    )


def sir_new(t, u, args):
    infections, recoveries = 0.4 * u.S * u.I / 1000, 0.1 * u.I
    return ComponentVector(S=-infections, I=infections - recoveries, R=recoveries)


def sir_replace(t, u, args):
    infections, recoveries = 0.4 * u.S * u.I / 1000, 0.1 * u.I
    return u.replace(S=-infections, I=infections - recoveries, R=recoveries)


def sir_plain(t, u, args):
    infections, recoveries = 0.4 * u[0] * u[1] / 1000, 0.1 * u[1]
    return jnp.stack([-infections, infections - recoveries, recoveries])


@pytest.mark.slow
@pytest.mark.parametrize("field", [sir_new, sir_replace])
def test_state_vectors_in_diffrax(field):
    u0 = ComponentVector(S=990, I=10, R=0)
    solution = solve(field, u0)
    plain = solve(sir_plain, jnp.array([990.0, 10.0, 0.0])).ys
    np.testing.assert_allclose(solution.ys.data, plain, rtol=1e-10)
    np.testing.assert_allclose(solution.ys["S"], plain[:, 0], rtol=1e-10)
    np.testing.assert_allclose(solution.ys.I, plain[:, 1], rtol=1e-10)
    with pytest.raises(KeyError, match="what there is: S, I, R"):
        solution.ys["X"]


def test_composed_state_vectors():
    """A Lorenz system beside a Lotka-Volterra system, as in ComponentArrays: uncoupled, each is its own."""

    def lorenz(u):
        return ComponentVector(x=10 * (u.y - u.x), y=u.x * (28 - u.z) - u.y, z=u.x * u.y - 8 / 3 * u.z)

    def lotka(u):
        return ComponentVector(x=u.x * (1.5 - u.y), y=u.y * (u.x - 3))

    def both(t, u, args):
        return ComponentVector(lorenz=lorenz(u.lorenz), lotka=lotka(u.lotka))

    u = ComponentVector(lorenz={"x": 1, "y": 0, "z": 0}, lotka={"x": 1, "y": 1})

    def euler(f, u):
        return jax.lax.scan(lambda u, _: (u + 0.01 * f(u), None), u, None, 100)[0]

    end = jax.jit(lambda u: euler(lambda u: both(0, u, None), u))(u)
    np.testing.assert_allclose(end.lorenz.data, euler(lorenz, u.lorenz).data, rtol=1e-12)
    np.testing.assert_allclose(end.lotka.data, euler(lotka, u.lotka).data, rtol=1e-12)


# --- wrong calls, and kinds of values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda cv: cv.at["b"].set(None), TypeError, "`b` takes an array or a scalar, got None"),
        (lambda cv: cv.at["b"].set("x"), TypeError, "`b` takes an array or a scalar, got 'x'"),
        (lambda cv: cv.replace(a=None), TypeError, "`a` takes an array or a scalar, got None"),
        (lambda cv: cv.replace(**{"c.e": 1}), KeyError, r"no component `c.e`; inner ones are nested.*cv.at\['c.b'\]"),
        (lambda cv: concat(ComponentVector([1, 2]), cv), TypeError, "concat joins vectors of named components"),
        (lambda cv: ComponentVector(cv.data, {"a": 1}), TypeError, "expected a Layout or a ComponentVector, got dict"),
        (lambda cv: ComponentVector("x"), TypeError, "the root is the str 'x'"),
        (lambda cv: ComponentVector(a=[np.True_, 1.0]), TypeError, "`a.0` has dtype bool"),
        (lambda cv: cv.layout.label(10), IndexError, "no element 10 of 10"),
        (lambda cv: ComponentVector(_parts=1), ValueError, "'_parts' is a method or property"),
    ],
)
def test_wrong_calls(cv, call, error, message):
    with pytest.raises(error, match=message):
        call(cv)


def test_values_of_many_kinds():
    cv = ComponentVector(a=np.int64(1), b=[np.int32(2), 3], c=np.float64(4), d=[{"e": 5}, {"e": 6}])
    assert cv.dtype == np.float64 and cv.data.tolist() == [1, 2, 3, 4, 5, 6]
    assert cv.at["b"].set([7, 8]).b.tolist() == [7, 8]
    assert cv.at["d"].set([{"e": 1}, {"e": 2}]).d.e.tolist() == [1, 2]
    assert cv.at["b"].set(np.float32(9)).b.tolist() == [9, 9] and cv.at["b"].set(jnp.int32(9)).b.tolist() == [9, 9]
    assert cv.at.multiply(0).equals(cv * 0)
    assert ComponentVector(cv.data * 2, cv).equals(cv * 2)
    ordered = ComponentVector(OrderedDict(b=1, a=[2, 3]))
    assert type(ordered.tree()) is OrderedDict and ordered.data.tolist() == [1, 2, 3]


def test_vectors_of_whatever_a_transform_put_into_the_leaf_pickle(cv):
    for put in (lambda x: None, lambda x: x > 2, lambda x: x.astype(int), lambda x: jax.ShapeDtypeStruct((10,), float)):
        changed = jax.tree.map(put, cv)
        back = pickle.loads(pickle.dumps(changed))
        assert back.layout is cv.layout and repr(back) == repr(changed)


def test_concat_takes_the_widest_type():
    joined = concat(ComponentVector(x=1).astype("bfloat16"), ComponentVector(y=1).astype("float32"))
    assert joined.dtype == np.float32 and joined.x.dtype == jnp.bfloat16 and joined.y.dtype == np.float32
