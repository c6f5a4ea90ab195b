"""least_squares: one call over our Levenberg-Marquardt, optimistix's solvers and SciPy's."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from .._compat import one_blas_thread
from .._tree import describe
from ..components import ComponentMatrix, Layout
from ..components.nodes import Path
from ..core.converters import checks_itself, converted, count, flag, number, optional
from ..core.setup import as_key
from . import damped_systems, fit_statistics, levenberg_marquardt_backend, optimistix_backend, scipy_least_squares
from .levenberg_marquardt import DIFFERENCE, EXACT, LevenbergMarquardt, prefers_forward
from .minimize import MinimizeResult, is_whole
from .programs import Programs
from .progress import NOT_FINITE_AT_START, NOT_FINITE_RESAMPLED, Progress, to_its_end
from .residual_problem import WHOLE, Data, ResidualProblem, not_finite, same_samples
from .robust_losses import robust
from .starts import Runs, starting_points

P = TypeVar("P")
DIRECTIONS = ("forward", "reverse")
SMALL = 1e10  # operations of a factorization: below, threads that wait for each other cost more than they help


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LeastSquaresResult(MinimizeResult[P]):
    """What `least_squares` returns: the fields of `MinimizeResult`, and statistics of the fit.

    `value` and `history` are of the loss: half the sum of squares of the weighted residuals, or of the robust loss;
    after resampling, of the new samples. `runs` are the results of all starts, the first that from `ps`.

    Covariance, errors, intervals and bands are to first order in the parameters, at the point that was found. The
    variance of the residuals is estimated from them, and intervals are Student's; with `absolute=True` the weights are
    taken for those of known errors, one over the standard deviation. All raise `ValueError` where there are too few
    residuals, where they leave directions of the parameters open, which are named, and where a parameter lies on one of
    its bounds.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> x = jnp.arange(6.0)
    >>> noise = jnp.array([0.1, -0.1, 0.2, -0.2, 0.1, -0.1])
    >>> line = lux.ComponentVector(offset=0.0, slope=0.0)
    >>> fit = least_squares(lambda p, s: p.offset + p.slope * s[0] - s[1], line, samples=(x, 1 + 2 * x + noise))
    >>> fit.success, fit.residuals.shape, fit.standard_errors()
    (True, (6,), ComponentVector(offset=0.1205, slope=0.0398))
    >>> value, lower, upper = fit.confidence_band(lambda p: p.offset + p.slope * x)
    >>> bool(jnp.all((lower < 1 + 2 * x) & (1 + 2 * x < upper)))
    True
    """

    fitted: "Fitted | None" = None

    @functools.cached_property
    def residuals(self) -> Any:
        """The residuals, not weighted, in the form that the function returns them; of samples with a leading axis."""
        return self._fitted.residuals()

    @functools.cached_property
    def jacobian(self) -> ComponentMatrix:
        """The Jacobian of the weighted residuals by the fitted parameters, with the names of these."""
        matrix = self._fitted.jacobian
        return ComponentMatrix(jnp.asarray(matrix), Layout.of(jnp.zeros(len(matrix))), self._fitted.problem.layout)

    def covariance(self, absolute: bool = False) -> ComponentMatrix:
        r"""The covariance of the fitted parameters, :math:`s^2 (J^T J)^{-1}`, with their names."""
        layout = self._fitted.problem.layout
        return ComponentMatrix(jnp.asarray(self._covariance(absolute)), layout, layout)

    def standard_errors(self, absolute: bool = False) -> P:
        """The square roots of the variances of the fitted parameters, by name."""
        return self._fitted.problem.unravel(jnp.asarray(np.sqrt(np.diag(self._covariance(absolute)))))

    def confidence_intervals(self, level: float = 0.95, absolute: bool = False) -> tuple[P, P]:
        """Lower and upper ends of the confidence interval of each fitted parameter."""
        fitted = self._fitted
        half = self._quantile(level, absolute) * np.sqrt(np.diag(self._covariance(absolute)))
        lower, upper = (fitted.problem.unravel(jnp.asarray(fitted.flat + sign * half)) for sign in (-1, 1))
        return lower, upper

    def confidence_band(
        self, function: Callable[[P], Any], level: float = 0.95, absolute: bool = False, noise: bool = False
    ) -> tuple[Any, Any, Any]:
        """The value of a function of the parameters, and the ends of its confidence interval, elementwise.

        With `noise`, those for a new measurement of weight 1: wider by the variance of the residuals.
        """
        fitted, matrix = self._fitted, self._covariance(absolute)
        variance = (1.0 if absolute else 2 * self.value / fitted.degrees) if noise else 0.0
        flat = jnp.asarray(fitted.flat, fitted.problem.flat_dtype)
        half = self._quantile(level, absolute)
        return fit_statistics.band(lambda flat: function(fitted.at(flat)), flat, matrix, variance, half)

    def _covariance(self, absolute: bool) -> np.ndarray:
        fitted = self._fitted
        fitted.require_inside()
        eps = float(jnp.finfo(fitted.problem.flat_dtype).eps)
        return fit_statistics.covariance(fitted.counted, self.value, fitted.problem.layout, absolute, eps)

    def _quantile(self, level: float, absolute: bool) -> float:
        return fit_statistics.quantile(level, self._fitted.degrees, absolute)

    @property
    def _fitted(self) -> "Fitted":
        if self.fitted is None:
            raise ValueError("this result is not one of least_squares: it holds no residuals")
        return self.fitted


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The residuals of a fit at the point that was found."""

    problem: ResidualProblem
    data: Data
    flat: np.ndarray  # the fitted parameters
    bounds: tuple[np.ndarray, np.ndarray] | None
    programs: Programs
    compiled: Callable[..., jax.Array | None] | None  # a Jacobian of a linear loss that the method has compiled

    def at(self, flat: jax.Array) -> Any:
        """All parameters."""
        return self.problem.join(self.problem.unravel(flat), self.data)

    def residuals(self) -> Any:
        return self.programs.problem.returned(self.problem.unravel(self.flat), self.data)  # as they were in the fit

    @functools.cached_property
    def jacobian(self) -> np.ndarray:
        """Of the weighted residuals, its rows scaled as those of the robust loss."""
        at = self.problem.cast(self.flat), self.data
        found = self.compiled(self.problem, *at, self.programs) if self.compiled else None
        return np.asarray(self.programs(_evaluate, *at)(*at)[1] if found is None else found, np.float64)

    @functools.cached_property
    def counted(self) -> np.ndarray:
        """The Jacobian without the rows of weight zero, which are no measurements."""
        return self.jacobian if self.data.weights is None else self.jacobian[np.asarray(self.data.weights) > 0]

    @property
    def degrees(self) -> int:
        """Of freedom."""
        return self.counted.shape[0] - self.counted.shape[1]

    def require_inside(self) -> None:
        """Raise `ValueError` where a parameter lies on a bound."""
        if self.bounds is None:
            return
        on = np.flatnonzero((self.flat <= self.bounds[0]) | (self.flat >= self.bounds[1]))
        if on.size:
            raise ValueError(
                f"`{self.problem.layout.label(int(on[0])) or 'the parameter'}` lies on its bound, where the errors of "
                "this fit mean nothing: fit the other components again, by `trainable=`"
            )


