"""Multiple shooting: many short solves that must join, in place of one long one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._tree import floating
from ...core import Layer
from ..times import save_times


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
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    r"""The loss of short solves, each over `group_size` times, and the jumps between them: `loss, predictions`.

    Over a long time the loss of one solve has many local minima, and steep walls between; over short times it has few.
    `layer` is a `NeuralODE` or one like it, built without `ts`, with the output `"solution"` or `"ys"`. `data` is
    `(times, ...)`. Neighboring groups share a time; the last group may be shorter. All are solved at once. The loss is

    .. math:: \sum_g \ell(\hat y_g, y_g) + w \sum_g c(\hat y_g(t_{end}), y_{g+1}(t_{start}))

    with `loss` `l(prediction, data)`, by default the sum of squares, `continuity` `c(end, start)`, by default the sum
    of magnitudes, and `continuity_weight` `w`. Groups start from `starts` `(groups, ...)`, which may be parameters that
    are learnt with the others, where data are noisy or incomplete (`data` then has the shape that `loss` wants); by
    default from the data. A failed group makes the loss infinite, its own part of the gradient zero.

    `predictions` holds the values of each group, `(its times, ...)`.

    Bock, Plitt, "A multiple shooting algorithm for direct solution of optimal control problems", 1984; Turan, Jäschke,
    "Multiple shooting for training neural differential equations on time series", 2021. Raises `ValueError` for a
    `group_size` that is not from 2 to the number of times, and for `data` or `starts` of other lengths.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.NeuralODE(lux.Dense(2, 2))
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> ts, data = jnp.linspace(0.0, 1.0, 8), jnp.ones((8, 2))
    >>> loss, predictions = lux.diffeq.multiple_shooting(node, ps, st, data, ts, group_size=4)
    >>> [len(ys) for ys in predictions]
    [4, 4, 2]
    """
    options = {name: getattr(layer, name, None) for name in ("ts", "output", "batching")}
    if options["ts"] is not None or options["output"] == "final" or options["batching"] == "vmap":
        raise ValueError(
            "multiple_shooting takes a layer built without `ts`, with output 'ys' or 'solution', and batching='joint'"
        )
    times, data = np.asarray(save_times(ts), float), floating(data)
    groups = shooting_groups(len(times), group_size)
    if len(data) != len(times):
        raise ValueError(f"data have shape (times, ...), with {len(times)} times; got {data.shape}")
    starts = data[np.array([group.start for group in groups])] if starts is None else floating(starts)
    if len(starts) != len(groups):
        raise ValueError(f"there are {len(groups)} groups, and as many starts; got {len(starts)}")
    loss = _squares if loss is None else loss
    continuity = _magnitudes if continuity is None else continuity

    padded = jnp.asarray(np.stack([_padded(times[group], group_size) for group in groups]))
    sols = jax.vmap(lambda y0, ts: layer((y0, ts), ps, st)[0])(starts, padded)
    ys = getattr(sols, "ys", sols)
    failed = ~jnp.all(jnp.isfinite(ys.reshape(len(groups), -1)), axis=1)
    ys = jnp.where(failed.reshape(-1, *(1,) * (ys.ndim - 1)), jax.lax.stop_gradient(jnp.zeros_like(ys)), ys)

    predictions = tuple(y[_places(group, group_size)] for group, y in zip(groups, ys, strict=True))
    total = sum(loss(y, data[group]) for group, y in zip(groups, predictions, strict=True))
    if len(groups) > 1:
        total += continuity_weight * continuity(ys[:-1, -1], starts[1:])
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


def _squares(prediction: Any, data: Any) -> Any:
    return jnp.sum((prediction - data) ** 2)


def _magnitudes(end: Any, start: Any) -> Any:
    return jnp.sum(jnp.abs(end - start))
