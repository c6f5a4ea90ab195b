"""The map between trees and flat vectors: what destructure and ravel_pytree get wrong, one test each."""

import contextlib
import gc
import pickle
import re
import string

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec as P

from lux_sciml import ComponentVector, Layout
from tests.components.test_layout import Point

DTYPES = ["float16", "bfloat16", "float32", "float64"]


def assert_same(a, b):
    """Bit for bit, dtypes and containers included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        assert x.tobytes() == y.tobytes()


@contextlib.contextmanager
def checking_leaks():
    """JAX collects garbage at each trace then, which takes long among all that other tests have left."""
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()


def random_trees(dtypes, scalars):
    @st.composite
    def leaf(draw):
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        dtype = jnp.dtype(draw(st.sampled_from(dtypes)))
        seed = draw(st.integers(0, 1000))
        x = np.random.default_rng(seed).normal(size=shape)
        special = draw(st.sampled_from([0.0, -0.0, np.inf, np.nan, 1e-7]))
        x = np.asarray(np.where(x > 1, special, x), dtype=dtype)
        return jnp.asarray(x) if draw(st.booleans()) else x

    names = st.text(string.ascii_letters + "_1.", min_size=1, max_size=4)
    return st.recursive(
        leaf() | st.none() | (st.floats(width=16).map(np.float64) if scalars else st.none()),
        lambda inner: (
            st.dictionaries(names, inner, max_size=3)
            | st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.builds(Point, inner, inner)
        ),
        max_leaves=10,
    )


@settings(max_examples=60, deadline=None)
@given(random_trees(DTYPES, scalars=True))
def test_trees_of_mixed_types_round_trip_bit_for_bit(tree):
    cv = ComponentVector.from_tree(tree, dtype="float64")
    assert_same(cv.tree(), tree)
    assert_same(ComponentVector.from_tree(cv.tree(), dtype="float64").data, cv.data)


@settings(max_examples=25, deadline=None)
@given(random_trees(["complex64", "complex128"], scalars=False))
def test_complex_trees_round_trip_bit_for_bit(tree):
    assert_same(ComponentVector.from_tree(tree, dtype="complex128").tree(), tree)


@settings(max_examples=25, deadline=None)
@given(random_trees(["float32"], scalars=False))
def test_dicts_in_any_order_ravel_by_path(tree):
    layout = Layout.of(tree)

    def turned(node):
        if isinstance(node, dict):
            return {key: turned(child) for key, child in reversed(node.items())}
        if isinstance(node, list | tuple):
            items = [turned(child) for child in node]
            return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
        return node

    assert_same(layout.ravel(turned(tree)), layout.ravel(tree))
    assert_same(layout.ravel(jax.tree.map(lambda x: x, tree)), layout.ravel(tree))


@settings(max_examples=60, deadline=None)
@given(random_trees(["float32"], scalars=False), st.data())
def test_any_corruption_raises(tree, data):
    layout = Layout.of({"root": tree, "last": np.zeros(2, np.float32)})
    flat = np.zeros(layout.size, np.float32)
    kind = data.draw(st.sampled_from(["longer", "shorter", "column", "scalar", "int", "bool", "complex", "batch"]))
    bad, error = {
        "longer": (np.zeros(layout.size + 1, np.float32), ValueError),
        "shorter": (flat[:-1], ValueError),
        "column": (flat[:, None], ValueError),
        "scalar": (flat[0], ValueError),
        "batch": (np.stack([flat, flat]), ValueError),
        "int": (flat.astype(int), TypeError),
        "bool": (flat.astype(bool), TypeError),
        "complex": (flat.astype(np.complex64), TypeError),
    }[kind]
    with pytest.raises(error, match=rf"{layout.size} elements"):
        layout.unravel(bad)
    with pytest.raises(ValueError, match="layouts differ"):
        layout.unravel(ComponentVector.from_tree({"root": tree, "last": np.zeros((2, 1), np.float32)}))


# --- Optimisers.destructure: T1 to T16 ------------------------------------------------------------------------


def shared():
    s = jnp.array([7.0, 7.0])
    return {"x": s, "y": jnp.array([3.0, 4.0]), "z": s}


def test_t1_the_same_array_twice_is_two_parameters():
    assert ComponentVector.from_tree(shared()).size == 6


def test_t1_ties_are_declared_and_their_gradients_sum():
    cv = ComponentVector.from_tree(shared(), ties=[("x", "z")])
    assert cv.size == 4
    tree = cv.layout.unravel(jnp.array([1.0, 10.0, 100.0, 1000.0]))
    assert_same(tree, {"x": jnp.array([1.0, 10]), "y": jnp.array([100.0, 1000]), "z": jnp.array([1.0, 10])})

    def gradients(loss):
        by_tree = jax.grad(lambda cv: loss(**cv.tree()))(cv)
        by_attribute = jax.grad(lambda cv: loss(cv.x, cv.y, cv.z))(cv)
        assert by_tree.equals(by_attribute)
        return by_tree.data

    np.testing.assert_array_equal(gradients(lambda x, y, z: 3 * x.sum() + 13 * z.sum()), [16, 16, 0, 0])
    np.testing.assert_array_equal(gradients(lambda x, y, z: 4 * (x.sum() + y.sum()) + 13 * z.sum()), [17, 17, 4, 4])


def test_t1_tied_arrays_with_different_numbers_do_not_ravel():
    cv = ComponentVector.from_tree(shared(), ties=[("x", "z")])
    with pytest.raises(ValueError, match="`x` and `z` are tied, but hold different values"):
        cv.layout.ravel({**shared(), "z": jnp.zeros(2)})


def test_t2_gradients_of_unused_leaves_are_zeros_in_their_place():
    gradient = jax.grad(lambda cv: cv.tree()["y"].sum())(ComponentVector.from_tree(shared()))
    np.testing.assert_array_equal(gradient.data, [0, 0, 1, 1, 0, 0])


def test_t3_state_is_not_in_the_vector():
    import lux_sciml as lux

    layer = lux.BatchNorm(3)
    ps, st = lux.setup(jax.random.key(0), layer)
    assert ps.size == 6 and set(st) == {"running_mean", "running_var", "mode"}


def test_t4_mixed_precision_needs_a_word():
    tree = {"a": np.ones(2, np.float32) / 3, "b": np.ones(2) / 3}
    with pytest.raises(ValueError, match=r"`a` is float32 and `b` is float64: say which type.*dtype="):
        ComponentVector.from_tree(tree)
    cv = ComponentVector.from_tree(tree, dtype="float64")
    assert cv.dtype == np.float64
    assert_same(cv.tree(), tree)


@pytest.mark.parametrize(
    "leaf",
    [np.uint32(2**31 + 1), np.int32(16777217), np.arange(3), np.array(True), 3, True],
    ids=["uint32", "int32", "ints", "bool array", "int", "bool"],
)
def test_t5_integers_and_booleans_are_refused_by_path(leaf):
    with pytest.raises(TypeError, match=r"`layer.count` (has dtype|is the)"):
        ComponentVector.from_tree({"layer": {"count": leaf, "weight": jnp.ones(2)}})


def test_t6_complex_beside_real():
    with pytest.raises(TypeError, match="`a` is real and `b` is complex"):
        Layout.of({"a": jnp.ones(1), "b": jnp.ones(1, complex)})
    layout = Layout.of({"a": jnp.ones(3)})
    for flat in (np.array([3, 5, 7 + 11j]), np.array([3, 5, 7 + 0j])):
        with pytest.raises(TypeError, match="expected a vector of floating elements, got complex128"):
            layout.unravel(flat)
    with pytest.raises(TypeError, match="`a` is complex, where the layout is real"):
        layout.ravel({"a": jnp.ones(3, complex)})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_t7_another_precision_is_cast_and_never_promotes_the_model(dtype):
    layout = Layout.of({"a": np.ones(2, np.float32), "b": np.float32(1)})
    tree = layout.unravel(np.ones(3, dtype))
    assert tree["a"].dtype == tree["b"].dtype == np.float32


def test_t7_integers_raise_and_tracers_pass():
    layout = Layout.of({"a": jnp.ones(2)})
    with pytest.raises(TypeError, match="got int64"):
        layout.unravel(np.arange(2))
    _, tangent = jax.jvp(lambda flat: layout.unravel(flat)["a"], (jnp.ones(2),), (jnp.ones(2),))
    np.testing.assert_array_equal(tangent, [1, 1])
    assert jax.vmap(layout.unravel)(jnp.ones((4, 2)))["a"].shape == (4, 2)


def test_t8_wrong_lengths_and_ranks_raise_and_lists_convert():
    layout = Layout.of({"a": jnp.ones(2), "b": 1.0})
    for bad in (jnp.ones(2), jnp.ones(4), jnp.ones((3, 1)), jnp.ones((1, 3)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"expected a flat vector of shape \(3,\).*3 elements: a \(2,\), b \(\)"):
            layout.unravel(bad)
    np.testing.assert_array_equal(layout.unravel([1.0, 2.0, 3.0])["a"], [1, 2])


@pytest.mark.parametrize("tree", [{}, [], (), None, {"a": None}, {"a": jnp.zeros((0, 3), jnp.float16)}])
def test_t9_empty_trees_round_trip_and_promote_nothing(tree):
    cv = ComponentVector.from_tree(tree)
    assert cv.shape == (0,)
    assert cv.dtype == (np.float16 if jax.tree.leaves(tree) else np.float64)
    assert_same(cv.tree(), tree)
    with pytest.raises(ValueError, match="expected a flat vector"):
        cv.layout.unravel(jnp.ones(1))


def test_t10_scalars_are_leaves_and_come_back_with_no_axes():
    cv = ComponentVector.from_tree({"a": 1.5, "b": np.float64(2.5), "c": jnp.asarray(3.5)})
    assert cv.size == 3
    assert [leaf.shape for leaf in jax.tree.leaves(cv.tree())] == [(), (), ()]


@pytest.mark.parametrize(
    "leaf", ["text", jnp.sin, object(), jax.random.key(0)], ids=["str", "callable", "object", "key"]
)
def test_t11_other_leaves_are_refused_by_path(leaf):
    with pytest.raises(TypeError, match=r"`a.1` (is|has).*state"):
        ComponentVector.from_tree({"a": [jnp.ones(2), leaf]})


def test_t12_only_plain_arrays_are_leaves():
    from jax.experimental import sparse

    with pytest.raises(TypeError, match=r"`a.1` has dtype int32"):
        ComponentVector.from_tree({"a": sparse.BCOO.fromdense(jnp.eye(3))})
    with pytest.raises(TypeError, match="`a` has dtype float128, which JAX does not have"):
        ComponentVector.from_tree({"a": np.ones(2, np.longdouble)})
    with pytest.raises(TypeError, match="`a` has dtype object"):
        ComponentVector.from_tree({"a": np.array([1.0, None])})


def test_t13_the_gradient_has_the_dtype_of_the_vector():
    cv = ComponentVector.from_tree({"a": np.ones(2, np.float32)})
    gradient = jax.grad(lambda cv: jnp.sum(cv.tree()["a"].astype("float64") ** 2))(cv)
    assert gradient.dtype == np.float32


def test_t14_second_derivatives_are_exact():
    layout = Layout.of({"a": jnp.ones(3), "b": jnp.ones(3)})

    def second(name):
        def inner(y):
            return jnp.sum(layout.unravel(y)[name] ** 2)

        return jax.grad(lambda y: jnp.sum(jax.grad(inner)(y) ** 2))(jnp.arange(1.0, 7.0))

    np.testing.assert_array_equal(second("a"), [8, 16, 24, 0, 0, 0])
    np.testing.assert_array_equal(second("b"), [0, 0, 0, 32, 40, 48])


def test_t15_a_layout_as_static_argument_is_traced_once():
    traces = []

    @jax.jit
    def of_vector(cv):
        traces.append(cv)
        return cv.a.sum()

    def total(layout, flat):
        traces.append(flat)
        return layout.unravel(flat)["a"].sum()

    total = jax.jit(total, static_argnums=0)
    for i in range(5):
        tree = {"a": jnp.full(2, float(i)), "b": jnp.ones(1)}
        layout = pickle.loads(pickle.dumps(Layout.of(tree)))
        assert total(layout, jnp.ones(3)) == 2
        of_vector(ComponentVector.from_tree(tree))
        of_vector(pickle.loads(pickle.dumps(ComponentVector.from_tree(tree))))
    assert len(traces) == 2


def test_t16_the_order_is_the_declared_one_and_changes_are_detected():
    names = [f"layer_{i}" for i in (0, 2, 10, 1)]
    cv = ComponentVector.from_tree({name: jnp.full(1, float(i)) for i, name in enumerate(names)})
    assert list(cv.keys()) == names
    np.testing.assert_array_equal(cv.data, [0, 1, 2, 3])
    turned = ComponentVector.from_tree(jax.tree.map(lambda x: x, cv.tree()))
    with pytest.raises(ValueError, match=r"another order.*from_tree\(tree, like=layout\)"):
        cv + turned
    assert ComponentVector.from_tree(turned.tree(), like=cv).equals(cv)


# --- ravel_pytree ---------------------------------------------------------------------------------------------


def test_float64_into_a_float32_model_stays_float32():
    flat = np.asarray(ComponentVector.from_tree({"a": np.ones(2, np.float32)}).data, dtype=np.float64)
    assert Layout.of({"a": np.ones(2, np.float32)}).unravel(flat)["a"].dtype == np.float32


def test_unravel_of_an_empty_tree_checks_its_argument_and_is_traced_once():
    traces = []

    def f(layout, flat):
        traces.append(flat)
        return layout.unravel(flat)

    f = jax.jit(f, static_argnums=0)
    f(Layout.of({}), jnp.zeros(0)), f(Layout.of({}), jnp.zeros(0))
    assert len(traces) == 1
    with pytest.raises(ValueError, match="expected a flat vector"):
        Layout.of({}).unravel(jnp.ones(3))


def test_mixed_keys_keep_their_order():
    cv = ComponentVector.from_tree({"b": jnp.ones(1), 2: jnp.zeros(1)})
    assert list(cv.tree()) == ["b", 2]


# --- no cost, and every transform -----------------------------------------------------------------------------


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from primitives(inner)


def layers(n=5):
    key = jax.random.key(0)
    return ComponentVector({f"layer_{i}": {"w": jax.random.normal(key, (3, 3)), "b": jnp.ones(3)} for i in range(n)})


def by_tree(cv, x):
    for ps in cv.tree().values():
        x = jnp.tanh(x @ ps["w"] + ps["b"])
    return x.sum()


def by_attribute(cv, x):
    for i in range(len(cv.keys())):
        x = jnp.tanh(x @ cv[f"layer_{i}"].w + cv[f"layer_{i}.b"])
    return x.sum()


@pytest.mark.parametrize(("loss", "joins"), [(by_tree, 1), (by_attribute, 6)])
def test_the_gradient_is_concatenated_and_never_padded(loss, joins):
    jaxpr = jax.make_jaxpr(jax.grad(loss))(layers(), jnp.ones(3))
    names = list(primitives(jaxpr.jaxpr))
    assert names.count("pad") == 0 and names.count("concatenate") == 2 * joins  # on the CPU, and elsewhere
    assert not {"gather", "scatter-add", "dynamic_update_slice"} & set(names)


def test_nothing_is_fused_with_the_concatenate_of_a_gradient():
    """XLA on the CPU may compute what is fused with it for every number of the vector: 4 times as slow in all."""
    compiled = jax.jit(jax.grad(by_tree)).lower(layers(), jnp.ones(3)).compile().as_text()
    (computation,) = [block for block in compiled.split("\n}\n") if " concatenate(" in block]
    operations = set(re.findall(r" = \S+ ([\w-]+)\(", computation))
    assert operations == {"parameter", "concatenate"}


def test_each_level_is_split_once():
    names = list(primitives(jax.make_jaxpr(by_attribute)(layers(), jnp.ones(3)).jaxpr))
    assert names.count("split") == 6 and "slice" not in names and "dynamic_slice" not in names


@pytest.mark.slow
def test_many_leaves_have_the_derivatives_of_the_tree():
    """Many parts are cut by compiled code of their own: every transform must see the same linear map."""
    n = 9  # 18 leaves
    cv, x = layers(n), jnp.ones(3)

    def of_tree(tree, x):
        for i in range(n):  # by name: JAX sorts dicts
            x = jnp.tanh(x @ tree[f"layer_{i}"]["w"] + tree[f"layer_{i}"]["b"])
        return x.sum()

    expected = cv.layout.ravel(jax.grad(of_tree)(cv.tree(), x))
    gradient = jax.jit(jax.grad(by_tree))
    for got in (gradient(cv, x), jax.grad(by_tree)(cv, x), jax.jit(jax.grad(jax.checkpoint(by_tree)))(cv, x)):
        np.testing.assert_allclose(got.data, expected, rtol=1e-10)
    _, directional = jax.jit(lambda cv: jax.jvp(lambda cv: by_tree(cv, x), (cv,), (cv,)))(cv)
    np.testing.assert_allclose(directional, expected @ cv.data, rtol=1e-10)
    batch = ComponentVector(jnp.stack([cv.data, cv.data / 2]), cv.layout)
    np.testing.assert_allclose(jax.vmap(gradient, (0, None))(batch, x).data[0], expected, rtol=1e-10)
    twice = jax.jit(jax.grad(lambda cv: (jax.grad(by_tree)(cv, x).data ** 2).sum()))(cv)
    step = 1e-6 * ComponentVector(jax.random.normal(jax.random.key(1), (cv.size,)), cv.layout)
    difference = sum(s * (gradient(cv + s * step, x).data ** 2).sum() for s in (1, -1)) / 2
    np.testing.assert_allclose(difference, twice.data @ step.data, rtol=1e-4)


def test_many_leaves_in_shard_map_and_export():
    cv, x = layers(9), jnp.ones(3)
    expected = jax.jit(jax.grad(by_tree))(cv, x)
    exported = jax.export.export(jax.jit(jax.grad(by_tree)), platforms=["cpu", "cuda", "tpu"])(cv, x)
    np.testing.assert_allclose(jax.export.deserialize(exported.serialize()).call(cv, x).data, expected.data, rtol=1e-10)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        lambda cv, x: jax.lax.psum(by_tree(cv, x[0]), "batch"), mesh=mesh, in_specs=(P(), P("batch")), out_specs=P()
    )
    gradient = jax.jit(jax.grad(sharded))(cv, jnp.stack([x, x]))
    np.testing.assert_allclose(gradient.data, 2 * expected.data, rtol=1e-10)


def test_attribute_access_gives_the_gradient_of_the_tree_and_leaks_nothing():
    cv, x = layers(), jnp.ones(3)
    with checking_leaks():
        a = jax.jit(jax.grad(by_attribute))(cv, x)
        b = jax.jit(
            jax.value_and_grad(
                lambda cv, x: jax.lax.scan(lambda c, _: (c * by_attribute(cv, x), None), 1.0, None, 2)[0]
            )
        )(cv, x)
    np.testing.assert_allclose(a.data, jax.grad(by_tree)(cv, x).data, rtol=1e-12)
    np.testing.assert_allclose(b[0], by_tree(cv, x) ** 2, rtol=1e-12)


def test_parts_kept_in_one_trace_are_not_used_in_another():
    cv = ComponentVector(a=[1.0, 2.0], b=3.0)

    @jax.jit
    def f(cv):
        first = cv.a.sum()
        inner = jax.grad(lambda a: (a * cv.a).sum())(cv.a)
        branch = jax.lax.cond(cv.b > 0, lambda: cv.a * 2, lambda: cv.a)
        return first + inner.sum() + branch.sum() + jax.vmap(lambda x: (x * cv.a).sum())(jnp.ones(2)).sum()

    with checking_leaks():
        assert f(cv) == 3 + 3 + 6 + 6


def test_grad_of_grad_through_attributes():
    cv = ComponentVector(a=[1.0, 2.0], b=3.0)
    outer = jax.grad(lambda cv: jax.grad(lambda cv: (cv.a**3).sum() * cv.b)(cv).a.sum())(cv)
    np.testing.assert_allclose(outer.data, [18, 36, 15])


def test_vmap_gives_batches_and_scan_carries_vectors():
    cv = ComponentVector(a=[1.0, 2.0], b=3.0)
    batch = jax.vmap(lambda s: cv * s)(jnp.arange(4.0))
    assert batch.shape == (4, 3) and batch.a.shape == (4, 2) and batch.b.shape == (4,)
    np.testing.assert_array_equal(jax.vmap(lambda cv: cv.a.sum() + cv.tree()["b"])(batch), 6 * jnp.arange(4.0))
    with pytest.raises(ValueError, match=r"got shape \(4, 3\); `jax.vmap` goes over a batch"):
        batch.tree()
    final, stacked = jax.lax.scan(lambda cv, _: (cv + 1, cv), cv, None, length=3)
    np.testing.assert_array_equal(final.a, [4, 5])
    assert stacked.b.shape == (3,)


def test_shard_map():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    cv = ComponentVector(a=[1.0, 2.0], b=3.0)

    def loss(cv, x):
        return jax.lax.pmean(jnp.mean((x * cv.a).sum(-1) + cv.b), "batch")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P())
    x = jnp.arange(8.0).reshape(4, 2)
    value, gradient = jax.jit(jax.value_and_grad(sharded))(cv, x)
    np.testing.assert_allclose(value, jnp.mean((x * cv.a).sum(-1) + cv.b))
    np.testing.assert_allclose(gradient.data, [3, 4, 1])
    batches = jax.shard_map(lambda cv: cv.a, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    assert batches(jax.vmap(lambda s: cv * s)(jnp.arange(4.0))).shape == (4, 2)


def test_export():
    cv = ComponentVector({"a": [1.0, 2.0], "b": Point(1.0, 2.0)})
    exported = jax.export.export(jax.jit(lambda cv: (cv.a.sum(), cv * 2)))(cv)
    again = jax.export.deserialize(exported.serialize())
    total, twice = again.call(cv)
    assert total == 3 and twice.layout is cv.layout
    with pytest.raises(ValueError):
        again.call(ComponentVector(a=[1.0, 2.0], c=[1.0, 2.0]))
