"""Exported models beside `jax.jit`: what the runtimes of their formats take, how far they deviate, how large files are.

A NumPy array goes in and one comes out, as in a server. `python bench_export.py mlp` measures one of mlp, image, lstm,
fixed, adaptive, equilibrium, gradient; else it is all of them. Needs the extra `export`.
"""

import os
import sys
import tempfile
from pathlib import Path

import timing

timing.pin_allocator()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import diffrax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import lux_sciml as lux  # noqa: E402

SECONDS = 6.0  # for each row
BATCHES = (1, 32)
KEY, RNG = jax.random.key(0), np.random.default_rng(0)
STEPS = {"dt0": 0.1, "stepsize_controller": diffrax.ConstantStepSize(), "output": "ys", "ts": np.linspace(0, 1, 11)}
CELL = lux.Parallel(
    lambda a, b: jnp.tanh(a + b), lux.Dense(16, 16, init_weight=lux.initializers.Normal(0.1)), lux.Dense(4, 16)
)
IMAGE = (
    *(lux.Conv(1, 8, (3, 3), jax.nn.relu, padding="SAME"), lux.BatchNorm(8), lux.MaxPool((2, 2))),
    *(lux.Conv(8, 16, (3, 3), jax.nn.relu, padding="SAME"), lux.BatchNorm(16), lux.MaxPool((2, 2)), lux.Flatten()),
    lux.Dense(784, 10),
)
MODELS = {
    "mlp": (lux.MLP(4, (32, 16), 4), (4,)),
    "image": (lux.Chain(*IMAGE), (28, 28, 1)),
    "lstm": (lux.Recurrence(lux.LSTMCell(4, 16)), (20, 4)),
    "fixed": (lux.NeuralODE(lux.MLP(4, (32, 16), 4), **STEPS), (4,)),
    "adaptive": (lux.NeuralODE(lux.MLP(4, (32, 16), 4), ts=np.linspace(0, 1, 11), output="ys"), (4,)),
    "equilibrium": (lux.DeepEquilibrium(CELL, 16), (4,)),
    "gradient": (lux.NeuralODE(lux.MLP(4, (32, 16), 4), ts=np.linspace(0, 1, 11), output="ys"), (4,)),
}


def function_of(name):
    """What is exported, a function of `x` with the parameters in it, and the shape of a sample."""
    model, shape = MODELS[name]
    ps, st = lux.setup(KEY, model)
    st = lux.testmode(st)

    def output(ps, x):
        return model(x, ps, st)[0]

    def gradient(ps, x):
        return jax.grad(lambda ps: jnp.mean(output(ps, x) ** 2))(ps).data

    return lambda x: (gradient if name == "gradient" else output)(ps, x), shape


def stablehlo(folder, function, x):
    path = folder / "model.stablehlo"
    lux.export.save(path, function, x=x)
    loaded = lux.export.load(path)
    return (lambda x: np.asarray(loaded(x))), path.stat().st_size


def saved_model(folder, function, x):
    import tensorflow as tf

    lux.export.save(folder / "model", function, x=x)
    serve = tf.saved_model.load(folder / "model" / "1").signatures["serving_default"]
    return (lambda x: serve(x=tf.constant(x))["y"].numpy()), (folder / "model" / "1" / "saved_model.pb").stat().st_size


def onnx(folder, function, x):
    """In onnxruntime, on one thread, the fastest for models of this size."""
    import onnxruntime

    path, options = folder / "model.onnx", onnxruntime.SessionOptions()
    lux.export.save(path, function, x=x)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return (lambda x: session.run(None, {"x": x})[0]), path.stat().st_size


def tflite(folder, function, x):
    """In LiteRT, by one file for any batch."""
    path = folder / "model.tflite"
    lux.export.save(path, function, x=x)
    return _litert(path), path.stat().st_size


def tflite_fixed(folder, function, x):
    """In LiteRT, by a file for each batch."""
    calls = {}
    for batch in BATCHES:
        path = folder / f"fixed_{batch}.tflite"
        lux.export.save(path, function, x=np.zeros((batch, *x.shape[1:]), x.dtype), batch_axis=None)
        calls[batch] = _litert(path)
    return (lambda x: calls[len(x)](x)), path.stat().st_size


def _litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter, sizes = Interpreter(str(path)), []
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()

    def call(x):
        if sizes != [x.shape]:
            interpreter.resize_tensor_input(given["index"], x.shape)
            interpreter.allocate_tensors()
            sizes[:] = [x.shape]
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(found["index"])

    return call


RUNTIMES = {
    **{"StableHLO": stablehlo, "SavedModel": saved_model, "ONNX": onnx},
    **{"TFLite, any batch": tflite, "TFLite, this batch": tflite_fixed},
}
NAMES = [f"lux.export, {runtime}" for runtime in RUNTIMES]


def measure(name):
    function, shape = function_of(name)
    x = RNG.normal(size=(2, *shape)).astype(np.float32)
    jitted, rows = jax.jit(function), []
    with tempfile.TemporaryDirectory() as folder:
        chosen = [runtime for runtime in RUNTIMES if name != "gradient" or runtime in ("StableHLO", "SavedModel")]
        deviation = dict.fromkeys(chosen, 0.0)
        runtimes = {runtime: RUNTIMES[runtime](Path(folder), function, x) for runtime in chosen}
        for batch in BATCHES:
            x = RNG.normal(size=(batch, *shape)).astype(np.float32)
            expected = np.asarray(jitted(x))
            for runtime, (call, _) in runtimes.items():
                deviation[runtime] = max(deviation[runtime], float(np.abs(call(x) - expected).max()))
            calls = {"jit": lambda x=x: np.asarray(jitted(x))}
            calls |= {f"lux.export, {n}": (lambda x=x, call=call: call(x)) for n, (call, _) in runtimes.items()}
            times = timing.interleaved(calls, seconds=SECONDS, least=5)
            rows.append((name, batch, *(times.get(n, float("nan")) * 1e6 for n in ("jit", *NAMES))))
    kilobytes = [f"{runtimes[n][1] / 1e3:.0f}, {deviation[n]:.0e}" if n in runtimes else "" for n in RUNTIMES]
    return rows, (name, *kilobytes)


if __name__ == "__main__":
    timing.machine()
    names = sys.argv[1:] or list(MODELS)
    times, files = zip(*map(measure, names), strict=True)
    timing.table(("us", "batch", "`jit`", *RUNTIMES), [row for rows in times for row in rows], "runtimes")
    print()
    timing.table(("kB, deviation from `jit`", *RUNTIMES), list(files), "files")
