"""Paths are tuples, and only read as text: keys that hold dots, integers, and values that Python holds for equal."""

import dataclasses
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lux_sciml import ComponentMatrix, ComponentVector, Layout, hessian, load, load_into, save
from lux_sciml._tree import exact_key
from lux_sciml.components import from_json, to_json
from lux_sciml.components.constraints import Constrained, Interval, Positive, bounds
from lux_sciml.components.nodes import nest

DOTTED, NESTED = ("a.b",), ("a", "b")


@pytest.fixture
def cv():
    """Two components that read the same."""
    return ComponentVector({"a.b": 1.0, "a": {"b": 5.0}})


def test_both_components_are_read_and_changed_apart(cv):
    assert cv["a.b"] == 1 and cv[NESTED] == 5 and cv["a"]["b"] == 5 and cv.a.b == 5 and cv.layout.find(DOTTED)[0] == 0
    assert DOTTED in cv and NESTED in cv and ("a", "c") not in cv and ("a.b", "b") not in cv
    assert [cv.layout.slice(path).start for path in ("a.b", DOTTED, NESTED)] == [0, 0, 1]
    np.testing.assert_array_equal(cv.at[NESTED].set(7).data, [1, 7])
    np.testing.assert_array_equal(cv.at["a.b"].set(7).data, [7, 5])
    np.testing.assert_array_equal(cv.replace(a={"b": 7}).data, [1, 7])
    np.testing.assert_array_equal(cv.replace(**{"a.b": 7}).data, [7, 5])
    assert jax.grad(lambda cv: cv["a.b"] * 2 + cv[NESTED] * 3)(cv).data.tolist() == [2, 3]


def test_both_components_are_selected_named_and_masked_apart(cv):
    assert cv.select(NESTED).tree() == {"a": {"b": 5}} and cv.select("a.b").tree() == {"a.b": 1}
    assert cv[[NESTED, "a.b"]].equals(ComponentVector({"a": {"b": 5.0}, "a.b": 1.0}))
    assert cv.layout.labels() == ["a.b", "('a', 'b')"], "a tuple where the text leads elsewhere"
    for path, place in ((DOTTED, 0), ("a.b", 0), (NESTED, 1), ("a", 1), (("a", "*"), 1), (("a.*",), 0)):
        np.testing.assert_array_equal(np.flatnonzero(cv.layout.mask(path)), [place])
    assert cv.layout.mask("a*").all()
    with pytest.raises(KeyError, match=r"no component matches \('a', 'c'\); the first ones are: a.b, \('a', 'b'\)"):
        cv.layout.mask(("a", "c"))


def test_bounds_and_constraints_tell_them_apart(cv):
    low, high = bounds(cv, {"a.b": (0, 2), NESTED: (4, None)})
    assert low.data.tolist() == [0, 4] and high.data.tolist() == [2, np.inf]
    free = Constrained(cv, {"a.b": Positive(exponential=True), NESTED: Interval(0, 10)}).inverse(cv)
    np.testing.assert_allclose(free.data, [0, 0], atol=1e-12)
    with pytest.raises(ValueError, match=r"`a.b` has two constraints"):
        Constrained(cv, {"a.b": Positive(), DOTTED: Interval(0, 1)})
    with pytest.raises(ValueError, match=r"lower bound of \('a', 'b'\), 3.0, is above"):
        bounds(cv, {NESTED: (3, 2)})


def test_loading_takes_and_reports_them_apart(cv, tmp_path):
    vector, report = load_into(cv, ComponentVector(a={"b": 7.0}), strict=False)
    assert vector.data.tolist() == [1, 7] and report.missing == (DOTTED,) and not report.extra
    vector, report = load_into(cv, ComponentVector({"a.b": 7.0, "b": 0.0}), strict=False)
    assert vector.data.tolist() == [7, 5] and report.missing == (NESTED,) and report.extra == (("b",),)
    _, report = load_into(cv, ComponentVector({"a.b": [7.0], "a": {"b": [8.0]}}), strict=False)
    assert report.reshaped == {DOTTED: ((), (1,)), NESTED: ((), (1,))}
    assert str(report).splitlines() == [
        "reshaped: ('a.b',), expected (), got (1,)",
        "reshaped: ('a', 'b'), expected (), got (1,)",
    ]
    save(tmp_path / "ps", cv)
    assert load(tmp_path / "ps").equals(cv) and from_json(to_json(cv.layout)) is cv.layout


