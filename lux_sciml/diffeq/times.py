"""Times: known or traced, checked and compared in the one precision that a solve has."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Constant
from ..core.converters import checks_itself


@checks_itself
def save_times(ts: Any) -> Constant | None:
    """The times in a layer's field, checked; `None` where they come with each call."""
    if ts is None:
        return None
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(ts)):
        raise TypeError(
            "the times in a layer's `ts` are known when it is built, and these are traced: build it without `ts`, and "
            "call it with the tuple (initial value, times)"
        )
    _require_monotone(np.asarray(ts))
    return Constant(ts)


def times_like(ts: Any, y0: Any, batching: str) -> jax.Array:
    """Times of shape `(times,)`, or `(batch, times)`, in the precision of `y0`, single at least."""
    precise = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(y0) if jnp.finfo(leaf.dtype).bits >= 32]
    ts = times_in(precise[0].dtype if precise else jnp.float32, ts)
    if ts.ndim != (2 if batching == "vmap" and ts.ndim == 2 else 1):
        raise ValueError(f"times have shape (times,), or (batch, times) with batching='vmap', got {ts.shape}")
    return ts


def times_in(dtype: Any, ts: Any) -> jax.Array:
    """Monotone times in a floating-point type.

    `ValueError` where they do not survive the conversion, so that neighbors become one; NaN where those are traced.
    """
    if not isinstance(ts, jax.core.Tracer):
        known = np.asarray(ts)
        _require_monotone(known)
        with np.errstate(over="ignore", invalid="ignore"):
            converted = known.astype(dtype)
            equal = np.argwhere(~(np.diff(converted, axis=-1) != 0))  # both may be infinite
        if equal.size:
            place = tuple(equal[0])
            after = (*place[:-1], place[-1] + 1)
            raise ValueError(
                f"the times {known[place]} and {known[after]} are one number in {np.dtype(dtype).name}, the precision "
                "of the solve: subtract the first time from all, or give the initial value in float64 "
                '(jax.config.update("jax_enable_x64", True))'
            )
        return jnp.asarray(converted)
    if not jnp.issubdtype(ts.dtype, jnp.floating) or jnp.finfo(ts.dtype).bits <= jnp.finfo(dtype).bits:
        return ts.astype(dtype)
    ts = ts.astype(dtype)
    apart = jnp.all(jnp.diff(ts, axis=-1) != 0, axis=-1, keepdims=True)
    return jnp.where(apart, ts, jnp.nan)


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
