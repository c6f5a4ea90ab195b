"""SciPy's least squares, behind a boundary that is always float64: `scipy.optimize.least_squares`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .programs import Programs
from .progress import NOT_FINITE_AT_START, Finished, Progress
from .residual_problem import Data, ResidualProblem

METHODS = {"trf": "trf", "dogbox": "dogbox", "minpack": "lm"}  # ours -> SciPy's


def run(
    problem: ResidualProblem,
    params: Any,
    data: Data,
    progress: Progress,
    programs: Programs,
    *,
    method: str,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    tol: float | None,
    options: dict[str, Any],
) -> tuple[bool, str]:
    """Run `scipy.optimize.least_squares`; a step is an accepted one."""
    import scipy.optimize

    x = problem.ravel(params)
    x = x if bounds is None else np.clip(x, *bounds)
    evaluate = programs(_evaluate, problem.cast(x), data)
    recent: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def at(x):
        return problem.join(problem.unravel(x), data)

    def loss(r):
        return float(problem.loss.value(jnp.asarray(r)))

    def both(x):
        key = x.tobytes()
        if key not in recent:
            progress.evaluations += 1
            r, jacobian = evaluate(problem.cast(x), data)
            recent[key] = np.asarray(r).astype(np.float64), np.asarray(jacobian).astype(np.float64)
        return recent[key]

    def finite(x):
        return all(np.isfinite(a).all() for a in both(x))

    def residuals(x):
        r = both(x)[0]
        if progress.history and not finite(x):  # SciPy rejects what is larger
            r = np.full_like(r, 1e3 * (1 + np.sqrt(highest / r.size)))
        return r

    def jacobian(x):
        """SciPy asks for it where it has accepted a step."""
        r, found = both(x)
        recent.clear()
        recent[x.tobytes()] = r, found
        begin(x.copy(), loss(r))
        return found

    def begin(x, value):
        nonlocal highest
        progress.history.append(value)
        highest = max(highest, 2 * value)
        if value <= progress.value:
            progress.params, progress.value = (lambda: at(x)), value
        steps = len(progress.history) - 1
        progress.report(steps, lambda: at(x), value)
        if steps >= progress.max_steps:
            raise Finished(False, f"max_steps={progress.max_steps} reached before convergence")

    highest = 0.0
    if not finite(x):
        progress.value = loss(both(x)[0])
        progress.history.append(progress.value)
        return False, NOT_FINITE_AT_START
    tolerances = {} if tol is None else dict.fromkeys(("ftol", "xtol", "gtol"), tol)
    result = scipy.optimize.least_squares(
        residuals,
        x,
        jacobian,  # pyright: ignore[reportArgumentType]  # SciPy's stubs know of texts only
        method=METHODS[method],
        bounds=(-np.inf, np.inf) if bounds is None else bounds,
        loss=problem.loss.name,
        f_scale=problem.loss.scale,
        **{"x_scale": "jac", "max_nfev": 100 * (progress.max_steps + 1), **tolerances, **options},
    )
    value = loss(both(result.x)[0])
    if value < progress.value:
        progress.params, progress.value = (lambda: at(result.x)), value
        progress.history.append(value)
        progress.steps = len(progress.history) - 1
    return result.status > 0, str(result.message)


def _evaluate(problem: ResidualProblem, flat: jax.Array, data: Data) -> tuple[jax.Array, jax.Array]:
    """Residuals and Jacobian."""
    r, jacobian, _ = problem.at(data).with_jacobian(flat.astype(problem.flat_dtype))
    return r, jacobian
