"""Diffrax's published continuous normalizing flow: its Equinox code, the same model here, and torchdiffeq.

The model, the solver with fixed steps, the optimizer and the data's preparation from a gray image are those of
diffrax's documentation, examples/continuous_normalising_flow; the image is a ring, drawn here. All start from the same
weights; the losses of the first steps are printed side by side.
"""

import timing

timing.pin_allocator()

import functools  # noqa: E402
import itertools  # noqa: E402

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402
import torchdiffeq  # noqa: E402
from jax import lax  # noqa: E402
from low_overhead import flattened  # noqa: E402

import lux_sciml as lux  # noqa: E402

BATCH, VIRTUAL, BLOCKS, WIDTH, DEPTH, END, DT, SIDE = 500, 2, 2, 64, 3, 0.5, 0.05, 100
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-5


def data():
    """The pixels of a gray image of a ring as points, standardized, their weights, and the standard deviation."""
    i = jnp.arange(SIDE, dtype=jnp.float32)
    x, y = jnp.broadcast_arrays(i[:, None], i[None, :])
    distance = jnp.hypot(x - SIDE / 2, y - SIDE / 2)
    image = 255 * (1 - jnp.exp(-(((distance - SIDE / 3) / 6) ** 2))).reshape(-1)
    dark = image < 254
    points, weights = jnp.stack([x.reshape(-1), y.reshape(-1)], axis=-1)[dark], (1 - image / image.max())[dark]
    std = points.std(axis=0) + 1e-6
    return (points - points.mean(axis=0)) / std, weights, std


