"""NeuralDDE: a layer whose output is the solution of a delay differential equation."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._tree import is_traced
from ...core import Constant, Layer, Wrapper, as_layer, field
from ...core.converters import checks_itself, flag, function, number, optional
from ...series import Series
from ..delays import Delays, solve_with_delays
from ..equation import Equation, Fields
from ..failure import guarded, mark_failure
from ..inputs import initial_array
from ..solvers.runge_kutta import unrolled
from ..times import save_times

Lag: TypeAlias = float | str | Callable[..., Any]


@checks_itself
def _lags(value: Lag | Sequence[Lag] | np.ndarray) -> tuple[Lag, ...]:
    items = value if isinstance(value, tuple | list) else [value] if callable(value) or isinstance(value, str) else None
    items = np.ravel(np.asarray(value, float)) if items is None else items
    lags = tuple(item if isinstance(item, str) or callable(item) else number(item) for item in items)
    numbers = [lag for lag in lags if isinstance(lag, float)]
    if not lags or min(numbers, default=1.0) <= 0 or max(numbers, default=1.0) == math.inf:
        raise ValueError(f"expected one or more positive times, names of parameters or functions, got {value}")
    return lags


class NeuralDDE(Wrapper, Equation):
    r"""The solution of :math:`dy/dt = f(y(t), y(t - \tau_1), y(t - \tau_2), \ldots)` with delays.

    * `model`: the layer `f`, `(..., n (1 + delays)) -> (..., n)`; it gets the present and the delayed values side by
      side, in the order of `lags`, along the last axis;
    * `lags`: one or more delays: positive times; names of parameters of the model, such as `"physics.tau"` of a
      `lux.UDE`, which are trained with the others; functions `lag(t, y, ps)` of the state and of the parameters;
    * `history`: the solution before the start, `history(t, y0)` or `history(t, y0, ps)`, a JAX function of one time;
      `None` is the constant `y0`. It may end elsewhere than in `y0`;
    * `dt0`: the size of the steps, at most the shortest lag, by default a tenth of it or less; of the first step, where
      they adapt;
    * `adaptive`: whether steps adapt to the tolerances; `None` says so where a tolerance or a controller is not the
      default, and where a lag is no number, for which they always do;
    * `rtol`, `atol`, `stepsize_controller`: for steps that adapt;
    * `solver`: an explicit Runge-Kutta method of diffrax;
    * `ts`, `time_dependent`, `controlled`, `max_steps`, `output`, `batching`, `on_state_update`: those of
      `lux.Equation`. The others it does not have.

    Fixed steps: past values come from the cubic Hermite interpolation of earlier steps, so that the order is that of
    the solver, up to four, where `dt0` divides the lags: derivatives jump at their multiples. All is one `lax.scan`,
    which has every derivative.

    Steps that adapt: past values come from the solver's own interpolation, and steps end at the sums of constant and
    trained lags after the start, up to the order of the solver, where derivatives jump. These move with the lags, and
    so gradients by a lag are exact, that of a history which ends elsewhere than in `y0` too. Where a lag depends on the
    state, and at jumps of the model in time, steps are only made small: there the gradient leaves out that a jump of
    the solution or of its slope moves. Steps are no longer than the shortest lag; where it comes to zero or below, the
    solve fails. Derivatives are those of the accepted steps, in all modes and orders; memory is that of `max_steps`
    steps.

    Input and output are those of `NeuralODE`, for arrays `y0` `(..., n)`, with times that increase; for fixed steps
    they are known while tracing, and the same for all samples. Raises `ValueError` for lags that are not positive,
    steps longer than a lag, other solvers, options that it does not have, and more than `max_steps` fixed steps.

    Bellen, Zennaro, "Numerical methods for delay differential equations", 2003.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> dde = lux.NeuralDDE(lux.Lambda(lambda x: -x[..., 1:]), lags=[1.0], ts=[0.0, 1.0, 2.0])  # y' = -y(t - 1)
    >>> sol, st = dde(jnp.ones(1), {}, {})
    >>> bool(jnp.allclose(sol.ys[:, 0], jnp.array([1.0, 0.0, -0.5]), atol=1e-6))
    True
    >>> def field(x, p, nets):
    ...     return -x[..., 1:]
    >>> dde = lux.NeuralDDE(lux.UDE(field, {"tau": 1.0}), "physics.tau", ts=[0.0, 2.0], output="final")
    >>> ps, st = lux.setup(jax.random.key(0), dde)
    >>> slope = jax.grad(lambda ps: dde(jnp.ones(1), ps, st)[0][0])(ps).physics.tau  # y(2) = 1 - 2 + (2 - tau)^2 / 2
    >>> bool(jnp.isclose(slope, -1.0, rtol=1e-4))
    True
    """

    lacks: ClassVar = dict.fromkeys(
        ("adjoint", "saveat", "event", "jumps", "events", "progress_meter", "throw"),
        "its solve is its own, and has every derivative",
    )

    model: Layer = field(converter=as_layer)
    lags: tuple[Lag, ...] = field(converter=_lags)
    ts: Constant | None = field(default=None, converter=save_times)
    adaptive: bool | None = field(default=None, converter=optional(flag), kw_only=True)
    history: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)

    def __check_init__(self):
        shortest = min(self._numbers, default=math.inf)
        if self.dt0 is not None and self.dt0 > shortest * (1 + 1e-9):
            raise ValueError(f"steps are at most as long as the shortest lag, {shortest}, got dt0={self.dt0}")
        if self._adapts and self.max_steps is None:
            raise ValueError("a NeuralDDE whose steps adapt keeps room for all of them: max_steps is a number")
        if self.adaptive is False and len(self._numbers) < len(self.lags):
            raise ValueError("steps adapt where a lag is no number: leave out adaptive=False")
        if self.adaptive is False and not self.has_default("rtol", "atol", "stepsize_controller"):
            raise ValueError("a tolerance is for steps that adapt: leave out adaptive=False")
        solver = self.option("solver")
        if not (isinstance(solver, diffrax.AbstractERK) and isinstance(solver.tableau, diffrax.ButcherTableau)):
            raise ValueError(f"a NeuralDDE takes an explicit Runge-Kutta solver of diffrax, got {solver}")

    @property
    def _numbers(self) -> list[float]:
        """The lags that are numbers."""
        return [lag for lag in self.lags if isinstance(lag, float)]

    @property
    def _adapts(self) -> bool:
        """Whether steps adapt to the tolerances."""
        if self.adaptive is not None:
            return self.adaptive
        return not (len(self._numbers) == len(self.lags) and self.has_default("rtol", "atol", "stepsize_controller"))

    def problem(self, x, ps, st):
        if self._adapts:
            problem, st = super().problem(x, ps, st)
            increase = jnp.all(jnp.diff(problem.ts) >= 0, -1, keepdims=True)
            if not is_traced(increase) and not increase.all():
                raise ValueError("the times of a NeuralDDE increase")
            ts = jnp.where(increase, problem.ts, jnp.nan)
            return problem._replace(y0=initial_array("NeuralDDE", problem.y0), ts=ts), st
        if self.ts is None and isinstance(x, tuple) and len(x) > 1 and is_traced(x[1]):
            raise ValueError("the times of a NeuralDDE are known while tracing: give `ts` to the layer")
        ts = self.ts if self.ts is not None else x[1] if isinstance(x, tuple) and len(x) > 1 else None
        if isinstance(ts, Series):
            raise ValueError("a NeuralDDE with fixed steps has the same times for all samples: give it adaptive=True")
        times = None if ts is None else np.asarray(save_times(ts), float)
        if times is not None and (times.ndim != 1 or times[-1] < times[0]):
            raise ValueError(f"the times of a NeuralDDE increase, and have shape (times,); got shape {times.shape}")
        problem, st = super().problem(x, ps, st)
        return problem._replace(y0=initial_array("NeuralDDE", problem.y0), data=Constant(times)), st

    def terms(self, fields):
        return diffrax.ODETerm(fields["model"].value)

    def solve(self, fields):
        return self._adaptive(fields) if self._adapts else self._fixed(fields)

    def _adaptive(self, fields):
        y0, ts = jnp.asarray(fields.problem.y0), fields.problem.ts
        known = jnp.all(jnp.isfinite(ts))  # else the solve fails, and its derivatives shall be finite
        y0, ts = jnp.where(known, y0, jnp.nan), jnp.where(known, ts, jnp.arange(ts.size).astype(ts.dtype))
        ts_saved = ts[-1:] if self.output == "final" else ts
        history = eqx.filter_closure_convert(self._history, ts[0], y0, fields.ps)
        delays = Delays(
            self._checked(fields), self._values(ts[0], y0, fields.ps), history, fields.ps, y0, ts[0], ts[-1]
        )
        controller = self.option("stepsize_controller") or diffrax.PIDController(self.rtol, self.atol)
        solver = unrolled(self.option("solver"))
        assert self.max_steps is not None  # `__check_init__` says so
        found = solve_with_delays(delays, solver, guarded(controller), self.dt0, self.max_steps)
        ys, mesh = found.values(y0, ts_saved, solver), found.mesh
        stats = {
            "num_steps": mesh.tried,
            "num_accepted_steps": mesh.accepted,
            "num_rejected_steps": mesh.tried - mesh.accepted,
            "max_steps": self.max_steps,
        }
        return self._solution(fields, ts_saved, ys, stats, found.result)

    def _values(self, t0: jax.Array, y0: jax.Array, ps: Any) -> tuple[Any, ...]:
        """The lags as arrays `()`, those that depend on the state as functions."""
        values = []
        for lag in self.lags:
            if callable(lag):
                values.append(eqx.filter_closure_convert(_of_state(lag, t0.dtype), t0, y0, ps))
                continue
            value = _parameter(ps, lag) if isinstance(lag, str) else lag
            values += list(jnp.ravel(jnp.asarray(value)).astype(t0.dtype))
        return tuple(values)

    def _history(self, t: jax.Array, y0: jax.Array, ps: Any) -> jax.Array:
        """The solution at the time `t` before the start."""
        if self.history is None:
            return y0
        y = jnp.asarray(self.history(t, y0, ps) if _takes_parameters(self.history) else self.history(t, y0))
        if y.shape != y0.shape:
            raise ValueError(f"the history has the shape of the initial value, {y0.shape}; got {y.shape}")
        return y.astype(y0.dtype)

    def _fixed(self, fields):
        y0, ts, times = fields.problem.y0, fields.problem.ts, np.asarray(fields.problem.data)
        h = self._step(times)
        if (self.time_dependent or self.controlled) and h < 4 * jnp.finfo(ts.dtype).eps * np.abs(times).max():
            raise ValueError(f"steps of {h:g} at times about {times[-1]:g} are lost in {ts.dtype}: start near zero")
        steps = self._steps(times, h)
        pieces = self._pieces(self._checked(fields), jnp.asarray(y0), ts[0], h, steps, fields.ps)
        last = slice(-1, None) if self.output == "final" else slice(None)
        stats = {"num_steps": len(pieces), "max_steps": self.max_steps}
        ys = _saved(pieces, (times[last] - times[0]) / h)
        return self._solution(fields, ts[last], ys, stats, diffrax.RESULTS.successful)

    def _solution(self, fields: Fields, ts: jax.Array, ys: Any, stats: Any, result: Any) -> diffrax.Solution:
        nothing = dict.fromkeys(("interpolation", "solver_state", "controller_state", "made_jump", "event_mask"))
        t0, t1 = fields.problem.ts[0], fields.problem.ts[-1]
        sol = diffrax.Solution(t0=t0, t1=t1, ts=ts, ys=ys, stats=stats, result=result, **nothing)
        sol = mark_failure(sol, complete=True)
        return dataclasses.replace(sol, ys=jax.tree.structure(fields.problem.y0).unflatten([sol.ys]))

    def _checked(self, fields: Fields) -> "_CheckedField":
        return _CheckedField(self.terms(fields).vector_field, jnp.shape(fields.problem.y0))

    def first_inputs(self, fields):
        y0, ts = jnp.asarray(fields.problem.y0), fields.problem.ts
        count = len(self._values(ts[0], y0, fields.ps))
        present_and_past = jnp.concatenate([y0] * (1 + count), -1)
        return {"model": fields["model"].input(ts[0], present_and_past)}

    def _step(self, times: np.ndarray) -> float:
        """The step: as given, or a part of the shortest lag, a tenth at most, that makes fifty steps at least."""
        if self.dt0 is not None:
            return self.dt0
        shortest = min(self._numbers)
        return shortest / max(10, math.ceil(50 * shortest / (times[-1] - times[0])))

    def _steps(self, times: np.ndarray, h: float) -> int:
        steps = math.ceil((times[-1] - times[0]) / h - 1e-6)
        if self.max_steps is not None and steps > self.max_steps:
            raise ValueError(f"this NeuralDDE takes {steps} steps of {h}, more than max_steps={self.max_steps}")
        return steps

    def _pieces(self, f: Any, y0: jax.Array, t0: jax.Array, h: float, steps: int, ps: Any) -> jax.Array:
        """The solution as cubic Hermite pieces, `(steps, 4, ..., n)`: values and `h` times slopes at both ends."""
        tableau = self.option("solver").tableau
        lags = [_snap(lag / h) for lag in self._numbers]  # in steps

        def step(carry, k):
            window, y = carry
            t = t0 + k * h

            def slope(c, y):
                delayed = [_past(window, c, lag) for lag in lags]
                x = jnp.concatenate([y, *delayed], -1)
                return h * f((t + c * h).astype(t0.dtype), x, ps)

            ks, y1 = [slope(0.0, y)], y
            for row, c in zip(tableau.a_lower, tableau.c, strict=True):
                y1 = _plus(y, row, ks)
                ks.append(slope(float(c), y1))
            y1 = y1 if tableau.ssal else _plus(y, tableau.b_sol, ks)
            end = ks[-1] if tableau.fsal else slope(1.0, y1)
            piece = jnp.stack([y, ks[0], y1, end])
            return (jnp.concatenate([window[1:], piece[None]]), y1), piece

        window = self._past_pieces(y0, t0, h, math.ceil(max(lags)), ps)
        return lax.scan(step, (window, y0), jnp.arange(steps).astype(t0.dtype))[1]

    def _past_pieces(self, y0: jax.Array, t0: jax.Array, h: float, count: int, ps: Any) -> jax.Array:
        if self.history is None:
            still = jnp.stack([y0, jnp.zeros_like(y0), y0, jnp.zeros_like(y0)])
            return jnp.broadcast_to(still, (count, *still.shape))

        def node(t):
            y, slope = jax.jvp(lambda t: self._history(t, y0, ps), (t,), (jnp.ones_like(t),))
            return jnp.stack([y, h * slope])

        nodes = jax.vmap(node)(t0 + h * jnp.arange(-count, 1).astype(t0.dtype))
        return jnp.concatenate([nodes[:-1], nodes[1:]], 1).astype(y0.dtype)


class _CheckedField(eqx.Module):
    """The field `f(t, x, ps)` of present and past values `x`, whose output is like the present ones."""

    field: Callable[..., Any]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, t: Any, x: jax.Array, ps: Any) -> jax.Array:
        dy = jnp.asarray(self.field(t, x, ps))
        if dy.shape != self.shape or dy.dtype != x.dtype:
            raise ValueError(
                f"the model of a NeuralDDE takes {x.shape}, present and past values, and returns {x.dtype} "
                f"{self.shape}; got {dy.dtype} {dy.shape}"
            )
        return dy


def _saved(pieces: jax.Array, places: np.ndarray) -> jax.Array:
    """The values at places, in steps, of Hermite pieces."""
    which = np.clip(np.ceil(places - 1e-9).astype(int) - 1, 0, len(pieces) - 1)
    weights = np.stack([_hermite(place - i) for place, i in zip(places, which, strict=True)])
    return jnp.einsum("tk,tk...->t...", jnp.asarray(weights, pieces.dtype), pieces[which])


def _of_state(lag: Callable[..., Any], dtype: Any) -> Callable[..., jax.Array]:
    """A lag that depends on the state, in the type of the time."""

    def value(t: Any, y: Any, ps: Any) -> jax.Array:
        found = jnp.asarray(lag(t, y, ps))
        if found.shape != ():
            raise ValueError(
                f"a lag of the state is one number, got the shape {found.shape}: with batching='vmap' each sample has "
                "its own"
            )
        return found.astype(dtype)

    return value


def _parameter(ps: Any, name: str) -> Any:
    """The parameter of that name, `physics.tau` say."""
    for part in name.split("."):
        if not isinstance(ps, dict) or part not in ps:
            found = ", ".join(ps) if isinstance(ps, dict) else "no more names"
            raise ValueError(f"the lag {name!r} names a parameter of the model, which has no {part!r} but {found}")
        ps = ps[part]
    if isinstance(ps, dict):
        raise ValueError(f"the lag {name!r} names one parameter of the model, and there are {', '.join(ps)}")
    return ps


def _takes_parameters(history: Callable[..., Any]) -> bool:
    try:
        inspect.signature(history).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # of functions written in C
        return False
    return True


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
