"""Checkpointed reverse mode for explicit Runge-Kutta methods, with a backward pass of its own."""

import functools
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..._compat import solver_loop, while_loop
from ..._tree import all_finite, is_none, where
from ..events import Stopping, WatchedSolver
from ..failure import Guarded
from ..solvers.runge_kutta import is_unrolled, rolled_step
from .isolation import plain
from .record import StepRecord, any_sample
from .refusal import only

_STEPS_ONLY = (diffrax.PIDController, diffrax.ConstantStepSize, diffrax.StepTo)
_WRITTEN_OUT = 4  # saved times: each is looked at in every step


class DiscreteAdjoint(diffrax.RecursiveCheckpointAdjoint):
    """The discrete gradient, as that of `diffrax.RecursiveCheckpointAdjoint`, in less time.

    diffrax differentiates the whole body of its loop: the step, its error, the controller, the saving. But the gradient
    is stopped at the step sizes, so that only the accepted steps have one, and the values interpolated in them. Here
    the forward pass records the times of these steps and some of the states (`StepRecord`), and the backward pass takes
    the vector-Jacobian products of the Runge-Kutta steps alone.

    `over_samples` says that the solve is inside a `jax.vmap` over samples, and never differentiated inside of it. Then
    gradients for what all samples share are summed over them as they arise, where `jax.vmap` would keep one for each.

    It applies to explicit methods for ordinary differential equations, saved at times or at the end. Whatever else
    there is, gradients with respect to the times included, is left to diffrax.
    """

    name: ClassVar[str] = "checkpointed"

    over_samples: bool = eqx.field(static=True, default=False)

    def record(self, state: Any, max_steps: int) -> StepRecord:
        """An empty record, for steps from diffrax's loop state `state`."""
        return StepRecord.start(state, max_steps)

    def kept(self, record: StepRecord, end: Any) -> Any:
        """What the way back, from the states `end`, carries along."""
        return record.scratch()

    def state(self, record: StepRecord, i: Any, begin: Any, kept: Any, advance: Any) -> tuple[Any, Any]:
        """Where the product of step `i` is taken: the state before it and its solver's; and what is carried on."""
        return record.state(i, begin, kept, advance)

    def step(self, solver: Any, static: Any, dense: bool, params: Any, y: Any, k: Any, t0: Any, t1: Any) -> Any:
        """One step: the next state, its last stage, and, with `dense`, what the interpolation within it needs."""
        term, args = eqx.combine(*params, static)
        y, _, info, k, _ = solver.step(term, t0, t1, y, args, k, False)
        return y, k, info if dense else None

    def product(self, solver: Any, step: Any, params: Any, primal: Any, cts: Any) -> tuple[Any, ...]:
        """The vector-Jacobian product of a step, for parameters, state and last stage.

        After them there may be the states before it, where they are found on the way.
        """
        y, k, t0, t1 = primal
        _, vjp = jax.vjp(lambda moved, y, k: step((moved, params[1]), y, k, t0, t1), params[0], y, k)
        return vjp(cts)

    def undone(self, record: StepRecord, i: Any, state: Any, kept: Any) -> Any:
        """What is carried on after the states before step `i` have been found."""
        return state

    def checked(self, kept: Any, used: Any, grads: Any) -> Any:
        """The gradients, by what was carried to the start, where they are `used`."""
        return grads

    def takes(self, solver: Any) -> bool:
        """Whether its steps have such products."""
        return is_unrolled(_without_watch(solver))

    def loop(self, *, terms, solver, stepsize_controller, event, saveat, init_state, args, max_steps, **options):
        kwargs = {
            "solver": solver, "stepsize_controller": stepsize_controller, "event": event, "max_steps": max_steps,
            **options,
        }  # fmt: skip
        no = unfit(terms, stepsize_controller, event, saveat, max_steps, options["progress_meter"])
        if no is not None or not self.takes(solver) or solver_loop(self, init_state) is None:
            return super().loop(terms=terms, saveat=saveat, init_state=init_state, args=args, **kwargs)
        term = _traced_once(plain(terms), init_state, args)
        times = {name: kwargs.pop(name) for name in ("t0", "t1", "dt0")}
        y, k = init_state.y, init_state.solver_state
        rest = eqx.tree_at(lambda state: (state.y, state.solver_state), init_state, (None, None), is_leaf=is_none)
        return _solved((y, k, term, args, (rest, saveat, times)), self, kwargs)


