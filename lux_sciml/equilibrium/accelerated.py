"""What Anderson's and Broyden's methods share: a window of differences, a guarded step, the best iterate."""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from equinox import AbstractVar
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact, Int

from .._tree import root, where
from .precision import as_real, from_real, spacing, widest
from .tolerances import REDUCTION, attainable

HALVINGS = 8  # of a refused step, after which it is taken all the same

_SMALLEST = 1e-30  # scale of a residual: with tolerances of zero, errors can still be compared


class History(eqx.Module):
    """The differences of the last `m` evaluations, and what pairs of them give.

    `df` are differences of `f(y)`; `dx` those that a method projects on. `slot` is that of the newest one, the others
    are `age` evaluations older. Slots not yet filled, or filled with elements that are not finite, are zero.
    """

    df: Inexact[Array, "m n"]
    dx: Inexact[Array, "m n"]
    gram: Inexact[Array, "m m"]
    slot: Int[Array, ""]

    @property
    def age(self) -> Int[Array, " m"]:
        m = len(self.gram)
        return (self.slot - jnp.arange(m)) % m


class _Base(eqx.Module):
    """Where the present step starts."""

    y: Inexact[Array, " n"]
    g: Inexact[Array, " n"]  # f(y) - y
    error: Float[Array, ""]  # the norm of g, relative to the tolerances


class _Best(eqx.Module):
    """The iterate of the lowest residual, until one has converged."""

    y: Inexact[Array, " n"]
    rank: Float[Array, ""]  # negative for the one that has converged
    residual: Float[Array, ""]  # the norm of f(y) - y


class _Progress(eqx.Module):
    """Of one sample."""

    history: History
    base: _Base
    best: _Best
    limit: Float[Array, ""]  # of a relative tolerance, after the first evaluation
    halvings: Int[Array, ""]
    broken: Bool[Array, ""]

    @property
    def done(self) -> Bool[Array, "..."]:
        return (self.best.rank < 0) | self.broken


class _State(eqx.Module):
    progress: _Progress
    count: Array
    trace: Array


