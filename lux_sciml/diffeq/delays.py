"""The method of steps with steps of any size, for delays that are trained or depend on the state."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .._tree import all_finite, is_inexact, where, with_tangent
from .adjoints.isolation import Isolated
from .adjoints.record import any_sample

CHUNK = 32  # steps of which a gradient takes all or none
SUCCESS, MAX_STEPS, DT_MIN, NONFINITE = range(4)
_CODES = ("successful", "max_steps_reached", "dt_min_reached", "nonfinite")


class Delays(eqx.Module):
    """The equation `dy/dt = field(t, (y(t), y(t - lag), ...), ps)` from `t0` to `t1`, and all that it depends on.

    * `lags`: arrays `()`, or functions `lag(t, y, ps)`;
    * `history`: the solution before the start, `history(t, y0, ps)`.
    """

    field: Callable[..., Any]
    lags: tuple[Any, ...]
    history: Callable[..., Any]
    ps: Any
    y0: jax.Array
    t0: jax.Array
    t1: jax.Array

    @property
    def constant(self) -> list[jax.Array]:
        """The lags that do not depend on the state."""
        return [lag for lag in self.lags if not callable(lag)]

    def breakpoints(self, order: int) -> jax.Array:
        """The start, the sums of up to `order` constant lags after it, where derivatives jump, and the end; sorted."""
        lags = self.constant
        while math.comb(len(lags) + order, order) > 256:
            order -= 1
        sums = itertools.chain.from_iterable(
            itertools.combinations_with_replacement(range(len(lags)), n) for n in range(1, order + 1)
        )
        points = [jnp.minimum(self.t0 + sum(lags[i] for i in chosen), self.t1) for chosen in sums]
        return jnp.sort(jnp.stack([self.t0, *points, self.t1]))


class Mesh(NamedTuple):
    """The nodes between steps: `(1 - fraction) breakpoints[low] + fraction breakpoints[high]`, so that they move along.

    `accepted` steps were taken of those that were `tried`; `code` says how it went.
    """

    low: jax.Array
    high: jax.Array
    fraction: jax.Array
    accepted: jax.Array
    tried: jax.Array
    code: jax.Array

    def times(self, points: jax.Array) -> jax.Array:
        """The nodes, the last one repeated."""
        times = _node(points, self.low, self.high, self.fraction)
        return jnp.where(jnp.arange(times.size) <= self.accepted, times, times[self.accepted])


def _node(points: jax.Array, low: jax.Array, high: jax.Array, fraction: jax.Array) -> jax.Array:
    return points[low] + fraction * (points[high] - points[low])


class DelaySolution(NamedTuple):
    """The pieces of a solution: what the solver's interpolation is made of, between the times."""

    times: jax.Array
    pieces: Any
    mesh: Mesh

    def values(self, y0: jax.Array, ts: jax.Array, solver: Any) -> jax.Array:
        """The solution at times of its span, `(times, ...)`."""
        places = jnp.clip(jax.vmap(lambda t: _piece_of(self.times, t))(ts), 0, jnp.maximum(self.mesh.accepted - 1, 0))
        ys = jax.vmap(lambda i, t: _interpolated(solver, self.times, self.pieces, i, t))(places, ts)
        started = (ts > self.times[0]).reshape(-1, *(1 for _ in y0.shape))
        return jnp.where(started, ys, y0)

    @property
    def result(self) -> diffrax.RESULTS:
        result = diffrax.RESULTS.successful
        for code, name in enumerate(_CODES[1:], start=1):
            result = diffrax.RESULTS.where(self.mesh.code == code, getattr(diffrax.RESULTS, name), result)
        return result


def solve_with_delays(
    delays: Delays, solver: Any, controller: diffrax.AbstractStepSizeController, dt0: float | None, max_steps: int
) -> DelaySolution:
    """The solution by steps that the controller chooses, which end at the breakpoints and are no longer than a lag.

    Its derivatives, of all modes and orders, are those of the accepted steps, whose nodes move with the breakpoints.
    """
    times, pieces, mesh = _solution(delays, solver=solver, controller=controller, dt0=dt0, max_steps=max_steps)
    return DelaySolution(times, pieces, mesh)


@eqx.filter_custom_jvp
def _solution(delays, *, solver, controller, dt0, max_steps):
    return _search(delays, solver, controller, dt0, max_steps)


@_solution.def_jvp
def _derivative(primals, tangents, *, solver, controller, dt0, max_steps):
    still = jax.tree.map(lambda x: lax.stop_gradient(x) if is_inexact(x) else x, primals[0])
    _, _, mesh = _search(still, solver, controller, dt0, max_steps)

    def again(moved):
        (delays,) = eqx.combine(moved, primals)
        return _repeat(delays, solver, mesh)

    (times, pieces), tangent = jax.jvp(again, (with_tangent(primals, tangents),), (tangents,))
    of_mesh: Any = Mesh(*(jnp.zeros_like(x) if is_inexact(x) else None for x in mesh))  # pyright: ignore
    return (times, pieces, mesh), (*tangent, of_mesh)


