"""What a repeated call of `minimize` costs beside the method itself: 100 calls on a small neural ODE, none compiles."""

import timing

timing.pin_allocator()

import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import optimistix as optx  # noqa: E402
import scipy.optimize  # noqa: E402

import lux_sciml as lux  # noqa: E402

CALLS, STEPS = 100, 3
compiled, traced = [], []


def count(event, _, **about):
    if event.endswith("backend_compile_duration"):
        compiled.append(about["fun_name"])


def main():
    timing.machine()
    jax.monitoring.register_event_duration_secs_listener(count)
    model = lux.Chain(lambda u: u**3, lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 2))
    node = lux.NeuralODE(model, ts=jnp.linspace(0.0, 1.5, 30))
    ps, st = lux.setup(jax.random.key(0), node)
    u0, truth = jnp.array([2.0, 0.0]), jnp.ones((30, 2))
    options = {"weight": 1.0, "grid": np.linspace(0.0, 1.0, 30)}

    def loss(ps):
        traced.append(1)
        sol, _ = node(u0, ps, st)
        return options["weight"] * jnp.mean((sol.ys - truth) ** 2 * options["grid"][:, None])

    value_and_grad = jax.jit(jax.value_and_grad(lambda flat: loss(lux.ComponentVector(flat, ps.layout))))
    start = np.asarray(ps.data, np.float64)

    def plain(flat):
        value, gradient = value_and_grad(flat.astype(np.float32))
        return float(value), np.asarray(gradient, np.float64)

    def scipy_alone():
        scipy.optimize.minimize(plain, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})

    def ours(make, change=lambda: None):
        def call():
            change()
            lux.minimize(loss, ps, method=make(), max_steps=STEPS)

        return call

    def other_data():
        options["grid"] = options["grid"] + 0.01

    calls = {
        "SciPy alone, L-BFGS-B": scipy_alone,
        '"L-BFGS-B"': ours(lambda: "L-BFGS-B"),
        "optax.adam(1e-2), made anew": ours(lambda: optax.adam(1e-2)),
        "optimistix.BFGS, made anew": ours(lambda: optx.BFGS(1e-6, 1e-6)),
        '"L-BFGS-B", other data each time': ours(lambda: "L-BFGS-B", other_data),
    }
    rows = []
    for name, call in calls.items():
        call(), call()
        compiled.clear(), traced.clear()
        times = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        rows.append((name, 1e3 * float(np.median(times)), len(traced), len(compiled)))
    timing.table(("call", "median (ms)", "traces", "compiles"), rows)


if __name__ == "__main__":
    main()
