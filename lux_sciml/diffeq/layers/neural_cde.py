"""NeuralCDE: a layer whose hidden state is driven by irregular, incomplete data."""

import dataclasses
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp

from ..._tree import single, widened
from ...core import Container, Layer, as_layer, field
from ...core.container import call_child
from ...core.converters import choice, count, flag, optional
from ..equation import Equation, Fields, Problem, diffeqsolve, half_type
from ..field import Field
from ..inputs import times_and_data
from ..logsignatures import log_path
from ..paths import INTERPOLATIONS, first_values, increasing, path_through
from ..times import lengths


class NeuralCDE(Container, Equation):
    r"""The solution of :math:`dy = f(y; p)\, dX(t)`, :math:`y(t_0) = \zeta(X(t_0); p)`, for a path `X` through data.

    Input: `(ts, xs)`, times `(times,)` and data `(times, channels)` or `(batch, times, channels)`; with
    `batching="vmap"` every sample may have its own times, `(batch, times)`, and its own number of them: a
    `lux.diffeq.Series`, or times whose last one is repeated at the end. NaN marks what was not observed. The path has
    time as its first channel and then those of the data: `C = 1 + channels`.

    * `model`, the layer `f`, maps `(..., hidden)` to `(..., hidden, C)`, or to `(..., hidden * C)`, which is reshaped;
    * `initial`, the layer zeta, maps `(..., C)` to `(..., hidden)`;
    * `interpolation`: how the path runs between the data, `"hermite"`, `"linear"` or `"rectilinear"`, see
      `lux.diffeq.control_path`. Where it has kinks the default controller steps exactly to them;
    * `counts`: the path has more channels, for each one of the data the number of observations so far, divided by that
      of the times: `C = 1 + 2 channels`;
    * `window`, `depth`: the log-ODE method for long series, neural rough differential equations: in each window of so
      many data the path is replaced by its log-signature, of depth 2 or 1, over the window's length, so that steps go
      from window to window. `C` above is then that of `lux.diffeq.logsignature`, for depth 2 `C + C (C - 1) / 2`: as
      published, the model learns the fields of the brackets too. `interpolation` is `"linear"` or `"rectilinear"`;
    * the options of `lux.Equation`, without `ts` and `controlled`.

    The output is a `diffrax.Solution` with the hidden state at `ts`, `ys` of shape `(times, ..., hidden)`, or `(batch,
    times, hidden)` with `batching="vmap"`; with `output="final"` the last one, `(..., hidden)`, for a layer after it
    that reads it out.

    Kidger et al., "Neural controlled differential equations for irregular time series", NeurIPS 2020; Morrill et al.,
    "Neural rough differential equations for long time series", ICML 2021. Raises
    `ValueError` for data and fields of other shapes and for times that do not increase, `TypeError` for data that are
    no array.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Chain(lux.Dense(8, 16, jax.nn.softplus), lux.Dense(16, 8 * 3, jnp.tanh))
    >>> cde = lux.Chain(lux.NeuralCDE(model, lux.Dense(3, 8), output="final"), lux.Dense(8, 1))
    >>> ps, st = lux.setup(jax.random.key(0), cde)
    >>> ts, xs = jnp.linspace(0.0, 1.0, 10), jnp.ones((5, 10, 2))
    >>> cde((ts, xs.at[2, 4, 1].set(jnp.nan)), ps, st)[0].shape
    (5, 1)
    """

    takes: ClassVar = "the tuple (times, data)"
    one_term: ClassVar = True
    lacks: ClassVar = dict.fromkeys(("controlled", "jumps", "events"), "its data drive it")

    model: Layer = field(converter=as_layer)
    initial: Layer = field(converter=as_layer)
    interpolation: str = field(default="hermite", converter=choice(*INTERPOLATIONS), kw_only=True)
    counts: bool = field(default=False, converter=flag, kw_only=True)
    window: int | None = field(default=None, converter=optional(count), kw_only=True)
    depth: int = field(default=2, converter=count, kw_only=True)

    def __check_init__(self):
        if self.depth not in (1, 2):
            raise ValueError(f"log-signatures are of depth 1 or 2, got {self.depth}")
        if self.window is None and self.depth != 2:
            raise ValueError("the depth of log-signatures is for a NeuralCDE with a window, window=...")
        if self.window is not None and self.interpolation == "hermite":
            raise ValueError(
                "log-signatures are of straight lines: give a NeuralCDE with a window interpolation='linear', or "
                "'rectilinear'"
            )

    def problem(self, x, ps, st):
        ts, xs = times_and_data(self, x)
        if self.counts:
            total = jnp.reshape(lengths(ts), (*ts.shape[:-1], 1, 1))
            seen = jnp.cumsum(~jnp.isnan(xs), axis=-2) / total
            xs = jnp.concatenate([xs, seen.astype(xs.dtype)], axis=-1)
        times = jnp.broadcast_to(ts[..., :1], (*xs.shape[:-2], 1))
        first = jnp.concatenate([times, first_values(single(xs[..., 0, :]))], axis=-1)
        half = half_type(xs)
        y0, st_initial = call_child("initial", self.initial, first, ps if half is None else single(ps), st)
        return Problem(y0, ts, None, xs, half), {**st, "initial": st_initial}

    def solve(self, fields):
        y0, ts, xs = fields.problem.y0, fields.problem.ts, fields.problem.data
        good = increasing(ts)
        y0, ts = jnp.where(good, y0, jnp.nan), jnp.where(good, ts, jnp.arange(ts.size, dtype=ts.dtype))
        path, times = path_through(ts, widened(jnp.moveaxis(xs, -2, 0)), self.interpolation, with_time=True), ts
        if self.interpolation == "rectilinear":
            times = jnp.minimum(path.ts[::2], path.ts[2 * (lengths(ts) - 1)])[: ts.size]
        if self.window is not None:
            assert isinstance(path, diffrax.LinearInterpolation)  # of this interpolation
            path = log_path(path, self.window * (2 if self.interpolation == "rectilinear" else 1), self.depth)
        fields = Fields(fields, Problem(y0, times, path), fields.ps)
        sol = diffeqsolve(self, self.terms(fields), y0, fields, controller=self._controller(path))
        return sol if self.output == "final" or self.saveat is not None else dataclasses.replace(sol, ts=ts)

    def terms(self, fields):
        path = fields.problem.control
        assert path is not None  # `solve` makes it
        return diffrax.ODETerm(_DrivenField(fields["model"], path))

    def first_inputs(self, fields):
        return {"model": fields["model"].input(fields.problem.ts[0], fields.problem.y0)}

    def _controller(self, path: Any) -> diffrax.AbstractStepSizeController:
        """The controller, which steps to the kinks of the path, unless one was given."""
        controller = self.controller()
        if self.stepsize_controller is not None or self.interpolation == "hermite" or len(path.ts) < 3:
            return controller
        assert isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
        return diffrax.ClipStepSizeController(controller, jump_ts=path.ts[1:-1])


class _DrivenField(eqx.Module):
    """The vector field `f(y) dX/dt`."""

    field: Field
    path: diffrax.AbstractPath

    def __call__(self, t, y, ps):
        slope = self.path.derivative(t)
        f = self.field.value(t, y, ps)
        shape = (*y.shape, slope.shape[-1])
        if f.shape not in (shape, (*y.shape[:-1], y.shape[-1] * slope.shape[-1])):
            raise ValueError(
                f"the model of a NeuralCDE with {y.shape[-1]} hidden features and {slope.shape[-1]} channels, time "
                f"included, has the output shape {shape} here, or that with the last two axes as one; got {f.shape}"
            )
        return jnp.einsum("...hc,...c->...h", f.reshape(shape), slope)