def unfit(terms, controller, event, saveat, max_steps, progress_meter) -> str | None:
    """What keeps a solve from a backward pass over its accepted steps, in words; `None` where nothing does."""
    stops = isinstance(controller, Stopping)
    if stops:
        controller = controller.controller
    if isinstance(controller, Guarded):
        controller = controller.controller
    if not isinstance(getattr(terms, "term", None), diffrax.ODETerm):
        return "one ordinary differential equation, without noise and without parts"
    if not isinstance(controller, _STEPS_ONLY):
        return f"the steps of diffrax.PIDController, ConstantStepSize and StepTo, not of {type(controller).__name__}"
    if not isinstance(progress_meter, diffrax.NoProgressMeter):
        return "no progress_meter"
    if event is not None:
        return "no event"
    if not max_steps:
        return "max_steps, above zero"
    more = saveat.solver_state or (saveat.controller_state and not stops) or saveat.made_jump
    if more or not saves_states(saveat) or saveat.subs.t0:
        return "states saved at times or at the end, and nothing else"
    return None


def _without_watch(solver: Any) -> Any:
    """The solver of the steps themselves, where events are looked for in them."""
    return solver.solver if isinstance(solver, WatchedSolver) else solver


def _traced_once(wrapped: Any, state: Any, args: Any) -> Any:
    """The term with a vector field whose leaves are all the arrays that it closes over."""
    t = jnp.asarray(state.tprev) * wrapped.direction
    field = eqx.filter_closure_convert(wrapped.term.vf, t, state.y, args)
    return eqx.tree_at(lambda wrapped: wrapped.term, wrapped, diffrax.ODETerm(_Field(field, t.dtype)))


class _Field(eqx.Module):
    field: Any
    dtype: Any = eqx.field(static=True)

    def __call__(self, t, y, args):
        return _called(self.field, jnp.asarray(t, self.dtype), y, args)


@eqx.filter_jit
def _called(field, t, y, args):
    return field(t, y, args)


def _loop(moving, adjoint, kwargs, outer, inner):
    """diffrax's loop, by these while loops."""
    y, k, term, args, (rest, saveat, times) = moving
    state = eqx.tree_at(lambda state: (state.y, state.solver_state), rest, (y, k), is_leaf=is_none)
    kwargs = {name: value for name, value in kwargs.items() if name not in _NOT_FOR_LOOP}
    loop = solver_loop(adjoint, state)
    assert loop is not None  # `DiscreteAdjoint.loop` has looked
    return loop(
        terms=term, args=args, saveat=saveat, init_state=state, outer_while_loop=outer, inner_while_loop=inner,
        **times, **kwargs,
    )  # fmt: skip


_NOT_FOR_LOOP = ("throw", "passed_solver_state", "passed_controller_state")


@eqx.filter_custom_vjp
def _solved(moving, adjoint, kwargs):
    return _loop(moving, adjoint, kwargs, while_loop, while_loop)


@_solved.def_fwd
def _forward(perturbed, moving, adjoint, kwargs):
    if any(jax.tree.leaves(perturbed[-1])):
        return _general(perturbed, moving, adjoint, kwargs)
    record = None

    def outer(cond, body, state, *, max_steps, **_):
        nonlocal record
        state, record = _recorded(cond, body, state, adjoint.record(state, max_steps), max_steps)
        return state

    out = _loop(moving, adjoint, kwargs, outer, while_loop)
    final = out[0]
    failed = ~(diffrax.is_okay(final.result) & all_finite(final.y))
    saved = final.save_state.saveat_ts_index, final.save_state.save_index - 1
    return out, (record, (final.y, final.solver_state), saved, failed)


def _general(perturbed, moving, adjoint, kwargs):
    """What diffrax does; the residual is its backward pass."""
    moved, rest = eqx.partition(moving, perturbed)
    checkpointed = functools.partial(while_loop, kind="checkpointed")

    def run(moved):
        moving = eqx.combine(moved, rest)
        return eqx.partition(_loop(moving, adjoint, kwargs, checkpointed, checkpointed), eqx.is_inexact_array)

    out, pull, static = jax.vjp(run, moved, has_aux=True)
    return eqx.combine(out, static), (pull, jax.tree.map(jnp.zeros_like, out))


