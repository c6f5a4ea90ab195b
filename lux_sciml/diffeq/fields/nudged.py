"""The prediction-error method: a vector field that is nudged toward the data."""

from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np

from ..._tree import widened
from ...core import Constant, Layer, Wrapper, as_layer, field
from ...core.converters import checks_itself, flag, number, numbers
from ..field import like
from ..times import save_times, times_in
from .energy import join_input, split_input


@checks_itself
def _gain(value: Any) -> float | Constant:
    return numbers(value) if np.ndim(value) else number(value)


class Nudged(Wrapper):
    r"""The vector field :math:`dy/dt = f(t, y) + K (\hat y(t) - y)`, nudged toward data by the gain `K`.

    With a gain, the solution stays near the data from bad parameters too, and the loss has one broad valley where that
    of a free solve has many. It is fitted with less and less gain, down to none: the parameters and state are those of
    `f`, and go from one to the next, and to the `NeuralODE` of `f` itself. Use it with `time_dependent=True`, whether
    `f` is or not (`time_dependent` here says so).

    * `model`: the layer `f`;
    * `ts`, `data`: the data `(times, n)`, or `(times, ..., n)` for a batch, at the times `ts`; between them they are
      interpolated linearly, and held constant outside;
    * `gain`: a number, one for each component `(n,)`, or a matrix `(n, n)`; zero where components are not observed
      (data there are not looked at, and may be NaN);
    * `time_dependent`: `f` is called with `(t, y)`.

    Larsson, Sjöberg, Ljung, "Nonlinear system identification: prediction error method", 2009. Raises `ValueError` for
    unequal lengths and for NaN in data of observed components.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> ts, data = jnp.linspace(0.0, 1.0, 5), jnp.ones((5, 2))
    >>> nudged = lux.NeuralODE(lux.Nudged(lux.Dense(2, 2), ts, data, gain=10.0), ts, time_dependent=True)
    >>> ps, st = lux.setup(jax.random.key(0), nudged)
    >>> nudged(data[0], ps, st)[0].ys.shape
    (5, 2)
    """

    model: Layer = field(converter=as_layer)
    ts: Constant = field(converter=save_times)
    data: Constant = field(converter=numbers)
    gain: float | Constant = field(default=1.0, converter=_gain)
    time_dependent: bool = field(default=False, converter=flag, kw_only=True)

    def __check_init__(self):
        if np.shape(self.data)[:1] != np.shape(self.ts):
            raise ValueError(f"data have shape (times, ...), with {np.size(self.ts)} times; got {np.shape(self.data)}")
        if np.isnan(np.where(self._seen(), np.asarray(self.data, float), 0)).any():
            raise ValueError("data of components with a gain are known at all times, got NaN: fill them, or leave the "
                             "times or components out")  # fmt: skip

    def _seen(self) -> np.ndarray:
        """Which components are observed."""
        gain = np.asarray(self.gain)
        return np.asarray(np.any(gain != 0, axis=0) if gain.ndim == 2 else gain != 0)

    def forward(self, x, ps, st):
        t, y, u = split_input(x)
        if t is None:
            raise ValueError("a Nudged field is called with (t, y): give the NeuralODE time_dependent=True")
        dy, st = self.model.forward(join_input(t if self.time_dependent else None, y, u), ps, st)
        gain, times, data, seen = np.asarray(self.gain), np.asarray(self.ts), np.asarray(self.data, float), self._seen()
        order, here = np.argsort(times), widened(jnp.asarray(y))
        path = diffrax.LinearInterpolation(
            ts=times_in(t.dtype, times[order]), ys=jnp.asarray(np.where(seen, data, 0)[order], here.dtype)
        )
        error = path.evaluate(jnp.clip(t, path.ts[0], path.ts[-1])) - jnp.where(seen, here, 0)
        gain = jnp.asarray(gain, here.dtype)
        pull = (error @ gain.T if gain.ndim == 2 else gain * error).astype(y.dtype)
        return like(y, dy) + pull, st
