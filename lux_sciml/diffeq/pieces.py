"""A solve in pieces, from each jump to the next: one loop and one program, whatever their number."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .._tree import where
from .adjoints.differentiable import differentiable_solve
from .adjoints.gauss import GaussAdjoint
from .adjoints.implicit import ImplicitAdjoint
from .adjoints.record import any_sample
from .field import Field
from .jumps import Doses, Jumps, require_within

_AT_ALL_TIMES = (diffrax.BacksolveAdjoint, GaussAdjoint)  # adjoints that need all times of a solve within it
_WITHOUT_JUMPS = (diffrax.ImplicitAdjoint, ImplicitAdjoint)
_REPEATED = (diffrax.DirectAdjoint, *_AT_ALL_TIMES)  # those whose pieces are solved again on the way back


class Change(eqx.Module):
    """What happens to the state at known times, in one solve.

    The times are those that the solve goes to, in its direction: the starts of the jumps, and the ends of infusions.

    * `when`: the times with their derivatives, which are `moving` where there may be some; `stop`: without;
    * `jump`, `starts`: the numbers of the jumps, and whether they start there;
    * `effect`: what a jump does, `(i, t, y, ps) -> y`;
    * `spans`, `rates`: the starts and the ends of infusions, and what each adds to the derivative; or `None`.
    """

    when: jax.Array
    stop: jax.Array
    jump: jax.Array
    starts: jax.Array
    effect: Callable[..., Any]
    spans: tuple[jax.Array, jax.Array] | None
    rates: Any
    moving: bool = eqx.field(static=True)
    count: int = eqx.field(static=True)


def change_of(jumps: Field, given: dict[str, Any], ps: Any, y0: Any, ts: jax.Array) -> Change:
    """What jumps, an entry of the fields of an equation, do in one solve; `given` is what the call brought."""
    layer = jumps.layer
    assert isinstance(layer, Jumps)
    own = jumps.own(ps) if layer.trainable else {}
    times, amounts, durations = (layer.values(name, own, given) for name in ("times", "amounts", "durations"))
    times = jnp.asarray(times, ts.dtype)
    if times.ndim != 1:
        raise ValueError(
            f"the times of jumps have shape (jumps,), or (batch, jumps) with batching='vmap', got {times.shape}"
        )
    count, sign = len(times), jnp.where(ts[-1] >= ts[0], 1, -1).astype(ts.dtype)
    doses = None if amounts is None else Doses(amounts, durations, count)
    jump, starts, spans, rates = jnp.arange(count), jnp.ones(count, bool), None, None
    when = times
    if doses is not None and doses.durations is not None:
        ends = times + sign * doses.durations.astype(ts.dtype)
        spans, rates = lax.stop_gradient((times, ends)), doses.rates(y0)
        when = jnp.concatenate([times, jnp.where(doses.durations > 0, ends, jnp.inf)])
        jump, starts = jnp.tile(jump, 2), jnp.concatenate([starts, ~starts])
    order = jnp.argsort(lax.stop_gradient(jnp.where(jnp.isinf(when), jnp.inf, sign * when)), stable=True)
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
    """The state after a time `dt` next to nothing, with the first two derivatives by it: the midpoint rule."""

    def moved(k: Any, dt: Any) -> Any:
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
    * `ys`: what was saved; `result`, `done`; `steps`: all, those accepted, and those rejected.
    """

    t: jax.Array
    y: Any
    passed: jax.Array
    ys: Any
    result: Any
    done: jax.Array
    steps: jax.Array


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
    """The solution at `ts`, or at their end, with the jumps of the equation between."""
    y0 = jax.tree.map(jnp.asarray, y0)
    change = change_of(fields["jumps"], fields.problem.jumps or {}, ps, y0, ts)
    ts = jnp.where(require_within(change.when, change.starts, ts), ts, jnp.nan)  # a solve that fails
    solve = eqx.Partial(differentiable_solve, dt0=dt0, adjoint=adjoint, solver=solver, throw=False, **options)
    if type(adjoint) in _WITHOUT_JUMPS:
        raise ValueError(f"{type(adjoint).__name__} has no derivatives of solves with jumps: give adjoint='auto'")
    return _solve(terms, y0, ts, ps, change, solve, equation.output == "final", equation.jumps)


