"""What Anderson's and Broyden's methods share: a window of differences, a guarded step, the best iterate."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jax import lax

HALVINGS = 8  # of a refused step, after which it is taken all the same


_SMALLEST = 1e-30  # scale of a residual: with tolerances of zero, errors are still numbers that compare


class History(eqx.Module):
    """The differences of the last `m` evaluations, `(m, n)`, and what pairs of them give, `(m, m)`.

    `df` are differences of `f(y)`; `dx` those that a method projects on. `slot` is that of the newest one, the others
    are `age` evaluations older. Slots not yet filled, or filled with numbers that are not finite, are zero.
    """

    df: jax.Array
    dx: jax.Array
    gram: jax.Array
    slot: jax.Array

    @property
    def age(self) -> jax.Array:
        m = len(self.gram)
        return (self.slot - jnp.arange(m)) % m


class _Progress(eqx.Module):
    """Of one sample."""

    history: History
    base: tuple[jax.Array, jax.Array, jax.Array]  # where the present step starts: y, g = f(y) - y, and its error
    best: tuple[jax.Array, jax.Array, jax.Array]  # y, its error relative to the tolerances, its residual
    halvings: jax.Array
    done: jax.Array
    broken: jax.Array


class _State(eqx.Module):
    progress: _Progress
    count: jax.Array
    trace: jax.Array


class Accelerated(optx.AbstractFixedPointSolver):
    r"""Quasi-Newton methods for `y = f(y)` that use nothing but `f`: one evaluation a step.

    Every step is :math:`y_{k+1} = y_k + d_k`, with `d_k` from the window of the last evaluations. Where the residual
    `|f(y) - y|` after a step is more than `max_growth` times that before it, or not finite, the step is halved, at most
    eight times, at one evaluation each. The iterate of the lowest residual is kept, and is the result.

    The residual is compared with `atol + rtol |f(y)|`, entry by entry, by the `norm`. `stats` has, for each sample,
    `residual` (the norm of `f(y) - y` at the result), `converged`, and `residuals` `(trace, samples)`, those of the
    first `trace` steps (NaN where there was none); without `per_sample` all of them lack the samples' axis.
    """

    rtol: AbstractVar[float]
    atol: AbstractVar[float]
    norm: AbstractVar[Callable]
    history: AbstractVar[int]
    max_growth: AbstractVar[float]
    per_sample: AbstractVar[bool]
    trace: AbstractVar[int]

    @abc.abstractmethod
    def difference(self, dy: jax.Array, dg: jax.Array) -> jax.Array:
        """What the method projects on, from the differences of `y` and of `g = f(y) - y`."""

    @abc.abstractmethod
    def pairs(self, history: History, dx: jax.Array, df: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The products `(m,)` of all columns with the newest, and of the newest with all columns."""

    @abc.abstractmethod
    def direction(self, history: History, g: jax.Array) -> jax.Array:
        """The step `(n,)` from the present iterate."""

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        rows, _ = to_samples(y, self.per_sample)
        start = jax.vmap(self._start) if self.per_sample else self._start
        trace = jnp.full((self.trace, *rows.shape[:-1]), jnp.nan, rows.dtype)
        return _State(start(rows), jnp.array(0), trace)

    def step(self, fn, y, args, options, state, tags):
        f, aux = fn(y, args)
        (y_rows, back), (f_rows, _) = to_samples(y, self.per_sample), to_samples(f, self.per_sample)
        advance = jax.vmap(self._advance, (0, 0, 0, None)) if self.per_sample else self._advance
        y_next, residual, progress = advance(y_rows, f_rows, state.progress, state.count)
        trace = state.trace
        if self.trace:
            place = jnp.where(state.count < self.trace, state.count, self.trace)
            trace = trace.at[place].set(residual, mode="drop")
        return back(y_next), _State(progress, state.count + 1, trace), aux

    def terminate(self, fn, y, args, options, state, tags):
        end = jnp.all(state.progress.done)
        failed = end & jnp.any(state.progress.broken)
        return end, optx.RESULTS.where(failed, optx.RESULTS.nonfinite, optx.RESULTS.successful)

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        _, back = to_samples(y, self.per_sample)
        rows, error, residual = state.progress.best
        return back(rows), aux, {"residual": residual, "converged": error < 1, "residuals": state.trace}

    def _start(self, y: jax.Array) -> _Progress:
        m, dtype, no = self.history, y.dtype, jnp.array(False)
        window, nothing = jnp.zeros((m, len(y)), dtype), jnp.array(jnp.inf, dtype)
        return _Progress(
            history=History(window, window, jnp.zeros((m, m), dtype), jnp.array(0)),
            base=(y, jnp.zeros_like(y), nothing),
            best=(y, nothing, jnp.array(jnp.nan, dtype)),
            halvings=jnp.array(0),
            done=no,
            broken=no,
        )

    def _advance(self, y, f, progress: _Progress, count) -> tuple[jax.Array, jax.Array, _Progress]:
        """The next iterate of a sample, the residual of this one, and the progress."""
        g = f - y
        error = self.norm(g / jnp.maximum(self.atol + self.rtol * jnp.abs(f), _SMALLEST))
        residual = self.norm(g)
        y_base, g_base, error_base = progress.base
        finite, last = jnp.isfinite(error), progress.halvings >= HALVINGS

        best = _where(finite & (error < progress.best[1]), (y, error, residual), progress.best)
        accept = finite & ((error <= self.max_growth * error_base) | last)
        broken = progress.broken | (~finite & ((count == 0) | last))
        done = progress.done | (best[1] < 1) | broken

        dy, dg = y - y_base, g - g_base
        noise = 4 * jnp.finfo(g.dtype).eps * jnp.linalg.norm(f)  # no direction is to be had from rounding
        known = finite & (count > 0) & (jnp.linalg.norm(dg) > noise)
        history = self._push(progress.history, jnp.where(known, dy, 0), jnp.where(known, dg, 0), count)
        onward, halved = y + self.direction(history, g), 0.5 * (y + y_base)
        y_next = jnp.where(done, best[0], jnp.where(accept, onward, halved))

        base = _where(accept, (y, g, error), progress.base)
        halvings = jnp.where(accept, 0, progress.halvings + 1)
        return y_next, residual, _Progress(history, base, best, halvings, done, broken)

    def _push(self, history: History, dy: jax.Array, dg: jax.Array, count: jax.Array) -> History:
        """The history with the newest difference in place of the oldest."""
        slot = count % self.history
        dx, df = self.difference(dy, dg), dy + dg
        rows = (lax.dynamic_update_index_in_dim(*pair, slot, 0) for pair in ((history.df, df), (history.dx, dx)))
        history = History(*rows, history.gram, slot)
        column, row = self.pairs(history, dx, df)
        return eqx.tree_at(lambda h: h.gram, history, history.gram.at[:, slot].set(column).at[slot].set(row))