@checks_itself
def least_squares(
    residual: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    ps: P,
    *,
    samples: Any = None,
    args: Any = None,
    weights: Any = None,
    method: str | optx.AbstractLeastSquaresSolver = "lm",
    bounds: Any = None,
    loss: str = "linear",
    loss_scale: float = 1.0,
    trainable: str | Sequence[str | Path] | None = None,
    max_steps: int = 1000,
    max_seconds: float | None = None,
    tol: float | None = None,
    jacobian: str | None = None,
    solver: str | None = None,
    callback: Callable[[int, P, float], Any] | None = None,
    callback_every: int | None = None,
    progress: bool = False,
    resample: Callable[[jax.Array, P], Any] | None = None,
    resample_every: int = 100,
    key: jax.Array | None = None,
    starts: Any = None,
    options: dict[str, Any] | None = None,
) -> LeastSquaresResult[P]:
    r"""Find parameters where residuals are small: :math:`\min_p \frac12 \sum_i (w_i r_i(p))^2`.

    With `samples`, a pytree with a leading axis, `residual(ps, sample)`, or `residual(ps, sample, args)`, returns the
    residual of **one** sample, a number or an array. The rows of the Jacobian are then the derivatives of one sample
    each, under `vmap`, and cost about a gradient for each sample, however many parameters there are. Several groups are
    dicts with the same keys: `least_squares({"inner": f, "edge": g}, ps, samples={"inner": x, "edge": y})`.

    Without samples, `residual(ps)`, or `residual(ps, args)`, returns all residuals: an array, a ComponentVector or a
    tree. `ps` is as for `minimize`, and so are `args`, `bounds`, `trainable`, `callback`, `callback_every`, `progress`,
    and what happens where residuals are not finite, and at Ctrl-C.

    `method` is one of

    * `"lm"`: `LevenbergMarquardt`, ours; or an object of this class, with other settings;
    * `"trf"`, `"dogbox"`, `"minpack"`: those of `scipy.optimize.least_squares`, where the last is called `"lm"`;
    * an optimistix solver: `optimistix.LevenbergMarquardt(rtol=1e-6, atol=1e-6)`, `GaussNewton`, `Dogleg`.

    Further arguments:

    * `weights` multiply the residuals: one over the error of a measurement. A number, or one for each sample
      `(count,)`, or like all residuals; with groups a dict, or one number. What has weight zero is no
      measurement: it may be NaN, as in the padding of a `lux.diffeq.Series`, and is no degree of freedom.
    * `bounds`: for `"lm"`, where steps are projected onto them, `"trf"` and `"dogbox"`.
    * `loss`: `"linear"`, or one that counts outliers less, `"huber"`, `"soft_l1"`, `"cauchy"` or `"arctan"`, for
      `"lm"`, `"trf"` and `"dogbox"`; residuals below `loss_scale` count fully.
    * `max_steps`: the maximum number of steps; one of `"lm"` tries one point, one of SciPy's accepts one.
    * `max_seconds`: end after this time, compiling included, all `starts` together.
    * `tol`: relative, for `"lm"` and SciPy's methods. By default 1e-12, or what the precision allows, and SciPy's 1e-8.
    * `jacobian`: `"forward"` or `"reverse"`. By default forward without samples, unless parameters outnumber the
      residuals four times, and reverse for each sample. A solver inside with `adjoint="auto"` follows.
    * `solver`: the linear algebra of `"lm"`, as for `LevenbergMarquardt`; by default chosen by size.
    * `resample(key, ps)` returns new samples, of the same shapes, after every `resample_every` steps of `"lm"`: as of
      `adaptive_samples`; with groups a dict of those to renew. The random keys follow from `key`.
    * `starts`: more starts than `ps`, as for `minimize`: the number of all, a list of parameters, or a batch `(k, n)`.
      They are run one after the other, and the best is returned; `result.runs` are all of them.
    * `options`: SciPy's, or those of the optimistix solver.

    Levenberg-Marquardt starts well near a solution. From random weights, fits of stiff equations may stick: a few
    hundred steps of `minimize(..., method=optax.adam(1e-2))` or `"SSBroyden"` first, or `starts`, help; a run that
    sticks ends with `success=False` at `max_steps`.

    Raises `TypeError` and `ValueError` for what does not fit together, and `KeyError` for a pattern that matches
    nothing.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> t = jnp.linspace(0.0, 2.0, 20)
    >>> data = {"t": t, "y": 3.0 * jnp.exp(-1.5 * t)}
    >>> def misfit(p, sample):
    ...     return p.amplitude * jnp.exp(-p.rate * sample["t"]) - sample["y"]
    >>> result = lux.least_squares(misfit, lux.ComponentVector(amplitude=1.0, rate=1.0), samples=data)
    >>> result.success, bool(jnp.allclose(result.params, jnp.array([3.0, 1.5]), rtol=1e-3))
    (True, True)
    """
    max_steps = converted("max_steps", count, int(max_steps) if is_whole(max_steps) else max_steps)
    resample_every = converted("resample_every", count, resample_every)
    callback_every = converted("callback_every", optional(count), callback_every)
    tol, max_seconds = converted("tol", optional(number), tol), converted("max_seconds", optional(number), max_seconds)
    converted("progress", flag, progress)
    for name, value in (("tol", tol), ("max_seconds", max_seconds)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name}: expected a number of at least 0, got {value:g}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"`options` is a dict, got a {type(options).__name__}")
    for name, function, call in (("callback", callback, "(step, ps, value)"), ("resample", resample, "(key, ps)")):
        if function is not None and not callable(function):
            raise TypeError(f"{name} is a function of {call}, got a {type(function).__name__}")
    if jacobian not in (None, *DIRECTIONS):
        raise ValueError(f"jacobian is 'forward', 'reverse' or None, got {jacobian!r}")
    damped_systems.check(solver)
    robust_loss = robust(loss, converted("loss_scale", number, loss_scale))
    problem, data = ResidualProblem.of(residual, ps, samples, args, trainable, robust_loss, jacobian)
    box = problem.bounds(bounds)
    backend = _backend(method, problem, box, tol, solver, dict(options or {}))
    if resample is not None:
        renew = functools.partial(_resampled, problem, resample, jax.random.key(0) if key is None else as_key(key))
        backend = _with_resampling(backend, samples, renew, resample_every)

    ends = None if max_seconds is None else time.monotonic() + max_seconds

    def fit(ps):
        seconds = None if ends is None else max(ends - time.monotonic(), 0.0)
        given = (callback, callback_every, progress, "least_squares", seconds)
        return _fit(problem, data, ps, weights, box, backend, Progress(lambda: ps, None, max_steps, *given))

    if starts is None:
        return fit(ps)
    runs: list[LeastSquaresResult] = []
    for point in starting_points(starts, ps, problem, box):
        runs.append(fit(point))
        if runs[-1].stopped:
            break
    return dataclasses.replace(Runs(runs).best, runs=Runs(runs))


