"""Fits where second order pays: Levenberg-Marquardt and SSBroyden against Adam, quasi-Newton methods and SciPy's.

Four problems in float64, five seeds each; name some of them to run these alone: `poisson burgers spiral ude`. The peers
run in the same process, each with the loss and the gradient that suit it best. Times are those of this machine, with
compiling and without the evaluation of errors where they are curves, compiling included where they are totals.

* `poisson`: the Poisson equation on a square, u = sin(pi x) sin(pi y); a 2-32-1 tanh net, 900 points inside and 120 on
  the edge. The relative L2 error on 4000 random points after 1, 2, 5 and 10 seconds.
* `burgers`: viscosity 0.01/pi, a 2-20-20-20-1 tanh net with hard constraints, residual-based adaptive points. The
  relative L2 error on a 50 x 201 grid, against the Cole-Hopf solution.
* `spiral`: a neural ODE of 252 parameters on 30 points of a spiral, after 300 steps of Adam.
* `ude`: a universal Lotka-Volterra equation, 42 unknown weights and 31 noisy points, after 300 steps of Adam. Losses
  below the noise's are overfitting.
"""

import timing

timing.pin_allocator()

import os  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import diffrax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import optimistix  # noqa: E402

import lux_sciml as lux  # noqa: E402
from lux_sciml.derivatives import laplacian  # noqa: E402

SEEDS = range(5)
MARKS = (1, 2, 5, 10)
NU = 0.01 / np.pi


class Clock:
    """A callback that notes an error over time, not counting what it takes to evaluate it, and ends a run in time."""

    def __init__(self, error, seconds):
        self.error, self.seconds, self.points = error, seconds, []
        self.start = self.spent = None

    def __call__(self, step, ps, value):
        now = time.perf_counter()
        if self.start is None:  # the first call is after compiling
            self.start, self.spent = now, 0.0
        at = now - self.start - self.spent
        if not self.points or at > self.points[-1][0] + 0.1:
            self.points.append((at, step, self.error(ps)))
            self.spent += time.perf_counter() - now
        return at > self.seconds

    def after(self, seconds):
        """The last error noted by then, and the step."""
        return [(error, step) for at, step, error in self.points if at <= seconds][-1]


def relative(values, exact):
    return float(np.linalg.norm(np.asarray(values) - exact) / np.linalg.norm(exact))


# --- Poisson ------------------------------------------------------------------------------------------------------


def poisson_problem(seed):
    net = lux.Chain(lux.Dense(2, 32, jnp.tanh), lux.Dense(32, 1))
    ps, st = lux.setup(jax.random.key(seed), net, dtype="float64")

    def u(ps, x):
        return net(x, ps, st)[0][..., 0]

    def inner(ps, x):
        return laplacian(lambda x: u(ps, x), x) + 2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * x))

    middle, side = (np.arange(30) + 0.5) / 30, np.linspace(0, 1, 30)
    walls = [np.stack([side, 0 * side + at], 1) for at in (0.0, 1.0)]
    samples = {
        "inner": np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2),
        "edge": np.concatenate([*walls, *(wall[:, ::-1] for wall in walls)]),
    }
    weights = {name: 1 / np.sqrt(len(x)) for name, x in samples.items()}
    test = np.random.default_rng(1).random((4000, 2))
    exact = np.prod(np.sin(np.pi * test), 1)
    predict = jax.jit(lambda ps: u(ps, test))
    predict(ps)
    return ps, {"inner": inner, "edge": u}, samples, weights, lambda ps: relative(predict(ps), exact)


def sum_of_squares(residuals, samples, weights):
    points = jax.tree.map(jnp.asarray, samples)

    def loss(ps):
        parts = [
            weights[n] ** 2 * jnp.sum(jax.vmap(lambda x, f=f: f(ps, x))(points[n]) ** 2) for n, f in residuals.items()
        ]
        return 0.5 * sum(parts)

    return loss


