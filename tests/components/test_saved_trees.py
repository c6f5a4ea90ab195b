"""Trees in files: of every kind, in the place of another tree, read by other libraries, and faults of disks."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import lux_sciml as lux


class Pair(NamedTuple):
    first: object
    second: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    array: object
    name: str = dataclasses.field(metadata={"static": True}, default="a")


def tree():
    model = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3), lux.Dropout(0.5))
    ps, st = lux.setup(jax.random.key(3), model)
    moments = optax.adam(1e-3).init(ps)
    return {
        "z": ps,
        "st": lux.testmode(st),
        "moments": moments,
        "keys": [jax.random.split(jax.random.key(1, impl="rbg"), 2), None, ()],
        "matrix": lux.ComponentMatrix(jnp.ones((2, 2)), lux.ComponentVector(a=1, b=2), lux.ComponentVector(c=1, d=2)),
        "pair": Pair(np.arange(3, dtype=np.int64), np.float32(2.5)),
        "numbers": (True, 3, -0.0, float("nan"), "text", 10**30),
        "small": jnp.arange(4, dtype=jnp.bfloat16).reshape(2, 2),
        "others": [np.array([1 + 2j]), np.array([1, -2], ml_dtypes.int4), jnp.zeros((0, 3)), np.array([True])],
        "dicts": ({1: 0, 0: 1}, {"a.b": 1.5, "a": {"b": jnp.ones(())}}),
    }


def bits(x):
    if jnp.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
        return str(x.dtype), np.asarray(jax.random.key_data(x)).tobytes()
    return (str(x.dtype), x.shape, np.asarray(x).tobytes()) if hasattr(x, "dtype") else (type(x), repr(x))


def same(a, b):
    leaves = [list(map(bits, jax.tree.leaves(x))) for x in (a, b)]
    return leaves[0] == leaves[1] and jax.tree.structure(a) == jax.tree.structure(b)


def test_trees_come_back_bit_for_bit(tmp_path):
    saved = tree()
    path = tmp_path / "tree.safetensors"
    lux.save(path, saved)
    back = lux.load(path)
    assert same(back, saved) and list(back) == list(saved) and back["st"]["layer_1"]["mode"] is lux.Mode.TEST
    assert type(back["pair"]) is Pair and type(back["pair"].first) is np.ndarray
    assert back["z"].layout is saved["z"].layout
    assert same(lux.load(path, like=saved), saved)
    assert same(lux.load(path, like=jax.eval_shape(lambda: saved["z"]) and {**saved, "z": saved["z"] * 0}), saved)
    memory = optax.adafactor(1e-3).init(saved["z"])  # with other things in ComponentVectors than their elements
    lux.save(path, memory)
    assert same(lux.load(path, like=memory), memory)
    with pytest.raises(ValueError, match=r"`0` should be None, and is an? [A-Z]\w+"):
        lux.load(path, like=(None, *memory[1:]))
    lux.save(path, {"a": saved["z"]})
    with pytest.raises(ValueError, match=r"`a` should be None, and is a ComponentVector of f\d\d\[\d+\]"):
        lux.load(path, like={"a": None})
    for root in (jnp.ones(3), jax.random.key(0), 1.5, lux.Mode.TRAIN, None, [], lux.ComponentVector()):
        lux.save(path, root)
        assert same(lux.load(path), root) and same(lux.load(path, like=root), root)


def test_what_is_static_comes_from_the_tree_that_is_there(tmp_path):
    path = tmp_path / "run"
    lux.save(path, {"a": Registered(jnp.arange(3.0), "b")})
    with pytest.raises(ValueError, match=r"run' cannot be loaded: `a` is a Registered, .* load\(path, like=...\)"):
        lux.load(path)
    like = {"a": Registered(jax.ShapeDtypeStruct((3,), "float64"), "c")}
    back = lux.load(path, like=like)["a"]
    assert back.name == "c" and back.array.tolist() == [0, 1, 2]


def test_everything_that_differs_is_told(tmp_path):
    path, saved = tmp_path / "tree", tree()
    lux.save(path, saved)
    like = {
        **{name: x for name, x in saved.items() if name != "small"},
        "z": lux.setup(jax.random.key(0), lux.Dense(2, 4))[0],
        "moments": optax.sgd(1.0).init(saved["z"]),
        "keys": [jax.random.key(0), None, 1],
        "pair": (np.zeros(3), np.float32(0)),
        "numbers": (True, 3.0, -0.0, float("nan"), "text", 1),
        "others": [np.array([1 + 2j]), np.array([1, -2], np.int8), jnp.zeros((0, 3)), np.array([True])],
        "new": 1,
    }
    with pytest.raises(ValueError, match="what is in the file is not like `like`") as error:
        lux.load(path, like=like)
    for line in (
        "`small` is in the file only",
        "`new` is missing in the file",
        "`z` should be a ComponentVector of f64[12], and is a ComponentVector of f64[15]",
        "`moments.0` should be an EmptyState, and is a ScaleByAdamState",
        "`keys.0` should be key<fry>[], and is key<rbg>[2]",
        "`keys.2` should be an int, and is a tuple",
        "`pair` should be a tuple, and is a Pair",
        "`numbers.1` should be a float, and is an int",
        "`others.1` should be i8[2](numpy), and is i4[2](numpy)",
    ):
        assert line in str(error.value), str(error.value)
    other = lux.ComponentVector({"b": 1.0, "a": 2.0})
    lux.save(path, other)
    with pytest.raises(ValueError, match="the root holds the same components in another order"):
        lux.load(path, like=lux.ComponentVector({"a": 1.0, "b": 2.0}))


def test_other_libraries_read_the_files_and_ours_refuses_theirs(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = str(tmp_path / "tree")
    lux.save(path, {"ps": lux.ComponentVector(a=1, b=[2, 3]), "step": np.arange(3), "wide": np.ones(2, complex)})
    arrays = numpy.load_file(path)
    assert arrays["ps"].tolist() == [1, 2, 3] and arrays["step"].tolist() == [0, 1, 2]
    numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match="it is a safetensors file, but `save` did not write it"):
        lux.load(path)


def changed(path, change):
    """The file with its header changed, and the checksum left."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = change(content[8 : 8 + size].decode()).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.replace('[4]', '[1000000000000]'), r"`a` claims to be float64 of the shape \(1000000000000,\)"),
        (lambda h: h.replace("[4]", "[-4]"), "`a` is no entry of an array"),
        (lambda h: h.replace('"F64"', '"F128"'), "`a` is no entry of an array"),
        (lambda h: h.replace("[0,32]", "[0,3200]").replace("[4]", "[400]"), "says 3200 bytes of elements, and has 32"),
        (lambda h: h.replace("[0,32]", "[8,40]"), "in the bytes 8 to 40"),
        (lambda h: h[:-70], "its header is no JSON"),
        (lambda h: "[" * 100_000, "its header is no JSON"),
        (lambda h: '{"a": 1, "a": 1}', "a name stands twice"),
        (lambda h: h.replace(r"lux_sciml_tree\": 1", r"lux_sciml_tree\": 9"), "sha256 is another one"),
        (lambda h: h.replace(r"[\"a\"", r"[\"b\""), "sha256 is another one"),
    ],
)  # fmt: skip
def test_headers_that_claim_what_is_not_so(tmp_path, change, message):
    path = tmp_path / "tree"
    lux.save(path, {"a": np.arange(4.0)})
    changed(path, change)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"tree' cannot be loaded: .*{message}"):
        lux.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_later_versions_are_refused_and_no_class_is_made_but_those_of_fields(tmp_path, monkeypatch):
    from lux_sciml.components import trees

    with monkeypatch.context() as patch:
        patch.setattr(trees, "VERSION", 9)
        lux.save(tmp_path / "later", {"a": 1})
    with pytest.raises(ValueError, match="it was written as version 9, this lux_sciml reads version 1: update it"):
        lux.load(tmp_path / "later")
    for node, message in (
        ({"class": "subprocess:Popen", "children": []}, "neither a NamedTuple nor a dataclass"),
        ({"enum": "builtins:int", "member": "real"}, "a int, which is no Enum"),
        ({"enum": "lux_sciml.core.mode:Mode", "member": "other"}, "is other, which lux_sciml.core.mode:Mode does not"),
        ({"dict": [["a", {"int": 1}], ["a", {"int": 1}]]}, "the root has an item twice"),
        ({"array": {"name": "b"}}, "an array that is not there"),
        ({"what": 1}, "is no part of a tree"),
    ):
        with pytest.raises(ValueError, match=message):
            trees.decode(json.dumps({"lux_sciml_tree": 1, "tree": node}), {})


