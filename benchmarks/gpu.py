"""The core of the tests, and what steps cost, on the devices that JAX has: a table with device and versions.

python benchmarks/gpu.py [--output devices_report.md] [--no-tests]

It is meant for a GPU or TPU, needs the extra `test`, and takes less than eight minutes; PyTorch and torchdiffeq are
compared where they are installed.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import itertools
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the tests run in a process beside this one

import timing

timing.pin_allocator()

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxlib  # noqa: E402
import lineax as lx  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import optimistix as optx  # noqa: E402

import lux_sciml as lux  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "distributed"))
from hlo import collectives  # noqa: E402

MOST_TESTS = 330.0  # seconds
SIZES = {"4-32-32-4, batch 32": (4, 32, 32), "256-1024-1024-256, batch 1024": (256, 1024, 1024)}  # n, width, batch


def about():
    device = jax.devices()[0]
    rows = [
        ("device", f"{len(jax.devices())} x {device.device_kind} ({device.platform})"),
        ("driver", getattr(device.client, "platform_version", "unknown").replace("\n", ", ")),
        ("jax, jaxlib", f"{jax.__version__}, {jaxlib.__version__}"),
        ("diffrax, equinox, optimistix", ", ".join(m.__version__ for m in (diffrax, eqx, optx))),
        ("Python, processor", f"{platform.python_version()}, {os.cpu_count()} cores {platform.machine()}"),
    ]
    timing.table(("what", "which"), rows)


def products():
    """How exact products of float32 matrices are, by JAX's precision."""
    a, b = np.random.default_rng(0).normal(size=(2, 1024, 1024))
    exact, rows = a @ b, []
    for precision in ("default", "high", "highest"):
        c = jnp.matmul(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), precision=precision)
        rows.append((precision, float(np.max(np.abs(np.asarray(c, np.float64) - exact)) / np.max(np.abs(exact)))))
    timing.table(("precision of float32 products, 1024", "largest error / largest element"), rows)


def tests():
    """The mark `gpu`, with all digits of products."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "-p", "no:cacheprovider", "--no-header"]
    environment = {**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=MOST_TESTS)
        lines = done.stdout.strip().splitlines()
        outcome = "; ".join([line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:])
    except subprocess.TimeoutExpired:
        outcome = f"not done after {MOST_TESTS:g} s"
    timing.table(("tests of the core", "seconds"), [(outcome, time.perf_counter() - start)])


def chain(call, carry):
    """Steps one after the other, as in training."""
    kept = [carry]

    def step():
        kept[0], out = call(kept[0])
        return out

    return step


def objective(model, ps, st, batch):
    y, st = model(batch[0], ps, st)
    return jnp.mean((y - batch[1]) ** 2), st


def equinox_mlp(n, width, depth, x, y):
    model, tx = eqx.nn.MLP(n, n, width, depth, jnp.tanh, key=jax.random.key(0)), optax.adam(1e-3)

    @eqx.filter_jit(donate="all-except-first")
    def step(batch, model, memory):
        loss, slope = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(batch[0]) - batch[1]) ** 2))(model)
        updates, memory = tx.update(slope, memory)
        return (eqx.apply_updates(model, updates), memory), loss

    return chain(lambda carry: step((x, y), *carry), (model, tx.init(eqx.filter(model, eqx.is_array))))


def torch_mlp(n, width, depth, x, y):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = (torch.tensor(np.asarray(a), device=device) for a in (x, y))
    widths = [n, *[width] * depth, n]
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.Tanh())][:-1]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        loss = torch.mean((model(x) - y) ** 2)
        loss.backward()
        optimizer.step()
        return loss.item()  # and waits

    return step


def steps():
    """A training step: the vector, the tree, one device's mesh, and the peers."""
    for title, (n, width, batch) in SIZES.items():
        model = lux.Chain(lux.Dense(n, width, jnp.tanh), lux.Dense(width, width, jnp.tanh), lux.Dense(width, n))
        x, y = jax.random.normal(jax.random.key(1), (2, batch, n))
        ps, st = lux.setup(jax.random.key(0), model, flat=False)
        start = lux.TrainState.create(model, optax.adam(1e-3), key=jax.random.key(0))
        tree = lux.TrainState.create(model, optax.adam(1e-3), params=ps, state=st)
        meshed = lux.distributed.shard(start, lux.distributed.mesh(devices=jax.devices()[:1]), "full")
        step = lux.train_step(objective)
        moved = collectives(step.lower(meshed, (x, y)).compile().as_text())
        states = {"flat vector": start, "tree": tree, f"sharded on one device, {len(moved)} collectives": meshed}
        call = functools.partial(lambda step, batch, state: step(state, batch), step, (x, y))
        ours = {f"lux_sciml, {name}": chain(call, state) for name, state in states.items()}
        calls = ours | {
            "Equinox, filter_jit": equinox_mlp(n, width, 2, x, y),
        }
        if importlib.util.find_spec("torch"):
            calls["PyTorch, eager, loss read"] = torch_mlp(n, width, 2, x, y)
        shown(f"a step of Adam, {title}", calls, chained=True)


def shown(title, calls, **options):
    times = timing.interleaved(calls, turns=100, seconds=15.0, least=5, **options)
    base = next(iter(times.values()))
    timing.table((title, "median (us)", "times the first"), [(name, t * 1e6, t / base) for name, t in times.items()])
    print(flush=True)


