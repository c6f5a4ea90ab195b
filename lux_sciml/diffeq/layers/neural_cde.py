"""NeuralCDE: a layer whose hidden state is driven by irregular, incomplete data."""

import dataclasses
from dataclasses import field
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import Container, Layer
from ...core.container import call_child
from ..equation import Equation, batched, floating, output, renewed, solve, times_like
from ..field import FrozenLayer, OfChild
from ..paths import control_path, first_values, increasing, require_interpolation


class NeuralCDE(Container, Equation):
    r"""The solution of :math:`dy = f(y; p)\, dX(t)`, :math:`y(t_0) = \zeta(X(t_0); p)`, for a path `X` through data.

    Input: `(ts, xs)`, times `(times,)` and data `(times, channels)` or `(batch, times, channels)`; with
    `batching="vmap"` every sample may have its own times, `(batch, times)`. NaN marks what was not observed. The path
    has time as its first channel and then those of the data; with `counts` also, for each of them, the number of
    observations so far, divided by that of the times. So it has `C = 1 + channels` channels, or `C = 1 + 2 channels`.
    `interpolation` says how it runs between the data: `"hermite"`, `"linear"` or `"rectilinear"`, see
    `lux.diffeq.control_path`.

    Children: `model`, the layer `f`, maps `(..., hidden)` to `(..., hidden, C)`, or to `(..., hidden * C)`, which is
    reshaped; `initial`, the layer zeta, maps `(..., C)` to `(..., hidden)`. The output is a `diffrax.Solution` with the
    hidden state at `ts`, `ys` of shape `(times, ..., hidden)`, or `(batch, times, hidden)` with `batching="vmap"`; with
    `output="final"` the last one, `(..., hidden)`, for a layer behind it that reads it out. Where the path has kinks
    the default controller steps exactly to them.

    Kidger et al., "Neural controlled differential equations for irregular time series", NeurIPS 2020. Raises
    `ValueError` for data and fields of other shapes and for times that do not increase.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Chain(lux.Dense(8, 16, jax.nn.softplus), lux.Dense(16, 8 * 3, jnp.tanh))
    >>> cde = lux.Chain(lux.NeuralCDE(model, lux.Dense(3, 8), output="final"), lux.Dense(8, 1))
    >>> ps, st = lux.setup(jax.random.key(0), cde)
    >>> ts, xs = jnp.linspace(0.0, 1.0, 10), jnp.ones((5, 10, 2))
    >>> cde((ts, xs.at[2, 4, 1].set(jnp.nan)), ps, st)[0].shape
    (5, 1)
    """

    model: Layer
    initial: Layer
    interpolation: str = field(default="hermite", kw_only=True)
    counts: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        require_interpolation(self.interpolation)

    def forward(self, x, ps, st):
        ts, xs = self._inputs(x)
        first = jnp.concatenate([jnp.broadcast_to(ts[..., :1], (*xs.shape[:-2], 1)), first_values(xs[..., 0, :])], -1)
        y0, st_initial = call_child("initial", self.initial, first, ps, st)
        frozen = OfChild("model", FrozenLayer(self.model, st["model"], on_state_update=self.on_state_update))

        def one(y0, xs, ts):
            good = increasing(ts)
            y0, ts = jnp.where(good, y0, jnp.nan), jnp.where(good, ts, jnp.arange(ts.size, dtype=ts.dtype))
            path = control_path(ts, jnp.moveaxis(xs, -2, 0), self.interpolation, with_time=True)
            times = path.ts[::2] if self.interpolation == "rectilinear" else ts
            term = diffrax.ODETerm(ControlledField(frozen, path))
            sol = solve(self, term, y0, times, ps, controller=self._controller(path))
            return sol if self.output == "final" or self.saveat is not None else dataclasses.replace(sol, ts=ts)

        sol = batched(self, st, one, (y0, xs), ts)
        after = {"model": renewed(self, self.model, y0, ps["model"], st["model"]), "initial": st_initial}
        return output(self, sol), after

    def _inputs(self, x: Any) -> tuple[jax.Array, jax.Array]:
        if not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError("a NeuralCDE takes the tuple (times, data)")
        xs = floating(x[1])
        ts = times_like(x[0], xs, self.batching)
        unequal = ts.ndim == 2 and xs.shape[:1] != ts.shape[:1]
        if xs.ndim < 2 or xs.shape[-2] != ts.shape[-1] or unequal:
            raise ValueError(f"data for times of shape {ts.shape} has shape (..., times, channels), got {xs.shape}")
        if self.counts:
            seen = jnp.cumsum(~jnp.isnan(xs), axis=-2) / xs.shape[-2]
            xs = jnp.concatenate([xs, seen.astype(xs.dtype)], axis=-1)
        return ts, xs

    def _controller(self, path: Any) -> diffrax.AbstractStepSizeController:
        """The controller, which steps to the kinks of the path, unless one was given."""
        controller = self.controller()
        if self.stepsize_controller is not None or self.interpolation == "hermite":
            return controller
        return diffrax.ClipStepSizeController(controller, jump_ts=path.ts[1:-1])


class ControlledField(eqx.Module):
    """The vector field `f(y) dX/dt` of a controlled equation; `args` are the parameters of the whole layer."""

    frozen: OfChild
    path: diffrax.AbstractPath

    def __call__(self, t, y, ps):
        slope = self.path.derivative(t)
        f = self.frozen(t, y, ps)
        shape = (*y.shape, slope.shape[-1])
        if f.shape not in (shape, (*y.shape[:-1], y.shape[-1] * slope.shape[-1])):
            raise ValueError(
                f"the model of a NeuralCDE with {y.shape[-1]} hidden numbers and {slope.shape[-1]} channels, time "
                f"included, has the output shape {shape} here, or that with the last two axes as one; got {f.shape}"
            )
        return jnp.einsum("...hc,...c->...h", f.reshape(shape), slope)
