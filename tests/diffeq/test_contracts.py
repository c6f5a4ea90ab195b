"""Each equation keeps the contract of a layer; those with files of their own are checked there."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.testing import check_layer

TS = [0.0, 0.2, 0.4]
FIXED = {
    "ts": TS,
    "solver": diffrax.Heun(),
    "stepsize_controller": diffrax.ConstantStepSize(),
    "dt0": 0.2,
    "max_steps": 4,
    "adjoint": diffrax.DirectAdjoint(),
    "output": "ys",
}
NET = lux.Dense(2, 2, jnp.tanh)
ENERGY = lux.Chain(lux.Dense(1, 2, jnp.tanh), lux.Dense(2, 1))
CONTROL = diffrax.LinearInterpolation(np.array([-1.0, 1.0]), np.array([[0.3, 0.1], [0.5, -0.2]]))
Y = np.array([0.7, -0.4])


class Decaying(lux.Wrapper, lux.Equation):
    """An equation of one's own."""

    model: lux.Layer
    rate: float
    ts: tuple[float, ...] | None = None

    def terms(self, fields):
        return diffrax.ODETerm(lambda t, y, ps: fields["model"](t, y, ps) - self.rate * y)


LAYERS = {
    "NeuralODE": (lux.NeuralODE(NET, **FIXED), Y),
    "controlled": (lux.NeuralODE(lux.Parallel(jnp.add, NET, lux.Dense(2, 2)), controlled=True, **FIXED), (Y, CONTROL)),
    "in time": (lux.NeuralODE(lux.Galerkin(NET, lux.PolynomialBasis(2)), time_dependent=True, **FIXED), Y),
    "Decaying": (Decaying(NET, 0.5, **FIXED), Y),
    "SplitODE": (lux.SplitODE(NET, lux.Dense(2, 2), **FIXED), Y),
    "AugmentedODE": (lux.AugmentedODE(lux.NeuralODE(lux.Dense(3, 3, jnp.tanh), **FIXED), 1), Y),
    "SecondOrder": (lux.NeuralODE(lux.SecondOrder(lux.Dense(4, 2, jnp.tanh)), **FIXED), (Y, -Y)),
    "NeuralDSDE": (lux.NeuralDSDE(NET, lux.Dense(2, 2), **FIXED), Y),
    "NeuralDDE": (lux.NeuralDDE(lux.Dense(4, 2, jnp.tanh), [0.2], TS, dt0=0.2, output="ys"), Y),
    "NeuralDAE": (
        lux.NeuralDAE(lux.Dense(2, 1), lux.Parallel(jnp.add, lux.Dense(2, 1), lambda y: 3 * y[..., 1:]), **FIXED),
        Y,
    ),
    "MassMatrixODE": (lux.MassMatrixODE(lux.Parallel(jnp.add, NET, lambda y: 3 * y), [1, 0], **FIXED), Y),
    "HamiltonianODE": (
        lux.HamiltonianODE(
            lambda p: jnp.sum(p**2, -1), ENERGY, TS, dt0=0.2, max_steps=4, adjoint=diffrax.DirectAdjoint(), output="ys"
        ),
        (Y[:1], -Y[:1]),
    ),
    "ODERNN": (
        lux.ODERNN(lux.GRUCell(2, 2), NET, **{name: value for name, value in FIXED.items() if name != "ts"}),
        (np.array([0.0, 0.25, 0.4]), np.array([[0.3], [0.1], [-0.6]])),
    ),
    "WithCosts": (lux.WithCosts(lux.NeuralODE(NET, **FIXED), ("kinetic", "jacobian", "acceleration")), Y),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_the_contract(name):
    layer, x = LAYERS[name]
    check_layer(layer, x, batch_axis=None, derivatives=("forward", "reverse"), dtypes=("float32",))
