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
from .resume import Memory
from .starts import stacked, together

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
    since: jax.Array  # steps since then
    ended: jax.Array
    result: Any  # optimistix.RESULTS


class _Run:
    """A run from one start."""

    def __init__(
        self,
        problem: AnyProblem,
        params: Any,
        inputs: Any,
        progress: Progress,
        programs: Programs,
        method: Any,
        arrays: Any,
        bounds: tuple[np.ndarray, np.ndarray] | None,
        keep_best: bool,
    ):
        self.problem, self.inputs, self.progress, self.keep_best = problem, inputs, progress, keep_best
        self.method, self.arrays = method, arrays
        self.bounds, self.flat = bounds, problem.ravel(params)
        self.flat = self.inside(self.flat)
        self.y = jnp.asarray(self.flat, jnp.result_type(float))
        self.by_values = any(
            isinstance(solver, optx.NelderMead) for solver in (method, getattr(method, "solver", None))
        )
        evaluate = _value if self.by_values else _value_and_gradient
        self.function = programs(evaluate, problem.cast(self.flat), inputs)
        self.start = programs(_start, arrays, self.y, inputs, 0.0)

    def inside(self, x: np.ndarray) -> np.ndarray:
        return x if self.bounds is None else np.clip(x, *self.bounds)

    def evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.progress.evaluations += 1
        value, gradient = self.function(self.problem.cast(x), self.inputs)
        return float(value), np.asarray(gradient).astype(np.float64)

    def keep(self, y: Any, value: float) -> None:
        self.progress.params = lambda: self.problem.join(self.problem.unravel(y), self.inputs)
        self.progress.value = value

    def first(self) -> "_Carry | None":
        """Where the loss is finite."""
        value, gradient = self.evaluate(self.flat)
        self.keep(self.flat, value)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            self.progress.history.append(value)
            return None
        return self.start(self.arrays, self.y, self.inputs, value)

    def again(self, memory: Memory) -> _Carry:
        carry = memory.checked(jax.eval_shape(self.start, self.arrays, self.y, self.inputs, 0.0))
        self.keep(carry.best.y, float(carry.best.value))
        return carry

    def take(self, carry: _Carry, values: np.ndarray) -> None:
        self.progress.evaluations += len(values)
        self.progress.history += values.tolist()
        self.progress.steps = len(self.progress.history)
        self.keep(carry.best.y, float(carry.best.value))
        self.remember(carry)

    def remember(self, carry: _Carry) -> None:
        self.progress.memory = Memory("optimistix", carry, len(self.progress.history), self.progress.evaluations)

    def conclude(self, carry: _Carry, y: Any, patience: int | None) -> tuple[bool, str]:
        """Success and message of a run that came to its end, and `y`, the point that the solver returns."""
        y, progress = np.asarray(y).astype(np.float64), self.progress
        value, gradient = self.evaluate(y)
        progress.history.append(value)
        if np.isfinite(value) and (value <= progress.value or not self.keep_best):
            self.keep(y, value)
        else:
            y = np.asarray(carry.best.y).astype(np.float64)
        if not np.isfinite(value):
            return False, (
                "the solver stepped to where the loss is not finite, and the best point before is returned: lower the "
                "learning rate, or take a solver with a line search, such as optimistix.BFGS"
            )
        if not carry.ended:
            if patience is not None and carry.since >= patience:
                return True, f"ended: no lower loss in patience={patience} steps"
            return False, f"max_steps={progress.max_steps} reached before convergence"
        if carry.result != optx.RESULTS.successful:
            return False, optx.RESULTS[carry.result]
        doubt = self.doubt(y, value, gradient)
        return (False, doubt) if doubt else (True, "converged: the solver's rtol and atol are met")

    def doubt(self, y: np.ndarray, value: float, gradient: np.ndarray) -> str:
        """Why the point is no minimum, or nothing."""
        if self.by_values:
            value = self.progress.value
            fall = convergence.fall(y, value, lambda x: self.evaluate(x)[0], self.inside, self.problem.dtype)
            if fall > convergence.FALL:
                return f"the solver ended where a small step lowers the loss by {fall:.1g} of it: {convergence.ADVICE}"
            return ""
        at = self.evaluate(y) if value > self.progress.value else (value, gradient)
        enough = max(getattr(self.method, "rtol", 0.0), getattr(self.method, "atol", 0.0))
        dtype = self.problem.dtype
        slope = convergence.steepness(y, *at, lambda x: self.evaluate(x)[0], self.inside, dtype, enough)
        if slope:
            return (
                f"the solver ended where the gradient, {slope:.1g} relative to the loss, is not small: "
                f"{convergence.ADVICE}"
            )
        return ""


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
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    patience: int | None = None,
    resume: Memory | None = None,
) -> tuple[bool, str]:
    """Step the solver until it terminates. It runs in JAX's default float type, the loss in the parameters' own.

    Optimistix makes some arrays in the default type: beside float32 parameters they would not compile with x64 on.
    The static part of `programs` is the solver with its options, without their `arrays`; bounds are among these.
    """
    one = _Run(problem, params, inputs, progress, programs, method, arrays, bounds, keep_best)
    start = one.first() if resume is None else one.again(resume)
    if start is None:
        return False, NOT_FINITE_AT_START
    step, finish = programs(_advance, arrays, start, inputs, patience, 1), programs(_finish, arrays, start, inputs)
    one.remember(start)

    def advance(carry, limit):
        return step(arrays, carry, inputs, patience, limit)

    carry, done = start, len(progress.history)
    for carry, values in in_chunks(advance, start, progress.max_steps - done, progress.every, first=done + 1):
        one.take(carry, values)
        last = carry.last
        progress.tell(progress.steps, lambda y=last.y: problem.join(problem.unravel(y), inputs), float(last.value))
    return one.conclude(carry, finish(arrays, carry, inputs), patience)


