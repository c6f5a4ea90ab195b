"""SciPy's minimizers, behind a boundary that is always float64 and always finite."""

import contextlib
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import derivatives
from .._compat import one_blas_thread
from . import convergence
from .constraints import Constraints
from .objective import GRADIENT, HESSIAN, PRODUCTS, VALUE, Objective
from .problem import Inputs, Problem
from .programs import Programs
from .progress import NOT_FINITE_AT_START, Finished, Patience, Progress

METHODS = {  # name -> the highest derivative it is given
    "Nelder-Mead": VALUE,
    "Powell": VALUE,
    "COBYLA": VALUE,
    "COBYQA": VALUE,
    "CG": GRADIENT,
    "BFGS": GRADIENT,
    "L-BFGS-B": GRADIENT,
    "TNC": GRADIENT,
    "SLSQP": GRADIENT,
    "Newton-CG": PRODUCTS,
    "trust-constr": PRODUCTS,  # its own quasi-Newton updates end with success=True far from a minimum
    "trust-ncg": PRODUCTS,
    "trust-krylov": PRODUCTS,
    "dogleg": HESSIAN,
    "trust-exact": HESSIAN,
}
CONSTRAINED = ("SLSQP", "trust-constr", "COBYLA", "COBYQA")
SMALL = 2000  # parameters: their matrices take one thread
BOUNDED = ("L-BFGS-B", "TNC", "SLSQP", "trust-constr", "Nelder-Mead", "Powell", "COBYLA", "COBYQA")


def method_name(name: str, bounds: Any, constraints: Any = None, others: Sequence[str] = ()) -> str:
    """SciPy's spelling of a method's name. Raises `ValueError` for one that will not do, listing what there is, and the
    `others` that are not SciPy's."""
    known = {known.lower(): known for known in METHODS}
    if name.lower() not in known:
        letters = {"".join(filter(str.isalpha, known)).lower(): known for known in (*METHODS, *others)}
        near = difflib.get_close_matches("".join(filter(str.isalpha, name)).lower(), letters, 1)
        meant = f"; did you mean {letters[near[0]]!r}?" if near else ""
        if not near and callable(getattr(optax, name.lower(), None)):
            meant = f"; optax's optimizer is an object, method=optax.{name.lower()}(...)"
        besides = f"; besides there are {', '.join(others)}" if others else ""
        raise ValueError(f"SciPy has no method {name!r}; it has {', '.join(METHODS)}{besides}{meant}")
    method = known[name.lower()]
    if bounds is not None and method not in BOUNDED:
        raise ValueError(f"{method} takes no bounds; these methods do: {', '.join(BOUNDED)}")
    if constraints and method not in CONSTRAINED:
        raise ValueError(f"{method} takes no constraints; these methods do: {', '.join(CONSTRAINED)}")
    return method


def run(
    problem: Problem,
    params: Any,
    inputs: Inputs,
    progress: Progress,
    programs: Programs,
    *,
    method: str,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    tol: float | None,
    patience: int | None,
    keep_best: bool,
    options: dict[str, Any],
    constraints: Any = None,
) -> tuple[bool, str]:
    """Run `scipy.optimize.minimize`; once more from the best point where it gave up on a point that is not finite, or
    where the simplex of Nelder-Mead fell flat.
    """
    import scipy.optimize

    kind = METHODS[method]
    x = problem.ravel(params)
    function = programs(_value if kind == VALUE else _value_and_gradient, problem.cast(x), inputs)
    second = _second_derivatives(method, problem, params, inputs)

    def evaluate(x):
        if objective.evaluations > 1:  # the start's is there
            progress.check_time()
        return function(problem.cast(x), inputs)

    limited = Constraints.of(constraints, method, problem, params, inputs) if constraints else None
    objective = Objective(evaluate, kind, bounds, x, limited and limited.violation)

    waiting = Patience(patience)

    def at(x):
        return problem.join(problem.unravel(x), inputs)

    def step(x, *_):
        """SciPy's callback after each iteration."""
        if progress.steps >= progress.max_steps:  # TNC has no limit of its own
            raise Finished(False, f"max_steps={progress.max_steps} reached before convergence")
        x, value = objective.begin_step(x)
        progress.history.append(value)
        progress.report(progress.steps + 1, lambda: at(x), value)
        waiting.see(value)

    def attempt(x):
        """SciPy's result, whether the loss is finite there, why it is no minimum, and whether to start again."""
        failures = objective.failures
        limits = _limits(method, progress.max_steps - progress.steps)
        simplex = {"initial_simplex": _simplex(x, bounds, problem.dtype)} if method == "Nelder-Mead" else {}
        result = scipy.optimize.minimize(
            objective,
            x,
            method=method,
            callback=step,
            bounds=None if bounds is None else np.stack(bounds, axis=1),
            tol=tol,
            options=limits | simplex | options,
            jac=None if kind == VALUE else True,
            constraints=() if limited is None else limited.scipy(objective.inside),
            **second,
        )
        met_failures = objective.failures > failures
        finite = not met_failures or bool(np.isfinite(objective.evaluate(result.x)[0]))
        if finite and (not keep_best or (limited is not None and result.success)):
            objective.keep(result.x)
        doubt = ""
        if finite and result.success:
            doubt = objective.doubt(problem.dtype, tol or 0.0) if limited is None else limited.doubt(objective.best)
        gave_up = met_failures and not (finite and result.success)
        flat = method == "Nelder-Mead" and bool(doubt)  # its simplex
        return result, finite, doubt, gave_up or flat

    try:
        waiting.lowest = objective.evaluate(x)[0]
        progress.history.append(objective.value)
        if not objective.found:
            raise Finished(False, NOT_FINITE_AT_START)
        with one_blas_thread() if x.size < SMALL else contextlib.nullcontext():
            result, finite, doubt, again = attempt(objective.best)
            if again and progress.steps < progress.max_steps:
                result, finite, doubt, _ = attempt(objective.best)
        if not finite:
            return False, f"{method} ended where the loss is not finite; the best point before is returned"
        if not result.success and progress.steps >= progress.max_steps:
            return False, f"max_steps={progress.max_steps} reached before convergence"
        if doubt:
            return False, f"{method} ended ({str(result.message).rstrip('.')}) where {doubt}: {convergence.ADVICE}"
        message = str(result.message)
        if "precision loss" in message:
            finer = "" if problem.dtype == "float64" else ", or compute in float64"
            message += f" The line search found nothing lower in {problem.dtype}: {convergence.ADVICE}{finer}"
        if method == "COBYQA" and limited is not None and result.status == 0:  # stricter than the other methods
            return objective.excess == 0, message
        return bool(result.success), message
    finally:
        progress.evaluations, progress.value = objective.evaluations, objective.value
        progress.params = lambda: at(objective.best)


