"""minimize: one call over SciPy, optimistix and optax."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax
import optimistix as optx

from . import optax_backend, optimistix_backend, scipy_backend
from .problem import Part, Problem, evaluate, flat_bounds, not_finite
from .progress import NOT_FINITE_AT_START, Finished, Record


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MinimizeResult:
    """What `minimize` returns.

    * `params`: the parameters, of the kind that was passed in;
    * `value`: the loss there;
    * `success`: whether the method converged, or the run ended as it was asked to (the callback stopped it; all steps
      of an optax method without `tol` were made). Never true where the value is not finite, nor where SciPy claims to
      have converged and the relative gradient, max |g_i| max(|x_i|, 1) / max(|f|, 1), is above 0.01 and `tol`;
    * `message`: why the run ended, and what to do where it failed;
    * `steps`: iterations of the method;
    * `evaluations`: evaluations of the loss, each with its gradient where the method uses one. For optax and optimistix
      those that a method makes inside one step (line searches, simplices) are counted once;
    * `history`: the loss at the start and after each step, `(steps + 1,)`;
    * `aux`: with `has_aux=True`, what the loss returned beside its value at `params`.
    """

    params: Any
    value: float
    success: bool
    message: str
    steps: int
    evaluations: int
    history: np.ndarray
    aux: Any = None

    def __repr__(self) -> str:
        return (
            f"MinimizeResult(value={self.value:.6g}, success={self.success}, steps={self.steps}, "
            f"evaluations={self.evaluations}, message={self.message!r}, params={self.params!r})"
        )


def minimize(
    loss: Any,
    ps: Any,
    *,
    method: Any,
    args: Any = None,
    bounds: Any = None,
    max_steps: int = 1000,
    tol: float | None = None,
    callback: Callable[[int, Any, float], bool | None] | None = None,
    progress: bool = False,
    has_aux: bool = False,
    keep_best: bool = True,
    trainable: str | Sequence[str] | None = None,
    options: dict[str, Any] | None = None,
) -> MinimizeResult:
    """Find parameters where a loss is small: $\\min_p L(p)$.

    `loss(ps)`, or `loss(ps, args)` where `args` is given, returns one floating-point number, and with `has_aux=True`
    `(value, aux)`. `ps` is a `ComponentVector`, or a nested tree or an array of floating-point numbers; the loss, the
    callback and the result have the same kind, shapes and dtypes. `args` is a pytree of arrays: data that is passed
    there may change from call to call without compiling anew, data that the loss closes over may not.

    `method` is one of

    * a name of `scipy.optimize.minimize`: `"L-BFGS-B"` (the usual choice), `"BFGS"`, `"CG"`, `"TNC"`, `"SLSQP"`,
      `"trust-constr"`, `"Newton-CG"`, `"trust-ncg"`, `"trust-krylov"`, `"trust-exact"`, `"dogleg"`, `"Nelder-Mead"`,
      `"Powell"`, `"COBYLA"`, `"COBYQA"`. Gradients and Hessians are JAX's, and SciPy works in float64 whatever the
      parameters' dtype;
    * an optax optimizer: `optax.adam(1e-2)`, a chain, `optax.lbfgs()`;
    * an optimistix minimizer: `optimistix.BFGS(rtol=1e-6, atol=1e-6)`, `LBFGS`, `NelderMead`, ...

    Further arguments:

    * `bounds`: `(lower, upper)`, each a number, an array `(n,)`, a `ComponentVector` or `None`; or a
      `scipy.optimize.Bounds`. The loss is never evaluated
      outside: a start there is moved inside. For optax each step is projected onto the bounds.
      Optimistix has no bounds.
    * `max_steps`: the most iterations. Optax makes them all, unless `tol` is given.
    * `tol`: SciPy's `tol`; for optax, stop where no entry of the gradient (with bounds, of its projection) is larger.
      Optimistix solvers have their own.
    * `callback(step, ps, value)`: called after every iteration of SciPy, and about ten times a second with optax and
      optimistix (after every step where one takes longer). It ends the run by returning `True`.
    * `progress`: show a progress bar.
    * `keep_best`: return the best parameters evaluated, rather than the last. Set `False` where the values of two
      evaluations are not comparable (a loss with noise).
    * `trainable`: patterns of the components to fit, `"physics.*"` or `["physics.*", "net.layer_2"]`; the method sees
      these numbers only, and the others stay as they are. Needs a ComponentVector; bounds are those of all components.
    * `options`: SciPy's options of the method, or the options of the optimistix solver.

    Where the loss or its gradient is not finite, no method is led astray: SciPy sees a finite barrier there, and starts
    once more from the best point where it gave up; optax tries the step again at half its length; optimistix rejects
    the step, where its solver has a line search. A run that fails, or that Ctrl-C ends, returns the best parameters so
    far with `success=False` and a message that says why.

    The compiled step depends on the loss and the method: calls with the same function object, and with equal options,
    compile once. Quasi-Newton methods need a loss without noise: tolerances of 1e-6 or less in the solvers inside it.

    Raises `TypeError` for a method, loss or parameters of another kind, `ValueError` for unknown names and sizes, and
    `KeyError` for a pattern that matches nothing.

    >>> import jax.numpy as jnp, lux_sciml as lux, optax
    >>> def rosenbrock(p, a):
    ...     return (a - p.x) ** 2 + 100 * (p.y - p.x**2) ** 2
    >>> start = lux.ComponentVector(x=-1.2, y=1.0)
    >>> result = lux.minimize(rosenbrock, start, method="BFGS", args=1.0)
    >>> result.success, bool(jnp.allclose(result.params, 1.0, atol=1e-2))
    (True, True)
    >>> lux.minimize(rosenbrock, start, method=optax.adam(0.1), args=1.0, max_steps=500).message
    'all 500 steps made'

    References: Nocedal & Wright, *Numerical Optimization* (2006); Kingma & Ba, *Adam* (2015).
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if trainable is not None:
        part = Part.of(loss, ps, args, trainable)
        told = callback and (lambda step, chosen, value: callback(step, part.join(chosen, ps), value))
        result = minimize(
            part,
            part.take(ps),
            method=method,
            args=(ps, args),
            bounds=part.bounds(bounds),
            max_steps=max_steps,
            tol=tol,
            callback=told,
            progress=progress,
            has_aux=has_aux,
            keep_best=keep_best,
            options=options,
        )
        return dataclasses.replace(result, params=part.join(result.params, ps))
    problem = Problem.of(loss, ps, args, has_aux)
    run = _runner(problem, method, flat_bounds(bounds, problem), tol, keep_best, options or {})
    if not problem.named:
        ps = problem.unravel(problem.layout.ravel(ps, problem.dtype))
    record = Record(ps, max_steps, callback, progress)
    try:
        success, message = run(problem, ps, args, record)
    except Finished as finished:
        success, message = finished.success, finished.message
    except KeyboardInterrupt:
        success, message = False, f"interrupted after {record.steps} steps"
    finally:
        record.close()
    if message == NOT_FINITE_AT_START:
        message += not_finite(ps=ps, args=args)
    return MinimizeResult(
        params=record.params,
        value=float(record.value),
        success=success and bool(np.isfinite(record.value)),
        message=message,
        steps=record.steps,
        evaluations=record.evaluations,
        history=np.asarray(record.history, np.float64),
        aux=evaluate(problem, record.params, args)[1] if has_aux else None,
    )


