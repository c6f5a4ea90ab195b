"""Controls: inputs u(t) of a vector field."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp


class Controlled(eqx.Module):
    """`f(t, y, ps)` of a function that takes `(y, u(t))` in the place of `y`."""

    function: Callable
    control: diffrax.AbstractPath

    def __call__(self, t: Any, y: Any, ps: Any) -> Any:
        return self.function(t, (y, self.control.evaluate(t)), ps)


def split_control(name: str, x: Any, with_times: bool) -> tuple[Any, diffrax.AbstractPath]:
    """The input without its last item, and that item, the control. Raises `ValueError` where it is no path."""
    parts = ("initial value", "times", "control") if with_times else ("initial value", "control")
    if not isinstance(x, tuple) or len(x) != len(parts) or not isinstance(x[-1], diffrax.AbstractPath):
        raise ValueError(
            f"a {name} with a control takes the tuple ({', '.join(parts)}), where the control is a diffrax path, "
            "such as diffrax.LinearInterpolation(ts, ys)"
        )
    return x[:-1] if with_times else x[0], x[-1]


def within(control: diffrax.AbstractPath, y0: Any, ts: jax.Array) -> Any:
    """`y0`, where the control is defined at all the times; else `ValueError`, or NaN where the times are traced."""
    low, high = jnp.minimum(ts[0], ts[-1]), jnp.maximum(ts[0], ts[-1])
    good = (control.t0 <= low) & (high <= control.t1)
    if isinstance(good, jax.core.Tracer):
        return jax.tree.map(lambda y: jnp.where(good, y, jnp.nan), y0)
    if not good:
        raise ValueError(
            f"the control is defined from {control.t0:g} to {control.t1:g}, the times ask for {low:g} to {high:g}"
        )
    return y0
