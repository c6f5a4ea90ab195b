"""What a repeated call of `minimize` costs beside the method: 100 calls on a small neural ODE, of which none compiles.

The overhead is the time of a call without the time inside the compiled programs.
"""

import timing

timing.pin_allocator()

import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import optimistix as optx  # noqa: E402

import lux_sciml as lux  # noqa: E402
from lux_sciml.optimize import programs  # noqa: E402

CALLS, STEPS = 100, 3
compiled, traced, inside = [], [], []
run = programs._run


def timed(*arguments):
    begin = time.perf_counter()
    out = jax.block_until_ready(run(*arguments))
    inside.append(time.perf_counter() - begin)
    return out


def count(event, _, **about):
    if event.endswith("backend_compile_duration"):
        compiled.append(about["fun_name"])


def main():
    timing.machine()
    jax.monitoring.register_event_duration_secs_listener(count)
    programs._run = timed
    model = lux.Chain(lambda u: u**3, lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 2))
    node = lux.NeuralODE(model, ts=jnp.linspace(0.0, 1.5, 30))
    ps, st = lux.setup(jax.random.key(0), node)
    u0, truth = jnp.array([2.0, 0.0]), jnp.ones((30, 2))
    options = {"weights": np.linspace(0.5, 1.0, 30)}

    def loss(ps):
        traced.append(1)
        sol, _ = node(u0, ps, st)
        return jnp.mean((sol.ys - truth) ** 2 * options["weights"][:, None])

    def other_data():
        options["weights"] = options["weights"] + 0.01

    calls = {
        '"L-BFGS-B"': (lambda: "L-BFGS-B", lambda: None),
        "optax.adam(1e-2), made anew": (lambda: optax.adam(1e-2), lambda: None),
        "optimistix.BFGS, made anew": (lambda: optx.BFGS(1e-6, 1e-6), lambda: None),
        '"L-BFGS-B", other closed-over data': (lambda: "L-BFGS-B", other_data),
    }
    rows = []
    for name, (method, change) in calls.items():
        overheads = []
        for i in range(CALLS + 2):
            change()
            if i == 2:
                compiled.clear(), traced.clear(), overheads.clear()
            inside.clear()
            begin = time.perf_counter()
            lux.minimize(loss, ps, method=method(), max_steps=STEPS)
            overheads.append(time.perf_counter() - begin - sum(inside))
        overhead = timing.medians({f"lux.minimize, {name}": overheads})[f"lux.minimize, {name}"]
        rows.append((name, overhead * 1e3, f"{overhead.spread:.0%}", len(traced), len(compiled)))
    timing.table(("call", "overhead, median (ms)", "spread", "traces", "compiles"), rows, "overhead")


if __name__ == "__main__":
    main()
