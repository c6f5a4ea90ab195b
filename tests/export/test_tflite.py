"""TFLite files, in LiteRT, compute what the layer computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import MODELS, batches, check_batches, checked_by_the_host, net, set_up, times

import lux_sciml as lux

pytest.importorskip("tensorflow")
Interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter


def run(path, **inputs):
    """The outputs of the file by name, by LiteRT's own operations alone."""
    return Interpreter(str(path)).get_signature_runner()(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_any_batch(tmp_path, name):
    check_batches(name, lux.export.tflite, tmp_path / "model.tflite", run)


def test_one_batch_and_parameters_as_an_input(tmp_path):
    layer, shape = MODELS["mlp"]
    ps, st, call = set_up(layer)
    x = batches(shape)[1]
    lux.export.tflite(tmp_path / "model.tflite", layer, ps, st, x, batch_axis=None, params="input")
    y = run(tmp_path / "model.tflite", params=np.asarray(ps.data), x=x)["y"]
    np.testing.assert_allclose(y, call(x), rtol=2e-6, atol=2e-6)
    about = lux.export.read_metadata(tmp_path / "model.tflite")
    assert about["format"] == "TFLite" and about["inputs"][1] == {"name": "x", "shape": [4, 3], "dtype": "float32"}


def test_gradient_of_a_loss_with_trees_and_whole_numbers(tmp_path):
    layer, shape = MODELS["mlp"]
    ps, st, _ = set_up(layer)

    def loss(ps, data):
        return jnp.mean((layer(data["x"], ps, st)[0] - data["i"][:, None].astype("float32")) ** 2)

    x = {"x": batches(shape)[1], "i": np.arange(4)}
    lux.export.tflite(tmp_path / "loss.tflite", jax.value_and_grad(loss), ps, x=x, params="input")
    out = run(tmp_path / "loss.tflite", params=np.asarray(ps.data), **x)
    value, gradient = jax.value_and_grad(loss)(ps, x)
    np.testing.assert_allclose(out["y_0"], value, rtol=2e-6)
    np.testing.assert_allclose(out["y_1"], gradient.data, rtol=2e-5, atol=2e-6)


def test_remainders_have_the_sign_of_what_is_divided(tmp_path):
    x = np.array([[5.5, -5.5, -0.3], [1.0, -1.0, 7.0]], "float32")

    def remainders(x):
        whole = x.astype("int32")
        return jax.lax.rem(x, x[:, ::-1]), x % 0.7, jax.lax.rem(whole, 0 * whole + 3), whole % -3, whole // 3

    lux.export.tflite(tmp_path / "model.tflite", remainders, x=x)
    for name, y in run(tmp_path / "model.tflite", x=x).items():
        np.testing.assert_allclose(y, jax.jit(remainders)(x)[int(name[2:])], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_what_is_refused_is_not_written(tmp_path, capfd):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    node = lux.NeuralODE(net, ts=times, output="final")
    ps, st, _ = set_up(node)
    x = jnp.ones((2, 3), "float32")
    with pytest.raises(TypeError, match=r"is float64, which TFLite lacks.*lux.export.stablehlo"):
        lux.export.tflite(path, node, ps.astype(float), st, jnp.ones((2, 3)))
    capfd.readouterr()
    both = "export it by lux.export.stablehlo or lux.export.saved_model"
    for f, cause in (
        (jnp.sort, f"its operation `sort`: {both}"),
        (lambda x: jax.lax.top_k(x, 2)[0], f"its operation `top_k`: {both}"),
        (lambda x: jnp.fft.fft(x).real, f"its operation `fft`: {both}"),
        (lambda x: jnp.linalg.eigvalsh(x.T @ x), "its operation `eigh`: export it by lux.export.stablehlo"),
        (lambda x: (x.astype("bfloat16") * 2).astype("float32"), f"numbers in bfloat16: {both}"),
    ):
        with pytest.raises(ValueError, match=f"no form in TFLite because of {cause}$"):
            lux.export.tflite(path, f, x=x, batch_axis=None)
    assert not "".join(capfd.readouterr())  # the converter's own words
    with pytest.raises(ValueError, match=r"because .*added or multiplied at indices.*lux.export.stablehlo"):
        lux.export.tflite(path, lambda x: x.at[jnp.array([0, 0])].add(1), x=x, batch_axis=None)
    with pytest.raises(ValueError, match=r"because .*a convolution with less than no padding.*lux.export.stablehlo"):
        lux.export.tflite(
            path, lambda x: jax.lax.conv(x, x[:1], (1, 1), ((-1, 0), (0, 0))), x=jnp.ones((2, 1, 4, 4), "float32")
        )
    with pytest.raises(ValueError, match=r"not the reverse mode of a solve.*lux.export.stablehlo"):
        lux.export.tflite(path, jax.grad(lambda ps, x: jnp.sum(node(x, ps, st)[0])), ps, x=x)
    with pytest.raises(ValueError, match=r"calls back to Python, by what one of its operations becomes"):
        lux.export.tflite(path, checked_by_the_host, x=jnp.ones(3, "float32"), batch_axis=None)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
