"""Optimistix's minimizers, stepped in chunks by their own `init`, `step` and `terminate`."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from .chunks import LONGEST, in_chunks, strong
from .problem import Problem, evaluate
from .progress import NOT_FINITE_AT_START, Record


class _Seen(NamedTuple):
    """An evaluation that a solver hands on as the aux of its steps: `known` is False in aux that it made up."""

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
    problem: Problem,
    ps: Any,
    args: Any,
    record: Record,
    *,
    method: optx.AbstractMinimiser,
    keep_best: bool,
    options: dict[str, Any],
) -> tuple[bool, str]:
    """Step the solver until it terminates. It runs in JAX's default float type, the loss in the parameters' own.

    Optimistix makes some arrays in the default type: beside float32 parameters they would not compile with x64 on.
    """
    arrays, fixed = eqx.partition((method, options), lambda x: isinstance(x, jax.Array | np.ndarray))
    fixed = _Static(fixed)
    y = jnp.asarray(problem.ravel(ps), jnp.result_type(float))
    record.value, record.evaluations = float(evaluate(problem, ps, args)[0]), 1
    if not np.isfinite(record.value):
        record.history.append(record.value)
        return False, NOT_FINITE_AT_START

    def advance(carry, limit):
        return _advance(problem, fixed, arrays, carry, args, limit)

    for carry, values in in_chunks(advance, _start(problem, fixed, arrays, y, args, record.value), record.max_steps):
        record.evaluations += len(values)
        record.history += values.tolist()
        record.params, record.value = problem.unravel(carry.best.y), float(carry.best.value)
        record.report(len(record.history), problem.unravel(carry.last.y), float(carry.last.value))
    y = _finish(problem, fixed, arrays, carry, args)
    params = problem.unravel(y)
    value = float(evaluate(problem, params, args)[0])
    record.evaluations += 1
    record.history.append(value)
    if np.isfinite(value) and (value <= record.value or not keep_best):
        record.params, record.value = params, value
    if not np.isfinite(value):
        return False, (
            "the solver stepped to where the loss is not finite, and the best point before is returned: lower the "
            "learning rate, or take a solver with a line search, such as optimistix.BFGS"
        )
    if not carry.ended:
        return False, f"max_steps={record.max_steps} reached before convergence"
    if carry.result != optx.RESULTS.successful:
        return False, optx.RESULTS[carry.result]
    return True, "converged: the solver's rtol and atol are met"


class _Static:
    """A pytree without arrays, as a static argument: Equinox modules compare by value."""

    def __init__(self, tree: Any):
        self.leaves, self.treedef = jax.tree.flatten(tree)

    @property
    def tree(self) -> Any:
        return jax.tree.unflatten(self.treedef, self.leaves)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Static) and (self.treedef, self.leaves) == (other.treedef, other.leaves)

    def __hash__(self) -> int:
        return hash((self.treedef, tuple(self.leaves)))


class _Solver:
    """The solver's methods with the arguments that never change, for one trace."""

    def __init__(self, problem: Problem, fixed: _Static, arrays: Any, y: jax.Array, args: Any):
        solver, options = eqx.combine(arrays, fixed.tree)
        value = jax.ShapeDtypeStruct((), y.dtype)
        seen = _Seen(jax.ShapeDtypeStruct((), bool), value, jax.eval_shape(lambda: y))
        function = functools.partial(_see, problem)
        self.init = functools.partial(solver.init, function, y, args, options, value, seen, frozenset())
        self.step = lambda y, state: solver.step(function, y, args, options, state, frozenset())
        self.terminate = lambda y, state: solver.terminate(function, y, args, options, state, frozenset())
        self.postprocess = lambda y, seen, state, result: solver.postprocess(
            function, y, seen, args, options, state, frozenset(), result
        )


def _see(problem: Problem, y: jax.Array, args: Any) -> tuple[jax.Array, _Seen]:
    """The loss, inf where it is not finite (solvers reject inf, but not all reject NaN), and what was evaluated."""
    value = problem(problem.unravel(y), args)[0].astype(y.dtype)
    value = jnp.where(jnp.isfinite(value), value, jnp.inf)
    return value, _Seen(jnp.array(True), jax.lax.stop_gradient(value), y)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(problem: Problem, fixed: _Static, arrays: Any, y: jax.Array, args: Any, value: Any) -> _Carry:
    with jax.numpy_dtype_promotion("standard"):
        state = _Solver(problem, fixed, arrays, y, args).init()
    seen = _Seen(jnp.array(True), jnp.asarray(value, y.dtype), y)
    carry = _Carry(y, eqx.filter(state, eqx.is_array), seen, seen, jnp.array(False), optx.RESULTS.successful)
    return strong(carry)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(
    problem: Problem, fixed: _Static, arrays: Any, carry: _Carry, args: Any, limit: Any
) -> tuple[_Carry, jax.Array, jax.Array]:
    """At most `limit` steps; how many; and the loss where each began."""
    solver = _Solver(problem, fixed, arrays, carry.y, args)
    static = eqx.filter(solver.init(), eqx.is_array, inverse=True)  # the state's other half, the same for every step

    def unfinished(loop):
        i, carry, _ = loop
        return (i < limit) & ~carry.ended

    def step(loop):
        i, carry, values = loop
        y, state, seen = solver.step(carry.y, eqx.combine(carry.state, static))
        terminate, result = solver.terminate(carry.y, state)
        seen = _where(seen.known, seen, carry.last)
        best = _where(seen.value < carry.best.value, seen, carry.best)
        failed = (result != optx.RESULTS.successful) | ~jnp.isfinite(y).all()
        carry = _Carry(y, eqx.filter(state, eqx.is_array), seen, best, terminate | failed, result)
        return i + 1, carry, values.at[i].set(seen.value)

    with jax.numpy_dtype_promotion("standard"):
        count, carry, values = jax.lax.while_loop(unfinished, step, (0, carry, jnp.zeros(LONGEST, carry.y.dtype)))
    return strong(carry), count, values


@functools.partial(jax.jit, static_argnums=(0, 1))
def _finish(problem: Problem, fixed: _Static, arrays: Any, carry: _Carry, args: Any) -> jax.Array:
    """The solver's own choice of the point to return."""
    with jax.numpy_dtype_promotion("standard"):
        solver = _Solver(problem, fixed, arrays, carry.y, args)
        static = eqx.filter(solver.init(), eqx.is_array, inverse=True)
        return solver.postprocess(carry.y, carry.last, eqx.combine(carry.state, static), carry.result)[0]


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
