"""Diffrax's published latent ODE example: its Equinox code, the same model here, and torchdiffeq, step by step.

The data (fewer series of it), the model, the solver with fixed steps and the optimizer are those of diffrax's
documentation, examples/latent_ode: decaying oscillations, each series at times of its own. All start from the same
weights, and all get the same noise: the published code draws it sample by sample, here it is drawn for the batch at
once.
"""

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

BATCH, TIMES, CHANNELS, HIDDEN, LATENT, WIDTH, DT, LEARNING_RATE = 256, 20, 2, 16, 16, 16, 0.4, 1e-2


def data(batches=5):
    """Decaying oscillations at 20 random times in [0, T], T in U(2, 3), from random starts."""
    keys = jax.random.split(jax.random.key(5678), 3)
    n = batches * BATCH
    y0 = jax.random.normal(keys[0], (n, CHANNELS))
    end = 2 + jax.random.uniform(keys[1], (n, 1))
    ts = jnp.sort(jax.random.uniform(keys[2], (n, TIMES)) * end)
    matrix = jnp.array([[-0.1, 1.3], [-1.0, -0.1]])

    def solve(ts, y0):
        term, saveat = diffrax.ODETerm(lambda t, y, args: matrix @ y), diffrax.SaveAt(ts=ts)
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), ts[0], ts[-1], 0.1, y0, saveat=saveat).ys

    return ts, jax.vmap(solve)(ts, y0)


class Func(eqx.Module):
    scale: jax.Array
    mlp: eqx.nn.MLP

    def __call__(self, t, y, args):
        return self.scale * self.mlp(y)


class Published(eqx.Module):
    """The model of the published example; its noise is an argument."""

    func: Func
    rnn_cell: eqx.nn.GRUCell
    hidden_to_latent: eqx.nn.Linear
    latent_to_hidden: eqx.nn.MLP
    hidden_to_data: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        mlp = eqx.nn.MLP(HIDDEN, HIDDEN, WIDTH, 2, jax.nn.softplus, jnp.tanh, key=keys[0])
        self.func = Func(jnp.ones(()), mlp)
        self.rnn_cell = eqx.nn.GRUCell(CHANNELS + 1, HIDDEN, key=keys[1])
        self.hidden_to_latent = eqx.nn.Linear(HIDDEN, 2 * LATENT, key=keys[2])
        self.latent_to_hidden = eqx.nn.MLP(LATENT, HIDDEN, WIDTH, 2, key=keys[3])
        self.hidden_to_data = eqx.nn.Linear(HIDDEN, CHANNELS, key=keys[4])

    def __call__(self, ts, ys, noise):
        """The loss of one series."""
        hidden = jnp.zeros(HIDDEN)
        for x in reversed(jnp.concatenate([ts[:, None], ys], axis=1)):
            hidden = self.rnn_cell(x, hidden)
        context = self.hidden_to_latent(hidden)
        mean, std = context[:LATENT], jnp.exp(context[LATENT:])
        y0 = self.latent_to_hidden(mean + noise * std)
        term, saveat = diffrax.ODETerm(self.func), diffrax.SaveAt(ts=ts)
        solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), ts[0], ts[-1], DT, y0, saveat=saveat)
        predicted = jax.vmap(self.hidden_to_data)(solution.ys)
        spread = 0.5 * jnp.sum(mean**2 + std**2 - 2 * jnp.log(std) - 1)
        return 0.5 * jnp.sum((ys - predicted) ** 2) + spread


def published(model, low_overhead=False):
    tx = optax.adam(LEARNING_RATE)

    @eqx.filter_value_and_grad
    def grad_loss(model, ts, ys, noise):
        return jnp.mean(jax.vmap(model)(ts, ys, noise))

    def make_step(carry, batch):
        model, opt_state, key = carry
        ts, ys = batch
        key, used = _draw(key)
        loss, grads = grad_loss(model, ts, ys, jax.random.normal(used, (BATCH, LATENT)))
        updates, opt_state = tx.update(grads, opt_state)
        return loss, (eqx.apply_updates(model, updates), opt_state, key)

    start = (model, tx.init(eqx.filter(model, eqx.is_inexact_array)), jax.random.key(1))
    return flattened(make_step, start) if low_overhead else (eqx.filter_jit(make_step), start)


def _draw(key):
    """The next key, and the one to use now, as in a LatentODE."""
    used, key = jax.random.split(key)
    return key, used


class Dynamics(lux.Container):
    """The hidden path from a latent start, times first."""

    start: lux.Layer
    node: lux.NeuralODE

    def forward(self, x, ps, st):
        z0, ts = x
        (y0,), st = self.run(ps, st, start=z0)
        (ys,), st = self.run(ps, st, node=(y0, ts))
        return jnp.moveaxis(ys, 1, 0), st


def with_time(inputs):
    ts, xs = inputs
    return jnp.concatenate([ts[..., None], xs], axis=-1)


def log_variance_last(statistics):
    mean, log_std = jnp.split(statistics, 2, axis=-1)
    return jnp.concatenate([mean, 2 * log_std], axis=-1)


