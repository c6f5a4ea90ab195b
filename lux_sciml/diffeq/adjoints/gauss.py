"""GaussAdjoint: the equation of the adjoint, solved backward, with the gradient of the parameters as a quadrature."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._compat import solver_loop, while_loop
from ..failure import guarded
from .discrete import saves_states

_CHUNK = 4  # steps whose nodes are evaluated at once
_LOOPS = {"inner_while_loop": while_loop, "outer_while_loop": while_loop}


class GaussAdjoint(diffrax.AbstractAdjoint):
    r"""Reverse mode by the adjoint equation along the dense output, with the parameters' gradient as a quadrature.

    .. math::
        \frac{da}{dt} = -a^T \frac{\partial f}{\partial y}, \qquad
        \frac{dL}{dp} = \int_{t_0}^{t_1} a^T \frac{\partial f}{\partial p}\, dt

    where `a` jumps by the cotangent of each saved value. It is solved backward by the solver of the forward solve, to
    the same tolerances or `rtol` and `atol`, which are relative to the largest cotangent. The integral is taken by
    Gauss-Legendre quadrature with `nodes` nodes in each step, many nodes at a time: the parameters are no part of the
    state. For `diffrax.diffeqsolve(adjoint=...)`, and by the name `"gauss"` in all layers.

    It is the adjoint for stiff equations and implicit solvers, whose root finders it does not differentiate; elsewhere
    checkpointing is faster (docs/adjoints.md has the figures). The gradient is that of the exact solution, up to the
    tolerances, not that of the discrete one. It holds the dense output of `max_steps` steps in memory, so bound these.
    Where the forward solve fails the gradient is zero, where the backward one does it is NaN.

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
    nodes: int = 3

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
        del passed_solver_state, passed_controller_state
        y0 = init_state.y
        init_state = eqx.tree_at(lambda s: s.y, init_state, object())
        init_state = jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x, init_state)
        options = dict(kwargs, self=self, solver=solver, saveat=saveat, event=event, max_steps=max_steps)
        final, stats = _solve((y0, args, terms), init_state=init_state, **options)
        still = jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x, final)
        return eqx.tree_at(lambda s: s.save_state.ys, still, final.save_state.ys), stats

    def _controller(self, forward: diffrax.AbstractStepSizeController) -> diffrax.AbstractStepSizeController:
        """Of the backward solve: with tolerances where the forward one has them, else its fixed steps."""
        if not isinstance(forward, diffrax.AbstractAdaptiveStepSizeController):
            return forward
        rtol = forward.rtol if self.rtol is None else self.rtol
        atol = forward.atol if self.atol is None else self.atol
        return guarded(diffrax.PIDController(rtol, atol, norm=forward.norm))


def _refuse(terms: Any, saveat: Any, event: Any, max_steps: int | None) -> None:
    if isinstance(terms, tuple) or not all(isinstance(part.term, diffrax.ODETerm) for part in _parts(terms)):
        raise ValueError("GaussAdjoint takes one ordinary differential equation: let this one have adjoint='auto'")
    if event is not None:
        raise ValueError("GaussAdjoint takes no events: let this equation have adjoint='auto'")
    if max_steps is None:
        raise ValueError("GaussAdjoint keeps the whole solution: give max_steps, the largest number of steps")
    if not saves_states(saveat):
        raise ValueError("GaussAdjoint saves at t0, t1 and ts only: without steps, dense, fn and subs in the SaveAt")


def _is_part(x: Any) -> bool:
    return isinstance(x, diffrax.AbstractTerm) and not isinstance(x, diffrax.MultiTerm)


def _parts(terms: Any) -> list[Any]:
    """The terms of a sum, as diffrax wraps them for solves backward in time."""
    return jax.tree.leaves(terms, is_leaf=_is_part)


def _rate(term: Any, t: Any, y: Any, args: Any) -> Any:
    """`dy/dt` of one term or of a sum of them, in the direction of the solve."""
    return term.vf_prod(t, y, args, term.contr(jnp.zeros_like(t), jnp.ones_like(t)))


def _dense(state: Any) -> tuple[Any, Any, Any]:
    return state.dense_ts, state.dense_infos, state.dense_save_index


