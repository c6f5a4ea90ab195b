"""Whether a method that claims to have converged has: no method is believed where the loss plainly goes on to fall."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

STATIONARY = 1e-2  # the relative slope above which no method is believed to have converged
STEP = 1e-3  # relative; of methods of values alone, which do not resolve smaller ones


def slope(x: np.ndarray, value: float, gradient: np.ndarray, inside: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest change of the loss, relative to it, that the gradient foretells for a relative change of x.

    max |g_i| max(|x_i|, 1) / max(|f|, 1), with the gradient projected by `inside` onto the bounds: Dennis & Schnabel,
    *Numerical Methods for Unconstrained Optimization* (1996), section 7.2.
    """
    step = x - inside(x - gradient)
    return float(np.max(np.abs(step) * np.maximum(np.abs(x), 1), initial=0) / max(abs(value), 1))


def descent(
    x: np.ndarray,
    value: float,
    loss: Callable[[np.ndarray], float],
    inside: Callable[[np.ndarray], np.ndarray],
    dtype: np.dtype,
) -> float:
    """The same from values: the steepest relative fall of the loss among steps to and fro along each axis.

    A step is a thousandth of max(|x_i|, 1), or what `dtype` resolves; falls within its rounding do not count. Ends at
    the first fall above `STATIONARY`. At most 2 n evaluations: Kolda, Lewis & Torczon, *Optimization by direct search*,
    SIAM Review 45 (2003), section 3.
    """
    resolution = float(jnp.finfo(dtype).eps)
    length = max(STEP, resolution**0.5)
    steepest = 0.0
    for i in range(x.size):
        for sign in (1.0, -1.0):
            step = np.zeros_like(x)
            step[i] = sign * length * max(abs(x[i]), 1.0)
            fall = value - loss(inside(x + step)) - 4 * resolution * abs(value)
            steepest = max(steepest, fall / (length * max(abs(value), 1.0)))
            if steepest > STATIONARY:
                return steepest
    return steepest


def message(ended: str, slope: float, of_gradient: bool) -> str:
    """What to say of a method that is not believed."""
    what = "the gradient" if of_gradient else "the fall of the loss at small steps"
    return (
        f"{ended} where {what}, {slope:.1g} relative to the loss, is not small: start again from the result, or take "
        "another method"
    )
