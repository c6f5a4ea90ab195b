"""Symplectic solvers for Hamiltonians that separate, with diffrax's interface."""

from typing import ClassVar

import diffrax
import jax


class _Splitting(diffrax.AbstractSolver):
    """Drifts and kicks in turn: `q += c h v(p)`, then `p += d h f(q)`, for each pair of coefficients."""

    term_structure: ClassVar = (diffrax.AbstractTerm, diffrax.AbstractTerm)
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation
    drifts: ClassVar[tuple[float, ...]]
    kicks: ClassVar[tuple[float, ...]]

    def init(self, terms, t0, t1, y0, args):
        return self.func(terms, t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        velocity, force = terms
        q, p = y0
        h, h_v, h_f = t1 - t0, velocity.contr(t0, t1), force.contr(t0, t1)
        time_q = time_p = t0
        for c, d in zip(self.drifts, self.kicks, strict=True):
            q = _plus(q, c, velocity.vf_prod(time_p, p, args, h_v))
            time_q += c * h
            if d:
                p = _plus(p, d, force.vf_prod(time_q, q, args, h_f))
                time_p += d * h
        y1 = (q, p)
        after = self.func(terms, t1, y1, args)  # for the interpolation; kept as the start of the next step
        k0, k1 = ((velocity.prod(v, h_v), force.prod(f, h_f)) for v, f in (solver_state, after))
        return y1, None, {"y0": y0, "y1": y1, "k0": k0, "k1": k1}, after, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        velocity, force = terms
        q, p = y0
        return velocity.vf(t0, p, args), force.vf(t0, q, args)


class Verlet(_Splitting):
    r"""The Störmer-Verlet or leapfrog method: symplectic, reversible, of second order, with fixed steps.

    For :math:`H(q, p) = T(p) + V(q)`. As for `diffrax.SemiImplicitEuler` the terms are the pair of the velocity,
    :math:`\nabla T(p)`, and the force, :math:`-\nabla V(q)`, and the state is the pair `(q, p)`. The energy oscillates
    by :math:`O(h^2)` and does not drift. Values between steps come from cubic Hermite interpolation.

    Hairer, Lubich, Wanner, "Geometric numerical integration", 2006, I.1.4.

    >>> import diffrax, jax.numpy as jnp, lux_sciml as lux
    >>> terms = diffrax.ODETerm(lambda t, p, args: p), diffrax.ODETerm(lambda t, q, args: -q)
    >>> sol = diffrax.diffeqsolve(terms, lux.Verlet(), 0.0, 100.0, 0.1, (jnp.array(1.0), jnp.array(0.0)))
    >>> q, p = sol.ys
    >>> bool(abs(q**2 + p**2 - 1) < 0.01)
    True
    """

    drifts: ClassVar = (0.5, 0.5)
    kicks: ClassVar = (1.0, 0.0)

    def order(self, terms):
        return 2


_OUTER = 1 / (2 - 2 ** (1 / 3))
_INNER = 1 - 2 * _OUTER


class Yoshida4(_Splitting):
    r"""Three Verlet steps, the middle one backward, for fourth order; the rest is as for `lux.Verlet`.

    The energy oscillates by :math:`O(h^4)`. Yoshida, "Construction of higher order symplectic integrators", Physics
    Letters A 150, 1990; Forest, Ruth, Physica D 43, 1990.

    >>> import diffrax, jax.numpy as jnp, lux_sciml as lux
    >>> terms = diffrax.ODETerm(lambda t, p, args: p), diffrax.ODETerm(lambda t, q, args: -q)
    >>> sol = diffrax.diffeqsolve(terms, lux.Yoshida4(), 0.0, 100.0, 0.1, (jnp.array(1.0), jnp.array(0.0)))
    >>> q, p = sol.ys
    >>> bool(abs(q**2 + p**2 - 1) < 1e-4)
    True
    """

    drifts: ClassVar = (_OUTER / 2, (_OUTER + _INNER) / 2, (_OUTER + _INNER) / 2, _OUTER / 2)
    kicks: ClassVar = (_OUTER, _INNER, _OUTER, 0.0)

    def order(self, terms):
        return 4


def _plus(y, coefficient, step):
    return jax.tree.map(lambda y, dy: y + coefficient * dy, y, step)