@_solved.def_bwd
def _backward(residuals, cotangent, perturbed, moving, adjoint, kwargs):
    if any(jax.tree.leaves(perturbed[-1])):
        pull, zeros = residuals
        full = jax.tree.map(lambda zero, ct: zero if ct is None else ct, zeros, cotangent)
        return pull(full)[0]
    record, end, (saved, slot), failed = residuals
    y, k, term, args, (rest, saveat, times) = moving
    direction = jnp.asarray(term.direction, times["t0"].dtype)  # in a loop it is no weak type anymore
    term = eqx.tree_at(lambda term: term.direction, term, direction)
    ct, solver = cotangent[0], _without_watch(kwargs["solver"])
    ts, ct_ys = saveat.subs.ts, ct.save_state.ys
    ct_y = jax.tree.map(lambda y, ct: jnp.zeros_like(y) if ct is None else ct, y, ct.y)
    ct_ys = jax.tree.map(
        lambda y, full, ct: jnp.zeros(full.shape, y.dtype) if ct is None else ct, y, rest.save_state.ys, ct_ys
    )
    if saveat.subs.t1:
        ct_y = jax.tree.map(lambda ct, cts: ct + cts[slot], ct_y, ct_ys)  # fewer than `ts` may have been saved
    if ts is not None:  # where there is no time between start and end, every saved value is the initial one
        ct_y = jax.tree.map(
            lambda ct, cts: ct + jnp.where(times["t0"] == times["t1"], cts[: len(ts)].sum(0), 0), ct_y, ct_ys
        )
    # what a failed solve has computed is not used, and its derivatives may not be finite
    unused = failed & ~_any_nonzero((ct_y, ct_ys))
    params = eqx.partition((term, args), perturbed[2:4])
    static = jax.tree.map(lambda x: None if eqx.is_array(x) else x, params[1])
    params = (params[0], eqx.filter(params[1], eqx.is_array))
    step = functools.partial(adjoint.step, solver, static, ts is not None)
    product = functools.partial(adjoint.product, solver)
    pull = _summed_pull(product, step) if adjoint.over_samples else functools.partial(_pull, product, step)

    def advance(y, k, t0, t1):
        term, args = eqx.combine(*params, static)
        return rolled_step(solver, term, t0, t1, y, args, k)

    def interpolated(params):
        term, args = eqx.combine(*params, static)
        return solver.step(term, times["t0"], times["t1"], y, args, k, False)[2]

    info = jax.eval_shape(interpolated, params)

    def body(carry):
        i, j, ct_y, ct_k, grads, kept = carry
        state, kept = adjoint.state(record, i, rest.tprev, kept, advance)
        start, end = record.span(i, rest.tprev)
        moved = (i >= 0) & (end > start)
        ct_info = None
        if ts is not None:
            lower = jnp.where(start <= rest.tprev, -jnp.inf, start)
            j, ct_info = _of_saved(solver, info, ts, ct_ys, lower, start, end, j, moved)
        before = (ct_y, ct_k)
        cts = (*jax.tree.map(lambda ct: jnp.where(moved, ct, 0), before), ct_info)
        new, ct_y, ct_k, *undone = pull(params, (*state, start, end), cts, moved & ~unused)
        ct_y, ct_k = where(moved, (ct_y, ct_k), before)
        if undone:
            kept = adjoint.undone(record, i, where(moved, tuple(undone), state), kept)
        return record.before(i), j, ct_y, ct_k, jax.tree.map(jnp.add, grads, new), kept

    ct_k = jax.tree.map(jnp.zeros_like, k)
    grads = jax.tree.map(jnp.zeros_like, params[0])
    init = (record.end(), jnp.asarray(saved), ct_y, ct_k, grads, adjoint.kept(record, end))
    _, _, ct_y, ct_k, grads, kept = lax.while_loop(lambda carry: any_sample(carry[0] >= 0), body, init)
    ct_y, ct_k, grads = adjoint.checked(kept, ~unused, (ct_y, ct_k, grads))
    g_term, g_args = _for_one_sample(grads, ct_y) if adjoint.over_samples else grads
    out = only("forward over reverse", f"adjoint={adjoint.name!r}", (ct_y, ct_k, g_term, g_args))
    return *out, jax.tree.map(lambda _: None, moving[-1])


def _saved(state):
    return state.save_state.ts, state.save_state.ys


def _recorded(cond, body, state, record, max_steps):
    """A while loop over states, and the record of its steps. Samples of a batch go on together until all are done."""
    state = jax.tree.map(jnp.array, state)

    def goes_on(carry):
        steps, state, _ = carry
        return any_sample(cond(state)) & (steps < max_steps)

    def step(carry):
        steps, old, record = carry
        active = cond(old)
        new = body(old)
        # what a sample that is done would save is not masked: nothing, or values of a failed solve, which become NaN
        masked = eqx.tree_at(_saved, new, _saved(old))
        masked = jax.tree.map(lambda new, old: jnp.where(active, new, old), masked, old)
        new = eqx.tree_at(_saved, masked, _saved(new))
        return steps + 1, new, record.add(old, new)

    _, state, record = lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), state, record))
    return state, record


