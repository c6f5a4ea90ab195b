"""Series of unequal length in one record of arrays: `Series`, and `pad`, which makes it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._tree import floating, is_traced


@jax.tree_util.register_pytree_node_class
class Series:
    """Time series of unequal length side by side, padded at their ends, as equations and losses take them.

    * `times`: `(batch, times)`; in the padding, which is never read, `pad` repeats the last time of each series;
    * `values`: `(batch, times, ...)`, with NaN for what was not observed; `None` where there are only times;
    * `mask`: `(batch, times)`, True in the first entries of each row, which are the series, False in its padding. Left
      out, the padding is what repeats the last time;
    * `ids`: the name of each series, `(batch,)`, or `None`. They are for people: programs do not see them, and what
      comes out of `jax.jit` or `jax.tree.map` has none.

    One series alone has no axis for the batch, as inside `jax.vmap`. `series[rows]` picks some, `len(series)` counts
    them, and `series.lengths` are their numbers of times. Where a `NeuralODE` takes times, it takes a series, by
    `node((y0, series), ps, st)`; where a `NeuralCDE`, an `ODERNN` or a `LatentODE` takes `(times, data)`, it takes a
    series in their place. All with `batching="vmap"`: each sample is solved from its first time to its own last one. A
    loss takes it as its target.

    Raises `ValueError` for shapes that do not fit; where it is used, for times that are not in order, and for a mask
    with gaps or without a time. Where those are traced, the sample is NaN.

    >>> series = Series([[0.0, 1.0, 3.0], [0.0, 2.0, 2.0]])
    >>> series.mask.tolist(), series.lengths.tolist()
    ([[True, True, True], [True, True, False]], [3, 2])
    """

    times: Any
    values: Any
    mask: Any
    ids: Any

    def __init__(self, times: Any, values: Any = None, mask: Any = None, ids: Any = None):
        times, values, mask = (_as_array(x) for x in (times, values, mask))
        if mask is None:
            mask = before_padding(times) if np.size(times) else np.ones(times.shape, bool)
        if mask.dtype != bool:
            raise ValueError(f"the mask of a Series holds True and False, got {mask.dtype}")
        if times.ndim not in (1, 2) or mask.shape != times.shape:
            raise ValueError(
                f"a Series has times of shape (batch, times) and a mask like them, got {times.shape} and {mask.shape}"
            )
        if values is not None and values.shape[: times.ndim] != times.shape:
            raise ValueError(f"a Series of times {times.shape} has values of shape (batch, times, ...), "
                             f"got {values.shape}")  # fmt: skip
        if ids is not None and np.shape(ids) != times.shape[:-1]:
            raise ValueError(f"a Series of times {times.shape} has one id for each series, got {np.shape(ids)}")
        self.times, self.values, self.mask, self.ids = times, values, mask, ids

    @property
    def lengths(self) -> Any:
        """The number of times of each series, `(batch,)`."""
        return self.mask.sum(-1)

    @property
    def data(self) -> jax.Array:
        """The values in floating point, NaN in the padding too; `ValueError` where there are none."""
        if self.values is None:
            raise ValueError("this Series has times alone, and its values are asked for: Series(times, values, mask)")
        values = floating(self.values)
        return jnp.where(_expanded(self.mask, values), values, jnp.nan)

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, rows: Any) -> "Series":
        if isinstance(rows, int) and not -len(self) <= rows < len(self):
            raise IndexError(f"no row {rows} in {len(self)} series")  # JAX's arrays have none, and iteration no end
        picked = (None if part is None else part[rows] for part in (self.times, self.values, self.mask, self.ids))
        return _series(*picked)

    def __repr__(self) -> str:
        shape = None if self.values is None else self.values.shape
        return f"Series(times={self.times.shape}, values={shape})"

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return (self.times, self.values, self.mask), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Iterable[Any]) -> "Series":
        return _series(*children)


def _series(times: Any, values: Any, mask: Any, ids: Any = None) -> Series:
    """A Series of these parts, whatever they are: transforms put other things there."""
    out = object.__new__(Series)
    out.times, out.values, out.mask, out.ids = times, values, mask, ids
    return out


def _as_array(x: Any) -> Any:
    return x if x is None or isinstance(x, jax.Array | np.ndarray) else np.asarray(x)


def before_padding(times: Any) -> Any:
    """Whether a time comes before those that repeat the last one, `(..., times)`."""
    xp = jnp if is_traced(times) else np
    places = xp.arange(times.shape[-1])
    first = xp.argmax((times == times[..., -1:]) | (places == times.shape[-1] - 1), -1)  # NaN is equal to nothing
    return places <= first[..., None]


def _expanded(mask: Any, like: Any) -> Any:
    """A mask with axes of one after its own, as many as there are."""
    return jnp.reshape(mask, (*mask.shape, *(1,) * (jnp.ndim(like) - mask.ndim)))


def observed(target: Any, mask: Any = None) -> tuple[Any, Any]:
    """The values of a target, which may be a Series, and the mask of what counts in them; `None` for all."""
    if not isinstance(target, Series):
        return target, mask
    values = target.data
    seen = ~jnp.isnan(values)
    return values, seen if mask is None else seen & counting(mask, values)


def counting(mask: Any, values: Any) -> jax.Array:
    """A mask of the values' first axes, or one that broadcasts to them, in their shape."""
    shape, mask = jnp.shape(values), jnp.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"a mask holds True for what counts and False, got {mask.dtype}")
    mask = _expanded(mask, values) if mask.shape == shape[: mask.ndim] else mask
    try:
        return jnp.broadcast_to(mask, shape)
    except ValueError:
        says = f"the mask of values of shape {shape} has that of their first axes, got {mask.shape}"
        raise ValueError(says) from None


