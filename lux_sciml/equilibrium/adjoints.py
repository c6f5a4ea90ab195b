"""How a fixed point is differentiated, once it is found."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax import lax

from .._compat import while_loop
from .accelerated import fixed_point
from .anderson import Anderson

FAR = 100.0  # times the tolerance: beyond it a gradient would be wrong, not just inexact


class PointAdjoint(optx.AbstractAdjoint):
    """An adjoint that needs the solution only, not the way to it: memory does not grow with the number of steps.

    It is an adjoint of `optimistix.fixed_point` and, from the same rule, that of `lux.DeepEquilibrium` for every
    solver, of fixed points or not.
    """

    @abc.abstractmethod
    def attach(self, residual: Callable[[Any, Any], Any], root: Any, args: Any, solver: Any, okay: Any) -> Any:
        """`root` with derivatives by `args`, where `residual(root, args)` is zero (`f(y) - y` for fixed points).

        `solver` says the tolerances (`rtol`, `atol`, `norm`), `okay` whether the solve has succeeded. `residual` must
        not close over traced arrays.
        """

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        loop = (while_loop,)
        stopped = jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x, inputs)
        root, residual = primal_fn(stopped + loop)
        arrays, static = eqx.partition(inputs, eqx.is_array)
        kept, kept_static = eqx.partition(residual, eqx.is_array)

        def rewritten(y, args):
            arrays, kept = args
            return rewrite_fn(y, eqx.combine(kept, kept_static), eqx.combine(arrays, static))

        okay = residual[1] == optx.RESULTS.successful
        return self.attach(rewritten, root, (arrays, kept), inputs[1], okay), residual


class CheckedImplicitAdjoint(PointAdjoint):
    r"""The implicit function theorem, whose failures are data.

    :math:`dy = -(\partial r / \partial y)^{-1} (\partial r / \partial p) dp` where `r(y, p) = 0`, in forward, reverse
    and second order. `optimistix.ImplicitAdjoint` returns a plausible, wrong gradient where the solve has not
    converged, and stops the program where its linear solve fails. Here, with `on_failure`,

    * `"flag"`: the gradient is NaN where the residual of the solve, or of the linear solve, is more than a hundred
      times its tolerance;
    * `"nan"`: it is NaN wherever either solve has not converged;
    * `"raise"`: it raises there.

    `linear_solver` is any of lineax's, `lux.FixedPointLinearSolver(...)` or, with `None`, chosen by size: dense for 16
    unknowns or fewer, otherwise the fixed-point iteration (with Anderson acceleration unless the fixed point was found
    by `optimistix.FixedPointIteration`). The residual of a linear solve `A x = b` is judged by `rtol` times
    `max |b| + max |x|`; `rtol=None` is the larger one of the tolerances of the solve for the fixed point.

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
    max_steps: int = 256
    on_failure: str = "flag"

    def __check_init__(self):
        require_on_failure(self.on_failure)

    def attach(self, residual, root, args, solver, okay):
        linear, rtol = self.linear_solve(root, solver)
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
            converged = okay if exact else relative_error(solver, g, root) < FAR
            minus = jax.tree.map(jnp.negative, rhs)
            dy = lax.custom_linear_solve(apply, minus, *2 * (self._checked(linear, rtol),))
            return root, nan_unless(converged, dy)

        return attached(jax.tree.map(lax.stop_gradient, root), args, lax.stop_gradient(okay))

    def linear_solve(self, root: Any, solver: Any) -> tuple[lx.AbstractLinearSolver, float]:
        """The linear solver for a solution like `root`, found by `solver`, and its tolerance."""
        leaves, rtol = jax.tree.leaves(root), self.rtol
        if rtol is None:
            rtol = max(solver.rtol, solver.atol, *(8 * float(jnp.finfo(leaf.dtype).eps) for leaf in leaves))
        if self.linear_solver is not None:
            return self.linear_solver, rtol
        size, plain = sum(leaf.size for leaf in leaves), isinstance(solver, optx.FixedPointIteration)
        return choose_linear_solver(size, plain, rtol, self.max_steps), rtol

    def _checked(self, linear: lx.AbstractLinearSolver, rtol: float) -> Callable:
        def solve(apply, b):
            x, error = solve_and_check(apply, b, linear, rtol, trust=True)
            limit = 2 if self.on_failure != "flag" else FAR
            if self.on_failure == "raise":
                return eqx.error_if(x, ~(error <= limit), "the linear solve for the gradient has not converged")
            return nan_unless(error <= limit, x)

        return solve


