"""How the cost of a neural ODE's gradient grows with parameters, state, horizon and batch, and what the solver adds.

The floor is the number of evaluations of the vector field times what one of them takes in a compiled loop of nothing
else: forward once for the solve, and forward and backward once more for the gradient, which computes each step anew.
It leaves out the sums of stages, which are most of the work where the state is large and the net small: the bare loop
has them, the same number of steps of Tsit5 written by hand, checkpointed, without a controller, an error, or saving.
"""

import functools

import timing

timing.pin_allocator()

import diffrax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import lux_sciml as lux  # noqa: E402

REPEATS = 100


def width_for(parameters, state):
    """The width of two hidden layers with about so many parameters."""
    a, b = 1, 2 * state + 2
    return max(1, round((-b + (b**2 + 4 * a * parameters) ** 0.5) / (2 * a)))


def bare_loss(field, horizon, steps, ps, y0):
    """The mean square of the last state after equal steps of Tsit5."""
    tableau, h = diffrax.Tsit5.tableau, horizon / steps
    params = ps.tree()

    @jax.checkpoint
    def step(carry, _):
        y, k = carry
        ks = [k]
        for row in tableau.a_lower:
            y1 = y + h * sum(float(a) * k for a, k in zip(row, ks, strict=True) if a)
            ks.append(field(0.0, y1, params))
        return (y1, ks[-1]), None

    (y, _), _ = jax.lax.scan(step, (y0, field(0.0, y0, params)), None, length=steps)
    return jnp.mean(y**2)


def case(parameters=10_000, state=2, horizon=1.0, batch=32):
    """The measurements of one configuration: parameters, evaluations, and times of gradient and floor."""
    width = width_for(parameters, state)
    model = lux.MLP(state, (width, width), state, last_activation=jnp.tanh)
    node = lux.NeuralODE(model, ts=np.linspace(0.0, horizon, 2), rtol=1e-4, atol=1e-6)
    ps, st = lux.setup(jax.random.key(0), node)
    y0 = jax.random.normal(jax.random.key(1), (batch, state))
    field = lux.vector_field(model, st)

    def loss(ps, y0):
        sol, _ = node(y0, ps, st)
        return jnp.mean(sol.ys[-1] ** 2), sol.stats["num_steps"]

    @jax.jit
    def forward(ps, y0):
        ps = ps.tree()
        return jax.lax.fori_loop(0, REPEATS, lambda _, y: 0.9 * y + 0.1 * field(0.0, y, ps), y0)

    @jax.jit
    def with_pullback(ps, y0):
        ps = ps.tree()

        def once(_, carry):
            y, total = carry
            dy, pull = jax.vjp(lambda y, ps: field(0.0, y, ps), y, ps)
            ct_y, ct_ps = pull(y)
            return 0.9 * y + 0.1 * dy + 0.01 * ct_y, jax.tree.map(jnp.add, total, ct_ps)

        return jax.lax.fori_loop(0, REPEATS, once, (y0, jax.tree.map(jnp.zeros_like, ps)))

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, steps), _ = gradient(ps, y0)
    bare = jax.jit(jax.value_and_grad(functools.partial(bare_loss, field, horizon, int(steps))))
    evaluations = 6 * int(steps) + 2  # Tsit5 keeps its last stage; the first step size takes two
    calls = {"gradient": gradient, "forward": forward, "pullback": with_pullback, "bare": bare}
    times = timing.interleaved(
        {n: (lambda call=call: call(ps, y0)) for n, call in calls.items()}, turns=30, seconds=3.0
    )
    floor = evaluations * (times["forward"] + times["pullback"]) / REPEATS
    return (
        ps.size, state, horizon, batch, int(steps), evaluations, times["gradient"] * 1e3,
        times["forward"] / REPEATS * 1e6, times["pullback"] / REPEATS * 1e6, times["gradient"] / floor,
        times["gradient"] / times["bare"],
    )  # fmt: skip


SWEEPS = {
    "parameters": [100, 1_000, 10_000, 100_000, 1_000_000],
    "state": [2, 16, 128, 1024],
    "horizon": [1.0, 10.0, 100.0],
    "batch": [1, 32, 256, 2048],
}
HEAD = (
    "parameters", "state", "horizon", "batch", "steps", "evaluations", "gradient (ms)", "forward (us)",
    "forward and back (us)", "gradient / floor", "gradient / bare loop",
)  # fmt: skip


def main():
    timing.machine()
    for name, values in SWEEPS.items():
        print(f"growing {name}\n")
        timing.table(HEAD, [case(**{name: value}) for value in values])
        print(flush=True)


if __name__ == "__main__":
    main()
