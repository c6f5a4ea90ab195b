"""How the cost of a neural ODE's gradient grows, with parameters, layers, state, horizon and batch; the solver's part.

The floor is the number of evaluations of the vector field times what one of them takes in a compiled loop of nothing
else: forward once for the solve, and forward and backward once more for the gradient, which computes each step anew.
It leaves out the sums of stages, which are most of the work where the state is large and the net small: the bare loop
has them, the same number of steps of Tsit5 written by hand, checkpointed, without a controller, an error, or saving.
Equinox with diffrax, called with flat leaves, and torchdiffeq solve the batch as one equation too.
"""

import functools

import timing

timing.pin_allocator()

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchdiffeq  # noqa: E402
from low_overhead import flattened  # noqa: E402
from torch_nets import sequential  # noqa: E402

import lux_sciml as lux  # noqa: E402

REPEATS, RTOL, ATOL = 100, 1e-4, 1e-6
THREADS = torch.get_num_threads()


def width_for(parameters, state, layers):
    """The width of so many hidden layers with about so many parameters."""
    a, b = layers - 1, 2 * state + layers
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


def linear(ps):
    """A layer of Equinox with our weights."""
    layer = eqx.nn.Linear(*ps.weight.shape, key=jax.random.key(0))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (ps.weight.T, ps.bias))


def peers(linears, horizon, y0):
    """Equinox with diffrax, and torchdiffeq, from the same weights: calls for the loss and its gradient."""
    widths = [linears[0].in_features, *(linear.out_features for linear in linears)]
    mlp = eqx.nn.MLP(widths[0], widths[-1], widths[1], len(linears) - 1, jnp.tanh, jnp.tanh, key=jax.random.key(0))
    mlp = eqx.tree_at(lambda mlp: mlp.layers, mlp, tuple(linears))

    @eqx.filter_value_and_grad
    def loss(mlp, y0):
        term = diffrax.ODETerm(lambda t, y, mlp: jax.vmap(mlp)(y))
        controller = diffrax.PIDController(RTOL, ATOL)
        sol = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, horizon, None, y0, mlp, stepsize_controller=controller)
        return jnp.mean(sol.ys[-1] ** 2)

    step, leaves = flattened(loss, mlp)
    net = sequential(linears, *[torch.nn.Tanh()] * len(linears))
    parameters, start, times = list(net.parameters()), torch.tensor(np.array(y0)), torch.tensor([0.0, horizon])

    def by_torch(threads):
        torch.set_num_threads(threads)
        ys = torchdiffeq.odeint(lambda t, y: net(y), start, times, rtol=RTOL, atol=ATOL, method="dopri5")
        value = torch.mean(ys[-1] ** 2)
        return value.detach(), torch.autograd.grad(value, parameters)

    return {
        "Equinox and diffrax": lambda: step(leaves, y0),
        "torchdiffeq": functools.partial(by_torch, THREADS),
        "torchdiffeq, one thread": functools.partial(by_torch, 1),
    }


def case(parameters=10_000, state=2, horizon=1.0, batch=32, layers=2):
    """The measurements of one configuration: parameters, steps, and times of gradient, floor and peers."""
    width = width_for(parameters, state, layers)
    model = lux.MLP(state, (width,) * layers, state, jnp.tanh, last_activation=jnp.tanh)
    node = lux.NeuralODE(model, ts=np.linspace(0.0, horizon, 2), rtol=RTOL, atol=ATOL)
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
    (value, steps), _ = gradient(ps, y0)
    bare = jax.jit(jax.value_and_grad(functools.partial(bare_loss, field, horizon, int(steps))))
    evaluations = 6 * int(steps) + 2  # Tsit5 keeps its last stage; the first step size takes two
    calls = {"lux_sciml": gradient, "floor: forward": forward, "floor: pullback": with_pullback, "bare loop": bare}
    calls = {name: functools.partial(call, ps, y0) for name, call in calls.items()}
    others = peers([linear(ps[f"layer_{i}"]) for i in range(layers + 1)], horizon, y0)
    for name, call in others.items():
        np.testing.assert_allclose(float(call()[0]), value, rtol=0.01, err_msg=name)
    times = timing.interleaved(calls | others, turns=30, seconds=4.0, least=7)
    times["torchdiffeq"] = min(times["torchdiffeq"], times["torchdiffeq, one thread"])  # which wins depends on the size
    floor = evaluations * (times["floor: forward"] + times["floor: pullback"]) / REPEATS
    ours = times["lux_sciml"]
    ratios = [ours / floor, ours / times["bare loop"]]
    return (
        ps.size,
        int(steps),
        ours * 1e3,
        *ratios,
        *(times[name] * 1e3 for name in PEERS),
        ours / min(times[name] for name in PEERS),
    )


SWEEPS = {
    "parameters": [100, 1_000, 10_000, 100_000, 1_000_000],
    "layers": [2, 4, 8, 16],
    "state": [2, 16, 128, 1024],
    "horizon": [1.0, 10.0, 100.0],
    "batch": [1, 32, 256, 2048],
}
PEERS = "Equinox and diffrax", "torchdiffeq"
HEAD = (
    *("growing", "to", "parameters", "steps", "gradient (ms)", "/ floor", "/ bare loop"),
    *(f"{name} (ms)" for name in PEERS),
    "ours / faster peer",
)


def main():
    timing.machine()
    rows = [(name, value, *case(**{name: value})) for name, values in SWEEPS.items() for value in values]
    timing.table(HEAD, rows, "growth")


if __name__ == "__main__":
    main()