def poisson():
    print("\n## Poisson\n")
    ours = {"LM": "lm", "SSBroyden": lux.SSBroyden(1e-14, 1e-18)}
    peers = {
        "Adam, cosine from 1e-2": optax.adam(optax.cosine_decay_schedule(1e-2, 20_000)),
        "L-BFGS-B, SciPy": "L-BFGS-B",
        "BFGS, SciPy": "BFGS",
        "least_squares trf, SciPy": "trf",
        "LevenbergMarquardt, optimistix": optimistix.LevenbergMarquardt(1e-14, 1e-14),
    }
    errors = {name: [] for name in [*ours, *peers]}
    for seed in SEEDS:
        ps, residuals, samples, weights, error = poisson_problem(seed)
        loss = sum_of_squares(residuals, samples, weights)
        for name, method in {**ours, **peers}.items():
            clock = Clock(error, MARKS[-1])
            options = dict(method=method, max_steps=10**6, callback=clock)
            if name in ("LM", "least_squares trf, SciPy", "LevenbergMarquardt, optimistix"):
                lux.least_squares(residuals, ps, samples=samples, weights=weights, **options)
            else:
                more = {"options": {"maxcor": 50, "ftol": 0, "gtol": 0}} if method == "L-BFGS-B" else {}
                more = {"options": {"gtol": 0}} if method == "BFGS" else more
                lux.minimize(loss, ps, **options, **more)
            errors[name].append([clock.after(mark) for mark in MARKS])
            print(f"seed {seed}, {name}: {errors[name][-1]}", file=sys.stderr, flush=True)
    rows = []
    for name, found in errors.items():
        medians = [f"{statistics.median(run[i][0] for run in found):.1e}" for i in range(len(MARKS))]
        worst = f"{max(run[-1][0] for run in found):.1e}"
        rows.append((name, *medians, worst, int(statistics.median(run[-1][1] for run in found))))
    timing.table(("median error after", *(f"{mark} s" for mark in MARKS), "worst at 10 s", "steps"), rows, "poisson")


# --- Burgers ------------------------------------------------------------------------------------------------------


def cole_hopf(x, t, nodes=120):
    z, weights = np.polynomial.hermite.hermgauss(nodes)
    y = x[..., None] - np.sqrt(4 * NU * t)[..., None] * z
    exponent = -np.cos(np.pi * y) / (2 * np.pi * NU)
    f = weights * np.exp(exponent - exponent.max(-1, keepdims=True))
    return -(np.sin(np.pi * y) * f).sum(-1) / f.sum(-1)


def burgers_problem(seed):
    body = lux.Chain(lux.Dense(2, 20, jnp.tanh), *[lux.Dense(20, 20, jnp.tanh)] * 2, lux.Dense(20, 1))
    net = lux.HardConstraint(
        body, lambda x: x[..., 1:] * (1 - x[..., :1] ** 2), lambda x: -jnp.sin(jnp.pi * x[..., :1])
    )
    ps, st = lux.setup(jax.random.key(seed), net, dtype="float64")

    def residual(ps, x):
        u = lambda x: net(x, ps, st)[0][0]  # noqa: E731
        along_x = lambda x: jax.jvp(u, (x,), (jnp.array([1.0, 0.0]),))  # noqa: E731
        (value, ux), (_, uxx) = jax.jvp(along_x, (x,), (jnp.array([1.0, 0.0]),))
        return jax.jvp(u, (x,), (jnp.array([0.0, 1.0]),))[1] + value * ux - NU * uxx

    x, t = np.meshgrid(np.linspace(-1, 1, 201), np.linspace(0, 1, 51)[1:])
    exact, grid = cole_hopf(x, t), jnp.asarray(np.stack([x, t], -1))
    predict = jax.jit(lambda ps: net(grid, ps, st)[0][..., 0])
    predict(ps)
    return ps, residual, lambda ps: relative(predict(ps), exact)


def burgers(points=4096, seconds=120):
    print("\n## Burgers\n")
    box = jnp.array([-1.0, 0.0]), jnp.array([1.0, 1.0])
    candidates = lux.sobol_samples(jax.random.key(7), 16_384, *box)
    rows = []
    for seed in SEEDS:
        ps, residual, error = burgers_problem(seed)
        size = jax.jit(lambda ps, residual=residual: jax.vmap(lambda x: residual(ps, x))(candidates))

        def resample(key, ps, size=size):
            return lux.adaptive_samples(key, candidates, size(ps), points)

        def loss(ps, x, residual=residual):
            return jnp.mean(jax.vmap(lambda x: residual(ps, x))(x) ** 2)

        begin = time.perf_counter()
        start = lux.sobol_samples(jax.random.key(8), points, *box)
        adam = optax.adam(optax.cosine_decay_schedule(5e-3, 1500, 0.05))
        warm = lux.minimize(loss, ps, method=adam, args=start, max_steps=1500).params
        spent = time.perf_counter() - begin
        curve = []

        def stop(step, ps, value, begin=begin, curve=curve, error=error):
            at = time.perf_counter() - begin
            if at > 10 * (len(curve) + 1):
                curve.append((round(at), f"{error(ps):.1e}"))
            return at > seconds

        result = lux.least_squares(
            residual,
            warm,
            samples=resample(jax.random.key(seed), warm),
            weights=1 / np.sqrt(points),
            resample=resample,
            resample_every=20,
            key=jax.random.key(100 + seed),
            callback=stop,
        )
        print(f"seed {seed}: {curve}", file=sys.stderr, flush=True)
        rows.append((seed, spent, error(warm), result.steps, time.perf_counter() - begin, error(result.params)))
    timing.table(("seed", "Adam (s)", "error", "LM steps", "in all (s)", "error"), rows, "burgers")
    print(f"\nMedian error {statistics.median(row[-1] for row in rows):.1e}")


