"""Solves by plain loops, of operations that every format has."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax
from jax.flatten_util import ravel_pytree

from .._tree import where
from ..diffeq.adjoints.differentiable import solved_by
from ..diffeq.adjoints.gauss import is_part, parts_of
from ..diffeq.failure import Guarded
from ..equilibrium.loop import roots_found_by


@contextlib.contextmanager
def plain_solves() -> Iterator[None]:
    """Equations and roots that are traced inside are solved by the loops of this file.

    They take the steps that diffrax and optimistix take: those of the solver's own tableau, with the sizes that the
    layer's controller gives, saved by the solver's own interpolation; and Newton's. `ValueError`, by name, for what
    they do not take: controls that interpolate data, implicit solvers, noise, events, controllers that jump, `saveat`
    of steps, other root finders, and differentiation in reverse mode.
    """
    with solved_by(_solve), roots_found_by(_find_root):
        try:
            yield
        except ValueError as error:
            if "Reverse-mode differentiation does not work" in str(error):
                raise _refusal("the reverse mode of a solve") from error
            raise


def _refusal(what: str) -> ValueError:
    return ValueError(
        "this format holds solves by explicit solvers, with fixed or PID-controlled steps, saved at times, and roots "
        f"by Newton's method, but not {what}: export it by lux.export.stablehlo or lux.export.saved_model, which "
        "hold every solve"
    )


class _Progress(NamedTuple):
    """Where a solve stands: after `steps` steps, the last accepted one of which has ended at `t` with the value `y`."""

    t: Any
    t_next: Any
    y: Any
    solver: Any
    controller: Any
    result: Any
    steps: Any
    accepted: Any
    last: Any  # the ends of the last accepted step, and what interpolates in it


def _solve(
    terms: Any,
    solver: diffrax.AbstractSolver,
    t0: Any,
    t1: Any,
    dt0: Any,
    y0: Any,
    args: Any,
    *,
    saveat: diffrax.SaveAt,
    stepsize_controller: diffrax.AbstractStepSizeController,
    max_steps: int | None,
    event: Any = "none is asked for",  # where a solve is one of several pieces
    throw: bool = True,
    progress_meter: diffrax.AbstractProgressMeter | None = None,
    **options: Any,
) -> diffrax.Solution:
    """What `diffrax.diffeqsolve` returns, without statistics of its own."""
    if isinstance(event, str):
        raise _refusal("jumps and events that change the state")
    _require_plain(terms, solver, stepsize_controller, saveat, event, args)
    if throw or not isinstance(progress_meter, diffrax.NoProgressMeter):
        raise ValueError("exported solves do not call back to Python: leave throw=True and the progress meter out")
    backward = t0 > t1
    direction = jnp.where(backward, -1, 1).astype(t0.dtype)
    start, end = t0 * direction, t1 * direction
    save = saveat.subs
    times = [save.t0 and start[None], save.ts is not None and save.ts * direction, save.t1 and end[None]]
    times = jnp.concatenate([part.astype(t0.dtype) for part in times if part is not False])
    terms = jax.tree.map(lambda term: _Forward(term, direction), terms, is_leaf=is_part)
    controller: Any = stepsize_controller.wrap(direction)
    order = solver.error_order(terms)
    dt0 = None if dt0 is None else dt0 * direction
    t_next, controller_state = controller.init(terms, start, end, y0, dt0, args, solver.func, order)
    t_next = jnp.minimum(t_next, end)
    solver_state = solver.init(terms, start, t_next, y0, args)
    only_end = save.ts is None and not save.t0
    clip = end - 100 * (jnp.finfo(end.dtype).eps / 2) * jnp.abs(end)

    def goes_on(progress: _Progress, until: Any) -> Any:
        good = (progress.t < until) & (progress.result == diffrax.RESULTS.successful)
        return good if max_steps is None else good & (progress.steps < max_steps)

    def step(progress: _Progress) -> _Progress:
        t, t_next, y = progress.t, progress.t_next, progress.y
        y1, error, info, solver_state, result = solver.step(terms, t, t_next, y, args, progress.solver, False)
        error = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.inf, x), error)
        keep, after, following, _, controller_state, ends = controller.adapt_step_size(
            t, t_next, y, y1, args, error, order, progress.controller
        )
        after = jnp.minimum(after, end)
        onto_end = jnp.where(keep, end, after + 0.5 * (end - after))
        following = jnp.where(following > clip, onto_end, following)
        result = diffrax.RESULTS.where(keep, result, diffrax.RESULTS.successful)
        result = diffrax.RESULTS.where(result == diffrax.RESULTS.successful, ends, result)
        new = (y1, solver_state, None if only_end else (t, t_next, info))
        if keep is not True:
            new = where(keep, new, (y, progress.solver, progress.last))
        y, solver_state, last = new
        accepted = progress.accepted + jnp.asarray(keep).astype(jnp.int32)
        return _like(
            progress,
            _Progress(after, following, y, solver_state, controller_state, result, progress.steps + 1, accepted, last),
        )

    def advance(progress: _Progress, until: Any) -> _Progress:
        return lax.while_loop(lambda progress: goes_on(progress, until), step, progress)

    def saved(progress: _Progress, t: Any) -> tuple[_Progress, Any]:
        progress = advance(progress, t)
        before, after, info = progress.last
        y = solver.interpolation_cls(t0=before, t1=after, **info).evaluate(t)
        y = where(t <= start, y0, y)
        return progress, save.fn(t * direction, y, args)

    progress = _Progress(
        start, t_next, y0, solver_state, controller_state, diffrax.RESULTS.successful, jnp.int32(0), jnp.int32(0), None
    )
    if not only_end:
        info = jax.eval_shape(lambda: solver.step(terms, start, t_next, y0, args, solver_state, False)[2])
        progress = progress._replace(last=(start, start, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), info)))
    progress = jax.tree.map(jnp.asarray, progress)
    if only_end:
        progress = advance(progress, end)
        ys = jax.tree.map(lambda y: y[None], save.fn(t1, progress.y, args))
    else:
        progress, ys = lax.scan(saved, progress, times)
    short = (progress.t < end) & (progress.result == diffrax.RESULTS.successful)
    result = diffrax.RESULTS.where(short, diffrax.RESULTS.max_steps_reached, progress.result)
    steps, accepted = progress.steps, progress.accepted
    stats = {"num_steps": steps, "num_accepted_steps": accepted, "num_rejected_steps": steps - accepted}
    return diffrax.Solution(
        t0=t0,
        t1=t1,
        ts=times * direction,
        ys=ys,
        interpolation=None,
        stats={**stats, "max_steps": max_steps},
        result=result,
        solver_state=None,
        controller_state=None,
        made_jump=None,
        event_mask=None,
    )


def _like(old: Any, new: Any) -> Any:
    """The new progress in the types of the old one, which a loop must not change."""
    return jax.tree.map(lambda old, new: jnp.asarray(new).astype(old.dtype), old, new)


class _Forward(diffrax.AbstractTerm):
    """A term in a time that increases. For controllers it is, as what diffrax hands them, not an `ODETerm`."""

    term: diffrax.AbstractTerm
    direction: Any

    def vf(self, t, y, args):
        return self.term.vf(t * self.direction, y, args)

    def contr(self, t0, t1, **kwargs):
        return self.direction * (t1 - t0)

    def prod(self, vf, control):
        return self.term.prod(vf, control)


def _require_plain(terms: Any, solver: Any, controller: Any, saveat: diffrax.SaveAt, event: Any, args: Any) -> None:
    """Raise `ValueError` for what `_solve` does not do as diffrax does."""
    controller = controller.controller if isinstance(controller, Guarded) else controller
    sub = saveat.subs
    simple = isinstance(sub, diffrax.SubSaveAt) and not (sub.steps or saveat.dense or saveat.solver_state)
    for refused, what in (
        (_interpolates((terms, args)), "controls that interpolate data, as a NeuralCDE has"),
        (isinstance(solver, diffrax.AbstractImplicitSolver), f"the implicit solver {type(solver).__name__}"),
        (not _all_ordinary(terms), "an equation with noise or a control term"),
        (not isinstance(controller, _CONTROLLERS), f"the step size controller {type(controller).__name__}"),
        (event is not None, "an event"),
        (not simple or saveat.controller_state or saveat.made_jump, "a `saveat` of steps, dense output or states"),
    ):
        if refused:
            raise _refusal(what)


_CONTROLLERS = (diffrax.ConstantStepSize, diffrax.StepTo, diffrax.PIDController)


def _interpolates(tree: Any) -> bool:
    def is_data(x: Any) -> bool:
        return isinstance(x, diffrax.AbstractGlobalInterpolation)

    return any(map(is_data, jax.tree.leaves(tree, is_leaf=is_data)))


def _all_ordinary(terms: Any) -> bool:
    return all(isinstance(term, diffrax.ODETerm) for term in parts_of(terms))


# --- roots --------------------------------------------------------------------------------------------------------


def _find_root(f: Any, solver: Any, y0: Any, args: Any, *, max_steps: int, **options: Any) -> optx.Solution:
    """What `optimistix.root_find` returns for its Newton method."""
    if type(solver) is not optx.Newton or not solver.cauchy_termination:
        raise _refusal(f"the root finder {type(solver).__name__}")
    start, unravel = ravel_pytree(y0)
    if not isinstance(start.size, int):
        raise ValueError(
            "a root of a batch of any size has a Jacobian of any size, which this format does not hold: solve for "
            'each sample, with batching="vmap", or export for one batch, with batch_axis=None'
        )

    def residual(y: Any) -> Any:
        return ravel_pytree(f(unravel(y), args))[0]

    def goes_on(progress: Any) -> Any:
        _, steps, end, _ = progress
        return ~end & (steps < max_steps)

    def step(progress: Any) -> Any:
        y, steps, *_ = progress
        g = residual(y)
        way = _solution(jax.jacfwd(residual)(y), g)
        y = y - way
        small = solver.norm(way / (solver.atol + solver.rtol * jnp.abs(y))) < 1
        end, finite = small & (solver.norm(g / solver.atol) < 1), jnp.all(jnp.isfinite(y))
        return y, steps + 1, end | ~finite, end & finite

    init = (start, jnp.int32(0), jnp.array(False), jnp.array(False))
    y, steps, _, okay = lax.while_loop(goes_on, step, init)
    result = optx.RESULTS.where(okay, optx.RESULTS.successful, optx.RESULTS.nonlinear_max_steps_reached)
    return optx.Solution(value=unravel(y), result=result, aux=None, stats={"num_steps": steps}, state=None)


def _solution(matrix: Any, rhs: Any) -> Any:
    """The solution of a linear system, by Gauss and Jordan, with partial pivoting, without indices."""
    n = len(rhs)
    rows = jnp.arange(n, dtype=jnp.int32)

    def eliminate(k: Any, system: Any) -> Any:
        column = jnp.sum(jnp.where(jnp.arange(n + 1, dtype=jnp.int32) == k, system, 0), axis=1)
        size = jnp.where(rows >= k, jnp.abs(column), -1)
        pivot = jnp.min(jnp.where(size == jnp.max(size), rows, n))
        here, there = (rows == k)[:, None], (rows == pivot)[:, None]
        row_k, row_p = (jnp.sum(jnp.where(at, system, 0), axis=0) for at in (here, there))
        scaled = row_p / jnp.sum(jnp.where(rows == pivot, column, 0))
        swapped = jnp.where(there, row_k, system)
        factor = jnp.where(rows == pivot, jnp.sum(jnp.where(rows == k, column, 0)), column)
        return jnp.where(here, scaled, swapped - factor[:, None] * scaled)

    system = lax.fori_loop(0, n, eliminate, jnp.concatenate([matrix, rhs[:, None]], axis=1))
    return system[:, n]
