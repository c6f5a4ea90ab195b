"""LevenbergMarquardt in chunks: one program for every step, also where the samples change."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import convergence
from .chunks import LONGEST, in_chunks, strong
from .levenberg_marquardt import LevenbergMarquardt, State
from .programs import Programs
from .progress import NOT_FINITE_AT_START, NOT_FINITE_RESAMPLED, Progress
from .residual_problem import Data, ResidualProblem


def run(
    problem: ResidualProblem,
    params: Any,
    data: Data,
    progress: Progress,
    programs: Programs,
    *,
    method: LevenbergMarquardt,
    size: int,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    resample: Callable[[int, Any, Data], Data] | None,
    resample_every: int,
) -> tuple[bool, str]:
    """At most `max_steps` steps; `resample(step, ps, data)` gives the data after every so many. The static part of
    `programs` is the method.
    """
    current, box, compiled = _ready(
        problem, problem.ravel(params), data, programs, method=method, size=size, bounds=bounds
    )
    x, state = current

    def at(x):
        return problem.join(problem.unravel(x), data)

    def value_at(x):
        return float(programs(_value, x, data)(x, data))

    def advance(carry, limit):
        return compiled(carry, data, box, limit)

    steps, total = 0, progress.max_steps
    while True:
        start, made = steps, -1  # the first evaluation is of the point itself
        end = total if resample is None else min(total, start + resample_every)
        for (x, state), values in in_chunks(advance, current, end - start + 1, progress.every, first=start):
            progress.evaluations += len(values)
            progress.history += values.tolist() if made >= 0 or start == 0 else values[1:].tolist()
            made += len(values)
            steps = start + made
            value = float(state.point.value)
            if not np.isfinite(value) and steps > 0:
                del progress.history[steps + 1 :]
                return False, f"{NOT_FINITE_RESAMPLED} after step {steps}"
            progress.params, progress.value = functools.partial(at, x), value
            if not np.isfinite(value):
                progress.value = progress.history[0] = value_at(x)
                return False, NOT_FINITE_AT_START
            if made > 0 or start == 0:
                progress.report(steps, progress.params, progress.value)
        if resample is None or steps in (start, total):
            break
        data = resample(steps, at(x), data)
        current = strong((x, method.again(x, state)))
    if state.converged:
        stored = len(state.point.jacobian) > 0
        gradient = state.point.residual @ state.point.jacobian if stored else programs(_gradient, x, data)(x, data)
        return _verdict(x, state, gradient, lambda flat: value_at(jnp.asarray(flat, x.dtype)), bounds)
    return False, f"max_steps={total} reached before convergence"


def jacobian(
    problem: ResidualProblem, flat: np.ndarray, data: Data, programs: Programs, **how: Any
) -> jax.Array | None:
    """The Jacobian of a point by the program of the steps, which a fit has compiled; `None` where it has none.

    `how` are the method, the size and the bounds of the fit.
    """
    current, box, compiled = _ready(problem, flat, data, programs, **how)
    if not len(current[1].point.jacobian):  # products alone
        return None
    (_, state), *_ = compiled(current, data, box, 1)
    return state.point.jacobian if np.isfinite(state.point.value) else None


def _ready(
    problem: ResidualProblem,
    flat: np.ndarray,
    data: Data,
    programs: Programs,
    *,
    method: LevenbergMarquardt,
    size: int,
    bounds: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[tuple[jax.Array, State], Any, Callable]:
    """A point within the bounds, with its state before the first evaluation; the bounds; and the program of steps."""
    x = jnp.asarray(flat, problem.flat_dtype)
    box = None if bounds is None else tuple(jnp.asarray(side, x.dtype) for side in bounds)
    x = x if box is None else jnp.clip(x, *box)
    current = strong((x, method.start(x, size)))
    return current, box, programs(_advance, current, data, box, 1)


def _verdict(
    x: jax.Array,
    state: State,
    gradient: jax.Array,
    loss: Callable[[np.ndarray], float],
    bounds: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[bool, str]:
    if not state.finite:
        return False, (
            "the residuals are not finite at any step from here, however short: keep them finite there, by bounds or "
            "by a transformation of the parameters"
        )
    inside = (lambda x: x) if bounds is None else (lambda x: np.clip(x, *bounds))
    at = np.asarray(x, np.float64), float(state.point.value), np.asarray(gradient, np.float64)
    slope = convergence.steepness(*at, loss, inside, state.point.value.dtype)
    if slope:
        return False, (
            f"no step lowers the loss, but its gradient, {slope:.1g} relative to the loss, is not small: the "
            f"residuals are not smooth there; {convergence.ADVICE}"
        )
    return True, "converged: the loss or the parameters would change by less than the tolerance"


def _value(problem: ResidualProblem, method: LevenbergMarquardt, x: jax.Array, data: Data) -> jax.Array:
    return problem.loss.value(problem.at(data).values(x)[0])


def _gradient(problem: ResidualProblem, method: LevenbergMarquardt, x: jax.Array, data: Data) -> jax.Array:
    """Of the loss, without its Jacobian."""
    return jax.grad(lambda x: _value(problem, method, x, data))(x)


def _advance(
    problem: ResidualProblem,
    method: LevenbergMarquardt,
    carry: tuple[jax.Array, State],
    data: Data,
    box: Any,
    limit: Any,
) -> tuple[tuple[jax.Array, State], Any, jax.Array]:
    """At most `limit` evaluations, each with the choice of the next trial point; how many; and the loss after each."""
    fit = problem.at(data)

    def unfinished(loop):
        i, (_, state), _ = loop
        return (i < limit) & ~state.converged

    def step(loop):
        i, (x, state), values = loop
        x, state = method.advance(fit, x, state, box)
        return i + 1, (x, state), values.at[i].set(state.point.value)

    first = (jnp.array(0), carry, jnp.zeros(LONGEST, carry[0].dtype))
    count, carry, values = jax.lax.while_loop(unfinished, step, first)
    return strong(carry), count, values
