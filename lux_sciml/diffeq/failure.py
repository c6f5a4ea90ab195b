"""A failed solve is data: NaN where the result is a failure, and one sentence on request."""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax import lax

from .._compat import unchecked
from .._tree import all_finite, rms_norm


def mark_failure(sol: diffrax.Solution, *, complete: bool) -> diffrax.Solution:
    """The solution with NaN in place of every floating-point output if the solve has failed.

    diffrax returns a finite, wrong state where it runs out of steps, and `inf` at the times that it has not reached.
    With `complete`, every output was to be filled, and one that is not finite is a failure too (`RESULTS.nonfinite`):
    a solver with fixed steps goes on through NaN.
    """
    broken = jnp.isnan(sol.t0)  # without a first time there is no step, and no result that says so
    if complete:
        broken |= ~jnp.all(jnp.array([jnp.all(jnp.isfinite(y)) for y in jax.tree.leaves(sol.ys)]))
    result = unless(broken, diffrax.RESULTS.nonfinite, sol.result)
    good = diffrax.is_okay(result)

    def mark(x: Any) -> Any:
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(good, x, jnp.full((), jnp.nan, x.dtype))

    ys, interpolation, stats = jax.tree.map(mark, (sol.ys, sol.interpolation, sol.stats))
    return dataclasses.replace(sol, ys=ys, interpolation=interpolation, stats=stats, result=result)


_TRY = {
    "max_steps_reached": (
        "max_steps was reached",
        "a larger max_steps, looser tolerances (rtol, atol), or, if the equation is stiff, an implicit solver such as "
        "solver=diffrax.Kvaerno5()",
    ),
    "dt_min_reached": (
        "steps too small for the precision of the time were needed",
        "a look at where the solution grows without bound or the vector field jumps; if it is stiff, an "
        "implicit solver such as solver=diffrax.Kvaerno5(), with looser tolerances or in float64",
    ),
    "nonfinite": (
        "a NaN or an infinity was met",
        "a look at the initial value, the times (in one direction, all of them), the parameters and the vector field, "
        "and smaller steps if they are fixed (dt0)",
    ),
}


_OF_EVENTS = {
    "stuck": (
        "events followed each other without a move of time",
        "; try a look at the effects: where the state is again at the event, or events come faster and faster (Zeno), "
        "let a terminal event end the solve before",
    ),
    "exhausted": (
        "an event happened more than max_count times",
        "; try a larger max_count, or, if events come faster and faster (Zeno), a terminal event before",
    ),
}


def raise_if_failed(sol: Any) -> diffrax.Solution:
    """The solution itself, if it, and every sample of a batch, is good; `RuntimeError` with what went wrong otherwise.

    The error names the samples, by what they failed of, and what to try. For use outside of `jax.jit`, where results
    are known. Raises `TypeError` for anything but a solution of known results.

    >>> import diffrax, jax.numpy as jnp
    >>> term = diffrax.ODETerm(lambda t, y, args: -y)
    >>> sol = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.01, jnp.ones(2), max_steps=4, throw=False)
    >>> raise_if_failed(sol)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    RuntimeError: the solve failed: max_steps was reached; try a larger max_steps, looser tolerances (rtol, atol), ...
    """
    if not isinstance(sol, diffrax.Solution):
        raise TypeError(
            f"raise_if_failed takes the diffrax.Solution of a layer with output='solution', got {type(sol).__name__}"
        )
    if sol.result.is_traced():
        raise TypeError("raise_if_failed needs known results: call it outside of jax.jit, or look at sol.result inside")
    good = np.ravel(np.asarray(diffrax.is_okay(sol.result)))
    if np.all(good):
        return sol
    codes, events = jax.tree.map(np.ravel, sol.result), sol.stats.get("events", {})
    faults: dict[str, tuple[str, list[int]]] = {}
    for i in np.flatnonzero(~good):
        of_events = [text for name, text in _OF_EVENTS.items() if np.ravel(events.get(name, False))[i if events else 0]]
        code = jax.tree.map(lambda code, i=i: np.asarray(code[i]), codes)
        what, remedy = of_events[0] if of_events else _explained(code)
        faults.setdefault(what, (remedy, []))[1].append(int(i))
    texts = [
        f"{what}{'' if good.size == 1 else f' by {_samples(failed)} of {good.size}'}{remedy}"
        for what, (remedy, failed) in faults.items()
    ]
    raise RuntimeError(f"the solve failed: {'. '.join(texts)}")