def test_ties_matrices_and_pickles_tell_them_apart(cv):
    tied = ComponentVector.from_tree({**cv.tree(), "c": cv["a.b"]}, ties=[(DOTTED, "c")])
    assert tied.layout.ties == ((DOTTED, ("c",)),) and tied.size == 2
    assert ComponentVector.from_tree({**cv.tree(), "c": 5.0}, ties=[(NESTED, "c")]).layout.ties == ((NESTED, ("c",)),)
    H = hessian(lambda cv: cv["a.b"] ** 2 + 2 * cv[NESTED] ** 2)(cv)
    assert H["a.b", "a.b"] == 2 and H[NESTED, NESTED] == 4 and H[[NESTED], "a.b"].data == 0
    assert pickle.loads(pickle.dumps(cv)).layout is cv.layout


def test_a_text_finds_what_any_split_of_it_leads_to():
    layout = Layout.of({"a.b": {"x": 1.0}, "a": {"b": {"c": 2.0}, "b.x": 3.0}})
    assert layout.find("a.b.c")[2] == ("a", "b", "c") and layout.find("a.b.x")[2] == ("a.b", "x")
    assert layout.find(("a", "b.x"))[2] == ("a", "b.x")
    with pytest.raises(KeyError, match=r"`a.b` has no component 'z'; what there is: x"):
        layout.find("a.b.z")
    with pytest.raises(TypeError):
        layout.find(["a"])


@pytest.mark.parametrize("key", [5, -1, 2.5, True, None, (1, 2), "5", "a[0]", "*", "a.b", ""])
def test_labels_are_found_again(key):
    layout = Layout.of({"first": 0.0, key: {"w": jnp.ones(2)}})
    label = layout.labels()[1].removesuffix("[0]")
    assert layout.find(label)[2] == layout.find((key, "w"))[2] == (key, "w")
    assert list(np.flatnonzero(layout.mask(label))) == [1, 2]
    assert ComponentVector.from_tree(layout.unravel(jnp.ones(3)))[label].shape == (2,)


def test_a_text_key_counts_before_the_integer_that_reads_the_same():
    layout = Layout.of({5: 1.0, "5": 2.0})
    assert layout.find("5")[0] == 1 and layout.find((5,))[0] == 0 and layout.labels() == ["(5,)", "5"]


def test_patterns_with_signs_of_their_own_are_keys_first():
    layout = Layout.of({"a[0]": 1.0, "a0": 2.0, "*": 3.0})
    assert [layout.mask(pattern).tolist() for pattern in ("a[0]", "*", "a?", "??*")] == [
        [True, False, False],
        [False, False, True],
        [False, True, False],
        [True, True, False],
    ]


def test_nested_dicts_of_paths():
    assert nest([((), 3)]) == 3 and nest([]) == {}
    for paths in ([("a",), ("a", "b")], [("a", "b"), ("a",)], [("a",), ("a",)]):
        with pytest.raises(ValueError, match="`a`, as a whole and again, or in parts"):
            nest((path, {}) for path in paths)


# --- equal is not the same --------------------------------------------------------------------------------------


class Module(eqx.Module):
    w: object
    k: object = eqx.field(static=True)


class Constants(eqx.Module):
    w: object
    k: object


@dataclasses.dataclass(frozen=True)
class Option:
    k: object


ALIKE = [
    (1, 1.0, True, np.float32(1), np.int64(1), 1 + 0j),
    (0.0, -0.0, 0, False, 0j, complex(-0.0, 0.0)),
    ((1, 2), (1.0, 2), (True, 2)),
    (Option(1), Option(1.0), Option(True)),
    (Option((0.0,)), Option((-0.0,))),
    (frozenset({1}), frozenset({1.0})),
    (Module(1.0, (1,)), Module(1.0, (1.0,))),
]