@eqx.filter_custom_vjp
def _reverse_only(x):
    """`x`, refused by forward mode: the derivative of this gradient is not that of the equation."""
    return x


_reverse_only.def_fwd(lambda perturbed, x: (x, None))
_reverse_only.def_bwd(lambda residuals, cotangents, perturbed, x: cotangents)


@eqx.filter_custom_vjp
def _solve(y0_args_terms, *, self, init_state, throw, **options):
    y0, args, terms = y0_args_terms
    state = eqx.tree_at(lambda s: s.y, init_state, y0)
    return solver_loop(self, state)(args=args, terms=terms, init_state=state, **options, **_LOOPS)


@_solve.def_fwd
def _solve_forward(perturbed, y0_args_terms, *, self, init_state, throw, solver, saveat, max_steps, **options):
    y0, args, terms = _reverse_only(y0_args_terms)
    state = eqx.tree_at(lambda s: s.y, init_state, y0)
    step = (terms, state.tprev, state.tnext, y0, args, state.solver_state, state.made_jump)
    infos = eqx.filter_eval_shape(solver.step, *step)[2]
    infos = jax.tree.map(lambda x: jnp.full((max_steps, *x.shape), jnp.inf, x.dtype), infos)
    dense = (jnp.full(max_steps + 1, jnp.inf, state.tprev.dtype), infos, 0)
    state = eqx.tree_at(_dense, state, dense, is_leaf=lambda x: x is None)
    saveat = eqx.tree_at(lambda s: s.dense, saveat, True)
    options = dict(options, solver=solver, saveat=saveat, max_steps=max_steps)
    final, stats = solver_loop(self, state)(args=args, terms=terms, init_state=state, **options, **_LOOPS)
    residuals = (final.save_state.ts, final.save_state.ys, _dense(final), diffrax.is_okay(final.result))
    return (eqx.tree_at(_dense, final, (None, None, None)), stats), residuals


