"""A small net and a solve of it as C and NumPy source, beside `jax.jit`, PyTorch and onnxruntime: microseconds a call.

C is called from C, as simulation codes do, at several flags of the compiler, and from Python by ctypes. PyTorch (eager
and traced) and onnxruntime run on one thread; jit without asynchronous dispatch, which is quicker for small programs.
Each row's results are compared with jit's. Needs a C compiler; peers that are not installed are left out.
"""

import timing

timing.pin_allocator()

import ctypes  # noqa: E402
import importlib.util  # noqa: E402
import runpy  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import diffrax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import lux_sciml as lux  # noqa: E402

jax.config.update("jax_cpu_enable_async_dispatch", False)
FOLDER = Path(tempfile.mkdtemp())
FAST = "-O3 -march=native -fno-math-errno -fno-trapping-math -D__FAST_MATH__"  # vector functions of glibc, and NaN
FLAGS = {"fast, with NaN": FAST, "-O3 -march=native -ffast-math": "-O3 -march=native -ffast-math", "-O2": "-O2"}
INSIDE = 500  # calls from C
DRIVER = """
#include "{name}.h"
void repeat(int count, int n, const float *x, float *y) {{
    for (int i = 0; i < count; i++) {name}_forward(n, x, y);
}}
void repeat_vjp(int count, int n, const float *x, const float *y_bar, float *x_bar) {{
    for (int i = 0; i < count; i++) {name}_vjp(n, x, y_bar, x_bar);
}}
"""


def compiled(name, flags, driver):
    """The library of a C file and its driver, which are separate units: no call is taken out of the loop."""
    library = FOLDER / f"{name}{abs(hash(flags))}.so"
    (FOLDER / f"{name}_driver.c").write_text(driver.format(name=name))
    files = [FOLDER / f"{name}.c", FOLDER / f"{name}_driver.c"]
    subprocess.run(["cc", *flags.split(), "-shared", "-fPIC", *files, "-o", library, "-lm"], check=True)
    return ctypes.CDLL(str(library))


def pointers(*arrays):
    return [x.ctypes.data_as(ctypes.c_void_p) for x in arrays]


def torch_net(ps, x):
    import torch

    torch.set_num_threads(1)
    layers = []
    for name in ("layer_0", "layer_1", "layer_2"):
        inputs, outputs = ps[name].weight.shape
        linear = torch.nn.Linear(inputs, outputs)
        linear.weight.data = torch.tensor(np.asarray(ps[name].weight).T.copy())
        linear.bias.data = torch.tensor(np.asarray(ps[name].bias))
        layers += [linear, torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers[:-1]).eval()
    given = torch.tensor(x)
    with torch.inference_mode():
        traced = torch.jit.freeze(torch.jit.trace(net, given))
    return {
        "PyTorch, eager": torch.inference_mode()(lambda: net(given)),
        "PyTorch, traced": torch.inference_mode()(lambda: traced(given)),
    }


def onnx_net(ps, x):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, h = [], [], "x"
    for k, name in enumerate(("layer_0", "layer_1", "layer_2")):
        weights += [numpy_helper.from_array(np.asarray(ps[name][part]), f"{part}{k}") for part in ("weight", "bias")]
        nodes.append(helper.make_node("Gemm", [h, f"weight{k}", f"bias{k}"], [f"g{k}" if k < 2 else "y"]))
        if k < 2:
            nodes.append(helper.make_node("Tanh", [f"g{k}"], [f"h{k}"]))
            h = f"h{k}"
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", shapes[:1], shapes[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    onnx.checker.check_model(model)
    return {"onnxruntime": lambda: session.run(None, {"x": x})[0]}


def rows(calls, reference, inside):
    """Medians in microseconds, and the largest deviation from jit, relative to its largest value."""
    deviations = {
        name: np.max(np.abs(np.asarray(call()) - reference)) / np.max(np.abs(reference)) for name, call in calls.items()
    }
    peers = ("jit", "gradient: jit", "PyTorch", "onnxruntime")
    named = {name if name.startswith(peers) else f"lux, {name}": call for name, call in calls.items()}
    times = dict(zip(calls, timing.interleaved(named, seconds=15).values(), strict=True))
    return {name: (t * 1e6 / (INSIDE if name in inside else 1), float(deviations[name])) for name, t in times.items()}


