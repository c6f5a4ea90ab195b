"""Optax's gradient transformations as minimizers: a compiled loop that never takes a non-finite step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._tree import all_finite, where
from .chunks import LONGEST, in_chunks, strong
from .problem import Inputs, Problem
from .programs import Programs
from .progress import NOT_FINITE_AT_START, Progress
from .resume import Memory
from .starts import stacked, together

MOST_REJECTIONS = 30  # in a row: the last step tried is 1e-9 of the first


class _Point(NamedTuple):
    """Parameters where the loss and its gradient are finite, and the optimizer's memory there."""

    params: Any
    value: jax.Array
    gradient: Any
    memory: Any
    before: Any  # the model's state that the loss was given
    state: Any  # and the one that it returned


class _Carry(NamedTuple):
    point: _Point
    trial: Any  # the parameters to evaluate next
    trial_memory: Any
    in_a_row: jax.Array  # rejected trials since the last accepted one
    rejected: jax.Array
    slope: jax.Array  # largest entry of the (projected) gradient at the point
    best: Any
    best_value: jax.Array
    best_state: Any
    best_before: Any  # the state that the loss was given there
    lowest: jax.Array  # value so far
    since: jax.Array  # evaluations since then


def run(
    problem: Problem,
    params: Any,
    inputs: Inputs,
    progress: Progress,
    programs: Programs,
    *,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    tol: float | None,
    patience: int | None,
    keep_best: bool,
    resume: Memory | None = None,
) -> tuple[bool, str]:
    """Make `max_steps` steps, or as many as the tolerance and the patience ask for.

    A trial point where the loss or its gradient is not finite is rejected: parameters, model's state and optimizer's
    memory stay, and the same step is tried again at half its length. The static part of `programs` is the optimizer and
    `keep_best`.
    """
    box = None if bounds is None else tuple(map(problem.unravel, bounds))
    state = strong(inputs.state)
    begin = programs(_start, params, state, box)
    progress.uses_all = tol is None and patience is None
    if resume is None:
        start, first, left = begin(params, state, box), 0, progress.max_steps + 1
    else:
        start = resume.checked(jax.eval_shape(begin, params, state, box))
        first, left = progress.evaluations, progress.max_steps - progress.steps
        _keep(progress, problem, inputs, start)
    compiled = programs(_advance, start, inputs, box, tol, patience, 1)

    def advance(carry, limit):
        return compiled(carry, inputs, box, tol, patience, limit)

    carry = start
    for carry, values in in_chunks(advance, start, left, progress.every, first=first):
        progress.evaluations += len(values)
        progress.history += values.tolist()
        if not np.isfinite(carry.point.value):
            progress.value = progress.history[0]
            return False, NOT_FINITE_AT_START
        _keep(progress, problem, inputs, carry)
        point = carry.point
        progress.report(
            progress.evaluations - 1, lambda point=point: problem.join(point.params, inputs), float(point.value)
        )
    return _verdict(carry, progress, tol, patience, keep_best)


def run_starts(
    problem: Problem,
    starts: list[Any],
    inputs: Inputs,
    records: list[Progress],
    programs: Programs,
    *,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    tol: float | None,
    patience: int | None,
    keep_best: bool,
) -> list[tuple[bool, str]]:
    """The same from several starts at once, each with its own record."""
    box = None if bounds is None else tuple(map(problem.unravel, bounds))
    state = strong(inputs.state)
    begin = programs(_start, starts[0], state, box)
    carry = stacked([begin(params, state, box) for params in starts])
    compiled = programs(_advance_all, carry, inputs, box, tol, patience, 1)

    def advance(carry, limit):
        return compiled(carry, inputs, box, tol, patience, limit)

    def take(carry, record, values):
        record.evaluations += len(values)
        record.history += values.tolist()
        record.steps, record.uses_all = record.evaluations - 1, tol is None and patience is None
        record.value = record.history[0]
        if np.isfinite(carry.point.value):
            _keep(record, problem, inputs, carry)

    carries = together(advance, carry, records, records[0].max_steps + 1, take, first=0)
    return [
        _verdict(carry, record, tol, patience, keep_best)
        if np.isfinite(carry.point.value)
        else (False, NOT_FINITE_AT_START)
        for carry, record in zip(carries, records, strict=True)
    ]


def _verdict(
    carry: _Carry, progress: Progress, tol: float | None, patience: int | None, keep_best: bool
) -> tuple[bool, str]:
    """Success and message of a run that came to its end."""
    rejected = ""
    if carry.rejected:
        rejected = f"; {carry.rejected} steps were shortened, as the loss or its gradient was not finite"
    if carry.in_a_row >= MOST_REJECTIONS:
        return False, (
            f"after step {progress.steps - MOST_REJECTIONS} the loss or its gradient is not finite, however short the "
            f"next step ({MOST_REJECTIONS} tried): clip the gradient, lower the learning rate, or keep the loss "
            "finite there"
        )
    if tol is not None and carry.slope <= tol:
        return True, f"converged: no entry of the gradient is above tol={tol:g}{rejected}"
    if keep_best and carry.best_value >= progress.history[0] and carry.slope > 0:
        return False, f"none of {progress.steps} steps improved on the start: lower the learning rate{rejected}"
    if patience is not None and carry.since >= patience:
        return True, f"ended: no lower loss in patience={patience} steps{rejected}"
    if progress.uses_all:
        return True, f"all {progress.steps} steps made{rejected}"
    return False, f"max_steps={progress.max_steps} reached before convergence{rejected}"


