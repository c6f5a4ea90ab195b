"""Gradients through a solve by each adjoint: time, compile time, memory and error.

    python benchmarks/bench_adjoints.py sizes|batches|stiff|error|steps

A tanh net, the solution at the end of the time, the sum of its squares. `sizes`: one sample, parameters and steps vary;
`batches`: 64 samples, as one equation and each independently; `stiff`: relaxation times from 1 to 1e-4, by Kvaerno5;
`error`: of the gradient, against a solve at rtol 1e-11; `steps`: many fixed steps of 64 samples, where memory counts,
timed up to 1000 of them, with the difference of the reversible gradient from checkpoints of the same pairs of states.
"""

import sys

import timing

timing.pin_allocator()

import time  # noqa: E402

import diffrax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lux_sciml as lux  # noqa: E402
from lux_sciml.diffeq.adjoints.reversible import Reversible  # noqa: E402
from lux_sciml.diffeq.solvers.runge_kutta import unrolled  # noqa: E402

SIZES = {"1e2": (2, 14), "1e4": (8, 95), "1e6": (16, 980)}  # state, width
ADJOINTS = ("checkpointed", "direct", "backsolve", "gauss", "reversible")
HEAD = ("parameters", "steps", "adjoint", "forward (ms)", "gradient (ms)", "compile (s)", "temporary memory (MB)")


class Relaxation(lux.Wrapper):
    """Each component follows the net's, at a rate of its own."""

    net: lux.Layer

    def forward(self, y, ps, st):
        aim, st = self.net.forward(y, ps, st)
        return jnp.logspace(0.0, 4.0, y.shape[-1], dtype=y.dtype) * (aim - y), st


def problem(size, span, batch, dtype, stiff=False, **options):
    """A function from adjoint to `(loss, steps)`, and parameters."""
    state, width = SIZES[size]
    net = lux.Chain(lux.Dense(state, width, jnp.tanh), lux.Dense(width, width, jnp.tanh), lux.Dense(width, state))
    node = lux.NeuralODE(Relaxation(net) if stiff else net, ts=[0.0, span], **options)
    ps, st = lux.setup(jax.random.key(0), node, dtype=dtype)
    shape = (batch, state) if batch else (state,)
    y0 = jax.random.normal(jax.random.key(1), shape, dtype)
    steps = int(jnp.max(node(y0, ps, st)[0].stats["num_steps"]))

    def loss_of(adjoint):
        layer = node.replace(adjoint=adjoint, output="final")
        return lambda ps: jnp.sum(layer(y0, ps, st)[0] ** 2)

    return loss_of, ps, steps


def rows(label, adjoints, *args, turns=5, **options):
    loss_of, ps, steps = problem(*args, **options)
    calls, compiled = {"forward": None}, {}
    calls["forward"] = jax.jit(loss_of("checkpointed")).lower(ps).compile()
    for name in adjoints:
        start = time.perf_counter()
        compiled[name] = jax.jit(jax.value_and_grad(loss_of(name))).lower(ps).compile()
        seconds = time.perf_counter() - start
        calls[name] = compiled[name]
        compiled[name] = (seconds, compiled[name].memory_analysis().temp_size_in_bytes / 1e6)
    named = {f"lux, {k}": (lambda f=f: f(ps)) for k, f in calls.items()}
    times = dict(zip(calls, timing.interleaved(named, turns=turns, seconds=15.0).values(), strict=True))
    return [
        (label, steps, name, 1e3 * times["forward"], 1e3 * times[name], seconds, memory)
        for name, (seconds, memory) in compiled.items()
    ]


def sizes(which):
    out = []
    for size in which:
        adjoints = ADJOINTS if size != "1e6" else ("checkpointed", "gauss", "reversible")
        for span in (1.0, 20.0):
            few = ("checkpointed", "gauss", "reversible")
            out += rows(size, adjoints if span == 1.0 else few, size, span, 0, jnp.float32)
    timing.table(HEAD, out, "sizes")


