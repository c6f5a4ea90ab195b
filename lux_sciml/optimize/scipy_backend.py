"""SciPy's minimizers, behind a boundary that is always float64 and always finite."""

import functools
from typing import Any

import jax
import numpy as np
import scipy.optimize

from .. import derivatives
from .problem import Problem
from .progress import NOT_FINITE_AT_START, Finished, Record

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
STATIONARY = 1e-2  # the relative gradient above which no method is believed to have converged
BOUNDED = ("L-BFGS-B", "TNC", "SLSQP", "trust-constr", "Nelder-Mead", "Powell", "COBYLA", "COBYQA")


def method_name(name: str, bounds: Any) -> str:
    """SciPy's spelling of a method's name. Raises `ValueError`, listing what there is, for one that will not do."""
    known = {known.lower(): known for known in METHODS}.get(name.lower())
    if known is None:
        raise ValueError(f"SciPy has no method {name!r}; it has {', '.join(METHODS)}")
    if bounds is not None and known not in BOUNDED:
        raise ValueError(f"{known} takes no bounds; these methods do: {', '.join(BOUNDED)}")
    return known


def run(
    problem: Problem,
    ps: Any,
    args: Any,
    record: Record,
    *,
    method: str,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    tol: float | None,
    keep_best: bool,
    options: dict[str, Any],
) -> tuple[bool, str]:
    """Run `scipy.optimize.minimize`, once more from the best point where it gave up on a failed one."""
    function = _Function(problem, args, record, method, bounds)
    x = problem.ravel(ps)
    x = function.start(function.inside(x))
    for _ in range(2):
        failures = function.failures
        result = scipy.optimize.minimize(
            function,
            x,
            method=method,
            callback=function.step,
            bounds=None if bounds is None else scipy.optimize.Bounds(*bounds),
            tol=tol,
            options=_limits(method, record.max_steps - record.steps) | _simplex(method, x, bounds) | options,
            **function.derivatives(),
        )
        met_failures = function.failures > failures
        finite = not met_failures or np.isfinite(function.evaluate(result.x)[0])
        if not met_failures or (result.success and finite) or record.steps >= record.max_steps:
            break
        x = function.best
    if not keep_best and finite:
        record.params, record.value = problem.unravel(result.x), function.evaluate(result.x)[0]
    if not finite:
        return False, f"{method} ended where the loss is not finite; the best point before is returned"
    if not result.success and record.steps >= record.max_steps:
        return False, f"max_steps={record.max_steps} reached before convergence"
    slope = function.slope(function.best if keep_best else result.x)
    if result.success and slope > max(STATIONARY, tol or 0.0):
        return False, (
            f"{method} ended ({result.message}) where the gradient, {slope:.1g} relative to the loss, is not small: "
            "start again from the result, or take another method"
        )
    return bool(result.success), str(result.message)