def batch_of(step, points, weights, std):
    """A batch with noise on its points: the same one for all."""
    batches = len(points) // BATCH
    key = jax.random.key(5678)
    order = jax.random.permutation(jax.random.fold_in(key, step // batches), len(points))
    chosen = lax.dynamic_slice_in_dim(order, (step % batches) * BATCH, BATCH)
    noise = jax.random.normal(jax.random.fold_in(key, step), (BATCH, 2)) * 0.5 / std
    return points[chosen] + noise, weights[chosen]


class ConcatSquash(eqx.Module):
    lin1: eqx.nn.Linear
    lin2: eqx.nn.Linear
    lin3: eqx.nn.Linear

    def __init__(self, in_size, out_size, key):
        keys = jax.random.split(key, 3)
        self.lin1 = eqx.nn.Linear(in_size, out_size, key=keys[0])
        self.lin2 = eqx.nn.Linear(1, out_size, key=keys[1])
        self.lin3 = eqx.nn.Linear(1, out_size, use_bias=False, key=keys[2])

    def __call__(self, t, y):
        return self.lin1(y) * jax.nn.sigmoid(self.lin2(t)) + self.lin3(t)


class Func(eqx.Module):
    layers: list

    def __init__(self, key):
        sizes = (2, *[WIDTH] * DEPTH, 2)
        keys = jax.random.split(key, DEPTH + 1)
        self.layers = [ConcatSquash(sizes[i], sizes[i + 1], keys[i]) for i in range(DEPTH + 1)]

    def __call__(self, t, y, args):
        t = jnp.asarray(t)[None]
        for layer in self.layers[:-1]:
            y = jnp.tanh(layer(t, y))
        return self.layers[-1](t, y)


def exact_trace(t, state, func):
    y, _ = state
    dy, pull = jax.vjp(lambda y: func(t, y, None), y)
    (jacobian,) = jax.vmap(pull)(jnp.eye(y.size))
    return dy, jnp.trace(jacobian)


class Published(eqx.Module):
    """The model of the published example."""

    funcs: list

    def __init__(self, key):
        self.funcs = [Func(k) for k in jax.random.split(key, BLOCKS)]

    def __call__(self, y):
        log_prob = 0.0
        for func in reversed(self.funcs):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(exact_trace), diffrax.Tsit5(), END, 0.0, -DT, (y, log_prob), func
            )
            (y,), (log_prob,) = solution.ys
        return log_prob - 0.5 * (y.size * jnp.log(2 * jnp.pi) + jnp.sum(y**2))


def accumulated(value_and_grad, zeros, step):
    """Value and gradient over some batches, as the published code sums them up."""

    def more(i, total):
        return jax.tree.map(jnp.add, total, value_and_grad(step + i))

    total = lax.fori_loop(0, VIRTUAL, more, (jnp.zeros(()), zeros))
    return jax.tree.map(lambda x: x / VIRTUAL, total)


def published(model, dataset, low_overhead=False):
    tx = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    @eqx.filter_value_and_grad
    def grad_loss(model, points, weights):
        return -jnp.mean(weights * jax.vmap(model)(points))

    def make_step(carry, step):
        model, opt_state = carry
        params = eqx.filter(model, eqx.is_inexact_array)
        zeros = jax.tree.map(jnp.zeros_like, params)
        loss, grads = accumulated(lambda i: grad_loss(model, *batch_of(i, *dataset)), zeros, step)
        updates, opt_state = tx.update(grads, opt_state, params)
        return loss, (eqx.apply_updates(model, updates), opt_state)

    start = (model, tx.init(eqx.filter(model, eqx.is_inexact_array)))
    return flattened(make_step, start) if low_overhead else (eqx.filter_jit(make_step), start)


class Squash(lux.Container):
    """The published example's layer for a pair of time and features."""

    lin1: lux.Layer
    lin2: lux.Layer
    lin3: lux.Layer

    def forward(self, x, ps, st):
        t, y = x
        (a, b, c), st = self.run(ps, st, lin1=y, lin2=t, lin3=t)
        return a * jax.nn.sigmoid(b) + c, st


class Velocity(lux.Container):
    """The published vector field, with its time [0, 0.5] stretched to the [0, 1] of a CNF."""

    layers: tuple

    def forward(self, x, ps, st):
        t, y = x
        t = jnp.reshape(t * END, (1,))
        for name, layer in self.children.items():
            y, _ = layer.forward((t, y), ps[name], st[name])
            y = y if name == f"layer_{DEPTH}" else jnp.tanh(y)
        return END * y, st


class Blocks(lux.Container):
    """One flow after the other: the log-densities of points, from the last block, next to the data, to the first."""

    flows: tuple

    def forward(self, x, ps, st):
        total, new = 0.0, dict(st)
        for name, flow in reversed(self.children.items()):
            density, new[name] = flow.forward(x, ps[name], st[name])
            x = density.z
            noise = -0.5 * jnp.sum(x**2 + jnp.log(2 * jnp.pi), axis=-1)
            total = total + density.log_prob - noise
        return total + noise, new


def ours(model, dataset, batching):
    sizes = (2, *[WIDTH] * DEPTH, 2)
    squash = [
        Squash(lux.Dense(m, n), lux.Dense(1, n), lux.Dense(1, n, use_bias=False)) for m, n in itertools.pairwise(sizes)
    ]
    options = {"dt0": DT / END, "stepsize_controller": diffrax.ConstantStepSize(), "batching": batching}
    flow = Blocks((lux.CNF(Velocity(tuple(squash)), **options), lux.CNF(Velocity(tuple(squash)), **options)))
    ps, st = lux.setup(jax.random.key(0), flow)
    for i, func in enumerate(model.funcs):
        for j, layer in enumerate(func.layers):
            for name in ("lin1", "lin2", "lin3"):
                place, linear = f"flows_{i}.layer_{j}.{name}", getattr(layer, name)
                ps = ps.at[f"{place}.weight"].set(linear.weight.T)
                if linear.bias is not None:
                    ps = ps.at[f"{place}.bias"].set(linear.bias)
    tx = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss_of(ps, points, weights):
        return -jnp.mean(weights * flow(points, ps, st)[0])

    @jax.jit
    def make_step(ps, opt_state, step):
        def value_and_grad(i):
            return jax.value_and_grad(loss_of)(ps, *batch_of(i, *dataset))

        loss, grads = accumulated(value_and_grad, jax.tree.map(jnp.zeros_like, ps), step)
        updates, opt_state = tx.update(grads, opt_state, ps)
        return loss, (optax.apply_updates(ps, updates), opt_state)

    return lambda carry, i: make_step(*carry, i), (ps, tx.init(ps))


class TorchSquash(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.linears = torch.nn.ModuleList()
        for linear in (layer.lin1, layer.lin2, layer.lin3):
            module = torch.nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
            module.weight.data = torch.tensor(np.array(linear.weight))
            if linear.bias is not None:
                module.bias.data = torch.tensor(np.array(linear.bias))
            self.linears.append(module)

    def forward(self, t, y):
        a, b, c = self.linears
        return a(y) * torch.sigmoid(b(t)) + c(t)


def torch_step(model, dataset, **solver):
    """As torchdiffeq's own example, examples/cnf.py, takes the trace."""
    funcs = [torch.nn.ModuleList(TorchSquash(layer) for layer in func.layers) for func in model.funcs]
    parameters = [p for func in funcs for p in func.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batch = jax.jit(lambda i: batch_of(i, *dataset))

    def vector_field(func, t, state):
        y, _ = state
        with torch.set_grad_enabled(True):
            y.requires_grad_(True)
            dy = y
            for layer in func[:-1]:
                dy = torch.tanh(layer(t.reshape(1), dy))
            dy = func[-1](t.reshape(1), dy)
            trace = sum(torch.autograd.grad(dy[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(2))
        return dy, trace

    def step(carry, i):
        timing.load(parameters, carry)
        optimizer.zero_grad()
        total = 0.0
        for k in range(VIRTUAL):
            y, weights = (torch.tensor(np.array(x)) for x in batch(i + k))
            log_prob = torch.zeros(BATCH)
            for func in reversed(funcs):
                ys, log_probs = torchdiffeq.odeint(
                    functools.partial(vector_field, func), (y, log_prob), torch.tensor([END, 0.0]), **solver
                )
                y, log_prob = ys[-1], log_probs[-1]
            log_prob = log_prob - 0.5 * (2 * np.log(2 * np.pi) + (y**2).sum(1))
            loss = -(weights * log_prob).mean() / VIRTUAL
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        return total, timing.values(parameters)

    return step, timing.values(parameters)


def main():
    timing.machine()
    dataset = data()
    model = Published(jax.random.key(0))
    timing.compare(
        {
            "Equinox and diffrax, as published": lambda: published(model, dataset),
            "Equinox and diffrax, flattened": lambda: published(model, dataset, low_overhead=True),
            'lux_sciml, `batching="joint"`': lambda: ours(model, dataset, "joint"),
            'lux_sciml, `batching="vmap"`': lambda: ours(model, dataset, "vmap"),
            "torchdiffeq, dopri5 at 1e-5, as its own example": lambda: torch_step(
                model, dataset, rtol=1e-5, atol=1e-5, method="dopri5"
            ),
            "torchdiffeq, rk4 with the same steps": lambda: torch_step(
                model, dataset, method="rk4", options={"step_size": DT}
            ),
        },
        [jnp.asarray(i) for i in range(0, 3 * VIRTUAL, VIRTUAL)],
        "step",
        turns=1,
        seconds=15.0,
    )


if __name__ == "__main__":
    main()
