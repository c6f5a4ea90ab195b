"""Fixed points and their gradients: lux_sciml, a hand-written iteration, optimistix with GMRES, and torchdeq.

The cell is z' = tanh(z W + x U) with a contraction of 0.5, the forward tolerance 1e-4 in the largest 2-norm of a
sample, torchdeq's criterion; gradients are implicit, by W and U. Then, on ill-conditioned maps, the evaluations that
solvers need, and the linear solvers of the backward pass against the number of unknowns.
"""

import argparse
import functools

import timing

timing.pin_allocator()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import lineax as lx  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
import torch  # noqa: E402
import torchdeq  # noqa: E402
from low_overhead import COMPILER, torch_compiled  # noqa: E402

import lux_sciml as lux  # noqa: E402

SIZES = {"small": (64, 32), "medium": (256, 128), "large": (1024, 256)}  # width, batch
TOLERANCE, MAX_STEPS = 1e-4, 40


def sample_norm(g):
    return jnp.max(jnp.linalg.norm(g, axis=-1))


def problem(width, batch):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((width, width)).astype(np.float32)
    u = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    return 0.5 * w / np.linalg.norm(w, 2), u, rng.standard_normal((batch, width)).astype(np.float32)


class TanhCell(lux.EquilibriumCell):
    """tanh(z W + x U), the second product once a solve."""

    width: int

    def init_params(self, key):
        return {"w": jnp.zeros((self.width, self.width)), "u": jnp.zeros((self.width, self.width))}

    def prepare(self, x, ps, st):
        return ps["w"], x @ ps["u"]

    def step(self, z, prepared, st):
        w, injected = prepared
        return jnp.tanh(z @ w + injected), st


def loss_gradient(solve):
    return jax.jit(jax.grad(lambda ps, x: jnp.sum(solve(ps, x) ** 2)))


def ours(width, batch, **options):
    model = lux.DeepEquilibrium(TanhCell(width), max_steps=MAX_STEPS, **options)
    _, st = lux.setup(jax.random.key(0), model)
    return loss_gradient(lambda ps, x: model(x, {"cell": ps}, st)[0])


def optimistix_gmres(width, batch):
    adjoint = optx.ImplicitAdjoint(lx.GMRES(TOLERANCE, TOLERANCE))
    solver = optx.FixedPointIteration(0.0, TOLERANCE, norm=sample_norm)

    def cell(z, args):
        w, injected = args
        return jnp.tanh(z @ w + injected)

    def solve(ps, x):
        args = (ps["w"], x @ ps["u"])
        return optx.fixed_point(
            cell, solver, jnp.zeros_like(x), args, max_steps=MAX_STEPS, adjoint=adjoint, throw=False
        ).value

    return loss_gradient(solve)


def hand_written(width, batch):
    def cell(z, args):
        w, injected = args
        return jnp.tanh(z @ w + injected)

    def iterate(f, z, norm, tolerance):
        def body(carry):
            z, _, i = carry
            z_next = f(z)
            return z_next, norm(z_next - z), i + 1

        carry = (z, jnp.array(jnp.inf), 0)
        return jax.lax.while_loop(lambda c: (c[1] >= tolerance) & (c[2] < MAX_STEPS), body, carry)[0]

    @jax.custom_vjp
    def solve(args, z0):
        return iterate(lambda z: cell(z, args), z0, sample_norm, TOLERANCE)

    def forward(args, z0):
        z = solve(args, z0)
        return z, (z, args)

    def backward(saved, g):
        z, args = saved
        _, pull = jax.vjp(cell, z, args)
        adjoint = iterate(lambda v: g + pull(v)[0], g, optx.max_norm, TOLERANCE * optx.max_norm(g))
        return pull(adjoint)[1], jnp.zeros_like(z)

    solve.defvjp(forward, backward)
    return loss_gradient(lambda ps, x: solve((ps["w"], x @ ps["u"]), jnp.zeros_like(x)))


def torch_step(solver, w, u, x, compiled=False):
    w, u, x = (torch.tensor(a, requires_grad=i < 2) for i, a in enumerate((w, u, x)))
    options = dict(f_max_iter=MAX_STEPS, b_max_iter=MAX_STEPS, f_tol=TOLERANCE, b_tol=TOLERANCE)
    deq = torchdeq.get_deq(core="sliced", f_solver=solver, b_solver="fixed_point_iter", ift=True, **options)
    cell = lambda z, injected: torch.tanh(z @ w + injected)  # noqa: E731
    cell = torch_compiled(cell) if compiled else cell

    def step():
        injected = x @ u
        z, _ = deq(lambda z: cell(z, injected), torch.zeros_like(x))
        return torch.autograd.grad((z[-1] ** 2).sum(), (w, u))

    return step


