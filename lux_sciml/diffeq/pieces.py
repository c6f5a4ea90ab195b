"""A solve in pieces, from each jump to the next: one loop and one program, whatever their number."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .._tree import still, where
from .adjoints.differentiable import differentiable_solve
from .adjoints.gauss import GaussAdjoint, parts_of
from .adjoints.implicit import ImplicitAdjoint
from .adjoints.isolation import Isolated, isolated
from .adjoints.record import any_sample
from .adjoints.reversible import ReversibleAdjoint
from .events import Conditions, Watch, WatchedSolver, event_names, stopping
from .failure import unless
from .field import Field
from .jumps import Doses, Jumps, require_durations, require_within

_AT_ALL_TIMES = (diffrax.BacksolveAdjoint, GaussAdjoint, ReversibleAdjoint)  # adjoints of whole solves only
_WITHOUT_PIECES = (diffrax.ImplicitAdjoint, ImplicitAdjoint)
_REPEATED = (diffrax.DirectAdjoint, *_AT_ALL_TIMES)  # those whose pieces are solved again on the way back


class Change(eqx.Module):
    """What happens to the state at known times, in one solve.

    The times are those that the solve goes to, in its direction: the starts of the jumps, and the ends of infusions.

    * `when`: the times with their derivatives, which are `moving` where there may be some; `stop`: without;
    * `jump`, `starts`: the numbers of the jumps, and whether they start there;
    * `effect`: what a jump does, `(i, t, y, ps) -> y`;
    * `spans`, `rates`: the starts and the ends of infusions, and what each adds to the derivative; or `None`;
    * `count`: how many jumps there are.
    """

    when: jax.Array
    stop: jax.Array
    jump: jax.Array
    starts: jax.Array
    effect: Callable[..., Any] | None
    spans: tuple[jax.Array, jax.Array] | None
    rates: Any
    moving: bool = eqx.field(static=True)
    count: int = eqx.field(static=True)


def change_of(jumps: Field | None, given: dict[str, Any], ps: Any, y0: Any, ts: jax.Array) -> Change:
    """What jumps, an entry of the fields of an equation, do in one solve; `given` is what the call brought."""
    none = jnp.zeros(0, ts.dtype)
    nothing = Change(none, none, jnp.zeros(0, int), jnp.zeros(0, bool), None, None, None, False, 0)
    if jumps is None:
        return nothing
    layer = jumps.layer
    assert isinstance(layer, Jumps)
    own = jumps.own(ps) if layer.trainable else {}
    times, amounts, durations = (layer.values(name, own, given) for name in ("times", "amounts", "durations"))
    times = jnp.asarray(times, ts.dtype)
    if times.ndim != 1:
        raise ValueError(
            f"the times of jumps have shape (jumps,), or (batch, jumps) with batching='vmap', got {times.shape}"
        )
    if times.size == 0:
        return nothing
    count, sign = len(times), jnp.where(ts[-1] >= ts[0], 1, -1).astype(ts.dtype)
    doses = None if amounts is None else Doses(amounts, durations, count)
    jump, starts, spans, rates = jnp.arange(count), jnp.ones(count, bool), None, None
    when = times
    if doses is not None and doses.durations is not None:
        times = jnp.where(require_durations(doses.durations), times, jnp.nan)  # a solve that fails
        ends = times + sign * doses.durations.astype(ts.dtype)
        spans, rates = lax.stop_gradient((times, ends)), doses.rates(y0)
        when = jnp.concatenate([times, jnp.where(doses.durations > 0, ends, jnp.inf)])
        jump, starts = jnp.tile(jump, 2), jnp.concatenate([starts, ~starts])
    when = jnp.where(jnp.isinf(when), sign * jnp.inf, when)  # behind the end, whatever the direction
    order = jnp.argsort(lax.stop_gradient(sign * when), stable=True)
    when = when[order]
    moving = any(name in given or name in layer.trainable for name in ("times", "durations"))
    return Change(
        when, lax.stop_gradient(when), jump[order], starts[order], _Effect(jumps, doses), spans, rates,
        moving, count,
    )  # fmt: skip


class _Effect(eqx.Module):
    """What a jump does, `(i, t, y, ps) -> y`."""

    jumps: Field
    doses: Doses | None

    def __call__(self, i: Any, t: Any, y: Any, ps: Any) -> Any:
        if self.doses is not None:
            return self.doses.added(y, i)
        layer: Any = self.jumps.layer
        return self.jumps.changed(layer.effect, "effect", t, y, ps)


def slope(terms: Any, t: Any, y: Any, args: Any) -> Any:
    """`dy/dt`, for terms of all forms."""
    if isinstance(terms, tuple):  # of a pair, each of the other one
        (first, second), (q, p) = terms, y
        return first.vf(t, p, args), second.vf(t, q, args)
    return terms.vf_prod(t, y, args, terms.contr(jnp.zeros_like(t), jnp.ones_like(t)))


def flow(terms: Any, t: Any, y: Any, args: Any, dt: Any) -> Any:
    """The state after a time `dt` next to nothing, with the first two derivatives by it: the midpoint rule; none where
    the slope is not finite, as in a sample that has failed."""

    def moved(k: Any, dt: Any) -> Any:
        k = jax.tree.map(lambda k: jnp.where(jnp.isfinite(k), k, 0), k)
        return jax.tree.map(lambda y, k: y + dt.astype(jnp.finfo(y.dtype).dtype) * k, y, k)

    middle = moved(slope(terms, t, y, args), dt / 2)
    return moved(slope(terms, t + dt / 2, middle, args), dt)


class _Infused(eqx.Module):
    """A vector field with what is added at a rate, the second of its arguments."""

    field: Callable[..., Any]

    def __call__(self, t, y, args):
        ps, rate = args
        return jax.tree.map(jnp.add, self.field(t, y, ps), rate)


def _infused(terms: Any) -> Any:
    """The terms, called with `(ps, rate)`, the rate added to the first of them."""
    if isinstance(terms, tuple):
        raise ValueError("infusions, amounts with durations, are not for a pair of equations, as of a HamiltonianODE")
    first, *others = terms.terms if isinstance(terms, diffrax.MultiTerm) else [terms]
    first = eqx.tree_at(lambda t: t.vector_field, first, _Infused(first.vector_field))
    others = [eqx.tree_at(lambda t: t.vector_field, t, _OfParameters(t.vector_field)) for t in others]
    return diffrax.MultiTerm(first, *others) if others else first


class _OfParameters(eqx.Module):
    """A vector field of the first of its arguments alone."""

    field: Callable[..., Any]

    def __call__(self, t, y, args):
        return self.field(t, y, args[0])


class Piecewise(eqx.Module):
    """The state of the loop over the pieces.

    * `t`, `y`: where it is, the time without derivatives; `passed`: the number of jumps behind it;
    * `ys`: what was saved; `result`, `done`; `steps`: all, those accepted, and those rejected;
    * `sides`: where the conditions of the events are, by their signs; `counts`: how often each has happened; `recent`:
      which have just happened; `stuck`: one has happened again without a move of time.
    """

    t: jax.Array
    y: Any
    passed: jax.Array
    ys: Any
    result: Any
    done: jax.Array
    steps: jax.Array
    sides: jax.Array
    counts: jax.Array
    recent: jax.Array
    stuck: jax.Array


def solve_in_pieces(
    equation: Any,
    terms: Any,
    solver: diffrax.AbstractSolver,
    ts: jax.Array,
    dt0: Any,
    y0: Any,
    ps: Any,
    fields: Any,
    *,
    adjoint: diffrax.AbstractAdjoint,
    **options: Any,
) -> diffrax.Solution:
    """The solution at `ts`, or at their end, with the jumps and the events of the equation between."""
    if type(adjoint) in _WITHOUT_PIECES:
        raise ValueError(f"{type(adjoint).__name__} has no derivatives of solves in pieces: give adjoint='auto'")
    y0 = jax.tree.map(jnp.asarray, y0)
    events = Conditions(tuple(fields[name] for name in event_names(equation.events)))
    change = change_of(fields.get("jumps"), fields.problem.jumps or {}, ps, y0, ts)
    noise = not all(isinstance(part, diffrax.ODETerm) for part in parts_of(terms))
    if noise and (change.moving or change.spans is not None):
        raise ValueError(
            f"the jumps of a {type(equation).__name__}, which has noise, are at times that are known and the same in "
            "all solves, without durations: lux.Jumps(times, ...)"
        )
    ts = jnp.where(require_within(change.when, change.starts, ts), ts, jnp.nan)  # a solve that fails
    starts = equation.ts is None and not noise
    solve = eqx.Partial(differentiable_solve, dt0=dt0, adjoint=adjoint, solver=solver, throw=False, **options)
    return _solve(terms, y0, ts, ps, change, events, solve, equation.output == "final", equation.jumps, starts)


@eqx.filter_jit
def _solve(
    terms: Any,
    y0: Any,
    ts: jax.Array,
    ps: Any,
    change: Change,
    events: Conditions,
    solve: Any,
    final: bool,
    jumps: Jumps | None,
    starts: bool,
) -> diffrax.Solution:
    """The loop over the pieces.

    Each piece goes to a time without derivatives. What moves with the time of a jump or of an event is added at its
    ends: a step from there to the true time on the left, and one back on the right, which are next to nothing, with
    their derivatives. So all adjoints have them, those that know nothing of times, too. The first time has some where
    it `starts` with the call.
    """
    saves, limits = ("right", False) if jumps is None else (jumps.saves, jumps.limits)
    t1, sign = ts[-1], jnp.where(ts[-1] >= ts[0], 1, -1).astype(ts.dtype)
    count, spans, rounding = len(change.stop), change.spans, 16 * jnp.finfo(ts.dtype).eps
    saved, keeps = ts[-1:] if final else ts, not final or saves == "left"  # else the last state is what is asked for
    whole = terms if spans is None else _infused(terms)
    near = isolated(whole)  # for what is next to nothing, whose derivatives stay away from samples that have failed
    moving, exact = change.moving or bool(events.events), not isinstance(solve.keywords["adjoint"], _AT_ALL_TIMES)
    most = jnp.array([event.max_count for event in events.layers], jnp.int32)
    enough = jnp.array([event.terminal for event in events.layers], jnp.int32)  # 0 where the solve goes on

    def after(t: Any, bound: Any) -> Any:
        return sign * (t - bound) > 0

    def target(passed: Any) -> tuple[Any, Any]:
        """Where the next piece ends, and whether by a jump."""
        if not count:
            return t1, jnp.zeros((), bool)
        stop = change.stop[jnp.minimum(passed, count - 1)]
        jumps = (passed < count) & ~after(stop, t1)
        return jnp.where(jumps, stop, t1), jumps

    def arguments(t: Any, passed: Any) -> Any:
        if spans is None:
            return ps
        middle = (t + target(passed)[0]) / 2
        active = after(middle, spans[0]) & after(spans[1], middle)
        return ps, jax.tree.map(lambda rate: jnp.tensordot(active.astype(rate.dtype), rate, 1), change.rates)

    def sides(t: Any, y: Any, args: Any, residual: Any, happen: Any, event: Any) -> Any:
        """The values of the conditions; where they are zero, up to the rounding of the time, where they go. After an
        event only of those that `happen`, up to their residual."""
        values, rates = _along(events, whole, t, y, args, ps)
        resolved = jnp.where(event, jnp.maximum(jnp.abs(t), jnp.abs(t1 - ts[0])), jnp.abs(t))
        zero = rounding * resolved * jnp.abs(rates) + 8 * jnp.abs(residual)
        return lax.stop_gradient(jnp.where((happen | ~event) & (jnp.abs(values) <= zero), rates, values))

    def piece(state: Piecewise, solve: Any = solve) -> tuple[Piecewise, Any]:
        end, jumps = target(state.passed)
        args, begin, y, ys = arguments(state.t, state.passed), state.t, state.y, state.ys
        steps, event = state.steps, jnp.zeros((), bool)
        before: Any = None
        first: Any = None
        happen: Any = None
        start: Any = None
        values: Any = None
        if events.events:
            watch = Watch(still(events), still(ps), begin, state.sides, jnp.ones_like(sign))
            searching = _searching(solve, watch, sign)
            inputs = (whole, y, args) if exact else still((whole, y, args))
            before = _travel(inputs[0], begin, end, inputs[1], inputs[2], ts, sign, searching, final, stops=True)
            event = before.result == diffrax.RESULTS.event_occurred
            end, first, happen, start = _first(watch, whole, before, end, args, sign, solve, event)
            if exact:  # only the way from there is left
                steps = steps + before.steps
                ys = _kept(ys, before.ys, after(saved, begin) & ~after(saved, before.t)) if keeps else ys
                begin, y = before.t, before.y
                few = _few(solve.keywords["max_steps"])
                solve = eqx.Partial(solve.func, **{**solve.keywords, "dt0": end - begin, "max_steps": few})
        there = _travel(whole, begin, end, y, args, ts, sign, solve, final)
        y, result, steps = there.y, there.result, steps + there.steps
        if keeps:
            ys = _kept(ys, there.ys, after(saved, begin) & ~after(saved, end))
        if events.events:
            result = where(diffrax.is_okay(before.result), result, before.result)
        jumps = jumps & ~event

        # the time, with its derivatives, and the state then
        i = jnp.minimum(state.passed, max(count - 1, 0))
        t = end
        if change.moving:
            t = t + jnp.where(jumps, change.when[i] - change.stop[i], 0)
        if events.events:
            low, high = state.t - end, target(state.passed)[0] - end
            low, high = jnp.minimum(low, high), jnp.maximum(low, high)
            known: tuple[Any, Any, Any] = where(event, (y, args, ps), still((y, args, ps)))  # else slopes of zero
            shift = _landing(events, near, end, *known, first, low, high, before.size)
            t = t + jnp.where(event, shift, 0)
        if moving:
            y = flow(near, end, y, args, t - end)

        # what happens then
        left, happens = y, jumps & (change.starts[i] if count else False)
        if change.effect is not None:
            y = _changed(happens, functools.partial(change.effect, change.jump[i]), t, y, ps)
        log = ((happens, t, left, y) if limits else None), None
        counts, recent, stuck, ended = state.counts, state.recent, state.stuck, jnp.zeros((), bool)
        if events.events:
            values = events(t, y, ps)
            result = unless(jnp.any(jnp.isnan(values)), diffrax.RESULTS.nonfinite, result)
            happen = event & (happen | events.happen(start, values))
            seen = []
            for j, field in enumerate(events.events):
                previous = y
                y = _changed(happen[j], functools.partial(_after_event, field), t, y, ps)
                seen.append((previous, y))
            log = log[0], (happen, t, jax.tree.map(lambda *x: jnp.stack(x), *seen))
            over = jnp.any(happen & (counts >= most) & (enough == 0))
            result = unless(over, diffrax.RESULTS.max_steps_reached, result)
            counts = counts + happen.astype(jnp.int32)
            ended = jnp.any((counts >= enough) & (enough > 0))
            moved = jnp.abs(t - state.t) > 4 * rounding * jnp.maximum(jnp.abs(t), jnp.abs(t1 - ts[0]))
            stuck = jnp.any(happen & recent) & ~moved
            recent = jnp.where(event, happen | (recent & ~moved), False)
            result = unless(stuck, diffrax.RESULTS.dt_min_reached, result)
        changed = happens | event
        if keeps:
            right = changed if saves == "right" else event
            ys = _kept(ys, jax.tree.map(lambda y: y[None], y), (right & (saved == t)) | (ended & after(saved, t)))

        # the next piece
        passed = state.passed + jumps.astype(jnp.int32)
        here = lax.stop_gradient(t)
        if moving:
            y = where(ended, y, flow(near, here, y, arguments(here, passed), here - t))
        new_sides = state.sides
        if events.events:
            residual = jnp.where(happen, values, 0)
            new_sides = sides(here, y, arguments(here, passed), residual, happen, event)
        new = Piecewise(here, y, passed, ys, result, ~(jumps | event) | ended, steps, new_sides, counts, recent, stuck)
        return new, log

    def body(state: Piecewise, _: Any) -> tuple[Piecewise, Any]:
        active = ~state.done & diffrax.is_okay(state.result)

        def stays(state):
            shapes = jax.eval_shape(piece, state)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def goes(state):
            new, out = piece(state)
            return where(active, new, state), jax.tree.map(lambda x: jnp.where(active, x, jnp.zeros_like(x)), out)

        return lax.cond(any_sample(active), goes, stays, state)

    if isinstance(solve.keywords["adjoint"], _REPEATED):
        piece = jax.checkpoint(piece)  # pyright: ignore[reportAssignmentType]
    room, t0 = len(saved), lax.stop_gradient(ts[0])
    nothing = jnp.zeros((), jnp.int32)
    first = flow(near, t0, y0, arguments(t0, nothing), t0 - ts[0]) if starts else y0
    none, good = jnp.zeros((), bool), jax.tree.map(jnp.asarray, diffrax.RESULTS.successful)
    at_start = sides(t0, y0, arguments(t0, nothing), 0, none, none) if events.events else jnp.zeros(0, ts.dtype)
    start = Piecewise(
        t0,
        first,
        nothing,
        jax.tree.map(lambda y: jnp.broadcast_to(y, (room, *y.shape)), y0),
        unless(jnp.any(jnp.isnan(at_start)), diffrax.RESULTS.nonfinite, good),
        none,
        jnp.zeros(3, jnp.int32),
        at_start,
        jnp.zeros(len(events.events), jnp.int32),
        jnp.zeros(len(events.events), bool),
        jnp.zeros((), bool),
    )
    number = sum(event.terminal or event.max_count for event in events.layers)
    last, (jumped, happened) = lax.scan(body, start, None, length=count + number + 1)
    ys = jax.tree.map(lambda y: y[None], last.y) if not keeps else last.ys
    stats: dict[str, Any] = dict(zip(_STEPS, last.steps, strict=True))
    if limits:
        stats["jumps"] = jax.tree.map(lambda x: x[: change.count], _limits(*jumped))
    result, end = last.result, t1
    if events.events:
        exhausted, stuck = jnp.any((last.counts > most) & (enough == 0)), last.stuck
        log = _log(number, *happened)
        stats["events"] = {**log, "count": last.counts, "exhausted": exhausted, "stuck": stuck}
        ended = jnp.any((last.counts >= enough) & (enough > 0))
        end = jnp.where(ended, log["times"][jnp.sum(last.counts) - 1], t1)
        result = unless(~last.done, diffrax.RESULTS.max_steps_reached, result)
        result = unless(ended, diffrax.RESULTS.event_occurred, result)
    return diffrax.Solution(
        t0=ts[0], t1=end, ts=end[None] if final else ts, ys=ys, interpolation=None, stats=stats, result=result,
        solver_state=None, controller_state=None, made_jump=None, event_mask=None,
    )  # fmt: skip


_STEPS = ("num_steps", "num_accepted_steps", "num_rejected_steps")


class _There(NamedTuple):
    """The end of a piece: time and state, what was saved on the way, in its places, the result and the steps."""

    t: jax.Array
    y: Any
    ys: Any
    result: Any
    steps: jax.Array
    size: Any


def _travel(
    terms: Any, t: Any, end: Any, y: Any, args: Any, ts: Any, sign: Any, solve: Any, final: bool, *, stops: bool = False
) -> _There:
    """The solve of a piece, from `t` to `end`, or until it `stops` before an event, with the size of its step."""
    if final:
        sol = solve(terms, t0=t, t1=end, y0=y, args=args, saveat=diffrax.SaveAt(t1=True, controller_state=stops))
        last, ys = 0, sol.ys
    else:
        behind, beyond = jnp.sum(sign * (ts - t) <= 0), sign * (ts - end) > 0
        if isinstance(solve.keywords["adjoint"], _AT_ALL_TIMES):
            times = jnp.where(beyond, end, jnp.where(sign * (ts - t) <= 0, t, ts))
            shift = 0
        else:
            never = end + (end - t)  # a number, by which other samples of a batch may look, and drop what they see
            times = jnp.where(beyond | (jnp.arange(len(ts)) < behind), never, ts)
            times, shift = jnp.roll(times, -behind), behind
        saveat = diffrax.SaveAt(ts=times, t1=True, controller_state=stops)
        sol = solve(terms, t0=t, t1=end, y0=y, args=args, saveat=saveat)
        last = jnp.sum(jnp.isfinite(sol.ts)) - 1  # the end comes after those that were saved
        ys = jax.tree.map(lambda ys: jnp.roll(ys[:-1], shift, axis=0), sol.ys)
    steps = jnp.stack([jnp.asarray(sol.stats[name], jnp.int32) for name in _STEPS])
    result = jax.tree.map(jnp.asarray, sol.result)
    size = sol.controller_state[1] if stops else None
    return _There(lax.stop_gradient(sol.ts[last]), jax.tree.map(lambda ys: ys[last], sol.ys), ys, result, steps, size)


def _few(max_steps: int | None) -> int:
    """The number of steps on the way through a part of one."""
    return 16 if max_steps is None else min(max_steps, 16)


def _searching(solve: Any, watch: Watch, sign: Any) -> Any:
    """The solve that stops before the first step with an event."""
    options = dict(solve.keywords)
    if isinstance(options["adjoint"], _AT_ALL_TIMES):
        options["adjoint"] = diffrax.ForwardMode()  # without derivatives
    normal = eqx.tree_at(lambda watch: watch.sign, watch, sign)
    options["solver"] = WatchedSolver(options["solver"], normal)
    options["stepsize_controller"] = stopping(options["stepsize_controller"])
    return eqx.Partial(solve.func, **options)


def _first(
    watch: Watch, terms: Any, before: _There, end: Any, args: Any, sign: Any, solve: Any, event: Any
) -> tuple[Any, Any, Any, Any]:
    """The time of the first event in the step after those `before`, which it is, which
    happen then, and the values of the conditions just before; where there is none, `end`. All without derivatives."""
    t, y, size, terms, args = still((before.t, before.y, before.size, terms, args))
    t1 = t + sign * size
    options = {**solve.keywords, "adjoint": diffrax.ForwardMode(), "max_steps": _few(None), "dt0": t1 - t}
    sol = solve.func(terms, t0=t, t1=t1, y0=y, args=args, saveat=diffrax.SaveAt(dense=True), **options)
    found, first, happen, values = watch.found(sol, t, t1, watch.start(t, y))
    return still((jnp.where(event, found, end), first, happen & event, values))


def _along(events: Conditions, terms: Any, t: Any, y: Any, args: Any, ps: Any) -> tuple[Any, Any]:
    """The values of the conditions, and their derivatives along the solution."""
    return jax.jvp(lambda t, y: events(t, y, ps), (t, y), (jnp.ones_like(t), slope(terms, t, y, args)))


def _landing(
    events: Conditions, terms: Any, t: Any, y: Any, args: Any, ps: Any, i: Any, low: Any, high: Any, size: Any
) -> Any:
    """The time from `t`, next to an event `i`, to it: two steps of Newton's method, whose derivatives are those of the
    root by the implicit function theorem, of first and second order; none where they are larger than the step, `size`,
    as they are where a condition is all but a step function."""
    shift = jnp.zeros_like(t)
    for _ in range(2):
        there = t + shift
        values, rates = _along(events, terms, there, flow(terms, t, y, args, shift), args, ps)
        value, rate = values[i], rates[i]
        flat = jnp.abs(value) > size * jnp.abs(rate)
        flat |= rate == 0
        shift = shift - jnp.where(flat, 0, value / jnp.where(flat, 1, rate))
        shift = shift + lax.stop_gradient(jnp.clip(shift, low, high) - shift)
    return shift


def _changed(happens: Any, effect: Callable[..., Any], t: Any, y: Any, ps: Any) -> Any:
    """The state after an effect, where it happens."""
    return lax.cond(happens, lambda y: Isolated(effect)(t, y, ps), lambda y: y, y)


def _after_event(event: Field, t: Any, y: Any, ps: Any) -> Any:
    layer: Any = event.layer
    return y if layer.effect is None else event.changed(layer.effect, "effect", t, y, ps)


def _log(number: int, happen: Any, t: Any, states: Any) -> dict[str, Any]:
    """The events in order, infinite, or of the index -1, where there are fewer than there may be."""
    pieces, events = happen.shape
    flat = happen.reshape(-1)
    order = jnp.argsort(~flat, stable=True)[:number]

    def rows(x: Any) -> jax.Array:
        x = x.reshape(pieces * events, *x.shape[2:])[order]
        return jnp.where(flat[order].reshape(-1, *(1 for _ in x.shape[1:])), x, jnp.inf)

    left, right = (jax.tree.map(rows, state) for state in states)
    times = rows(jnp.broadcast_to(t[:, None], happen.shape))
    index = jnp.broadcast_to(jnp.arange(events), happen.shape).reshape(-1)[order]
    return {"times": times, "index": jnp.where(flat[order], index, -1), "left": left, "right": right}


def _kept(ys: Any, new: Any, which: Any) -> Any:
    """The saved values, with new ones at some of the times."""
    return jax.tree.map(lambda ys, new: jnp.where(which.reshape(-1, *(1 for _ in ys.shape[1:])), new, ys), ys, new)


def _limits(happens: Any, t: Any, left: Any, right: Any) -> dict[str, Any]:
    """The limits at the jumps, in order; infinite where there are fewer than there may be."""
    order = jnp.argsort(~happens, stable=True)

    def rows(x: Any) -> jax.Array:
        kept = happens[order].reshape(-1, *(1 for _ in x.shape[1:]))
        return jnp.where(kept, x[order], jnp.inf)

    return {"times": rows(t), "left": jax.tree.map(rows, left), "right": jax.tree.map(rows, right)}