@pytest.mark.parametrize(
    ("kind", "values"),
    [*((Module, values) for values in ALIKE), *((Constants, ALIKE[i]) for i in (0, 1, 3, 5))],
    ids=str,
)
def test_static_values_that_are_equal_are_kept_apart(kind, values):
    values = [value for value in values if not isinstance(value, np.generic)]  # which Equinox takes for arrays
    vectors = [ComponentVector(kind(jnp.ones(2), value)) for value in values]
    for vector, value in zip(vectors, values, strict=True):
        assert type(vector.tree().k) is type(value) and repr(vector.tree().k) == repr(value)
    assert len({vector.layout for vector in vectors}) == len(vectors)


@pytest.mark.parametrize("keys", [(1, True), (1, 1.0), (0.0, -0.0)], ids=str)
def test_keys_that_are_equal_are_kept_apart(keys):
    layouts = [Layout.of({key: 1.0}) for key in keys]
    for layout, key in zip(layouts, keys, strict=True):
        assert repr(layout.unravel(jnp.ones(1))) == repr({key: jnp.ones(())}) and layout.labels() == [str(key)]
    assert layouts[0] is not layouts[1]


@pytest.mark.parametrize("values", ALIKE, ids=str)
def test_exact_keys(values):
    assert len({exact_key(value) for value in values}) == len(values)
    assert [exact_key(value) for value in values] == [exact_key(value) for value in values]


def test_exact_keys_of_arrays_go_by_content_and_unhashable_values_are_refused():
    assert exact_key(jnp.arange(3)) == exact_key(jnp.arange(3)) != exact_key(jnp.arange(3.0))
    assert exact_key({"a": np.ones(2)}) == exact_key({"a": np.ones(2)}) != exact_key({"a": -np.ones(2)})
    assert exact_key(jax.random.key(0)) == exact_key(jax.random.key(0)) != exact_key(jax.random.key(1))
    assert exact_key(float("nan")) == exact_key(float("nan"))
    with pytest.raises(TypeError, match="unhashable"):
        exact_key(type("Odd", (), {"__hash__": None})())
    with pytest.raises(TypeError, match="is traced"):
        jax.jit(exact_key)(1.0)


def test_vectors_with_nan_equal_themselves(tmp_path):
    cv = ComponentVector(a=[np.nan, 1.0], b=-0.0)
    save(tmp_path / "ps", cv)
    assert cv.equals(cv) and load(tmp_path / "ps").equals(cv) and not cv.equals(cv.replace(b=np.nan))
    for dtype in ("float16", "bfloat16", "complex128"):
        half = ComponentVector.from_tree({"a": jnp.asarray([np.nan, 1.0], dtype)})
        assert half.equals(half) and not half.equals(half * 2)
    H = ComponentMatrix(jnp.full((3, 3), jnp.nan), cv, cv)
    assert H.equals(H) and not H.equals(ComponentMatrix(jnp.zeros((3, 3)), cv, cv)) and not H.equals(H.data)


@pytest.mark.slow
def test_lists_of_names_select():
    vector = ComponentVector(a=1, b=[2, 3], c={"d": 4, "e": 5})
    assert vector[["c", "a"]].equals(vector.select("c", "a")) and vector[["c.e", "a"]].data.tolist() == [5, 1]
    assert vector[["c.e"]].tree() == {"c": {"e": 5}}
    batch = jax.vmap(lambda s: vector * s)(jnp.arange(3.0))
    assert batch[["b", "c.d"]].shape == (3, 3) and batch[["b", "c.d"]].b.shape == (3, 2)
    np.testing.assert_array_equal(batch.select("c", "a").data[2], [8, 10, 2])
    gradient = jax.grad(lambda cv: (cv[["c", "b"]].data ** 2).sum())(vector)
    np.testing.assert_array_equal(gradient.data, [0, 4, 6, 8, 10])
    J = ComponentMatrix(jnp.arange(25.0).reshape(5, 5), vector, vector)
    np.testing.assert_array_equal(J[["c.e", "a"], ["b"]].data, np.asarray(J)[[4, 0]][:, [1, 2]])
    assert J[["c.e", "a"], "a"]["c.e", :].shape == ()
    with pytest.raises(ValueError, match=r"asked for twice: `c.d`"):
        vector.select("c.d", "a", ("c", "d"))
    with pytest.raises(KeyError, match="no component 'x'"):
        vector[["a", "x"]]
