"""NeuralDDE: a layer whose output is the solution of a delay differential equation."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._tree import is_traced
from ...core import Constant, Layer, Wrapper, as_layer, field
from ...core.converters import checks_itself, function, number, optional
from ..equation import Equation
from ..failure import mark_failure
from ..inputs import initial_array
from ..times import save_times


@checks_itself
def _lags(value: float | Sequence[float] | np.ndarray) -> tuple[float, ...]:
    lags = tuple(map(number, np.ravel(np.asarray(value, float))))
    if not (lags and min(lags) > 0 and max(lags) < math.inf):
        raise ValueError(f"expected one or more positive times, got {value}")
    return lags


class NeuralDDE(Wrapper, Equation):
    r"""The solution of :math:`dy/dt = f(y(t), y(t - \tau_1), y(t - \tau_2), \ldots)` with constant delays.

    * `model`: the layer `f`, `(..., n (1 + delays)) -> (..., n)`; it gets the present and the delayed values side by
      side, in the order of `lags`, along the last axis;
    * `lags`: the delays, one or more positive times;
    * `history`: the solution before the start, `history(t, y0)`, a JAX function of one time; `None` is the constant
      `y0`. It may end elsewhere than in `y0`;
    * `dt0`: the size of the steps, at most the shortest lag, by default a tenth of it or less;
    * `solver`: an explicit Runge-Kutta method of diffrax;
    * `ts`, `time_dependent`, `controlled`, `max_steps`, `output`, `batching`, `on_state_update`: those of
      `lux.Equation`. The others it does not have.

    Past values come from the cubic Hermite interpolation of earlier steps, so that the order is that of the solver, up
    to four, where `dt0` divides the lags: derivatives jump at their multiples. All is one `lax.scan`, which has every
    derivative.

    Input and output are those of `NeuralODE`, for arrays `y0` `(..., n)`, with times that increase and are known while
    tracing. Raises `ValueError` for lags that are not positive, steps longer than a lag, other solvers, options that it
    does not have, and more than `max_steps` steps.

    Bellen, Zennaro, "Numerical methods for delay differential equations", 2003.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> dde = lux.NeuralDDE(lux.Lambda(lambda x: -x[..., 1:]), lags=[1.0], ts=[0.0, 1.0, 2.0])  # y' = -y(t - 1)
    >>> sol, st = dde(jnp.ones(1), {}, {})
    >>> bool(jnp.allclose(sol.ys[:, 0], jnp.array([1.0, 0.0, -0.5]), atol=1e-6))
    True
    """

    lacks: ClassVar = dict.fromkeys(
        ("rtol", "atol", "stepsize_controller", "adjoint", "saveat", "event", "jumps", "progress_meter", "throw"),
        "it takes fixed steps in one scan",
    )

    model: Layer = field(converter=as_layer)
    lags: tuple[float, ...] = field(converter=_lags)
    ts: Constant | None = field(default=None, converter=save_times)
    history: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)

    def __check_init__(self):
        if self.dt0 is not None and self.dt0 > min(self.lags) * (1 + 1e-9):
            raise ValueError(f"steps are at most as long as the shortest lag, {min(self.lags)}, got dt0={self.dt0}")
        solver = self.option("solver")
        if not (isinstance(solver, diffrax.AbstractERK) and isinstance(solver.tableau, diffrax.ButcherTableau)):
            raise ValueError(f"a NeuralDDE takes an explicit Runge-Kutta solver of diffrax, got {solver}")

    def problem(self, x, ps, st):
        if self.ts is None and isinstance(x, tuple) and len(x) > 1 and is_traced(x[1]):
            raise ValueError("the times of a NeuralDDE are known while tracing: give `ts` to the layer")
        ts = self.ts if self.ts is not None else x[1] if isinstance(x, tuple) and len(x) > 1 else None
        times = None if ts is None else np.asarray(save_times(ts), float)
        if times is not None and (times.ndim != 1 or times[-1] < times[0]):
            raise ValueError(f"the times of a NeuralDDE increase, and have shape (times,); got shape {times.shape}")
        problem, st = super().problem(x, ps, st)
        return problem._replace(y0=initial_array("NeuralDDE", problem.y0), data=Constant(times)), st

    def terms(self, fields):
        return diffrax.ODETerm(fields["model"].value)

    def solve(self, fields):
        y0, ts, times = fields.problem.y0, fields.problem.ts, np.asarray(fields.problem.data)
        h = self._step(times)
        if (self.time_dependent or self.controlled) and h < 4 * jnp.finfo(ts.dtype).eps * np.abs(times).max():
            raise ValueError(f"steps of {h:g} at times about {times[-1]:g} are lost in {ts.dtype}: start near zero")
        steps, f = self._steps(times, h), self.terms(fields).vector_field
        pieces = self._pieces(f, jnp.asarray(y0), ts[0], h, steps, fields.ps)
        sol = mark_failure(self._solution(pieces, times, ts, h), complete=True)
        return dataclasses.replace(sol, ys=jax.tree.structure(y0).unflatten([sol.ys]))

    def first_inputs(self, fields):
        present_and_past = jnp.concatenate([fields.problem.y0] * (1 + len(self.lags)), -1)
        return {"model": fields["model"].input(fields.problem.ts[0], present_and_past)}

    def _step(self, times: np.ndarray) -> float:
        """The step: as given, or a part of the shortest lag, a tenth at most, that makes fifty steps at least."""
        if self.dt0 is not None:
            return self.dt0
        shortest = min(self.lags)
        return shortest / max(10, math.ceil(50 * shortest / (times[-1] - times[0])))

    def _steps(self, times: np.ndarray, h: float) -> int:
        steps = math.ceil((times[-1] - times[0]) / h - 1e-6)
        if self.max_steps is not None and steps > self.max_steps:
            raise ValueError(f"this NeuralDDE takes {steps} steps of {h}, more than max_steps={self.max_steps}")
        return steps

    def _pieces(self, f: Any, y0: jax.Array, t0: jax.Array, h: float, steps: int, ps: Any) -> jax.Array:
        """The solution as cubic Hermite pieces, `(steps, 4, ..., n)`: values and `h` times slopes at both ends."""
        tableau = self.option("solver").tableau
        lags = [_snap(lag / h) for lag in self.lags]  # in steps

        def step(carry, k):
            window, y = carry
            t = t0 + k * h

            def slope(c, y):
                delayed = [_past(window, c, lag) for lag in lags]
                x = jnp.concatenate([y, *delayed], -1)
                dy = jnp.asarray(f((t + c * h).astype(t0.dtype), x, ps))
                if dy.shape != y.shape or dy.dtype != y.dtype:
                    raise ValueError(
                        f"the model of a NeuralDDE takes {x.shape}, present and past values, and returns {y.dtype} "
                        f"{y.shape}; got {dy.dtype} {dy.shape}"
                    )
                return h * dy

            ks, y1 = [slope(0.0, y)], y
            for row, c in zip(tableau.a_lower, tableau.c, strict=True):
                y1 = _plus(y, row, ks)
                ks.append(slope(float(c), y1))
            y1 = y1 if tableau.ssal else _plus(y, tableau.b_sol, ks)
            end = ks[-1] if tableau.fsal else slope(1.0, y1)
            piece = jnp.stack([y, ks[0], y1, end])
            return (jnp.concatenate([window[1:], piece[None]]), y1), piece

        window = self._past_pieces(y0, t0, h, math.ceil(max(lags)))
        return lax.scan(step, (window, y0), jnp.arange(steps).astype(t0.dtype))[1]

    def _past_pieces(self, y0: jax.Array, t0: jax.Array, h: float, count: int) -> jax.Array:
        history = self.history
        if history is None:
            still = jnp.stack([y0, jnp.zeros_like(y0), y0, jnp.zeros_like(y0)])
            return jnp.broadcast_to(still, (count, *still.shape))

        def node(t):
            y, slope = jax.jvp(lambda t: history(t, y0), (t,), (jnp.ones_like(t),))
            return jnp.stack([y, h * slope])

        nodes = jax.vmap(node)(t0 + h * jnp.arange(-count, 1).astype(t0.dtype))
        if nodes.shape[2:] != y0.shape:
            raise ValueError(f"the history has the shape of the initial value, {y0.shape}; got {nodes.shape[2:]}")
        return jnp.concatenate([nodes[:-1], nodes[1:]], 1).astype(y0.dtype)

    def _solution(self, pieces: jax.Array, times: np.ndarray, ts: jax.Array, h: float) -> diffrax.Solution:
        last = slice(-1, None) if self.output == "final" else slice(None)
        places, ts_saved = (times[last] - times[0]) / h, ts[last]
        which = np.clip(np.ceil(places - 1e-9).astype(int) - 1, 0, len(pieces) - 1)
        weights = np.stack([_hermite(place - i) for place, i in zip(places, which, strict=True)])
        ys = jnp.einsum("tk,tk...->t...", jnp.asarray(weights, pieces.dtype), pieces[which])
        nothing = dict.fromkeys(("interpolation", "solver_state", "controller_state", "made_jump", "event_mask"))
        stats = {"num_steps": len(pieces), "max_steps": self.max_steps}
        result = diffrax.RESULTS.successful
        return diffrax.Solution(t0=ts[0], t1=ts[-1], ts=ts_saved, ys=ys, stats=stats, result=result, **nothing)


def _past(window: jax.Array, c: float, lag: float) -> jax.Array:
    """The value `lag` steps before stage `c`; where it may jump, from the side that the step lies on."""
    place = c - lag
    piece = math.ceil(place) - 1 if c == 1 else math.floor(place)
    weights = jnp.asarray(_hermite(place - piece), window.dtype)
    return jnp.einsum("k,k...->...", weights, window[len(window) + piece])


def _hermite(s: float) -> np.ndarray:
    """The weights of `y0, k0, y1, k1` at the fraction `s` of a piece."""
    return np.array([(1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2, s**2 * (3 - 2 * s), s**2 * (s - 1)])


def _snap(lag: float) -> float:
    """A lag in steps, whole where it is up to rounding."""
    return float(round(lag)) if abs(lag - round(lag)) < 1e-9 * lag else lag


def _plus(y: jax.Array, weights: Any, ks: list[jax.Array]) -> jax.Array:
    return y + sum(float(w) * k for w, k in zip(weights, ks, strict=True) if w != 0)
