"""Times: known or traced, checked and compared in the one precision that a solve has."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import is_traced
from ..core import Constant
from ..core.converters import checks_itself
from ..series import Series, before_padding


@overload
def save_times(ts: None) -> None: ...


@overload
def save_times(ts: Sequence[Any] | np.ndarray | jax.Array | Constant) -> Constant: ...


@checks_itself
def save_times(ts: Any) -> Constant | None:
    """The times in a layer's field, checked, or a start and infinity; `None` where they come with each call."""
    if ts is None:
        return None
    if is_traced(ts):
        raise TypeError("the times are traced, and are to be known here: NumPy arrays, lists, or made outside of jit")
    if not endless(ts):
        _require_monotone(np.asarray(ts))
    return Constant(ts)


def endless(ts: Any) -> bool:
    """Whether known times are a start and infinity: until the solution is steady."""
    known = np.asarray(ts)
    return known.shape == (2,) and bool(np.isfinite(known[0]) and known[1] == np.inf)


def times_like(ts: Any, y0: Any, batching: str) -> jax.Array:
    """Times of shape `(times,)`, or `(batch, times)`, in the precision of `y0`, single at least; those of a Series too.

    The last time may be repeated, at the end, as padding; a Series may have one time only.
    """
    precise = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(y0) if jnp.finfo(leaf.dtype).bits >= 32]
    dtype = precise[0].dtype if precise else jnp.float32
    ts = _times_of_series(dtype, ts) if isinstance(ts, Series) else times_in(dtype, ts, padded=True)
    if ts.ndim != (2 if batching == "vmap" and ts.ndim == 2 else 1):
        raise ValueError(f"times have shape (times,), or (batch, times) with batching='vmap', got {ts.shape}")
    return ts


def _times_of_series(dtype: Any, series: Series) -> jax.Array:
    """The times of a Series, with the last one of each in its padding; NaN where they are no series."""
    known = not (is_traced(series.times) or is_traced(series.mask))
    xp: Any = np if known else jnp
    ts, mask = xp.asarray(series.times), xp.asarray(series.mask)
    counts = mask.sum(-1)
    ts = xp.where(mask, ts, xp.take_along_axis(ts, xp.maximum(counts - 1, 0)[..., None], -1))
    if known:
        for i, (row, own) in enumerate(zip(np.atleast_2d(ts), np.atleast_2d(mask), strict=True)):
            _require_series(f"series {i}", row, own)
        return _converted(dtype, ts, mask)
    good = (mask == (jnp.arange(mask.shape[-1]) < counts[..., None])).all(-1) & (counts > 0)
    return jnp.where(good[..., None], _converted(dtype, ts, mask), jnp.nan)


def _require_series(name: str, times: np.ndarray, mask: np.ndarray) -> None:
    if not mask.any():
        raise ValueError(f"{name} has no time in its mask: leave it out")
    if not mask[: mask.sum()].all():
        raise ValueError(f"the mask of {name} has gaps, and marks the first entries: values not observed are NaN")
    if mask.sum() > 1:
        _require_monotone(times[mask])
    elif not np.isfinite(times[0]):
        raise ValueError(f"the time of {name} is not finite")


def times_in(dtype: Any, ts: Any, *, monotone: bool = True, padded: bool = False) -> jax.Array:
    """Times in a floating-point type, checked to be `monotone` where they are known; `padded` may repeat the last one.

    `ValueError` where they do not survive the conversion, so that neighbors become one. Traced times are NaN then, and
    where neighbors are one before, as after a conversion by JAX.
    """
    traced = is_traced(ts)
    ts = ts if traced else np.asarray(ts)
    used = before_padding(ts) if padded and ts.ndim and ts.shape[-1] else (jnp if traced else np).ones(ts.shape, bool)
    if monotone and not traced:
        for row, own in zip(np.atleast_2d(ts), np.atleast_2d(used), strict=True):
            _require_monotone(row[own] if own.sum() > 1 else row)
    converted = _converted(dtype, ts, used if monotone else None)
    if padded and traced and ts.ndim and ts.shape[-1] > 1:
        converted = jnp.where(used[..., 1:2], converted, jnp.nan)  # all times are one
    return converted


