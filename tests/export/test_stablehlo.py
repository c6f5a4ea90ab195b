"""StableHLO: every layer and solve is exported with a batch of any size; what is loaded gives the very same numbers."""

import json
import subprocess
import sys

import diffrax
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import checked_by_the_host, set_up
from test_contracts import CELL, LAYERS

import lux_sciml as lux
from lux_sciml.core.parameters import parameter_layout
from lux_sciml.diffeq.equation import equation_of
from lux_sciml.export import plain_function

RNG = np.random.default_rng(0)


def parameters(layer):
    """Any parameters, and a state in test mode: nothing is computed with them."""
    layout = parameter_layout(layer)
    ps = lux.ComponentVector(jnp.ones(layout.size, layout.flat_dtype), layout)
    return ps, lux.testmode(layer.init_state(jax.random.key(0)))


RANDOM = (lux.NeuralDSDE, lux.NeuralSDE, lux.WithCosts, lux.CNF)  # draw numbers in test mode too, as they stand there
OF_ONE_BATCH = (lux.StatefulRecurrentCell,)


@pytest.mark.exhaustive
def test_every_layer_is_exported_with_a_batch_of_any_size():
    failed = []
    for layer, x, _ in LAYERS:
        if isinstance(layer, RANDOM + OF_ONE_BATCH):
            continue
        x, (ps, st), call = jax.tree.map(np.asarray, x), parameters(layer), layer
        if equation_of(layer) is not None or jax.tree.leaves(x)[0].ndim < 2:  # an example of one sample

            def call(x, layer=layer, ps=ps, st=st):
                return jax.vmap(lambda x: layer(x, ps, st)[0])(x)

            x, ps, st = jax.tree.map(lambda a: np.stack([a, a]), x), None, None
        try:
            plain = plain_function(call, ps, st, x)
            jax.export.export(plain.call, platforms=("cpu", "cuda", "rocm", "tpu"))(*plain.specs)
            assert "batch" in map(str, plain.specs[0].shape)
        except Exception as error:
            failed.append((type(layer).__name__, str(error)[:200]))
    assert not failed


IMAGE_NET = lux.Chain(
    lux.Conv(1, 4, (3, 3), jnp.tanh, padding="SAME"),
    lux.BatchNorm(4),
    lux.MaxPool((2, 2)),
    lux.Flatten(),
    lux.Dense(16, 2),
)
STEPS = {"dt0": 0.25, "stepsize_controller": diffrax.ConstantStepSize()}
ADAPTIVE = lux.NeuralODE(lux.MLP(2, 4, 2), ts=[0.0, 0.5, 1.0])


def squared_error(ps, batch):
    sol = ADAPTIVE(batch["u"], ps, ADAPTIVE.init_state(jax.random.key(0)))[0]
    return jnp.mean((sol.ys - batch["target"]) ** 2)


@pytest.mark.exhaustive
def test_what_is_loaded_gives_the_same_numbers(tmp_path):
    """At batches of 1, 5 and 32, to the last bit."""
    models = {
        "mlp": (lux.MLP(4, (8, 8), 2), (4,)),
        "image": (IMAGE_NET, (4, 4, 1)),
        "lstm": (lux.Recurrence(lux.LSTMCell(2, 3)), (4, 2)),
        "fixed": (lux.NeuralODE(lux.MLP(2, 4, 2), ts=[0.0, 1.0], output="ys", **STEPS), (2,)),
        "adaptive": (ADAPTIVE, (2,)),
        "equilibrium": (lux.DeepEquilibrium(CELL, 4), (3,)),
    }
    for name, (model, shape) in models.items():
        ps, st, direct = set_up(model)
        path = tmp_path / f"{name}.stablehlo"
        lux.export.save(path, model, ps, st, np.zeros((3, *shape), np.float32))
        loaded = lux.export.load(path)
        for batch in (1, 5, 32):
            x = RNG.normal(size=(batch, *shape)).astype(np.float32)
            expected, got = direct(x), loaded(x)
            if name == "adaptive":
                np.testing.assert_array_equal(got["ts"], expected.ts)
                expected, got = expected.ys, got["ys"]
            np.testing.assert_array_equal(got, expected, err_msg=f"{name}, {batch}")


