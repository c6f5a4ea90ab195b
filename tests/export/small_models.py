"""Small models for the tests of formats: how one is set up, and one of each kind that ONNX and TFLite hold."""

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np

import lux_sciml as lux

net = lux.Chain(lux.Dense(3, 8, jnp.tanh), lux.Dense(8, 3))
times = np.linspace(0.0, 1.0, 5)
cell = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(4, 4, use_bias=False), lux.Dense(3, 4))


class Decay(lux.Wrapper):
    """A vector field with one root."""

    model: lux.Layer

    def forward(self, u, ps, st):
        y, st = self.model.forward(u, ps, st)
        return y - 2 * u + 1, st


MODELS = {
    "mlp": (lux.Chain(lux.Dense(3, 8, jax.nn.gelu), lux.LayerNorm(8), lux.Dense(8, 8, jax.nn.softplus)), (2, 3)),
    "images": (
        lux.Chain(
            lux.Conv(1, 4, (3, 3), jax.nn.relu), lux.BatchNorm(4), lux.MaxPool((3, 3), stride=2, padding="SAME"),
            lux.MeanPool((2, 2)), lux.Flatten(), lux.Dense(16, 3, jax.nn.silu),
        ),
        (2, 10, 10, 1),
    ),
    "lstm": (lux.Recurrence(lux.LSTMCell(3, 4)), (2, 5, 3)),
    "gru": (lux.Recurrence(lux.GRUCell(3, 4)), (2, 5, 3)),
    "transformer": (lux.TransformerEncoderBlock(8, 2, 16), (2, 5, 8)),
    "node": (lux.NeuralODE(net, ts=times, output="ys"), (2, 3)),
    "node of samples": (
        lux.NeuralODE(net, ts=times[::-1].copy(), output="final", rtol=1e-5, atol=1e-6, batching="vmap"),
        (2, 3),
    ),
    "node fixed": (
        lux.Chain(lux.NeuralODE(net, ts=times, output="final", dt0=0.1, stepsize_controller=diffrax.ConstantStepSize()),
                  lux.Dense(3, 2)),
        (2, 3),
    ),
    "hamiltonian": (
        lux.Chain(
            lambda u: (u, u),
            lux.HamiltonianODE(lux.Lambda(lambda p: 0.5 * jnp.sum(p**2, -1)),
                               lux.Chain(lux.MLP(3, 4, 1), lambda v: v[..., 0]),
                               ts=times, dt0=0.1, output="final"),
            lambda u: u[0],
        ),
        (2, 3),
    ),
    "deq": (lux.DeepEquilibrium(cell, shape=4, rtol=1e-6, atol=1e-6), (2, 3)),
    "roots": (lux.SteadyState(Decay(net), batching="vmap"), (2, 3)),
}  # fmt: skip

ADAPTIVE = {"node", "node of samples"}  # rounding changes their steps, and the result within the solver's tolerance


def batches(shape):
    """Inputs of two batches, of which one has a single sample."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, *shape[1:])).astype("float32") for n in (1, 4)]


def set_up(layer):
    """The parameters, the state in test mode, and the layer as a function."""
    ps, st = lux.setup(jax.random.key(0), layer, dtype="float32")
    st = lux.testmode(st)
    return ps, st, jax.jit(lambda x: layer(x, ps, st)[0])


def check_batches(name, export, path, run):
    """Compare the file of a model, exported for any batch, with the layer; `run(path, x=x)` gives its outputs."""
    layer, shape = MODELS[name]
    ps, st, call = set_up(layer)
    export(path, layer, ps, st, jnp.zeros(shape, "float32"))
    for x in batches(shape):
        y, expected = run(path, x=x)["y"], np.asarray(call(x))
        assert y.dtype == expected.dtype and np.isfinite(expected).all()
        tolerance = 1e-5 if name in ADAPTIVE else 2e-6
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


def checked_by_the_host(x):
    """What calls back to the host in no operation that is seen before it is lowered."""
    matrix = lineax.MatrixLinearOperator(jnp.eye(x.size, dtype=x.dtype) + jnp.outer(x, x))
    return lineax.linear_solve(matrix, x).value
