"""Statistics of a least-squares fit: covariance, standard errors, confidence intervals and bands."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..components import Layout
from ..derivatives import jacobian

MOST_NAMES = 4  # of a direction, in a message


def covariance(rows: np.ndarray, value: float, layout: Layout, absolute: bool, eps: float) -> np.ndarray:
    r"""The covariance of parameters :math:`s^2 (J^T J)^{-1}`, from the Jacobian of weighted residuals, `rows` `(m, n)`.

    :math:`s^2` is twice the loss over m - n, or 1 where the weights are those of known errors, `absolute`. Raises
    `ValueError` where there are too few residuals, and, naming the directions, where they leave some of the parameters
    open, as far as a Jacobian of the relative precision `eps` tells.
    """
    m, n = rows.shape
    if m < n or (m == n and not absolute):
        raise ValueError(
            f"{m} residuals are too few for the errors of {n} parameters: it takes more residuals than parameters, or, "
            "with `absolute=True`, as many; fit fewer components, by `trainable=`"
        )
    norms = np.linalg.norm(rows, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    _, singular, directions = np.linalg.svd(rows / scale, full_matrices=False)
    open_ones = np.flatnonzero(singular <= max(m, n) * eps * singular[0])
    if open_ones.size:
        named = "; ".join(direction_text(directions[i] / scale, layout) for i in open_ones[:MOST_NAMES])
        more = "; ..." if open_ones.size > MOST_NAMES else ""
        raise ValueError(
            f"the Jacobian has rank {n - open_ones.size}, not {n}: the residuals stay as they are along {named}{more}. "
            "Such parameters have no standard error: hold some of them, by `trainable=`, or add data"
        )
    root = directions.T / singular / scale[:, None]
    variance = 1.0 if absolute else 2 * value / (m - n)
    return variance * (root @ root.T)


def direction_text(direction: np.ndarray, layout: Layout) -> str:
    """The largest entries of a direction of the flat vector, by name: `0.71 a - 0.71 b`."""
    direction = direction / np.linalg.norm(direction)
    order = [i for i in np.argsort(-np.abs(direction).round(6), kind="stable") if abs(direction[i]) > 0.05]
    signs = np.sign(direction[order[0]])
    entries = [(signs * direction[i], layout.label(int(i)) or "p") for i in order]
    terms = [f"{'-' if x < 0 else '+'} {abs(x):.2g} {label}" for x, label in entries]
    more = " + ..." if len(terms) > MOST_NAMES else ""
    return " ".join(terms[:MOST_NAMES]).removeprefix("+ ") + more


def quantile(level: float, degrees: int, absolute: bool) -> float:
    """How many standard errors an interval of the confidence `level` reaches to each side.

    By Student's t distribution, for the variance is estimated from the residuals; by the normal one where it is known.
    """
    from scipy.special import ndtri, stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level is the confidence, between 0 and 1, got {level:g}")
    return float(ndtri(0.5 + level / 2) if absolute else stdtrit(degrees, 0.5 + level / 2))


def band(
    function: Callable[[jax.Array], Any], flat: jax.Array, matrix: np.ndarray, noise: float, half: float
) -> tuple[Any, Any, Any]:
    """The value of a function of the flat parameters and the ends of its interval, in its form, to first order.

    The interval reaches to `half` standard errors on both sides; `noise` is the variance of a measurement, added to
    that of the function.
    """
    value, unravel = ravel_pytree(function(flat))
    rows = np.asarray(jacobian(lambda flat: ravel_pytree(function(flat))[0])(flat).data, np.float64)
    variance = np.einsum("ij,jk,ik->i", rows, matrix, rows) + noise
    width = half * jnp.asarray(np.sqrt(variance), value.dtype)
    return unravel(value), unravel(value - width), unravel(value + width)
