"""Broyden's method with limited memory."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx

from ..core.converters import integer
from .accelerated import Accelerated, combined
from .tolerances import require_tolerances


class Broyden(Accelerated):
    r"""Broyden's good method with limited memory, a solver for `optimistix.fixed_point`.

    The Jacobian of :math:`g = f(y) - y` starts as :math:`-I` and gets the rank-one updates of the last
    differences :math:`S` of `y` and :math:`\Delta F` of `f`; older ones drop out. In the compact form,

    .. math:: y_{k+1} = f_k + \Delta F (\operatorname{triu}(S^T S) - S^T \Delta F)^{-1} S^T g_k

    * `rtol`, `atol`, `norm`: a residual is small where it is at most `atol + rtol |f(y)|`, element by element, in this
      norm.
    * `history_length`: how many differences are kept.
    * `max_growth`: a step whose residual is larger by more than this factor is halved: 1 is a line search for descent,
      `jnp.inf` accepts every step.
    * `per_sample`: whether the samples along the first axis of every array have a memory, guards and convergence of
      their own.
    * `trace`: of how many steps the residuals are kept, in `stats["residuals"]`.

    More: `lux.Anderson`.

    Broyden, Math. Comp. 19, 1965; Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use
    in limited memory methods", Math. Programming 63, 1994. Raises `ValueError` for options out of range.

    >>> import jax.numpy as jnp, optimistix as optx
    >>> f = lambda y, args: 2 * y - jnp.cos(y)  # no contraction
    >>> sol = optx.fixed_point(f, Broyden(rtol=1e-5, atol=1e-5), jnp.array(1.0))
    >>> sol.value.round(4)
    Array(0.7391, dtype=float32)
    """

    rtol: float
    atol: float
    norm: Callable[..., Any] = optx.max_norm
    history_length: int = eqx.field(default=10, converter=integer)
    max_growth: float = 10.0
    per_sample: bool = False
    trace: int = eqx.field(default=0, converter=integer)

    def __check_init__(self):
        if self.history_length < 1:
            raise ValueError(f"Broyden needs a history_length of one or more, got {self.history_length}")
        require_tolerances(self)

    def difference(self, dy, dg):
        return dy

    def pairs(self, history, dx, df):
        steps, ones = history.dx.conj() @ dx, history.age == 0
        return steps - history.dx.conj() @ df, jnp.where(ones, steps, 0) - history.df @ dx.conj()

    def direction(self, history, g):
        used = jnp.diagonal(history.gram) != 0
        matrix = jnp.where(used[:, None] & used[None, :], history.gram, jnp.eye(len(used), dtype=g.dtype))
        weights = jnp.linalg.solve(matrix, jnp.where(used, history.dx.conj() @ g, 0))
        return g + combined(history.df, weights)
