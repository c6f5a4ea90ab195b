"""Linear solves for the gradients of fixed points."""

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx

from .anderson import Anderson
from .iterate import fixed_point

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