def combined(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum of the rows by their weights; zero where a weight is not finite."""
    return jnp.where(jnp.all(jnp.isfinite(weights)), weights, 0) @ rows


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def to_samples(tree: Any, per_sample: bool) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The numbers of a tree as `(n,)` or, with `per_sample`, as `(samples, n)`, and the way back.

    The samples lie along the first axis of every leaf.
    """
    leaves, treedef = jax.tree.flatten(tree)
    dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
    lead: tuple[int, ...] = ()
    if per_sample:
        sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
        if len(sizes) != 1 or None in sizes:
            raise ValueError(
                f"per_sample=True needs samples along the first axis of every array, got {_shapes(leaves)}"
            )
        lead = (sizes.pop(),)
    parts = [leaf.reshape(*lead, math.prod(leaf.shape[len(lead) :])).astype(dtype) for leaf in leaves]
    ends = [sum(part.shape[-1] for part in parts[: i + 1]) for i in range(len(parts) - 1)]

    def back(rows: jax.Array) -> Any:
        pieces = jnp.split(rows, ends, axis=-1) if ends else [rows]
        return treedef.unflatten(
            [piece.reshape(leaf.shape).astype(leaf.dtype) for piece, leaf in zip(pieces, leaves, strict=True)]
        )

    return (jnp.concatenate(parts, axis=-1) if ends else parts[0]), back


def _shapes(leaves: list[Any]) -> str:
    return ", ".join(str(leaf.shape) for leaf in leaves)


def fixed_point(f: Callable, solver: Any, y0: Any, args: Any, max_steps: int) -> optx.Solution:
    """`optimistix.fixed_point(f, solver, y0, args, max_steps=max_steps, throw=False)`, for inputs without derivatives.

    optimistix tests every number of every iterate for NaN, which for small cells takes as long as the cell. The plain
    iteration and the accelerated ones see a NaN in their error, so that their loop here does without; other solvers go
    to optimistix.
    """
    if type(solver) is not optx.FixedPointIteration and not isinstance(solver, Accelerated):
        return optx.fixed_point(f, solver, y0, args, max_steps=max_steps, throw=False)

    def fn(y, args):
        return f(y, args), None

    start, static = eqx.partition(solver.init(fn, y0, args, {}, None, None, frozenset()), eqx.is_array)

    def proceed(carry):
        _, steps, _, end, _ = carry
        return ~end & (steps < max_steps)

    def body(carry):
        y, steps, dynamic, *_ = carry
        y, state, _ = solver.step(fn, y, args, {}, eqx.combine(dynamic, static), frozenset())
        end, result = solver.terminate(fn, y, args, {}, state, frozenset())
        if not isinstance(solver, Accelerated):
            finite = jnp.isfinite(state.relative_error)
            end, result = end | ~finite, optx.RESULTS.where(finite, result, optx.RESULTS.nonfinite)
        dynamic = jax.tree.map(lambda new, old: new.astype(old.dtype), eqx.filter(state, eqx.is_array), dynamic)
        return y, steps + 1, dynamic, end, result

    carry = (y0, jnp.array(0), start, jnp.array(False), optx.RESULTS.successful)
    y, steps, dynamic, end, result = lax.while_loop(proceed, body, carry)
    result = optx.RESULTS.where(end, result, optx.RESULTS.nonlinear_max_steps_reached)
    state = eqx.combine(dynamic, static)
    y, _, stats = solver.postprocess(fn, y, None, args, {}, state, frozenset(), result)
    stats = {"num_steps": steps, "max_steps": max_steps, **stats}
    return optx.Solution(value=y, result=result, aux=None, stats=stats, state=state)
