"""SavedModel: read back by TensorFlow in a process of its own, in the layout of TensorFlow Serving."""

import json
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import checked_by_the_host, set_up

import lux_sciml as lux

IN_TENSORFLOW = """
import json, sys
import numpy as np
import tensorflow as tf

solve = tf.saved_model.load(sys.argv[1] + "/1").signatures["serving_default"]
net = tf.saved_model.load(sys.argv[1] + "/2")
implicit = tf.saved_model.load(sys.argv[1] + "/3")
out = {}
for batch in (1, 5):
    u = tf.Variable(np.linspace(-1, 1, 3 * batch, dtype=np.float32).reshape(batch, 3))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(net.call(u)["y"])
    served = solve(u=u, shift=tf.constant(0.5))
    out[batch] = {name: y.numpy().tolist() for name, y in served.items()}
    out[batch]["implicit"] = implicit.call(u)["y"].numpy().tolist()
    out[batch]["gradient"] = tape.gradient(total, u).numpy().tolist()
assert not {"lux_sciml", "equinox", "diffrax"} & set(sys.modules)
print(json.dumps(out))
"""


@pytest.mark.exhaustive
def test_tensorflow_reads_solves_and_a_net_with_its_gradient(tmp_path):
    pytest.importorskip("tensorflow")
    model = lux.Chain(lux.Dense(3, 2, jnp.tanh), lux.NeuralODE(lux.MLP(2, 4, 2), ts=[0.0, 1.0]))
    ps, st, _ = set_up(model)

    def net(u):
        return jnp.tanh(u @ ps["layer_0.weight"])

    def both(x):
        return {"ys": model(x["u"], ps, st)[0].ys + x["shift"], "net": net(x["u"])}

    folder, example = tmp_path / "model", {"u": np.ones((2, 3), np.float32), "shift": np.float32(0.5)}
    lux.export.saved_model(folder, net, x=example["u"])
    lux.export.save(folder, both, x=example)  # replaces version 1
    lux.export.saved_model(folder, net, x=example["u"], version=2, gradient=True)
    stiff = lux.NeuralODE(lux.MLP(3, 4, 3), ts=[0.0, 0.5], solver=diffrax.Kvaerno3(), batching="vmap", output="final")
    *given, stiffly = set_up(stiff)
    lux.export.saved_model(folder, stiff, *given, example["u"], version=3)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]
    assert lux.export.read_metadata(folder)["model"] == "NeuralODE"  # the highest version
    u = {"name": "u", "shape": ["batch", 3], "dtype": "float32"}
    assert lux.export.read_metadata(folder / "1")["inputs"][0] == u
    command = [sys.executable, "-c", IN_TENSORFLOW, str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    for batch, got in json.loads(printed).items():
        u = np.linspace(-1, 1, 3 * int(batch), dtype=np.float32).reshape(-1, 3)
        expected = both({"u": u, "shift": np.float32(0.5)})
        np.testing.assert_allclose(got["net"], expected["net"], atol=1e-6)
        np.testing.assert_allclose(got["ys"], expected["ys"], rtol=1e-5, atol=1e-6)  # the solver's tolerance
        np.testing.assert_allclose(got["implicit"], stiffly(u), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["gradient"], jax.grad(lambda u: net(u).sum())(u), atol=1e-6)


def test_what_is_refused_leaves_what_was_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="a version of a SavedModel is a number of at least 0, got -1"):
        lux.export.saved_model(tmp_path / "m", jnp.sin, x=np.ones(2), version=-1)
    with pytest.raises(ValueError, match="platforms are some of"):
        lux.export.saved_model(tmp_path / "m", jnp.sin, x=np.ones(2), platforms="cpu")
    with monkeypatch.context() as patch, pytest.raises(ImportError, match=r"pip install lux-sciml\[export\]"):
        patch.setitem(sys.modules, "tensorflow", None)
        lux.export.saved_model(tmp_path / "m", jnp.sin, x=np.ones(2))
    pytest.importorskip("tensorflow")
    with pytest.raises(ValueError, match=r"factorizes matrices, by `qr`, .*: export it by lux.export.stablehlo"):
        lux.export.saved_model(tmp_path / "m", jnp.linalg.qr, x=np.eye(2), batch_axis=None)
    with pytest.raises(ValueError, match=r"TensorFlow takes no input or output called 'lambda': rename it by names="):
        lux.export.saved_model(tmp_path / "m", lambda x: x["lambda"], x={"lambda": np.ones(2)})
    with pytest.raises(ValueError, match=r"by `lu`, .* no program on a CPU that has a gradient"):
        lux.export.saved_model(tmp_path / "m", jnp.linalg.inv, x=np.eye(2), batch_axis=None, gradient=True)
    for platforms in (["cpu"], ["cpu", "cuda"]):
        with pytest.raises(ValueError, match=r"calls back to Python, by what one of its operations becomes"):
            lux.export.saved_model(
                tmp_path / "m", checked_by_the_host, x=np.ones(3), batch_axis=None, platforms=platforms
            )
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    from lux_sciml.export.saved_model import replacing_folder

    with replacing_folder(tmp_path / "m" / "1") as new:
        (new / "a").write_text("first")
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "m" / "1") as new:
        (new / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "m" / "1" / "a").read_text() == "first"
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]
