"""EquilibriumLayer: the base of all equilibrium layers, with their options and the one way that they are solved."""

import abc
import contextlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax import Array, lax

from .._tree import all_finite, describe, is_inexact, rms_norm, single
from ..components import ComponentVector
from ..components.vector import named_like
from ..core import Constant, Layer, Wrapper, field
from ..core.container import errors_of
from ..core.converters import checks_itself, choice, count, naturals, number, optional, short
from ..core.frozen import keys_after, refuse_training, refuse_updates
from ..core.static import holds_arrays
from .accelerated import Accelerated
from .adjoints import CheckedImplicitAdjoint, PointAdjoint, found_by, nan_unless
from .cells import EquilibriumCell
from .loop import fixed_point, root_find
from .precision import as_real, from_real, has_half, on_reals, rounded, spacing, uniform, widest
from .tolerances import Tolerances, require_tolerances

_TOLERANCES = (1e-5, 1e-5)
Solver: TypeAlias = (
    optx.AbstractFixedPointSolver
    | optx.AbstractRootFinder
    | optx.AbstractLeastSquaresSolver
    | optx.AbstractMinimiser
    | diffrax.AbstractSolver
)


@checks_itself
def _solver(value: Solver | Constant | None) -> Solver | Constant | None:
    """A solver of optimistix or diffrax, or `None`."""
    value = value.value if isinstance(value, Constant) else value
    if value is not None and not isinstance(value, Solver):
        raise TypeError(
            f"expected a solver of optimistix or diffrax, such as lux.Anderson(1e-5, 1e-5), got {short(value)}"
        )
    if value is not None and not isinstance(value, diffrax.AbstractSolver):
        Tolerances.of(value)  # raises
    return Constant(value) if holds_arrays(value) else value


@checks_itself
def _adjoint(value: optx.AbstractAdjoint | str) -> optx.AbstractAdjoint | str:
    """`"auto"`, or an adjoint of optimistix."""
    if value != "auto" and not isinstance(value, optx.AbstractAdjoint):
        raise ValueError(
            f'expected "auto" or an adjoint of optimistix, such as lux.PhantomAdjoint(), got {short(value)}'
        )
    return value


class Found(NamedTuple):
    """A solution and how it was found; `residual` is `None` where the solver does not say it."""

    value: Any
    okay: Array
    steps: Array
    evaluations: Array
    residual: Array | None = None


Args = tuple[Any, Any, Any]  # the prepared input, the parameters and the state of the inner layer