def _converted(dtype: Any, ts: Any, used: Any) -> jax.Array:
    """Times in a type; `ValueError`, or traced NaN, where neighbors become one, or traced ones are among the used."""
    if not is_traced(ts):
        with np.errstate(over="ignore", invalid="ignore"):
            converted = ts.astype(dtype)
            equal = (np.diff(ts, axis=-1) != 0) & ~(abs(np.diff(converted, axis=-1)) > 0)  # infinite ones too
        if equal.any():
            *row, place = np.argwhere(equal)[0]
            before, after = ts[(*row, place)], ts[(*row, place + 1)]
            raise ValueError(
                f"the times {before} and {after} are one number in {np.dtype(dtype).name}, the precision of the solve: "
                "subtract the first time from all, or give the initial value in float64 "
                '(jax.config.update("jax_enable_x64", True))'
            )
        return jnp.asarray(converted)
    converted = ts.astype(dtype)
    equal = jnp.diff(converted, axis=-1) == 0
    lost = equal & (jnp.diff(ts, axis=-1) != 0)
    lost = lost if used is None else lost | (equal & used[..., 1:])
    return jnp.where(jnp.any(lost, axis=-1, keepdims=True), jnp.nan, converted)


def lengths(ts: jax.Array) -> jax.Array:
    """How many times there are before the padding, which repeats the last one, `(...)`."""
    return before_padding(ts).sum(-1)


def _require_monotone(ts: np.ndarray) -> None:
    if ts.ndim == 0 or ts.shape[-1] < 2:
        raise ValueError(
            f"`ts` holds at least two times, the first one that of the initial value, got shape {ts.shape}"
        )
    if not np.isfinite(ts).all():
        raise ValueError("`ts` holds times that are not finite")
    for row in ts.reshape(-1, ts.shape[-1]):
        steps = np.diff(row)
        turns = np.flatnonzero(steps * np.sign(steps[0]) <= 0)
        if turns.size:
            raise ValueError(
                f"`ts` must strictly increase or strictly decrease; it turns after position {turns[0]}: "
                f"{row[turns[0]]}, {row[turns[0] + 1]}"
            )


def in_order(ts: Any, save_times: Iterable[Any] = (), step_times: Any = None) -> Any:
    """Whether times go one way, save times too and within them, and steps from the first one to the last.

    Where times are known `ValueError` says what is wrong; where some are traced so is the answer.
    """
    checks = [(_go(ts, ts), "`ts` must increase or decrease")]
    for saved in save_times:
        says = "the times of `saveat` must go one way, from the first time of the solve to the last"
        checks.append((_go(saved, ts, within=True), says))
    if step_times is not None:
        says = "the times of diffrax.StepTo must go from the first time of the solve to the last, and all differ"
        checks.append((_go(step_times, ts, as_steps=True), says))
    for check, says in checks:
        if not is_traced(check) and not check:
            raise ValueError(f"{says}; the solve is from {ts[0]} to {ts[-1]}")
    return functools.reduce(jnp.logical_and, [check for check, _ in checks if is_traced(check)], True)


def _go(times: Any, ts: Any, within: bool = False, as_steps: bool = False) -> Any:
    """Whether times go the way of `ts`; `within` it, or, `as_steps`, from its start to its end without a pause."""
    xp = jnp if is_traced(times) or is_traced(ts) else np
    ts = xp.asarray(ts)
    times = xp.asarray(times, ts.dtype)
    if within:
        times = xp.concatenate([ts[:1], times, ts[-1:]])
    steps = xp.diff(times) * xp.sign(ts[-1] - ts[0])
    if as_steps:
        return (times[0] == ts[0]) & (times[-1] == ts[-1]) & (steps > 0).all()
    return (steps >= 0).all()
