"""Differential-algebraic equations: NeuralDAE, and MassMatrixODE for a singular mass matrix."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from ...components import ComponentVector
from ...core import Constant, Container, Layer, Wrapper, as_layer, field
from ...core.converters import checks_itself, numbers, optional
from ..equation import Equation, Fields, diffeqsolve, option_object
from ..inputs import initial_array
from ..solvers.root_finding import DenseImplicitAdjoint
from ..times import save_times

_root_finder = option_object(optimistix.AbstractRootFinder, "optimistix.Newton(rtol, atol)")


class _ConstrainedEquation(Equation):
    """What the differential-algebraic equations share: a solve that starts on the constraint and is saved on it."""

    one_term: ClassVar = True
    lacks: ClassVar = dict.fromkeys(("jumps", "events"), "a jump would leave the constraint")

    root_finder: optimistix.AbstractRootFinder | Constant | None = field(
        default=None, converter=optional(_root_finder), kw_only=True
    )

    @abc.abstractmethod
    def flow(self, fields: Fields) -> "_ConstrainedFlow":
        """The equation with its algebraic variables solved for."""

    def problem(self, x, ps, st):
        problem, st = super().problem(x, ps, st)
        return problem._replace(y0=initial_array(type(self).__name__, problem.y0)), st

    def terms(self, fields):
        return diffrax.ODETerm(self.flow(fields))

    def solve(self, fields):
        flow, problem = self.flow(fields), fields.problem
        start = flow.consistent(problem.ts[0], problem.y0, fields.ps)
        sol = diffeqsolve(self, diffrax.ODETerm(flow), start, fields)
        if self.saveat is None:
            ys = jax.vmap(flow.consistent, (0, 0, None))(sol.ts, sol.ys, fields.ps)
            sol = eqx.tree_at(lambda sol: sol.ys, sol, ys)
        return sol


class NeuralDAE(Container, _ConstrainedEquation):
    r"""The solution of :math:`du/dt = f(y)`, :math:`0 = g(y)` with :math:`y = (u, z)`.

    The first `d` elements of `y`, `u`, are differential variables; the others, `z`, are algebraic ones. They must be
    determined by the constraint: :math:`\partial g / \partial z` regular, which is index 1.

    * `model`: the layer `f`, `(..., n) -> (..., d)`;
    * `constraint`: the layer `g`, `(..., n) -> (..., n - d)`, known or learned;
    * `root_finder`: any root finder of optimistix, Newton's method by default;
    * the options of `lux.Equation`.

    The algebraic variables are solved for inside the vector field, by Newton's method, and differentiated by the
    implicit function theorem. Newton starts from values that are integrated along, :math:`dz/dt = -g_z^{-1} (g_t + g_u
    f)`, so that one of several roots is followed. The algebraic part of the initial value is a guess, made consistent
    first; saved values fulfill the constraint, and with a `saveat` of your own, to the tolerances of the solve.

    Input and output are those of `NeuralODE`; `y0` is an array `(..., n)`. Where no root is found, or :math:`g_z` is
    singular, the solve fails.

    Hairer, Wanner, "Solving ordinary differential equations II", VI.1. Raises `ValueError` where the outputs of the two
    layers do not have as many elements together as `y0`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> circle = lux.Lambda(lambda y: y[..., :1] ** 2 + y[..., 1:] ** 2 - 1)
    >>> dae = lux.NeuralDAE(lux.Dense(2, 1), circle, ts=[0.0, 0.1, 0.2])
    >>> ps, st = lux.setup(jax.random.key(0), dae)
    >>> sol, st = dae(jnp.array([0.0, 0.9]), ps, st)  # the second element is a guess
    >>> bool(jnp.allclose(sol.ys[:, 0] ** 2 + sol.ys[:, 1] ** 2, 1))
    True
    """

    model: Layer = field(converter=as_layer)
    constraint: Layer = field(converter=as_layer)
    ts: Constant | None = field(default=None, converter=save_times)

    def flow(self, fields):
        y0, ts = fields.problem.y0, fields.problem.ts
        rate, constraint = fields["model"], fields["constraint"]
        rows = [jax.eval_shape(f.value, ts[0], y0, fields.ps).shape[-1] for f in (rate, constraint)]
        if sum(rows) != y0.shape[-1]:
            raise ValueError(
                f"the model and the constraint of a NeuralDAE have as many outputs as there are variables, "
                f"{y0.shape[-1]}; got {rows[0]} and {rows[1]}"
            )
        return _ConstrainedFlow(
            rate.value, constraint.value, Constant(np.eye(sum(rows))), rows[0], self.option("root_finder")
        )


@checks_itself
def _mass(value: Any) -> Constant:
    mass = numbers(value)
    shape = np.shape(mass)
    if len(shape) not in (1, 2) or shape[0] != shape[-1] or not np.any(mass):
        raise ValueError(f"expected a matrix (n, n) or a diagonal (n,), not of zeros alone; got the shape {shape}")
    return mass


class MassMatrixODE(Wrapper, _ConstrainedEquation):
    r"""The solution of :math:`M\, dy/dt = f(y)` with a constant, singular matrix `M`.

    * `model`: the layer `f`, `(..., n) -> (..., n)`;
    * `mass`: the matrix `(n, n)`, or its diagonal `(n,)`;
    * `root_finder`: any root finder of optimistix, Newton's method by default;
    * the options of `lux.Equation`.

    By the singular value decomposition of `M` this is a `NeuralDAE` in other coordinates: the rows of `f` without a
    derivative are the constraint. All that is said there holds here too. Raises `ValueError` for a mass matrix of
    another shape than `y0`, or of rank zero.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> def robertson(y):
    ...     a, b, c = y
    ...     slow, fast = 0.04 * a - 1e4 * b * c, 3e7 * b**2
    ...     return jnp.array([-slow, slow - fast, a + b + c - 1])
    >>> ode = lux.MassMatrixODE(lux.Lambda(robertson), mass=[1, 1, 0], ts=[0.0, 0.01])
    >>> sol, st = ode(jnp.array([1.0, 0.0, 0.0]), {}, {})
    >>> bool(abs(sol.ys[-1].sum() - 1) < 1e-6)
    True
    """

    model: Layer = field(converter=as_layer)
    mass: Constant = field(converter=_mass)
    ts: Constant | None = field(default=None, converter=save_times)

    def flow(self, fields):
        y0, field = fields.problem.y0, fields["model"]
        mass = np.asarray(self.mass, float)
        mass = np.diag(mass) if mass.ndim == 1 else mass
        if y0.shape[-1] != len(mass):
            raise ValueError(f"the initial value has {y0.shape[-1]} variables, the mass matrix {len(mass)}")
        left, sizes, right = np.linalg.svd(mass)
        rank = int(np.sum(sizes > sizes[0] * len(mass) * np.finfo(float).eps))
        rate = _Rows(field.value, Constant(left[:, :rank].T / sizes[:rank, None]))
        constraint = _Rows(field.value, Constant(left[:, rank:].T))
        return _ConstrainedFlow(rate, constraint, Constant(right.T), rank, self.option("root_finder"))


class _ConstrainedFlow(eqx.Module):
    """`dy/dt` of a differential-algebraic equation: `y = basis @ (u, z)` with the first `rank` variables `u`."""

    rate: Callable[..., Any]
    constraint: Callable[..., Any]
    basis: Constant
    rank: int = eqx.field(static=True)
    root_finder: Any

    def __call__(self, t: Any, y: Any, ps: Any) -> Any:
        def one(y):
            def residual(t, y):
                return jnp.asarray(self.constraint(t, y, ps))

            u, z = self._solved(t, y, ps)
            here = self._join(u, z, y)
            du = jnp.asarray(self.rate(t, here, ps))
            along = self._join(du, jnp.zeros_like(z), y)
            drift = jax.jvp(residual, (t, here), (jnp.ones_like(t), along))[1]
            slope = jax.jacfwd(lambda z: residual(t, self._join(u, z, y)))(z)
            return self._join(du, -jnp.linalg.solve(slope, drift), y)

        return _each_sample(one, y)

    def consistent(self, t: Any, y: Any, ps: Any) -> Any:
        """`y` with the algebraic variables that fulfill the constraint; NaN where they are not found."""
        return _each_sample(lambda y: self._join(*self._solved(t, y, ps), y), y)

    def _solved(self, t: Any, y: Any, ps: Any) -> tuple[Any, Any]:
        """The differential variables of one sample, and the algebraic ones that fulfill the constraint."""
        coordinates = jnp.asarray(self.basis, y.dtype).T @ jnp.asarray(y)
        u, guess = coordinates[: self.rank], jax.lax.stop_gradient(coordinates[self.rank :])
        if guess.size == 0:
            return u, guess
        tol = float(jnp.finfo(y.dtype).eps) ** (2 / 3)  # of Newton's last step; the error is about its square
        finder = optimistix.Newton(tol, tol) if self.root_finder is None else self.root_finder

        def residual(z, args):
            t, u, ps = args
            return jnp.asarray(self.constraint(t, self._join(u, z, y), ps))

        options = {"max_steps": 64, "throw": False, "adjoint": DenseImplicitAdjoint()}
        found = optimistix.root_find(residual, finder, guess, (t, u, ps), **options)
        return u, jnp.where(found.result == optimistix.RESULTS.successful, found.value, jnp.nan)

    def _join(self, u: Any, z: Any, like: Any) -> Any:
        y = jnp.asarray(self.basis, u.dtype) @ jnp.concatenate([u, z])
        return ComponentVector(y, like.layout) if isinstance(like, ComponentVector) else y


class _Rows(eqx.Module):
    """Combinations of the rows of a function's output."""

    function: Callable[..., Any]
    matrix: Constant

    def __call__(self, t, y, ps):
        return jnp.asarray(self.matrix, y.dtype) @ jnp.asarray(self.function(t, y, ps))


def _each_sample(f: Callable[[Any], Any], y: Any) -> Any:
    if jnp.size(y) == 0:
        return y
    for _ in range(y.ndim - 1):
        f = jax.vmap(f)
    return f(y)
