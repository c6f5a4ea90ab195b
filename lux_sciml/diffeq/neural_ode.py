"""NeuralODE: a layer whose output is the solution of an ordinary differential equation."""

from dataclasses import field
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..components import ComponentVector
from ..core import Constant, Layer, Mode, Wrapper
from ..core.state import is_random_key
from ..core.structure import parameter_layout
from .failure import mark_failure
from .options import SolverOptions
from .unrolled import unrolled
from .vector_field import vector_field


class NeuralODE(Wrapper, SolverOptions):
    r"""The solution of :math:`dy/dt = f(t, y; p)`, :math:`y(t_0) = y_0`, where `f` is a layer, the vector field.

    Chen et al., "Neural ordinary differential equations", NeurIPS 2018. Any layer whose output has the shape of its
    input will do: a net, or a user's own with known terms and nets. With `time_dependent` it is called with `(t, y)`.

    `ts` are the times at which the solution is saved, the first one that of the initial value; they may run backwards.
    Built with `ts`, the layer takes `y0`; built without, it takes `(y0, ts)`. Parameters and state are those of the
    vector field. The output is a `diffrax.Solution` with `ys` of shape `(times, *y0.shape)`, or, by `output`, `ys` or
    the last state. Initial values of shape `(batch, ...)` are one large equation (`batching="joint"`) or separate ones
    (`batching="vmap"`: `ys` are `(batch, times, ...)`, and `ts` may be `(batch, times)`). More: `SolverOptions`.

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

    def __post_init__(self):
        super().__post_init__()
        if self.ts is not None:
            self.ts = Constant(self.ts)
            _require_monotone(np.asarray(self.ts))

    def forward(self, x, ps, st):
        y0, ts = self._inputs(x)
        frozen = vector_field(self.model, st, time_dependent=self.time_dependent, on_state_update=self.on_state_update)
        adjoint = self.chosen_adjoint()
        if isinstance(adjoint, diffrax.BacksolveAdjoint):  # integrates the gradients of its args: better flat
            ps = ComponentVector.from_tree(ps, like=parameter_layout(self.model))

        def solve(y0, ts):
            sol = diffrax.diffeqsolve(
                diffrax.ODETerm(frozen),
                unrolled(self.option("solver")),
                ts[0],
                ts[-1],
                None if self.dt0 is None else jnp.asarray(self.dt0, ts.dtype),
                y0,
                ps,
                saveat=self._saveat(ts),
                stepsize_controller=self.controller(),
                adjoint=adjoint,
                event=self.option("event"),
                max_steps=self.max_steps,
                throw=self.throw,
                progress_meter=self.option("progress_meter"),
            )
            return mark_failure(sol, complete=self.saveat is None and self.event is None)

        if self.batching == "vmap":
            self._require_no_training(st)
            sol = eqx.filter_vmap(solve, in_axes=(0, 0 if ts.ndim == 2 else None))(y0, ts)
        else:
            sol = solve(y0, ts)
        return self._output(sol), self._renewed(y0, ts, ps, st)

    def _inputs(self, x: Any) -> tuple[Any, Any]:
        """Initial value and times, in floating point and of one precision."""
        if self.ts is None and not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError("a NeuralODE built without `ts` takes the tuple (initial value, times)")
        y0, ts = (x, np.asarray(self.ts)) if self.ts is not None else x
        y0 = jax.tree.map(_floating, y0)
        precise = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(y0) if jnp.finfo(leaf.dtype).bits >= 32]
        if not isinstance(ts, jax.core.Tracer):
            _require_monotone(np.asarray(ts))
        ts = jnp.asarray(ts).astype(precise[0].dtype if precise else jnp.float32)
        if ts.ndim != (2 if self.batching == "vmap" and ts.ndim == 2 else 1):
            raise ValueError(f"times have shape (times,), or (batch, times) with batching='vmap', got {ts.shape}")
        return y0, ts

    def _saveat(self, ts: jax.Array) -> diffrax.SaveAt:
        if self.saveat is not None:
            return self.option("saveat")
        return diffrax.SaveAt(t1=True) if self.output == "final" else diffrax.SaveAt(ts=ts)

    def _output(self, sol: diffrax.Solution) -> Any:
        if self.output == "solution":
            return sol
        if self.output == "ys":
            return sol.ys
        time_axis = 1 if self.batching == "vmap" else 0
        return jax.tree.map(lambda y: jnp.take(y, -1, axis=time_axis), sol.ys)

    def _renewed(self, y0: Any, ts: jax.Array, ps: Any, st: Any) -> Any:
        """The state with its random keys advanced once, where state updates are discarded."""
        if self.on_state_update == "raise" or not any(map(is_random_key, jax.tree.leaves(st))):
            return st
        tree = ps.tree() if isinstance(ps, ComponentVector) else ps
        after = self.model.forward((ts[0], y0) if self.time_dependent else y0, tree, st)[1]
        return jax.tree.map(lambda old, new: new if is_random_key(old) else old, st, after)

    def _require_no_training(self, st: Any) -> None:
        modes = jax.tree.leaves(st, is_leaf=lambda x: isinstance(x, Mode))
        if Mode.TRAIN in [mode for mode in modes if isinstance(mode, Mode)]:
            raise ValueError(
                'batching="vmap" solves every sample by itself, where a state in training has no meaning; '
                'pass `lux.testmode(st)` or use batching="joint"'
            )


def _floating(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def _require_monotone(ts: np.ndarray) -> None:
    steps = np.diff(ts, axis=-1)
    if ts.ndim == 0 or ts.shape[-1] < 2:
        raise ValueError(
            f"`ts` holds at least two times, the first one that of the initial value, got shape {ts.shape}"
        )
    if not np.isfinite(ts).all():
        raise ValueError("`ts` holds times that are not finite")
    if not (np.all(steps > 0, axis=-1) | np.all(steps < 0, axis=-1)).all():
        place = int(np.argmax(steps.reshape(-1, steps.shape[-1])[0] * np.sign(steps.flat[0]) <= 0))
        raise ValueError(
            f"`ts` must strictly increase or strictly decrease; it turns after position {place}: "
            f"{ts[..., place].flat[0]}, {ts[..., place + 1].flat[0]}"
        )
