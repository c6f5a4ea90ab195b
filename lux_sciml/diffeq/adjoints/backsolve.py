"""The equation and its adjoint, solved backward together."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ..._compat import diffeqsolve, solves_backward
from .same_steps import SameSteps


class BacksolveAdjoint(diffrax.BacksolveAdjoint):
    """As `diffrax.BacksolveAdjoint`; where the solve backward fails, its gradient is NaN, and not where it has ended.

    Without a cotangent, as for a solve that has failed, the gradient is zero. `diffrax.StepTo` is reversed, and times
    may repeat. Raises `ValueError` for equations of which a solver wants the parts.
    """

    @property
    def _diffeqsolve(self) -> Callable[..., diffrax.Solution]:
        solve = super()._diffeqsolve
        solve = diffeqsolve if solve is diffrax.diffeqsolve else solve

        def marked(*, t0: Any, t1: Any, y0: Any, **options: Any) -> diffrax.Solution:
            _, *cotangents = y0
            moving = jnp.array([jnp.any(ct != 0) for ct in jax.tree.leaves(cotangents)]).any()
            if isinstance(options["stepsize_controller"], diffrax.ConstantStepSize):
                options["controller_state"] = None  # it counts the steps of one span, and there may be none in another
            sol = solve(t0=t0, t1=jnp.where(moving, t1, t0), y0=y0, **options)
            ys = jax.tree.map(lambda y: jnp.where(diffrax.is_okay(sol.result), y, jnp.nan), sol.ys)
            return eqx.tree_at(lambda sol: sol.ys, sol, ys)

        return marked

    def loop(self, *, terms, solver, stepsize_controller, **options):
        parts = isinstance(terms, diffrax.MultiTerm) and _are_ordinary(terms)
        if isinstance(terms, tuple) or (parts and solver.term_structure is not diffrax.AbstractTerm):
            name = type(solver).__name__
            raise ValueError(
                f"BacksolveAdjoint takes the equation as a whole, and {name} wants its parts: let this one have "
                "adjoint='auto'"
            )
        kwargs = dict(self.kwargs)
        if isinstance(stepsize_controller, diffrax.StepTo):
            kwargs.setdefault("stepsize_controller", SameSteps(stepsize_controller.ts))
        if not solves_backward():
            kwargs["throw"] = True
        adjoint = BacksolveAdjoint(**kwargs)
        options |= dict(terms=terms, solver=solver, stepsize_controller=stepsize_controller)
        return super(BacksolveAdjoint, adjoint).loop(**options)


def _are_ordinary(terms: diffrax.MultiTerm) -> bool:
    """Whether there is no noise, as in a stochastic equation, which is solved as a whole."""
    return all(isinstance(getattr(term, "term", term), diffrax.ODETerm) for term in terms.terms)
