"""Steps of implicit solvers with diffrax's default root finder and with the one that layers take.

y' = tanh(A y + b) + tanh(B y + c) in two dimensions, from 0 to 1, float64: smooth, and not stiff.
"""

import timing

timing.pin_allocator()

import diffrax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optimistix  # noqa: E402

import lux_sciml as lux  # noqa: E402


def main():
    timing.machine()
    jax.config.update("jax_enable_x64", True)
    net = lux.Chain(lux.Dense(2, 2, jnp.tanh))
    ps, st = lux.setup(jax.random.key(0), lux.SplitODE(net, net))
    f = lux.vector_field(net, st["explicit"])
    split = diffrax.MultiTerm(
        *(diffrax.ODETerm(lambda t, y, ps, name=name: f(t, y, ps[name])) for name in ("explicit", "implicit"))
    )
    whole = diffrax.ODETerm(lambda t, y, ps: f(t, y, ps["explicit"]) + f(t, y, ps["implicit"]))
    chord = diffrax.with_stepsize_controller_tols(optimistix.Chord)()
    rows = []
    for kind, term in ((diffrax.KenCarp4, split), (diffrax.Kvaerno5, whole)):
        for name, solver in (("default", kind()), ("Chord", kind(root_finder=chord))):
            row = [kind.__name__, name]
            for rtol in (1e-3, 1e-6, 1e-9):
                controller = diffrax.PIDController(rtol, rtol / 100)
                sol = diffrax.diffeqsolve(
                    term, solver, 0.0, 1.0, None, jnp.ones(2), ps, stepsize_controller=controller, throw=False
                )
                steps = f"{sol.stats['num_steps']} ({sol.stats['num_rejected_steps']})"
                row.append(steps if sol.result == diffrax.RESULTS.successful else f"not in {sol.stats['num_steps']}")
            rows.append(tuple(row))
    timing.table(("solver", "root finder", "rtol 1e-3", "rtol 1e-6", "rtol 1e-9"), rows, "steps")


if __name__ == "__main__":
    main()