def batches(which):
    out = []
    for size in which:
        for batching in ("joint", "vmap"):
            label = f"{size}, {batching}"
            few = ("checkpointed", "gauss", "reversible")
            out += rows(label, few, size, 5.0, 64, jnp.float32, batching=batching)
    timing.table(HEAD, out, "batches")


def stiff(which):
    out = []
    for size in which:
        options = {"stiff": True, "solver": diffrax.Kvaerno5()}
        out += rows(size, ("checkpointed", "gauss"), size, 5.0, 0, jnp.float64, **options)
    timing.table(HEAD, out, "stiff")


def error(which):
    adjoints = {name: name for name in ("checkpointed", "backsolve", "gauss", "reversible")}
    for coupling in (0.7, 0.5):
        adjoints[f"reversible, {coupling}, 64 anchors"] = lux.ReversibleAdjoint(coupling=coupling, anchors=64)
    out = []
    for size in which:
        loss_of, ps, _ = problem(size, 5.0, 0, jnp.float64, rtol=1e-11, atol=1e-13)
        exact = jax.grad(loss_of("checkpointed"))(ps).data
        for rtol in (1e-4, 1e-6, 1e-8):
            loss_of, ps, _ = problem(size, 5.0, 0, jnp.float64, rtol=rtol, atol=rtol / 100)
            found = [jax.jit(jax.grad(loss_of(adjoint)))(ps).data for adjoint in adjoints.values()]
            out.append((size, rtol, *(_relative(gradient, exact) for gradient in found)))
    timing.table(("parameters", "rtol", *adjoints), out, "error")


def steps(which):
    """`which` are numbers of steps."""
    out = []
    for count in map(int, which):
        net = lux.Chain(lux.Dense(32, 32, jnp.tanh), lux.Dense(32, 32))
        options = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 5.0 / count, "max_steps": count + 1}
        node = lux.NeuralODE(net, ts=[0.0, 5.0], output="final", **options)
        ps, st = lux.setup(jax.random.key(0), node)
        y0 = jax.random.normal(jax.random.key(1), (64, 32))

        def gradient(adjoint, solver=node.solver, node=node, ps=ps, st=st, y0=y0):
            layer = node.replace(adjoint=adjoint, solver=solver)
            return jax.jit(jax.value_and_grad(lambda ps: jnp.sum(layer(y0, ps, st)[0] ** 2))).lower(ps).compile()

        adjoints = {"checkpointed": "checkpointed", "diffrax's": diffrax.RecursiveCheckpointAdjoint(),
                    "reversible": "reversible", "backsolve": "backsolve"}  # fmt: skip
        compiled = {name: gradient(adjoint) for name, adjoint in adjoints.items()}
        times, rounding = dict.fromkeys(compiled, float("nan")), float("nan")
        if count <= 1000:
            named = {k if "diffrax" in k else f"lux, {k}": (lambda f=f, ps=ps: f(ps)) for k, f in compiled.items()}
            found = timing.interleaved(named, turns=3, seconds=15.0)
            times = dict(zip(compiled, found.values(), strict=True))
            pair = gradient(adjoints["diffrax's"], Reversible(unrolled(diffrax.Tsit5())))
            rounding = _relative(compiled["reversible"](ps)[1].data, pair(ps)[1].data)
        for name, f in compiled.items():
            memory = f.memory_analysis().temp_size_in_bytes / 1e6
            out.append((count, name, 1e3 * times[name], memory, rounding if name == "reversible" else ""))
    timing.table(("steps", "adjoint", "gradient (ms)", "temporary memory (MB)", "difference"), out, "steps")


def _relative(found, exact):
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


def main():
    timing.machine()
    parts = {"sizes": sizes, "batches": batches, "stiff": stiff, "error": error, "steps": steps}
    defaults = {"sizes": SIZES, "batches": ("1e2", "1e4"), "stiff": ("1e2", "1e4"), "error": ("1e2",)}
    defaults["steps"] = (100, 1000, 10_000)
    for name in sys.argv[1:2] or parts:
        print(f"\n## {name}\n")
        jax.config.update("jax_enable_x64", name in ("stiff", "error"))
        parts[name](sys.argv[2:] or defaults[name])


if __name__ == "__main__":
    main()