class PhantomAdjoint(PointAdjoint):
    r"""Phantom gradients: those of `steps` damped steps :math:`y \leftarrow (1 - \tau) y + \tau f(y)` at the solution.

    Cheap, and always defined, also far from convergence; not the exact gradient, of which it is the first terms of a
    damped Neumann series. `tau` is `damping`. One step, undamped, is the Jacobian-free gradient of Fung et al.

    Geng et al., "On training implicit models", NeurIPS 2021; Fung et al., "JFB", AAAI 2022.

    >>> import jax, jax.numpy as jnp, optimistix as optx
    >>> def solve(a, steps):  # of y = a y + 1: the exact derivative by a is y / (1 - a) = 4
    ...     solver = optx.FixedPointIteration(1e-6, 1e-6)
    ...     return optx.fixed_point(lambda y, a: a * y + 1, solver, 0.0, a, adjoint=PhantomAdjoint(steps)).value
    >>> [f"{jax.grad(solve)(0.5, k):.3f}" for k in (1, 2, 5)]
    ['2.000', '3.000', '3.875']
    """

    steps: int = 1
    damping: float = 1.0

    def __check_init__(self):
        if self.steps < 1 or not 0 < self.damping <= 1:
            raise ValueError(f"PhantomAdjoint needs steps >= 1 and damping in (0, 1], got {self.steps}, {self.damping}")

    def attach(self, residual, root, args, solver, okay):
        def step(y, _):
            return jax.tree.map(lambda y, g: y + self.damping * g, y, residual(y, args)), None

        start = jax.tree.map(lax.stop_gradient, root)
        y, _ = lax.scan(step, start, length=self.steps)
        # The solution itself, with the derivatives of the steps after it.
        return jax.tree.map(lambda root, y: root + (y - lax.stop_gradient(y)), start, y)


def relative_error(solver: Any, g: Any, root: Any) -> jax.Array:
    """The residual in units of the solver's tolerances."""
    return solver.norm(jax.tree.map(lambda g, y: g / (solver.atol + solver.rtol * jnp.abs(y)), g, root))


def solve_and_check(apply: Callable, b: Any, linear: Any, rtol: float, trust: bool) -> tuple[Any, jax.Array]:
    """The solution of `apply(x) = b`, and its largest residual in units of `rtol (max |b| + max |x|)`.

    With `trust` the residual is 0, and not computed, where the solver says that it has succeeded.
    """
    structure = jax.eval_shape(lambda: b)
    operator = lx.FunctionLinearOperator(apply, structure)
    x, result, _ = linear.compute(linear.init(operator, {}), b, {})
    size = optx.max_norm(b) + optx.max_norm(x)

    def error():
        left = optx.max_norm(jax.tree.map(jnp.subtract, apply(x), b))
        return jnp.where(left == 0, left, left / (rtol * size))

    if not trust:
        return x, error()
    return x, lax.cond((result == lx.RESULTS.successful) & jnp.isfinite(size), lambda: jnp.zeros_like(size), error)


def nan_unless(good: Any, tree: Any) -> Any:
    """The tree, with NaN for every number where it is not good; by a product, whose transpose is NaN there too."""
    return jax.tree.map(lambda x: x * jnp.where(good, jnp.ones((), x.dtype), jnp.nan), tree)


def require_on_failure(choice: str) -> None:
    if choice not in ("flag", "nan", "raise"):
        raise ValueError(f'on_failure is "flag", "nan" or "raise", got {choice!r}')


DENSE = 16  # unknowns up to which a dense solve is the faster one (benchmarks/bench_equilibrium.py)


class FixedPointLinearSolver(lx.AbstractLinearSolver):
    r"""Solves `A x = b` as a fixed point, :math:`x = x + \omega (b - A x)`, without ever making the matrix.

    `solver` is any fixed-point solver of optimistix, or `lux.Anderson` or `lux.Broyden`. With :math:`\omega = -1`, the
    default of `relaxation`, it solves :math:`(J - I) x = b` by :math:`x = J x - b`: what `optimistix.ImplicitAdjoint`
    asks for at the fixed point of a function with the Jacobian `J`, and, transposed, in its backward pass. The plain
    iteration converges wherever the iteration for the fixed point does. For :math:`(I - J) x = b` use 1.

    The right-hand side is scaled to one first, so that the tolerances of `solver` are relative to its largest number.
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
    max_steps: int = 256
    relaxation: float = -1.0

    def init(self, operator, options):
        return lx.linearise(operator)

    def compute(self, state, vector, options):
        largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(vector)]).max()
        scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        b = jax.tree.map(lambda leaf: leaf / scale.astype(leaf.dtype), vector)

        def f(x, args):
            return jax.tree.map(lambda x, b, ax: x + self.relaxation * (b - ax), x, b, state.mv(x))

        start = jax.tree.map(lambda leaf: self.relaxation * leaf, b)
        sol = fixed_point(f, self.solver, start, None, self.max_steps)
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


def choose_linear_solver(size: int, plain: bool, tolerance: float, max_steps: int = 256) -> lx.AbstractLinearSolver:
    """The linear solver for the gradient of a fixed point of `size` numbers.

    Dense for a few; for more the fixed-point iteration on the adjoint equation, `plain` where the fixed point itself
    was found by the plain iteration, whose Jacobian then contracts, and with Anderson acceleration elsewhere.
    """
    if size <= DENSE:
        return lx.LU()
    kind = optx.FixedPointIteration if plain else Anderson
    return FixedPointLinearSolver(kind(rtol=tolerance, atol=tolerance), max_steps)
