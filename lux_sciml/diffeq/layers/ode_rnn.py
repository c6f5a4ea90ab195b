"""ODERNN: a recurrent cell whose hidden state moves on between observations."""

from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import lax

from ..._tree import describe, floating
from ...core import Container, Layer, as_layer, field
from ...core.converters import flag
from ...core.printing import brief
from ...nn.recurrent_cells import cell_of, initial_carry
from ...series import Series
from ..equation import Equation, Problem, diffeqsolve, half_type, output_kind
from ..inputs import control_in, split_control, spread, times_and_data
from ..times import times_in, times_like


class IrregularSequence(Layer):
    """Irregular, incomplete data as a plain sequence: each step is told what is missing and how long ago the last was.

    Input `(ts, xs)`, `(times,)` or `(batch, times)` and `(..., times, channels)`; NaN marks what was not observed;
    output `(..., times, 1 + 2 channels)`: the time since the step before, the values, zero where missing, and 1 where
    they were observed, else 0. `lux.Recurrence` of a cell after it makes an encoder for `lux.LatentODE`. Of a
    `lux.diffeq.Series` the output is a tuple for the recurrence, `(features, None, mask)`. Raises `ValueError` for an
    input that is neither.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> xs = jnp.array([[5.0], [jnp.nan], [7.0]])
    >>> lux.IrregularSequence()((jnp.array([0.0, 1.0, 3.0]), xs), {}, {})[0].tolist()
    [[0.0, 5.0, 1.0], [1.0, 0.0, 0.0], [2.0, 7.0, 1.0]]
    """

    def forward(self, x, ps, st):
        series, x = x, spread(x)
        if not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError(f"IrregularSequence takes the tuple (times, data), or a Series, got {describe(x)}")
        ts, xs = x[0], floating(x[1])
        if isinstance(ts, Series):
            ts = times_like(ts, xs, "vmap")
        else:
            ts = times_in(max(xs.dtype, jnp.dtype("float32"), key=lambda dtype: dtype.itemsize), ts, monotone=False)
        gaps = jnp.diff(ts, axis=-1, prepend=ts[..., :1])[..., None]
        y = jnp.concatenate([jnp.broadcast_to(gaps, (*xs.shape[:-1], 1)).astype(xs.dtype), marked(xs)], -1)
        return (y, None, series.mask) if isinstance(series, Series) else y, st


def marked(xs: jax.Array) -> jax.Array:
    """The values, zero where missing, and after them 1 where they were observed, else 0."""
    missing = jnp.isnan(xs)
    return jnp.concatenate([jnp.where(missing, 0, xs), (~missing).astype(xs.dtype)], axis=-1)


class ODERNN(Container, Equation):
    r"""A recurrent cell at the observations, and :math:`dh/dt = f(h; p)` between them.

    Input `(ts, xs)`, as for `lux.NeuralCDE`; NaN marks what was not observed. At each time the cell gets `2 channels`
    features, the values, zero where missing, and which of them were observed; where none was, the hidden state stays.

    * `cell`: a recurrent cell, such as `lux.GRUCell(2 channels, hidden)`; of one with several carries, as `LSTMCell`,
      the first one moves between observations;
    * `model`: the layer `f`;
    * `reverse`: it starts at the last observation and ends at the first: an encoder;
    * `output`: `"ys"`, the hidden state after each observation, `(times, ..., hidden)`, or `(batch, times, hidden)`
      with `batching="vmap"`; or `"final"`, the last one, `(..., hidden)`;
    * the options of `lux.Equation`, without `ts`, `saveat` and `event`. `time_dependent` and `controlled` are about the
      model; the input is `(ts, xs, u)` then.

    Rubanova, Chen and Duvenaud, "Latent ODEs for irregularly-sampled time series", NeurIPS 2019. Raises `TypeError` for
    a layer that is no cell, `ValueError` for data of other shapes and for `output="solution"`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> rnn = lux.ODERNN(lux.GRUCell(4, 8), lux.Dense(8, 8, jnp.tanh), output="final")
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> rnn((jnp.array([0.0, 0.3, 1.0]), jnp.ones((5, 3, 2))), ps, st)[0].shape
    (5, 8)
    """

    takes: ClassVar = "the tuple (times, data)"
    one_term: ClassVar = True
    lacks: ClassVar = dict.fromkeys(("saveat", "event", "jumps", "events"), "it is many solves in a row")

    cell: Layer = field(converter=as_layer)
    model: Layer = field(converter=as_layer)
    reverse: bool = field(default=False, converter=flag, kw_only=True)
    output: str = field(default="ys", converter=output_kind, kw_only=True)

    def __check_init__(self):
        if cell_of(self.cell) is None:
            raise TypeError(f"ODERNN runs a recurrent cell, got {brief(self.cell)}")
        if self.output == "solution":
            raise ValueError('an ODERNN is many solves in a row: its output is "ys" or "final"')

    def problem(self, x, ps, st):
        x, control = split_control("ODERNN", spread(x), ("times", "data")) if self.controlled else (x, None)
        ts, xs = times_and_data(self, x)
        if self.reverse:
            ts, xs = jnp.flip(ts, -1), jnp.flip(xs, -2)
        carry = initial_carry(self.cell, ps["cell"], st["cell"], xs.shape[:-2], xs.dtype)
        half = half_type(xs)
        return Problem(carry, ts, control_in(ts.dtype, control), xs, half), st

    def terms(self, fields):
        return diffrax.ODETerm(fields["model"])

    def solve(self, fields):
        carry, ts, xs = fields.problem.y0, fields.problem.ts, fields.problem.data
        term, cell = self.terms(fields), fields["cell"]

        def moved(carry, span):
            h, *rest = carry if isinstance(carry, tuple) else (carry,)
            sol = diffeqsolve(self, term, h, fields, ts=span)
            assert sol.ys is not None
            return (sol.ys[-1], *rest) if isinstance(carry, tuple) else sol.ys[-1]

        def observed(carry, x):
            _, new = cell.output((marked(x), carry), fields.ps)
            seen = jnp.any(~jnp.isnan(x), axis=-1, keepdims=True)
            return jax.tree.map(lambda a, b: jnp.where(seen, a, b), new, carry)

        def step(carry, now):
            span, x = now
            carry = observed(moved(carry, span), x)
            return carry, _hidden(carry)

        xs = jnp.moveaxis(xs, -2, 0)
        first = observed(carry, xs[0])
        _, hs = lax.scan(step, first, (jnp.stack([ts[:-1], ts[1:]], axis=-1), xs[1:]))
        hs = jnp.concatenate([_hidden(first)[None], hs])
        return _HiddenStates(jnp.flip(hs, 0) if self.reverse and self.output == "ys" else hs)

    def first_inputs(self, fields):
        carry, ts, xs = fields.problem.y0, fields.problem.ts, fields.problem.data
        return {"cell": (marked(xs[..., 0, :]), carry), "model": fields["model"].input(ts[0], _hidden(carry))}


class _HiddenStates(NamedTuple):
    ys: jax.Array


def _hidden(carry: Any) -> jax.Array:
    return carry[0] if isinstance(carry, tuple) else carry
