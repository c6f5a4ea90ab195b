"""Whether a method that claims to have converged has: none is believed where the loss plainly goes on to fall."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

STEEP = 1e-2  # the relative slope above which no method is believed
FALL = 1e-3  # the relative fall above which no method of values alone is
AXES = 20  # along which a fall is looked for where there is a gradient
STEPS = (3e-3, 1e-2)  # relative lengths of the steps that look for one
ADVICE = "start again from the result, or take another method"


def slope(x: np.ndarray, value: float, gradient: np.ndarray, inside: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest change of the loss, relative to it, that the gradient predicts for a relative change of x.

    max |g_i| max(|x_i|, 1) / max(|f|, 1), with the gradient projected by `inside` onto the bounds: Dennis & Schnabel,
    *Numerical Methods for Unconstrained Optimization* (1996), section 7.2.
    """
    step = x - inside(x - gradient)
    return float(np.max(np.abs(step) * np.maximum(np.abs(x), 1), initial=0) / max(abs(value), 1))


def steepness(
    x: np.ndarray,
    value: float,
    gradient: np.ndarray,
    loss: Callable[[np.ndarray], float],
    inside: Callable[[np.ndarray], np.ndarray],
    dtype: np.dtype,
    enough: float = STEEP,
) -> float:
    """The slope, where it is above `STEEP` and what is `enough`, and the loss falls along the gradient; else zero."""
    found = slope(x, value, gradient, inside)
    steep = found > max(STEEP, enough) and descends(x, value, gradient, loss, inside, dtype)
    return found if steep else 0.0


def descends(
    x: np.ndarray,
    value: float,
    gradient: np.ndarray,
    loss: Callable[[np.ndarray], float],
    inside: Callable[[np.ndarray], np.ndarray],
    dtype: np.dtype,
) -> bool:
    """Whether the loss falls along a gradient that is steep, by the root of the machine epsilon, relative to it.

    In a narrow valley a gradient is steep a rounding error beside the bottom. A step that would lower the loss so far,
    were it straight, lowers it by half of that or more where a parabola has its bottom that far below. It is tried
    along the gradient, in units of max(|x_i|, 1), and along the axes of the steepest elements.
    """
    size, aim = np.maximum(np.abs(x), 1), float(jnp.finfo(dtype).eps) ** 0.5 * max(abs(value), 1)
    step = x - inside(x - gradient)
    steep = np.argsort(-np.abs(step) * size)[:AXES]
    for direction in (step * size**2, *(np.where(np.arange(x.size) == i, step, 0) for i in steep)):
        descent = float(direction @ gradient)
        if descent > 0 and value - loss(inside(x - aim / descent * direction)) > aim / 2:
            return True
    return False


def fall(
    x: np.ndarray,
    value: float,
    loss: Callable[[np.ndarray], float],
    inside: Callable[[np.ndarray], np.ndarray],
    dtype: np.dtype,
) -> float:
    """How far the loss falls, relative to max(|f|, 1), in a small step along an axis: the first above `FALL`, or most.

    Steps are relative to max(|x_i|, 1), and no shorter than what `dtype` resolves; falls within its rounding do not
    count. At most 4 n evaluations: Kolda, Lewis & Torczon, *Optimization by direct search*, SIAM Review 45 (2003),
    section 3.
    """
    resolution = float(jnp.finfo(dtype).eps)
    lengths = [max(length, least) for length, least in zip(STEPS, (4 * resolution, resolution**0.5), strict=True)]
    found = 0.0
    for length, sign, i in itertools.product(lengths, (1.0, -1.0), range(x.size)):
        step = np.zeros_like(x)
        step[i] = sign * length * max(abs(x[i]), 1.0)
        lower = loss(inside(x + step)) + 4 * resolution * abs(value)
        found = max(found, (value - lower) / max(abs(value), 1.0))
        if found > FALL:
            break
    return found
