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
    cubic = getattr(solver.interpolation_cls, "__self__", None) is diffrax.ThirdOrderHermitePolynomialInterpolation
    adaptive = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    return DenseSolver(solver) if cubic and adaptive and solver.order(terms) > 3 else solver