class _Backend(NamedTuple):
    """Who runs a method."""

    module: ModuleType
    static: tuple[Any, ...]  # of its programs
    given: dict[str, Any]  # the arguments of its run
    both_modes: bool  # whether it differentiates the residuals in forward mode beside the Jacobian's


def _backend(
    method: Any, problem: ResidualProblem, box: Any, tol: float | None, solver: Any, options: dict
) -> _Backend:
    """Raises `TypeError` and `ValueError` for what is no method, and for what one does not take."""
    if isinstance(method, str) and method.lower() == "lm":
        if options:
            raise ValueError("'lm' has no `options`: pass method=lux.LevenbergMarquardt(...) with its settings")
        eps = float(jnp.finfo(problem.flat_dtype).eps)
        geodesic = EXACT if problem.has_samples else DIFFERENCE  # of a whole, as of a solve, exact ones compile slowly
        method = LevenbergMarquardt(max(1e-12, 8 * eps) if tol is None else tol, eps, solver=solver, geodesic=geodesic)
    elif solver is not None:
        raise ValueError("solver is the linear algebra of method='lm'; other methods have theirs where they are made")
    if isinstance(method, LevenbergMarquardt):
        both = method.geodesic is not None or method.solver == damped_systems.CG or method.solver is None
        return _Backend(levenberg_marquardt_backend, (method,), dict(method=method, bounds=box), both)
    if isinstance(method, str):
        name = method.lower()
        if name not in scipy_least_squares.METHODS:
            raise ValueError(
                f"least_squares has no method {method!r}; it has 'lm', SciPy's 'trf', 'dogbox' and 'minpack', and "
                "optimistix's solvers; methods of a loss, such as 'L-BFGS-B', are those of lux.minimize"
            )
        if name == "minpack":
            _refuse(box, problem, "minpack")
        return _Backend(scipy_least_squares, (), dict(method=name, bounds=box, tol=tol, options=options), False)
    if isinstance(method, optx.AbstractLeastSquaresSolver):
        _refuse(box, problem, type(method).__name__)
        if tol is not None:
            raise ValueError("an optimistix solver has its own tolerances: give `rtol` and `atol` where it is made")
        arrays, others = eqx.partition((method, options), eqx.is_array)
        given = dict(method=method, arrays=arrays, keep_best=True)
        return _Backend(optimistix_backend, (others,), given, False)
    raise TypeError(
        "method is 'lm', 'trf', 'dogbox', 'minpack', a lux.LevenbergMarquardt, or an optimistix least-squares solver, "
        f"such as optimistix.Dogleg(rtol=1e-6, atol=1e-6), got {method!r}; optimizers of a loss are for lux.minimize"
    )


