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


@overload
def save_times(ts: None) -> None: ...


@overload
def save_times(ts: Sequence[Any] | np.ndarray | jax.Array | Constant) -> Constant: ...


@checks_itself
def save_times(ts: Any) -> Constant | None:
    """The times in a layer's field, checked; `None` where they come with each call."""
    if ts is None:
        return None
    if is_traced(ts):
        raise TypeError("the times are traced, and are to be known here: NumPy arrays, lists, or made outside of jit")
    _require_monotone(np.asarray(ts))
    return Constant(ts)


def times_like(ts: Any, y0: Any, batching: str) -> jax.Array:
    """Times of shape `(times,)`, or `(batch, times)`, in the precision of `y0`, single at least."""
    precise = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(y0) if jnp.finfo(leaf.dtype).bits >= 32]
    ts = times_in(precise[0].dtype if precise else jnp.float32, ts)
    if ts.ndim != (2 if batching == "vmap" and ts.ndim == 2 else 1):
        raise ValueError(f"times have shape (times,), or (batch, times) with batching='vmap', got {ts.shape}")
    return ts


def times_in(dtype: Any, ts: Any, *, monotone: bool = True) -> jax.Array:
    """Times in a floating-point type, checked to be `monotone` where they are known.

    `ValueError` where they do not survive the conversion, so that neighbors become one. Traced times are NaN then, and
    where neighbors are one before, as after a conversion by JAX.
    """
    if not is_traced(ts):
        known = np.asarray(ts)
        if monotone:
            _require_monotone(known)
        with np.errstate(over="ignore", invalid="ignore"):
            converted = known.astype(dtype)
            equal = (np.diff(known, axis=-1) != 0) & ~(abs(np.diff(converted, axis=-1)) > 0)  # infinite ones too
        if equal.any():
            *row, place = np.argwhere(equal)[0]
            before, after = known[(*row, place)], known[(*row, place + 1)]
            raise ValueError(
                f"the times {before} and {after} are one number in {np.dtype(dtype).name}, the precision of the solve: "
                "subtract the first time from all, or give the initial value in float64 "
                '(jax.config.update("jax_enable_x64", True))'
            )
        return jnp.asarray(converted)
    converted = ts.astype(dtype)
    equal = jnp.diff(converted, axis=-1) == 0
    lost = equal if monotone else equal & (jnp.diff(ts, axis=-1) != 0)
    return jnp.where(jnp.any(lost, axis=-1, keepdims=True), jnp.nan, converted)


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