def ours(model):
    encoder = lux.Chain(
        with_time,
        lux.Recurrence(lux.GRUCell(CHANNELS + 1, HIDDEN), reverse=True),
        lux.Dense(HIDDEN, 2 * LATENT),
        log_variance_last,
    )
    field = Scaled(lux.MLP(HIDDEN, (WIDTH, WIDTH), HIDDEN, activation=jax.nn.softplus, last_activation=jnp.tanh))
    node = lux.NeuralODE(field, dt0=DT, stepsize_controller=diffrax.ConstantStepSize(), batching="vmap", output="ys")
    start = lux.MLP(LATENT, (WIDTH, WIDTH), HIDDEN, activation=jax.nn.relu)
    vae = lux.LatentODE(encoder, Dynamics(start, node), lux.Dense(HIDDEN, CHANNELS))
    ps, st = lux.setup(jax.random.key(0), vae)
    st = lux.update_state(st, "key", jax.random.key(1))
    gru = model.rnn_cell
    linears = {
        "encoder.layer_2": model.hidden_to_latent,
        "decoder": model.hidden_to_data,
        **{f"dynamics.start.layer_{i}": linear for i, linear in enumerate(model.latent_to_hidden.layers)},
        **{f"dynamics.node.net.layer_{i}": linear for i, linear in enumerate(model.func.mlp.layers)},
    }
    for place, linear in linears.items():
        ps = ps.at[f"{place}.weight"].set(linear.weight.T).at[f"{place}.bias"].set(linear.bias)
    bias_hh = jnp.concatenate([jnp.zeros(2 * HIDDEN), gru.bias_n])
    weights = {"weight_ih": gru.weight_ih.T, "weight_hh": gru.weight_hh.T, "bias_ih": gru.bias, "bias_hh": bias_hh}
    for name, value in weights.items():
        ps = ps.at[f"encoder.layer_1.{name}"].set(value)
    tx = optax.adam(LEARNING_RATE)
    constant = 0.5 * TIMES * CHANNELS * jnp.log(2 * jnp.pi)  # the published loss is without it

    def loss_of(ps, st, ts, ys):
        path, st = vae((ts, ys), ps, st)
        return -lux.diffeq.elbo(path, ys, noise=1.0) - constant, st

    @jax.jit
    def make_step(ps, opt_state, st, ts, ys):
        (loss, st), grads = jax.value_and_grad(loss_of, has_aux=True)(ps, st, ts, ys)
        # torch's cell, as ours, has two biases where Equinox's has one: what is added stays zero
        grads = grads.at["encoder.layer_1.bias_hh"].apply(lambda bias: bias.at[: 2 * HIDDEN].set(0.0))
        updates, opt_state = tx.update(grads, opt_state)
        return loss, (optax.apply_updates(ps, updates), opt_state, st)

    return lambda carry, batch: make_step(*carry, *batch), (ps, tx.init(ps), st)


def torch_step(model, compiled=False):
    """Solved by Runge-Kutta of order 4 with a step for each interval between two times, of a length of its own.

    torchdiffeq has one time for a whole batch: it runs here from 0 to 19, and the vector field is scaled.
    """

    soft, relu, none = torch.nn.Softplus(), torch.nn.ReLU(), torch.nn.Identity()
    field, scale = sequential(model.func.mlp.layers, soft, soft, torch.nn.Tanh()), torch.nn.Parameter(torch.tensor(1.0))
    start = sequential(model.latent_to_hidden.layers, relu, relu, none)
    statistics, read = sequential([model.hidden_to_latent], none), sequential([model.hidden_to_data], none)
    cell = torch.nn.GRUCell(CHANNELS + 1, HIDDEN)
    gru = model.rnn_cell
    values = (gru.weight_ih, gru.weight_hh, gru.bias, jnp.concatenate([jnp.zeros(2 * HIDDEN), gru.bias_n]))
    for parameter, value in zip((cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), values, strict=True):
        parameter.data = torch.tensor(np.array(value))
    modules = (field, start, statistics, read, cell)
    velocity = lambda gap, y: gap * scale * field(y)  # noqa: E731
    velocity = torch_compiled(velocity) if compiled else velocity
    parameters = [scale, *(p for module in modules for p in module.parameters())]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)

    def step(carry, batch):
        values, key = carry
        timing.load(parameters, values)
        ts, ys = (torch.tensor(np.array(x)) for x in batch)
        key, used = _draw(key)
        noise = torch.tensor(np.array(jax.random.normal(used, (BATCH, LATENT))))
        optimizer.zero_grad()
        hidden = torch.zeros(BATCH, HIDDEN)
        for i in reversed(range(TIMES)):
            hidden = cell(torch.cat([ts[:, i, None], ys[:, i]], dim=1), hidden)
        mean, log_std = statistics(hidden).chunk(2, dim=1)
        gaps = torch.diff(ts, dim=1)

        def vector_field(s, y):
            return velocity(gaps[:, min(int(s), TIMES - 2), None], y)

        grid = torch.arange(TIMES, dtype=torch.float32)
        path = torchdiffeq.odeint(
            vector_field, start(mean + noise * log_std.exp()), grid, method="rk4", options={"perturb": True}
        )
        error = 0.5 * ((ys - read(path.transpose(0, 1))) ** 2).sum((1, 2))
        spread = 0.5 * (mean**2 + (2 * log_std).exp() - 2 * log_std - 1).sum(1)
        loss = (error + spread).mean()
        loss.backward()
        cell.bias_hh.grad[: 2 * HIDDEN] = 0.0
        optimizer.step()
        return float(loss.detach()), (timing.values(parameters), key)

    return step, (timing.values(parameters), jax.random.key(1))


def main():
    timing.machine()
    ts, ys = data()
    batches = [(ts[i : i + BATCH], ys[i : i + BATCH]) for i in range(0, len(ts), BATCH)]
    model = Published(jax.random.key(0))
    makes = {
        "Equinox and diffrax, as published": lambda: published(model),
        "Equinox and diffrax, flattened": lambda: published(model, low_overhead=True),
        "lux_sciml, `LatentODE`": lambda: ours(model),
        "torchdiffeq, `odeint`, rk4, one step from time to time": lambda: torch_step(model),
    }
    if COMPILER:
        makes["torchdiffeq, the field by `torch.compile`"] = lambda: torch_step(model, compiled=True)
    timing.compare(makes, batches, "step")


if __name__ == "__main__":
    main()
