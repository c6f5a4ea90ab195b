"""Log-signatures of paths, and the path that drives a log-ODE."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from .._tree import widened


def logsignature(xs: jax.typing.ArrayLike, depth: int = 2) -> jax.Array:
    r"""The log-signature of the straight lines through points `(times, ..., channels)`, of depth 1 or 2.

    First the increment of each of the C channels, then, for depth 2, the signed areas between each two of them and
    their chord, in the order of (0, 1), (0, 2), ..., (1, 2), ...: an array `(..., C)`, or `(..., C + C (C - 1) / 2)`.

    .. math::
        A_{ij} = \tfrac12 \int (X_i - X_i(t_0))\, dX_j - (X_j - X_j(t_0))\, dX_i

    In words of Lyndon these are the coordinates of `[i, j]`; how fast the path runs through its points is not in them.
    Raises `ValueError` for another depth.

    >>> import jax.numpy as jnp
    >>> square = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    >>> logsignature(square).tolist()
    [0.0, 0.0, 1.0]
    """
    if depth not in (1, 2):
        raise ValueError(f"log-signatures are of depth 1 or 2, got {depth}")
    xs = jnp.asarray(widened(xs))
    return _of_windows(xs, max(len(xs) - 1, 1), depth)[0]


def _of_windows(xs: jax.Array, window: int, depth: int) -> jax.Array:
    """The log-signatures of the pieces of `window` lines each, the last one of what is left: `(pieces, ..., ...)`."""
    pieces = -(-(len(xs) - 1) // window)
    steps = jnp.diff(xs, axis=0)
    steps = jnp.pad(steps, [(0, pieces * window - len(steps)), *((0, 0) for _ in xs.shape[1:])])
    steps = steps.reshape(pieces, window, *xs.shape[1:])
    increments = steps.sum(1)
    if depth == 1:
        return increments
    before = jnp.cumsum(steps, axis=1) - steps
    products = jnp.einsum("pk...i,pk...j->p...ij", before, steps)
    i, j = np.triu_indices(xs.shape[-1], 1)
    areas = 0.5 * (products[..., i, j] - products[..., j, i])
    return jnp.concatenate([increments, areas], axis=-1)


def log_path(path: diffrax.LinearInterpolation, window: int, depth: int) -> diffrax.LinearInterpolation:
    """The path through the sums of log-signatures over windows: its slope in each is what drives a log-ODE there."""
    ends = [*range(0, len(path.ts) - 1, window), len(path.ts) - 1]
    found = _of_windows(path.ys, window, depth)
    start = jnp.zeros((1, *found.shape[1:]), found.dtype)
    return diffrax.LinearInterpolation(path.ts[np.array(ends)], jnp.concatenate([start, jnp.cumsum(found, axis=0)]))
