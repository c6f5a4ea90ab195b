"""How a fixed point is differentiated, once it is found."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax import Array, lax

from .._compat import while_loop
from .._tree import single, still
from ..core.converters import integer
from .anderson import Anderson
from .loop import fixed_point
from .precision import as_real, from_real, in_single, on_reals, rounded, spacing, uniform
from .tolerances import REDUCTION, Tolerances

FAR = 100.0  # times the tolerance: beyond it a gradient would be wrong, not just inexact
NEAR = 0.1  # of a solution: a gradient is wrong, too, where that is how far the true solution is away

Residual = Callable[[Any, Any], Any]


class Point(NamedTuple):
    """A solution, and what is known of how it was found.

    `contracts`: by the plain iteration, whose Jacobian then contracts. `rounding` is that of the residual, relative to
    the solution, where it is known.
    """

    value: Any
    okay: Array
    tolerances: Tolerances
    contracts: bool = False
    rounding: float = 0.0


class PointAdjoint(optx.AbstractAdjoint):
    """An adjoint that needs the solution only, not the way to it: memory does not grow with the number of steps.

    It is an adjoint of `optimistix.fixed_point` and, from the same rule, that of `lux.DeepEquilibrium` for every
    solver, of fixed points or not.
    """

    @abc.abstractmethod
    def attach(self, residual: Residual, point: Point, args: Any) -> Any:
        """The solution with derivatives by `args`, where `residual(y, args)` is zero (`f(y) - y` for fixed points).

        `residual` must not close over traced arrays.
        """

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        stopped = still(inputs)
        root, residual = primal_fn((*stopped, while_loop))
        arrays, static = eqx.partition(inputs, eqx.is_array)
        kept, kept_static = eqx.partition(residual, eqx.is_array)

        def rewritten(y, args):
            arrays, kept = args
            return rewrite_fn(y, eqx.combine(kept, kept_static), eqx.combine(arrays, static))

        okay = residual[1] == optx.RESULTS.successful
        return self.attach(rewritten, found_by(inputs[1], root, okay), (arrays, kept)), residual


def found_by(solver: Any, root: Any, okay: Array, tolerances: Tolerances | None = None) -> Point:
    """The solution of a fixed-point solver or a root finder; `tolerances` are its own, where none are given."""
    return Point(
        root,
        okay,
        tolerances or Tolerances.of(solver),
        contracts=isinstance(solver, optx.FixedPointIteration),
        rounding=4 * spacing(root) if isinstance(solver, optx.AbstractFixedPointSolver) else 0.0,
    )


class CheckedImplicitAdjoint(PointAdjoint):
    r"""The implicit function theorem, whose failures are data.

    :math:`dy = -(\partial r / \partial y)^{-1} (\partial r / \partial p) dp` where `r(y, p) = 0`, in forward, reverse
    and second order. `optimistix.ImplicitAdjoint` returns a plausible, wrong gradient where the solve has not
    converged, and stops the program where its linear solve fails. Options:

    * `linear_solver`: any of lineax's, or `lux.FixedPointLinearSolver(...)`. `None` chooses one by size: dense for 16
      unknowns or fewer, otherwise the fixed-point iteration (with Anderson acceleration unless the fixed point was
      found by `optimistix.FixedPointIteration`).
    * `rtol`: the residual of a linear solve `A x = b` is judged by `rtol` times `max |b| + max |x|`. `None` is the
      larger one of the tolerances of the solve for the fixed point.
    * `max_steps`: the maximum number of steps of the fixed-point iteration on the linear system.
    * `on_failure`: what becomes of the gradient of a failed solve. `"flag"`: it is NaN where the residual of the solve,
      or of the linear solve, is more than a hundred times its tolerance; `"nan"`: it is NaN wherever either solve has
      not converged; `"raise"`: it raises there.

    Where `A` is nearly singular, a small residual `r` does not say that the solution is near: it is off by
    :math:`A^{-1} r`. The linear solve tells how much larger `x` is than `b`. Where a residual that grows as much is
    more than a tenth of the solution (with loose tolerances a hundred of them, and at most a half), the solve counts as
    failed, too.

    Half precision is solved for in single, complex numbers as pairs of real ones: `r` need not be holomorphic.

    >>> import jax, jax.numpy as jnp, optimistix as optx
    >>> def solve(a, steps):
    ...     solver, adjoint = optx.FixedPointIteration(1e-6, 1e-6), CheckedImplicitAdjoint()
    ...     f = lambda y, a: a * y + 1
    ...     return optx.fixed_point(f, solver, 0.0, a, max_steps=steps, throw=False, adjoint=adjoint).value
    >>> jax.grad(solve)(0.9, 256).round(), jax.grad(solve)(0.9, 5)  # optimistix.ImplicitAdjoint: 41 for the second
    (Array(100., dtype=float32, weak_type=True), Array(nan, dtype=float32, weak_type=True))
    """

    linear_solver: lx.AbstractLinearSolver | None = None
    rtol: float | None = None
    max_steps: int = eqx.field(default=256, converter=integer)
    on_failure: str = "flag"

    def __check_init__(self):
        require_on_failure(self.on_failure)

    def attach(self, residual, point, args):
        exact = self.on_failure != "flag"

        @jax.custom_jvp
        def attached(root, args, okay):
            return root

        @attached.defjvp
        def _(primals, tangents):
            root, args, okay = primals
            root = attached(root, args, okay)  # again, for derivatives of this derivative
            if self.on_failure == "raise":
                root = eqx.error_if(root, ~okay, "the solve for the fixed point has not converged")
            g, apply = jax.linearize(lambda y: residual(y, args), root)
            _, rhs = jax.jvp(lambda args: residual(root, args), (args,), (tangents[1],))
            error = point.tolerances.error(g, root)
            room = _Room(*lax.stop_gradient((error, root)), point)
            dy = self._solved(apply, jax.tree.map(jnp.negative, rhs), room)
            return root, nan_unless(okay if exact else error < FAR, dy)

        return attached(jax.tree.map(lax.stop_gradient, point.value), args, lax.stop_gradient(point.okay))

    def linear_solve(self, point: Point) -> tuple[lx.AbstractLinearSolver, float]:
        """The linear solver for the derivatives of a solution, and its tolerance."""
        leaves, rtol = jax.tree.leaves(point.value), self.rtol
        if rtol is None:
            rtol = max(point.tolerances.rtol, point.tolerances.atol, 8 * spacing(leaves))
        if self.linear_solver is not None:
            return self.linear_solver, rtol
        return choose_linear_solver(sum(leaf.size for leaf in leaves), point.contracts, rtol, self.max_steps), rtol

    def _solved(self, apply: Callable[[Any], Any], b: Any, room: "_Room") -> Any:
        """The solution of `apply(x) = b`; NaN where it is not to be trusted."""
        linear, rtol = self.linear_solve(room.point)
        limit = 2 if self.on_failure != "flag" else FAR

        def solve(apply, b):
            x, okay, of_x, of_b = solve_linear(apply, b, linear)

            def look():
                return (okay | (linear_error(apply, x, b, rtol) <= limit)) & (of_x <= room.growth() * of_b)

            good = lax.cond(okay & (of_x <= room.least_growth() * of_b), lambda: okay, look)
            if self.on_failure == "raise":
                says = "the linear solve for the gradient has not converged, or is nearly singular"
                return eqx.error_if(rounded(x, b), ~good, says)
            return nan_unless(good, rounded(x, b))

        x = lax.custom_linear_solve(on_reals(apply, b), as_real(b), solve, solve)
        return from_real(x, b)


class _Room(NamedTuple):
    """How far away from the solution `root` the true one may be, where the residual is `error` tolerances."""

    error: Array
    root: Any
    point: Point

    def growth(self) -> Array:
        """How many times larger than its right-hand side the solution of the linear equation may be.

        So much larger, too, is the shift of the solution that the residual stands for, or its rounding.
        """
        (rtol, atol, _), size = self.point.tolerances, optx.max_norm(uniform(self.root))
        residual = jnp.maximum(self.error * (atol + rtol * size), self.point.rounding * size)
        return jnp.where(residual > 0, (self._share() * size + FAR * atol) / residual, jnp.inf)

    def least_growth(self) -> Array:
        """The growth that is allowed in any case, whatever the size of the solution."""
        residual = jnp.maximum(self.error * self.point.tolerances.rtol, self.point.rounding)
        return jnp.minimum(FAR / self.error, self._share() / residual)

    def _share(self) -> float:
        return max(NEAR, min(FAR * self.point.tolerances.rtol, 0.5))


class PhantomAdjoint(PointAdjoint):
    r"""Phantom gradients: those of `steps` damped steps :math:`y \leftarrow (1 - \tau) y + \tau f(y)` at the solution.

    Cheap, and always defined, also far from convergence; not the exact gradient, of which it is the first terms of a
    damped Neumann series. `tau` is `damping`. One step, undamped, is the Jacobian-free gradient of Fung et al.

    Geng et al., "On training implicit models", NeurIPS 2021; Fung et al., "JFB", AAAI 2022. Raises `ValueError` for
    options out of range.

    >>> import jax, jax.numpy as jnp, optimistix as optx
    >>> def solve(a, steps):  # of y = a y + 1: the exact derivative by a is y / (1 - a) = 4
    ...     solver = optx.FixedPointIteration(1e-6, 1e-6)
    ...     return optx.fixed_point(lambda y, a: a * y + 1, solver, 0.0, a, adjoint=PhantomAdjoint(steps)).value
    >>> [f"{jax.grad(solve)(0.5, k):.3f}" for k in (1, 2, 5)]
    ['2.000', '3.000', '3.875']
    """

    steps: int = eqx.field(default=1, converter=integer)
    damping: float = 1.0

    def __check_init__(self):
        if self.steps < 1 or not 0 < self.damping <= 1:
            raise ValueError(f"PhantomAdjoint needs steps >= 1 and damping in (0, 1], got {self.steps}, {self.damping}")

    def attach(self, residual, point, args):
        def step(y, _):
            return jax.tree.map(lambda y, g: y + self.damping * g, y, residual(y, args)), None

        start = jax.tree.map(lax.stop_gradient, point.value)
        y, _ = lax.scan(step, start, length=self.steps)
        # The solution itself, with the derivatives of the steps after it.
        return jax.tree.map(lambda root, y: root + (y - lax.stop_gradient(y)), start, y)


def solve_linear(
    apply: Callable[[Any], Any], b: Any, linear: lx.AbstractLinearSolver
) -> tuple[Any, Array, Array, Array]:
    """The solution of `apply(x) = b`, in single precision at least, whether it is one, and the sizes of `x` and `b`."""
    wide = single(b)
    operator = lx.FunctionLinearOperator(in_single(apply, b), jax.eval_shape(lambda: wide))
    x, result, _ = linear.compute(linear.init(operator, {}), wide, {})
    of_x, of_b = (optx.max_norm(uniform(tree)) for tree in (x, wide))
    return x, (result == lx.RESULTS.successful) & jnp.isfinite(of_x + of_b), of_x, of_b


def linear_error(apply: Callable[[Any], Any], x: Any, b: Any, rtol: float) -> Array:
    """The largest residual of `apply(x) = b`, in units of `rtol (max |b| + max |x|)`.

    Where `x` is far larger than `b`, which makes any residual small beside it, the unit is smaller.
    """
    left = optx.max_norm(uniform(jax.tree.map(jnp.subtract, in_single(apply, b)(x), single(b))))
    of_x, of_b = (optx.max_norm(uniform(tree)) for tree in (x, b))
    unit = jnp.minimum(rtol * (of_b + of_x), max(10 * rtol, REDUCTION) * of_b)
    return jnp.where(left == 0, left, left / unit)


def nan_unless(good: Any, tree: Any) -> Any:
    """The tree, with NaN for every element where it is not good; by a product, whose transpose is NaN there too."""
    return jax.tree.map(lambda x: x * jnp.where(good, jnp.ones((), x.dtype), jnp.nan), tree)


def require_on_failure(choice: str) -> None:
    """Raise `ValueError` for what is no option of `on_failure`."""
    if choice not in ("flag", "nan", "raise"):
        raise ValueError(f'on_failure is "flag", "nan" or "raise", got {choice!r}')


DENSE = 16  # unknowns up to which a dense solve is the faster one (benchmarks/bench_equilibrium.py)


class FixedPointLinearSolver(lx.AbstractLinearSolver):
    r"""Solves `A x = b` as a fixed point, :math:`x = x + \omega (b - A x)`, without ever making the matrix.

    With :math:`\omega = -1`, the default of `relaxation`, it solves :math:`(J - I) x = b` by :math:`x = J x - b`: what
    `optimistix.ImplicitAdjoint` asks for at the fixed point of a function with the Jacobian `J`, and, transposed, in
    its backward pass. The plain iteration converges wherever the iteration for the fixed point does. For
    :math:`(I - J) x = b` use 1.

    `solver` is any fixed-point solver of optimistix, or `lux.Anderson` or `lux.Broyden`; `max_steps` the maximum number
    of its steps. The right-hand side is scaled to one first, so that the tolerances of `solver` are relative to its
    largest element. It is real or complex, in any precision; in half precision the sums are in single.

    Richardson, Phil. Trans. R. Soc. A 210, 1911.

    >>> import jax.numpy as jnp, lineax as lx, optimistix as optx
    >>> solver = FixedPointLinearSolver(optx.FixedPointIteration(rtol=1e-6, atol=1e-6))
    >>> adjoint = optx.ImplicitAdjoint(solver)
    >>> f = lambda y, a: a * y + 1
    >>> y = lambda a: optx.fixed_point(f, solver.solver, jnp.array(0.0), a, adjoint=adjoint).value
    >>> jax.grad(y)(0.5).round(3)  # of 1 / (1 - a)
    Array(4., dtype=float32, weak_type=True)
    """

    solver: optx.AbstractFixedPointSolver
    max_steps: int = eqx.field(default=256, converter=integer)
    relaxation: float = -1.0

    def init(self, operator, options):
        return lx.linearise(operator)

    def compute(self, state, vector, options):
        largest = optx.max_norm(uniform(vector))
        scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        b = jax.tree.map(lambda leaf: leaf / scale.astype(leaf.dtype), vector)

        def f(x, args):
            return jax.tree.map(lambda x, b, ax: x + self.relaxation * (b - ax), x, b, state.mv(x))

        start = jax.tree.map(lambda leaf: self.relaxation * leaf, b)
        sol = fixed_point(f, self.solver, start, None, self.max_steps, {"cheap": True})
        result = lx.RESULTS.where(
            sol.result == optx.RESULTS.successful, lx.RESULTS.successful, lx.RESULTS.max_steps_reached
        )
        value = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), sol.value)
        return value, result, {"num_steps": sol.stats["num_steps"], "max_steps": self.max_steps}

    def transpose(self, state, options):
        return state.transpose(), options

    def conj(self, state, options):
        return lx.conj(state), options

    def assume_full_rank(self):
        return True


def choose_linear_solver(size: Any, plain: bool, tolerance: float, max_steps: int = 256) -> lx.AbstractLinearSolver:
    """The linear solver for the gradient of a fixed point of `size` elements.

    Dense for a few; for more the fixed-point iteration on the adjoint equation, `plain` where the fixed point itself
    was found by the plain iteration, whose Jacobian then contracts, and with Anderson acceleration elsewhere.
    """
    if isinstance(size, int) and size <= DENSE:  # `jax.export` has sizes that are no integers
        return lx.LU()
    kind = optx.FixedPointIteration if plain else Anderson
    return FixedPointLinearSolver(kind(rtol=tolerance, atol=tolerance), max_steps)
