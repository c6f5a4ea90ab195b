"""Paths through irregular, incomplete data, which drive controlled differential equations."""

import diffrax
import jax
import jax.numpy as jnp

INTERPOLATIONS = ("hermite", "linear", "rectilinear")


def control_path(
    ts: jax.Array, xs: jax.Array, interpolation: str = "hermite", *, with_time: bool = False
) -> diffrax.AbstractGlobalInterpolation:
    """A path through `xs`, of shape `(times, ..., channels)`, at the times `ts`; NaN marks what was not observed.

    Each channel has gaps of its own: it is interpolated across them, keeps its last value after its last observation,
    and, where its first value is missing, starts from zero. `with_time` puts time before the channels.

    * `"hermite"`: cubic, with backward differences as slopes: smooth, and the one to take unless there is a reason.
    * `"linear"`: straight lines; its derivative jumps at `ts`.
    * `"rectilinear"`: uses no observation before its time, for predictions while data come in. The channels are held
      while time goes on, and then jump while time is held. It is a path over `0, 1, ..., 2 times - 2`, with the
      observations at the even numbers.

    Kidger et al., "Neural controlled differential equations", NeurIPS 2020; Morrill et al., "Neural controlled
    differential equations for online prediction tasks", 2021. Raises `ValueError` for another interpolation.

    >>> import jax.numpy as jnp
    >>> path = control_path(jnp.array([0.0, 1.0, 3.0]), jnp.array([[0.0], [jnp.nan], [6.0]]), "linear")
    >>> path.evaluate(1.0)
    Array([2.], dtype=float32)
    """
    require_interpolation(interpolation)
    xs = xs.at[0].set(first_values(xs[0]))
    xs = jnp.where(jnp.all(jnp.isnan(xs[1:]), axis=0), xs[0], xs)  # seen once at most, at the start
    if interpolation == "rectilinear":
        ts, xs = diffrax.rectilinear_interpolation(ts, xs)
    if with_time:
        time = ts.reshape(-1, *(1 for _ in xs.shape[1:])).astype(xs.dtype)
        xs = jnp.concatenate([jnp.broadcast_to(time, (*xs.shape[:-1], 1)), xs], axis=-1)
    if interpolation == "rectilinear":
        return diffrax.LinearInterpolation(jnp.arange(ts.size, dtype=ts.dtype), xs)
    if interpolation == "linear":
        return diffrax.LinearInterpolation(ts, diffrax.linear_interpolation(ts, xs, fill_forward_nans_at_end=True))
    coefficients = diffrax.backward_hermite_coefficients(ts, xs, fill_forward_nans_at_end=True)
    return diffrax.CubicInterpolation(ts, coefficients)


def first_values(x: jax.Array) -> jax.Array:
    """The observations at the first time, zero where there are none."""
    return jnp.where(jnp.isnan(x), 0, x)


def require_interpolation(name: str) -> None:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation is one of {', '.join(map(repr, INTERPOLATIONS))}, got {name!r}")
