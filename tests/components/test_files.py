"""Layouts as documents, vectors in files, parameters in other layouts."""

import json
import os
import pickle
import stat
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from lux_sciml import ComponentVector, Layout, load, load_into, save
from lux_sciml.components import safetensors
from lux_sciml.components.documents import from_json, to_json
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

    def broken(file, *_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors, "write", broken)
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
        with pytest.raises(ValueError, match="cannot be loaded"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(TypeError, match="`a` is of type function: files hold arrays"):
        save(tmp_path / "a", {"a": save})


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


# --- documents and files that contradict themselves -------------------------------------------------------------

LEAF = {"array": [2], "dtype": "float32"}
TIED = {**LEAF, "tied": ["a"]}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"dict": [["a", LEAF], ["b", LEAF], ["a", LEAF]]}, "the root has a component twice, its names are a, b, a"),
        ({"dict": [["a", LEAF], ["b", {**TIED, "tied": ["c"]}]]}, "no component 'c'"),
        ({"dict": [["a", LEAF], ["b", {**TIED, "tied": ["b"]}]]}, "ties lead to the first array"),
        ({"dict": [["b", TIED], ["a", LEAF]]}, "ties lead to the first array"),
        ({"dict": [["a", TIED]]}, "ties lead to the first array"),
        ({"dict": [["a", LEAF], ["b", TIED], ["c", {**TIED, "tied": ["b"]}]]}, "ties lead to the first array"),
        ({"dict": [["a", LEAF], ["b", {**TIED, "array": [3]}]]}, "only equal shapes and dtypes can be tied"),
        ({"dict": [["a", LEAF], ["b", {**TIED, "dtype": "float16"}]]}, "only equal shapes and dtypes can be tied"),
        ({"dict": [["a", {"dict": []}], ["b", TIED]]}, "only equal shapes and dtypes can be tied"),
        ({"dict": [["a", LEAF], ["b", {**TIED, "tied": "a"}]]}, "`b` is tied to a, which is no path"),
        ({**LEAF, "dtype": "int32"}, "the root has the dtype 'int32', which is no floating-point type"),
        ({"list": [[0, {**LEAF, "dtype": "nothing"}]]}, "`0` has the dtype 'nothing'"),
        ({**LEAF, "dtype": "float128"}, "no floating-point type"),
        ({**LEAF, "dtype": "f4"}, "no floating-point type"),
        ({**LEAF, "dtype": [["a", "f4"]]}, "no floating-point type"),
        ({"array": [2]}, "the root has the dtype None"),
        ({"array": [-1], "dtype": "float32"}, r"has the shape \[-1\]"),
        ({"array": [2.0], "dtype": "float32"}, r"has the shape \[2.0\]"),
        ({"array": [True], "dtype": "float32"}, r"has the shape \[True\]"),
        ({"array": 2, "dtype": "float32"}, "has the shape 2"),
        ({**LEAF, "dict": [["a", LEAF]]}, "is an array, and has array, dtype, dict"),
        ({**LEAF, "children": []}, "is an array, and has array, dtype, children"),
        ({"list": [[1, LEAF], [0, LEAF]]}, r"the root is a list of 1, 0, not of \[0, 1\]"),
        ({"tuple": [["0", LEAF]]}, r"a tuple of 0, not of \[0\]"),
        ({"list": [[1, LEAF]]}, r"a list of 1, not of \[0\]"),
        ({"none": [["a", LEAF]]}, "a none of a, not of"),
        ({"dict": [["a", LEAF]], "list": []}, "has dict, list, which is no kind of container"),
        ({"set": []}, "has set, which is no kind of container"),
        ({}, "has nothing, which is no kind of container"),
        ({"dict": {"a": LEAF}}, "no pairs of names and contents"),
        ({"dict": [["a", LEAF, 1]]}, "no pairs of names and contents"),
        ({"dict": [[True, LEAF]]}, "neither strings nor integers"),
        ({"dict": [[None, LEAF]]}, "neither strings nor integers"),
        ([], r"the root is \[\], no part of a layout"),
        ({"dict": [["a", 3]]}, "`a` is 3, no part of a layout"),
        ({"dict": [["a", LEAF], ["b", {**LEAF, "dtype": "complex64"}]]}, "`a` is real and `b` is complex"),
        ({"class": "tests.components.test_layout:Point", "children": [["y", LEAF], ["x", LEAF]]}, "a Point of y, x"),
        ({"class": "tests.components.test_layout:Physics", "children": [["gravity", LEAF]]}, "a Physics of gravity"),
        ({"class": "builtins:int", "children": []}, "a int, which is neither a NamedTuple nor a dataclass"),
        ({"class": 3, "children": []}, "import it from 3 first"),
    ],
)
def test_documents_that_contradict_themselves_are_refused(tree, message, tmp_path):
    text = json.dumps({"lux_sciml_layout": 1, "tree": tree})
    with pytest.raises(ValueError, match=message):
        from_json(text)
    np.savez(tmp_path / "ps", layout=np.asarray(text), dtype=np.asarray("float32"), data=np.ones(2, np.float32))
    with pytest.raises(ValueError, match=f"ps.npz' cannot be loaded: .*{message}"):
        load(tmp_path / "ps.npz")


