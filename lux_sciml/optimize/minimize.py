"""minimize: one call over SciPy, optimistix and optax."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Generic, TypeAlias, TypeGuard, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Float

from ..components.nodes import Path
from ..core.converters import checks_itself, converted, count, flag, number, optional
from . import global_methods, optax_backend, optimistix_backend, scipy_backend
from .bounded_lbfgs import BoundedLBFGS
from .in_turn import in_turn
from .problem import Evaluation, Inputs, Problem, not_finite
from .programs import Programs
from .progress import NOT_FINITE_ANYWHERE, NOT_FINITE_AT_START, Progress, to_its_end
from .resume import Memory, go_on, memory_of
from .self_scaled import SSBFGS, SSBroyden
from .starts import Runs, one_by_one, starting_points, to_their_ends

P = TypeVar("P")
Method: TypeAlias = str | optax.GradientTransformation | optax.MultiSteps | optx.AbstractMinimiser
OURS = {"ssbfgs": SSBFGS, "ssbroyden": SSBroyden, "boundedlbfgs": BoundedLBFGS}

FAMILIES = {optax_backend: "optax", optimistix_backend: "optimistix"}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MinimizeResult(Generic[P]):
    """What `minimize` returns.

    * `params`: the parameters, of the kind that was passed in;
    * `value`: the loss there; where it or its gradient is not finite at the start, the loss there, NaN or not;
    * `success`: whether the run met its criterion: that of the method, `tol` or `patience`, or the callback's. A method
      without one (optax without `tol` and `patience`) is to use up `max_steps` or `max_seconds`, and succeeds by that;
      for all others these are limits, and reaching one is no success. Never true where the value is not finite, nor
      where a method claims to have converged while the loss plainly goes on to fall: where the relative gradient,
      `max |g_i| max(|x_i|, 1) / max(|f|, 1)`, is above 0.01 and the tolerance, or, for methods of values alone, where a
      step of a hundredth along an axis lowers the loss by a thousandth;
    * `message`: why the run ended, and what to do where it failed;
    * `steps`: iterations of the method;
    * `evaluations`: evaluations of the loss, each with its gradient where the method uses one. For optax and optimistix
      those that a method makes inside one step (line searches, simplices) are counted once;
    * `history`: the loss at the start and after each step, `(steps + 1,)`; of an optimistix method that was stopped,
      `(steps,)`, as it has not evaluated its last point yet;
    * `aux`: with `has_aux=True`, what the loss returned beside its value at `params`;
    * `state`: with `state=`, the state that the loss returned at `params`;
    * `stopped`: whether the callback, Ctrl-C or `max_seconds` ended the run;
    * `runs`: the results of all `starts`, or of all methods in turn; printed as a table;
    * `memory`: what an optax or optimistix method knows at the end, for `resume=`.

    >>> result = minimize(lambda x: (x - 1.0) ** 2, 0.0, method="BFGS")
    >>> result.success, result.steps, result.history.shape
    (True, 2, (3,))
    """

    params: P
    value: float
    success: bool
    message: str
    steps: int
    evaluations: int
    history: Float[np.ndarray, " n"]
    aux: Any = None
    state: Any = None
    stopped: bool = False
    runs: Sequence["MinimizeResult[P]"] = ()
    memory: Memory | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(value={self.value:.6g}, success={self.success}, steps={self.steps}, "
            f"evaluations={self.evaluations}, message={self.message!r}, params={self.params!r})"
        )


@checks_itself
def minimize(
    loss: Callable[..., Any],
    ps: P,
    *,
    method: Method | Sequence[Method],
    args: Any = None,
    state: Any = None,
    bounds: Any = None,
    max_steps: int | Sequence[int] = 1000,
    max_seconds: float | None = None,
    tol: float | None = None,
    patience: int | None = None,
    constraints: Any = None,
    starts: Any = None,
    resume: MinimizeResult[P] | None = None,
    callback: Callable[[int, P, float], Any] | None = None,
    callback_every: int | None = None,
    progress: bool = False,
    has_aux: bool = False,
    keep_best: bool = True,
    trainable: str | Sequence[str | Path] | None = None,
    options: dict[str, Any] | None = None,
) -> MinimizeResult[P]:
    """Find parameters where a loss is small: :math:`\\min_p L(p)`.

    `loss(ps)`, or `loss(ps, args)` where `args` is given, returns one floating-point number, and with `has_aux=True`
    `(value, aux)`. With a state it is `loss(ps, state)` or `loss(ps, state, args)`, and returns `(value, state)` or
    `(value, state, aux)`. `ps` is a `ComponentVector`, or a nested tree or an array of floating-point numbers; the
    loss, the callback and the result have the same kind, shapes and dtypes.

    `method` is one of

    * a name of `scipy.optimize.minimize`: `"L-BFGS-B"` (the usual choice), `"BFGS"`, `"CG"`, `"TNC"`, `"SLSQP"`,
      `"trust-constr"`, `"Newton-CG"`, `"trust-ncg"`, `"trust-krylov"`, `"trust-exact"`, `"dogleg"`, `"Nelder-Mead"`,
      `"Powell"`, `"COBYLA"`, `"COBYQA"`. Gradients and Hessians are JAX's, and SciPy works in float64 whatever the
      parameters' dtype;
    * one of SciPy's global methods: `"differential_evolution"`, `"dual_annealing"` or `"shgo"`, all within finite
      `bounds`, or `"basinhopping"`. Populations are evaluated at once, by `jax.vmap`, local searches have exact
      gradients, and random numbers are those of `options=dict(rng=0)` unless you say otherwise;
    * `"SSBFGS"` or `"SSBroyden"`, ours: quasi-Newton methods that scale themselves, for up to some thousands of
      parameters; on losses that must become very small they are ahead of BFGS;
    * `"BoundedLBFGS"`, ours: L-BFGS within bounds as a JAX program, for `starts` at once; `BoundedLBFGS(...)` itself
      runs inside of `jax.jit` and `jax.vmap`, by `optimistix.minimise`;
    * an optax optimizer: `optax.adam(1e-2)`, a chain, `optax.lbfgs()`, `optax.MultiSteps(...)`;
    * an optimistix minimizer: `optimistix.BFGS(rtol=1e-6, atol=1e-6)`, `LBFGS`, `NelderMead`, ...
    * a list of these, run in turn, each from where the one before ended: `[optax.adam(1e-2), "L-BFGS-B"]`, with
      `max_steps` for each, `[300, 1000]`, or for all. `result.runs` are the results of each.

    Further arguments:

    * `args`: data for the loss, a pytree. What in it is neither an array nor a number (functions, names) is passed on
      as it is.
    * `state`: the state of the layers in the loss, where these update it in training (the statistics of `BatchNorm`,
      the random keys of `Dropout`). Optax methods carry it: every accepted step begins with the state that the one
      before returned, and `result.state` is the one at `result.params`. SciPy and optimistix evaluate the loss also
      where they do not step, and take a state that stays as it is: `lux.testmode(st)`. Where layers renew it in test
      mode too, as a `DeepEquilibrium` the statistics of its solve, let the loss read it from outside.
    * `bounds`: `(lower, upper)`, each a number, an array `(n,)`, a `ComponentVector`, a tree like the parameters or
      `None`; or a `scipy.optimize.Bounds`. The loss is never evaluated outside: a start there is moved inside. For
      optax each step is projected onto the bounds. Of optimistix methods, `BoundedLBFGS` alone has bounds.
    * `constraints`: a `scipy.optimize.NonlinearConstraint(f, lower, upper)`, with `f(ps)`, or `f(ps, args)` where
      `args` is given, of the whole parameters, whose value is a number, an array or a vector with names; a tuple
      `(A, lower, upper)` of a ComponentVector of coefficients, or a ComponentMatrix, and limits; a
      `scipy.optimize.LinearConstraint`, which has no names; or a list of such. Their derivatives are JAX's. For
      `"SLSQP"`, `"trust-constr"`, `"COBYLA"`, `"COBYQA"`, `"differential_evolution"` and `"shgo"`. Kept as the best is
      the lowest value where no constraint is violated by more than 1e-6; success means that none is by more than 1e-4.
    * `max_steps`: the maximum number of iterations. Optax makes them all, unless `tol` or `patience` is given.
    * `max_seconds`: end after this time, compiling included; see `success` of `MinimizeResult`.
    * `patience`: end where so many steps have not lowered the loss below the lowest before.
    * `starts`: start from several points, and return the best; `result.runs` are all. A number n means `ps` and n - 1
      Sobol points within the bounds; a list of parameters or a batch of vectors `(k, n)` comes after `ps`; with
      `trainable`, the other components are those of `ps`. Optax and optimistix run them at once, by `jax.vmap`, SciPy
      one after the other.
    * `resume`: a result, to go on from exactly where it ended, with `max_steps` more: the optimizer's memory and the
      state of the layers are the result's, and 100 steps and 100 more are the same, bit for bit, as 200. For the same
      method of optax or optimistix, loss and data; SciPy keeps its memory to itself.
    * `tol`: SciPy's `tol`, and `rtol` of our methods; for optax, stop where no entry of the gradient (with bounds, of
      its projection) is larger. Optimistix solvers have their own.
    * `callback(step, ps, value)`: called after every iteration of SciPy, and about ten times a second with optax and
      optimistix (after every step where one takes longer). It ends the run by returning `True`.
    * `callback_every`: call it after the steps whose number is a multiple of this, and no others; 1 is every step.
    * `progress`: show a progress bar in a terminal or notebook, and elsewhere, as in a log, a line every ten seconds.
    * `keep_best`: return the best parameters evaluated, rather than the last. Set `False` where the values of two
      evaluations are not comparable (a loss with noise).
    * `trainable`: patterns of the components to fit, as for `Layout.match`: `"physics.*"` or
      `["physics.*", "net.layer_2"]`; the method sees these components only, and the others stay as they are. Needs a
      ComponentVector; bounds are those of all components.
    * `options`: SciPy's options of the method, or the options of the optimistix solver.

    Where the loss or its gradient is not finite, no method is misled: SciPy sees a finite barrier there, and starts
    once more from the best point where it gave up; optax tries the step again at half its length; optimistix rejects
    the step, where its solver has a line search. A run that fails, or that Ctrl-C ends, returns the best parameters so
    far with `success=False` and a message that says why.

    What the loss reads besides its arguments (globals, variables around it, attributes, arrays that were changed in
    place, schedules of an optimizer) is read anew by every call. Only compiling is saved: a program that was compiled
    before is taken where it computes the same, other values in `args` or in closed-over arrays included; where all
    that is read is known to be unchanged, the loss is not even traced. Quasi-Newton methods need a loss without noise:
    tolerances of 1e-6 or less in the solvers inside it.

    Raises `TypeError` for a method, loss, callback or parameters of another kind, `ValueError` for unknown names, other
    sizes, and a state that changes where it cannot be carried, and `KeyError` for a pattern that matches nothing.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux, optax
    >>> def rosenbrock(p, a):
    ...     return (a - p.x) ** 2 + 100 * (p.y - p.x**2) ** 2
    >>> start = lux.ComponentVector(x=-1.2, y=1.0)
    >>> result = lux.minimize(rosenbrock, start, method="BFGS", args=1.0)
    >>> result.success, bool(jnp.allclose(result.params, 1.0, atol=1e-2))
    (True, True)
    >>> lux.minimize(rosenbrock, start, method=optax.adam(0.1), args=1.0, max_steps=500).message
    'all 500 steps made'
    >>> model = lux.Chain(lux.Dense(1, 4, jnp.tanh), lux.BatchNorm(4), lux.Dense(4, 1))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> def regression(ps, st, data):
    ...     y, st = model(data[0], ps, st)
    ...     return jnp.mean((y - data[1]) ** 2), st
    >>> x = jnp.linspace(0.0, 1.0, 20)[:, None]
    >>> result = lux.minimize(regression, ps, method=optax.adam(0.1), args=(x, x**2), state=st, max_steps=100)
    >>> result.value < 1e-2, bool(jnp.all(result.state["layer_1"]["running_mean"] == st["layer_1"]["running_mean"]))
    (True, False)

    References: Nocedal & Wright, *Numerical Optimization* (2006); Kingma & Ba, *Adam* (2015).
    """
    callback_every = converted("callback_every", optional(count), callback_every)
    patience = converted("patience", optional(count), patience)
    tol, max_seconds = converted("tol", optional(number), tol), converted("max_seconds", optional(number), max_seconds)
    for name, value in (("progress", progress), ("has_aux", has_aux), ("keep_best", keep_best)):
        converted(name, flag, value)
    for name, value in (("tol", tol), ("max_seconds", max_seconds)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name}: expected a number of at least 0, got {value:g}")
    if callback is not None and not callable(callback):
        raise TypeError(f"the callback is a function of (step, ps, value), got a {type(callback).__name__}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"`options` is a dict, got a {type(options).__name__}")
    if isinstance(method, list) or type(method) is tuple:  # as optax's optimizers are of another class of tuples
        _require_alone(starts=starts, resume=resume, options=options)
        steps = _steps_of_each(method, max_steps)
        given = dict(
            args=args, bounds=bounds, constraints=constraints, tol=tol, patience=patience, callback_every=callback_every
        )
        given |= dict(progress=progress, has_aux=has_aux, keep_best=keep_best, trainable=trainable)
        problem, inputs = Problem.of(loss, ps, args, state, has_aux, trainable)
        box, params = problem.bounds(bounds), problem.take(ps)
        for each in method:  # what is wrong is told before the first one runs
            backend, static, _ = _backend(each, box, constraints, tol, patience, keep_best, {})
            if problem.has_state and backend is not optax_backend:
                _refuse_updates(Programs(problem, params, inputs, *static), params, inputs, _name(each))
        fit = functools.partial(minimize, loss, **given)
        return in_turn(fit, method, steps, ps, state=state, callback=callback, max_seconds=max_seconds)
    total = _count_of_steps(max_steps)
    problem, inputs = Problem.of(loss, ps, args, state, has_aux, trainable)
    box = problem.bounds(bounds)
    backend, static, given = _backend(method, box, constraints, tol, patience, keep_best, options or {})
    memory = None if resume is None else memory_of(resume, FAMILIES.get(backend, "SciPy"), _name(method))
    points = [ps] if starts is None else starting_points(starts, ps, problem, box)
    if memory is not None:
        _require_alone(starts=starts)
    params = [problem.take(point) for point in points]
    programs = Programs(problem, params[0], inputs, *static)
    if problem.has_state and backend is not optax_backend:
        _refuse_updates(programs, params[0], inputs, _name(method))
    evaluate = programs(_evaluate, params[0], inputs) if has_aux else None

    def record_of(first: Any, told: bool) -> Progress:
        shown = (callback, callback_every, progress) if told else (None, None, False)
        start = functools.partial(problem.join, first, inputs)
        return Progress(start, inputs.state, total, *shown, seconds=max_seconds)

    def result(first: Any, record: Progress, success: bool, message: str) -> MinimizeResult[P]:
        if message in (NOT_FINITE_AT_START, NOT_FINITE_ANYWHERE):
            message += not_finite(loss, ps=problem.join(first, inputs), args=args, state=state)
        found = record.params()
        return MinimizeResult(
            params=found,
            value=float(record.value),
            success=success and bool(np.isfinite(record.value)),
            message=message,
            steps=record.steps,
            evaluations=record.evaluations,
            history=np.asarray(record.history, np.float64),
            aux=evaluate and evaluate(problem.take(found), inputs._replace(state=record.before)).aux,
            state=record.state,
            stopped=record.stopped,
            memory=record.memory,
        )

    run = functools.partial(backend.run, problem, inputs=inputs, programs=programs, **given)
    if starts is None:
        record = record_of(params[0], told=True)
        if memory is not None:
            go_on(record, resume, memory)
            run = functools.partial(run, resume=memory)
        return result(params[0], record, *to_its_end(lambda: run(params=params[0], progress=record), record))
    records = [record_of(first, told=i == 0) for i, first in enumerate(params)]
    if backend in (scipy_backend, global_methods):
        outcomes = one_by_one(run, params, records)
    else:
        all_at_once = functools.partial(backend.run_starts, problem, params, inputs, records, programs, **given)
        outcomes = to_their_ends(all_at_once, records)
    runs = Runs(map(result, params, records, *zip(*outcomes, strict=True)))
    return dataclasses.replace(runs.best, runs=runs)


def _require_alone(**given: Any) -> None:
    """Raise `ValueError` for arguments that do not go with methods in turn, or with a run that goes on."""
    names = [name for name, value in given.items() if value is not None]
    if names == ["starts"] and len(given) == 1:
        raise ValueError("resume goes on from one result: leave out `starts`")
    if names:
        raise ValueError(f"methods in turn take no `{names[0]}`, which is of one method: call minimize once for each")


def _steps_of_each(methods: Sequence[Any], max_steps: Any) -> list[int]:
    if not methods:
        raise ValueError("there is no method in the list of methods")
    each = list(max_steps) if isinstance(max_steps, list | tuple) else [max_steps] * len(methods)
    if len(each) != len(methods):
        raise ValueError(f"max_steps is one number, or one for each of {len(methods)} methods, got {len(each)}")
    return [_count_of_steps(n) for n in each]


def _count_of_steps(n: Any) -> int:
    return converted("max_steps", count, int(n) if is_whole(n) else n)


def _name(method: Any) -> str:
    return method if isinstance(method, str) else type(method).__name__


def is_whole(value: Any) -> TypeGuard[float]:
    """Whether it is a float such as 1e4."""
    return isinstance(value, float) and value.is_integer()


def _backend(
    method: Any,
    bounds: Any,
    constraints: Any,
    tol: float | None,
    patience: int | None,
    keep_best: bool,
    options: Mapping[str, Any],
) -> tuple[ModuleType, tuple[Any, ...], dict[str, Any]]:
    """Who runs the method, the static part of its programs, and the arguments of its run, checked."""
    shared = dict(bounds=bounds, patience=patience, keep_best=keep_best)
    if isinstance(method, str) and method.lower() in OURS:
        eps = float(jnp.finfo(float).eps)
        method, tol = OURS[method.lower()](eps**0.5 if tol is None else tol, eps), None
    if isinstance(method, str):
        of_scipy = dict(constraints=constraints, tol=tol, options=options)
        if method.lower() in global_methods.METHODS:
            global_methods.check(method.lower(), bounds, constraints)
            return global_methods, (), shared | dict(of_scipy, method=method.lower())
        others = (*(ours.__name__ for ours in OURS.values()), *global_methods.METHODS)
        name = scipy_backend.method_name(method, bounds, constraints, others)
        return scipy_backend, (), shared | dict(of_scipy, method=name)
    if constraints:
        raise ValueError(
            f"{type(method).__name__ if isinstance(method, optx.AbstractMinimiser) else 'an optax optimizer'} takes no "
            f"constraints; these methods do: {', '.join((*scipy_backend.CONSTRAINED, *global_methods.CONSTRAINED))}"
        )
    if isinstance(method, optax.MultiSteps):
        method = method.gradient_transformation()
    if isinstance(method, optax.GradientTransformation):
        if options:
            raise ValueError("an optax optimizer has no `options`: give them where it is made, as in optax.adam(1e-2)")
        static = (optax.with_extra_args_support(method), keep_best)
        return optax_backend, static, dict(shared, tol=tol)
    if isinstance(method, optx.AbstractMinimiser):
        if bounds is not None and not isinstance(method, BoundedLBFGS):
            raise ValueError(
                "optimistix minimizers take no bounds: use 'L-BFGS-B', 'BoundedLBFGS' or an optax optimizer"
            )
        if bounds is not None:
            options = {**options, "lower": jnp.asarray(bounds[0]), "upper": jnp.asarray(bounds[1])}
        if tol is not None:
            raise ValueError("an optimistix minimizer has its own tolerances: give `rtol` and `atol` where it is made")
        arrays, others = eqx.partition((method, options), eqx.is_array)
        return optimistix_backend, (others,), dict(shared, method=method, arrays=arrays)
    raise TypeError(
        "method must be the name of a SciPy method, such as 'L-BFGS-B', an optax optimizer, such as optax.adam(1e-2), "
        f"an optimistix minimizer, such as optimistix.BFGS(rtol=1e-6, atol=1e-6), or a list of these, got {method!r}"
    )


def _evaluate(problem: Problem, *arguments: Any) -> Evaluation:
    """At the parameters and inputs that are the last of the arguments, whatever a method has before them."""
    return problem(*arguments[-2:])


def _refuse_updates(programs: Programs, params: Any, inputs: Inputs, method: str) -> None:
    """Raise `ValueError`, naming the entry, for a state that the loss changes, where a method cannot carry it."""
    updated = programs.updates(params, inputs)
    if updated:
        raise ValueError(
            f"the loss updates `{updated[0]}` of the state, and {method} evaluates it also where it does not step: "
            "pass `state=lux.testmode(state)`; for what a layer renews in test mode too, as the statistics of a solve, "
            "leave `state` out and let the loss read it, `layer(x, ps, st)[0]`; or take an optax optimizer, which "
            "carries the state along"
        )
