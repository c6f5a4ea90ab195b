"""ONNX files, in onnxruntime and OpenVINO, compute what the layer computes."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_models import MODELS, batches, check_batches, net, set_up, times

import lux_sciml as lux

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def run(path, **inputs):
    """The outputs of the file by name, in onnxruntime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [y.name for y in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_any_batch(tmp_path, name):
    check_batches(name, lux.export.onnx, tmp_path / "model.onnx", run)


@pytest.mark.slow
def test_operations(tmp_path):
    """One by one, in single and in double precision and in whole numbers, for a batch of any size."""

    def of_numbers(x):
        y = x[:, ::-1]
        one = [jnp.exp, jnp.expm1, jnp.log1p, jnp.cbrt, jnp.exp2, jax.lax.rsqrt, jax.nn.relu6, jnp.round, jnp.floor]
        one += [jnp.sign, jnp.isfinite, jnp.square, lambda x: x**5]
        one += [jnp.sinh, jnp.arctan, jax.scipy.special.erfc] if x.dtype == "float32" else []
        two = [jnp.arctan2] if x.dtype == "float32" else []
        two += [jnp.maximum, jnp.fmod, jnp.greater_equal, jnp.not_equal, lambda x, y: jnp.abs(x) ** y]
        shaped = [jnp.sort(x), *lax.top_k(x, 2), jnp.argmax(x, 1), jnp.argsort(x, axis=0), jnp.cumsum(x, axis=1)]
        shaped += [
            jnp.stack([x, y], 1),
            lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), (1, -1, 2))),
            jnp.pad(x, ((0, 0), (1, 2)), constant_values=2),
            x[:, 1::2],
            jnp.prod(x, 1),
        ]
        shaped += [jnp.einsum("bi,ci->bc", x, y), jnp.einsum("bi,bj->bij", x, y), jnp.einsum("bi,bi->b", x, y)]
        gone = jnp.where(x > 0, x, jnp.nan)
        shaped += [
            gone.max(1),
            gone.min(0),
            jnp.max(x > 0, 1),
            jnp.maximum(x > 0, x > 1),
            (x > 0) < (x > 1),
            lax.round(x),
        ]
        shaped += [(jnp.log(x) * 1e12).astype(kind) for kind in ("int8", "uint8", "int32", "int64")]
        shaped += [x.at[:, jnp.array([1, 9])].get(mode="fill", fill_value=0.5), jnp.take(x > 0, 9, axis=1)]
        shaped.append(jax.vmap(lambda r: lax.cond(r[0] > 0, jnp.sin, jnp.cos, r))(x))
        shaped.append(jax.vmap(lambda r: lax.switch(jnp.argmax(r), [jnp.sin, jnp.cos, jnp.exp], r))(x))
        if x.dtype == "float64":  # parameters in single precision
            shaped.append(lax.dot(x, jnp.ones((x.shape[1], 2), "float32"), preferred_element_type=x.dtype))
        shaped += [jnp.mean(x), jnp.broadcast_to(jnp.arange(x.shape[0])[:, None], x.shape), jnp.tile(x, (1, 2))]
        shaped += [x.at[:, 1].add(y[:, 0]), x.at[:, 1:].add(y[:, 1:])]
        shaped += [jnp.zeros_like(x), x.reshape(-1), jnp.any(x > 0, 1), jnp.split(x, [1], 1), jnp.take(x, 7, axis=1)]
        return [f(abs(x) if f is lax.rsqrt else x) for f in one], [f(x, y) for f in two], shaped

    def of_whole_numbers(i):
        table = jnp.arange(12.0).reshape(4, 3)
        rows = jnp.take(table, i, axis=0), jnp.take(table, i, axis=0, mode="clip"), jnp.take(table.T, i % 4, axis=1)
        branch = lax.switch(i[0], [jnp.negative, jnp.abs, lambda i: 7 * i], i)
        return (
            *rows,
            jnp.take(i, 9),
            i // 3,
            i % 3,
            i & 1,
            ~i,
            i.astype(float),
            branch,
            lax.fori_loop(0, i[0], lambda _, x: x + 1, i),
        )

    def of_loops(x):
        carry, ys = lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(3, x.dtype), x, reverse=True)
        return carry, ys, lax.fori_loop(0, 3, lambda k, x: lax.dynamic_update_slice(x, x[:, :1] * 2, (0, k)), x)

    up = lux.ConvTranspose(2, 3, (3, 3), stride=2)
    ps, st, _ = set_up(up)
    rng = np.random.default_rng(0)
    blocks = lux.Stack(lux.Chain(lux.Dense(3, 3, jnp.tanh), lux.Dropout(0.5)), 2)  # hands a key on that nothing reads
    weights, state, _ = set_up(blocks)
    check(tmp_path, lambda x: blocks(x, weights, state)[0], [rng.normal(size=(n, 3)).astype("float32") for n in (3, 1)])
    check(tmp_path, lambda x: up(x, ps, st)[0], [rng.normal(size=(n, 4, 5, 2)).astype("float32") for n in (3, 1)])
    for dtype in ("float32", "float64"):
        check(tmp_path, of_numbers, [rng.normal(size=(n, 3)).astype(dtype) for n in (4, 1)])
    check(tmp_path, of_loops, [rng.normal(size=(n, 3)) for n in (4, 1)])
    for dtype in ("int32", "int64"):
        check(tmp_path, of_whole_numbers, [np.array(i, dtype) for i in ([2, -1, 3, 0], [0], [1, 7])])