def _keep(progress: Progress, problem: Problem, inputs: Inputs, carry: _Carry) -> None:
    progress.params = lambda: problem.join(carry.best, inputs)
    progress.value, progress.state, progress.before = float(carry.best_value), carry.best_state, carry.best_before
    progress.memory = Memory("optax", carry, len(progress.history), progress.evaluations)


def _start(
    problem: Problem,
    transform: optax.GradientTransformationExtraArgs,
    keep_best: bool,
    params: Any,
    state: Any,
    box: Any,
) -> _Carry:
    nothing = jnp.array(jnp.inf, _value_dtype(problem))
    params = _inside(params, box)
    with jax.numpy_dtype_promotion("standard"):
        memory = transform.init(params)
    point = _Point(params, nothing, jax.tree.map(jnp.zeros_like, params), memory, state, state)
    none = jnp.array(0, jnp.int32)
    return strong(_Carry(point, params, memory, none, none, nothing, params, nothing, state, state, nothing, none))


def _advance(
    problem: Problem,
    transform: optax.GradientTransformationExtraArgs,
    keep_best: bool,
    carry: _Carry,
    inputs: Inputs,
    box: Any,
    tol: Any,
    patience: Any,
    limit: Any,
) -> tuple[_Carry, Any, jax.Array]:
    """At most `limit` evaluations, each with the choice of the next trial point; how many; and the loss after each."""
    dtype = _value_dtype(problem)

    def loss(params, state):
        value, state, _ = problem(params, inputs._replace(state=state))
        return value.astype(dtype), state

    def unfinished(loop):
        i, carry, _ = loop
        bad_start = (carry.in_a_row > 0) & ~jnp.isfinite(carry.point.value)
        converged = jnp.array(False) if tol is None else carry.slope <= tol
        converged |= False if patience is None else carry.since >= patience
        return (i < limit) & (carry.in_a_row < MOST_REJECTIONS) & ~bad_start & ~converged

    def evaluate(loop):
        i, carry, values = loop
        before = carry.point.state
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(carry.trial, before)
        accepted = jnp.isfinite(value) & all_finite(gradient)
        trial = _Point(carry.trial, value, gradient, carry.trial_memory, before, state)
        point = where(accepted, trial, carry.point)
        in_a_row = jnp.where(accepted, 0, carry.in_a_row + 1)
        stayed = (value == carry.best_value) & _equal(carry.trial, carry.point.params)  # the state has gone on
        lower = accepted & (value < carry.lowest)
        better = accepted & ((value < carry.best_value) | stayed) if keep_best else accepted
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = transform.update(
                point.gradient,
                point.memory,
                point.params,
                value=point.value,
                grad=point.gradient,
                value_fn=lambda params: loss(params, point.before)[0],
            )
            ahead = jax.tree.map(lambda p, u: (p + 0.5**in_a_row * u).astype(p.dtype), point.params, updates)
            slope = _slope(point, box).astype(dtype)
        kept = (carry.best, carry.best_value, carry.best_state, carry.best_before)
        best = where(better, (carry.trial, value, state, before), kept)
        carry = _Carry(
            point,
            _inside(ahead, box),
            memory,
            in_a_row,
            carry.rejected + jnp.where(accepted, 0, 1),
            slope,
            *best,
            lowest=jnp.where(lower, value, carry.lowest),
            since=jnp.where(lower, 0, carry.since + 1),
        )
        return i + 1, carry, values.at[i].set(jnp.where(jnp.isfinite(point.value), point.value, value))

    count, carry, values = jax.lax.while_loop(unfinished, evaluate, (0, carry, jnp.zeros(LONGEST, dtype)))
    return strong(carry), count, values


def _advance_all(problem: Problem, transform: Any, keep_best: bool, carry: _Carry, *given: Any) -> Any:
    advance = functools.partial(_advance, problem, transform, keep_best)
    return jax.vmap(advance, in_axes=(0, *[None] * len(given)))(carry, *given)


def _value_dtype(problem: Problem) -> np.dtype:
    """At least float32, whatever the loss returns: the loop's carry must know it before the loss is traced."""
    return np.dtype(np.float64 if problem.dtype == np.float64 else np.float32)


def _equal(a: Any, b: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.all(jnp.array([jnp.all(x == y) for x, y in pairs], bool))


def _slope(point: _Point, box: Any) -> Any:
    """The largest entry of the gradient; of its projection where there are bounds."""
    ahead = _inside(jax.tree.map(lambda p, g: p - g, point.params, point.gradient), box)
    steps = point.gradient if box is None else jax.tree.map(lambda p, a: p - a, point.params, ahead)
    return jax.tree.reduce(jnp.maximum, jax.tree.map(lambda s: jnp.max(jnp.abs(s), initial=0), steps), 0)


def _inside(params: Any, box: Any) -> Any:
    return params if box is None else jax.tree.map(jnp.clip, params, *box)
