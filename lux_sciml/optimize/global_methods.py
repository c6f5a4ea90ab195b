"""SciPy's global methods: populations are evaluated at once, local searches have JAX's gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import convergence
from .constraints import Constraints
from .objective import GRADIENT, Objective
from .problem import Inputs, Problem
from .programs import Programs
from .progress import NOT_FINITE_ANYWHERE, NOT_FINITE_AT_START, Finished, Patience, Progress

METHODS = ("differential_evolution", "dual_annealing", "shgo", "basinhopping")
CONSTRAINED = ("differential_evolution", "shgo")


def check(method: str, bounds: Any, constraints: Any) -> None:
    """Raise `ValueError` where a method has no box to search, or takes no constraints."""
    if method != "basinhopping" and (bounds is None or not np.isfinite(bounds).all()):
        raise ValueError(f"{method} searches within bounds: pass finite ones for all parameters, bounds=(lower, upper)")
    if constraints and method not in CONSTRAINED:
        raise ValueError(f"{method} takes no constraints; of the global methods, {' and '.join(CONSTRAINED)} do")


def run(
    problem: Problem,
    params: Any,
    inputs: Inputs,
    progress: Progress,
    programs: Programs,
    *,
    method: str,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    constraints: Any,
    tol: float | None,
    patience: int | None,
    keep_best: bool,
    options: dict[str, Any],
) -> tuple[bool, str]:
    """Run one of SciPy's global methods, and a local one from where it ended."""
    import scipy.optimize

    x = problem.ravel(params)
    cast = problem.cast
    single = programs(_value_and_gradient, cast(x), inputs)
    limited = Constraints.of(constraints, method, problem, params, inputs) if constraints else None

    def evaluate(x):
        if objective.evaluations > 1:
            progress.check_time()
        return single(cast(x), inputs)

    objective = Objective(evaluate, GRADIENT, bounds, x, limited and limited.violation)
    box = None if bounds is None else np.stack(bounds, axis=1)
    local: dict[str, Any] = dict(method="L-BFGS-B", jac=lambda x: objective(x)[1], bounds=box)
    if limited is not None:
        local |= dict(method="SLSQP", constraints=limited.scipy(objective.inside))
    if tol is not None:
        local["tol"] = tol
    waiting = Patience(patience)

    def told(*_):
        """After an iteration."""
        best, value = objective.begin_step(objective.best)
        progress.history.append(value)
        progress.report(progress.steps + 1, lambda: problem.join(problem.unravel(best), inputs), value)
        waiting.see(value)

    def value(x):
        return objective(x)[0]

    try:
        waiting.lowest = objective.evaluate(x)[0]
        progress.history.append(objective.value)
        if not objective.found and method == "basinhopping":
            raise Finished(False, NOT_FINITE_AT_START)
        given: dict[str, Any] = {"rng": 0, **options}
        steps = progress.max_steps
        if method == "differential_evolution":
            population = _Population(programs, problem, inputs, objective, progress)
            given = dict(maxiter=steps, x0=objective.inside(x), vectorized=True, updating="deferred") | given
            given |= {} if tol is None else {"tol": tol}
            limits = () if limited is None else limited.scipy(objective.inside, batched=True)
            polish = given.pop("polish", True)
            result = scipy.optimize.differential_evolution(
                population, box, polish=False, constraints=limits, callback=lambda intermediate_result: told(), **given
            )
            if polish:
                scipy.optimize.minimize(value, objective.best, **local)
        elif method == "dual_annealing":
            given = dict(maxiter=steps, x0=objective.inside(x), minimizer_kwargs=local) | given
            try:
                result = scipy.optimize.dual_annealing(value, box, callback=told, **given)
            except ValueError as error:  # its own, where it draws nothing finite
                if objective.found or "NaN or" not in str(error):
                    raise
                raise Finished(False, NOT_FINITE_ANYWHERE) from None
        elif method == "shgo":
            given = dict[str, Any](iters=min(3, steps), minimizer_kwargs=local) | options
            limits = None if limited is None else limited.scipy(objective.inside)
            result = scipy.optimize.shgo(value, box, constraints=limits, callback=told, **given)
        else:
            given = dict(niter=steps, minimizer_kwargs=local) | given
            result = scipy.optimize.basinhopping(value, objective.inside(x), callback=told, **given)
        if not objective.found:
            raise Finished(False, NOT_FINITE_ANYWHERE)
        objective.keep(objective.best)  # with its gradient
        if limited is None:
            doubt = objective.doubt(problem.dtype, tol or 0.0)
        else:
            doubt = limited.doubt(objective.best)
        message = " ".join([result.message] if isinstance(result.message, str) else result.message)
        if doubt and result.success:
            return False, f"{method} ended ({message.rstrip('.')}) where {doubt}: {convergence.ADVICE}"
        return bool(result.success and np.isfinite(objective.value)), message
    finally:
        progress.evaluations, progress.value = objective.evaluations, objective.value
        best = objective.best
        progress.params = lambda: problem.join(problem.unravel(best), inputs)


class _Population:
    """The values of many points `(n, count)` at once, of as many as the first time: each number is a program."""

    def __init__(self, programs: Programs, problem: Problem, inputs: Inputs, objective: Objective, progress: Progress):
        self.programs, self.problem, self.inputs = programs, problem, inputs
        self.objective, self.progress, self.size = objective, progress, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.progress.check_time()
        points = np.atleast_2d(x.T)
        self.size = max(self.size, len(points))
        padded = np.concatenate([points, np.repeat(points[:1], self.size - len(points), axis=0)])
        padded = self.problem.cast(padded)
        many = self.programs(_values, padded, self.inputs)
        values = np.asarray(many(padded, self.inputs), np.float64)[: len(points)]
        values = np.where(np.isfinite(values), values, np.inf)
        self.objective.take(points, values)
        return values if x.ndim == 2 else values[0]


def _value_and_gradient(problem: Problem, flat: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    return problem.value_and_gradient(flat, inputs)


def _values(problem: Problem, flats: jax.Array, inputs: Inputs) -> jax.Array:
    return jax.vmap(lambda flat: problem.seen(flat, inputs)[1])(jnp.asarray(flats))
