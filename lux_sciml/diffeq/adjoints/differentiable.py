"""`diffrax.diffeqsolve`, where what adjoints cannot do is refused in one sentence, and failures stay to themselves."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ..._compat import JitKey, diffeqsolve
from ..solvers.root_finding import finding_events
from .backsolve import BacksolveAdjoint
from .discrete import DiscreteAdjoint
from .gauss import GaussAdjoint
from .implicit import ImplicitAdjoint
from .isolation import isolated
from .refusal import only, sentence_of
from .reversible import ReversibleAdjoint

_NAMES = {
    DiscreteAdjoint: "checkpointed",
    diffrax.DirectAdjoint: "direct",
    diffrax.ForwardMode: "forward",
    BacksolveAdjoint: "backsolve",
    GaussAdjoint: "gauss",
    ImplicitAdjoint: "implicit",
    ReversibleAdjoint: "reversible",
}
_REVERSE = (diffrax.RecursiveCheckpointAdjoint, diffrax.BacksolveAdjoint, GaussAdjoint)
_other_solve = JitKey()


def solved_by(solve: Callable[..., diffrax.Solution]) -> contextlib.AbstractContextManager[None]:
    """Equations inside are solved by a function that is called as `diffrax.diffeqsolve`; they are traced anew."""
    return _other_solve.holding(solve)


def differentiable_solve(
    terms: Any,
    solver: diffrax.AbstractSolver,
    t0: Any,
    t1: Any,
    dt0: Any,
    y0: Any,
    args: Any,
    *,
    adjoint: diffrax.AbstractAdjoint,
    max_steps: int | None,
    **options: Any,
) -> diffrax.Solution:
    """As `diffrax.diffeqsolve`. Derivatives stay away from where the vector field is not finite (`isolated`).

    Raises `TypeError` where it is differentiated in a mode that the adjoint does not have, and where its derivatives
    would be wrong, by complex states.
    """
    if _other_solve.value is not None:
        return _other_solve.value(terms, solver, t0, t1, dt0, y0, args, adjoint=adjoint, max_steps=max_steps, **options)
    name = _NAMES.get(type(adjoint))
    name = f"diffrax.{type(adjoint).__name__}" if name is None else f"adjoint={name!r}"
    inputs = terms, y0, args
    holds_complex = _is_complex(inputs)
    if holds_complex and _is_wrong_for_complex(adjoint, solver, y0):
        inputs = only("real", f"{name} of {type(solver).__name__}", inputs)
    bound = ", and max_steps" if max_steps is None else ""
    if isinstance(adjoint, _REVERSE):
        inputs = only("reverse", name, inputs, bound)
    terms, y0, args = inputs
    forward = isinstance(adjoint, diffrax.ForwardMode)
    unbounded = isinstance(adjoint, diffrax.DirectAdjoint) and max_steps is None
    if not forward and not isinstance(adjoint, GaussAdjoint):
        slope = -1.0 if isinstance(adjoint, diffrax.ImplicitAdjoint) else 0.0
        terms = isolated(terms, slope, with_noise=not _takes_additive_noise(solver))
    event = options.get("event")
    by = adjoint if event is None or event.root_finder is None else finding_events(adjoint)
    options.update(adjoint=by, max_steps=max_steps)
    try:
        with _without_warning() if holds_complex else contextlib.nullcontext():
            sol = diffeqsolve(terms, solver, t0, t1, dt0, y0, args, **options)
    except TypeError as error:  # where JAX meets its own refusal first, as under jit of vmap
        if isinstance(adjoint, _REVERSE) and "to a custom_vjp function" in str(error):
            raise TypeError(sentence_of("reverse", name) + bound) from error
        raise
    if unbounded:
        return only("forward", f"{name} without max_steps", sol, ", or max_steps")
    return only("forward", name, sol) if forward else sol


def _is_wrong_for_complex(adjoint: diffrax.AbstractAdjoint, solver: diffrax.AbstractSolver, y0: Any) -> bool:
    """Root finders are differentiated as if their functions were holomorphic, and diffrax solves back to conjugates."""
    if isinstance(adjoint, diffrax.BacksolveAdjoint | diffrax.ImplicitAdjoint):
        return True
    return (
        isinstance(solver, diffrax.AbstractImplicitSolver) and _is_complex(y0) and not isinstance(adjoint, GaussAdjoint)
    )


def _takes_additive_noise(solver: diffrax.AbstractSolver) -> bool:
    """Whether the solver looks at the derivative of the noise by the state, to see that there is none."""
    return isinstance(solver, diffrax.AbstractSRK) and solver.tableau.is_additive_noise()


def _is_complex(tree: Any) -> bool:
    return any(jnp.iscomplexobj(x) for x in jax.tree.leaves(tree) if eqx.is_array_like(x))


@contextlib.contextmanager
def _without_warning():
    """Without diffrax's warning of complex states: our tests compare their gradients with finite differences."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Complex dtype support in Diffrax")
        yield
