"""GaussAdjoint: the equation of the adjoint, solved backward, with the gradient of the parameters as a quadrature."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._compat import solver_loop, while_loop
from ..._tree import is_none, still, where
from ...core.converters import integer
from ..failure import Guarded, guarded
from .dense import with_dense_error
from .discrete import saves_states
from .refusal import only
from .same_steps import SameSteps

_LOOPS = {"inner_while_loop": while_loop, "outer_while_loop": while_loop}
_PIECES = 32  # evaluations of the quadrature for each of `max_steps` steps, at most


class GaussAdjoint(diffrax.AbstractAdjoint):
    r"""Reverse mode by the adjoint equation along the dense output, with the parameters' gradient as a quadrature.

    .. math::
        \frac{da}{dt} = -a^T \frac{\partial f}{\partial y}, \qquad
        \frac{dL}{dp} = \int_{t_0}^{t_1} a^T \frac{\partial f}{\partial p}\, dt

    where `a` jumps by the cotangent of each saved value. It is solved backward by the solver of the forward solve, with
    its step size controller: its jumps, its largest step, or, where they are fixed, its steps. The parameters are no
    part of the state: their integral is taken by Gauss-Legendre quadrature, all nodes of a piece at once. A piece ends
    where a step ends, of the forward or of the backward solve, and is halved until its error is below the tolerance,
    which is `atol + rtol * |integral|` for each parameter, with the largest value that its integral has had.

    * `rtol`, `atol`: tolerances of both, by default those of the forward solve (1e-6, 1e-8 where that has none). `atol`
      is relative to the largest cotangent.
    * `nodes`: an odd number of nodes in each piece. The error is the difference to the rule without the middle one.

    For `diffrax.diffeqsolve(adjoint=...)`, and by the name `"gauss"` in all layers. It does not differentiate the root
    finders of implicit solvers; checkpointing is faster (docs/adjoints.md has timings). Where the dense output of a
    solver is coarser than its steps, as that of `Kvaerno5`, its error counts in the control of the steps too
    (`DenseSolver`). The gradient is that of the exact solution, up to the tolerances, not that of the discrete one. It
    holds the dense output of `max_steps` steps in memory, so bound these. Where the forward solve fails the gradient is
    zero, where the backward one does it is NaN.

    Gradients by times are not defined. Raises `ValueError` for equations that are not ordinary, solvers of several
    equations, events, `max_steps=None`, and a `SaveAt` other than `t0`, `t1` and `ts`.

    The method is that of `GaussAdjoint` in SciMLSensitivity.jl; Norcliffe and Deisenroth, "Faster training of neural
    ODEs using Gauss-Legendre quadrature", TMLR 2023.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> decay = lux.NeuralODE(lux.Dense(1, 1, use_bias=False), ts=[0.0, 1.0], output="final", adjoint="gauss")
    >>> slope = jax.grad(lambda ps: decay(jnp.ones(1), ps, {})[0][0])({"weight": -jnp.ones((1, 1))})
    >>> bool(jnp.allclose(slope["weight"], jnp.exp(-1.0), rtol=1e-5))
    True
    """

    rtol: float | None = None
    atol: float | None = None
    nodes: int = eqx.field(default=7, converter=integer)

    def __check_init__(self):
        if self.nodes < 3 or self.nodes % 2 == 0:
            raise ValueError(f"nodes is an odd number, three or more, got {self.nodes}")

    def loop(
        self,
        *,
        args,
        terms,
        solver,
        saveat,
        event,
        max_steps,
        init_state,
        passed_solver_state,
        passed_controller_state,
        **kwargs,
    ):
        _refuse(terms, saveat, event, max_steps)
        if solver_loop(self, init_state) is None:
            return diffrax.RecursiveCheckpointAdjoint().loop(
                args=args, terms=terms, solver=solver, saveat=saveat, event=event, max_steps=max_steps,
                init_state=init_state, passed_solver_state=passed_solver_state,
                passed_controller_state=passed_controller_state, **kwargs,
            )  # fmt: skip
        y0 = init_state.y
        init_state = eqx.tree_at(lambda s: s.y, init_state, object())
        options = dict(kwargs, self=self, solver=solver, saveat=saveat, event=event, max_steps=max_steps)
        final, stats = _solve((y0, args, terms), init_state=still(init_state), **options)
        return eqx.tree_at(lambda s: s.save_state.ys, still(final), final.save_state.ys), stats


def _refuse(terms: Any, saveat: Any, event: Any, max_steps: int | None) -> None:
    if isinstance(terms, tuple) or not all(isinstance(part.term, diffrax.ODETerm) for part in parts_of(terms)):
        raise ValueError("GaussAdjoint takes one ordinary differential equation: let this one have adjoint='auto'")
    if event is not None:
        raise ValueError("GaussAdjoint takes no events: let this equation have adjoint='auto'")
    if max_steps is None:
        raise ValueError("GaussAdjoint keeps the whole solution: give max_steps, the maximum number of steps")
    if not saves_states(saveat) or saveat.solver_state or saveat.controller_state or saveat.made_jump:
        raise ValueError("GaussAdjoint saves at t0, t1 and ts only: without steps, dense, fn and subs in the SaveAt")


def is_part(x: Any) -> bool:
    """Whether this is a term by itself, no sum of terms."""
    return isinstance(x, diffrax.AbstractTerm) and not isinstance(x, diffrax.MultiTerm)


def parts_of(terms: Any) -> list[Any]:
    """The terms of a sum, as diffrax wraps them for solves backward in time."""
    return jax.tree.leaves(terms, is_leaf=is_part)


def _rate(term: Any, t: Any, y: Any, args: Any) -> Any:
    """`dy/dt` of one term or of a sum of them, in the direction of the solve."""
    return term.vf_prod(t, y, args, term.contr(jnp.zeros_like(t), jnp.ones_like(t)))


class _Path(eqx.Module):
    """The dense output of the forward solve, in its first `size` steps."""

    ts: jax.Array
    infos: Any
    size: jax.Array
    interpolation: Callable[..., Any] = eqx.field(static=True)

    def step(self, t: Any) -> jax.Array:
        """The number of the step that `t` is in, or at the end of."""
        return jnp.clip(jnp.searchsorted(self.ts, t, method="scan_unrolled") - 1, 0, self.size - 1)

    def at(self, i: Any) -> Callable[[Any], Any]:
        """The solution in step `i`."""
        info = jax.tree.map(lambda x: x[i], self.infos)
        return self.interpolation(t0=self.ts[i], t1=self.ts[i + 1], **info).evaluate

    def __call__(self, t: Any) -> Any:
        return self.at(self.step(t))(t)


def _dense(state: Any) -> tuple[Any, Any, Any]:
    return state.dense_ts, state.dense_infos, state.dense_save_index


def _loop(adjoint: GaussAdjoint, state: Any) -> Callable[..., Any]:
    loop = solver_loop(adjoint, state)
    assert loop is not None  # `GaussAdjoint.loop` has looked
    return loop


@eqx.filter_custom_vjp
def _solve(y0_args_terms, *, self, init_state, throw, **options):
    y0, args, terms = y0_args_terms
    state = eqx.tree_at(lambda s: s.y, init_state, y0)
    return _loop(self, state)(args=args, terms=terms, init_state=state, **options, **_LOOPS)


@_solve.def_fwd
def _solve_forward(perturbed, y0_args_terms, *, self, init_state, throw, solver, saveat, max_steps, **options):
    y0, args, terms = only("first", "adjoint='gauss'", y0_args_terms)
    solver = with_dense_error(solver, terms, options["stepsize_controller"])
    state = eqx.tree_at(lambda s: s.y, init_state, y0)
    step = (terms, state.tprev, state.tnext, y0, args, state.solver_state, state.made_jump)
    infos = eqx.filter_eval_shape(solver.step, *step)[2]
    infos = jax.tree.map(lambda x: jnp.full((max_steps, *x.shape), jnp.inf, x.dtype), infos)
    dense = (jnp.full(max_steps + 1, jnp.inf, state.tprev.dtype), infos, 0)
    state = eqx.tree_at(_dense, state, dense, is_leaf=is_none)
    saveat = eqx.tree_at(lambda s: s.dense, saveat, True)
    options = dict(options, solver=solver, saveat=saveat, max_steps=max_steps)
    final, stats = _loop(self, state)(args=args, terms=terms, init_state=state, **options, **_LOOPS)
    residuals = (final.save_state.ts, final.save_state.ys, _dense(final), diffrax.is_okay(final.result))
    return (eqx.tree_at(_dense, final, (None, None, None)), stats), residuals


class _State(eqx.Module):
    """Of the backward solve, in the time `s = -t`."""

    s: jax.Array
    next: jax.Array
    wish: jax.Array  # the size of the step, were it not cut at a saved time
    a: Any
    left: jax.Array  # saved times still ahead
    solver: Any
    controller: Any
    jump: jax.Array
    integral: "_Integral"
    steps: jax.Array
    good: jax.Array


@_solve.def_bwd
def _solve_backward(
    residuals, cotangents, perturbed, y0_args_terms, *, self, solver, stepsize_controller, t0, t1, dt0, max_steps, **_
):
    """Runs in the time `s = -t`, from `-t1` to `-t0`."""
    ts, ys, (dense_ts, dense_infos, size), good = residuals
    y0, args, terms = y0_args_terms
    path = _Path(dense_ts, dense_infos, size, solver.interpolation_cls)
    jumps = jax.tree.map(lambda y, g: jnp.zeros_like(y) if g is None else g, ys, cotangents[0].save_state.ys)
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(jumps)])
    active = good & (largest != 0)
    scale = jnp.where(active, largest, 1)
    jumps = jax.tree.map(lambda g: jnp.where(active, g / scale.astype(g.dtype), 0), jumps)

    def adjoint_term(term):
        return diffrax.ODETerm(lambda s, a, _: jax.vjp(lambda y: _rate(term, -s, y, args), path(-s))[1](a)[0])

    backward = jax.tree.map(adjoint_term, terms, is_leaf=is_part)
    controller, rtol, atol = _backward_controller(self, stepsize_controller, dense_ts)
    solver = with_dense_error(solver, backward, controller)
    order = solver.error_order(backward)
    differentiable, rest = eqx.partition((args, terms), perturbed[1:])
    quadrature = _Quadrature(path, differentiable, rest, self.nodes, rtol, atol, _PIECES * max_steps)
    start, end = -t1, -t0

    def jumped(s, a, left):
        """The adjoint after the jumps at the saved times that are reached, of which `left` remain."""

        def reached(state):
            return (state[1] > 0) & (ts[state[1] - 1] >= -s)

        def jump(state):
            return jax.tree.map(lambda a, g: a + g[state[1] - 1], state[0], jumps), state[1] - 1

        return lax.while_loop(reached, jump, (a, left))

    def until(following, left, keep: jax.typing.ArrayLike = True):
        """The end of the next step: a saved time, where there is one before, or just after."""
        stop = jnp.where(left > 0, -ts[left - 1], end)
        close = jnp.where(keep, 100 * jnp.finfo(ts.dtype).eps * jnp.abs(following), 0)
        return jnp.where(following > stop - close, stop, following)

    def step(state):
        a1, error, info, inner, step_result = solver.step(
            backward, state.s, state.next, state.a, None, state.solver, state.jump
        )
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        keep, s, following, jump, control, control_result = controller.adapt_step_size(
            state.s, state.next, state.a, a1, None, error, order, state.controller
        )
        keep, s = jnp.asarray(keep), jnp.asarray(s)
        along = solver.interpolation_cls(t0=state.s, t1=state.next, **info).evaluate
        integral = quadrature.over(along, state.s, jnp.where(keep, state.next, state.s), state.integral)
        a, inner = where(keep, (a1, inner), (state.a, state.solver))
        a, left = jumped(s, a, state.left)
        width = state.next - state.s
        wish = jnp.where(keep & (width < state.wish), jnp.maximum(state.wish, following - s), following - s)
        result = diffrax.RESULTS.where(keep, step_result, diffrax.RESULTS.successful)
        result = diffrax.RESULTS.where(diffrax.is_okay(result), control_result, result)
        return _State(
            s=s,
            next=until(s + wish, left, keep),
            wish=wish,
            a=a,
            left=left,
            solver=inner,
            controller=control,
            jump=jnp.asarray(jump) | (left < state.left),
            integral=integral,
            steps=state.steps + 1,
            good=diffrax.is_okay(result) & integral.good,
        )

    def going(state):
        return (state.s < end) & state.good & (state.steps < max_steps)

    a, left = jumped(start, jax.tree.map(jnp.zeros_like, y0), jnp.asarray(ts.size))
    first, control = controller.init(backward, start, end, a, dt0, None, solver.func, order)
    following = until(first, left)
    state = _State(
        s=jnp.where(active, start, end),
        next=following,
        wish=first - start,
        a=a,
        left=left,
        solver=solver.init(backward, start, following, a, None),
        controller=control,
        jump=jnp.array(True),
        integral=quadrature.nothing(),
        steps=jnp.array(0),
        good=jnp.array(True),
    )
    state = lax.while_loop(going, step, state)
    factor = jnp.where(active & ~(state.good & (state.s >= end)), jnp.nan, scale)
    args_gradient, terms_gradient = jax.tree.map(lambda g: g * factor.astype(g.dtype), state.integral.value)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), state.a), args_gradient, terms_gradient


def _backward_controller(
    adjoint: GaussAdjoint, forward: diffrax.AbstractStepSizeController, ts: jax.Array
) -> tuple[diffrax.AbstractStepSizeController, Any, Any]:
    """Of the backward solve, with its tolerances: the forward one, reversed; its steps, where they are fixed."""
    if not isinstance(forward, diffrax.AbstractAdaptiveStepSizeController):
        rtol, atol = (1e-6 if adjoint.rtol is None else adjoint.rtol), (1e-8 if adjoint.atol is None else adjoint.atol)
        return SameSteps(ts).wrap(-1), rtol, atol
    rtol = forward.rtol if adjoint.rtol is None else adjoint.rtol
    atol = forward.atol if adjoint.atol is None else adjoint.atol
    turned = _with_tolerances(forward.wrap(-1), rtol, atol)
    return turned if isinstance(turned, Guarded) else guarded(turned), rtol, atol


def _with_tolerances(controller: Any, rtol: Any, atol: Any) -> Any:
    if isinstance(controller, diffrax.PIDController):
        return eqx.tree_at(lambda c: (c.rtol, c.atol), controller, (rtol, atol))
    if isinstance(controller, Guarded | diffrax.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, controller, _with_tolerances(controller.controller, rtol, atol))
    return controller


class _Integral(eqx.Module):
    """The gradient of the parameters so far."""

    value: Any
    peak: Any  # the largest absolute value that each entry has had
    width: jax.Array  # of the next piece, at most
    count: jax.Array
    good: jax.Array


class _Quadrature(eqx.Module):
    """The integral of `a^T df/dp` over steps of the backward solve, with its own control of the error."""

    path: _Path
    differentiable: Any
    rest: Any
    nodes: int = eqx.field(static=True)
    rtol: Any
    atol: Any
    most: int = eqx.field(static=True)

    def nothing(self) -> _Integral:
        zeros = jax.tree.map(jnp.zeros_like, self.differentiable)
        return _Integral(
            zeros, jax.tree.map(jnp.abs, zeros), jnp.full_like(self.path.ts[0], jnp.inf), jnp.array(0), jnp.array(True)
        )

    def over(self, along: Callable[[Any], Any], start: Any, end: Any, integral: _Integral) -> _Integral:
        """With the step from `start` to `end`, in which the adjoint is `along(s)`."""
        if not jax.tree.leaves(self.differentiable):
            return integral

        def piece(carry):
            s, integral = carry
            i = self.path.step(-s)
            stop = jnp.minimum(end, -self.path.ts[i])
            to = jnp.minimum(s + integral.width, stop)
            to = jnp.where(to + 0.1 * (to - s) > stop, stop, to)
            value, error = self._rule(along, self.path.at(i), s, to)
            new = jax.tree.map(jnp.add, integral.value, value)
            peak = jax.tree.map(lambda peak, x: jnp.maximum(peak, jnp.abs(x)), integral.peak, new)
            excess = self._excess(error, peak)
            smallest = to - s <= 16 * jnp.finfo(s.dtype).eps * jnp.maximum(jnp.abs(s), jnp.abs(to))
            keep = (excess <= 1) | (smallest & jnp.isfinite(excess))
            growth = jnp.clip((0.9 / excess) ** (1 / self.nodes), 1, 2)  # where all is rounding, it has some left
            new = _Integral(
                *where(keep, (new, peak), (integral.value, integral.peak)),
                width=jnp.where(keep, growth * integral.width, (to - s) / 2),
                count=integral.count + 1,
                good=(keep | ~smallest) & (integral.count < self.most),
            )
            return jnp.where(keep, to, s), new

        return lax.while_loop(lambda carry: (carry[0] < end) & carry[1].good, piece, (start, integral))[1]

    def _rule(self, along: Callable[[Any], Any], path: Callable[[Any], Any], start: Any, end: Any) -> tuple[Any, Any]:
        """The integral over one piece, and its error."""
        points, weights = (jnp.asarray(x, start.dtype) for x in gauss_rule(self.nodes))
        s = start + (end - start) * points
        a, y = jax.vmap(along)(s), jax.vmap(lambda s: path(-s))(s)

        def rates(differentiable):
            args, terms = eqx.combine(differentiable, self.rest)
            return jax.vmap(lambda s, y: _rate(terms, -s, y, args))(s, y)

        _, pull = jax.vjp(rates, self.differentiable)
        weighted = jax.tree.map(lambda a: a * _along_axes((end - start) * weights, a), a)
        (both,) = jax.vmap(pull)(weighted)
        return jax.tree.map(lambda x: x[0], both), jax.tree.map(lambda x: x[1], both)

    def _excess(self, error: Any, peak: Any) -> jax.Array:
        """The largest error, by its tolerance."""

        def excess(error, peak):
            rounding = 10 * jnp.finfo(peak.dtype).eps * jnp.max(peak, initial=0)
            tolerance = jnp.maximum(self.atol + self.rtol * peak, rounding) + jnp.finfo(peak.dtype).tiny
            return jnp.max(jnp.abs(error) / tolerance, initial=0)

        return functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(excess, error, peak)))


@functools.cache
def gauss_rule(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of Gauss-Legendre quadrature on [0, 1]; the weights, and these less those without the middle node."""
    legendre = np.polynomial.legendre
    points, weights = legendre.leggauss(n)
    others = np.delete(points, n // 2)
    rest = np.linalg.solve(legendre.legvander(others, n - 2).T, [2.0] + [0.0] * (n - 2))
    return (points + 1) / 2, np.stack([weights, weights - np.insert(rest, n // 2, 0.0)]) / 2


def _along_axes(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, of shape (rules, nodes), to be multiplied with `like`, of shape (nodes, ...)."""
    return x.reshape(*x.shape, *(1 for _ in like.shape[1:])).astype(like.dtype)
