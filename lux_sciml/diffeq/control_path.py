"""Paths through irregular, incomplete data, which drive controlled differential equations."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp

INTERPOLATIONS = ("hermite", "linear", "rectilinear")


def control_path(ts: jax.Array, xs: jax.Array, interpolation: str = "hermite") -> diffrax.AbstractGlobalInterpolation:
    """A path through `xs`, of shape `(times, ..., channels)`, at the times `ts`; NaN marks what was not observed.

    Each channel has gaps of its own: it is interpolated across them, keeps its last value after its last observation,
    and is zero before its first.

    * `"hermite"`: cubic, with backward differences as slopes: smooth, and the one to take unless there is a reason.
    * `"linear"`: straight lines; its derivative jumps at `ts`.
    * `"rectilinear"`: at no time uses an observation of later on, for predictions while data come in. Channels are held
      while time goes on, and then jump: give time as a channel. It is a path over `0, 1, ..., 2 times - 2`, with the
      observations at the even numbers.

    Kidger et al., "Neural controlled differential equations", NeurIPS 2020; Morrill et al., "Neural controlled
    differential equations for online prediction tasks", 2021. Raises `ValueError` for another interpolation.

    >>> import jax.numpy as jnp
    >>> path = control_path(jnp.array([0.0, 1.0, 3.0]), jnp.array([[0.0], [jnp.nan], [6.0]]), "linear")
    >>> path.evaluate(1.0)
    Array([2.], dtype=float32)
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation is one of {', '.join(map(repr, INTERPOLATIONS))}, got {interpolation!r}")
    start = jnp.zeros((), xs.dtype)
    if interpolation == "rectilinear":
        _, rows = diffrax.rectilinear_interpolation(ts, xs, replace_nans_at_start=start)
        return diffrax.LinearInterpolation(jnp.arange(rows.shape[0], dtype=ts.dtype), rows)
    fill = {"fill_forward_nans_at_end": True, "replace_nans_at_start": start}
    if interpolation == "linear":
        return diffrax.LinearInterpolation(ts, diffrax.linear_interpolation(ts, xs, **fill))
    return diffrax.CubicInterpolation(ts, diffrax.backward_hermite_coefficients(ts, xs, **fill))


def with_time(ts: jax.Array, xs: jax.Array, counts: bool) -> jax.Array:
    """The data `(..., times, channels)` with time as the first channel; with `counts`, the observations so far behind.

    The count of each channel is that of the observations until now, divided by the number of times: what was observed
    when may say as much as what was seen.
    """
    time = jnp.broadcast_to(ts[..., None], (*xs.shape[:-1], 1)).astype(xs.dtype)
    parts: list[Any] = [time, xs]
    if counts:
        parts.append(jnp.cumsum(~jnp.isnan(xs), axis=-2).astype(xs.dtype) / xs.shape[-2])
    return jnp.concatenate(parts, axis=-1)
