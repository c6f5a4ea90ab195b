"""NeuralODE: a layer whose output is the solution of an ordinary differential equation."""

from dataclasses import field
from typing import Any

import diffrax

from ...core import Layer, Wrapper
from ..equation import Equation, batched, initial_value_and_times, output, renewed, save_times, solve
from ..field import Controlled, Field, FrozenLayer, split_control, within


class NeuralODE(Wrapper, Equation):
    r"""The solution of :math:`dy/dt = f(t, y; p)`, :math:`y(t_0) = y_0`, where `f` is a layer, the vector field.

    Chen et al., "Neural ordinary differential equations", NeurIPS 2018. Any layer whose output has the shape of its
    input will do: a net, or a user's own with known terms and nets. With `time_dependent` it is called with `(t, y)`.
    With `controlled`, the input ends in a control u, any diffrax path: `(y0, u)` or `(y0, ts, u)`; the vector field is
    then called with `(y, u(t))` in the place of `y`, and gradients reach the control.

    `ts` are the times at which the solution is saved, the first one that of the initial value; they may run backwards.
    Built with `ts`, the layer takes `y0`; built without, it takes `(y0, ts)`. Parameters and state are those of the
    vector field. The output is a `diffrax.Solution` with `ys` of shape `(times, *y0.shape)`, or, by `output`, `ys` or
    the last state. Initial values of shape `(batch, ...)` are one large equation (`batching="joint"`) or separate ones
    (`batching="vmap"`: `ys` are `(batch, times, ...)`, and `ts` may be `(batch, times)`). More: `Equation`.

    The state is frozen during a solve. A failed solve is NaN throughout, with the reason in `sol.result`; see
    `lux.raise_if_failed`. Raises `ValueError` for times that are not monotone, a vector field that changes shapes,
    and layers that update their state.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Chain(lambda u: u**3, lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 2))
    >>> node = lux.NeuralODE(model, ts=jnp.linspace(0.0, 1.5, 30))
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> sol, st = node(jnp.array([2.0, 0.0]), ps, st)
    >>> sol.ys.shape
    (30, 2)
    """

    model: Layer
    ts: Any = None
    time_dependent: bool = field(default=False, kw_only=True)
    controlled: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self.ts = save_times(self.ts)

    def forward(self, x, ps, st):
        x, control = split_control("NeuralODE", x, self.ts is None) if self.controlled else (x, None)
        y0, ts = initial_value_and_times(self, x)
        frozen = FrozenLayer(self.model, st, self.time_dependent, self.on_state_update)

        def one(y0, control, ts):
            if control is None:
                return solve(self, diffrax.ODETerm(Field(frozen)), y0, ts, ps)
            term = diffrax.ODETerm(Field(Controlled(frozen, control)))
            return solve(self, term, within(control, y0, ts), ts, ps)

        sol = batched(self, st, one, (y0, control), ts)
        start = (ts[0], y0) if self.time_dependent else y0
        return output(self, sol), renewed(self, self.model, start, ps, st)
