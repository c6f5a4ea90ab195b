"""SecondOrder: an acceleration as a vector field of positions and velocities."""

import jax.numpy as jnp

from ..core import Layer, Wrapper


class SecondOrder(Wrapper):
    r"""The vector field of :math:`d^2x/dt^2 = a(x, dx/dt)` on pairs `(x, v)`: :math:`(v, a([x, v]))`.

    `model` is the acceleration: from positions and velocities along the last axis, `(..., 2 n)`, to `(..., n)`. For a
    `NeuralODE` whose initial value is the tuple `(x0, v0)`; its `ys` are the tuple of positions and velocities.

    Norcliffe et al., "On second order behaviour in neural ODEs", NeurIPS 2020.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.NeuralODE(lux.SecondOrder(lux.Dense(4, 2)), ts=[0.0, 0.5, 1.0], output="ys")
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> (x, v), st = node((jnp.ones(2), jnp.zeros(2)), ps, st)
    >>> x.shape, v.shape
    ((3, 2), (3, 2))
    """

    model: Layer

    def forward(self, state, ps, st):
        x, v = state
        acceleration, st = self.model.forward(jnp.concatenate([x, v], axis=-1), ps, st)
        return (v, acceleration), st