def check(tmp_path, function, inputs):
    lux.export.onnx(tmp_path / "f.onnx", function, x=inputs[0])
    session = ort.InferenceSession(tmp_path / "f.onnx", providers=["CPUExecutionProvider"])
    for x in inputs:
        expected = jax.tree.leaves(jax.jit(function)(x))
        for i, (y, e) in enumerate(zip(session.run(None, {"x": x}), expected, strict=True)):
            assert y.dtype == e.dtype and y.shape == e.shape, (i, y.dtype, e.dtype, y.shape, e.shape)
            tolerance = 1e-12 if e.dtype == "float64" else 2e-6
            np.testing.assert_allclose(y, e, rtol=tolerance, atol=tolerance, err_msg=f"output {i}")


def test_whole_solve_with_times_parameters_as_an_input_and_metadata(tmp_path):
    node = lux.NeuralODE(net)
    ps, st, _ = set_up(node)
    x = batches((2, 3))[1], np.linspace(0, 2, 4).astype("float32")
    lux.export.save(tmp_path / "model.onnx", node, ps, st, x, batch_axis=(0, None), params="input")
    y = run(tmp_path / "model.onnx", params=np.asarray(ps.data), x_0=x[0], x_1=x[1])
    np.testing.assert_array_equal(y["ts"], x[1])
    np.testing.assert_allclose(y["ys"], node(x, ps, st)[0].ys, rtol=1e-5, atol=1e-5)
    about = lux.export.read_metadata(tmp_path / "model.onnx")
    assert about["format"] == "ONNX" and about["outputs"][1]["shape"] == [4, "batch", 3]
    proto = onnx.load(tmp_path / "model.onnx")
    assert proto.metadata_props[0].key == "lux_sciml" and proto.producer_name == "lux-sciml"


def test_gradient_of_a_loss(tmp_path):
    net = lux.Chain(lux.Dense(3, 4, jax.nn.gelu), lux.Dense(4, 1))
    ps, st, _ = set_up(net)
    gradient = jax.value_and_grad(lambda ps, x: jnp.mean(net(x, ps, st)[0] ** 2))
    x = batches((2, 3))[1]
    lux.export.onnx(tmp_path / "loss.onnx", gradient, ps, x=x, params="input")
    out = run(tmp_path / "loss.onnx", params=np.asarray(ps.data), x=x)
    value, slope = gradient(ps, x)
    np.testing.assert_allclose(out["y_0"], value, rtol=2e-6)
    np.testing.assert_allclose(out["y_1"], slope.data, rtol=2e-5, atol=2e-6)


@pytest.mark.filterwarnings("ignore:os.fork", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_openvino(tmp_path):
    openvino = pytest.importorskip("openvino")
    for name in ("images", "node fixed"):
        layer, shape = MODELS[name]
        ps, st, call = set_up(layer)
        lux.export.onnx(tmp_path / "model.onnx", layer, ps, st, jnp.zeros(shape, "float32"))
        compiled = openvino.compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for x in batches(shape):
            np.testing.assert_allclose(compiled(x)[0], call(x), rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_what_is_refused_is_not_written(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    node = lux.NeuralODE(net, ts=times, output="final")
    ps, st, _ = set_up(node)
    x = jnp.ones((2, 3), "float32")
    with pytest.raises(TypeError, match=r"the input 'x' of \w+ is complex128, which ONNX lacks.*lux.export.stablehlo"):
        lux.export.onnx(path, jnp.abs, x=jnp.ones((2, 3), complex))
    with pytest.raises(TypeError, match=r"computes in complex64, in `fft`.*lux.export.stablehlo"):
        lux.export.onnx(path, lambda x: jnp.fft.rfft(x).real, x=x)
    with pytest.raises(TypeError, match=r"computes in bfloat16"):
        lux.export.onnx(path, lambda x: jnp.exp(x.astype("bfloat16")).astype("float32"), x=x)
    with pytest.raises(ValueError, match=r"an operation in a type that it does not have there .*lux.export.stablehlo"):
        lux.export.onnx(path, lambda i: -i, x=np.ones(3, np.uint8))
    with pytest.raises(ValueError, match=r"a convolution in float64, which onnxruntime has in float32 only"):
        lux.export.onnx(path, lambda x: lax.conv(x, x, (1, 1), "SAME"), x=np.ones((1, 1, 3, 3)))
    with pytest.raises(ValueError, match=r"no form in ONNX because of its operation `lu`.*lux.export.stablehlo"):
        lux.export.onnx(path, lambda x: jax.scipy.linalg.lu_factor(x)[0], x=x, batch_axis=None)
    with pytest.raises(ValueError, match=r"its operation `eigh`: export it by lux.export.stablehlo$"):
        lux.export.onnx(path, lambda x: jnp.linalg.eigvalsh(x.T @ x), x=x, batch_axis=None)
    with pytest.raises(ValueError, match=r"not the reverse mode of a solve.*lux.export.stablehlo"):
        lux.export.onnx(path, jax.grad(lambda ps, x: jnp.sum(node(x, ps, st)[0])), ps, x=x)
    stiff = node.replace(solver=diffrax.Kvaerno3())
    with pytest.raises(ValueError, match=r"not the implicit solver Kvaerno3.*lux.export.stablehlo"):
        lux.export.onnx(path, stiff, ps, st, x)
    with pytest.raises(ValueError, match="one of 18 to 23, got 9"):
        lux.export.onnx(path, node, ps, st, x, opset=9)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
