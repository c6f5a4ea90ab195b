"""Diffrax's published neural ODE example: its Equinox code, the same model here, and torchdiffeq, step by step.

The data, the model (4483 parameters), the solver and the optimizer are those of diffrax's documentation,
examples/neural_ode. All start from the same weights; the losses of the first steps are printed side by side.

`python bench_neural_ode.py short` measures the first phase alone.
"""

import sys

import timing

timing.pin_allocator()

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402
import torchdiffeq  # noqa: E402
from low_overhead import COMPILER, flattened, torch_compiled  # noqa: E402
from scaled import Scaled  # noqa: E402
from torch_nets import sequential  # noqa: E402

import lux_sciml as lux  # noqa: E402

BATCH, RTOL, ATOL, LEARNING_RATE = 32, 1e-3, 1e-6, 3e-3


def data():
    """256 series of y' = (y2 / (1 + y2), -y1 / (1 + y1)), 100 times in [0, 10]."""
    ts = jnp.linspace(0.0, 10.0, 100)
    y0 = jax.random.uniform(jax.random.key(5678), (256, 2), minval=-0.6, maxval=1.0)

    def field(t, y, args):
        x = y / (1 + y)
        return jnp.stack([x[..., 1], -x[..., 0]], axis=-1)

    def solve(y0):
        term, steps = diffrax.ODETerm(field), diffrax.PIDController(RTOL, ATOL)
        saveat = diffrax.SaveAt(ts=ts)
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 10.0, 0.1, y0, saveat=saveat, stepsize_controller=steps
        ).ys

    return ts, jax.vmap(solve)(y0)


class Published(eqx.Module):
    """The model of the published example."""

    out_scale: jax.Array
    mlp: eqx.nn.MLP

    def __init__(self, key):
        self.out_scale = jnp.array(1.0)
        self.mlp = eqx.nn.MLP(2, 2, 64, 2, jax.nn.softplus, jnp.tanh, key=key)

    def field(self, t, y, args):
        return self.out_scale * self.mlp(y)

    def __call__(self, ts, y0):
        return self.solve(self.field, ts, y0)

    def joint(self, ts, y0):
        """The whole batch as one solve."""
        field = lambda t, y, args: self.out_scale * jax.vmap(self.mlp)(y)  # noqa: E731
        return jnp.moveaxis(self.solve(field, ts, y0), 1, 0)

    def solve(self, field, ts, y0):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=ts[0],
            t1=ts[-1],
            dt0=ts[1] - ts[0],
            y0=y0,
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
            saveat=diffrax.SaveAt(ts=ts),
        )
        return solution.ys


def published(model, ts, joint=False, low_overhead=False):
    tx = optax.adabelief(LEARNING_RATE)

    @eqx.filter_value_and_grad
    def grad_loss(model, ti, yi):
        solve = model.joint if joint else jax.vmap(model, in_axes=(None, 0))
        return jnp.mean((yi - solve(ti, yi[:, 0])) ** 2)

    def make_step(carry, batch):
        model, opt_state = carry
        loss, grads = grad_loss(model, *batch)
        updates, opt_state = tx.update(grads, opt_state)
        return loss, (eqx.apply_updates(model, updates), opt_state)

    start = (model, tx.init(eqx.filter(model, eqx.is_inexact_array)))
    step, start = flattened(make_step, start) if low_overhead else (eqx.filter_jit(make_step), start)
    return lambda carry, yi: step(carry, (ts, yi)), start


def ours(model, ts, batching):
    net = lux.Chain(lux.Dense(2, 64, jax.nn.softplus), lux.Dense(64, 64, jax.nn.softplus), lux.Dense(64, 2, jnp.tanh))
    node = lux.NeuralODE(
        Scaled(net), ts=ts, rtol=RTOL, atol=ATOL, dt0=float(ts[1] - ts[0]), batching=batching, output="ys"
    )
    ps, st = lux.setup(jax.random.key(0), node)
    ps = ps.at["scale"].set(model.out_scale)
    for i, linear in enumerate(model.mlp.layers):
        ps = ps.at[f"net.layer_{i}.weight"].set(linear.weight.T).at[f"net.layer_{i}.bias"].set(linear.bias)
    tx = optax.adabelief(LEARNING_RATE)
    axis = 1 if batching == "joint" else 0  # where the batch lies

    def loss_of(ps, yi):
        return jnp.mean((jnp.moveaxis(yi, 0, axis) - node(yi[:, 0], ps, st)[0]) ** 2)

    @jax.jit
    def make_step(ps, opt_state, yi):
        loss, grads = jax.value_and_grad(loss_of)(ps, yi)
        updates, opt_state = tx.update(grads, opt_state)
        return loss, (optax.apply_updates(ps, updates), opt_state)

    return lambda carry, yi: make_step(*carry, yi), (ps, tx.init(ps))


def torch_step(model, ts, compiled=False):
    net = sequential(model.mlp.layers, torch.nn.Softplus(), torch.nn.Softplus(), torch.nn.Tanh())
    scale = torch.nn.Parameter(torch.tensor(np.array(model.out_scale)))
    parameters = [*net.parameters(), scale]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    times = torch.tensor(np.array(ts))
    field = lambda t, y: scale * net(y)  # noqa: E731
    field = torch_compiled(field) if compiled else field

    def step(carry, yi):
        timing.load(parameters, carry)
        yi = torch.tensor(np.array(yi))
        optimizer.zero_grad()
        ys = torchdiffeq.odeint(field, yi[:, 0], times, rtol=RTOL, atol=ATOL, method="dopri5")
        loss = torch.mean((yi.transpose(0, 1) - ys) ** 2)
        loss.backward()
        optimizer.step()
        return float(loss.detach()), timing.values(parameters)

    return step, timing.values(parameters)


def main(short=False):
    timing.machine()
    ts, ys = data()
    # the two phases of the example: the first tenth of each series, and all of it with the weights from the first phase
    model = Published(jax.random.key(0))
    compare("the first 10 times of each series, random weights", model, ts[:10], ys[:, :10], "10 times")
    if short:
        return
    step, carry = published(model, ts[:10])
    for i in range(500):
        _, carry = step(carry, ys[(i % 8) * BATCH :][:BATCH, :10])
    compare("the 100 times of each series, after 500 steps on the first 10", carry[0], ts, ys, "100 times")


def compare(title, model, ts, ys, name):
    print(f"{title} (torchdiffeq trains with Adam: its losses are the same at step 0 only)\n")
    makes = {
        "Equinox and diffrax, as published": lambda: published(model, ts),
        "Equinox and diffrax, flattened": lambda: published(model, ts, low_overhead=True),
        "Equinox and diffrax, the batch as one solve, flattened": lambda: published(model, ts, True, True),
        'lux_sciml, `batching="vmap"`': lambda: ours(model, ts, "vmap"),
        'lux_sciml, `batching="joint"`': lambda: ours(model, ts, "joint"),
        "torchdiffeq, `odeint`, dopri5": lambda: torch_step(model, ts),
    }
    if COMPILER:
        makes["torchdiffeq, the field by `torch.compile`"] = lambda: torch_step(model, ts, compiled=True)
    timing.compare(makes, [ys[i : i + BATCH] for i in range(0, 5 * BATCH, BATCH)], name)


if __name__ == "__main__":
    main(*sys.argv[1:])
