"""Paths through irregular, incomplete data, which drive controlled differential equations."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import lax

from .._tree import is_traced, widened
from ..series import before_padding

INTERPOLATIONS = ("hermite", "linear", "rectilinear")


def control_path(
    ts: jax.typing.ArrayLike, xs: jax.typing.ArrayLike, interpolation: str = "hermite", *, with_time: bool = False
) -> diffrax.AbstractGlobalInterpolation:
    """A path through `xs`, of shape `(times, ..., channels)`, at the times `ts`; NaN marks what was not observed.

    Each channel has gaps of its own: it is interpolated across them as if those times were not there, keeps its last
    value after its last observation, and, where its first value is missing, starts from zero. `with_time` puts time
    before the channels. Where the last time is repeated, at the end, that is padding, which is not read.

    * `"hermite"`: cubic, with backward differences as slopes: smooth, and the one to take unless there is a reason.
    * `"linear"`: straight lines; its derivative jumps at `ts`.
    * `"rectilinear"`: uses no observation before its time, for predictions while data come in. The channels are held
      while time goes on, and then jump while time is held. It is a path over `0, 1, ..., 2 times - 2`, with the
      observations at the even indices.

    Kidger et al., "Neural controlled differential equations", NeurIPS 2020; Morrill et al., "Neural controlled
    differential equations for online prediction tasks", 2021. Raises `ValueError` for another interpolation and for
    times that do not increase; where those are traced, the path is NaN.

    >>> import jax.numpy as jnp
    >>> path = control_path(jnp.array([0.0, 1.0, 3.0]), jnp.array([[0.0], [jnp.nan], [6.0]]), "linear")
    >>> path.evaluate(1.0)
    Array([2.], dtype=float32)
    """
    require_interpolation(interpolation)
    times, data = widened((ts, xs))
    if len(times) < 2 or data.shape[:1] != times.shape:
        raise ValueError(
            f"a path goes through data (times, ...) at two times or more, got {data.shape} at {times.shape}"
        )
    good = increasing(times, more_than_one=True)
    return jax.tree.map(lambda x: jnp.where(good, x, jnp.nan), path_through(times, data, interpolation, with_time))


def path_through(
    times: jax.Array, data: jax.Array, interpolation: str, with_time: bool
) -> diffrax.AbstractGlobalInterpolation:
    """The path of `control_path`, through data whose times are checked, or one time repeated.

    In place of padding it has knots close behind the last one, with nothing observed: windows over it are as without.
    """
    if times.size == 1:
        times, data = jnp.repeat(times, 2), jnp.repeat(data, 2, axis=0)
    own, knots = before_padding(times), jnp.arange(2 * times.size - 1, dtype=times.dtype)
    if is_traced(own) or not own.all():
        data = jnp.where(own.reshape(-1, *(1 for _ in data.shape[1:])), data, jnp.nan)
        times, knots = _close_behind(times, own.sum()), _close_behind(knots, 2 * own.sum() - 1)
    data = data.at[0].set(first_values(data[0]))
    if interpolation == "rectilinear":
        times, data = jnp.repeat(times, 2)[1:], jnp.repeat(_observations(data)[0], 2, axis=0)[:-1]
    if with_time:
        data = jnp.concatenate([_along(times, data[..., :1]), data], axis=-1)
    if interpolation == "rectilinear":
        return diffrax.LinearInterpolation(knots, data)
    return _linear(times, data) if interpolation == "linear" else _hermite(times, data)


def _close_behind(knots: jax.Array, count: Any) -> jax.Array:
    """The first `count` knots, and the others as close behind them as numbers in their precision are."""
    last, places = knots[count - 1], (jnp.arange(knots.size) - count + 1).astype(knots.dtype)
    gap = 8 * jnp.finfo(knots.dtype).eps * jnp.maximum(jnp.abs(last), jnp.abs(last - knots[0]))
    return jnp.where(places <= 0, knots, last + places * jnp.where(gap > 0, gap, 1))


def _linear(ts: jax.Array, xs: jax.Array) -> diffrax.LinearInterpolation:
    times = _along(ts, xs)
    held, before, after = _observations(xs)
    start = _rows(times, before)
    width = jnp.where(after > before, _rows(times, after) - start, 1)
    return diffrax.LinearInterpolation(ts, held + (_rows(held, after) - held) * (times - start) / width)


def _hermite(ts: jax.Array, xs: jax.Array) -> diffrax.CubicInterpolation:
    """A cubic between each two observations, from the slope of the chord before it to that of its own chord."""
    times = _along(ts, xs)
    held, before, after = _observations(xs)
    a, before, after = held[:-1], before[:-1], after[1:]
    start = _rows(times, before)
    width = _rows(times, after) - start
    chord = (_rows(held, after) - a) / width
    b = _rows(chord, jnp.maximum(before - 1, 0))
    c, d = 2 * (chord - b) / width, -(chord - b) / width**2
    s = times[:-1] - start  # the same cubic, from a time in the gap
    return diffrax.CubicInterpolation(
        ts, (d, c + 3 * s * d, b + s * (2 * c + 3 * s * d), a + s * (b + s * (c + s * d)))
    )


def _observations(xs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The data with the last observation where one is missing; the rows of the last and of the next observation.

    Both are the row itself where there is an observation, and, since the path is constant there, after the last one.
    """
    rows, missing = lax.broadcasted_iota(jnp.int32, xs.shape, 0), jnp.isnan(xs)
    before = _running(jnp.maximum, jnp.where(missing, 0, rows))
    after = _running(jnp.minimum, jnp.where(missing, len(xs), rows), reverse=True)
    ended = after == len(xs)
    return _rows(xs, before), jnp.where(ended, rows, before), jnp.where(ended, rows, after)


def _running(f: Callable, x: jax.Array, *, reverse: bool = False) -> jax.Array:
    """The extrema of the rows so far. `lax.cummax` and its like take ten times as long on a CPU."""
    return lax.scan(lambda so_far, row: (f(so_far, row),) * 2, x[-1 if reverse else 0], x, reverse=reverse)[1]


def _rows(xs: jax.Array, rows: jax.Array) -> jax.Array:
    """Of each channel the values at rows of its own."""
    return jnp.take_along_axis(xs, rows, axis=0, mode="promise_in_bounds")


def _along(ts: jax.Array, xs: jax.Array) -> jax.Array:
    """The times in the shape and the type of the data."""
    return jnp.broadcast_to(ts.astype(xs.dtype).reshape(-1, *(1 for _ in xs.shape[1:])), xs.shape)


def increasing(ts: jax.Array, *, more_than_one: bool = False) -> jax.Array:
    """Whether the times increase, up to padding; `ValueError` where they are known and do not."""
    good = jnp.all((jnp.diff(ts) > 0) | ~before_padding(ts)[1:])
    good = good & (ts[-1] > ts[0]) if more_than_one else good
    if not is_traced(good) and not good:
        raise ValueError(f"the times of a path through data must increase, in {ts.dtype} too")
    return good


def first_values(x: jax.Array) -> jax.Array:
    """The observations at the first time, zero where there are none."""
    return jnp.where(jnp.isnan(x), 0, x)


def require_interpolation(name: str) -> None:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation is one of {', '.join(map(repr, INTERPOLATIONS))}, got {name!r}")
