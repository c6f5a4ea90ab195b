"""Multiple shooting: many short solves that must join, in place of one long one."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from ..._tree import floating, squared
from ...core import Layer
from ...core.converters import short
from ..equation import equation_of
from ..times import save_times, times_like


def multiple_shooting(
    layer: Layer,
    ps: Any,
    st: Any,
    data: Any,
    ts: Any,
    *,
    group_size: int,
    starts: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    continuity: Callable[[Any, Any], Any] | None = None,
    continuity_weight: float = 100.0,
) -> tuple[jax.Array, tuple[Any, ...]]:
    r"""The loss of short solves, each over `group_size` times, and the jumps between them: `loss, predictions`.

    Over a long time the loss of one solve has many local minima, and steep walls between; over short times it has few.
    `layer` is a `NeuralODE` or one like it, built without `ts`, with the output `"solution"` or `"ys"`. `data` is an
    array `(times, ...)`, or a tree of them, as the state is. Neighboring groups share a time; the last group may be
    shorter. All are solved at once. The loss is

    .. math:: \sum_g \ell(\hat y_g, y_g) + w \sum_g c(\hat y_g(t_{end}), y_{g+1}(t_{start}))

    * `loss`: `l(prediction, data)`, by default the sum of squares, over what is not NaN;
    * `continuity`: `c(end, start)`, by default the sum of magnitudes; `continuity_weight` is `w`;
    * `starts`: where the groups start, `(groups, ...)`: by default the data there. They may be parameters that are
      learned with the others, where data are noisy or incomplete (`data` then has the shape that `loss` wants).

    A failed group makes the loss infinite, its own part of the gradient zero.

    `predictions` holds the values of each group, `(its times, ...)`.

    Bock, Plitt, "A multiple shooting algorithm for direct solution of optimal control problems", 1984; Turan, Jäschke,
    "Multiple shooting for training neural differential equations on time series", 2021. Raises `ValueError` for a
    `group_size` that is not from 2 to the number of times, for `data` or `starts` of other lengths, and for a layer
    whose values are not like its initial values, as those of an `AugmentedODE`; `TypeError` for what is no equation.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.NeuralODE(lux.Dense(2, 2))
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> ts, data = jnp.linspace(0.0, 1.0, 8), jnp.ones((8, 2))
    >>> loss, predictions = lux.diffeq.multiple_shooting(node, ps, st, data, ts, group_size=4)
    >>> [len(ys) for ys in predictions]
    [4, 4, 2]
    """
    equation = equation_of(layer)
    if equation is None or "ts" not in equation.options():
        raise TypeError(f"multiple_shooting takes a NeuralODE, or an equation like it, got {short(layer)}")
    if equation.jumps is not None:
        raise ValueError(
            "multiple_shooting takes a layer without jumps: their times are not in the spans of all groups"
        )
    if equation.ts is not None or equation.output == "final" or equation.batching == "vmap" or equation.controlled:
        raise ValueError(
            "multiple_shooting takes a layer built without `ts`, with output 'ys' or 'solution', batching='joint' and "
            "without a control"
        )
    times, data = np.asarray(save_times(ts), float), floating(data)
    groups = shooting_groups(len(times), group_size)
    lengths = {len(values) for values in jax.tree.leaves(data)}
    if lengths != {len(times)}:
        raise ValueError(f"data have shape (times, ...), with {len(times)} times; got {_shapes(data)}")
    starts = _rows(data, np.array([group.start for group in groups])) if starts is None else floating(starts)
    if {len(values) for values in jax.tree.leaves(starts)} != {len(groups)}:
        raise ValueError(f"there are {len(groups)} groups, and as many starts; got {len(jax.tree.leaves(starts)[0])}")
    loss = _squares if loss is None else loss
    continuity = _magnitudes if continuity is None else continuity

    padded = times_like(np.stack([_padded(times[group], group_size) for group in groups]), starts, "vmap")
    sols = jax.vmap(lambda y0, ts: layer((y0, ts), ps, st)[0])(starts, padded)
    ys = sols.ys if isinstance(sols, diffrax.Solution) else sols
    expected = jax.tree.map(lambda y: (len(groups), group_size, *y.shape[1:]), starts)
    if jax.tree.structure(ys) != jax.tree.structure(starts) or jax.tree.map(jnp.shape, ys) != expected:
        raise ValueError(
            "in multiple shooting a group ends where the next one starts: the values of the layer are to look like its "
            f"initial values, each {_shapes(_rows(starts, 0))}; of {len(groups)} groups of {group_size} times they are "
            f"{_shapes(ys)}"
        )
    failed = ~jnp.stack([jnp.all(jnp.isfinite(y.reshape(len(groups), -1)), axis=1) for y in jax.tree.leaves(ys)]).all(0)
    still = jax.tree.map(lambda y: jax.lax.stop_gradient(jnp.zeros_like(y)), ys)
    ys = jax.tree.map(lambda y, zero: jnp.where(failed.reshape(-1, *(1,) * (y.ndim - 1)), zero, y), ys, still)

    predictions = tuple(_rows(ys, (i, _places(group, group_size))) for i, group in enumerate(groups))
    total = sum(loss(y, _rows(data, group)) for group, y in zip(groups, predictions, strict=True))
    if len(groups) > 1:
        ends, nexts = _rows(ys, (slice(None, -1), -1)), _rows(starts, slice(1, None))
        total += continuity_weight * continuity(ends, nexts)
    return jnp.where(jnp.any(failed), jnp.inf, total), predictions


def shooting_groups(times: int, group_size: int) -> list[slice]:
    """The times of each group; neighbors share one, and the last group takes what is left.

    >>> shooting_groups(8, 4)
    [slice(0, 4, None), slice(3, 7, None), slice(6, 8, None)]
    """
    if not 2 <= group_size <= times:
        raise ValueError(f"group_size is from 2 to the number of times, {times}; got {group_size}")
    return [slice(start, min(start + group_size, times)) for start in range(0, times - 1, group_size - 1)]


def _padded(ts: np.ndarray, size: int) -> np.ndarray:
    """As many times as the longest group has: more of them within the last interval, so that the end stays the end."""
    return np.concatenate([ts[:-2], np.linspace(ts[-2], ts[-1], size - len(ts) + 2)])


def _places(group: slice, size: int) -> np.ndarray:
    """Where the times of a group stand among the padded ones."""
    count = group.stop - group.start
    return np.r_[: count - 1, size - 1]


def _rows(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _shapes(tree: Any) -> str:
    return str(jax.tree.map(jnp.shape, tree))


def _squares(prediction: Any, data: Any) -> Any:
    """The sum of squares, without what was not observed."""

    def squares(y: jax.Array, x: jax.Array) -> jax.Array:
        missing = jnp.isnan(x)
        return jnp.sum(squared(jnp.where(missing, 0, y - jnp.where(missing, 0, x))))

    return sum(jax.tree.leaves(jax.tree.map(squares, prediction, data)))


def _magnitudes(end: Any, start: Any) -> Any:
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(jnp.abs(a - b)), end, start)))