def net():
    model = lux.Chain(lux.Dense(4, 32, jnp.tanh), lux.Dense(32, 16, jnp.tanh), lux.Dense(16, 4))
    ps, st = lux.setup(jax.random.key(0), model)
    st = lux.testmode(st)
    lux.export.save(FOLDER / "net.c", model, ps, st, jnp.ones((1, 4)), vjp=True)
    lux.export.save(FOLDER / "net.py", model, ps, st, jnp.ones((1, 4)))
    libraries = {name: compiled("net", flags, DRIVER) for name, flags in FLAGS.items()}
    forward = runpy.run_path(str(FOLDER / "net.py"))["forward"]
    jitted = jax.jit(lambda x: model(x, ps, st)[0])
    pull = jax.jit(lambda x, y_bar: jax.vjp(lambda x: model(x, ps, st)[0], x)[1](y_bar)[0])
    table = {}
    for n in (1, 32):
        x = np.random.default_rng(0).normal(size=(n, 4)).astype("float32")
        on_device, ones = jnp.asarray(x), jnp.ones((n, 4))
        y_bar = np.asarray(ones)
        calls, inside = {}, set()
        for flags, library in libraries.items():
            y = np.zeros_like(x)
            given = [ctypes.c_int(INSIDE), ctypes.c_int(n), *pointers(x, y)]
            calls[f"C from C, {flags}"] = lambda f=library.repeat, given=given, y=y: (f(*given), y)[1]
            inside.add(f"C from C, {flags}")
        y, library = np.zeros_like(x), libraries["fast, with NaN"]
        given = [ctypes.c_int(n), *pointers(x, y)]
        calls["C by ctypes, pointers ready"] = lambda f=library.net_forward, given=given, y=y: (f(*given), y)[1]
        calls["NumPy source"] = lambda x=x: forward(x)
        calls["jit"] = lambda x=on_device: jitted(x)
        for peer, make in (("torch", torch_net), ("onnxruntime", onnx_net)):
            if importlib.util.find_spec(peer):
                calls |= make(ps, x)
        for name, row in rows(calls, np.asarray(jitted(x)), inside).items():
            table.setdefault(name, []).extend(row)
        x_bar = np.zeros_like(x)
        given = [ctypes.c_int(INSIDE), ctypes.c_int(n), *pointers(x, y_bar, x_bar)]
        in_c = "gradient: C from C, fast, with NaN"
        calls = {
            in_c: lambda f=library.repeat_vjp, given=given, x_bar=x_bar: (f(*given), x_bar)[1],
            "gradient: jit": lambda x=on_device, y_bar=ones: pull(x, y_bar),
        }
        for name, row in rows(calls, np.asarray(pull(x, y_bar)), {in_c}).items():
            table.setdefault(name, []).extend(row)
    print("## The net 4-32-16-4, float32\n")
    head = ("called by", "batch 1 (us)", "deviation", "batch 32 (us)", "deviation")
    timing.table(head, [(name, *row) for name, row in table.items()], "net")
    kilobytes = {file: (FOLDER / file).stat().st_size / 1000 for file in ("net.c", "net.py")}
    print(f"\nC source with its gradient {kilobytes['net.c']:.0f} kB, NumPy source {kilobytes['net.py']:.0f} kB\n")


def solve():
    """One sample: in C the steps of each sample are its own, and jit's batch takes common ones."""
    field = lux.Chain(lux.Dense(4, 32, jnp.tanh), lux.Dense(32, 4))
    fixed = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.05}
    table = {}
    for kind, options in (("20 steps of Tsit5", fixed), ("adaptive", {})):
        model = lux.NeuralODE(field, ts=jnp.array([0.0, 1.0]), output="final", **options)
        ps, st = lux.setup(jax.random.key(0), model)
        st, name = lux.testmode(st), kind.split()[-1]
        lux.export.save(FOLDER / f"{name}.c", model, ps, st, jnp.ones((1, 4)))
        lux.export.save(FOLDER / f"{name}.py", model, ps, st, jnp.ones((1, 4)))
        driver = DRIVER[: DRIVER.index("void repeat_vjp")]
        x = np.random.default_rng(0).normal(size=(1, 4)).astype("float32")
        jitted, on_device = jax.jit(lambda x, model=model, ps=ps, st=st: model(x, ps, st)[0]), jnp.asarray(x)
        forward = runpy.run_path(str(FOLDER / f"{name}.py"))["forward"]
        calls, inside = {}, set()
        for how, flags in FLAGS.items():
            y, library = np.zeros_like(x), compiled(name, flags, driver)
            given = [ctypes.c_int(INSIDE), ctypes.c_int(1), *pointers(x, y)]
            calls[f"C from C, {how}"] = lambda f=library.repeat, given=given, y=y: (f(*given), y)[1]
            inside.add(f"C from C, {how}")
        calls |= {"NumPy source": lambda f=forward, x=x: f(x), "jit": lambda f=jitted, x=on_device: f(x)}
        for row, values in rows(calls, np.asarray(jitted(x)), inside).items():
            table.setdefault(row, []).extend(values)
    print("## A neural ODE, 4-32-4, float32, one sample from 0 to 1\n")
    head = ("called by", "20 steps (us)", "deviation", "adaptive (us)", "deviation")
    timing.table(head, [(name, *row) for name, row in table.items()], "solve")


if __name__ == "__main__":
    timing.machine()
    net()
    solve()
