"""Optimistix's minimizers, stepped in chunks by their own `init`, `step` and `terminate`."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from .._tree import where
from . import convergence
from .chunks import LONGEST, in_chunks, strong
from .problem import Problem
from .programs import Programs
from .progress import NOT_FINITE_AT_START, Progress
from .residual_problem import ResidualProblem

AnyProblem = Problem | ResidualProblem


class _Seen(NamedTuple):
    """An evaluation that a solver passes on as the aux of its steps: `known` is False in aux that it made up."""

    known: jax.Array
    value: jax.Array
    y: jax.Array


class _Carry(NamedTuple):
    y: jax.Array  # (n,), in the default float type
    state: Any  # the arrays of the solver's state
    last: _Seen
    best: _Seen
    ended: jax.Array
    result: Any  # optimistix.RESULTS


def run(
    problem: AnyProblem,
    params: Any,
    inputs: Any,
    progress: Progress,
    programs: Programs,
    *,
    method: optx.AbstractMinimiser | optx.AbstractLeastSquaresSolver,
    arrays: Any,
    keep_best: bool,
) -> tuple[bool, str]:
    """Step the solver until it terminates. It runs in JAX's default float type, the loss in the parameters' own.

    Optimistix makes some arrays in the default type: beside float32 parameters they would not compile with x64 on.
    The static part of `programs` is the solver with its options, without their `arrays`.
    """
    flat = problem.ravel(params)
    y = jnp.asarray(flat, jnp.result_type(float))
    by_values = any(isinstance(solver, optx.NelderMead) for solver in (method, getattr(method, "solver", None)))
    function = programs(_value if by_values else _value_and_gradient, problem.cast(flat), inputs)
    start = programs(_start, arrays, y, inputs, 0.0)

    def evaluate(x):
        progress.evaluations += 1
        value, gradient = function(problem.cast(x), inputs)
        return float(value), np.asarray(gradient).astype(np.float64)

    progress.value, gradient = evaluate(flat)
    if not (np.isfinite(progress.value) and np.isfinite(gradient).all()):
        progress.history.append(progress.value)
        return False, NOT_FINITE_AT_START
    first = start(arrays, y, inputs, progress.value)
    step, finish = programs(_advance, arrays, first, inputs, 1), programs(_finish, arrays, first, inputs)

    carry = first

    def advance(carry, limit):
        return step(arrays, carry, inputs, limit)

    def keep(y, value):
        progress.params, progress.value = (lambda: problem.join(problem.unravel(y), inputs)), value

    for carry, values in in_chunks(advance, first, progress.max_steps, progress.every):
        progress.evaluations += len(values)
        progress.history += values.tolist()
        keep(carry.best.y, float(carry.best.value))
        last = carry.last
        progress.report(
            len(progress.history), lambda y=last.y: problem.join(problem.unravel(y), inputs), float(last.value)
        )
    y = np.asarray(finish(arrays, carry, inputs)).astype(np.float64)
    value, gradient = evaluate(y)
    progress.history.append(value)
    if np.isfinite(value) and (value <= progress.value or not keep_best):
        keep(y, value)
    else:
        y = np.asarray(carry.best.y).astype(np.float64)
    if not np.isfinite(value):
        return False, (
            "the solver stepped to where the loss is not finite, and the best point before is returned: lower the "
            "learning rate, or take a solver with a line search, such as optimistix.BFGS"
        )
    if not carry.ended:
        return False, f"max_steps={progress.max_steps} reached before convergence"
    if carry.result != optx.RESULTS.successful:
        return False, optx.RESULTS[carry.result]
    if by_values:
        fall = convergence.fall(y, progress.value, lambda x: evaluate(x)[0], lambda x: x, problem.dtype)
        if fall > convergence.FALL:
            return (
                False,
                f"the solver ended where a small step lowers the loss by {fall:.1g} of it: {convergence.ADVICE}",
            )
    else:
        slope = convergence.slope(y, *(evaluate(y) if value > progress.value else (value, gradient)), lambda x: x)
        if slope > max(convergence.STEEP, getattr(method, "rtol", 0.0), getattr(method, "atol", 0.0)):
            return False, (
                f"the solver ended where the gradient, {slope:.1g} relative to the loss, is not small: "
                f"{convergence.ADVICE}"
            )
    return True, "converged: the solver's rtol and atol are met"


def _value(problem: AnyProblem, solver: Any, flat: jax.Array, inputs: Any) -> tuple[jax.Array, tuple[()]]:
    return problem.seen(flat, inputs)[1], ()


def _value_and_gradient(problem: AnyProblem, solver: Any, flat: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
    return problem.value_and_gradient(flat, inputs)


class _Solver:
    """The solver's methods with the arguments that never change, for one trace."""

    def __init__(self, problem: AnyProblem, others: Any, arrays: Any, y: jax.Array, inputs: Any):
        solver, options = eqx.combine(arrays, others)
        seen = jax.eval_shape(lambda: _Seen(jnp.array(True), jnp.zeros((), y.dtype), y))
        out = jax.ShapeDtypeStruct(problem.seen_shape(y, inputs), y.dtype)

        def function(y, inputs):
            return _see(problem, y, inputs)

        self.init = lambda: solver.init(function, y, inputs, options, out, seen, frozenset())
        self.step = lambda y, state: solver.step(function, y, inputs, options, state, frozenset())
        self.terminate = lambda y, state: solver.terminate(function, y, inputs, options, state, frozenset())
        self.postprocess = lambda y, seen, state, result: solver.postprocess(
            function, y, seen, inputs, options, state, frozenset(), result
        )


