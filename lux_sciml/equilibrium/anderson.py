"""Anderson acceleration."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Inexact

from ..core.converters import integer
from .accelerated import Accelerated, combined
from .tolerances import require_tolerances


class Anderson(Accelerated):
    r"""Anderson acceleration of the fixed-point iteration, a solver for `optimistix.fixed_point`.

    With :math:`g = f(y) - y` and the differences :math:`\Delta G, \Delta F` of the last evaluations,

    .. math::
        y_{k+1} = (1 - d) f_k + d\, y_k - (\Delta F - d\, \Delta G) \gamma, \quad
        \gamma = (\Delta G^T \Delta G + \lambda \tfrac{\operatorname{tr}(\Delta G^T \Delta G)}{m} I)^{-1}
        \Delta G^T g_k,

    * `rtol`, `atol`, `norm`: a residual is small where it is at most `atol + rtol |f(y)|`, element by element, in this
      norm.
    * `history_length`: `m`, how many differences are kept.
    * `damp`: `d`, the weight of the old iterate, as in `optimistix.FixedPointIteration`.
    * `regularization`: :math:`\lambda`. It is relative, since an absolute one outgrows :math:`\Delta G^T \Delta G` near
      the solution and turns the method into averaging. `None` is 1e-10 in double and 1e-7 in single precision.
    * `max_growth`: a step whose residual is larger by more than this factor is halved (`jnp.inf`: never).
    * `per_sample`: whether the samples along the first axis of every array have weights, guards and convergence of
      their own; otherwise all elements share them.
    * `trace`: of how many steps the residuals are kept, in `stats["residuals"]`.

    Trees, real and complex, are solved for in any precision. Where iterates run away, as they do where the Jacobian of
    `f` has an eigenvalue of one and there is no fixed point, any residual gets small beside them: of `rtol |f(y)|` no
    more counts than a hundredth of the root mean square of the first `f(y)`. `stats` has, for each sample, `residual`
    (the norm of `f(y) - y` at the result, the iterate where it is lowest) and `converged`.

    Anderson, J. ACM 12, 1965; Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal.
    49, 2011. Raises `ValueError` for options out of range.

    >>> import jax.numpy as jnp, optimistix as optx
    >>> f = lambda y, rates: rates * y + 1
    >>> sol = optx.fixed_point(f, Anderson(rtol=1e-4, atol=1e-4), jnp.zeros(3), args=jnp.array([0.5, 0.9, 0.99]))
    >>> sol.value.round(), int(sol.stats["num_steps"]) < 20
    (Array([  2.,  10., 100.], dtype=float32), True)
    """

    rtol: float
    atol: float
    norm: Callable[..., Any] = optx.max_norm
    history_length: int = eqx.field(default=6, converter=integer)
    damp: float = 0.0
    regularization: float | None = None
    max_growth: float = 10.0
    per_sample: bool = False
    trace: int = eqx.field(default=0, converter=integer)

    def __check_init__(self):
        if self.history_length < 1:
            raise ValueError(f"Anderson needs a history_length of one or more, got {self.history_length}")
        require_tolerances(self)
        if not 0 <= self.damp < 1:
            raise ValueError(f"damp is the weight of the old iterate, in [0, 1), got {self.damp}")
        if self.regularization is not None and self.regularization < 0:
            raise ValueError(f"regularization is relative and not negative, got {self.regularization}")

    def difference(self, dy, dg):
        return dg

    def pairs(self, history, dx, df):
        column = history.dx.conj() @ dx
        return column, column.conj()

    def direction(self, history, g):
        relative = self.regularization
        if relative is None:
            relative = 1e-10 if jnp.finfo(g.dtype).bits >= 64 else 1e-7
        shift = relative * jnp.trace(history.gram).real / self.history_length
        weights = _solve(history.gram, shift, history.dx.conj() @ g)
        past = combined(history.df, weights)
        if self.damp == 0:
            return g - past
        return (1 - self.damp) * g - past + self.damp * combined(history.dx, weights)


def _solve(gram: Inexact[Array, "m m"], shift: Array, rhs: Inexact[Array, " m"]) -> Inexact[Array, " m"]:
    """The solution of `(gram + shift I) x = rhs` by Cholesky's method, and zero where a column is zero.

    Written out element by element, it is a loop over the samples for the compiler, where LAPACK is called for each. No
    pivot is less than `shift` but by rounding.
    """
    m = len(rhs)
    used = jnp.diagonal(gram).real > 0
    lower: list[list[Array]] = []
    y: list[Array] = []
    for i in range(m):
        row: list[Array] = []
        for j in range(i):
            row.append((gram[i, j] - _dot(row, lower[j][:j])) / lower[j][j])
        pivot = jnp.maximum(gram[i, i].real + shift - jnp.real(_dot(row, row)), shift)
        row.append(jnp.sqrt(jnp.where(used[i], pivot, 1)).astype(gram.dtype))
        y.append((rhs[i] - _dot(row[:i], [x.conj() for x in y])) / row[i])
        lower.append(row)
    x = y
    for i in reversed(range(m)):
        x[i] = (y[i] - _dot(x[i + 1 :], [lower[k][i] for k in range(i + 1, m)])) / lower[i][i]
    return jnp.stack(x)


def _dot(a: list[Array], b: list[Array]) -> Array | float:
    return sum((x * y.conj() for x, y in zip(a, b, strict=True)), start=0.0)
