"""Reverse mode in constant memory: steps of explicit methods that can be undone."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ..._tree import is_none
from ..solvers.runge_kutta import unrolled
from ..solvers.wrapped import Wrapped
from .discrete import DiscreteAdjoint, unfit
from .record import StepRecord, any_sample


class ReversibleAdjoint(DiscreteAdjoint):
    r"""Reverse mode in memory that does not grow with the steps: on the way back each step is undone.

    Beside the state y there is a second one, z, both from the initial value, and a step :math:`\Phi_h` of the solver
    becomes a step of the pair, of the solver's order, that has an inverse in closed form:

    .. math::
        y_{n+1} = \Phi_h(t_n, z_n) + \lambda (y_n - z_n), \qquad
        z_{n+1} = z_n + y_{n+1} - \Phi_{-h}(t_{n+1}, y_{n+1})

    The gradient is that of this discrete solution, up to rounding. A step costs two of the solver's, and the last stage
    of one is not the first of the next; on the way back too there are two, and their products. Kept are one number for
    each of `max_steps`, the time at which it ended, so that steps may be adaptive, and `anchors` states. Options, by
    keyword:

    * `coupling`: the :math:`\lambda`, above 0 and at most 1. The difference of the two states is damped by it in each
      step, and grows where the solution contracts: with the default the solution is less accurate there than the
      solver's own. By how much it grows in a step counts as an error, so that strong contraction takes small steps
      where they adapt, or ends at `max_steps`. Undoing n steps multiplies rounding errors by :math:`\lambda^{-n}`.
    * `anchors`: the pairs that are held on the way, evenly over the steps, and replace what was undone. So rounding
      errors grow over the steps between two of them only, in float32 too, and a smaller `coupling` may do. Where half
      of the digits are lost on the way to one of them, the gradient is NaN.

    It takes explicit Runge-Kutta methods, such as `diffrax.Tsit5()`, and `diffrax.Euler()`, for ordinary and controlled
    differential equations, saved at times or at the end, with the steps of `diffrax.PIDController`,
    `ConstantStepSize` or `StepTo`; all else raises `ValueError` with what it does not take. Gradients by the
    times themselves are diffrax's, with its checkpoints.

    McCallum and Foster, "Efficient, accurate and stable gradients for neural ODEs", 2024.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.NeuralODE(lux.Dense(2, 2), ts=[0.0, 1.0], output="final", adjoint="reversible")
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> jax.grad(lambda ps: node(jnp.ones(2), ps, st)[0].sum())(ps).size
    6
    """

    name: ClassVar[str] = "reversible"

    coupling: float = eqx.field(static=True, default=0.999)
    anchors: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if not 0 < self.coupling <= 1:
            raise ValueError(f"the coupling of a ReversibleAdjoint is above 0 and at most 1, got {self.coupling}")
        if not self.anchors >= 1:
            raise ValueError(f"a ReversibleAdjoint holds at least one anchor, the start, got {self.anchors}")

    def record(self, state, max_steps):
        return StepRecord.start(state, max_steps, min(self.anchors, max_steps))

    def kept(self, record, end):
        return end, jnp.array(False), _size(end)

    def state(self, record, i, begin, kept, advance):
        return kept[0], kept

    def undone(self, record, i, state, kept):
        """The anchor in place of the states that were undone; whether half of the digits were lost on the way to one.

        They are digits of the largest state since the anchor before: one alone may be zero.
        """
        anchor, size = record.held_at(i, state), jnp.maximum(kept[2], _size(state))
        lost = _size(jax.tree.map(jnp.subtract, state, anchor))
        far = (lost > math.sqrt(jnp.finfo(lost.dtype).eps) * size) & (i >= 0)  # at its start a sample waits for others
        return anchor, kept[1] | far, jnp.where(jnp.any(record.held == i), _size(anchor), size)

    def checked(self, kept, used, grads):
        lost = any_sample(kept[1] & used)
        return jax.tree.map(lambda g: jnp.where(lost, jnp.nan, g), grads)

    def step(self, solver, static, dense, params, y, k, t0, t1):
        """A step of the solver itself."""
        term, args = eqx.combine(*params, static)
        y, _, info, _ = solver.plain_step(term, t0, t1, y, args)
        return y, None, info if dense else None

    def product(self, solver, step, params, primal, cts):
        """From the states after a step: its product, and the states before it."""
        (y1, z1, t0, t1), (ct_y, ct_z, ct_info) = primal, cts

        def taken(x, start, end):
            return jax.vjp(lambda moved, x: step((moved, params[1]), x, None, start, end), params[0], x)

        def plus(*trees):
            return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *trees)

        def minus(a, b):
            return jax.tree.map(jnp.subtract, a, b)

        (back, _, of_back), pull_back = taken(y1, t1, t0)
        z0 = plus(minus(z1, y1), back)
        (there, _, _), pull = taken(z0, t0, t1)
        y0 = jax.tree.map(lambda z, y1, there: z + (y1 - there) / self.coupling, z0, y1, there)

        grads_back, ct_back = pull_back((ct_z, None, jax.tree.map(jnp.zeros_like, of_back)))
        ct_y = minus(plus(ct_y, ct_z), ct_back)
        inner, ct_gap = (None, None) if ct_info is None else (ct_info["info"], ct_info["gap"])
        grads, ct_there = pull((ct_y, None, inner))
        gap = jax.tree.map(lambda ct: self.coupling * ct, ct_y)
        gap = gap if ct_gap is None else plus(gap, ct_gap)
        return minus(grads, grads_back), gap, plus(minus(ct_z, gap), ct_there), y0, z0

    def takes(self, solver):
        return isinstance(solver, Reversible)

    def loop(self, *, terms, solver, stepsize_controller, event, saveat, init_state, max_steps, **options):
        solver = unrolled(solver)
        refused = self._refused(solver, options) or unfit(
            terms, stepsize_controller, event, saveat, max_steps, options["progress_meter"]
        )
        if refused is not None:
            raise ValueError(f"adjoint='reversible' takes {refused}: let this equation have adjoint='auto'")
        init_state = eqx.tree_at(lambda state: state.solver_state, init_state, init_state.y, is_leaf=is_none)
        return super().loop(
            terms=terms, solver=Reversible(solver, self.coupling), stepsize_controller=stepsize_controller,
            event=event, saveat=saveat, init_state=init_state, max_steps=max_steps, **options,
        )  # fmt: skip

    def _refused(self, solver: Any, options: Any) -> str | None:
        explicit = isinstance(solver, diffrax.AbstractERK | diffrax.Euler)
        if not explicit or solver.term_structure is not diffrax.AbstractTerm:
            name = type(solver).__name__
            return f"explicit Runge-Kutta methods, such as diffrax.Tsit5(), and diffrax.Euler(), not {name}"
        return "no solver_state of another solve" if options["passed_solver_state"] else None


def _size(tree: Any) -> jax.Array:
    """The largest absolute value in a tree."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]))