class EquilibriumLayer(Layer, kw_only=True):
    r"""The base of all equilibrium layers: the options of a solve, and the solve.

    The options, all by keyword; option objects are those of optimistix and diffrax:

    * `solver`: any solver of `optimistix.fixed_point` (fixed-point iteration, root finders, least squares, minimizers;
      `lux.Anderson`, `lux.Broyden`), with tolerances of its own; a diffrax solver, for pseudo-transient continuation:
      the equation `dz/dt = f(z) - z` until it is steady; or `None`, the layer's default, with `rtol` and `atol`.
    * `rtol`, `atol`: tolerances of the default solver and of diffrax's.
    * `max_steps`: the maximum number of steps of a solve.
    * `adjoint`: how the solution is differentiated. `"auto"` is `lux.CheckedImplicitAdjoint(on_failure=on_failure)`;
      `lux.PhantomAdjoint(steps, damping)` is cheap and inexact; `optimistix.RecursiveCheckpointAdjoint()`
      differentiates the iteration itself (optimistix's solvers only).
    * `on_failure`: what becomes of a solve that has not converged. `"flag"`: the last iterate, flagged in the state,
      and a NaN gradient where the residual is more than a hundred times the tolerance; `"nan"`: NaN, value and
      gradient; `"raise"`: an error.
    * `batching`: with `"joint"` a batch is one large equation with common steps; with `"vmap"` the samples along the
      first axis are solved independently, and one that diverges leaves the others as they are.
    * `batch_shape`: the leading axes of the input, for what the state keeps for each sample: with `batching="vmap"` the
      statistics of the solve, which are otherwise the worst of the batch.
    * `on_state_update`: `"raise"`, or `"discard"`: one frozen state for the whole solve, with its random keys renewed
      in the state that is returned.

    A solution in half precision is computed in single, with inputs and parameters, and rounded at the end. Integer
    inputs are passed on as they are. A batch of no samples has a solution of no samples, and gradients of zero.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux, optimistix as optx
    >>> layer = lux.DeepEquilibrium(lambda zx: 0.5 * jnp.cos(zx[0]) + zx[1], solver=optx.Newton(1e-6, 1e-6))
    >>> isinstance(layer, lux.EquilibriumLayer), isinstance(layer.replace(max_steps=20), lux.DeepEquilibrium)
    (True, True)
    >>> z, st = layer(jnp.zeros(3), *lux.setup(jax.random.key(0), layer))
    >>> f"{z[0]:.3f}", st["stats"]["converged"]
    ('0.450', Array(True, dtype=bool))
    """

    inner: ClassVar[str]
    """The field of the layer whose equilibrium it is."""
    is_root: ClassVar[bool]
    """Whether the output of the inner layer is to be zero, or else to be what it was called with."""

    solver: Solver | Constant | None = field(default=None, converter=_solver)
    rtol: float = field(default=_TOLERANCES[0], converter=number)
    atol: float = field(default=_TOLERANCES[1], converter=number)
    max_steps: int = field(default=100, converter=count)
    adjoint: optx.AbstractAdjoint | str = field(default="auto", converter=_adjoint)
    on_failure: str = field(default="flag", converter=choice("flag", "nan", "raise"))
    batching: str = field(default="joint", converter=choice("joint", "vmap"))
    batch_shape: tuple[int, ...] | None = field(default=None, converter=optional(naturals))
    on_state_update: str = field(default="raise", converter=choice("raise", "discard"))

    def __check_init__(self) -> None:
        require_tolerances(self)
        solver = self._given_solver()
        if hasattr(solver, "rtol") and (self.rtol, self.atol) != _TOLERANCES:
            raise ValueError("give the tolerances either as rtol and atol or in the solver, not both")
        if isinstance(solver, diffrax.AbstractSolver) and not isinstance(self.adjoint, PointAdjoint | str):
            raise ValueError(
                "a diffrax solver is differentiated by lux.CheckedImplicitAdjoint or lux.PhantomAdjoint only"
            )

    # --- the hooks -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def start(self, x: Any, ps: Any, st: Any) -> tuple[Any, Any, Any]:
        """The guess, the input of the inner layer, and the state after making the guess."""

    @abc.abstractmethod
    def pair(self, z: Any, x: Any) -> Any:
        """What the inner layer is called with at `z`."""

    @abc.abstractmethod
    def default_solver(self, z: Any) -> optx.AbstractIterativeSolver:
        """The solver for a solution like `z`, where none is given."""

    @abc.abstractmethod
    def linear_solver(self, z: Any) -> lx.AbstractLinearSolver | None:
        """The linear solver of the gradient of a solution like `z`; `None` is that of the adjoint."""

    @abc.abstractmethod
    def solutions(self, z0: Any, args: Args) -> tuple[tuple[Any, ...], Found]:
        """What is returned for one sample, the last of it the solution, and how that was found, by `find`."""

    @abc.abstractmethod
    def statistics(self, found: Found, z0: Any, args: Args, st: Any) -> dict[str, Array]:
        """What the state tells about a solve."""

    @abc.abstractmethod
    def finish(self, zs: tuple[Any, ...], stats: dict[str, Array], inner: Any, st: Any) -> tuple[Any, Any]:
        """The output and the state, from those of all samples; `inner` is the state of the inner layer."""

    # --- the solve -----------------------------------------------------------------------------------------------

    @final
    def forward(self, x: Any, ps: Any, st: Any) -> tuple[Any, Any]:
        z0, x, st = self.start(x, ps, st)
        inner_ps, inner_st = (ps, st) if isinstance(self, Wrapper) else (ps[self.inner], st[self.inner])

        def one(z0: Any, x: Any) -> tuple[tuple[Any, ...], dict[str, Array], Any]:
            return self._solved(z0, x, inner_ps, inner_st, st)

        if self.batching == "joint":
            return self.finish(*one(z0, x), st)
        refuse_training(inner_st)
        _require_samples(z0, x)
        return self.finish(*jax.vmap(one, out_axes=(0, 0, None))(z0, x), st)

    def _solved(
        self, z0: Any, x: Any, ps: Any, inner_st: Any, st: Any
    ) -> tuple[tuple[Any, ...], dict[str, Array], Any]:
        """Of one sample: what is returned, the statistics, and the state of the inner layer."""
        args = self._prepared(x, ps, inner_st)
        z0 = fitting_guess(lambda z: self.output(z, args), z0)
        like = jax.eval_shape(lambda: z0)
        after = self._after(z0, x, args)
        if has_half(z0):
            z0, *inputs = single((z0, x, ps, inner_st))
            args = self._prepared(*inputs)
        zs, found = self.solutions(z0, args)
        stats = self.statistics(found, z0, args, st)
        return tuple(rounded(z, like) for z in zs), stats, after

    def _prepared(self, x: Any, ps: Any, st: Any) -> Args:
        """What is computed once per solve, with the parameters and the state."""
        layer = self._layer()
        with self._named():
            return (layer.prepare(x, ps, st) if isinstance(layer, EquilibriumCell) else x), ps, st

    def _call(self, z: Any, args: Args) -> tuple[Any, Any]:
        """The output of the inner layer at `z`, and its next state."""
        (prepared, ps, st), layer = args, self._layer()
        with self._named():
            if isinstance(layer, EquilibriumCell):
                return layer.step(z, prepared, st)
            inputs = self.pair(z, prepared)
            try:
                return layer.forward(inputs, ps, st)
            except (TypeError, ValueError) as error:
                if type(inputs) is tuple:
                    error.add_note(f"`{self.inner}` is called with the pair (z, x), here {describe(inputs)}")
                raise

    def _after(self, z: Any, x: Any, args: Args) -> Any:
        """The state of the inner layer after a solve that has frozen it."""
        prepared, ps, st = args
        if self.on_state_update == "discard":
            with self._named():
                return keys_after(self._layer(), self.pair(z, x), ps, st)
        refuse_updates(self._layer(), lambda st: self._call(z, (prepared, ps, st))[1], st, ())
        return st

    def _layer(self) -> Layer:
        return getattr(self, self.inner)

    def _named(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if isinstance(self, Wrapper) else errors_of(self.inner, self._layer())

    @final
    def output(self, z: Any, args: Args) -> Any:
        """The output of the inner layer at `z`, with the names of `z`, and in single precision where `z` is."""
        out = self._call(z, args)[0]
        out = named_like(out, z) if isinstance(z, ComponentVector) else out
        return out if has_half(z) else single(out)

    @final
    def residual(self, z: Any, args: Args) -> Any:
        """What is zero at the equilibrium."""
        out = self.output(z, args)
        return out if self.is_root else jax.tree.map(jnp.subtract, out, z)

    @final
    def find(self, z0: Any, args: Args, adjoint: optx.AbstractAdjoint, max_steps: int) -> Found:
        """The equilibrium, from the guess `z0`, with derivatives by the adjoint."""
        if not any(leaf.size for leaf in jax.tree.leaves(z0)):
            return Found(z0, jnp.array(True), jnp.array(0), jnp.array(0), jnp.zeros(()))
        solver = self.solver_for(z0)
        if not isinstance(adjoint, PointAdjoint):
            return _finite(self._run(solver, z0, args, max_steps, adjoint))
        held, start = lax.stop_gradient((args, z0))
        found = _finite(self._run(solver, start, held, max_steps))
        judges_itself = isinstance(solver, Accelerated | optx.FixedPointIteration)
        rounding = 0.0 if self.is_root else 4 * spacing(z0)
        tolerances = self.tolerances(solver)
        if not judges_itself:
            first, last = self.residual(start, held), self.residual(found.value, held)
            okay = found.okay & tolerances.credible(first, start, last, found.value, rounding)
            found = found._replace(okay=okay, residual=tolerances.size(last))
        point = found_by(solver, found.value, found.okay, tolerances)._replace(rounding=rounding)
        return found._replace(value=adjoint.attach(self.residual, point, args))

    @final
    def marked(self, tree: Any, okay: Array) -> Any:
        """The output as `on_failure` wants it."""
        if self.on_failure == "nan":
            return nan_unless(okay, tree)
        if self.on_failure == "raise":
            says = "the equilibrium solve has not converged: allow more max_steps, or make the cell contract"
            return eqx.error_if(tree, ~okay, says)
        return tree

    @final
    def solver_for(self, z: Any) -> Any:
        """The solver, with the default filled in."""
        solver = self._given_solver()
        return self.default_solver(z) if solver is None else solver

    @final
    def adjoint_for(self, z: Any) -> optx.AbstractAdjoint:
        """The adjoint, with the default filled in."""
        if isinstance(self.adjoint, str):
            return CheckedImplicitAdjoint(self.linear_solver(z), on_failure=self.on_failure)
        return self.adjoint

    @final
    def tolerances(self, solver: Any) -> Tolerances:
        """The tolerances of the solve."""
        if isinstance(solver, diffrax.AbstractSolver):
            return Tolerances(self.rtol, self.atol)
        return Tolerances.of(solver)

    def _given_solver(self) -> Any:
        return self.solver.value if isinstance(self.solver, Constant) else self.solver

    def _run(
        self, solver: Any, z0: Any, args: Args, max_steps: int, adjoint: optx.AbstractAdjoint | None = None
    ) -> Found:
        """The solver's result; without an adjoint, inputs have no derivatives.

        All solvers but ours take real numbers only.
        """
        ours = _takes_complex(solver)
        f, y0 = (self.output, z0) if ours else (on_reals(self.output, z0), as_real(z0))
        if isinstance(solver, diffrax.AbstractSolver):
            found = self._pseudo_transient(f, solver, y0, args, max_steps)
        elif self.is_root:
            options = {"max_steps": max_steps, "adjoint": adjoint or optx.ImplicitAdjoint(), "throw": False}
            found = _found(root_find(f, solver, y0, args, **options))
        elif adjoint is None:
            found = _found(fixed_point(f, solver, y0, args, max_steps))
        else:
            found = _found(optx.fixed_point(f, solver, y0, args, max_steps=max_steps, adjoint=adjoint, throw=False))
        return found if ours else found._replace(value=from_real(found.value, z0))

    def _pseudo_transient(
        self, f: Callable[[Any, Args], Any], solver: Any, y0: Any, args: Args, max_steps: int
    ) -> Found:
        time = widest(y0)  # diffrax has one precision for all

        def rate(t: Any, y: Any, args: Args) -> Any:
            y = rounded(y, y0)
            rate = f(y, args) if self.is_root else jax.tree.map(jnp.subtract, f(y, args), y)
            return uniform(rate)

        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(rate),
            solver,
            t0=jnp.zeros((), time),
            t1=jnp.full((), jnp.inf, time),
            dt0=None,
            y0=uniform(y0),
            args=args,
            stepsize_controller=diffrax.PIDController(self.rtol, self.atol, norm=rms_norm),
            event=diffrax.Event(diffrax.steady_state_event(self.rtol, self.atol, optx.max_norm)),
            max_steps=max_steps,
            throw=False,
        )
        steps = sol.stats["num_steps"]
        stages = getattr(getattr(solver, "tableau", None), "num_stages", 1)
        value = rounded(jax.tree.map(lambda y: y[-1], sol.ys), y0)
        return Found(value, sol.result == diffrax.RESULTS.event_occurred, steps, steps * stages)