def neural_ode():
    ts, x = jnp.linspace(0.0, 1.0, 20), jax.random.normal(jax.random.key(1), (256, 4))
    net = lux.Chain(lux.Dense(4, 64, jnp.tanh), lux.Dense(64, 64, jnp.tanh), lux.Dense(64, 4))
    mlp = eqx.nn.MLP(4, 4, 64, 2, jnp.tanh, key=jax.random.key(0))

    def ours(batching):
        node = lux.NeuralODE(net, ts=ts, rtol=1e-3, atol=1e-6, dt0=0.05, batching=batching, output="ys")
        ps, st = lux.setup(jax.random.key(0), node)
        for i, linear in enumerate(mlp.layers):
            ps = ps.at[f"layer_{i}.weight"].set(linear.weight.T).at[f"layer_{i}.bias"].set(linear.bias)
        slope = jax.jit(jax.value_and_grad(lambda ps: jnp.mean(node(x, ps, st)[0] ** 2)))
        return lambda: slope(ps)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def slope(mlp, x):
        def solve(y0):
            steps, saveat = diffrax.PIDController(1e-3, 1e-6), diffrax.SaveAt(ts=ts)
            term = diffrax.ODETerm(lambda t, y, mlp: mlp(y))
            return diffrax.diffeqsolve(
                term, diffrax.Tsit5(), 0.0, 1.0, 0.05, y0, mlp, saveat=saveat, stepsize_controller=steps
            ).ys

        return jnp.mean(jax.vmap(solve)(x) ** 2)

    calls = {
        "lux_sciml, one solve of the batch": ours("joint"),
        "lux_sciml, one solve a sample": ours("vmap"),
        "diffrax and Equinox, one solve a sample": lambda: slope(mlp, x),
    }
    if importlib.util.find_spec("torchdiffeq"):
        calls["torchdiffeq, one solve of the batch"] = torch_ode(mlp, x, ts)
    print("losses:", ", ".join(f"{float(call()[0]):.6f}" for call in calls.values()), "\n")
    shown("neural ODE, 4-64-64-4, batch 256, value and gradient", calls)


def torch_ode(mlp, x, ts):
    import torch
    import torchdiffeq

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, ts = (torch.tensor(np.asarray(a), device=device) for a in (x, ts))
    layers = []
    for linear in mlp.layers:
        layer = torch.nn.Linear(linear.in_features, linear.out_features)
        layer.weight.data, layer.bias.data = torch.tensor(np.array(linear.weight)), torch.tensor(np.array(linear.bias))
        layers += [layer, torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers[:-1]).to(device)

    def call():
        net.zero_grad()
        ys = torchdiffeq.odeint(lambda t, y: net(y), x, ts, rtol=1e-3, atol=1e-6, method="dopri5")
        loss = torch.mean(ys**2)
        loss.backward()
        return (loss.item(),)

    return call


class TanhCell(lux.EquilibriumCell):
    """tanh(z W + x)."""

    width: int

    def init_params(self, key):
        return {"w": 0.5 * jax.random.orthogonal(key, self.width)}

    def prepare(self, x, ps, st):
        return ps["w"], x

    def step(self, z, prepared, st):
        w, x = prepared
        return jnp.tanh(z @ w + x), st


@jax.default_matmul_precision("highest")  # with fewer digits, GMRES stagnates above its tolerance
def equilibrium():
    x = jax.random.normal(jax.random.key(1), (256, 256))
    model = lux.DeepEquilibrium(TanhCell(256), max_steps=40)
    ps, st = lux.setup(jax.random.key(0), model)
    slope = jax.jit(jax.value_and_grad(lambda ps: jnp.sum(model(x, ps, st)[0] ** 2)))

    def norm(g):
        return jnp.max(jnp.linalg.norm(g, axis=-1))

    @jax.jit
    @jax.value_and_grad
    def theirs(w):
        solver = optx.FixedPointIteration(0.0, 1e-4, norm=norm)
        adjoint = optx.ImplicitAdjoint(lx.GMRES(1e-4, 1e-4))
        found = optx.fixed_point(
            lambda z, w: jnp.tanh(z @ w + x), solver, jnp.zeros_like(x), w, max_steps=40, adjoint=adjoint, throw=False
        )
        return jnp.sum(found.value**2)

    calls = {"lux_sciml": lambda: slope(ps), "optimistix, GMRES backward": lambda: theirs(ps["cell.w"])}
    print("losses:", ", ".join(f"{float(call()[0]):.4f}" for call in calls.values()), "\n")
    shown("deep equilibrium, width 256, batch 256, value and gradient", calls)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="devices_report.md")
    parser.add_argument("--no-tests", action="store_true")
    options = parser.parse_args()
    text = io.StringIO()

    class Both:
        def write(self, part):
            sys.__stdout__.write(part)
            return text.write(part)

        def flush(self):
            sys.__stdout__.flush()

    start = time.perf_counter()
    with contextlib.redirect_stdout(Both()):
        for part in (about, products, *(() if options.no_tests else (tests,)), steps, neural_ode, equilibrium):
            part()
            print(flush=True)
        print(f"in {time.perf_counter() - start:.0f} s")
    Path(options.output).write_text(text.getvalue())


if __name__ == "__main__":
    main()
