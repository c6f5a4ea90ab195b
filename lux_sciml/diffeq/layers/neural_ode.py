"""NeuralODE: a layer whose output is the solution of an ordinary differential equation."""

from typing import ClassVar

import diffrax

from ...core import Constant, Layer, Wrapper, as_layer, field
from ..equation import Equation
from ..times import save_times


class NeuralODE(Wrapper, Equation):
    r"""The solution of :math:`dy/dt = f(t, y; p)`, :math:`y(t_0) = y_0`, where `f` is a layer, the vector field.

    Chen et al., "Neural ordinary differential equations", NeurIPS 2018. Any layer whose output has the shape of its
    input will do: a net, or a user's own with known terms and nets. The options are those of `lux.Equation`; above all

    * `ts`: the times at which the solution is saved, the first one that of the initial value; they may run backwards.
      Built with `ts`, the layer takes `y0`; built without, it takes `(y0, ts)`. With `ts=[t0, jnp.inf]` it goes on
      until the solution is steady, :math:`\|f(y)\| < \mathrm{atol} + \mathrm{rtol} \|y\|`, and saves that state alone:
      its gradients are those of the implicit function theorem (`adjoint="implicit"`), or by another adjoint through
      the solve. One that is not reached in `max_steps` is NaN. The rule is one of rates: where they are slow, such as
      `1e-6 * (1 - y)`, scale the time or tighten the tolerances. `lux.SteadyState` is for roots near a guess;
    * `time_dependent`: the vector field is called with `(t, y)`;
    * `controlled`: the input ends in a control u, any diffrax path, `(y0, u)` or `(y0, ts, u)`; the vector field is
      called with `(y, u(t))` in place of `y`, and gradients reach the control;
    * `output`: the `diffrax.Solution`, with `ys` of shape `(times, *y0.shape)`, by default; `"ys"`; or `"final"`, the
      last state;
    * `batching`: initial values of shape `(batch, ...)` are one large equation (`"joint"`) or separate ones (`"vmap"`:
      `ys` are `(batch, times, ...)`, and `ts` may be `(batch, times)`, with the last time of shorter samples repeated,
      or a `lux.diffeq.Series`: a sample ends at its own last time).

    Parameters and state are those of the vector field. The state is frozen during a solve. A failed solve is NaN
    throughout, with the reason in `sol.result`; see `lux.raise_if_failed`. Raises `ValueError` for times that are not
    monotone, a vector field that changes shapes, and layers that update their state.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Chain(lambda u: u**3, lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 2))
    >>> node = lux.NeuralODE(model, ts=jnp.linspace(0.0, 1.5, 30))
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> sol, st = node(jnp.array([2.0, 0.0]), ps, st)
    >>> sol.ys.shape
    (30, 2)
    """

    one_term: ClassVar = True
    may_be_endless: ClassVar = True

    model: Layer = field(converter=as_layer)
    ts: Constant | None = field(default=None, converter=save_times)

    def terms(self, fields):
        return diffrax.ODETerm(fields["model"])