def pad(
    series: Sequence[tuple[Any, Any]] | Mapping[str, Any] | Any,
    *,
    id: str = "id",
    time: str = "time",
    values: str | Sequence[str] | None = None,
    length: int | None = None,
    start: float | None = None,
) -> Series:
    """The `Series` of a list of time series, or of a long table with a row for each observation.

    * `series`: a list of pairs `(times, values)`, of shapes `(n,)` and `(n,)` or `(n, channels)` or more, `n` of each
      its own; or a table, a `pandas.DataFrame` or a dict of columns. Its series are in the order of their first rows;
    * `id`, `time`: the columns that say which series a row belongs to, and when it was;
    * `values`: the columns of values, by default all others, in their order;
    * `length`: the number of times that there is room for, by default that of the longest series. A few lengths that
      are the same from batch to batch save compiling;
    * `start`: the time of the initial values, where measurements begin later, as after a dose at the time 0. A series
      that does not begin there gets this time, with NaN for values, for an equation is solved from the first one on.

    Values of shape `(n,)` get an axis for the channel. The padding repeats the last time, has NaN for values, and is
    False in the mask. All arrays are NumPy's, in the precision given.

    Raises `ValueError` for times that do not increase, are not finite or are before `start`, an empty series, values of
    other shapes, and columns that are not there.

    >>> series = pad([([0.0, 1.0, 3.0], [5.0, 6.0, 7.0]), ([0.0, 2.0], [1.0, 2.0])])
    >>> series.times.tolist(), series.values[1, :, 0].tolist(), series.lengths.tolist()
    ([[0.0, 1.0, 3.0], [0.0, 2.0, 2.0]], [1.0, 2.0, nan], [3, 2])
    >>> table = {"id": ["Ann", "Ann", "Bob"], "time": [0.0, 1.0, 0.0], "weight": [61.0, 62.0, 80.0]}
    >>> pad(table).ids.tolist(), pad(table).values.shape
    (['Ann', 'Bob'], (2, 2, 1))
    """
    if isinstance(series, Mapping) or hasattr(series, "columns"):
        named = _of_table(series, id, time, values)
    else:
        named = {i: _pair(i, item) for i, item in enumerate(series)}
    if not named:
        raise ValueError("there is no series to pad")
    checked = [_from(start, name, *_checked(name, *pair)) for name, pair in named.items()]
    shapes = {xs.shape[1:] for _, xs in checked}
    if len(shapes) > 1:
        raise ValueError(f"the series have the same channels in their values (n, ...), got {sorted(shapes)} after n")
    longest = max(len(ts) for ts, _ in checked)
    if length is not None and length < longest:
        raise ValueError(f"length={length} is less than the {longest} times of the longest series")
    count = longest if length is None else length
    times = np.stack([np.pad(ts, (0, count - len(ts)), mode="edge") for ts, _ in checked])
    padded = np.full((len(checked), count, *shapes.pop()), np.nan, np.result_type(*(xs.dtype for _, xs in checked)))
    for row, (_, xs) in zip(padded, checked, strict=True):
        row[: len(xs)] = xs
    mask = np.arange(count) < np.array([len(ts) for ts, _ in checked])[:, None]
    return Series(times, padded, mask, np.array(list(named)))