@_solve.def_bwd
def _solve_backward(
    residuals, cotangents, perturbed, y0_args_terms, *, self, solver, stepsize_controller, t0, t1, dt0, max_steps, **_
):
    """Runs in the time `s = -t`, from `-t1` to `-t0`."""
    ts, ys, (dense_ts, dense_infos, size), good = residuals
    y0, args, terms = y0_args_terms
    jumps = jax.tree.map(lambda y, g: jnp.zeros_like(y) if g is None else g, ys, cotangents[0].save_state.ys)
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(jumps)])
    active = good & (largest != 0)
    scale = jnp.where(active, largest, 1)
    jumps = jax.tree.map(lambda g: jnp.where(active, g / scale.astype(g.dtype), 0), jumps)

    def y_at(t):
        i = jnp.clip(jnp.searchsorted(dense_ts, t, method="scan_unrolled") - 1, 0, size - 1)
        info = jax.tree.map(lambda x: x[i], dense_infos)
        return solver.interpolation_cls(t0=dense_ts[i], t1=dense_ts[i + 1], **info).evaluate(t)

    def adjoint_term(term):
        return diffrax.ODETerm(lambda s, a, _: jax.vjp(lambda y: _rate(term, -s, y, args), y_at(-s))[1](a)[0])

    backward = jax.tree.map(adjoint_term, terms, is_leaf=_is_part)
    differentiable, rest = eqx.partition((args, terms), eqx.is_inexact_array)
    points, weights = np.polynomial.legendre.leggauss(self.nodes)
    points, weights = (jnp.asarray(x, ts.dtype) for x in ((points + 1) / 2, weights / 2))
    controller, order = self._controller(stepsize_controller), solver.error_order(backward)
    start, end = -t1, -t0
    close = 100 * jnp.finfo(ts.dtype).eps * jnp.maximum(jnp.abs(t0), jnp.abs(t1))

    def jumped(s, a, left):
        """The adjoint after the jumps at the saved times that are reached, of which `left` remain."""

        def reached(state):
            return (state[1] > 0) & (ts[state[1] - 1] >= -s)

        def jump(state):
            return jax.tree.map(lambda a, g: a + g[state[1] - 1], state[0], jumps), state[1] - 1

        return lax.while_loop(reached, jump, (a, left))

    def until(following, left):
        stop = jnp.where(left > 0, -ts[left - 1], end)
        return jnp.where(following > stop - close, stop, following)

    def step(state):
        a1, error, info, inner, step_result = solver.step(
            backward, state["s"], state["next"], state["a"], None, state["solver"], state["jump"]
        )
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        keep, s, following, jump, control, control_result = controller.adapt_step_size(
            state["s"], state["next"], state["a"], a1, None, error, order, state["controller"]
        )
        keep = jnp.asarray(keep)
        width = state["next"] - state["s"]
        nodes = state["s"] + width * points
        path = solver.interpolation_cls(t0=state["s"], t1=state["next"], **info)
        values = jax.tree.map(lambda a: a * _column(width * weights, a), jax.vmap(path.evaluate)(nodes))

        def put(into, x):
            return lax.dynamic_update_slice_in_dim(into, x, state["count"] * self.nodes, 0)

        a, inner = jax.tree.map(lambda new, old: jnp.where(keep, new, old), (a1, inner), (state["a"], state["solver"]))
        a, left = jumped(s, a, state["left"])
        wish = jnp.where(keep & (width < state["wish"]), jnp.maximum(state["wish"], following - s), following - s)
        result = diffrax.RESULTS.where(keep, step_result, diffrax.RESULTS.successful)
        result = diffrax.RESULTS.where(diffrax.is_okay(result), control_result, result)
        return {
            "s": s,
            "next": until(s + wish, left),
            "wish": wish,  # the size of the step, were it not cut at a saved time
            "a": a,
            "left": left,
            "solver": inner,
            "controller": control,
            "jump": jnp.asarray(jump) | (left < state["left"]),
            "ts": put(state["ts"], -nodes),
            "as": jax.tree.map(put, state["as"], values),
            "count": jnp.where(keep, state["count"] + 1, state["count"]),
            "steps": state["steps"] + 1,
            "good": diffrax.is_okay(result),
        }

    def going(state):
        return (state["s"] < end) & state["good"] & (state["steps"] < max_steps)

    def gathered(carry):
        """Some steps, and then the gradient at all their nodes at once."""
        state, total = carry
        state = lax.while_loop(lambda state: going(state) & (state["count"] < _CHUNK), step, state)
        used = jnp.arange(_CHUNK * self.nodes) < state["count"] * self.nodes
        times = jnp.where(used, state["ts"], t0)
        values = jax.tree.map(lambda a: jnp.where(_column(used, a), a, 0), state["as"])
        along = jax.vmap(y_at)(times)

        def integral(differentiable):
            args, terms = eqx.combine(differentiable, rest)
            rates = jax.vmap(lambda t, y: _rate(terms, t, y, args))(times, along)
            return sum(jnp.sum(a * f) for a, f in zip(jax.tree.leaves(values), jax.tree.leaves(rates), strict=True))

        total = jax.tree.map(jnp.add, total, jax.grad(integral)(differentiable))
        return {**state, "count": jnp.zeros_like(state["count"])}, total

    a, left = jumped(start, jax.tree.map(jnp.zeros_like, y0), jnp.asarray(ts.size))
    first, control = controller.init(backward, start, end, a, dt0, None, solver.func, order)
    following = until(first, left)
    slots = _CHUNK * self.nodes
    state = {
        "s": jnp.where(active, start, end),
        "next": following,
        "wish": first - start,
        "a": a,
        "left": left,
        "solver": solver.init(backward, start, following, a, None),
        "controller": control,
        "jump": jnp.array(True),
        "ts": jnp.full(slots, t0),
        "as": jax.tree.map(lambda y: jnp.zeros((slots, *y.shape), y.dtype), y0),
        "count": jnp.array(0),
        "steps": jnp.array(0),
        "good": jnp.array(True),
    }
    total = jax.tree.map(jnp.zeros_like, differentiable)
    state, total = lax.while_loop(lambda carry: going(carry[0]), gathered, (state, total))
    factor = jnp.where(active & (state["s"] < end), jnp.nan, scale)
    args_gradient, terms_gradient = jax.tree.map(lambda g: g * factor.astype(g.dtype), total)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), state["a"]), args_gradient, terms_gradient


def _column(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` along the first axis of `like`."""
    x = x.reshape(-1, *(1 for _ in like.shape[1:]))
    return x if x.dtype == bool else x.astype(like.dtype)