def _runner(problem: Problem, method: Any, bounds: Any, tol: Any, keep_best: bool, options: dict[str, Any]) -> Callable:
    """The method's `run(problem, ps, args, record)`, with its options checked."""
    if isinstance(method, str):
        method = scipy_backend.method_name(method, bounds)
        given = dict(bounds=bounds, tol=tol, options=options)
        return lambda *run: scipy_backend.run(*run, method=method, keep_best=keep_best, **given)
    if isinstance(method, optax.GradientTransformation):
        if options:
            raise ValueError("an optax optimizer has no `options`: give them where it is made, as in optax.adam(1e-2)")
        return lambda *run: optax_backend.run(*run, method=method, bounds=bounds, tol=tol, keep_best=keep_best)
    if isinstance(method, optx.AbstractMinimiser):
        if bounds is not None:
            raise ValueError("optimistix minimizers take no bounds: use 'L-BFGS-B', or an optax optimizer")
        if tol is not None:
            raise ValueError("an optimistix minimizer has its own tolerances: give `rtol` and `atol` where it is made")
        return lambda *run: optimistix_backend.run(*run, method=method, keep_best=keep_best, options=options)
    raise TypeError(
        "method must be the name of a SciPy method, such as 'L-BFGS-B', an optax optimizer, such as optax.adam(1e-2), "
        f"or an optimistix minimizer, such as optimistix.BFGS(rtol=1e-6, atol=1e-6), got {method!r}"
    )