def _pull(product, step, params, primal, cts, used):
    """The product of a step, zero where it is not `used`."""
    return jax.tree.map(lambda g: jnp.where(used, g, 0), product(step, params, primal, cts))


def _summed_pull(product, step):
    """As `_pull`; what it returns for parameters that all samples share is the sum over the samples."""
    pull = jax.custom_batching.custom_vmap(functools.partial(_pull, product, step))
    pulls = {}  # batching a loop asks for the same one several times

    @pull.def_vmap
    def batched(size, mapped, params, primal, cts, used):
        primal, cts, used = _all_mapped(size, (primal, cts, used), tuple(mapped[1:]))
        key = tuple(jax.tree.leaves(mapped[0]))
        pull = pulls.setdefault(key, jax.jit(functools.partial(_pull_of_samples, product, step, mapped[0])))
        out = pull(params, primal, cts, used)
        return out, (mapped[0][0], *jax.tree.map(lambda _: True, out[1:]))

    return pull


def _pull_of_samples(product, step, mapped, params, primal, cts, used):
    """`_pull` of all samples, where `mapped` says which parameters have a value for each of them.

    Zero times NaN is NaN in a sum over samples: one that is not used takes the step of one that is.
    """
    sample = jnp.argmax(used)

    def standing(x):
        return jnp.where(_column(used, x), x, x[sample])

    def cleared(g, is_mapped):
        return jnp.where(_column(used, g) if is_mapped else jnp.any(used), g, 0)

    params = jax.tree.map(lambda x, is_mapped: standing(x) if is_mapped else x, params, mapped)
    axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped)
    steps = jax.vmap(step, in_axes=(axes, 0, 0, 0, 0))
    grads, *rest = product(steps, params, jax.tree.map(standing, primal), cts)
    return jax.tree.map(cleared, (grads, *rest), (mapped[0], *jax.tree.map(lambda _: True, rest)))


def _any_nonzero(tree):
    return functools.reduce(jnp.logical_or, [jnp.any(x != 0) for x in jax.tree.leaves(tree)])


def _column(used, like):
    return used.reshape(-1, *(1 for _ in like.shape[1:]))


def _all_mapped(size, tree, mapped):
    return jax.tree.map(lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)), tree, mapped)


@jax.custom_batching.custom_vmap
def _for_one_sample(grads, by):
    """Gradients that are sums over samples already, as they are for the first one, and zero for the others."""
    return grads


@_for_one_sample.def_vmap
def _(size, mapped, grads, by):
    def first(x, is_mapped):
        return x if is_mapped else jnp.zeros((size, *x.shape), x.dtype).at[0].set(x)

    return jax.tree.map(first, grads, mapped[0]), jax.tree.map(lambda _: True, mapped[0])


def _of_saved(solver, info, ts, ct_ys, lower, start, end, j, moved):
    """The cotangent of a step's interpolation, from all that was saved in it, and how much had been saved before it."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), info)

    def of_one(j, used):
        t, ct = jnp.where(used, ts[j], start), jax.tree.map(lambda cts: jnp.where(used, cts[j], 0), ct_ys)
        _, vjp = jax.vjp(lambda info: solver.interpolation_cls(t0=start, t1=end, **info).evaluate(t), zeros)  # linear
        return vjp(ct)[0]

    def add(total, ct):
        return jax.tree.map(jnp.add, total, ct)

    if 0 < len(ts) <= _WRITTEN_OUT:  # without room for the sum, which is zero for most steps, and large
        used = moved & (jnp.arange(len(ts)) < j) & (ts > lower)
        return j - jnp.sum(used, dtype=j.dtype), functools.reduce(add, [of_one(i, used[i]) for i in range(len(ts))])

    def goes_on(carry):
        j, _ = carry
        return moved & (j > 0) & (ts[jnp.maximum(j - 1, 0)] > lower)

    def take(carry):
        j, total = carry
        return j - 1, add(total, of_one(j - 1, True))

    return while_loop(goes_on, take, (j, zeros))


_WHOLE = diffrax.SubSaveAt(t1=True).fn


def saves_states(saveat: Any) -> bool:
    """Whether a solve saves whole states, at its ends and at given times, and neither all steps nor a dense output."""
    sub = saveat.subs
    return isinstance(sub, diffrax.SubSaveAt) and sub.fn is _WHOLE and not (sub.steps or saveat.dense)