# --- neural and universal differential equations ------------------------------------------------------------------


def solved(field, u0, ts):
    control = diffrax.PIDController(1e-10, 1e-10)
    term = diffrax.ODETerm(lambda t, u, _: field(u))
    saveat = diffrax.SaveAt(ts=ts)
    return diffrax.diffeqsolve(
        term, diffrax.Tsit5(), ts[0], ts[-1], None, u0, saveat=saveat, stepsize_controller=control
    ).ys


def spiral_problem(seed):
    ts, u0 = jnp.linspace(0.0, 1.5, 30), jnp.array([2.0, 0.0])
    data = solved(lambda u: u**3 @ jnp.array([[-0.1, 2.0], [-2.0, -0.1]]), u0, ts)
    model = lux.Chain(lambda u: u**3, lux.Dense(2, 50, jnp.tanh), lux.Dense(50, 2))
    node = lux.NeuralODE(model, ts=ts)
    ps, st = lux.setup(jax.random.key(seed), node, dtype="float64")
    return ps, lambda ps: (node(u0, ps, st)[0].ys - data) / np.sqrt(data.size)


def ude_problem(seed):
    """Lotka-Volterra in logarithms, with a net for both interactions, and 2% noise."""
    ts, u0 = jnp.linspace(0.0, 3.0, 31), jnp.log(jnp.array([0.44249296, 4.6280594]))

    def truth(u):
        return jnp.stack([1.3 - 0.9 * jnp.exp(u[1]), 0.8 * jnp.exp(u[0]) - 1.8])

    noise = 0.02 * jax.random.normal(jax.random.key(1000 + seed), (31, 2))
    data = solved(truth, u0, ts) + noise
    net = lux.Chain(lux.Dense(2, 8, jnp.tanh), lux.Dense(8, 2))
    ude = lux.NeuralODE(lux.Chain(lux.SkipConnection(net, lambda y, u: y + jnp.array([1.3, -1.8]))), ts=ts)
    ps, st = lux.setup(jax.random.key(seed), ude, dtype="float64")
    residual = lambda ps: (ude(u0, ps, st)[0].ys - data) / np.sqrt(62)  # noqa: E731
    return ps, residual, float(jnp.mean(noise**2))


def equations(title, problem, target):
    print(f"\n## {title}\n")
    rows = []
    for seed in SEEDS:
        ps, residual, *noise = problem(seed)
        loss = lambda ps, residual=residual: jnp.sum(residual(ps) ** 2)  # noqa: E731
        warm = lux.minimize(loss, ps, method=optax.adam(0.02), max_steps=300)
        row = [seed, *noise, warm.value]
        for fit in (
            lambda residual=residual, warm=warm: lux.least_squares(residual, warm.params, max_steps=100),
            lambda loss=loss, warm=warm: lux.minimize(loss, warm.params, method="L-BFGS-B", max_steps=1000),
        ):
            jax.clear_caches()
            begin = time.perf_counter()
            compiled.clear()
            result = fit()
            value = (2 if isinstance(result, lux.LeastSquaresResult) else 1) * result.history
            reached = np.flatnonzero(value <= (noise[0] if noise else target))
            first = int(reached[0]) if reached.size else "never"
            row += [value.min(), first, result.steps, time.perf_counter() - begin, sum(compiled)]
        rows.append(tuple(row))
    floor = ("noise",) if len(rows[0]) == 13 else ()
    what = "noise" if floor else f"{target:g}"
    columns = [c for n in ("LM", "L-BFGS-B") for c in (n, f"steps to {what}", "steps", "in all (s)", "compiling (s)")]
    timing.table(("seed", *floor, "Adam x300", *columns), rows, title.partition(" ")[0].lower())


compiled = []


def count(event, seconds, **_):
    if event.endswith(("backend_compile_duration", "jaxpr_trace_duration", "jaxpr_to_mlir_module_duration")):
        compiled.append(seconds)


def main():
    timing.machine()
    print(f"load average {os.getloadavg()}")
    jax.config.update("jax_enable_x64", True)
    jax.monitoring.register_event_duration_secs_listener(count)
    parts = {
        "poisson": poisson,
        "burgers": burgers,
        "spiral": lambda: equations("Spiral", spiral_problem, 1e-7),
        "ude": lambda: equations("Universal Lotka-Volterra equation", ude_problem, None),
    }
    for name in sys.argv[1:] or parts:
        parts[name]()
        print(f"\nload average {os.getloadavg()}", flush=True)


if __name__ == "__main__":
    main()