def _of_table(table: Any, id: str, time: str, values: str | Sequence[str] | None) -> dict[Any, tuple[Any, Any]]:
    """The times and values of each id, in the order of the first rows."""
    names = list(table.columns if hasattr(table, "columns") else table)
    wanted = [name for name in names if name not in (id, time)] if values is None else values
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    missing = [name for name in (id, time, *wanted) if name not in names]
    if missing or not wanted:
        raise ValueError(
            f"the table has the columns {', '.join(map(repr, names))}, and none for "
            f"{', '.join(map(repr, missing)) or 'values'}: "
            "pad(table, id=..., time=..., values=[...]) says which are which"
        )
    columns = [np.asarray(table[name]) for name in (id, time, *wanted)]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"the columns of a table have one length, got {[len(column) for column in columns]}")
    rows: dict[Any, list[int]] = {}
    for i, name in enumerate(columns[0].tolist()):
        if name is None or name != name:
            raise ValueError(f"row {i} of the table has no {id!r}")
        rows.setdefault(name, []).append(i)
    xs = np.stack(columns[2:], axis=-1)
    return {name: (columns[1][of], xs[of]) for name, of in rows.items()}


def _pair(i: int, item: Any) -> tuple[Any, Any]:
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise ValueError(f"series {i} is not a pair (times, values)")
    return item[0], item[1]


def _checked(name: Any, times: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of one series, in floating point, the values with channels."""
    ts, xs = _numbers(name, times), _numbers(name, values)
    if ts.size == 0:
        raise ValueError(f"series {name!r} is empty: leave it out")
    if ts.ndim != 1 or xs.shape[:1] != ts.shape:
        raise ValueError(f"series {name!r} has times of shape (n,) and values (n, ...), got {ts.shape} and {xs.shape}")
    if not np.isfinite(ts).all():
        raise ValueError(f"series {name!r} has a time that is not finite: {ts[~np.isfinite(ts)][0]}")
    turns = np.flatnonzero(np.diff(ts) <= 0)
    if turns.size:
        raise ValueError(
            f"the times of series {name!r} must increase; after position {turns[0]} they do not: {ts[turns[0]]}, "
            f"{ts[turns[0] + 1]}"
        )
    return ts, xs[:, None] if xs.ndim == 1 else xs


def _from(start: float | None, name: Any, times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A series that begins at `start`, with missing values where it began later."""
    if start is None or times[0] == start:
        return times, values
    if not (np.isfinite(start) and start < times[0]):
        raise ValueError(
            f"start is a time before those of all series, got {start}; series {name!r} is from {times[0]} on"
        )
    return np.concatenate([[start], times]).astype(times.dtype), np.concatenate(
        [np.full_like(values[:1], np.nan), values]
    )


def _numbers(name: Any, x: Any) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind in "mM":
        raise ValueError(
            f"series {name!r} holds numbers, in a unit of your own, got {x.dtype}: "
            "(time - time.min()) / np.timedelta64(1, 'h') are hours"
        )
    if x.dtype == object or x.dtype.kind not in "biufc":
        try:
            x = x.astype(float)
        except (TypeError, ValueError):
            raise ValueError(f"series {name!r} holds numbers, got {x.dtype}: {x.ravel()[:3].tolist()}") from None
    return x if x.dtype.kind in "fc" else x.astype(float)
