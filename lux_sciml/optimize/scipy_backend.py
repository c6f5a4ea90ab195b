"""SciPy's minimizers, behind a boundary that is always float64 and always finite."""

import difflib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import derivatives
from . import convergence
from .problem import Inputs, Problem
from .programs import Programs
from .progress import NOT_FINITE_AT_START, Finished, Progress

VALUE, GRADIENT, PRODUCTS, HESSIAN = "value", "gradient", "Hessian-vector products", "Hessian"
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
BOUNDED = ("L-BFGS-B", "TNC", "SLSQP", "trust-constr", "Nelder-Mead", "Powell", "COBYLA", "COBYQA")


def method_name(name: str, bounds: Any) -> str:
    """SciPy's spelling of a method's name. Raises `ValueError`, listing what there is, for one that will not do."""
    known = {known.lower(): known for known in METHODS}
    if name.lower() not in known:
        letters = {"".join(filter(str.isalpha, known)).lower(): known for known in METHODS}
        near = difflib.get_close_matches("".join(filter(str.isalpha, name)).lower(), letters, 1)
        meant = f"; did you mean {letters[near[0]]!r}?" if near else ""
        if not near and callable(getattr(optax, name.lower(), None)):
            meant = f"; optax's optimizer is an object, method=optax.{name.lower()}(...)"
        raise ValueError(f"SciPy has no method {name!r}; it has {', '.join(METHODS)}{meant}")
    method = known[name.lower()]
    if bounds is not None and method not in BOUNDED:
        raise ValueError(f"{method} takes no bounds; these methods do: {', '.join(BOUNDED)}")
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

    objective = _Objective(evaluate, kind, bounds, x)

    lowest, since = np.inf, 0  # value of a step, and steps since then

    def at(x):
        return problem.join(problem.unravel(x), inputs)

    def step(x, *_):
        """SciPy's callback after each iteration."""
        nonlocal lowest, since
        if progress.steps >= progress.max_steps:  # TNC has no limit of its own
            raise Finished(False, f"max_steps={progress.max_steps} reached before convergence")
        x, value = objective.begin_step(x)
        progress.history.append(value)
        progress.report(progress.steps + 1, lambda: at(x), value)
        lowest, since = (value, 0) if value < lowest else (lowest, since + 1)
        if patience is not None and since >= patience:
            raise Finished(True, f"ended: no lower loss in patience={patience} steps")

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
            **second,
        )
        met_failures = objective.failures > failures
        finite = not met_failures or bool(np.isfinite(objective.evaluate(result.x)[0]))
        if finite and not keep_best:
            objective.keep(result.x)
        doubt = objective.doubt(problem.dtype, tol or 0.0) if finite and result.success else ""
        gave_up = met_failures and not (finite and result.success)
        flat = method == "Nelder-Mead" and bool(doubt)  # its simplex
        return result, finite, doubt, gave_up or flat

    try:
        lowest = objective.evaluate(x)[0]
        progress.history.append(lowest)
        if not np.isfinite(objective.value):
            raise Finished(False, NOT_FINITE_AT_START)
        result, finite, doubt, again = attempt(objective.best)
        if again and progress.steps < progress.max_steps:
            result, finite, doubt, _ = attempt(objective.best)
        if not finite:
            return False, f"{method} ended where the loss is not finite; the best point before is returned"
        if not result.success and progress.steps >= progress.max_steps:
            return False, f"max_steps={progress.max_steps} reached before convergence"
        if doubt:
            return False, f"{method} ended ({result.message}) where {doubt}: {convergence.ADVICE}"
        message = str(result.message)
        if "precision loss" in message:
            finer = "" if problem.dtype == "float64" else ", or compute in float64"
            message += f" The line search found nothing lower in {problem.dtype}: {convergence.ADVICE}{finer}"
        return bool(result.success), message
    finally:
        progress.evaluations, progress.value = objective.evaluations, objective.value
        progress.params = lambda: at(objective.best)


class _Objective:
    """What SciPy calls. Values and gradients are float64 and finite, and the best point is kept.

    SciPy's line searches do not survive inf: L-BFGS-B returns the start with `success=True`. Where the loss or its
    gradient is not finite they see a barrier.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], kind: str, bounds: Any, start: np.ndarray):
        self.function, self.kind, self.bounds = function, kind, bounds
        self.evaluations = self.failures = 0
        self.best, self.value = self.inside(start), np.inf
        self.gradient = np.zeros(0)  # there; empty for methods of values alone
        self.highest = -np.inf
        self.recent: dict[bytes, tuple[float, np.ndarray]] = {}  # the evaluations of this step

    def __call__(self, x: np.ndarray) -> Any:
        value, gradient = self.evaluate(x)
        if not np.isfinite(value):
            self.failures += 1
            value, gradient = barrier(x, self.best, self.highest, self.gradient)
        return value if self.kind == VALUE else (value, gradient)

    def evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; a value of inf where one of them is not finite. Never outside of the bounds."""
        x = self.inside(x)
        key = x.tobytes()
        if key not in self.recent:
            self.recent[key] = self._evaluate(x)
        return self.recent[key]

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.evaluations += 1
        value, gradient = self.function(x)
        value, gradient = float(value), np.asarray(gradient).astype(np.float64)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return np.inf, gradient
        self.highest = max(self.highest, value)
        if value < self.value:
            self.best, self.value, self.gradient = x.copy(), value, gradient
        return value, gradient

    def inside(self, x: np.ndarray) -> np.ndarray:
        """The nearest point within the bounds: some methods step outside on their way, or by rounding."""
        return x if self.bounds is None else np.clip(x, *self.bounds)

    def begin_step(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """The point where a step ended and its value, or the best ones: SLSQP also tells of points that it rejects."""
        x = self.inside(x).copy()
        key = x.tobytes()
        self.recent = {key: self.recent[key]} if key in self.recent else {}
        value = self.recent[key][0] if self.recent else np.inf
        return (x, value) if np.isfinite(value) else (self.best, self.value)

    def keep(self, x: np.ndarray) -> None:
        """Take a point for the best one."""
        self.best = self.inside(x).copy()
        self.value, self.gradient = self.evaluate(x)

    def doubt(self, dtype: np.dtype, tol: float) -> str:
        """Why the best point is no minimum, or nothing."""
        if self.kind == VALUE:
            best = self.best, self.value, self.gradient
            fall = convergence.fall(self.best, self.value, lambda x: self.evaluate(x)[0], self.inside, dtype)
            self.best, self.value, self.gradient = best
            return f"a small step lowers the loss by {fall:.1g} of it" if fall > max(convergence.FALL, tol) else ""
        slope = convergence.slope(self.best, self.value, self.gradient, self.inside)
        steep = slope > max(convergence.STEEP, tol)
        return f"the gradient, {slope:.1g} relative to the loss, is not small" if steep else ""


def barrier(x: np.ndarray, best: np.ndarray, highest: float, gradient: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and gradient of a cone above every value so far that slopes back to the best point, where `gradient` is."""
    difference = x - best
    distance = float(np.linalg.norm(difference))
    steepness = max(float(np.linalg.norm(gradient)), 1.0)
    value = highest + 1.0 + abs(highest) + steepness * distance
    return min(value, float(np.finfo(float).max)), steepness * difference / max(distance, np.finfo(float).tiny)


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