def _second_derivatives(method: str, problem: Problem, params: Any, inputs: Inputs) -> dict[str, Callable]:
    """SciPy's arguments for the second derivatives that a method uses; solvers in the loss take another adjoint."""
    cast, flat = problem.cast, problem.cast(problem.ravel(params))
    with derivatives.mode("both"):
        if METHODS[method] == PRODUCTS:
            product = Programs(problem, params, inputs)(_hessian_product, flat, flat, inputs)
            return {"hessp": lambda x, v: _require_finite(product(cast(x), cast(v), inputs), method)}
        if METHODS[method] == HESSIAN:
            hessian = Programs(problem, params, inputs)(_hessian, flat, inputs)
            return {"hess": lambda x: _require_finite(hessian(cast(x), inputs), method)}
    return {}


def _require_finite(x: Any, method: str) -> np.ndarray:
    x = np.asarray(x).astype(np.float64)
    if not np.isfinite(x).all():
        raise Finished(
            False, f"the Hessian is not finite at a point of {method}: a method of gradients, such as BFGS, may do"
        )
    return x


def _limits(method: str, steps: int) -> dict[str, int]:
    """SciPy's options for a number of iterations, with room for its line searches."""
    if method == "TNC":
        return {"maxfun": 100 * steps}
    if method == "L-BFGS-B":
        return {"maxiter": steps, "maxfun": 100 * steps}
    return {"maxiter": steps + 1 if method == "Nelder-Mead" else steps}  # which counts from 1


def _simplex(x: np.ndarray, bounds: Any, dtype: np.dtype) -> np.ndarray:
    """Nelder-Mead's first simplex: SciPy's, but nowhere flat, neither on a lower bound nor in half precision."""
    steps = np.where(x == 0, 0.00025, 0.05 * x)
    shortest = 16 * float(jnp.finfo(dtype).eps) * np.maximum(np.abs(x), 1)
    steps = np.where(np.abs(steps) < shortest, np.copysign(shortest, steps), steps)
    if bounds is not None:
        lower, upper = bounds
        there = np.clip(np.where(x + steps > upper, 2 * upper - (x + steps), x + steps), lower, upper)
        steps = np.where(there == x, np.clip(x - steps, lower, upper), there) - x
    return np.vstack([x, x + np.diag(steps)])


def _value(problem: Problem, flat: jax.Array, inputs: Inputs) -> tuple[jax.Array, tuple[()]]:
    return problem(problem.unravel(flat), inputs).value, ()


def _loss(problem: Problem, inputs: Inputs) -> Callable[[jax.Array], jax.Array]:
    return lambda flat: _value(problem, flat, inputs)[0]


def _value_and_gradient(problem: Problem, flat: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(_loss(problem, inputs))(flat)


def _hessian(problem: Problem, flat: jax.Array, inputs: Inputs) -> jax.Array:
    return jax.hessian(_loss(problem, inputs))(flat)


def _hessian_product(problem: Problem, flat: jax.Array, v: jax.Array, inputs: Inputs) -> jax.Array:
    """Forward over reverse: the cost of a few gradients."""
    return jax.jvp(jax.grad(_loss(problem, inputs)), (flat,), (v,))[1]
