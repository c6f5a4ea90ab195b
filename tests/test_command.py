"""The command `lux-sciml`: what files hold, and parameters from a file exported with their model."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.command import main

NETS = """
import jax.numpy as jnp
import lux_sciml as lux

net = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.BatchNorm(3))
plain = lux.Dense(2, 3, jnp.tanh)
two = lux.Parallel(jnp.add, lux.Dense(2, 3), lux.Dense(4, 3))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "some_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "some_nets", raising=False)
    return tmp_path


def told(capsys, *arguments):
    code = main(arguments)
    out = capsys.readouterr()
    return code, out.out.strip(), out.err.strip()


def test_parameters_are_exported_with_the_state_of_their_file(folder, capsys, key):
    sys.path.insert(0, str(folder))
    from some_nets import net

    sys.path.pop(0)
    ps, st = lux.setup(key, net, dtype="float32")
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    _, st = net(x, ps, st)  # running statistics of one batch
    lux.save("run.safetensors", {"ps": ps, "st": st})
    lux.save("ps.safetensors", ps)
    command = ["export", "run.safetensors", "--model", "some_nets:net", "--to", "stablehlo", "--input", "batch,2"]
    assert told(capsys, *command) == (0, "run.stablehlo", "")
    expected = net(x, ps, lux.testmode(st))[0]
    np.testing.assert_allclose(lux.export.load("run.stablehlo")(x), expected, rtol=1e-6)

    code, out, _ = told(capsys, "info", "run.stablehlo")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert code == 0 and ["inputs", "x float32[batch, 2]"] in lines and ["parameters", "constant, 15"] in lines
    assert ["layout", "layer_0.weight float32[2, 3]"] in lines
    digest = hashlib.sha256(Path("run.stablehlo").read_bytes()).hexdigest()
    assert f"jax {jax.__version__}" in out and ["sha256", digest] in lines and ["format", "StableHLO"] in lines
    code, out, _ = told(capsys, "info", "run.safetensors", "--json")
    about = json.loads(out)
    assert {"name": "ps.layer_0.weight", "shape": [2, 3], "dtype": "float32"} in about["layout"]
    assert about["versions"] == {"lux_sciml_tree": 1}
    assert about["elements"]["float32"] == 21 and {"name": "ps", "shape": [15], "dtype": "float32"} in about["arrays"]

    command[1] = "ps.safetensors"
    code, _, err = told(capsys, *command)
    assert code == 1 and "the state of some_nets:net has arrays, such as running statistics" in err


def test_several_inputs_and_open_parameters(folder, capsys, key):
    lux.save("two.safetensors", lux.setup(key, lux.Parallel(None, lux.Dense(2, 3), lux.Dense(4, 3)))[0])
    inputs = ["--input", "n,2", "--input", "n,4", "--dtype", "float64", "--parameters", "input"]
    command = ["export", "two.safetensors", "--model", "some_nets:two", "--to", "stablehlo", *inputs]
    assert told(capsys, *command, "--output", "other.stablehlo") == (0, "other.stablehlo", "")
    assert lux.export.load("other.stablehlo").inputs["x_1"] == (("n", 4), np.float64)
    command = [text.replace("n,", "5,") if text in inputs else text for text in command]  # numbers are fixed
    assert told(capsys, *command, "--output", "fixed.stablehlo")[0] == 0
    assert lux.export.load("fixed.stablehlo").inputs["x_0"] == ((5, 2), np.float64)


def test_what_is_wrong_is_one_sentence(folder, capsys, key):
    lux.save("ps.safetensors", lux.setup(key, lux.Dense(2, 3))[0])
    lux.save("list.safetensors", [np.ones(2)])
    (folder / "asks.py").write_text("import no_such_library")
    (folder / "text.npz").write_text("PK and no more")
    np.savez(folder / "numpys.npz", x=np.ones(3))
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    (folder / "others.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    changed = bytearray((folder / "ps.safetensors").read_bytes())
    changed[-1] ^= 1
    (folder / "changed.safetensors").write_bytes(changed)
    lux.export.stablehlo("changed_program", jnp.sin, x=np.ones(2))
    whole = (folder / "changed_program").read_bytes()
    (folder / "changed_program").write_bytes(whole[:400] + bytes([whole[400] ^ 64]) + whole[401:])
    lux.save("some_nets.safetensors", lux.load("ps.safetensors"))
    source = ["--to", "numpy_source", "--input", "batch,2", "--model"]
    export = ["--to", "stablehlo", "--input", "batch,2", "--model"]
    for command, sentence in [
        (["info", "none"], "No such file"),
        (["info", "some_nets.py"], "is no file that was exported by lux_sciml"),
        (["info", "."], "is no SavedModel that was exported"),
        (["info", "text.npz"], "cannot be loaded"),
        (["info", "numpys.npz"], "is a zip file, as npz files are, but `save` did not write it"),
        (["info", "others.safetensors"], "it is a safetensors file of another program"),
        (["info", "changed.safetensors"], "'changed.safetensors' cannot be read: its sha256"),
        (["info", "changed_program"], "'changed_program' is damaged, its sha256"),
        (["export", "list.safetensors", *export, "some_nets:plain"], "neither a ComponentVector nor a dict"),
        (
            ["export", "ps.safetensors", *export, "some_nets:none"],
            "found no 'none'; the layers in some_nets are: net, plain",
        ),
        (
            ["export", "ps.safetensors", *export, "no_such_nets:net"],
            "there is no module 'no_such_nets' in the working folder, /",
        ),
        (["export", "ps.safetensors", *export, "asks:net"], "No module named 'no_such_library'"),
        (["export", "ps.safetensors", *export, "some_nets:two"], "these are not the parameters"),
        (["export", "ps.safetensors", *export, "some_nets:plain", "--input", "3"], "array"),
        (["export", "ps.safetensors", *export, "some_nets:plain", "--output", "some.onnx"], "not the name of what"),
        (["export", "some_nets.safetensors", *source, "some_nets:plain"], "was not written by lux_sciml"),
    ]:
        code, out, err = told(capsys, *command)
        assert code == 1 and out == "" and sentence in err and "\n" not in err, (command, err)
    assert {path.suffix for path in folder.iterdir()} >= {".safetensors"} and not list(folder.glob("*.stablehlo"))
    assert (folder / "some_nets.py").read_text() == NETS


def test_a_type_that_is_none(capsys):
    with pytest.raises(SystemExit):
        main(["export", "ps.safetensors", "--model", "nets", "--to", "onnx", "--input", "2", "--dtype", "float33"])
    assert "float32" in capsys.readouterr().err


def test_a_module_without_a_name_has_the_layer_called_model(folder, capsys, key):
    (folder / "one_net.py").write_text("import lux_sciml as lux\nmodel = lux.Dense(2, 3)")
    lux.save("ps.safetensors", lux.setup(key, lux.Dense(2, 3), dtype="float32")[0])
    command = ["export", "ps.safetensors", "--model", "one_net", "--to", "stablehlo", "--input", "batch,2"]
    assert told(capsys, *command) == (0, "ps.stablehlo", "")
