"""Optax's gradient transformations as minimizers: a compiled loop that never takes a non-finite step."""

import functools
import types
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .chunks import LONGEST, in_chunks, strong
from .problem import Problem
from .progress import NOT_FINITE_AT_START, Record

MOST_REJECTIONS = 30  # in a row: the last step tried is 1e-9 of the first


class _Point(NamedTuple):
    """Parameters where the loss and its gradient are finite, and the optimizer's state there."""

    params: Any
    value: jax.Array
    gradient: Any
    state: Any


class _Carry(NamedTuple):
    point: _Point
    trial: Any  # the parameters to evaluate next
    trial_state: Any
    in_a_row: jax.Array  # rejected trials since the last accepted one
    rejected: jax.Array
    slope: jax.Array  # largest entry of the (projected) gradient at the point
    best: Any
    best_value: jax.Array


def run(
    problem: Problem,
    ps: Any,
    args: Any,
    record: Record,
    *,
    method: optax.GradientTransformation,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    tol: float | None,
    keep_best: bool,
) -> tuple[bool, str]:
    """Make `max_steps` steps, or as many as the tolerance asks for.

    A trial point where the loss or its gradient is not finite is rejected: parameters and optimizer state stay, and the
    same step is tried again at half its length.
    """
    bounds = None if bounds is None else tuple(map(problem.unravel, bounds))
    transform = _ByValue(method)

    def advance(carry, limit):
        return _advance(problem, transform, keep_best, carry, args, bounds, tol, limit)

    for carry, values in in_chunks(advance, _start(problem, transform, ps, bounds), record.max_steps + 1):
        record.params, record.value = carry.best, float(carry.best_value)
        record.evaluations += len(values)
        record.history += values.tolist()
        if not np.isfinite(carry.point.value):
            record.value = record.history[0]
            return False, NOT_FINITE_AT_START
        record.report(record.evaluations - 1, carry.point.params, float(carry.point.value))
    rejected = f"; {carry.rejected} steps were shortened, as the loss was not finite" if carry.rejected else ""
    if carry.in_a_row >= MOST_REJECTIONS:
        return False, (
            f"after step {record.steps - MOST_REJECTIONS} the loss or its gradient is not finite, however short the "
            f"next step ({MOST_REJECTIONS} tried): clip the gradient, lower the learning rate, or keep the loss "
            "finite there"
        )
    if tol is not None and carry.slope <= tol:
        return True, f"converged: no entry of the gradient is above tol={tol:g}{rejected}"
    if keep_best and carry.best_value >= record.history[0] and carry.slope > 0:
        return False, f"none of {record.steps} steps improved on the start: lower the learning rate{rejected}"
    if tol is None:
        return True, f"all {record.steps} steps made{rejected}"
    return False, f"max_steps={record.max_steps} reached before convergence{rejected}"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(problem: Problem, transform: "_ByValue", ps: Any, bounds: Any) -> _Carry:
    nothing = jnp.array(jnp.inf, _value_dtype(problem))
    ps = _inside(ps, bounds)
    with jax.numpy_dtype_promotion("standard"):
        state = transform.init(ps)
    point = _Point(ps, nothing, jax.tree.map(jnp.zeros_like, ps), state)
    none = jnp.array(0, jnp.int32)
    return strong(_Carry(point, ps, state, none, none, nothing, ps, nothing))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    problem: Problem,
    transform: "_ByValue",
    keep_best: bool,
    carry: _Carry,
    args: Any,
    bounds: Any,
    tol: Any,
    limit: Any,
) -> tuple[_Carry, jax.Array, jax.Array]:
    """At most `limit` evaluations, each with the choice of the next trial point; how many; and the loss after each."""
    dtype = _value_dtype(problem)

    def loss(ps):
        return problem(ps, args)[0].astype(dtype)

    def unfinished(loop):
        i, carry, _ = loop
        bad_start = (carry.in_a_row > 0) & ~jnp.isfinite(carry.point.value)
        converged = jnp.array(False) if tol is None else carry.slope <= tol
        return (i < limit) & (carry.in_a_row < MOST_REJECTIONS) & ~bad_start & ~converged

    def evaluate(loop):
        i, carry, values = loop
        value, gradient = jax.value_and_grad(loss)(carry.trial)
        accepted = jnp.isfinite(value) & _all_finite(gradient)
        point = _where(accepted, _Point(carry.trial, value, gradient, carry.trial_state), carry.point)
        in_a_row = jnp.where(accepted, 0, carry.in_a_row + 1)
        better = accepted & (value < carry.best_value) if keep_best else accepted
        with jax.numpy_dtype_promotion("standard"):
            updates, state = transform.update(
                point.gradient, point.state, point.params, value=point.value, grad=point.gradient, value_fn=loss
            )
            trial = jax.tree.map(lambda p, u: (p + 0.5**in_a_row * u).astype(p.dtype), point.params, updates)
            slope = _slope(point, bounds).astype(dtype)
        carry = _Carry(
            point,
            _inside(trial, bounds),
            state,
            in_a_row,
            carry.rejected + jnp.where(accepted, 0, 1),
            slope,
            *_where(better, (carry.trial, value), (carry.best, carry.best_value)),
        )
        return i + 1, carry, values.at[i].set(jnp.where(jnp.isfinite(point.value), point.value, value))

    count, carry, values = jax.lax.while_loop(unfinished, evaluate, (0, carry, jnp.zeros(LONGEST, dtype)))
    return strong(carry), count, values


def _value_dtype(problem: Problem) -> np.dtype:
    """At least float32, whatever the loss returns: the loop's carry must know it before the loss is traced."""
    return np.dtype(np.float64 if problem.dtype == np.float64 else np.float32)


def _slope(point: _Point, bounds: Any) -> jax.Array:
    """The largest entry of the gradient; of its projection where there are bounds."""
    ahead = _inside(jax.tree.map(lambda p, g: p - g, point.params, point.gradient), bounds)
    steps = point.gradient if bounds is None else jax.tree.map(lambda p, a: p - a, point.params, ahead)
    return jax.tree.reduce(jnp.maximum, jax.tree.map(lambda s: jnp.max(jnp.abs(s), initial=0), steps), 0)


def _inside(ps: Any, bounds: Any) -> Any:
    return ps if bounds is None else jax.tree.map(lambda p, lower, upper: jnp.clip(p, lower, upper), ps, *bounds)


def _all_finite(tree: Any) -> jax.Array:
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda x: jnp.isfinite(x).all(), tree), True)


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


class _ByValue:
    """A gradient transformation that compares by the code and the options of its closures.

    Each `optax.adam(0.01)` is made of new functions: compared by identity, none would find the others' program.
    """

    def __init__(self, transform: optax.GradientTransformation):
        transform = optax.with_extra_args_support(transform)
        self.init, self.update = transform
        try:
            self._key = _content(tuple(transform))
        except (RecursionError, ValueError):  # functions that hold themselves, or nothing yet
            self._key = transform

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _ByValue) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _content(x: Any) -> Hashable:
    if isinstance(x, types.FunctionType):
        cells = tuple(_content(cell.cell_contents) for cell in x.__closure__ or ())
        defaults = _content((x.__defaults__, tuple((x.__kwdefaults__ or {}).items())))
        return (x.__code__, id(x.__globals__), cells, defaults)
    if isinstance(x, tuple):
        return (type(x), tuple(map(_content, x)))
    if isinstance(x, functools.partial):
        return (functools.partial, _content((x.func, x.args, tuple(x.keywords.items()))))
    if isinstance(x, float):
        return (float, x.hex())
    return (type(x), x if _hashable(x) else id(x))


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