# --- the steps ------------------------------------------------------------------------------------------------------


def _search(delays: Delays, solver: Any, controller: Any, dt0: float | None, max_steps: int) -> tuple[Any, Any, Mesh]:
    """The steps that the controller accepts: their nodes, their pieces, and the mesh."""
    ps, y0, t0, t1 = delays.ps, delays.y0, delays.t0, delays.t1
    start = _term(delays, solver, t0, t0, jnp.array(0), t0[None], None)
    points = delays.breakpoints(solver.order(start))
    close = 16 * jnp.finfo(t0.dtype).eps * jnp.maximum(jnp.abs(t0), jnp.abs(t1))
    shortest = functools.reduce(jnp.minimum, delays.constant, jnp.asarray(jnp.inf, t0.dtype))
    order, controller = solver.error_order(start), controller.wrap(1)
    first, control = controller.init(
        start, t0, t1, y0, None if dt0 is None else jnp.asarray(dt0, t0.dtype), ps, solver.func, order
    )
    nodes = max_steps + 1
    mesh = Mesh(
        jnp.zeros(nodes, int), jnp.zeros(nodes, int), jnp.zeros(nodes, t0.dtype),
        jnp.array(0), jnp.array(0), jnp.where((shortest > 0) & jnp.isfinite(t1 - t0), SUCCESS, NONFINITE),
    )  # fmt: skip
    times = t0 + jnp.arange(nodes).astype(t0.dtype) * (t1 - t0 + 1)  # those ahead are out of sight
    carry = (t0, first, jnp.array(True), y0, solver.init(start, t0, t1, y0, ps), control, times,
             _room(delays, solver, max_steps), mesh)  # fmt: skip

    def goes_on(carry):
        t, mesh = carry[0], carry[-1]
        return (mesh.code == SUCCESS) & (t1 - t > close)

    def step(carry):
        t, proposed, jumped, y, state, control, times, pieces, mesh = carry
        active = goes_on(carry)
        low, high = mesh.low[mesh.accepted], jnp.argmax(points > t + close)
        high = jnp.where(points[high] > t + close, high, points.size - 1)
        end = jnp.minimum(proposed, t + shortest)
        arrives = end + 1e-3 * (end - t) >= points[high]
        fraction = jnp.where(arrives, 0, (end - points[low]) / (points[high] - points[low]))
        low = jnp.where(arrives, high, low)
        end = _node(points, low, high, fraction)
        term = _term(delays, solver, t, end, mesh.accepted, times, pieces)
        y1, error, piece, state1, _ = solver.step(term, t, end, y, ps, state, jumped)
        keep, _, proposed1, _, control1, result = controller.adapt_step_size(t, end, y, y1, ps, error, order, control)
        code = jnp.where(
            diffrax.is_okay(result), SUCCESS, jnp.where(result == diffrax.RESULTS.dt_min_reached, DT_MIN, NONFINITE)
        )
        if len(delays.constant) < len(delays.lags):  # a lag that reached into the step: half of it
            ahead = ~all_finite((y1, error))
            keep, proposed1 = keep & ~ahead, jnp.where(ahead, t + (end - t) / 2, proposed1)
            stuck = end - t < 8 * jnp.finfo(t.dtype).eps * jnp.maximum(jnp.abs(t), 1e-30)
            code = jnp.where(ahead, jnp.where(stuck | ~all_finite(y), DT_MIN, SUCCESS), code)
            control1 = where(ahead, control, control1)
        keep = keep & active & (code == SUCCESS)
        tried = mesh.tried + active.astype(int)
        code = jnp.where(
            (code == SUCCESS) & (tried >= max_steps) & (t1 - jnp.where(keep, end, t) > close), MAX_STEPS, code
        )
        after = mesh.accepted + keep.astype(int)
        nodes = [_written(a, b, after, keep) for a, b in zip(mesh[:3], (low, high, fraction), strict=True)]
        pieces = jax.tree.map(lambda xs, x: _written(xs, x, mesh.accepted, keep), pieces, piece)
        low, high, fraction = nodes
        mesh = Mesh(low, high, fraction, after, tried, jnp.where(active, code, mesh.code))
        times = _written(times, end, after, keep)
        t, y, state, jumped = where(keep, (end, y1, state1, arrives), (t, y, state, jumped))
        proposed, control = where(active, (proposed1, control1), (proposed, control))
        return t, proposed, jumped, y, state, control, times, pieces, mesh

    *_, times, pieces, mesh = lax.while_loop(lambda carry: any_sample(goes_on(carry)), step, carry)
    return mesh.times(points), pieces, mesh