def _see(problem: AnyProblem, y: jax.Array, inputs: Any) -> tuple[jax.Array, _Seen]:
    """The loss or residuals, inf where not finite (solvers reject inf, but not all NaN), and what was evaluated."""
    out, value = problem.seen(y, inputs)
    finite = jnp.isfinite(value)
    value = jnp.where(finite, value, jnp.inf).astype(y.dtype)
    out = jnp.where(finite, out, jnp.inf).astype(y.dtype)
    return out, _Seen(jnp.array(True), jax.lax.stop_gradient(value), y)


def _start(problem: AnyProblem, others: Any, arrays: Any, y: jax.Array, inputs: Any, value: Any) -> _Carry:
    with jax.numpy_dtype_promotion("standard"):
        state = _Solver(problem, others, arrays, y, inputs).init()
    seen = _Seen(jnp.array(True), jnp.asarray(value, y.dtype), y)
    carry = _Carry(y, eqx.filter(state, eqx.is_array), seen, seen, jnp.array(False), optx.RESULTS.successful)
    return strong(carry)


def _advance(
    problem: AnyProblem, others: Any, arrays: Any, carry: _Carry, inputs: Any, limit: Any
) -> tuple[_Carry, Any, jax.Array]:
    """At most `limit` steps; how many; and the loss where each began."""
    solver = _Solver(problem, others, arrays, carry.y, inputs)
    static = eqx.filter(solver.init(), eqx.is_array, inverse=True)  # the state's other half, the same for every step

    def unfinished(loop):
        i, carry, _ = loop
        return (i < limit) & ~carry.ended

    def step(loop):
        i, carry, values = loop
        y, state, seen = solver.step(carry.y, eqx.combine(carry.state, static))
        terminate, result = solver.terminate(carry.y, state)
        seen = where(seen.known, seen, carry.last)
        best = where(seen.value < carry.best.value, seen, carry.best)
        failed = (result != optx.RESULTS.successful) | ~jnp.isfinite(y).all()
        carry = _Carry(y, eqx.filter(state, eqx.is_array), seen, best, terminate | failed, result)
        return i + 1, carry, values.at[i].set(seen.value)

    with jax.numpy_dtype_promotion("standard"):
        count, carry, values = jax.lax.while_loop(unfinished, step, (0, carry, jnp.zeros(LONGEST, carry.y.dtype)))
    return strong(carry), count, values


def _finish(problem: AnyProblem, others: Any, arrays: Any, carry: _Carry, inputs: Any) -> jax.Array:
    """The solver's own choice of the point to return."""
    with jax.numpy_dtype_promotion("standard"):
        solver = _Solver(problem, others, arrays, carry.y, inputs)
        static = eqx.filter(solver.init(), eqx.is_array, inverse=True)
        return solver.postprocess(carry.y, carry.last, eqx.combine(carry.state, static), carry.result)[0]
