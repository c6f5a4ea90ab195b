"""Explicit Runge-Kutta steps with their stages written out."""

import functools
from typing import Any, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class _UnrolledStep:
    """`init` and `step` of an explicit Runge-Kutta solver without a loop over the stages.

    diffrax runs the stages in a checkpointed loop, whose gradient recomputes and copies. Written out they fuse, and the
    gradient of a small net is faster, for the same compile time. The numbers are the same, up to rounding.
    """

    tableau: diffrax.ButcherTableau  # of the method that it stands before

    def init(self, terms, t0, t1, y0, args):
        return terms.vf(t0, y0, args) if self._reuses_last_stage(terms, t0, t1, y0, args) else None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        tableau, control = self.tableau, terms.contr(t0, t1)
        reuse = self._reuses_last_stage(terms, t0, t1, y0, args)
        last = solver_state
        if reuse:
            if made_jump is not False:
                last = lax.cond(made_jump, lambda: terms.vf(t0, y0, args), lambda: solver_state)
            ks = [terms.prod(last, control)]
        else:
            ks = [terms.vf_prod(t0, y0, args, control)]
        y1 = y0
        for row, c in zip(tableau.a_lower, tableau.c, strict=True):
            t, y1 = t0 + float(c) * (t1 - t0), _plus(y0, row, ks)
            if reuse:
                last = terms.vf(t, y1, args)
                ks.append(terms.prod(last, control))
            else:
                ks.append(terms.vf_prod(t, y1, args, control))
        if not tableau.ssal:
            y1 = _plus(y0, tableau.b_sol, ks)
        error = _plus(None, tableau.b_error, ks)
        dense_info = {"y0": y0, "y1": y1, "k": jax.tree.map(lambda *k: jnp.stack(k), *ks)}
        return y1, error, dense_info, last, diffrax.RESULTS.successful

    def _reuses_last_stage(self, terms, t0, t1, y0, args) -> bool:
        """First same as last: the last stage is the first one of the next step."""
        return self.tableau.fsal and not terms.is_vf_expensive(t0, t1, y0, args)


def _plus(y0: Any, weights: Any, ks: list[Any]) -> Any:
    """`y0 + sum_i weights_i k_i`, without the terms of weight zero."""
    used = [(float(w), k) for w, k in zip(weights, ks, strict=True) if w != 0]
    total = jax.tree.map(lambda *k: sum(w * x for (w, _), x in zip(used, k, strict=True)), *(k for _, k in used))
    return total if y0 is None else jax.tree.map(jnp.add, y0, total)


# of the interpolation of Tsit5: `scale t (t - root) (t^2 + b t + c)`
_SCALE, _ROOT, _B, _C = np.array(
    [
        (-1.0530884977290216, 1.3299890189751412, -1.4364028541716351, 0.7139816917074209),
        (0.1017, 0, -2.1966568338249754, 1.2949852507374631),
        (2.490627285651252793, 0, -2.38535645472061657, 1.57803468208092486),
        (-16.54810288924490272, 0, -11 / 6, 0.75),
        (47.37952196281928122, 0, -1.861118501025909985, 0.791677751538864977),
        (-34.87065786149660974, 0, -28 / 15, 0.8),
        (2.5, 0, -1.6, 0.6),
    ]
).T


class _Tsit5Interpolation(diffrax.Tsit5.interpolation_cls):  # pyright: ignore[reportGeneralTypeIssues]
    """Between the ends of a step of Tsitouras (2011): diffrax's polynomials, the seven at once instead of one by one.

    A step that looks back, as with delays, evaluates them in each stage: they are then most of the program.
    """

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        still = self.t0 == self.t1
        t = jnp.where(still, 0, t0 - self.t0) / jnp.where(still, 1, self.t1 - self.t0)
        scale, root, half, rest = (np.asarray(x, t.dtype) for x in (_SCALE, _ROOT, _B / 2, _C - _B**2 / 4))
        weights = scale * t * (t - root) * ((t + half) ** 2 + rest)  # by completed squares nothing large cancels
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(lambda y, k: y + jnp.tensordot(weights, k, 1, precision="highest"), self.y0, self.k)


@functools.cache
def _unrolled_class(cls: type[diffrax.AbstractERK]) -> type[diffrax.AbstractERK]:
    own: dict[str, Any] = {"interpolation_cls": _Tsit5Interpolation} if cls is diffrax.Tsit5 else {}
    return cast(Any, type(cls))(cls.__name__, (_UnrolledStep, cls), {"__module__": __name__, **own})


def unrolled(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """The solver with its stages written out, if it is an explicit Runge-Kutta method with nothing said about its loop.

    `diffrax.Tsit5(scan_kind="checkpointed")` keeps diffrax's own loop: better where compiling the vector field is slow.
    """
    tableau = getattr(solver, "tableau", None)  # wrapped solvers have none
    if not (isinstance(solver, diffrax.AbstractERK) and isinstance(tableau, diffrax.ButcherTableau)):
        return solver
    plain = solver.scan_kind is None and type(solver).step is diffrax.AbstractERK.step
    return _unrolled_class(type(solver))() if plain else solver


def is_unrolled(solver: Any) -> bool:
    """Whether a solver has its stages written out."""
    return isinstance(solver, _UnrolledStep)


def rolled_step(solver: _UnrolledStep, term: Any, t0: Any, t1: Any, y0: Any, args: Any, last: Any) -> tuple[Any, Any]:
    """The next state and its last stage, by a loop over the stages: for where it compiles faster and hardly runs."""
    method = type(solver).__mro__[2](scan_kind="lax")
    state = None if last is None else (jnp.array(False), last)
    y1, _, _, state, _ = method.step(term, t0, t1, y0, args, state, False)
    return y1, None if last is None else state[1]
