"""What a call of an equation brings: initial value, times and control, checked."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe, floating, is_traced
from ..components import ComponentVector
from ..series import Series
from .times import endless, times_like


def initial_value_and_times(layer: Any, x: Any) -> tuple[Any, jax.Array, diffrax.AbstractPath | None]:
    """The initial value in floating point, the times in its precision and the control or `None`, from `x` and `ts`."""
    name = type(layer).__name__
    parts = ("initial value", "times") if layer.ts is None else ("initial value",)
    x, control = split_control(name, x, parts) if layer.controlled else (x, None)
    if layer.ts is None and not (isinstance(x, tuple) and len(x) == 2):
        raise ValueError(f"a {name} built without `ts` takes the tuple (initial value, times)")
    if layer.ts is not None and _ends_in(x, np.asarray(layer.ts)):
        raise ValueError(
            f"this {name} has its own `ts` and takes the initial value alone; build it without `ts` to "
            "give times in each call"
        )
    y0, ts = (x, np.asarray(layer.ts)) if layer.ts is not None else x
    if isinstance(y0, Series):
        raise ValueError(f"a {name} takes the initial value before the series: (y0, series)")
    y0 = initial_value(name, y0)
    if layer.ts is not None and endless(ts):
        ts = times_like(ts[0] + np.array([0.0, 1.0]), y0, layer.batching).at[1].set(jnp.inf)
    else:
        ts = times_like(ts, y0, layer.batching)
    return y0, ts, control_in(ts.dtype, control)


def initial_value(name: str, y0: Any) -> Any:
    """`y0` in floating point; `TypeError` where it holds no arrays."""
    leaves = jax.tree.leaves(y0, is_leaf=lambda x: isinstance(x, diffrax.AbstractPath))
    if any(isinstance(leaf, diffrax.AbstractPath) for leaf in leaves):
        raise TypeError(f"the initial value of this {name} holds a control: layers take one with controlled=True")
    kinds = jax.Array | np.ndarray | np.generic | complex | float | int
    if not leaves or not all(isinstance(leaf, kinds) for leaf in leaves):
        raise TypeError(f"the initial value of a {name} is an array or a tree of arrays, got {y0!r}")
    if isinstance(y0, list) and all(isinstance(item, float | int) for item in y0):
        raise TypeError(f"the initial value of a {name} is an array, got a list of numbers: jnp.array({y0})")
    return floating(y0)


def initial_array(name: str, y0: Any) -> Any:
    """`y0` in floating point, one array of shape `(..., features)`; `ValueError` where it is something else."""
    y0 = initial_value(name, y0)
    if isinstance(y0, tuple | list | dict) or jnp.ndim(y0) == 0:
        raise ValueError(f"the initial value of a {name} is one array of shape (..., features), got {y0!r}")
    return y0


def times_and_data(layer: Any, x: Any) -> tuple[jax.Array, jax.Array]:
    """The input `(times, data)` in floating point: `(times,)` or `(batch, times)`, and `(..., times, channels)`.

    Of a Series both, and NaN in its padding.
    """
    x = spread(x)
    if not (isinstance(x, tuple) and len(x) == 2):
        raise ValueError(f"{type(layer).__name__} takes the tuple (times, data), or a Series, got {describe(x)}")
    if not isinstance(x[1], jax.Array | np.ndarray | ComponentVector):
        raise TypeError(f"the data of {type(layer).__name__} are one array (..., times, channels), got {x[1]!r}")
    xs = jnp.asarray(floating(x[1]))
    ts = times_like(x[0], xs, layer.batching)
    unequal = ts.ndim == 2 and xs.shape[:1] != ts.shape[:1]
    if xs.ndim < 2 or xs.shape[-2] != ts.shape[-1] or unequal:
        raise ValueError(f"data for times of shape {ts.shape} has shape (..., times, channels), got {xs.shape}")
    return ts, xs


def spread(x: Any) -> Any:
    """The input with `(series, its data)` in place of a Series of data in front."""
    if isinstance(x, Series):
        return x, x.data
    return (x[0], x[0].data, *x[1:]) if isinstance(x, tuple) and x and isinstance(x[0], Series) else x


def _ends_in(x: Any, ts: np.ndarray) -> bool:
    """Whether `x` is a tuple of an initial value and the times `ts`."""
    if not (isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], np.ndarray | jax.Array)):
        return False
    if is_traced(x[1]) or x[1].shape != ts.shape or getattr(x[0], "shape", ()) == ts.shape:
        return False
    return np.allclose(np.asarray(x[1], float), np.asarray(ts, float))


def split_control(name: str, x: Any, parts: tuple[str, ...]) -> tuple[Any, diffrax.AbstractPath]:
    """The input, of these parts, without the control after them, and it. Raises `ValueError` where it is no path."""
    if not isinstance(x, tuple) or len(x) != len(parts) + 1 or not isinstance(x[-1], diffrax.AbstractPath):
        raise ValueError(
            f"a {name} with a control takes the tuple ({', '.join(parts)}, control), where the control is a diffrax "
            "path, such as diffrax.LinearInterpolation(ts, ys)"
        )
    return x[:-1] if len(parts) > 1 else x[0], x[-1]


def control_in(dtype: Any, control: diffrax.AbstractPath | None) -> diffrax.AbstractPath | None:
    """A control with its times and real values in the precision of a solve."""
    return jax.tree.map(lambda x: x.astype(dtype) if _is_real(x) else x, control)


def _is_real(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def within(control: diffrax.AbstractPath, y0: Any, ts: jax.Array) -> Any:
    """`y0`, where the control is defined at all the times; else `ValueError`, or NaN where the times are traced.

    Ends are compared up to rounding in single precision: the control may have come from there. Far from zero that is
    more than a solve may go without a control, and then a small part of its span is what counts.
    """
    first, last = (jnp.asarray(t).astype(ts.dtype) for t in (control.t0, control.t1))
    low, high = jnp.minimum(ts[0], ts[-1]), jnp.maximum(ts[0], ts[-1])
    rounding = 4 * float(jnp.finfo(jnp.float32).eps) * jnp.maximum(jnp.abs(low), jnp.abs(high))
    margin = jnp.minimum(rounding, 1e-4 * (high - low))
    good = (first <= low + margin) & (high - margin <= last)
    if is_traced(good):
        return jax.tree.map(lambda y: jnp.where(good, y, jnp.nan), y0)
    if not good:
        digits = jnp.finfo(ts.dtype).precision
        known, asked = (f"{a:.{digits}g} to {b:.{digits}g}" for a, b in ((first, last), (low, high)))
        raise ValueError(f"the control is defined from {known}, the times ask for {asked}")
    return y0
