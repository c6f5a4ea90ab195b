"""The options that all equilibrium layers share, and the solve that they describe."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax import lax

from ..core import Constant, Layer
from ..core.static import holds_arrays
from .adjoints import CheckedImplicitAdjoint, PointAdjoint, nan_unless, require_on_failure
from .anderson import Anderson

_TOLERANCES = (1e-5, 1e-5)
_SOLVERS = (
    optx.AbstractFixedPointSolver,
    optx.AbstractRootFinder,
    optx.AbstractLeastSquaresSolver,
    optx.AbstractMinimiser,
    diffrax.AbstractSolver,
)


class Found(NamedTuple):
    """A solution and how it was found; `residual` is `None` where the solver does not say it."""

    value: Any
    okay: jax.Array
    steps: jax.Array
    evaluations: jax.Array
    residual: jax.Array | None = None


class EquilibriumLayer(Layer, kw_only=True):
    """Fields that every equilibrium layer has, by keyword; option objects are those of optimistix and diffrax.

    * `solver`: any solver of `optimistix.fixed_point` (fixed-point iteration, root finders, least squares, minimisers;
      `lux.Anderson`, `lux.Broyden`), with tolerances of its own; a diffrax solver, for pseudo-transient continuation:
      the equation `dz/dt = f(z) - z` until it is steady; or `None`, the layer's default, with `rtol` and `atol`.
    * `max_steps`: the most steps of a solve.
    * `adjoint`: how the solution is differentiated. `"auto"` is `lux.CheckedImplicitAdjoint(on_failure=on_failure)`;
      `lux.PhantomAdjoint(steps, damping)` is cheap and inexact; `optimistix.RecursiveCheckpointAdjoint()`
      differentiates the iteration itself (optimistix's solvers only).
    * `on_failure`: what becomes of a solve that has not converged. `"flag"`: the last iterate, flagged in the state,
      and a NaN gradient where the residual is more than a hundred times the tolerance; `"nan"`: NaN, value and
      gradient; `"raise"`: an error.
    * `batching`: with `"joint"` a batch is one large equation with common steps; with `"vmap"` every sample along the
      first axis is solved by itself, and one that diverges leaves the others as they are.
    * `batch_shape`: the leading axes of the input, for what the state keeps for each sample: with `batching="vmap"` the
      solve's figures, which are otherwise the worst of the batch.
    * `on_state_update`: `"raise"`, or `"discard"`: one frozen state for the whole solve, with its random keys renewed
      in the state that is returned.
    """

    solver: Any = None
    rtol: float = _TOLERANCES[0]
    atol: float = _TOLERANCES[1]
    max_steps: int = 100
    adjoint: Any = "auto"
    on_failure: str = "flag"
    batching: str = "joint"
    batch_shape: int | tuple[int, ...] | None = None
    on_state_update: str = "raise"

    def __post_init__(self):
        require_on_failure(self.on_failure)
        for name, choices in {"batching": ("joint", "vmap"), "on_state_update": ("raise", "discard")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}")
        if isinstance(self.adjoint, str) and self.adjoint != "auto":
            raise ValueError(f'adjoint is "auto" or an optimistix adjoint, got {self.adjoint!r}')
        solver = self.solver.value if isinstance(self.solver, Constant) else self.solver
        if solver is not None and not isinstance(solver, _SOLVERS):
            raise TypeError(f"solver is one of optimistix or diffrax, such as lux.Anderson(1e-5, 1e-5), got {solver!r}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is one or more, got {self.max_steps}")
        own = hasattr(self.solver, "rtol")
        if own and (self.rtol, self.atol) != _TOLERANCES:
            raise ValueError("give the tolerances either as rtol and atol or in the solver, not both")
        if isinstance(self.solver, diffrax.AbstractSolver) and not isinstance(self.chosen_adjoint(), PointAdjoint):
            raise ValueError(
                "a diffrax solver is differentiated by lux.CheckedImplicitAdjoint or lux.PhantomAdjoint only"
            )
        if holds_arrays(self.solver):
            self.solver = Constant(self.solver)
        if isinstance(self.batch_shape, int):
            self.batch_shape = (self.batch_shape,)

    def chosen_adjoint(self, linear_solver: lx.AbstractLinearSolver | None = None) -> optx.AbstractAdjoint:
        """The adjoint, with the default filled in."""
        if self.adjoint != "auto":
            return self.adjoint
        return CheckedImplicitAdjoint(linear_solver, on_failure=self.on_failure)

    def chosen_solver(self, default: Callable) -> Any:
        """The solver, with the default filled in."""
        solver = self.solver.value if isinstance(self.solver, Constant) else self.solver
        return default(self.rtol, self.atol) if solver is None else solver

    def tolerances(self, solver: Any) -> Any:
        """Something with the `rtol`, `atol` and `norm` of the solve."""
        return solver if hasattr(solver, "norm") else Anderson(self.rtol, self.atol)

    def find(self, run: Callable, residual: Callable, solver: Any, y0: Any, args: Any, adjoint: Any) -> Found:
        """Solve from `y0`; `residual(y, args)` is to be zero.

        `run(solver, y0, args, adjoint)` is the solver's call; without an adjoint, its inputs have no derivatives.
        """
        if not isinstance(adjoint, PointAdjoint):
            return _found(run(solver, y0, args, adjoint))
        held, start = jax.tree.map(lax.stop_gradient, (args, y0))
        if isinstance(solver, diffrax.AbstractSolver):
            found = self._pseudo_transient(residual, solver, start, held)
        else:
            found = _found(run(solver, start, held, None))
        tolerances = self.tolerances(solver)
        return found._replace(value=adjoint.attach(residual, found.value, args, tolerances, found.okay))

    def marked(self, tree: Any, okay: jax.Array) -> Any:
        """The output as `on_failure` wants it."""
        if self.on_failure == "nan":
            return nan_unless(okay, tree)
        if self.on_failure == "raise":
            says = "the equilibrium solve has not converged: allow more max_steps, or make the cell contract"
            return eqx.error_if(tree, ~okay, says)
        return tree

    def _pseudo_transient(self, residual: Callable, solver: Any, y0: Any, args: Any) -> Found:
        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: residual(y, args)),
            solver,
            t0=0.0,
            t1=jnp.inf,
            dt0=None,
            y0=y0,
            args=args,
            stepsize_controller=diffrax.PIDController(self.rtol, self.atol),
            event=diffrax.Event(diffrax.steady_state_event(self.rtol, self.atol, optx.max_norm)),
            max_steps=self.max_steps,
            throw=False,
        )
        steps = sol.stats["num_steps"]
        stages = getattr(getattr(solver, "tableau", None), "num_stages", 1)
        value = jax.tree.map(lambda y: y[-1], sol.ys)
        return Found(value, sol.result == diffrax.RESULTS.event_occurred, steps, steps * stages)


def _found(sol: optx.Solution) -> Found:
    steps = jnp.asarray(sol.stats["num_steps"])
    residual = sol.stats["residual"].max() if "residual" in sol.stats else None
    return Found(sol.value, sol.result == optx.RESULTS.successful, steps, steps, residual)