@pytest.mark.parametrize("version", ["1.0", "true", '"1"', "null", "[1]"])
def test_versions_are_integers(version):
    with pytest.raises(ValueError, match=r"no JSON document of a Layout.*no integer"):
        from_json(f'{{"lux_sciml_layout": {version}, "tree": {json.dumps(LEAF)}}}')


def test_documents_with_a_part_twice_and_bottomless_ones_are_refused():
    with pytest.raises(ValueError, match="a name stands twice"):
        from_json(f'{{"lux_sciml_layout": 1, "tree": {json.dumps(LEAF)}, "tree": {json.dumps(LEAF)}}}')
    with pytest.raises(ValueError, match="recursion"):
        from_json('{"lux_sciml_layout": 1, "tree": ' + '{"list": [[0, ' * 100_000)


def written(path, *, data=None, dtype="float32", layout=None, compressed=False, patch=None):
    """A file as `save` writes it, but for one thing."""
    layout = np.asarray(to_json(Layout.of({"a": jnp.ones(1, jnp.float32)})) if layout is None else layout)
    data = np.ones(1, np.float32) if data is None else data
    (np.savez_compressed if compressed else np.savez)(path, layout=layout, dtype=np.asarray(dtype), data=data)
    if patch:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        assert patch[0] in members["data.npy"]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**members, "data.npy": members["data.npy"].replace(*patch)}.items():
                archive.writestr(name, content)


def claiming(shape):
    return b"'shape': (1,), } ".ljust(40), f"'shape': {shape}, }}".encode().ljust(40)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"compressed": True}, "`layout` is compressed"),
        ({"data": np.ones(1), "dtype": "float32"}, "float64 data are no float32"),
        ({"data": np.ones(1, np.int32), "dtype": "int32"}, "int32 data are no int32"),
        ({"data": np.ones(2, np.float32)}, r"expected data of shape \(..., 1\), got \(2,\)"),
        ({"dtype": "nothing"}, "nothing"),
        ({"dtype": ["float32"]}, "no texts"),
        ({"layout": b"{}"}, "no texts"),
        ({"patch": claiming((10**15,))}, r"`data` claims to be float32 of the shape \(1000000000000000,\)"),
        ({"patch": claiming((-1, -1))}, "claims to be float32"),
        ({"patch": (b"'<f4'", b"'|O' ")}, "claims to be object"),
    ],
)
def test_files_that_claim_what_is_not_so_are_refused(tmp_path, other, message):
    written(tmp_path / "ps.npz")
    assert load(tmp_path / "ps.npz").a == 1
    written(tmp_path / "ps.npz", **other)
    with pytest.raises(ValueError, match=rf"ps.npz' cannot be loaded: .*{message}"):
        load(tmp_path / "ps.npz")


