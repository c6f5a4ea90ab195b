"""Diffrax's published neural CDE example: its Equinox code, the same model here, and torchdiffeq, step by step.

The data, the model, the solver and the optimizer are those of diffrax's documentation, examples/neural_cde: clockwise
against counterclockwise spirals. All start from the same weights; the losses of the first steps are printed side by
side.
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
from torch_nets import sequential  # noqa: E402

import lux_sciml as lux  # noqa: E402

SAMPLES, TIMES, BATCH, RTOL, ATOL, LEARNING_RATE = 256, 100, 32, 1e-3, 1e-6, 1e-2
HIDDEN, WIDTH, CHANNELS = 8, 128, 3


def data():
    """Decaying spirals from random angles, the first half of them mirrored: times, positions and labels."""
    theta = jax.random.uniform(jax.random.key(5678), (SAMPLES,), maxval=2 * jnp.pi)
    ts = jnp.linspace(0.0, 4 * jnp.pi, TIMES)
    turn = jax.vmap(lambda t: jax.scipy.linalg.expm(t * jnp.array([[-0.3, 2.0], [-2.0, -0.3]])))(ts)
    xs = jnp.einsum("tij,jb->bti", turn, jnp.stack([jnp.cos(theta), jnp.sin(theta)]))
    half = SAMPLES // 2
    xs = xs.at[:half, :, 0].multiply(-1)
    order = jax.random.permutation(jax.random.key(1), SAMPLES)
    labels = jnp.zeros(SAMPLES).at[:half].set(1.0)
    return jnp.broadcast_to(ts, (SAMPLES, TIMES)), xs[order], labels[order]


def cross_entropy(prediction, labels):
    return -jnp.mean(labels * jnp.log(prediction) + (1 - labels) * jnp.log(1 - prediction))


class Func(eqx.Module):
    mlp: eqx.nn.MLP

    def __call__(self, t, y, args):
        return self.mlp(y).reshape(HIDDEN, CHANNELS)


class Published(eqx.Module):
    """The model of the published example."""

    initial: eqx.nn.MLP
    func: Func
    linear: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.initial = eqx.nn.MLP(CHANNELS, HIDDEN, WIDTH, 1, key=keys[0])
        self.func = Func(eqx.nn.MLP(HIDDEN, HIDDEN * CHANNELS, WIDTH, 1, jax.nn.softplus, jax.nn.tanh, key=keys[1]))
        self.linear = eqx.nn.Linear(HIDDEN, 1, key=keys[2])

    def __call__(self, ts, coefficients):
        control = diffrax.CubicInterpolation(ts, coefficients)
        solution = diffrax.diffeqsolve(
            diffrax.ControlTerm(self.func, control).to_ode(),
            diffrax.Tsit5(),
            t0=ts[0],
            t1=ts[-1],
            dt0=None,
            y0=self.initial(control.evaluate(ts[0])),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
            saveat=diffrax.SaveAt(t1=True),
        )
        (prediction,) = jax.nn.sigmoid(self.linear(solution.ys[-1]))
        return prediction


def published(model, low_overhead=False):
    tx = optax.adam(LEARNING_RATE)

    @eqx.filter_value_and_grad
    def grad_loss(model, ti, coefficients, labels):
        return cross_entropy(jax.vmap(model)(ti, coefficients), labels)

    def make_step(carry, batch):
        model, opt_state = carry
        loss, grads = grad_loss(model, batch.ts, batch.coefficients, batch.labels)
        updates, opt_state = tx.update(grads, opt_state)
        return loss, (eqx.apply_updates(model, updates), opt_state)

    start = (model, tx.init(eqx.filter(model, eqx.is_inexact_array)))
    return flattened(make_step, start) if low_overhead else (eqx.filter_jit(make_step), start)


def ours(model, batching):
    field = lux.Chain(lux.Dense(HIDDEN, WIDTH, jax.nn.softplus), lux.Dense(WIDTH, HIDDEN * CHANNELS, jnp.tanh))
    initial = lux.Chain(lux.Dense(CHANNELS, WIDTH, jax.nn.relu), lux.Dense(WIDTH, HIDDEN))
    cde = lux.NeuralCDE(field, initial, rtol=RTOL, atol=ATOL, batching=batching, output="final")
    classifier = lux.Chain(cde, lux.Dense(HIDDEN, 1, jax.nn.sigmoid))
    ps, st = lux.setup(jax.random.key(0), classifier)
    places = {"layer_0.model": model.func.mlp.layers, "layer_0.initial": model.initial.layers}
    for place, layers in places.items():
        for i, linear in enumerate(layers):
            ps = ps.at[f"{place}.layer_{i}.weight"].set(linear.weight.T)
            ps = ps.at[f"{place}.layer_{i}.bias"].set(linear.bias)
    ps = ps.at["layer_1.weight"].set(model.linear.weight.T).at["layer_1.bias"].set(model.linear.bias)
    tx = optax.adam(LEARNING_RATE)

    def loss_of(ps, ts, xs, labels):
        return cross_entropy(classifier((ts, xs), ps, st)[0][:, 0], labels)

    @jax.jit
    def make_step(ps, opt_state, ts, xs, labels):
        loss, grads = jax.value_and_grad(loss_of)(ps, ts, xs, labels)
        updates, opt_state = tx.update(grads, opt_state)
        return loss, (optax.apply_updates(ps, updates), opt_state)

    def step(carry, batch):
        return make_step(*carry, batch.ts if batching == "vmap" else batch.ts[0], batch.xs, batch.labels)

    return step, (ps, tx.init(ps))


def torch_step(model, compiled=False):
    """As torchcde does it: the control's coefficients looked up by the time, one batched product, and `odeint`."""

    field = sequential(model.func.mlp.layers, torch.nn.Softplus(), torch.nn.Tanh())
    initial = sequential(model.initial.layers, torch.nn.ReLU(), torch.nn.Identity())
    read = sequential([model.linear], torch.nn.Sigmoid())
    parameters = [*field.parameters(), *initial.parameters(), *read.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    velocity = lambda y, slope: torch.bmm(field(y).view(-1, HIDDEN, CHANNELS), slope[..., None])[..., 0]  # noqa: E731
    velocity = torch_compiled(velocity) if compiled else velocity

    def step(carry, batch):
        timing.load(parameters, carry)
        d, c, b, a = (torch.tensor(np.array(x)) for x in batch.coefficients)
        times, labels = torch.tensor(np.array(batch.ts[0])), torch.tensor(np.array(batch.labels))

        def vector_field(t, y):
            i = int(torch.bucketize(t, times) - 1)
            i = min(max(i, 0), TIMES - 2)
            s = t - times[i]
            slope = b[:, i] + s * (2 * c[:, i] + s * 3 * d[:, i])
            return velocity(y, slope)

        optimizer.zero_grad()
        y = torchdiffeq.odeint(vector_field, initial(a[:, 0]), times[[0, -1]], rtol=RTOL, atol=ATOL, method="dopri5")
        prediction = read(y[-1])[:, 0]
        loss = torch.nn.functional.binary_cross_entropy(prediction, labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach()), timing.values(parameters)

    return step, timing.values(parameters)


class Batch(eqx.Module):
    ts: jax.Array
    xs: jax.Array
    coefficients: tuple
    labels: jax.Array


def main():
    timing.machine()
    ts, xs, labels = data()
    channels = jnp.concatenate([ts[..., None], xs], axis=-1)
    everything = Batch(ts, xs, jax.vmap(diffrax.backward_hermite_coefficients)(ts, channels), labels)
    batches = [jax.tree.map(lambda x, i=i: x[i : i + BATCH], everything) for i in range(0, 5 * BATCH, BATCH)]
    model = Published(jax.random.key(0))
    makes = {
        "Equinox and diffrax, as published": lambda: published(model),
        "Equinox and diffrax, flattened": lambda: published(model, low_overhead=True),
        'lux_sciml, `batching="vmap"`': lambda: ours(model, "vmap"),
        'lux_sciml, `batching="joint"`': lambda: ours(model, "joint"),
        "torchdiffeq, `odeint`, dopri5": lambda: torch_step(model),
    }
    if COMPILER:
        makes["torchdiffeq, the field by `torch.compile`"] = lambda: torch_step(model, compiled=True)
    timing.compare(makes, batches, "step")


if __name__ == "__main__":
    main()
