"""What Anderson's and Broyden's methods share: a window of differences, a guarded step, the best iterate."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jax import lax

from .samples import to_samples

HALVINGS = 8  # of a refused step, after which it is taken all the same


_SMALLEST = 1e-30  # scale of a residual: with tolerances of zero, errors are still numbers that compare


class History(eqx.Module):
    """The differences of the last `m` evaluations, `(m, samples, n)`, and what pairs of them give, `(samples, m, m)`.

    `df` are differences of `f(y)`; `dx` those that a method projects on. `age` counts down from 0, the newest; slots
    not yet filled, or filled with numbers that are not finite, are not `valid`.
    """

    df: jax.Array
    dx: jax.Array
    gram: jax.Array
    valid: jax.Array
    age: jax.Array


class _State(eqx.Module):
    history: History
    last: tuple[jax.Array, jax.Array]  # y and g = f(y) - y of the last evaluation that was finite
    base: tuple[jax.Array, jax.Array]  # where the present step starts, and its error
    step: jax.Array
    halvings: jax.Array
    best: tuple[jax.Array, jax.Array, jax.Array]  # y, its error relative to the tolerances, its residual
    count: jax.Array
    trace: jax.Array
    done: jax.Array
    broken: jax.Array


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
        """The products `(samples, m)` of all columns with the newest, and of the newest with all columns."""

    @abc.abstractmethod
    def direction(self, history: History, g: jax.Array) -> jax.Array:
        """The step from the present iterate, `(samples, n)`."""

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        rows, _ = to_samples(y, self.per_sample)
        (samples, n), m, dtype = rows.shape, self.history, rows.dtype
        zeros, no = jnp.zeros_like(rows), jnp.zeros(samples, bool)
        infinite = jnp.full(samples, jnp.inf, dtype)
        window = jnp.zeros((m, samples, n), dtype)
        history = History(
            window, window, jnp.zeros((samples, m, m), dtype), jnp.zeros((samples, m), bool), jnp.arange(m)
        )
        return _State(
            history=history,
            last=(rows, jnp.full_like(rows, jnp.nan)),
            base=(rows, infinite),
            step=zeros,
            halvings=jnp.zeros(samples, int),
            best=(rows, infinite, jnp.full(samples, jnp.nan, dtype)),
            count=jnp.array(0),
            trace=jnp.full((self.trace, samples), jnp.nan, dtype),
            done=no,
            broken=no,
        )

    def step(self, fn, y, args, options, state, tags):
        f, aux = fn(y, args)
        (y_rows, back), (f_rows, _) = to_samples(y, self.per_sample), to_samples(f, self.per_sample)
        g = f_rows - y_rows
        error = jax.vmap(self.norm)(g / jnp.maximum(self.atol + self.rtol * jnp.abs(f_rows), _SMALLEST))
        residual = jax.vmap(self.norm)(g)
        finite = jnp.isfinite(error)
        first = state.count == 0

        better = finite & (error < state.best[1])
        best = _where(better, (y_rows, error, residual), state.best)
        accept = finite & ((error <= self.max_growth * state.base[1]) | (state.halvings >= HALVINGS))
        broken = state.broken | (~finite & (first | (state.halvings >= HALVINGS)))
        done = state.done | (best[1] < 1) | broken

        noise = 4 * jnp.finfo(g.dtype).eps * jnp.linalg.norm(f_rows, axis=1)  # no direction is to be had from rounding
        known = jnp.linalg.norm(g - state.last[1], axis=1) > noise
        history = self._push(state, y_rows, g, finite & known & ~first)
        full = self.direction(history, g)
        full = jnp.where(jnp.all(jnp.isfinite(full), axis=1, keepdims=True), full, g)
        base_y, base_error = _where(accept, (y_rows, error), state.base)
        step = _where(accept, full, state.step * jnp.asarray(0.5, full.dtype))
        y_next = _where(done, best[0], base_y + step)

        trace = state.trace
        if self.trace:
            place = jnp.where(state.count < self.trace, state.count, self.trace)
            trace = trace.at[place].set(residual, mode="drop")
        state = _State(
            history=history,
            last=_where(finite, (y_rows, g), state.last),
            base=(base_y, base_error),
            step=step,
            halvings=jnp.where(accept, 0, state.halvings + 1),
            best=best,
            count=state.count + 1,
            trace=trace,
            done=done,
            broken=broken,
        )
        return back(y_next), state, aux

    def terminate(self, fn, y, args, options, state, tags):
        end = jnp.all(state.done)
        failed = end & jnp.any(state.broken)
        return end, optx.RESULTS.where(failed, optx.RESULTS.nonfinite, optx.RESULTS.successful)

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        _, back = to_samples(y, self.per_sample)
        rows, error, residual = state.best
        stats = {"residual": residual, "converged": error < 1, "residuals": state.trace}
        if not self.per_sample:
            stats = {name: value[..., 0] for name, value in stats.items()}
        return back(rows), aux, stats

    def _push(self, state: _State, y: jax.Array, g: jax.Array, valid: jax.Array) -> History:
        """The history with the newest difference in place of the oldest."""
        history, m = state.history, self.history
        dy, dg = y - state.last[0], g - state.last[1]
        dy, dg = _where(valid, (dy, dg), (jnp.zeros_like(dy), jnp.zeros_like(dg)))
        slot = state.count % m
        dx, df = self.difference(dy, dg), dy + dg
        history = History(
            df=lax.dynamic_update_index_in_dim(history.df, df, slot, 0),
            dx=lax.dynamic_update_index_in_dim(history.dx, dx, slot, 0),
            gram=history.gram,
            valid=history.valid.at[:, slot].set(valid),
            age=(slot - jnp.arange(m)) % m,
        )
        column, row = self.pairs(history, dx, df)
        gram = history.gram.at[:, :, slot].set(column).at[:, slot, :].set(row)
        return eqx.tree_at(lambda h: h.gram, history, gram)


def solve_small(history: History, matrix: jax.Array, rhs: jax.Array) -> jax.Array:
    """The solution of the systems `(samples, m, m)` on the valid slots, and zero on the others."""
    valid = history.valid
    both = valid[:, :, None] & valid[:, None, :]
    matrix = jnp.where(both, matrix, jnp.eye(matrix.shape[-1], dtype=matrix.dtype))
    return jnp.linalg.solve(matrix, jnp.where(valid, rhs, 0)[..., None])[..., 0]


def _where(samples: jax.Array, a: Any, b: Any) -> Any:
    """`a` for the chosen samples, `b` for the others."""
    return jax.tree.map(lambda x, y: jnp.where(samples.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)
