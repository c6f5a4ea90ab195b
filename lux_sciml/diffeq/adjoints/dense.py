"""Steps whose dense output is as accurate as their ends."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from ..solvers.wrapped import Wrapped


class DenseSolver(Wrapped):
    """A solver, with the error of its dense output in that of its steps.

    The cubic of Kvaerno's solvers of orders four and five is coarser than their steps; where they are stiff it is much
    coarser, for the slopes at its ends have the errors of the ends times the stiffness. Its error is the difference, in
    the middle of a step, to a step that ends there.
    """

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    def init(self, terms, t0, t1, y0, args):
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1, error, info, after, result = self.solver.step(terms, t0, t1, y0, args, solver_state, made_jump)
        middle = t0 + (t1 - t0) / 2
        exact, _, _, _, found = self.solver.step(terms, t0, middle, y0, args, solver_state, made_jump)
        dense = self.interpolation_cls(t0=t0, t1=t1, **info).evaluate(middle)

        def larger(error: jax.Array, exact: jax.Array, dense: jax.Array) -> jax.Array:
            missed = jnp.where(diffrax.is_okay(found), jnp.abs(exact - dense), jnp.inf)
            return jnp.maximum(jnp.abs(error), missed)

        return y1, jax.tree.map(larger, error, exact, dense), info, after, result


def with_dense_error(solver: Any, terms: Any, controller: Any) -> Any:
    """A `DenseSolver`, where the error of the steps is controlled and the dense output is coarser than they are."""
    return DenseSolver(solver) if _coarse(solver, terms, controller, order=3) else solver


def ending_at(ts: list[Any], max_steps: int | None, solver: Any, terms: Any, controller: Any) -> Any:
    """The controller, whose steps end at the saved times too, where values between them would miss the tolerances.

    Steps of `Kvaerno5` are so large that its cubic has there 40 to 200 times the error that was asked for (those of
    `Kvaerno4` are not, nor those with `VeryChord`, as diffrax takes them). Times that would need more than half of
    `max_steps` stay in between.
    """
    count, small = sum(len(each) for each in ts), isinstance(getattr(solver, "root_finder", None), diffrax.VeryChord)
    if not count or small or not _coarse(solver, terms, controller, order=4) or (max_steps and count > max_steps // 2):
        return controller
    return diffrax.ClipStepSizeController(controller, step_ts=jnp.concatenate([jnp.asarray(each) for each in ts]))


def _coarse(solver: Any, terms: Any, controller: Any, order: int) -> bool:
    """Whether the dense output is a cubic, of steps of an order above `order`, whose error is controlled."""
    cubic = getattr(solver.interpolation_cls, "__self__", None) is diffrax.ThirdOrderHermitePolynomialInterpolation
    adaptive = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    return cubic and adaptive and solver.order(terms) > order