def _takes_complex(solver: Any) -> bool:
    return isinstance(solver, Accelerated)


def _found(sol: optx.Solution) -> Found:
    steps = jnp.asarray(sol.stats["num_steps"])
    residual = sol.stats["residual"].max() if "residual" in sol.stats else None
    return Found(sol.value, sol.result == optx.RESULTS.successful, steps, steps, residual)


def _finite(found: Found) -> Found:
    return found._replace(okay=found.okay & all_finite(found.value))


def fitting_guess(step: Callable[[Any], Any], z: Any) -> Any:
    """The guess in the precision that `step` returns. `ValueError` where `step` returns another structure or shape."""
    out = jax.eval_shape(step, z)
    same = jax.tree.structure(z) == jax.tree.structure(out)
    if not same or any(a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (z, out)), strict=True)):
        raise ValueError(
            f"the cell must return a `z` like the one that it gets, {describe(z)}; it returned {describe(out)} "
            "(`shape` or `initial` says what `z` is)"
        )
    fitting = rounded(z, out)
    after = jax.eval_shape(step, fitting)
    for a, b in zip(*map(jax.tree.leaves, (out, after)), strict=True):
        if a.dtype != b.dtype or not is_inexact(b):
            raise ValueError(
                f"the cell must return real or complex numbers of one precision, whatever `z` is; it returned "
                f"{describe(out)}, and for such a `z` {describe(after)}"
            )
    return fitting


def _require_samples(z0: Any, x: Any) -> None:
    """Raise `ValueError` unless all inputs have the same number of samples."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((z0, x))]
    if any(shape == () for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            'batching="vmap" solves for each sample along the first axis of all inputs, the same number in all; got '
            f"the shapes {', '.join(map(str, shapes))}"
        )