class _Function:
    """What SciPy calls. Values and gradients are float64 and finite, and the best point is kept.

    SciPy's line searches do not survive inf: L-BFGS-B returns the start with `success=True`. Where the loss or its
    gradient is not finite, they see a cone instead: higher than every value so far, and sloping back to the best point.
    """

    def __init__(self, problem: Problem, args: Any, record: Record, method: str, bounds: Any):
        self.problem, self.args, self.record, self.bounds = problem, args, record, bounds
        self.method, self.kind = method, METHODS[method]
        self.failures = 0
        self.best, self.highest = None, -np.inf
        self.gradient = np.zeros(0)  # at the best point; empty for methods of values alone
        self.recent: dict[bytes, tuple[float, Any]] = {}  # the evaluations of this step

    def derivatives(self) -> dict[str, Any]:
        """SciPy's arguments that give the method the derivatives it uses."""
        return {
            VALUE: {},
            GRADIENT: {"jac": True},
            PRODUCTS: {"jac": True, "hessp": self.product},
            HESSIAN: {"jac": True, "hess": self.hessian},
        }[self.kind]

    def start(self, x: np.ndarray) -> np.ndarray:
        value, _ = self.evaluate(x)
        self.record.history.append(value)
        if self.best is None:
            raise Finished(False, NOT_FINITE_AT_START)
        return x

    def __call__(self, x: np.ndarray) -> Any:
        value, gradient = self.evaluate(x)
        if not np.isfinite(value):
            self.failures += 1
            value, gradient = self.barrier(x)
        return value if self.kind == VALUE else (value, gradient)

    def evaluate(self, x: np.ndarray) -> tuple[float, Any]:
        """Value and gradient; a value of inf where one of them is not finite. Never outside of the bounds."""
        x = self.inside(x)
        key = x.tobytes()
        if key not in self.recent:
            self.recent[key] = self._evaluate(x)
        return self.recent[key]

    def _evaluate(self, x: np.ndarray) -> tuple[float, Any]:
        self.record.evaluations += 1
        flat = self.problem.cast(x)
        if self.kind == VALUE:
            value, gradient = _value(self.problem, flat, self.args), np.zeros(0)
        else:
            value, gradient = _value_and_gradient(self.problem, flat, self.args)
            gradient = np.asarray(gradient).astype(np.float64)
        value = float(value)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return np.inf, gradient
        self.highest = max(self.highest, value)
        if self.best is None or value < self.record.value:
            self.best, self.gradient = x.copy(), gradient
            self.record.params, self.record.value = self.problem.unravel(self.best), value
        return value, gradient

    def inside(self, x: np.ndarray) -> np.ndarray:
        """The nearest point within the bounds: some methods step outside on their way, or by rounding."""
        return x if self.bounds is None else np.clip(x, *self.bounds)

    def barrier(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """A cone over the best point, above every value so far."""
        difference = x - self.best
        distance = np.linalg.norm(difference)
        steepness = max(np.linalg.norm(self.gradient), 1.0)
        value = self.highest + 1.0 + abs(self.highest) + steepness * distance
        return min(value, np.finfo(float).max), steepness * difference / max(distance, np.finfo(float).tiny)

    def slope(self, x: np.ndarray) -> float:
        """The largest change of the loss, relative to it, that the gradient foretells for a relative change of x.

        max |g_i| max(|x_i|, 1) / max(|f|, 1), with the gradient projected onto the bounds: Dennis & Schnabel,
        *Numerical Methods for Unconstrained Optimization* (1996), section 7.2. Zero for methods of values alone.
        """
        if self.kind == VALUE:
            return 0.0
        value, gradient = (self.record.value, self.gradient) if x is self.best else self.evaluate(x)
        step = x - self.inside(x - gradient)
        return float(np.max(np.abs(step) * np.maximum(np.abs(x), 1), initial=0) / max(abs(value), 1))

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        cast = self.problem.cast
        with derivatives.mode("both"):
            return _require_finite(_hessian_product(self.problem, cast(x), cast(v), self.args), self.method)

    def hessian(self, x: np.ndarray) -> np.ndarray:
        with derivatives.mode("both"):
            return _require_finite(_hessian(self.problem, self.problem.cast(x), self.args), self.method)

    def step(self, x: np.ndarray, *_: Any) -> None:
        """SciPy's callback after each iteration."""
        if self.record.steps >= self.record.max_steps:  # TNC has no limit of its own
            raise Finished(False, f"max_steps={self.record.max_steps} reached before convergence")
        key = self.inside(x).tobytes()
        value, _ = self.recent.get(key, (np.inf, None))
        self.recent = {key: self.recent[key]} if key in self.recent else {}
        params = self.problem.unravel(self.inside(x))
        if not np.isfinite(value):  # SLSQP also tells of points that it goes on to reject
            params, value = self.record.params, self.record.value
        self.record.history.append(value)
        self.record.report(self.record.steps + 1, params, value)


def _limits(method: str, steps: int) -> dict[str, int]:
    """SciPy's options for a number of iterations, with room for its line searches."""
    if method == "TNC":
        return {"maxfun": 100 * steps}
    if method == "L-BFGS-B":
        return {"maxiter": steps, "maxfun": 100 * steps}
    return {"maxiter": steps + 1 if method == "Nelder-Mead" else steps}  # which counts from 1


def _simplex(method: str, x: np.ndarray, bounds: Any) -> dict[str, np.ndarray]:
    """Nelder-Mead's first simplex, inside the bounds: SciPy's is flat where x lies on a lower one."""
    if method != "Nelder-Mead" or bounds is None:
        return {}
    steps = np.where(x == 0, 0.00025, 0.05 * np.abs(x))  # SciPy's lengths
    steps = np.where(x + steps <= bounds[1], steps, -steps)
    return {"initial_simplex": np.clip(np.vstack([x, x + np.diag(steps)]), *bounds)}


def _require_finite(x: Any, method: str) -> np.ndarray:
    x = np.asarray(x).astype(np.float64)
    if not np.isfinite(x).all():
        raise Finished(
            False, f"the Hessian is not finite at a point of {method}: a method of gradients, such as BFGS, may do"
        )
    return x


def _of_flat(problem: Problem, flat: jax.Array, args: Any) -> jax.Array:
    return problem(problem.unravel(flat), args)[0]


_value = jax.jit(_of_flat, static_argnums=0)
_value_and_gradient = jax.jit(jax.value_and_grad(_of_flat, argnums=1), static_argnums=0)
_hessian = jax.jit(jax.hessian(_of_flat, argnums=1), static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _hessian_product(problem: Problem, flat: jax.Array, v: jax.Array, args: Any) -> jax.Array:
    """Forward over reverse: the cost of a few gradients."""
    return jax.jvp(lambda x: jax.grad(_of_flat, argnums=1)(problem, x, args), (flat,), (v,))[1]
