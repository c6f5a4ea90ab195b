"""Layouts as documents, vectors in files, parameters in other layouts."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from lux_sciml import ComponentVector, Layout, load, load_into, save
from lux_sciml.components.files import from_json, to_json
from tests.components.test_layout import Physics, Point, trees


@settings(max_examples=40, deadline=None)
@given(trees)
def test_json_gives_back_the_same_layout(tree):
    layout = Layout.of(tree)
    assert from_json(to_json(layout)) is layout


def test_json_of_ties_dataclasses_and_every_dtype():
    tree = {
        "encoder": {"w": jnp.ones((2, 3))},
        "physics": Physics(jnp.ones(()), Point(jnp.ones(1, jnp.bfloat16), jnp.ones(1, "float16"))),
        "decoder": {"w": jnp.ones((2, 3)), 3: None},
    }
    layout = Layout.of(tree, ties=[("encoder.w", "decoder.w")])
    assert from_json(to_json(layout)) is layout
    assert from_json(to_json(Layout.of({"a": 1j}))) is Layout.of({"a": 1j})
    assert to_json(layout) == to_json(from_json(to_json(layout)))


def test_what_json_cannot_say():
    with pytest.raises(TypeError, match="a layout with a Linear cannot be written as JSON"):
        to_json(Layout.of(eqx.nn.Linear(1, 1, key=jax.random.key(0))))
    with pytest.raises(TypeError, match=r"named \(1, 2\) has no place in JSON"):
        to_json(Layout.of({(1, 2): 1.0}))


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "3", '{"lux_sciml_layout": 1}'])
def test_other_documents_are_refused(text):
    with pytest.raises(ValueError, match="no JSON document of a Layout"):
        from_json(text)


def test_later_versions_and_unknown_classes_are_refused():
    document = json.loads(to_json(Layout.of({"a": 1.0})))
    with pytest.raises(ValueError, match="written as version 9, this lux_sciml reads version 1"):
        from_json(json.dumps({**document, "lux_sciml_layout": 9}))
    text = to_json(Layout.of(Point(1.0, 2.0))).replace("Point", "Nowhere")
    with pytest.raises(
        ValueError, match=r"the layout holds a Nowhere: import it from tests.components.test_layout first"
    ):
        from_json(text)
    with pytest.raises(ValueError, match="import it from not_imported first"):
        from_json(text.replace("tests.components.test_layout", "not_imported"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex128"])
def test_files(tmp_path, dtype):
    x = np.array([[1.5, -0.0], [np.nan, np.inf]])
    cv = ComponentVector.from_tree({"a": jnp.asarray(x, dtype), "b": [jnp.ones((), dtype), None]})
    save(tmp_path / "ps.npz", cv)
    back = load(tmp_path / "ps.npz")
    assert back.layout is cv.layout and np.asarray(back).tobytes() == np.asarray(cv).tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["ps.npz"]


def test_files_of_batches_and_of_empty_vectors(tmp_path):
    for cv in (jax.vmap(lambda s: ComponentVector(a=s))(jnp.arange(3.0)), ComponentVector()):
        save(str(tmp_path / "ps"), cv)
        assert load(str(tmp_path / "ps")).equals(cv)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path, cv = tmp_path / "ps.npz", ComponentVector(a=1)
    save(path, cv)

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        save(path, cv + 1)
    assert load(path).equals(cv) and len(list(tmp_path.iterdir())) == 1


def test_what_is_no_file_of_ours(tmp_path):
    (tmp_path / "text").write_text("text")
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    np.save(tmp_path / "array.npy", np.ones(2))
    np.savez(tmp_path / "pickled.npz", layout=np.array([object()]), dtype="float32", data=np.ones(2))
    save(tmp_path / "whole", ComponentVector(a=1))
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:200])
    (tmp_path / "empty").touch()
    for name in ("text", "other.npz", "array.npy", "pickled.npz", "half", "empty"):
        with pytest.raises(ValueError, match="holds no ComponentVector"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(TypeError, match="save takes a ComponentVector, got dict"):
        save(tmp_path / "a", {"a": 1.0})


@pytest.fixture
def model():
    return ComponentVector(encoder={"w": [[1, 2], [3, 4]], "b": [5, 6]}, decoder={"w": [7, 8]})


def test_loading_by_path_in_any_order(model):
    turned = ComponentVector({"decoder": {"w": [7, 8]}, "encoder": {"b": [5, 6], "w": [[1, 2], [3, 4]]}})
    vector, report = load_into(model * 0, turned)
    assert vector.equals(model) and not report and str(report) == "no differences"
    vector, _ = load_into(model * 0, jax.tree.map(lambda x: x, model.tree()))
    assert vector.equals(model)


def test_loading_says_everything_that_differs(model):
    source = ComponentVector({"encoder": {"w": [1, 2, 3], "scale": 1}, "decoder": {"w": [-1, -2]}, "head": {"b": 0}})
    with pytest.raises(ValueError, match="do not fit") as error:
        load_into(model, source)
    for line in (
        "missing: encoder.b",
        "extra: encoder.scale",
        "extra: head.b",
        "reshaped: encoder.w, expected (2, 2), got (3,)",
        "strict=False",
    ):
        assert line in str(error.value)
    vector, report = load_into(model, source, strict=False)
    assert vector.equals(model.replace(decoder={"w": [-1, -2]}))
    assert report.missing == (("encoder", "b"),) and report.extra == (("encoder", "scale"), ("head", "b"))
    assert report.reshaped == {("encoder", "w"): ((2, 2), (3,))}


def test_loading_from_a_file_keeps_the_precision_of_the_model(tmp_path, model):
    save(tmp_path / "ps", model)
    vector, _ = load_into(model.astype("float32") * 0, tmp_path / "ps")
    assert vector.dtype == np.float32 and vector.equals(model.astype("float32"))


def test_loading_into_tied_parameters(model):
    tied = ComponentVector.from_tree({"x": jnp.ones(2), "y": jnp.ones(2)}, ties=[("x", "y")])
    assert load_into(tied, {"x": jnp.zeros(2), "y": jnp.zeros(2)})[0].equals(tied * 0)
    with pytest.raises(ValueError, match="`x` and `y` are tied, but hold different values"):
        load_into(tied, {"x": jnp.zeros(2), "y": jnp.ones(2)})
    assert load_into(ComponentVector(x=[5, 6], y=[7, 8]), tied)[0].equals(ComponentVector(x=[1, 1], y=[1, 1]))
