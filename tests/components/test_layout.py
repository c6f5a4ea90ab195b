"""Layout: what a flat vector holds, by path."""

import dataclasses
import gc
import itertools
import pickle
import sys
import weakref
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lux_sciml import ComponentVector, Layout


class Point(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass(frozen=True)
class Physics:
    gravity: object
    drag: object


def tree():
    return {"layer_0": {"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "layer_1": {"bias": jnp.zeros(1)}}


def test_interned_also_after_pickling_and_collection():
    layout = Layout.of(tree())
    assert Layout.of(tree()) is layout
    assert pickle.loads(pickle.dumps(layout)) is layout
    assert hash(layout) == hash(Layout.of(tree()))
    other = Layout.of({"nowhere_else": jnp.ones(31)})
    kept = weakref.ref(other), weakref.ref(other.children["nowhere_else"])
    assert {reference() for reference in kept} <= set(Layout._interned.values())
    del other
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_a_cached_hash_is_not_pickled():
    layout = Layout.of(tree())
    hash(layout), layout.leaves
    assert b"leaves" not in pickle.dumps(layout) and b"hash" not in pickle.dumps(layout)


@pytest.mark.parametrize(
    "other",
    [
        {"a": jnp.ones(3), "b": jnp.ones(2)},
        {"b": jnp.ones(2), "a": jnp.ones(2)},
        {"a": jnp.ones(2), "c": jnp.ones(2)},
        {"a": jnp.ones(2), "b": jnp.ones(2, jnp.float16)},
        {"a": jnp.ones(2), "b": [jnp.ones(2)]},
        {"a": jnp.ones(2), "b": jnp.ones((2, 1))},
        {"a": jnp.ones(2), "b": jnp.ones(2), "c": None},
        [jnp.ones(2), jnp.ones(2)],
        Point(jnp.ones(2), jnp.ones(2)),
    ],
)
def test_layouts_differ_by_order_name_shape_dtype_and_container(other):
    assert Layout.of(other) is not Layout.of({"a": jnp.ones(2), "b": jnp.ones(2)})


def test_the_order_is_the_declared_one():
    names = [f"layer_{i}" for i in range(12)]
    layout = Layout.of({name: jnp.ones(1) for name in names})
    assert list(layout.children) == names
    assert layout.slice("layer_10") == slice(10, 11)


def test_immutable():
    with pytest.raises(AttributeError, match="immutable"):
        Layout.of(tree()).size = 3


def test_reading():
    layout = Layout.of(tree())
    assert layout.size == 10
    assert layout.slice("layer_0.bias") == slice(6, 9)
    np.testing.assert_array_equal(layout.index("layer_0.weight"), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(layout.index("layer_0"), np.arange(9))
    assert layout.labels()[:2] == ["layer_0.weight[0,0]", "layer_0.weight[0,1]"]
    assert layout.labels()[-1] == "layer_1.bias[0]"
    assert Layout.of({"a": 1.0}).labels() == ["a"]
    assert layout.find(("layer_0", "bias"))[2] == ("layer_0", "bias")


def test_names_match_by_whole_segments():
    layout = Layout.of({"a": jnp.ones(1), "aa": jnp.ones(2), "a.b": jnp.ones(3)})
    assert layout.slice("aa") == slice(1, 3)
    assert layout.slice("a.b") == slice(3, 6), "a key that holds a dot is found first"
    np.testing.assert_array_equal(layout.mask("a"), np.arange(6) == 0)
    np.testing.assert_array_equal(Layout.of({"ab": jnp.ones(1), "a": jnp.ones(1)}).mask("a"), [False, True])


def test_masks_by_patterns():
    layout = Layout.of(tree())
    np.testing.assert_array_equal(np.flatnonzero(layout.mask("*.bias")), [6, 7, 8, 9])
    np.testing.assert_array_equal(np.flatnonzero(layout.mask("layer_1")), [9])
    np.testing.assert_array_equal(np.flatnonzero(layout.mask("layer_?.weight", "layer_1.*")), [0, 1, 2, 3, 4, 5, 9])
    assert not layout.mask().any()
    with pytest.raises(KeyError, match=r"no component matches '\*.scale'"):
        layout.mask("*.scale")


@pytest.mark.parametrize(
    "path", ["nothing", "layer_0.nothing", "layer_0.weight.nothing", ("layer_0", 0), 3, "layer_0."]
)
def test_unknown_paths_say_what_there_is(path):
    with pytest.raises(KeyError, match="what there is"):
        Layout.of(tree()).find(path)


def test_differences_name_the_first_path():
    layout = Layout.of(tree())

    def against(other):
        return layout.difference(Layout.of(other))

    missing, extra, reshaped, cast, moved = tree(), tree(), tree(), tree(), tree()
    del missing["layer_0"]["bias"]
    extra["layer_1"]["scale"] = jnp.ones(1)
    reshaped["layer_0"]["weight"] = jnp.ones((3, 2))
    cast["layer_1"]["bias"] = jnp.ones(1, jnp.float16)
    moved["layer_0"] = dict(reversed(moved["layer_0"].items()))
    assert against(tree()) is None
    assert against(missing) == "`layer_0.bias` is missing"
    assert against(extra) == "`layer_1.scale` is unknown"
    assert against(reshaped) == "`layer_0.weight` should have shape (2, 3), got (3, 2)"
    assert against(cast) == "`layer_1.bias` should be float64, got float16"
    assert "another order, expected weight, bias, got bias, weight; `ComponentVector.from_tree" in against(moved)
    assert layout.difference(Layout.of(moved), order=False) is None
    assert layout.difference(Layout.of(cast), dtypes=False) is None
    assert "should be an array" in Layout.of({"a": 1.0}).difference(Layout.of({"a": None}))
    assert "a list of 0" in Layout.of({"a": None}).difference(Layout.of({"a": [1.0]}))


def test_containers_come_back_as_they_were():
    module = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    original = {
        "list": [jnp.ones(2), jnp.zeros(())],
        "tuple": (jnp.ones(1), None, ()),
        "point": Point(jnp.ones(2), {"inner": jnp.ones(1)}),
        "physics": Physics(jnp.asarray(9.81), [jnp.ones(2)]),
        "module": module,
        "empty": {},
    }
    back = ComponentVector.from_tree(original, dtype=jnp.float64).tree()
    assert type(back["list"]) is list and type(back["tuple"]) is tuple
    assert isinstance(back["point"], Point) and isinstance(back["physics"], Physics)
    assert back["tuple"][1:] == (None, ()) and back["empty"] == {}
    assert back["physics"].gravity == 9.81
    x = jnp.ones(2)
    np.testing.assert_array_equal(back["module"](x), module(x))
    assert isinstance(back["module"].layers[0], eqx.nn.Linear)


def test_modules_keep_what_is_no_array_and_train_only_arrays():
    module = eqx.nn.Sequential(
        [eqx.nn.Linear(2, 3, key=jax.random.key(0)), eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(0.5)]
    )
    cv = ComponentVector(module)
    assert cv.size == 9
    back = cv.tree()
    assert back.layers[1].fn is jnp.tanh and back.layers[2].p == 0.5
    gradient = jax.grad(lambda cv: jnp.sum(cv.tree()(jnp.ones(2), key=jax.random.key(1)) ** 2))(cv)
    assert isinstance(gradient, ComponentVector) and gradient.layout is cv.layout


def test_modules_with_other_arrays_are_refused():
    class Counted(eqx.Module):
        weight: jax.Array
        steps: jax.Array

    module = Counted(jnp.ones(2), jnp.zeros((), int))
    with pytest.raises(TypeError, match=r"`steps` has dtype int64.*eqx.partition\(module, eqx.is_inexact_array\)"):
        Layout.of(module)
    parameters, rest = eqx.partition(module, eqx.is_inexact_array)
    back = eqx.combine(ComponentVector.from_tree(parameters).tree(), rest)
    assert back.steps == 0


def test_static_values_are_part_of_the_layout():
    def layout(p):
        return Layout.of(eqx.nn.Dropout(p))

    assert layout(0.5) is layout(0.5)
    assert layout(0.5) is not layout(0.25)
    assert layout(1) is not layout(1.0)
    assert "should be 0.5, got 0.25" in layout(0.5).difference(layout(0.25))


def test_registered_dicts_keep_their_kind():
    from collections import OrderedDict

    original = OrderedDict(b=jnp.ones(2), a=jnp.zeros(1))
    cv = ComponentVector.from_tree(original)
    assert type(cv.tree()) is OrderedDict and list(cv.tree()) == ["b", "a"]
    with pytest.raises(TypeError, match="`a` is the str 'x'"):
        Layout.of(OrderedDict(a="x"))


def test_vectors_inside_trees_keep_layout_and_ties():
    inner = ComponentVector.from_tree({"x": jnp.ones(2), "z": jnp.ones(2)}, ties=[("x", "z")])
    outer = ComponentVector.from_tree({"a": jnp.zeros(1), "inner": inner})
    assert outer.size == 3
    assert outer.layout.ties == ((("inner", "x"), ("inner", "z")),)


names = st.text("abcdefg_", min_size=1, max_size=4)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
leaves = st.builds(lambda shape: np.zeros(shape), shapes)
trees = st.recursive(
    leaves | st.none(),
    lambda inner: (
        st.dictionaries(names, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(trees)
def test_every_leaf_is_found_where_it_lies(tree):
    layout = Layout.of({"root": tree})
    assert layout.size == sum(leaf.size for leaf in layout.leaves) == len(layout.labels())
    for leaf in layout.leaves:
        offset, node, path = layout.find(leaf.path)
        assert (offset, node.shape, node.dtype, path) == (leaf.offset, leaf.shape, leaf.dtype, leaf.path)
        np.testing.assert_array_equal(layout.index(leaf.path).ravel(), np.arange(layout.size)[layout.slice(leaf.path)])
    assert pickle.loads(pickle.dumps(layout)) is layout


def test_ties():
    shared = {"encoder": {"weight": jnp.ones((2, 3))}, "bias": jnp.ones(3), "decoder": {"weight": jnp.ones((2, 3))}}
    layout = Layout.of(shared, ties=[("decoder.weight", "encoder.weight")])
    assert layout is Layout.of(shared).tie(("encoder.weight", "decoder.weight")), "the order of a group does not matter"
    assert layout is not Layout.of(shared) and layout.untied is Layout.of(shared)
    assert layout.size == 9
    assert layout.slice("encoder.weight") == layout.slice("decoder.weight") == slice(0, 6)
    np.testing.assert_array_equal(layout.index("decoder"), np.arange(6))
    np.testing.assert_array_equal(layout.mask("decoder"), np.arange(9) < 6)
    assert len(layout.labels()) == 9
    assert pickle.loads(pickle.dumps(layout)) is layout
    with pytest.raises(ValueError, match="not in one piece"):
        layout.slice("decoder")
    with pytest.raises(ValueError, match=r"`encoder.weight`.*and `bias`"):
        layout.tie(("encoder.weight", "bias"))
    with pytest.raises(ValueError, match=r"`decoder.weight` should be tied to `encoder.weight`"):
        layout.require_same(Layout.of(shared))
    layout.require_same(Layout.of(shared), order=False)


def test_ties_join_groups_and_sub_trees():
    layout = Layout.of({"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2), "d": jnp.ones(2)})
    tied = layout.tie(("c", "d")).tie(("d", "b"))
    assert tied is layout.tie(("b", "c", "d"))
    assert tied.ties == ((("b",), ("c",)), (("b",), ("d",)))
    halves = Layout.of({"left": tree(), "right": tree()}).tie(("left", "right"))
    assert halves.size == 10 and len(halves.ties) == 3


@pytest.mark.slow
def test_building_takes_the_same_for_each_leaf():
    def calls(layers):
        big = {f"layer_{i}": {"weight": np.zeros((2, 2)), "bias": np.zeros(2)} for i in range(layers)}
        count = itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            layout = Layout.of(big)
        finally:
            sys.setprofile(None)
        assert len(layout.leaves) == 2 * layers and Layout.of(big) is layout
        return next(count)

    assert calls(4000) < 4.4 * calls(1000)