def test_nothing_is_inflated_or_allocated_for_a_claim(tmp_path):
    written(tmp_path / "deflated.npz", data=np.zeros(2**26, np.float32), compressed=True)
    written(tmp_path / "ps.npz")
    written(tmp_path / "claims.npz", patch=claiming(((2**31 - 4 - 128) // 4,)))
    content = (tmp_path / "claims.npz").read_bytes()
    size = (128 + 4).to_bytes(4, "little")
    assert content.count(size) == 4, "compressed or not, here and in the directory"
    (tmp_path / "claims.npz").write_bytes(content.replace(size, (2**31 - 4).to_bytes(4, "little")))
    for name in ("deflated", "claims"):
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"{name}.npz' cannot be loaded"):
            load(tmp_path / f"{name}.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


def test_truncated_and_flipped_files_raise_with_their_name(tmp_path):
    path, cv = tmp_path / "ps.npz", ComponentVector(a=[1, 2, 3], b={"c": 4})
    save(path, cv)
    whole = path.read_bytes()
    broken = [whole[:n] for n in range(0, len(whole), 7)]
    broken += [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(0, len(whole), 3)]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"ps.npz' cannot be loaded"):
            load(path)


def test_differences_from_a_file_name_it(tmp_path):
    save(tmp_path / "ps", ComponentVector(a=1j))
    for like, message in ((ComponentVector(b=1), "do not fit the model"), (ComponentVector(a=1), "`a` is complex")):
        with pytest.raises(ValueError, match=rf"ps': .*{message}"):
            load_into(like, tmp_path / "ps")


def test_loading_into_tied_parameters_in_part():
    tied = ComponentVector.from_tree({"x": jnp.ones(2), "y": jnp.ones(2), "z": jnp.ones(1)}, ties=[("x", "y")])
    vector, report = load_into(tied, {"y": jnp.array([5.0, 6.0])}, strict=False)
    assert vector.data.tolist() == [5, 6, 1] and report.missing == (("x",), ("z",))
    with pytest.raises(ValueError, match="`x` and `y` are tied, but hold different values"):
        load_into(tied, {"x": jnp.zeros(2), "y": jnp.ones(2)}, strict=False)


def test_files_from_another_precision_take_the_one_in_force(tmp_path):
    save(tmp_path / "ps", ComponentVector(a=[1, 2]))
    pickled = pickle.dumps(ComponentVector(a=[1, 2]))
    double = ComponentVector(a=[1, 2])
    with jax.enable_x64(False):
        like = ComponentVector(a=[1, 2])
        for vector in (load(tmp_path / "ps"), pickle.loads(pickled), ComponentVector(double.data, double.layout)):
            assert vector.equals(like) and vector.dtype == vector.a.dtype == vector.tree()["a"].dtype == np.float32
        assert double.tree()["a"].dtype == double.a.dtype == double.at["a"].set(3).a.dtype == np.float32
        assert load_into(like, double)[0].equals(like)


# --- what stands around a file ----------------------------------------------------------------------------------


def test_permissions_and_links_are_kept(tmp_path):
    save(tmp_path / "ps", ComponentVector(a=1))
    fresh = (tmp_path / "ps").stat().st_mode
    os.chmod(tmp_path / "ps", 0o640)
    (tmp_path / "link").symlink_to("ps")
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    for i, name in enumerate(("ps", "link", "chain")):
        save(tmp_path / name, ComponentVector(a=i))
        assert stat.S_IMODE((tmp_path / "ps").stat().st_mode) == 0o640 and load(tmp_path / "ps").a == i
    assert (tmp_path / "link").is_symlink() and (tmp_path / "chain").is_symlink()
    (tmp_path / "dangling").symlink_to("later")
    save(tmp_path / "dangling", ComponentVector(a=7))
    assert (tmp_path / "dangling").is_symlink() and load(tmp_path / "later").a == 7
    assert (tmp_path / "later").stat().st_mode == fresh


def test_names_of_any_length_and_places_that_are_no_files(tmp_path):
    save(tmp_path / ("n" * 255), ComponentVector(a=1))
    assert load(tmp_path / ("n" * 255)).a == 1
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="is no file that a new one could replace"):
            save(tmp_path / name, ComponentVector(a=1))
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "nowhere" / "ps", ComponentVector(a=1))


@pytest.mark.slow
def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    program = """
        import sys, time
        import lux_sciml as lux
        from lux_sciml.components import safetensors
        def write(file, *_):
            file.write(b"half"); file.flush(); print("writing", flush=True); time.sleep(60)
        safetensors.write = write
        lux.save(sys.argv[1], lux.ComponentVector(a=1))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "ps")]
    others = {".lux", ".ps.npz.0123abcd", ".lux_sciml-link"}
    for name in (".lux", ".ps.npz.0123abcd"):
        (tmp_path / name).touch()
    (tmp_path / ".lux_sciml-link").symlink_to(".lux")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        (left,) = {file.name for file in tmp_path.iterdir()} - others
        save(tmp_path / "ps", ComponentVector(a=2))
        assert {file.name for file in tmp_path.iterdir()} == {"ps", left, *others}, "it is being written"
        process.kill()
    save(tmp_path / "ps", ComponentVector(a=3))
    assert {file.name for file in tmp_path.iterdir()} == {"ps", *others}
    assert load(tmp_path / "ps").a == 3


def test_abstract_vectors_are_not_saved(tmp_path):
    with pytest.raises(TypeError, match="the root has no values"):
        save(tmp_path / "ps", jax.eval_shape(lambda: ComponentVector(a=1)))
    assert not list(tmp_path.iterdir())
