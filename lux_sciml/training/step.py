"""A training step: the gradient of an objective on a batch, and the update, as one program."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._compat import has_convolutions, run_jaxpr, untouched
from .._platform import by_platform
from .._tree import all_finite, describe, is_inexact, is_random_key, single, where
from ..components import ComponentVector
from ..core.converters import checks_itself, count, flag
from ..optimize.problem import called, in_training, one_number, require_same_kind
from .placement import cut, require_parts
from .state import LossScale, TrainState

Objective = Callable[..., Any]
Stats = dict[str, Any]

NONFINITE = ("skip", "back_off", "stop", "keep")
GOOD_STEPS = 2000  # after which a loss scale is doubled


@checks_itself
def train_step(
    objective: Objective, *, steps: int | None = None, accumulate: int = 1, nonfinite: str = "skip", donate: bool = True
) -> Callable[[TrainState, Any], tuple[TrainState, Stats]]:
    """A compiled training step: `state, stats = step(state, batch)`.

    `objective(model, ps, st, batch)` returns the loss, one floating-point number, or `(loss, st)`, or
    `(loss, st, stats)` with a dict of arrays. The stats that come out are these, with `loss` and `finite` (whether
    loss and gradient were, so that the step was made).

    * `steps`: with `steps=k`, one call makes k steps, and the batch holds k batches along a new first axis; the stats
      have this axis too. For small models, whose steps are shorter than the call of a program; not for convolutions on
      the CPU, which XLA computes 50 times slower inside of loops.
    * `accumulate`: the batch is cut along its first axis into this many equal parts, one after the other, and their
      gradients are averaged, and so are the loss and the stats: the memory of a small batch with the gradient of a
      large one.
    * `nonfinite`: where the loss or its gradient is not finite, `"skip"` leaves parameters, state and the optimizer's
      memory as they are; `"back_off"` does so and halves `update_scale`; `"stop"` does so and makes no further step;
      `"keep"` does not look. `state.skipped` counts them.
    * `donate`: the memory of the state that goes in is used for the one that comes out, and cannot be read afterwards.

    Raises `TypeError` and `ValueError` for what is no loss, other states that come out, and batches of other sizes.
    Warns of parameters that the loss does not depend on, and of a state in training that does not advance.

    >>> import optax, lux_sciml as lux
    >>> model = lux.Dense(1, 1)
    >>> def objective(model, ps, st, batch):
    ...     y, st = model(batch[0], ps, st)
    ...     return jnp.mean((y - batch[1]) ** 2), st
    >>> state = TrainState.create(model, optax.sgd(0.1), key=jax.random.key(0))
    >>> step, x = train_step(objective), jnp.linspace(-1.0, 1.0, 8)[:, None]
    >>> for _ in range(200):
    ...     state, stats = step(state, (x, 2 * x + 1))
    >>> jnp.round(state.ps.data, 2), bool(stats["loss"] < 1e-5)
    (Array([2., 1.], dtype=float32), True)
    """
    single = one_step(objective, accumulate, nonfinite)
    flag(donate)
    if steps is not None:
        count(steps)

    def step(state: Any, batch: Any) -> tuple[TrainState, Stats]:
        _require_state(state)
        if steps is None:
            return single(state, batch)
        for leaf in jax.tree.leaves(batch):
            if jnp.shape(leaf)[:1] != (steps,):
                raise ValueError(
                    f"with steps={steps} the batch holds {steps} along a first axis, got {describe(batch)}"
                )
        return jax.lax.scan(single, state, batch, length=steps)

    return jax.jit(step, donate_argnums=(0,) if donate else ())


@checks_itself
def compute_gradients(objective: Objective, state: TrainState, batch: Any) -> tuple[Any, Stats, TrainState]:
    """The gradients of an objective on a batch, its stats, and the training state with the next `st`: half a step.

    The gradients are those of the parameters that are trained. The step is not counted. `apply_gradients` is the other
    half; both are plain functions, to be called inside of `jax.jit`. The objective is as for `train_step`.

    >>> import optax, lux_sciml as lux
    >>> state = TrainState.create(lux.Scale((2,)), optax.sgd(0.5), params=lux.ComponentVector(scale=[1, 2]))
    >>> gradients, stats, state = compute_gradients(lambda model, ps, st, x: jnp.sum(ps.scale * x), state, 3.0)
    >>> gradients, stats["loss"]
    (ComponentVector(scale=[3, 3]), Array(9., dtype=float32))
    >>> apply_gradients(state, gradients).ps
    ComponentVector(scale=[-0.5, 0.5])
    """
    _require_state(state)
    found = _gradients(objective, state, batch, 1)
    state, stats = state.placement.kept(state.replace(st=found.st), {"loss": found.loss, **found.stats})
    return found.gradients, stats, state


@checks_itself
def apply_gradients(state: TrainState, gradients: Any, **extra: Any) -> TrainState:
    """The state after the optimizer's step with these gradients: the other half of `compute_gradients`.

    `extra` goes to the optimizer's update, as `value=` for `optax.contrib.reduce_on_plateau`. Nothing is looked at: for
    what is not finite see `train_step`. Raises `ValueError` for gradients of another kind than what is trained.

    >>> import optax, lux_sciml as lux
    >>> state = TrainState.create(lux.Scale((2,)), optax.sgd(0.5), params=lux.ComponentVector(scale=[1, 2]))
    >>> after = apply_gradients(state, lux.ComponentVector(scale=[1, 1]))
    >>> after.ps, after.step
    (ComponentVector(scale=[0.5, 1.5]), Array(1, dtype=int32))
    """
    _require_state(state)
    ps = None if state.part is None else state.placement.whole(state.ps)
    trained = _trained(state, ps)
    kinds = [(jax.tree.structure(x), list(map(jnp.shape, jax.tree.leaves(x)))) for x in (trained, gradients)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"gradients are like the trained parameters, {describe(trained)}, got {describe(gradients)}")
    return state.placement.kept(_updated(state, ps, gradients, **extra), {})[0]


def one_step(
    objective: Any, accumulate: Any = 1, nonfinite: Any = "skip"
) -> Callable[[TrainState, Any], tuple[TrainState, Stats]]:
    """One step as a pure function `(state, batch) -> (state, stats)`."""
    if not callable(objective):
        raise TypeError(f"the objective is a function of (model, ps, st, batch), got {describe(objective)}")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite is one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}")
    count(accumulate)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Stats]:
        return state.placement.kept(*made(state, batch))

    def made(state: TrainState, batch: Any) -> tuple[TrainState, Stats]:
        found = _gradients(objective, state, batch, accumulate)
        after = _updated(
            state, found.ps, found.gradients, value=found.loss, grad=found.gradients, value_fn=found.value_fn
        )
        after = after.replace(st=found.st)
        stats = {"loss": found.loss, **found.stats}
        if nonfinite == "keep" and state.loss_scale is None:
            return after, {**stats, "finite": jnp.array(True)}
        good_loss, good_gradients = jnp.isfinite(found.loss), all_finite(found.gradients)
        good = good_loss & good_gradients
        lost = ~good
        if state.loss_scale is not None:  # an overflow that a smaller scale mends is no failure
            lost &= ~(good_loss & (state.loss_scale.scale > 1))
        ps, st, opt_state, ema = where(good, _varying(after), _varying(state))
        half = jnp.where(lost, 0.5, 1.0) if nonfinite == "back_off" else None
        after = after.replace(
            ps=ps,
            st=st,
            opt_state=opt_state,
            ema=ema,
            skipped=state.skipped + lost.astype(jnp.int32),
            update_scale=state.update_scale if half is None else state.update_scale * half.astype(jnp.float32),
            loss_scale=state.loss_scale and _next_scale(state.loss_scale, good),
        )
        if nonfinite == "stop":
            after = where(state.skipped == 0, after, state)
        return after, {**stats, "finite": good}

    return step


class _Gradients(NamedTuple):
    ps: Any  # as the model takes them
    gradients: Any
    loss: jax.Array
    st: Any
    stats: Stats
    value_fn: Callable[[Any], jax.Array]


def _gradients(objective: Objective, state: TrainState, batch: Any, accumulate: int) -> _Gradients:
    """The loss on a batch and its gradients, averaged over the parts of the batch."""
    place, scale = state.placement, 1.0 if state.loss_scale is None else state.loss_scale.scale
    require_parts(batch, accumulate, place.lanes)
    batch, ps, st = place.split(batch), place.whole(state.ps), state.st
    trained = ps if state.part is None else state.part.take(ps)
    example = batch
    if accumulate > 1:
        example = jax.tree.map(lambda x: x[: x.shape[0] // (accumulate * place.lanes)], batch)
    evaluate = _traced(objective, state, ps, trained, example)

    def loss(trained: Any, st: Any, batch: Any) -> tuple[jax.Array, tuple[jax.Array, Any, Stats]]:
        value, st, stats = evaluate(trained, st, batch)
        return value * jnp.asarray(scale, value.dtype), (value, st, stats)

    gradient = jax.grad(loss, has_aux=True)

    def over_parts(trained: Any, st: Any, parts: Any) -> Any:
        def add(carry: Any, part: Any) -> tuple[Any, Any]:
            total, st = carry
            gradients, (value, st, stats) = gradient(trained, st, part)
            return (jax.tree.map(jnp.add, total, single(gradients)), st), (value, stats)

        start, loop = (jax.tree.map(jnp.zeros_like, single(trained)), st), functools.partial(jax.lax.scan, add)
        if has_convolutions(jax.make_jaxpr(evaluate)(trained, st, example)):
            unrolled = functools.partial(loop, unroll=accumulate)
            (total, st), (values, all_stats) = by_platform(start, parts, cpu=unrolled, default=loop)
        else:
            (total, st), (values, all_stats) = loop(start, parts)
        gradients = jax.tree.map(lambda x, p: (x / accumulate).astype(p.dtype), total, trained)
        return gradients, st, jnp.mean(values), jax.tree.map(_mean, all_stats)

    if accumulate == 1:
        gradients, (value, st, stats) = gradient(trained, st, batch)
    else:
        gradients, st, value, stats = place.accumulated(over_parts, trained, st, batch, accumulate)
    gradients = place.scattered(gradients)
    if state.loss_scale is not None:
        gradients = jax.tree.map(lambda x: x / jnp.asarray(scale, x.dtype), gradients)

    def value_fn(trained: Any) -> jax.Array:
        """The loss on all of the batch, for line searches."""
        trained = place.whole(trained)
        if accumulate == 1:
            return evaluate(trained, state.st, batch)[0]

        def next_part(st: Any, part: Any) -> tuple[Any, jax.Array]:
            value, st, _ = evaluate(trained, st, part)
            return st, value

        return jnp.mean(jax.lax.scan(next_part, state.st, cut(batch, accumulate * place.lanes))[1])

    return _Gradients(ps, gradients, value, st, stats, value_fn)


def _traced(objective: Objective, state: TrainState, ps: Any, trained: Any, batch: Any) -> Callable[..., Any]:
    """The objective as a function `(trained, st, batch) -> (value, st, stats)`, traced once, and looked through."""
    others = (ps if state.part is not None else None, state.st, batch)

    def outcome(trained: Any, others: Any) -> Any:
        ps, st, batch = others
        ps = trained if state.part is None else state.part.join(trained, ps)
        return objective_of(objective, state.replace(ps=ps, st=st), batch)[-1]

    with state.placement.tracing():
        closed, shapes = jax.make_jaxpr(outcome, return_shape=True)(trained, others)
    state.placement.same_program(closed)
    structure = jax.tree.structure(shapes)
    if isinstance(trained, ComponentVector):
        blocks = trained.layout.blocks
        unused = untouched(closed, 0, [leaf.size for leaf in blocks])
        names = [trained.layout.name(leaf.path) for leaf, idle in zip(blocks, unused, strict=True) if idle]
        if names:
            warnings.warn(
                f"the loss does not depend on {', '.join(f'`{name}`' for name in names)}: the gradient there is zero; "
                "use them in the objective, or name those to train by `trainable=`",
                stacklevel=2,
            )

    def evaluate(trained: Any, st: Any, batch: Any) -> Any:
        leaves = jax.tree.leaves((trained, (others[0], st, batch)))
        return jax.tree.unflatten(structure, run_jaxpr(closed, *leaves))

    return evaluate


def objective_of(objective: Any, state: TrainState, batch: Any) -> tuple[Any, Any, Any, Any, Any]:
    """What the objective is given, in the precision to compute in, and `(loss, st, stats)` of what it returns."""
    ps, st = state.ps, state.st
    if state.dtype is not None:
        ps, batch = _cast(ps, state.dtype), _cast(batch, state.dtype)
    out = called("objective", objective, ("model", "ps", "st", "batch"), state.model, ps, st, batch)
    return state.model, ps, st, batch, _outcome(out, st, state.dtype is not None)


def _outcome(out: Any, given: Any, mixed: bool) -> tuple[jax.Array, Any, Stats]:
    """What an objective returns, as the loss, the next state and the stats."""
    parts = out if isinstance(out, tuple) else (out,)
    if len(parts) not in (1, 2, 3):
        raise TypeError(f"the objective returns the loss, (loss, st) or (loss, st, stats), got {describe(out)}")
    value = single(one_number(parts[0]))
    st, stats = parts[1] if len(parts) > 1 else given, parts[2] if len(parts) > 2 else {}
    if not isinstance(stats, Mapping) or not all(isinstance(name, str) for name in stats):
        raise TypeError(f"the third of what the objective returns is a dict of stats, got {describe(stats)}")
    if taken := {"loss", "finite"} & stats.keys():
        raise ValueError(f"the stats `{'`, `'.join(taken)}` are there already: give them another name")
    if len(parts) == 1 and in_training(given):
        warnings.warn(
            "the objective returns no state, and the layers are in training: statistics and random keys do not "
            "advance. Return (loss, st), or start from `lux.testmode(st)` where it is to stay",
            stacklevel=2,
        )
    if mixed and jax.tree.structure(st) == jax.tree.structure(given):
        st = jax.tree.map(lambda new, old: new.astype(old.dtype) if is_inexact(old) else new, st, given)
    require_same_kind(given, st)
    return value, st, {name: jnp.asarray(x) for name, x in stats.items()}


def _updated(state: TrainState, whole: Any, gradients: Any, **extra: Any) -> TrainState:
    """The state after the optimizer's step. `whole` are its parameters as the model takes them."""
    trained = _trained(state, whole)
    with jax.numpy_dtype_promotion("standard"):
        updates, memory = state.optimizer.update(gradients, state.opt_state, trained, **extra)
        memory = jax.tree.map(_of_the_type, memory, state.opt_state)
        trained = jax.tree.map(lambda p, u: (p + state.update_scale * u).astype(p.dtype), trained, updates)
        ps = _joined(state, whole, trained)
        ema = state.ema
        if state.decay is not None:
            keep = state.decay
            ema = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p.astype(a.dtype), ema, ps)
    return state.replace(ps=ps, opt_state=memory, ema=ema, step=state.step + 1)


