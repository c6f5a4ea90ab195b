"""Events: what happens to the state of an equation where a condition is met, and how that is found in a step."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .._tree import describe
from ..core import Container, Layer, field
from ..core.converters import checks_itself, count, integer, optional
from .field import Field
from .jumps import of_time_and_state
from .solvers.wrapped import Wrapped

_PARTS = 5  # of a step, at the ends of which the conditions are looked at
_SEARCH = 16, 6  # parts of an interval, and how often the first with an event is divided anew: 16**6 > 1e7


@checks_itself
def _direction(value: int) -> int:
    sign = integer(value)
    if sign not in (-1, 0, 1):
        raise ValueError(f"expected 1 where the condition rises, -1 where it falls, or 0 for both, got {sign}")
    return sign


@checks_itself
def _terminal(value: bool | int) -> bool | int:
    return value if isinstance(value, bool) else count(value) if value else False


class Event(Container):
    r"""An event: where :math:`c(t, y, p)` crosses zero, the state jumps, and the solve goes on from there.

    The option `events` of equations is a list of them.

    * `condition`, by position too: the function `c(t, y, ps)`, with the parameters of the equation as nested dicts, or
      a layer, called as the vector field is, with `y` or, with `time_dependent`, `(t, y)`. It returns one number.
    * `effect`, by position too: the state after the event, in the same form; `None` leaves it as it is.
    * `direction`: 1 for events where the condition rises through zero, -1 where it falls, 0 for both. From zero on, as
      that of a ball which is thrown from the floor, there is no event.
    * `terminal`: the solve ends at its first event, after its effect, or with a number, `terminal=5`, at the fifth.
      What is saved later is that state, and `sol.result` is `diffrax.RESULTS.event_occurred`; `sol.t1` is the time.
    * `max_count`: the number of events, beyond which the solve fails; where it ends at some number, that one counts.

    Parameters of the layers are those of the equation under `events_0`, `events_1`, ...: `ps["events_0"]["effect"]`.

    The conditions are looked at in five parts of each step, so that of two crossings within one part none is seen. The
    first event is taken; those within 1e-8 of a step of it happen with it, in the order in which they are declared,
    each with the state that the ones before it have left. Then the solve starts anew. Its time is a root of the
    condition, to rounding where this is smooth, and its derivatives, of first and second order and by every adjoint,
    are those of the implicit function theorem, :math:`dt = -dc / (\partial_t c + \partial_y c f)`. A condition that an
    effect or a jump takes across zero is no event.

    `sol.stats["events"]` has the events in order, padded with infinity, or -1: `times`, which are differentiable,
    `index`, that of the event in the list, `left` and `right`, the states before and after; and `count`, for each in
    the list. Where events come faster and faster, so that time stands still (Zeno), the solve fails, with the result
    `dt_min_reached`, with too many of them with `max_steps_reached`; `lux.raise_if_failed` says so. It is `nonfinite`
    where a condition is NaN at the start, at an event or a jump, or at the end.

    Chen, Amos and Nickel, "Learning neural event functions for ordinary differential equations", ICLR 2021. Raises
    `TypeError` for conditions that return anything but one real number, and `ValueError` for effects that change the
    structure, the shapes or the types of the state.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> def fall(y):
    ...     height, velocity = y
    ...     return jnp.stack([velocity, -9.81 * jnp.ones_like(height)])
    >>> bounce = lux.Event(lambda t, y, ps: y[0], lambda t, y, ps: jnp.stack([y[0], -0.8 * y[1]]), direction=-1)
    >>> ball = lux.NeuralODE(fall, ts=[0.0, 1.0, 2.0], events=[bounce])
    >>> sol, _ = ball(jnp.array([1.0, 0.0]), {}, {})
    >>> times = sol.stats["events"]["times"]  # 0.452, 1.174, 1.752, and inf where there are no more
    >>> bool(jnp.allclose(times[:3], jnp.array([0.4515, 1.174, 1.7519]), atol=1e-4))
    True
    """

    condition: Layer | Callable[..., Any] = field(converter=of_time_and_state)
    effect: Layer | Callable[..., Any] | None = field(default=None, converter=optional(of_time_and_state))
    direction: int = field(default=0, converter=_direction, kw_only=True)
    terminal: bool | int = field(default=False, converter=_terminal, kw_only=True)
    max_count: int = field(default=64, converter=count, kw_only=True)

    def forward(self, x, ps, st):
        raise TypeError("an Event is an option of an equation, events=[lux.Event(...)], and is not called")


class Conditions(eqx.Module):
    """The conditions of the events of one solve, `(t, y, ps)` to an array of their values."""

    events: tuple[Field, ...]

    def __call__(self, t: Any, y: Any, ps: Any) -> jax.Array:
        return jnp.stack([self._value(event, t, y, ps) for event in self.events])

    def _value(self, event: Field, t: Any, y: Any, ps: Any) -> jax.Array:
        layer: Any = event.layer
        value = event.asked(layer.condition, "condition", t, y, ps)
        is_real = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
        if not is_real or value.size != 1:
            raise TypeError(
                f"the condition of an Event returns one real number, negative on one side, got {describe(value)}; for "
                "one of each sample take batching='vmap'"
            )
        return value.reshape(()).astype(t.dtype)

    @property
    def layers(self) -> list[Event]:
        return [event.layer for event in self.events if isinstance(event.layer, Event)]

    def directions(self) -> jax.Array:
        return jnp.array([event.direction for event in self.layers])

    def happen(self, before: Any, after: Any) -> Any:
        """Which events happen between two values of the conditions."""
        falls = (before > 0) & (after <= 0) & (self.directions() <= 0)
        return falls | ((before < 0) & (after >= 0) & (self.directions() >= 0))


class Watch(eqx.Module):
    """Where the events of a piece are looked for: from `t0` on, where the conditions have the signs `sides`."""

    conditions: Conditions
    ps: Any
    t0: jax.Array
    sides: jax.Array
    sign: jax.Array  # the direction of time, which the steps do not have

    def values(self, t: Any, y: Any) -> jax.Array:
        return self.conditions(t * self.sign, y, self.ps)

    def start(self, t: Any, y: Any) -> jax.Array:
        """The values at the start of a step."""
        return jnp.where(t * self.sign == self.t0, self.sides, self.values(t, y))

    def first(self, path: Any, t0: Any, t1: Any, start: Any, parts: int) -> tuple[Any, Any, Any, Any]:
        """The ends of the first part of an interval with events, the values before it, and which they are."""
        times = t0 + (t1 - t0) * (jnp.arange(1, parts + 1).astype(t0.dtype) / parts)
        times = times.at[-1].set(t1)
        values = jnp.concatenate([start[None], jax.vmap(lambda t: self.values(t, path.evaluate(t)))(times)])
        happen = self.conditions.happen(values[:-1], values[1:])
        i = jnp.argmax(jnp.any(happen, axis=-1))
        return jnp.where(i == 0, t0, times[i - 1]), times[i], values[i], happen[i]

    def found(self, path: Any, t0: Any, t1: Any, start: Any) -> tuple[Any, Any, Any, Any]:
        """The time of the first event in a step that has one, and which happens then, to the last digits; which ones
        happen together with it, and the values before them."""

        def divided(times: int, interval: Any) -> Any:
            return lax.fori_loop(0, times, lambda _, i: self.first(path, i[0], i[1], i[2], _SEARCH[0]), interval)

        together = divided(_SEARCH[1], self.first(path, t0, t1, start, _PARTS))
        _, t, _, first = divided(_SEARCH[1], together)
        return t, jnp.argmax(first), together[3], together[2]


def event_names(events: tuple[Event, ...]) -> list[str]:
    """The names of events as children of an equation."""
    return [f"events_{i}" for i in range(len(events))]


class WatchedSolver(Wrapped):
    """A solver that tells, beside the error of each step, whether there is an event in it."""

    watch: Watch

    # diffrax takes this one for the Runge-Kutta or implicit method that is inside, and asks for these.
    @property
    def scan_kind(self):
        return self.solver.scan_kind  # pyright: ignore

    @property
    def root_finder(self):
        return self.solver.root_finder  # pyright: ignore

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    def init(self, terms, t0, t1, y0, args):
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1, error, info, state, result = self.solver.step(terms, t0, t1, y0, args, solver_state, made_jump)
        path = self.interpolation_cls(t0=t0, t1=t1, **info)
        *_, happen = self.watch.first(path, t0, t1, self.watch.start(t0, y0), _PARTS)
        return y1, (error, jnp.any(happen).astype(jnp.result_type(t0))), info, state, result


class Stopping(diffrax.AbstractStepSizeController):
    """A controller that rejects the first step with an event in it, and ends the solve before it, with its size."""

    controller: diffrax.AbstractStepSizeController

    def wrap(self, direction):
        return type(self)(self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first, state = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return first, (state, jnp.zeros((), jnp.result_type(t0)))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        assert y_error is not None  # `WatchedSolver` has both
        error, happens = y_error
        keep, next_t0, next_t1, jump, state, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, error, error_order, controller_state[0]
        )
        stops = keep & (happens > 0)
        result = diffrax.RESULTS.where(
            stops & (result == diffrax.RESULTS.successful), diffrax.RESULTS.event_occurred, result
        )
        next_t0, next_t1 = jnp.where(stops, t0, next_t0), jnp.where(stops, t1, next_t1)
        return keep & ~stops, next_t0, next_t1, jump, (state, jnp.where(stops, t1 - t0, 0)), result


class _StoppingAdaptive(Stopping, diffrax.AbstractAdaptiveStepSizeController):
    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.rtol  # pyright: ignore

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.atol  # pyright: ignore

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm  # pyright: ignore


def stopping(controller: diffrax.AbstractStepSizeController) -> diffrax.AbstractStepSizeController:
    """The controller, which ends the solve before the first step with an event."""
    adaptive = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    return (_StoppingAdaptive if adaptive else Stopping)(controller)  # pyright: ignore[reportCallIssue]