@pytest.mark.exhaustive
def test_a_gradient_with_its_parameters_as_an_input(key, tmp_path):
    ps, _ = lux.setup(key, ADAPTIVE)
    path, gradient = tmp_path / "gradient.stablehlo", jax.value_and_grad(squared_error)
    example = {"u": np.zeros((3, 2)), "target": np.zeros((3, 3, 2))}
    lux.export.save(
        path, gradient, ps, x=example, batch_axis={"u": 0, "target": 1}, params="input", names={"y_0": "loss"}
    )
    loaded = lux.export.load(path)
    assert loaded.layout is ps.layout and list(loaded.inputs) == ["params", "u", "target"]
    for batch in (1, 5):
        data = {"u": RNG.normal(size=(batch, 2)), "target": RNG.normal(size=(3, batch, 2))}
        value, slope = jax.jit(gradient)(ps, data)
        got = loaded(ps, **data)
        np.testing.assert_allclose(got["loss"], value, rtol=1e-14)  # equal, but for tests XLA is told not to optimize
        np.testing.assert_allclose(got["y_1"], slope.data, rtol=1e-13)
    with pytest.raises(ValueError, match="where a name stands for any size above zero, here batch = 5; got"):
        loaded(ps, np.zeros((5, 2)), np.zeros((3, 4, 2)))
    with pytest.raises(ValueError, match="layouts differ"):
        loaded(lux.ComponentVector(a=np.zeros(ps.size)), **data)


WITHOUT_US = """
import json, sys
import jax, jax.export, numpy as np

path, x = sys.argv[1], np.array(json.loads(sys.argv[2]), np.float32)
exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
print(json.dumps([exported.platforms, np.asarray(exported.call(x)[0]).tolist()]))
assert not {"lux_sciml", "equinox", "diffrax", "optimistix"} & set(sys.modules)
"""


def test_a_file_is_loaded_by_jax_alone(tmp_path):
    path, x = tmp_path / "mlp.stablehlo", RNG.normal(size=(2, 4)).astype(np.float32)
    model = lux.MLP(4, 8, 2)
    ps, st, call = set_up(model)
    lux.export.stablehlo(path, model, ps, st, x)
    command = [sys.executable, "-c", WITHOUT_US, str(path), json.dumps(x.tolist())]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path).stdout
    platforms, y = json.loads(printed)
    assert platforms == ["cpu", "cuda", "rocm", "tpu"]
    np.testing.assert_allclose(y, call(x), rtol=1e-6, atol=1e-6)  # sums of order one


def test_what_is_loaded_checks_its_inputs_and_tells_what_it_is(key, tmp_path):
    path = tmp_path / "f.stablehlo"

    def f(x):
        return {"sum": x["a"].sum(1) + x["b"], "n": x["n"] + 1}

    example = {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32), "n": np.array(2)}
    lux.export.stablehlo(path, f, x=example, derivatives=1, platforms=["cpu"])
    loaded = lux.export.load(path)
    assert repr(loaded) == (
        "<exported f: (a: float32[batch, 3], b: float32[batch], n: int64[]) -> (sum: float32[batch], y_n: int64[])>"
    )
    a, b = np.arange(6.0).reshape(2, 3), [0, 1]  # in other types
    np.testing.assert_array_equal(loaded(a, b, 3)["sum"], [3, 13])
    np.testing.assert_array_equal(loaded(n=3, b=b, a=a)["y_n"], 4)
    np.testing.assert_array_equal(loaded(a.astype(int).tolist(), np.array([True, False]), np.int8(3))["sum"], [4, 12])
    slope = jax.jit(jax.grad(lambda b: loaded(example["a"], b, 1)["sum"].sum()))(example["b"])
    np.testing.assert_array_equal(slope, 1)
    for args, kwargs, error, sentence in [
        ((a, b), {}, TypeError, "this function takes a, b, n; got 2 by position"),
        ((a, b, 1), {"n": 1}, TypeError, "got 3 by position, n"),
        ((a, b), {"m": 1}, TypeError, "got 2 by position, m"),
        ((a, b, 1.5), {}, TypeError, "the input 'n' is an array of int64, got "),
        ((a + 0j, b, 1), {}, TypeError, "the input 'a' is an array of float32, got c128"),
        ((a, b, jax.random.key(0)), {}, TypeError, "the input 'n' is an array of int64, got key"),
        ((a[:, :2], b, 1), {}, ValueError, r"'a' has the shape \(batch, 3\), where .*; got \(2, 2\)"),
        ((a, [1.0], 1), {}, ValueError, r"'b' has the shape \(batch\), .* here batch = 2; got \(1,\)"),
        ((a[:0], b[:0], 1), {}, ValueError, "above zero"),
        ((a[0], b, 1), {}, ValueError, r"got \(3,\)"),
    ]:
        with pytest.raises(error, match=sentence):
            loaded(*args, **kwargs)
    about = lux.export.read_metadata(path)
    assert about == loaded.metadata and about["platforms"] == ["cpu"] and about["versions"]["jax"] == jax.__version__
    with jax.enable_x64(False), pytest.raises(ValueError, match="'n' is int64, and JAX has no 64-bit types here"):
        lux.export.load(path)