def gradients(width, batch, seconds):
    plain = optx.FixedPointIteration(0.0, TOLERANCE, norm=sample_norm)
    w, u, x = problem(width, batch)
    ps, x_jax = {"w": jnp.asarray(w), "u": jnp.asarray(u)}, jnp.asarray(x)
    compiled = {
        "floor: hand-written iteration": hand_written(width, batch),
        "lux_sciml, fixed-point iteration": ours(width, batch, solver=plain),
        "lux_sciml, default (Anderson, per sample)": ours(width, batch, rtol=0.0, atol=TOLERANCE),
        "lux_sciml, Anderson, joint": ours(width, batch, solver=lux.Anderson(0.0, TOLERANCE, norm=sample_norm)),
        "optimistix, GMRES": optimistix_gmres(width, batch),
    }
    steps = {name: functools.partial(f, ps, x_jax) for name, f in compiled.items()}
    for solver in ("fixed_point_iter", "anderson"):
        steps[f"torchdeq, {solver}"] = torch_step(solver, w, u, x)
    if COMPILER:
        steps["torchdeq, fixed_point_iter, the cell by `torch.compile`"] = torch_step("fixed_point_iter", w, u, x, True)
    found = {name: step() for name, step in steps.items()}
    first = {name: np.asarray(g["w"] if isinstance(g, dict) else g[0]) for name, g in found.items()}
    reference = first["floor: hand-written iteration"]
    errors = {name: float(np.abs(g - reference).max() / np.abs(reference).max()) for name, g in first.items()}
    times = timing.interleaved(steps, seconds=seconds, least=5)
    base = times["floor: hand-written iteration"]
    print(f"\nwidth {width}, batch {batch}: gradient of a solve")
    head = ("gradient of a solve", "median (ms)", "spread", "this / hand-written", "differs by")
    rows = [(n, t * 1e3, f"{t.spread:.0%}", t / base, errors[n]) for n, t in times.items()]
    timing.table(head, rows, f"{width}, {batch}")


def evaluations():
    print("\nevaluations until the largest entry of f(z) - z is below a tolerance, from zero, in float64")
    rates, rng = np.linspace(0.5, 0.99, 50), np.random.default_rng(0)
    w = rng.standard_normal((64, 64))
    w = 0.9 * w / np.linalg.norm(w, 2)
    x = rng.standard_normal(64)
    maps = {
        "diag(0.5 ... 0.99), n = 50, 1e-6": (lambda z, xp: rates_of(z) * z + 1, 50, 1e-6),
        "tanh, contraction 0.9, n = 64, 1e-8": (lambda z, xp: xp.tanh(z @ w_of(z) + x_of(z)), 64, 1e-8),
    }

    def like(array):
        return lambda z: torch.tensor(array) if isinstance(z, torch.Tensor) else array

    rates_of, w_of, x_of = like(rates), like(w), like(x)
    rows = []
    for name, (f, n, tolerance) in maps.items():
        row = [name]
        kinds = [optx.FixedPointIteration(0.0, tolerance), lux.Anderson(0.0, tolerance), lux.Broyden(0.0, tolerance)]
        for solver in kinds:
            sol = optx.fixed_point(lambda z, a, f=f: f(z, jnp), solver, jnp.zeros(n), max_steps=4000, throw=False)
            row.append(int(sol.stats["num_steps"]))
        for solver in ("anderson", "broyden"):
            row.append(torch_evaluations(solver, f, n, tolerance))
        rows.append(tuple(row))
    head = ("map", "plain", "lux Anderson", "lux Broyden", "torchdeq anderson", "torchdeq broyden")
    timing.table(head, rows, "evaluations")


def torch_evaluations(solver, f, n, tolerance, most=4000):
    """The first evaluation whose residual is below the tolerance, counted in the function itself."""
    count, first = 0, None

    def counted(z):
        nonlocal count, first
        count += 1
        out = f(z, torch)
        if first is None and float((out - z).abs().max()) < tolerance:
            first = count
        return out

    deq = torchdeq.get_deq(core="sliced", f_solver=solver, f_max_iter=most, f_tol=tolerance)
    with torch.no_grad():
        deq(counted, torch.zeros(1, n, dtype=torch.float64))
    return first if first is not None else f"> {count}"


def linear_solvers(seconds):
    print("\nlinear solves of the backward pass, contraction 0.5, relative tolerance 1e-5: ms")
    rows = []
    for samples in (1, 32):
        for width in (4, 8, 16, 32, 64, 128, 256)[: 7 if samples == 1 else 5]:
            w, _, x = problem(width, samples)
            x = jnp.asarray(x)
            slopes = 1 - jnp.tanh(x) ** 2
            calls = {}
            for name, linear in {
                "dense": lx.LU(),
                "lux, fixed-point": lux.FixedPointLinearSolver(optx.FixedPointIteration(1e-5, 1e-5)),
                "lux, Anderson": lux.FixedPointLinearSolver(lux.Anderson(1e-5, 1e-5)),
                "GMRES": lx.GMRES(1e-5, 1e-5),
            }.items():

                def solve(b, slope, w, linear=linear):
                    operator = lx.FunctionLinearOperator(lambda v: slope * (v @ w) - v, jax.eval_shape(lambda: b))
                    return linear.compute(linear.init(operator, {}), b, {})[0]

                calls[name] = functools.partial(jax.jit(jax.vmap(solve, (0, 0, None))), x, slopes, jnp.asarray(w))
            times = timing.interleaved(calls, seconds=seconds)
            head = f"{samples} of {width}" if samples > 1 else f"{width}"
            rows.append((head, *(t * 1e3 for t in times.values())))
    timing.table(("unknowns", *times), rows, "linear solves")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each table")
    parser.add_argument("--part", choices=(*SIZES, "linear", "evaluations"), help="only this one")
    options = parser.parse_args()
    timing.machine()
    for name, size in SIZES.items():
        if options.part in (name, None):
            gradients(*size, options.seconds)
    if options.part in ("linear", None):
        linear_solvers(options.seconds / 8)
    if options.part in ("evaluations", None):
        jax.config.update("jax_enable_x64", True)
        evaluations()


if __name__ == "__main__":
    main()