def _explained(code: Any) -> tuple[str, str]:
    """What a result code says, and what to try."""
    for name, (what, remedy) in _TRY.items():
        if bool(code == getattr(diffrax.RESULTS, name)):
            return what, f"; try {remedy}"
    return diffrax.RESULTS[code], ""


def _samples(numbers: list[int]) -> str:
    first = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"sample {first}" if len(numbers) == 1 else f"samples {first}"


class Guarded(diffrax.AbstractAdaptiveStepSizeController):
    """Any adaptive controller, ended with a result code where going on is of no use.

    Without it a NaN in the initial value or in the vector field burns all of `max_steps`. The solve ends with
    `RESULTS.nonfinite` where the initial value or a step size is not finite, and where a step is rejected and the next
    one would be less than eight units in the last place of the time at which it starts: with `RESULTS.nonfinite` where
    the step met a NaN or an infinity, with `RESULTS.dt_min_reached` otherwise.
    A first step that is smaller than that is lengthened, so that time moves on also where it is large.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController):
        self.controller = controller

    # Equinox lets properties stand for abstract variables; checkers do not know that.
    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.rtol

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm

    def wrap(self, direction):
        return guarded(self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        started = jnp.isfinite(first) & all_finite(y0)
        span = lax.stop_gradient(t1 - t0)
        least = _NOTHING * jnp.where(jnp.isfinite(span), span, 0)  # near the time zero
        first = jnp.maximum(first, t0 + _resolution(t0, least))
        return jnp.where(started, first, t1), (inner, started, least)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        inner, started, least = controller_state
        keep, next_t0, next_t1, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        smallest = _resolution(next_t0, least)
        broken = ~started | ~jnp.isfinite(next_t1)
        stuck = jnp.logical_not(keep) & (next_t1 - next_t0 < smallest)
        result = unless(broken, diffrax.RESULTS.nonfinite, result)
        result = unless(stuck & ~all_finite(y1_candidate), diffrax.RESULTS.nonfinite, result)
        result = unless(stuck, diffrax.RESULTS.dt_min_reached, result)
        # other samples of a batch may go on, and with them steps of this one, whose derivatives shall be finite
        next_t1 = jnp.where(broken, t1, jnp.maximum(next_t1, next_t0 + smallest / 8))
        return keep, next_t0, next_t1, jump, (inner, started, least), result


_NOTHING = 1e-30  # of the whole span: what no solve resolves, in either precision


def _resolution(t: Any, least: Any) -> jax.Array:
    """Eight units in the last place of the time `t`."""
    return jnp.maximum(lax.stop_gradient(8 * jnp.finfo(t.dtype).eps * jnp.abs(t)), least)


def unless(fault: Any, code: Any, result: Any) -> Any:
    """`result`, or the code where there is a fault and no earlier one."""
    return diffrax.RESULTS.where(fault & (result == diffrax.RESULTS.successful), code, result)


class _StepTo(diffrax.StepTo):
    """`diffrax.StepTo`, whose times are checked by the equation."""

    wrap = unchecked(diffrax.StepTo.wrap)
    init = unchecked(diffrax.StepTo.init)


class _ConstantStepSize(diffrax.ConstantStepSize):
    """`diffrax.ConstantStepSize`, whose steps end at the same times in a solve and where its gradient repeats it.

    They are quotients by the number of steps, and XLA multiplies by the inverse where it knows that number: in one of
    the two programs. A time that is saved where a step ends would be in one step here and in the next one there, and
    its cotangent in neither.
    """

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        controller_state = lax.optimization_barrier(controller_state)
        return super().adapt_step_size(t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state)


def guarded(controller: diffrax.AbstractStepSizeController) -> diffrax.AbstractStepSizeController:
    """An adaptive controller with the guard; others, which never shrink their steps, without callbacks, and exact."""
    if type(controller) is diffrax.ConstantStepSize:
        return _ConstantStepSize()
    if type(controller) is diffrax.StepTo:
        return _StepTo(controller.ts)
    if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        return Guarded(_of_any_size(controller))
    return controller


def _of_any_size(controller: Any) -> Any:
    """The controller with a norm that is defined for symbolic sizes too, in place of diffrax's default."""
    if isinstance(controller, diffrax.PIDController) and controller.norm is optimistix.rms_norm:
        return dataclasses.replace(controller, norm=rms_norm)
    if isinstance(controller, diffrax.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, controller, _of_any_size(controller.controller))
    return controller