@eqx.filter_jit
def _solve(
    terms: Any, y0: Any, ts: jax.Array, ps: Any, change: Change, solve: Any, final: bool, jumps: Jumps
) -> diffrax.Solution:
    """The loop over the pieces.

    Each piece goes to a time without derivatives. What moves with the time of a jump is added at its ends: a small step
    from `stop` to `when` on the left, and one back on the right, of length zero and with their derivatives. So all
    adjoints have them, those that know nothing of times, too.
    """
    adjoint, saves, limits = solve.keywords["adjoint"], jumps.saves, jumps.limits
    t1, sign = ts[-1], jnp.where(ts[-1] >= ts[0], 1, -1).astype(ts.dtype)
    count, spans = len(change.stop), change.spans
    whole = terms if spans is None else _infused(terms)

    def after(t: Any, bound: Any) -> Any:
        return sign * (t - bound) > 0

    def target(passed: Any) -> tuple[Any, Any]:
        """Where the next piece ends, and whether by a jump."""
        stop = change.stop[jnp.minimum(passed, count - 1)]
        jumps = (passed < count) & ~after(stop, t1)
        return jnp.where(jumps, stop, t1), jumps

    def arguments(t: Any, passed: Any) -> Any:
        if spans is None:
            return ps
        middle = (t + target(passed)[0]) / 2
        active = after(middle, spans[0]) & after(spans[1], middle)
        return ps, jax.tree.map(lambda rate: jnp.tensordot(active.astype(rate.dtype), rate, 1), change.rates)

    def piece(state: Piecewise) -> tuple[Piecewise, Any]:
        end, jumps = target(state.passed)
        args = arguments(state.t, state.passed)
        sol, y, _ = _travel(whole, state.t, end, state.y, args, ts, sign, solve, adjoint, final)
        ys = _kept(state.ys, sol.ys, ts, after(ts, state.t) & ~after(ts, end)) if not final else state.ys
        i = jnp.minimum(state.passed, count - 1)
        t = change.when[i] if change.moving else change.stop[i]
        if change.moving:
            y = flow(whole, end, y, args, jnp.where(jumps, t - change.stop[i], 0))
        happens = jumps & change.starts[i]
        left, y = y, lax.cond(happens, lambda y: change.effect(change.jump[i], t, y, ps), lambda y: y, y)
        right = y
        if not final and saves == "right":
            ys = _kept(ys, jax.tree.map(lambda y: y[None], y), ts, happens & (ts == end))
        passed = state.passed + jumps.astype(jnp.int32)
        if change.moving:
            y = flow(whole, end, y, arguments(end, passed), jnp.where(jumps, change.stop[i] - t, 0))
        steps = state.steps + jnp.stack([jnp.asarray(sol.stats[name], jnp.int32) for name in _STEPS])
        result = jax.tree.map(jnp.asarray, sol.result)
        new = Piecewise(end, y, passed, ys, result, ~jumps, steps)
        return new, (happens, change.jump[i], t, left, right) if limits else None

    def body(state: Piecewise, _: Any) -> tuple[Piecewise, Any]:
        active = ~state.done & diffrax.is_okay(state.result)

        def still(state):
            shapes = jax.eval_shape(piece, state)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def one(state):
            new, out = piece(state)
            return where(active, new, state), jax.tree.map(lambda x: jnp.where(active, x, jnp.zeros_like(x)), out)

        return lax.cond(any_sample(active), one, still, state)

    if isinstance(adjoint, _REPEATED):
        piece = jax.checkpoint(piece)  # pyright: ignore[reportAssignmentType]
    room = 1 if final else len(ts)
    start = Piecewise(
        lax.stop_gradient(ts[0]),
        y0,
        jnp.zeros((), jnp.int32),
        jax.tree.map(lambda y: jnp.broadcast_to(y, (room, *y.shape)), y0),
        jax.tree.map(jnp.asarray, diffrax.RESULTS.successful),
        jnp.zeros((), bool),
        jnp.zeros(3, jnp.int32),
    )
    last, log = lax.scan(body, start, None, length=count + 1)
    ys = jax.tree.map(lambda y: y[None], last.y) if final else last.ys
    stats: dict[str, Any] = dict(zip(_STEPS, last.steps, strict=True))
    if limits:
        stats["jumps"] = jax.tree.map(lambda x: x[: change.count], _limits(*log))
    return diffrax.Solution(
        t0=ts[0], t1=ts[-1], ts=ts[-1:] if final else ts, ys=ys, interpolation=None, stats=stats, result=last.result,
        solver_state=None, controller_state=None, made_jump=None, event_mask=None,
    )  # fmt: skip


_STEPS = ("num_steps", "num_accepted_steps", "num_rejected_steps")


def _travel(terms, t, end, y, args, ts, sign, solve, adjoint, final):
    """The solution of a piece, saved at those of `ts` that are in it, in their places; its end, and its time."""
    if final:
        sol = solve(terms, t0=t, t1=end, y0=y, args=args, saveat=diffrax.SaveAt(t1=True))
        return sol, jax.tree.map(lambda y: y[-1], sol.ys), sol.ts[-1]
    behind = jnp.sum(sign * (ts - t) <= 0)
    beyond = sign * (ts - end) > 0
    if isinstance(adjoint, _AT_ALL_TIMES):
        times = jnp.where(beyond, end, jnp.where(sign * (ts - t) <= 0, t, ts))
        shift = 0
    else:
        times, shift = jnp.roll(jnp.where(beyond | (jnp.arange(len(ts)) < behind), sign * jnp.inf, ts), -behind), behind
    sol = solve(terms, t0=t, t1=end, y0=y, args=args, saveat=diffrax.SaveAt(ts=times, t1=True))
    last = jnp.sum(jnp.isfinite(sol.ts)) - 1  # the end comes after those that were saved
    ys = jax.tree.map(lambda ys: jnp.roll(ys[:-1], shift, axis=0), sol.ys)
    return eqx.tree_at(lambda sol: sol.ys, sol, ys), jax.tree.map(lambda ys: ys[last], sol.ys), sol.ts[last]


def _kept(ys: Any, new: Any, ts: Any, which: Any) -> Any:
    """The saved values, with new ones at some of the times."""
    return jax.tree.map(lambda ys, new: jnp.where(which.reshape(-1, *(1 for _ in ys.shape[1:])), new, ys), ys, new)


def _limits(happens: Any, jump: Any, t: Any, left: Any, right: Any) -> dict[str, Any]:
    """The limits at the jumps, in order; infinite where there are fewer than there may be."""
    order = jnp.argsort(~happens, stable=True)

    def rows(x: Any) -> jax.Array:
        kept = happens[order].reshape(-1, *(1 for _ in x.shape[1:]))
        return jnp.where(kept, x[order], jnp.inf)

    return {"times": rows(t), "left": jax.tree.map(rows, left), "right": jax.tree.map(rows, right)}