def _refuse(box: Any, problem: ResidualProblem, name: str) -> None:
    if box is not None:
        raise ValueError(f"{name} takes no bounds: 'lm', 'trf' and 'dogbox' do")
    if problem.loss.name != "linear":
        raise ValueError(f"{name} takes no robust loss: 'lm', 'trf' and 'dogbox' do")


def _with_resampling(backend: _Backend, samples: Any, renew: Callable, every: int) -> _Backend:
    if samples is None:
        raise ValueError("resample renews the samples, and there are none: pass `samples=`, those to begin with")
    if backend.module is not levenberg_marquardt_backend:
        raise ValueError("resample is for method='lm': the other methods take their samples once")
    return backend._replace(given={**backend.given, "resample": renew, "resample_every": every})


def _resampled(problem: ResidualProblem, resample: Callable, key: jax.Array, step: int, ps: Any, data: Data) -> Data:
    new = resample(jax.random.fold_in(key, step), ps)
    groups = problem.groups
    if groups == (WHOLE,):
        new = {WHOLE: new}
    elif not isinstance(new, Mapping) or not set(new) <= set(groups):
        have = ", ".join(map(repr, new)) if isinstance(new, Mapping) else describe(new)
        raise ValueError(f"resample returns a dict of some of the groups, {', '.join(map(repr, groups))}, got {have}")
    checked = {name: same_samples(name, x, data.samples[name]) for name, x in new.items()}
    return data._replace(samples={**data.samples, **checked})