def _repeat(delays: Delays, solver: Any, mesh: Mesh) -> tuple[Any, Any]:
    """The accepted steps once more: their nodes and pieces, with every derivative."""
    start = _term(delays, solver, delays.t0, delays.t0, jnp.array(0), delays.t0[None], None)
    times = mesh.times(delays.breakpoints(solver.order(start)))
    max_steps = times.size - 1
    room = -(-max_steps // CHUNK) * CHUNK
    arrived = jnp.pad(mesh.fraction[:-1] == 0, (0, room - max_steps))
    ends = jnp.pad(times, (0, room - max_steps), mode="edge")

    def step(carry, k):
        y, state, pieces = carry
        t, end = ends[k], ends[k + 1]
        term = _term(delays, solver, t, end, k, times, pieces)
        y, _, piece, state, _ = solver.step(term, t, end, y, delays.ps, state, arrived[k])
        pieces = jax.tree.map(lambda xs, x: lax.dynamic_update_index_in_dim(xs, x, k, 0), pieces, piece)
        return (y, state, pieces), None

    def chunk(carry, x):
        places, used = x
        return lax.cond(used, lambda carry: lax.scan(step, carry, places)[0], lambda carry: carry, carry), None

    places = jnp.arange(room).reshape(-1, CHUNK)
    used = places[:, 0] < _most(mesh.accepted)
    state = solver.init(start, delays.t0, delays.t1, delays.y0, delays.ps)
    carry = (delays.y0, state, _room(delays, solver, room))
    (_, _, pieces), _ = lax.scan(chunk, carry, (places, used))
    return times, jax.tree.map(lambda x: x[:max_steps], pieces)


@jax.custom_batching.custom_vmap
def _most(count: jax.Array) -> jax.Array:
    """The largest count in the batches around the call."""
    return jnp.max(count)


@_most.def_vmap
def _(size, mapped, count):
    return _most(count), False


def _term(
    delays: Delays, solver: Any, t: jax.Array, end: jax.Array, count: Any, times: jax.Array, pieces: Any
) -> diffrax.ODETerm:
    """The vector field in the step from `t` to `end`, after `count` pieces; at the very start, without any."""
    near = 1e-4 * (end - t) + 4 * jnp.finfo(t.dtype).eps * jnp.abs(t)

    def between(lag):
        """The first and the last piece that the step looks back at, each from within."""
        low, high = (jnp.minimum(_piece_of(times, s), count - 1) for s in (t - lag + near, end - lag - near))
        return low, jnp.maximum(low, high)

    bounds = [None if callable(lag) or pieces is None else between(lag) for lag in delays.lags]

    def past(s, i):
        """The solution at the time `s`, from piece `i`; the history is piece -1."""
        before = i < 0
        old = delays.history(jnp.where(before, s, delays.t0), delays.y0, delays.ps)
        if pieces is None:
            return old
        i = jnp.maximum(i, 0)
        return jnp.where(before, old, _interpolated(solver, times, pieces, i, jnp.where(before, times[i], s)))

    def delayed(lag, bound, now, y, ps):
        if callable(lag):
            s = now - lag(now, y, ps)
            if pieces is None:
                return past(jnp.minimum(s, delays.t0), jnp.array(-1))
            value = past(jnp.minimum(s, t), jnp.clip(_piece_of(times, s), -1, count - 1))
            return jnp.where(s <= t + near * 1e-2, value, jnp.nan)
        s = now - lag
        if pieces is None:
            return past(s, jnp.array(-1))
        return past(s, jnp.clip(_piece_of(times, s), *bound))

    def field(now, y, ps):
        pasts = [delayed(lag, bound, now, y, ps) for lag, bound in zip(delays.lags, bounds, strict=True)]
        return Isolated(delays.field)(now, jnp.concatenate([y, *pasts], -1), ps)

    return diffrax.ODETerm(field)


def _piece_of(times: jax.Array, s: jax.Array) -> jax.Array:
    """The piece that holds the time `s`, of times that increase; -1 before the first."""
    return jnp.sum(lax.stop_gradient(times <= s)) - 1


def _interpolated(solver: Any, times: jax.Array, pieces: Any, i: jax.Array, s: jax.Array) -> jax.Array:
    piece = jax.tree.map(lambda x: x[i], pieces)
    return solver.interpolation_cls(t0=times[i], t1=times[i + 1], **piece).evaluate(s)


def _room(delays: Delays, solver: Any, count: int) -> Any:
    """Zeros in the place of `count` pieces."""
    t, y, ps = delays.t0, delays.y0, delays.ps

    def piece(t, y):
        term = _term(delays, solver, t, t, jnp.array(0), t[None], None)
        return solver.step(term, t, t, y, ps, solver.init(term, t, t, y, ps), False)[2]

    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), jax.eval_shape(piece, t, y))


def _written(xs: jax.Array, x: Any, i: jax.Array, keep: jax.Array) -> jax.Array:
    """The array with `x` at the place `i`, if it is to be kept."""
    old = lax.dynamic_index_in_dim(xs, i, keepdims=False)
    return lax.dynamic_update_index_in_dim(xs, jnp.where(keep, jnp.asarray(x, xs.dtype), old), i, 0)