class Reversible(Wrapped):
    """The steps of a pair of states by those of an explicit solver; see `ReversibleAdjoint`."""

    coupling: float = eqx.field(static=True, default=0.999)

    @property
    def interpolation_cls(self) -> Callable[..., Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return lambda **options: _Interpolation(self.solver.interpolation_cls, self.coupling, **options)

    def init(self, terms, t0, t1, y0, args):
        return y0

    def plain_step(self, terms: Any, t0: Any, t1: Any, y: Any, args: Any) -> tuple[Any, Any, Any, Any]:
        """The next state, its error, what its interpolation needs, and the result of a step of the solver itself."""
        k = self.solver.init(terms, t0, t1, y, args)
        y, error, info, _, result = self.solver.step(terms, t0, t1, y, args, k, False)
        return y, error, info, result

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        z0 = solver_state
        there, error, info, result = self.plain_step(terms, t0, t1, z0, args)
        gap = jax.tree.map(jnp.subtract, y0, z0)
        y1 = jax.tree.map(lambda there, gap: there + self.coupling * gap, there, gap)
        back, *_ = self.plain_step(terms, t1, t0, y1, args)
        z1 = jax.tree.map(lambda z0, y1, back: z0 + y1 - back, z0, y1, back)
        if error is not None:  # a controller does not see otherwise that the two states part
            parted = jax.tree.map(lambda y1, z1, gap: jnp.maximum(jnp.abs(y1 - z1) - jnp.abs(gap), 0), y1, z1, gap)
            error = jax.tree.map(lambda error, parted: jnp.abs(error) + parted, error, parted)
        return y1, error, {"info": info, "gap": gap}, z1, result


class _Interpolation:
    """The interpolation of the solver's step from z, moved onto the states y at both ends."""

    def __init__(self, cls: Callable[..., Any], coupling: float, *, t0: Any, t1: Any, info: Any, gap: Any):
        self.inner, self.coupling, self.t0, self.t1, self.gap = cls(t0=t0, t1=t1, **info), coupling, t0, t1, gap

    def evaluate(self, t: Any) -> Any:
        length = jnp.where(self.t1 == self.t0, 1, self.t1 - self.t0)
        part = 1 - (1 - self.coupling) * (t - self.t0) / length
        return jax.tree.map(lambda y, gap: y + part.astype(gap.dtype) * gap, self.inner.evaluate(t), self.gap)