def test_whole_numbers_that_do_not_fit_are_refused(tmp_path):
    lux.export.stablehlo(tmp_path / "f.stablehlo", lambda i: i + 1, x=np.zeros(2, np.int8))
    loaded = lux.export.load(tmp_path / "f.stablehlo")
    np.testing.assert_array_equal(loaded([1, -128]), [2, -127])
    with pytest.raises(ValueError, match=r"'x' is an array of int8, from -128 to 127, got .* from 1 to 300"):
        loaded([1, 300])


def test_errors_of_jax_in_a_call_are_said(tmp_path):
    path, (n,) = tmp_path / "f.stablehlo", jax.export.symbolic_shape("n")
    for derivatives in (0, 1):
        lux.export.stablehlo(
            path, lambda x: x.reshape(3, 2), x=jax.ShapeDtypeStruct((n, 3), float), derivatives=derivatives
        )
        loaded = lux.export.load(path)
        assert loaded(np.ones((2, 3))).shape == (3, 2)
        with pytest.raises(
            ValueError, match=r"not right for these sizes, x \(4, 3\), though for others: export it with"
        ):
            loaded(np.ones((4, 3)))
        for mapped in (jax.vmap(loaded), jax.jit(jax.vmap(loaded))):
            with pytest.raises(ValueError, match=r"jax.vmap does not apply: call it with the whole batch, in the axis"):
                mapped(np.ones((5, 2, 3)))
    with pytest.raises(ValueError, match=r"jax.vmap does not apply"):
        jax.vmap(jax.grad(lambda x: loaded(x).sum()))(np.ones((5, 2, 3)))


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "f.stablehlo"
    lux.export.save(path, jnp.sin, x=np.ones(3))
    whole = path.read_bytes()
    old = whole[: whole.rindex(b', "sha256"')] + b"}"  # as it was written before there was one
    for content, sentence in [
        (b"", "is empty"),
        (whole[:-30], "is no file that was exported by lux_sciml, or it is not whole"),
        (whole[2000:], r"f\.stablehlo' is damaged, its sha256 is not"),
        (whole[:400] + bytes([whole[400] ^ 64]) + whole[401:], "is damaged"),  # of the program
        (whole.replace(b'"dtype": "float64"', b'"dtype": "float32"'), "is damaged"),  # of what stands behind it
        (old[2000:], "holds no program that this JAX"),
        (b"text", "is no file that was exported"),
        (b'{"lux_sciml_export": 1, "format": "ONNX"}', "is ONNX, which its own runtime loads"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            lux.export.load(path)
    path.write_bytes(old)
    np.testing.assert_allclose(lux.export.load(path)(np.ones(3)), np.sin(1.0))
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="in training"):
        lux.export.save(path, lux.Dropout(0.5), *lux.setup(jax.random.key(0), lux.Dropout(0.5)), np.ones((2, 3)))
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"eigvals computes what some of the platforms cpu, cuda, rocm, tpu lack"):
        lux.export.save(path, jnp.linalg.eigvals, x=np.ones((2, 2)), batch_axis=None)
    for platforms in (["cpu"], ["cpu", "cuda"]):
        with pytest.raises(ValueError, match=r"calls back to Python, by what one of its operations becomes"):
            lux.export.stablehlo(path, checked_by_the_host, x=np.ones(3), batch_axis=None, platforms=platforms)
    for platforms in ("cpu", [], ["gpu"]):
        with pytest.raises(ValueError, match=r"platforms are some of 'cpu', .* in a list, got"):
            lux.export.save(path, jnp.sin, x=np.ones(3), platforms=platforms)
    with pytest.raises(ValueError, match=r"no format is known by the suffix '\.pkl'; there are \.stablehlo"):
        lux.export.save(tmp_path / "model.pkl", jnp.sin, x=np.ones(3))
    lux.export.stablehlo(path, jnp.sin, x=np.ones(3))
    with pytest.raises(ValueError, match=r"exported without its gradient: export it with derivatives=1"):
        jax.grad(lambda x: lux.export.load(path)(x).sum())(np.ones(3))
    with pytest.raises(FileNotFoundError):
        lux.export.load(tmp_path / "none.stablehlo")