class Accelerated(optx.AbstractFixedPointSolver):
    r"""Quasi-Newton methods for `y = f(y)` that use nothing but `f`: one evaluation a step.

    Every step is :math:`y_{k+1} = y_k + d_k`, with `d_k` from the window of the last evaluations. Where the residual
    `|f(y) - y|` after a step is more than `max_growth` times that before it, or not finite, the step is halved, at most
    eight times, at one evaluation each. The iterate of the lowest residual is kept, and is the result.

    The residual is compared with `atol + rtol |f(y)|`, element by element, by the `norm`. Where iterates run away, as
    they do where the Jacobian of `f` has an eigenvalue of one and there is no fixed point, any residual gets small
    beside them: of `rtol |f(y)|` no more counts than a hundredth of the root mean square of the first `f(y)`. `stats`
    has, for each sample, `residual` (the norm of `f(y) - y` at the result), `converged`, and `residuals`
    `(trace, samples)`, those of the first `trace` steps (NaN where there was none); without `per_sample` all of them
    lack the samples' axis.

    `y` is a tree of arrays. Complex ones have complex weights; where real and complex ones are mixed, real and
    imaginary parts count as elements of their own. Half precision is that of the iterates and of `f` alone: all else is
    computed in single precision, and `rtol` is at least four times the machine epsilon.

    With `options={"cheap": True}` iterates are ranked by the residual in units of the tolerances, which saves the
    residual itself where nobody asks for it.
    """

    rtol: AbstractVar[float]
    atol: AbstractVar[float]
    norm: AbstractVar[Callable[..., Any]]
    history_length: AbstractVar[int]
    max_growth: AbstractVar[float]
    per_sample: AbstractVar[bool]
    trace: AbstractVar[int]

    @abc.abstractmethod
    def difference(self, dy: Inexact[Array, " n"], dg: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """What the method projects on, from the differences of `y` and of `g = f(y) - y`."""

    @abc.abstractmethod
    def pairs(
        self, history: History, dx: Inexact[Array, " n"], df: Inexact[Array, " n"]
    ) -> tuple[Inexact[Array, " m"], Inexact[Array, " m"]]:
        """The newest column and the newest row of the `gram`: products of all with the newest, and of it with all."""

    @abc.abstractmethod
    def direction(self, history: History, g: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """The step from the present iterate."""

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        rows, _ = to_samples(y, self.per_sample)
        start = jax.vmap(self._start) if self.per_sample else self._start
        trace = jnp.full((self.trace, *rows.shape[:-1]), jnp.nan, rows.real.dtype)
        return _State(start(rows), jnp.array(0), trace)

    def step(self, fn, y, args, options, state, tags):
        f, aux = fn(y, args)
        eps, cheap = spacing(f), self.rtol == 0 or "cheap" in options
        (y_rows, back), (f_rows, _) = to_samples(y, self.per_sample), to_samples(f, self.per_sample)

        def advance(y, f, progress):
            return self._advance(y, f, progress, state.count, eps, cheap)

        advance = jax.vmap(advance) if self.per_sample else advance
        y_next, residual, progress = advance(y_rows, f_rows, state.progress)
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
        best = state.progress.best
        stats = {"residual": best.residual, "converged": best.rank < 0, "residuals": state.trace}
        return back(best.y), aux, stats

    def _start(self, y: Inexact[Array, " n"]) -> _Progress:
        m, dtype = self.history_length, y.dtype
        window, nothing = jnp.zeros((m, y.size), dtype), jnp.array(jnp.inf, y.real.dtype)
        return _Progress(
            history=History(window, window, jnp.zeros((m, m), dtype), jnp.array(0)),
            base=_Base(y, jnp.zeros_like(y), nothing),
            best=_Best(y, nothing, jnp.full_like(nothing, jnp.nan)),
            limit=nothing,
            halvings=jnp.array(0),
            broken=jnp.array(False),
        )

    def _advance(
        self,
        y: Inexact[Array, " n"],
        f: Inexact[Array, " n"],
        progress: _Progress,
        count: Array,
        eps: float,
        cheap: bool,
    ) -> tuple[Inexact[Array, " n"], Float[Array, ""], _Progress]:
        """The next iterate of a sample, the residual of this one, and the progress.

        `eps` is the machine epsilon of `f`; `cheap` says that iterates are ranked by their errors.
        """
        g, base, best, limit = f - y, progress.base, progress.best, progress.limit
        rtol, length = attainable(self.rtol, eps), jnp.linalg.norm(f)
        typical = length / root(max(f.size, 1), length.dtype)
        small = jnp.maximum(self.atol + jnp.minimum(rtol * jnp.abs(f), limit), _SMALLEST)
        size = jnp.abs(g)
        error, residual = jax.vmap(self.norm)(jnp.stack([size / small, size]))  # one pass through memory
        finite, last = jnp.isfinite(error), progress.halvings >= HALVINGS

        converged = (error < 1) & (eps * typical <= self.atol + limit)
        rank = jnp.where(converged, -1, error if cheap else residual)
        best = where(finite & (rank < best.rank), _Best(y, rank, residual), best)
        accept = finite & ((error <= self.max_growth * base.error) | last)
        broken = progress.broken | (~finite & ((count == 0) | last))
        done = (best.rank < 0) | broken
        limit = jnp.where(count == 0, max(REDUCTION, 16 * eps) * typical, limit)

        dy, dg = y - base.y, g - base.g
        noise = 4 * eps * length  # a smaller difference is rounding, and has no direction
        known = finite & (count > 0) & (jnp.linalg.norm(dg) > noise)
        history = self._push(progress.history, jnp.where(known, dy, 0), jnp.where(known, dg, 0), count)
        onward, halved = y + self.direction(history, g), 0.5 * (y + base.y)
        y_next = jnp.where(done, best.y, jnp.where(accept, onward, halved))

        base = where(accept, _Base(y, g, error), base)
        halvings = jnp.where(accept, 0, progress.halvings + 1)
        return y_next, residual, _Progress(history, base, best, limit, halvings, broken)

    def _push(self, history: History, dy: Inexact[Array, " n"], dg: Inexact[Array, " n"], count: Array) -> History:
        """The history with the newest difference in place of the oldest."""
        slot = count % self.history_length
        dx, df = self.difference(dy, dg), dy + dg
        put = functools.partial(lax.dynamic_update_index_in_dim, index=slot, axis=0)
        history = History(put(history.df, df), put(history.dx, dx), history.gram, slot)
        column, row = self.pairs(history, dx, df)
        return eqx.tree_at(lambda h: h.gram, history, history.gram.at[:, slot].set(column).at[slot].set(row))


def combined(rows: Inexact[Array, "m n"], weights: Inexact[Array, " m"]) -> Inexact[Array, " n"]:
    """The sum of the rows by their weights; zero where a weight is not finite."""
    return jnp.where(jnp.all(jnp.isfinite(weights)), weights, 0) @ rows


def to_samples(tree: Any, per_sample: bool) -> tuple[Array, Callable[[Array], Any]]:
    """The elements of a tree as `(n,)` or, with `per_sample`, as `(samples, n)`, and the way back.

    The samples lie along the first axis of every leaf. They are in the widest precision of the leaves, single at least;
    complex where all leaves are, and in pairs of real and imaginary part where some are.
    """
    leaves, treedef = jax.tree.flatten(tree)
    all_complex = all(map(jnp.iscomplexobj, leaves))
    alike = leaves if all_complex else as_real(leaves)
    dtype = np.result_type(widest(leaves), np.complex64) if all_complex else widest(leaves)
    lead: tuple[int, ...] = ()
    if per_sample:
        sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
        if len(sizes) != 1 or None in sizes:
            shapes = ", ".join(str(leaf.shape) for leaf in leaves)
            raise ValueError(f"per_sample=True needs samples along the first axis of every array, got {shapes}")
        lead = (leaves[0].shape[0],)
    parts = [leaf.reshape(*lead, math.prod(leaf.shape[len(lead) :])).astype(dtype) for leaf in alike]
    ends = [sum(part.shape[-1] for part in parts[: i + 1]) for i in range(len(parts) - 1)]

    def back(rows: Array) -> Any:
        pieces = jnp.split(rows, ends, axis=-1) if ends else [rows]
        pieces = [piece.reshape(leaf.shape).astype(leaf.dtype) for piece, leaf in zip(pieces, alike, strict=True)]
        return treedef.unflatten(pieces if all_complex else from_real(pieces, leaves))

    return (jnp.concatenate(parts, axis=-1) if ends else parts[0]), back