def _fit(
    problem: ResidualProblem, data: Data, ps: Any, weights: Any, box: Any, backend: _Backend, record: Progress
) -> LeastSquaresResult:
    params, data = problem.take(ps), data._replace(fixed=None if problem.part is None else ps)
    problem, programs, sizes = _traced(problem, params, data, backend)
    data = programs.problem.weighted(weights, params, data)
    size = sum(count * k for count, k in sizes.values())
    given = backend.given
    compiled = None
    if backend.module is levenberg_marquardt_backend:
        own = dict(method=given["method"], bounds=box, size=size)
        given = {"resample": None, "resample_every": 1, **given, **own}
        if problem.loss.name == "linear":
            compiled = functools.partial(levenberg_marquardt_backend.jacobian, **own)
    if given.get("method") == "minpack" and size < problem.layout.size:
        raise ValueError(
            f"minpack needs as many residuals as parameters, got {size} residuals of {problem.layout.size} parameters: "
            "'lm', 'trf' and 'dogbox' take fewer"
        )
    last = [data]  # the samples of the end
    if given.get("resample") is not None:
        given = {**given, "resample": lambda *at: last.append(renew(*at)) or last[-1]}
        renew = backend.given["resample"]
    record.params = lambda: problem.join(params, data)
    run = functools.partial(backend.module.run, problem, params, data, record, programs, **given)
    with one_blas_thread() if size * problem.layout.size * min(size, problem.layout.size) < SMALL else nullcontext():
        success, message = to_its_end(run, record)
    found = record.params()
    if message == NOT_FINITE_AT_START or message.startswith(NOT_FINITE_RESAMPLED):
        message += not_finite(programs.problem, problem.take(found), last[-1])
    flat = problem.ravel(problem.take(found))
    return LeastSquaresResult(
        params=found,
        value=float(record.value),
        success=success and bool(np.isfinite(record.value)),
        message=message,
        steps=record.steps,
        evaluations=record.evaluations,
        history=np.asarray(record.history, np.float64),
        stopped=record.stopped,
        fitted=Fitted(problem, last[-1], flat, box, programs, compiled),
    )


def _traced(
    problem: ResidualProblem, params: Any, data: Data, backend: _Backend, both: bool = False
) -> tuple[ResidualProblem, Programs, dict[str, tuple[int, int]]]:
    """The problem with the direction of its Jacobian, its programs, and the sizes of its groups."""
    chosen = problem.jacobian
    if not problem.has_samples and chosen is None:
        problem = dataclasses.replace(problem, jacobian="forward")
    forward = problem.jacobian == "forward"
    mode = "both" if both else "forward" if forward else "both" if backend.both_modes else "reverse"
    programs = Programs(problem, params, data, *backend.static, mode=mode)
    sizes = programs.problem.sizes(params, data)
    m, n = sum(count * k for count, k in sizes.values()), problem.layout.size
    if forward and chosen is None and not prefers_forward(m, n):
        return _traced(dataclasses.replace(problem, jacobian="reverse"), params, data, backend)
    method = backend.given.get("method")
    if mode == "forward" and isinstance(method, LevenbergMarquardt):
        if (method.solver or damped_systems.choose(m, n)) == damped_systems.CG:  # products with J' too
            return _traced(problem, params, data, backend, both=True)
    if mode == "reverse" and any(problem.direction(k) == "forward" for _, k in sizes.values()):
        return _traced(problem, params, data, backend, both=True)  # groups may differ
    return problem, programs, sizes


def _evaluate(problem: ResidualProblem, *arguments: Any) -> tuple[jax.Array, jax.Array]:
    """Residuals and Jacobian at the parameters and data that are the last of the arguments, as the loss scales them."""
    flat, data = arguments[-2:]
    r, jacobian, _ = problem.at(data).with_jacobian(flat.astype(problem.flat_dtype))
    return r, jacobian if problem.loss.name == "linear" else problem.loss.curvature_rows(r)[:, None] * jacobian