def test_what_is_no_value(tmp_path):
    for x, message in (
        ({"a": [jnp.sin]}, "`a.0` is of type"),
        ({"a": jax.ShapeDtypeStruct((2,), "float32")}, "`a` has no values"),
        ({"a": np.array(["text"])}, "`a` is an array of <U4"),
        ({(1, 2): 1.0}, "the root has an item named"),
    ):
        with pytest.raises(TypeError, match=message):
            lux.save(tmp_path / "x", x)
    with pytest.raises(TypeError, match="has no values"):
        jax.jit(lambda x: lux.save(tmp_path / "x", x))(lux.ComponentVector(a=1.0))
    assert not list(tmp_path.iterdir())


FULL = """
    import os, resource, signal, sys
    import numpy as np
    import lux_sciml as lux
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = sys.argv[1]
    os.chdir(folder)
    lux.save("ps", lux.ComponentVector(a=1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk that is full
    try:
        lux.save("ps", {"a": np.ones(1_000_000)})
    except OSError as error:
        print(type(error).__name__, flush=True)
    os.chmod(folder, 0o555)
    if os.getuid() == 0:
        os.setuid(65534)  # nobody, since nothing is read-only for the superuser
    try:
        lux.save("ps", lux.ComponentVector(a=2))
    except OSError as error:
        print(type(error).__name__, lux.load("ps"), sorted(os.listdir(".")), flush=True)
"""


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_folder(tmp_path):
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if os.stat(parent).st_uid == os.getuid() and str(parent) != "/":
            os.chmod(parent, os.stat(parent).st_mode | 0o555)
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    os.chmod(tmp_path, 0o755)
    assert out == "OSError\nPermissionError ComponentVector(a=1) ['ps']\n"