def run_starts(
    problem: AnyProblem,
    starts: list[Any],
    inputs: Any,
    records: list[Progress],
    programs: Programs,
    *,
    method: optx.AbstractMinimiser,
    arrays: Any,
    keep_best: bool,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    patience: int | None = None,
) -> list[tuple[bool, str]]:
    """The same from several starts at once, each with its own record."""
    given = (method, arrays, bounds, keep_best)
    runs = [_Run(problem, ps, inputs, record, programs, *given) for ps, record in zip(starts, records, strict=True)]
    firsts = [run.first() for run in runs]
    outcomes = [(False, NOT_FINITE_AT_START)] * len(runs)
    going = [i for i, carry in enumerate(firsts) if carry is not None]
    if not going:
        return outcomes
    carry = stacked([firsts[i] for i in going])
    step = programs(_advance_all, arrays, carry, inputs, patience, 1)
    finish = programs(_finish, arrays, firsts[going[0]], inputs)
    of_record = {id(records[i]): runs[i] for i in going}

    def advance(carry, limit):
        return step(arrays, carry, inputs, patience, limit)

    def take(carry, record, values):
        of_record[id(record)].take(carry, values)

    carries = together(advance, carry, [records[i] for i in going], records[0].max_steps, take, first=1)
    for i, one in zip(going, carries, strict=True):
        outcomes[i] = runs[i].conclude(one, finish(arrays, one, inputs), patience)
    return outcomes


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
    since = jnp.array(-1, jnp.int32)  # the first step is where it starts
    carry = _Carry(y, eqx.filter(state, eqx.is_array), seen, seen, since, jnp.array(False), optx.RESULTS.successful)
    return strong(carry)


def _advance(
    problem: AnyProblem, others: Any, arrays: Any, carry: _Carry, inputs: Any, patience: Any, limit: Any
) -> tuple[_Carry, Any, jax.Array]:
    """At most `limit` steps; how many; and the loss where each began."""
    solver = _Solver(problem, others, arrays, carry.y, inputs)
    static = eqx.filter(solver.init(), eqx.is_array, inverse=True)  # the state's other half, the same for every step

    def unfinished(loop):
        i, carry, _ = loop
        patient = True if patience is None else carry.since < patience
        return (i < limit) & ~carry.ended & patient

    def step(loop):
        i, carry, values = loop
        y, state, seen = solver.step(carry.y, eqx.combine(carry.state, static))
        terminate, result = solver.terminate(carry.y, state)
        seen = where(seen.known, seen, carry.last)
        lower = seen.value < carry.best.value
        best, since = where(lower, seen, carry.best), jnp.where(lower, 0, carry.since + 1)
        failed = (result != optx.RESULTS.successful) | ~jnp.isfinite(y).all()
        carry = _Carry(y, eqx.filter(state, eqx.is_array), seen, best, since, terminate | failed, result)
        return i + 1, carry, values.at[i].set(seen.value)

    with jax.numpy_dtype_promotion("standard"):
        count, carry, values = jax.lax.while_loop(unfinished, step, (0, carry, jnp.zeros(LONGEST, carry.y.dtype)))
    return strong(carry), count, values


def _advance_all(problem: AnyProblem, others: Any, arrays: Any, carry: _Carry, *given: Any) -> Any:
    return jax.vmap(lambda carry: _advance(problem, others, arrays, carry, *given))(carry)


def _finish(problem: AnyProblem, others: Any, arrays: Any, carry: _Carry, inputs: Any) -> jax.Array:
    """The solver's own choice of the point to return."""
    with jax.numpy_dtype_promotion("standard"):
        solver = _Solver(problem, others, arrays, carry.y, inputs)
        static = eqx.filter(solver.init(), eqx.is_array, inverse=True)
        return solver.postprocess(carry.y, carry.last, eqx.combine(carry.state, static), carry.result)[0]