def _of_the_type(new: Any, old: Any) -> Any:
    """Some transformations return their memory in another type than they begin with, where numbers are promoted."""
    return new.astype(old.dtype) if is_inexact(old) and new.dtype != old.dtype else new


def _trained(state: TrainState, whole: Any) -> Any:
    return state.ps if state.part is None else state.placement.scattered(state.part.take(whole))


def _joined(state: TrainState, whole: Any, trained: Any) -> Any:
    """All parameters, with these in the place of those that are trained."""
    if state.part is None:
        return trained
    place = state.placement
    return place.scattered(state.part.join(place.whole(trained), whole))


def _varying(state: TrainState) -> tuple[Any, ...]:
    """What stays as it is where a step is left out."""
    return state.ps, state.st, state.opt_state, state.ema


def _next_scale(scale: LossScale, good: jax.Array) -> LossScale:
    """Half as much after an overflow, but at least 1; twice as much after `GOOD_STEPS` without one."""
    number = jnp.where(good, scale.good + 1, 0)
    grows = number >= GOOD_STEPS
    value = jnp.where(good, jnp.where(grows, 2 * scale.scale, scale.scale), jnp.maximum(scale.scale / 2, 1))
    return LossScale(value, jnp.where(grows, 0, number))


def _cast(tree: Any, dtype: Any) -> Any:
    """The real floating-point arrays of a tree, and its ComponentVectors with their layouts, in another type."""

    def cast(x: Any) -> Any:
        return x.astype(dtype) if is_inexact(x) and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree, is_leaf=lambda x: isinstance(x, ComponentVector))


def _mean(x: jax.Array) -> jax.Array:
    return x[-1] if is_random_key(x) else jnp.mean(x, axis=0)


def _require_state(state: Any) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(f"a step takes a TrainState, TrainState.create(model, optimizer, ...), got {describe(state)}")
