"""root_find: one call over optimistix's and SciPy's root finders, with names."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from .._tree import describe
from ..components import ComponentVector, Layout
from ..core.converters import checks_itself, converted, count, number, optional
from .fitted_parameters import kind_of
from .named_function import NamedFunction, jacobian, values
from .problem import Inputs, Problem, not_finite, parts_of_args
from .programs import Programs

P = TypeVar("P")
WITH_JACOBIAN = ("hybr", "lm")
METHODS = (*WITH_JACOBIAN, "krylov", "df-sane", "broyden1", "broyden2", "anderson", "diagbroyden", "linearmixing")
LARGE = 1e-4  # an equation that is not solved: relative to the largest at the start, and to one


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RootResult(Generic[P]):
    """What `root_find` returns.

    * `params`: where the equations hold, of the kind that was passed in; where it failed, the best point;
    * `residual`: what the function returns there, in its form and with its names; `value`: its largest element;
    * `success`: whether the method converged, and no equation is plainly unsolved: none is above 1e-4, relative to the
      largest one at the start or to one;
    * `message`: why the run ended, and which equation is the farthest from zero where it failed;
    * `steps`: iterations of the method, for SciPy evaluations where it does not tell.

    >>> result = root_find(lambda p: p.x**2 - 4.0, ComponentVector(x=3.0), method="hybr")
    >>> result.params, result.success
    (ComponentVector(x=2), True)
    """

    params: P
    residual: Any
    value: float
    success: bool
    message: str
    steps: int

    def __repr__(self) -> str:
        return (
            f"RootResult(value={self.value:.6g}, success={self.success}, steps={self.steps}, "
            f"message={self.message!r}, params={self.params!r})"
        )


@checks_itself
def root_find(
    function: Callable[..., Any],
    ps: P,
    *,
    method: str | optx.AbstractRootFinder | optx.AbstractLeastSquaresSolver = "hybr",
    args: Any = None,
    bounds: Any = None,
    max_steps: int = 256,
    tol: float | None = None,
    options: dict[str, Any] | None = None,
) -> RootResult[P]:
    """Find parameters where a function is zero: as many equations as unknowns.

    `function(ps)`, or `function(ps, args)` where `args` is given, returns an array, a ComponentVector or a tree with as
    many elements as `ps`, which is a ComponentVector, or a nested tree or an array of floating-point numbers.

    * `method`: an optimistix root finder, `optimistix.Newton(rtol=1e-8, atol=1e-8)`, `Chord`, `Bisection`, or one of
      its least-squares solvers, `Dogleg`, `LevenbergMarquardt`; or a name of `scipy.optimize.root`: `"hybr"`, `"lm"`
      (both with JAX's Jacobian), `"krylov"`, `"df-sane"`, `"broyden1"`, `"broyden2"`, `"anderson"`, `"diagbroyden"`,
      `"linearmixing"`.
    * `bounds`: as for `minimize`; for `Newton` and `Chord`, whose steps are projected onto them.
    * `max_steps`: the maximum number of steps; for `"hybr"`, `"lm"` and `"df-sane"` that of evaluations.
    * `tol`: SciPy's tolerance; optimistix solvers have their own.
    * `options`: SciPy's, or those of the optimistix solver.

    Programs are compiled once, as by `minimize`. Inside of `jax.jit`, and to differentiate a root by `args`, call
    `optimistix.root_find`, which takes ComponentVectors as they are. Raises `TypeError` and `ValueError` for what does
    not fit together.

    >>> import lux_sciml as lux, optimistix
    >>> def equations(p, total):
    ...     return lux.ComponentVector(mass=p.a + p.b - total, law=p.a * p.b - 1.0)
    >>> start = lux.ComponentVector(a=3.0, b=0.5)
    >>> lux.root_find(equations, start, method=optimistix.Newton(1e-6, 1e-6), args=2.5).params
    ComponentVector(a=2, b=0.5)
    """
    max_steps = converted("max_steps", count, max_steps)
    tol = converted("tol", optional(number), tol)
    if not callable(function):
        raise TypeError(f"root_find takes a function of the parameters, got {describe(function)}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"`options` is a dict, got a {type(options).__name__}")
    arrays, others = parts_of_args(args)
    kind = kind_of("root_find", ps, None, args)
    has = dict(has_args=args is not None, has_state=False, has_aux=False)
    problem, inputs = Problem(function=function, other_args=others, **has, **kind), Inputs(arrays)
    if isinstance(method, optx.Bisection) and problem.layout.size > 1:
        raise ValueError(
            f"Bisection is for one equation of one unknown, got {problem.layout.size}: take optimistix.Newton or 'hybr'"
        )
    box = problem.bounds(bounds)
    solve = _solver(method, box, tol, max_steps, dict(options or {}))
    params = problem.take(ps)
    named = NamedFunction(function, problem, "function")
    layout = named.layout(params, inputs)
    if layout.size != problem.layout.size:
        raise ValueError(
            f"root_find needs as many equations as unknowns, got {layout.size} of {problem.layout.size} unknowns: "
            "lux.least_squares takes any number"
        )
    programs = Programs(named, params, inputs)
    start = problem.ravel(params)
    start = start if box is None else np.clip(start, *box)
    evaluate = programs(values, problem.cast(start), inputs)

    def at(flat):
        return np.asarray(evaluate(problem.cast(flat), inputs), np.float64)

    first = at(start)
    if not np.isfinite(first).all():
        where = not_finite(function, ps=ps, args=args)
        message = f"the function is not finite at the start: check it there, or start elsewhere{where}"
        return RootResult(ps, _as(layout, first, problem.dtype), float("nan"), False, message, 0)
    found, success, message, steps = solve(named, params, inputs, start, at)
    last = at(found)
    if not np.isfinite(last).all() or np.max(np.abs(last)) > np.max(np.abs(first)):
        found, last = start, first
    worst = int(np.argmax(np.abs(last)))
    unsolved = abs(last[worst]) > LARGE * max(float(np.max(np.abs(first))), 1.0)
    if unsolved or not success:
        label = layout.label(worst)
        name = f"`{label}`" if label else worst
        message = f"{message.strip().rstrip('.')}; the equation {name} is at {last[worst]:.3g}"
    residual = _as(layout, last, problem.dtype)
    result = problem.join(problem.unravel(jnp.asarray(found)), inputs)
    return RootResult(result, residual, float(abs(last[worst])), success and not unsolved, message, steps)


def _as(layout: Layout, flat: np.ndarray, dtype: Any) -> Any:
    data = jnp.asarray(flat, dtype)
    return ComponentVector(data, layout) if isinstance(layout.container, str) else layout.unravel(data)


def _solver(method: Any, box: Any, tol: float | None, max_steps: int, options: dict[str, Any]) -> Callable[..., Any]:
    """Who solves: a function of (function, params, inputs, start, at) that returns (flat, success, message, steps)."""
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"SciPy has no root finder {method!r}; it has {', '.join(METHODS)}")
        if box is not None:
            raise ValueError(f"{method} takes no bounds: optimistix.Newton and Chord do")
        return lambda *given: _scipy(method, tol, max_steps, options, *given)
    if not isinstance(method, optx.AbstractRootFinder | optx.AbstractLeastSquaresSolver):
        raise TypeError(
            "method is an optimistix root finder, such as optimistix.Newton(rtol=1e-8, atol=1e-8), or the name of one "
            f"of SciPy's, such as 'hybr', got {method!r}"
        )
    if tol is not None:
        raise ValueError("an optimistix solver has its own tolerances: give `rtol` and `atol` where it is made")
    if box is not None and not isinstance(method, optx.Newton | optx.Chord):
        raise ValueError(f"{type(method).__name__} takes no bounds: optimistix.Newton and Chord do")
    if box is not None:
        options |= {"lower": jnp.asarray(box[0]), "upper": jnp.asarray(box[1])}
    return lambda *given: _optimistix(method, max_steps, options, *given)


def _scipy(method: str, tol: float | None, max_steps: int, options: dict[str, Any], *given: Any) -> Any:
    import scipy.optimize

    function, params, inputs, start, at = given
    cast, slopes = function.loss.cast, None
    if method in WITH_JACOBIAN:
        program = Programs(function, params, inputs, True, mode="forward")(jacobian, cast(start), inputs)
        slopes = lambda x: np.asarray(program(cast(x), inputs), np.float64)  # noqa: E731
    limit = {"hybr": "maxfev", "lm": "maxiter", "df-sane": "maxfev"}.get(method, "maxiter")
    limits: dict[str, Any] = {limit: max_steps}
    if method == "krylov":  # differences that the parameters' precision resolves
        limits["jac_options"] = {"rdiff": float(jnp.finfo(function.loss.dtype).eps) ** 0.5}
    best = [start, np.inf]

    def f(x):
        value = at(x)
        size = float(np.max(np.abs(value)))
        if size < best[1]:
            best[:] = [np.array(x), size]
        return np.where(np.isfinite(value), value, 1e150)

    try:
        found = scipy.optimize.root(f, start, method=method, jac=slopes, tol=tol, options=limits | options)
    except (scipy.optimize.NoConvergence, ValueError) as error:
        stood_still = "Jacobian inversion" in str(error)  # of krylov, where the function stays as it is
        if isinstance(error, ValueError) and not stood_still:
            raise
        return best[0], False, f"{method} did not converge: {error}"[:80], max_steps
    steps = int(found.get("nit", found.get("nfev", 0)))
    return (found.x if found.success else best[0]), bool(found.success), " ".join(str(found.message).split()), steps


def _optimistix(method: Any, max_steps: int, options: dict[str, Any], *given: Any) -> Any:
    function, params, inputs, start, _ = given
    arrays, others = eqx.partition((method, options), eqx.is_array)
    y = jnp.asarray(start, jnp.result_type(float))
    y = y[0] if isinstance(method, optx.Bisection) else y  # which takes one number
    programs = Programs(function, params, inputs, others, max_steps, mode="both")
    found, result, steps = programs(_root, arrays, y, inputs)(arrays, y, inputs)
    success = bool(result == optx.RESULTS.successful)
    message = "converged: the solver's rtol and atol are met" if success else optx.RESULTS[result].split("\n")[0]
    return np.atleast_1d(np.asarray(found, np.float64)), success, message, int(steps)


def _root(function: NamedFunction, others: Any, max_steps: int, arrays: Any, y: jax.Array, inputs: Inputs) -> Any:
    method, options = eqx.combine(arrays, others)
    with jax.numpy_dtype_promotion("standard"):
        solution = optx.root_find(
            lambda y, inputs: values(function, jnp.atleast_1d(y), inputs).astype(y.dtype).reshape(y.shape),
            method,
            y,
            inputs,
            options,
            max_steps=max_steps,
            throw=False,
        )
    return solution.value, solution.result, solution.stats["num_steps"]
