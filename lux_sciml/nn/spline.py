"""Spline: a function of one variable, given by its values at knots."""

from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Constant, Layer
from ..initializers import zeros


class Spline(Layer):
    r"""A function of one variable through trained values at fixed knots: linear between them, or a cubic spline.

    `knots` are at least two increasing numbers. Input `(...)`, output `(..., out_features)`. Parameter: `knot_values`
    `(len(knots), out_features)`, drawn by `init_values` (default: zeros). The cubic spline is the natural one, whose
    second derivatives are continuous, and zero at the ends; it is linear in the values. Beyond the ends the last pieces
    go on.

    de Boor, "A practical guide to splines", 1978. Raises `ValueError` for knots that do not increase, and for another
    `kind`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Spline([0.0, 1.0, 3.0], 2, kind="linear")
    >>> ps = lux.ComponentVector(knot_values=[[0.0, 0.0], [1.0, 2.0], [5.0, 0.0]])
    >>> layer(jnp.array([0.5, 2.0]), ps, {})[0].tolist()
    [[0.5, 1.0], [3.0, 1.0]]
    """

    knots: Any
    out_features: int = 1
    kind: str = field(default="cubic", kw_only=True)
    init_values: Callable = field(default=zeros, kw_only=True)

    def __post_init__(self):
        self.knots = Constant(np.asarray(self.knots, float))
        knots = self.knots.value
        if knots.ndim != 1 or knots.size < 2 or not np.all(np.diff(knots) > 0):
            raise ValueError(f"Spline needs two or more increasing knots, got {knots.tolist()}")
        if self.kind not in ("linear", "cubic"):
            raise ValueError(f"Spline is of the kind 'linear' or 'cubic', got {self.kind!r}")

    def init_params(self, key):
        shape = (self.knots.value.size, self.out_features)
        return {"knot_values": self.init_values(key, shape, jax.dtypes.canonicalize_dtype(float))}

    def forward(self, x, ps, st):
        grid, values = jnp.asarray(self.knots.value, x.dtype), ps["knot_values"]
        i = jnp.clip(jnp.searchsorted(grid, x, side="right") - 1, 0, grid.size - 2)
        left, step = grid[i], (grid[i + 1] - grid[i])
        b = ((x - left) / step)[..., None]
        a = 1 - b
        y = a * values[i] + b * values[i + 1]
        if self.kind == "cubic":
            bend = jnp.asarray(_second_derivatives(self.knots), values.dtype) @ values
            y = y + (step**2 / 6)[..., None] * ((a**3 - a) * bend[i] + (b**3 - b) * bend[i + 1])
        return y, st


def _second_derivatives(knots: Constant) -> np.ndarray:
    """The matrix from values to second derivatives at the knots of the natural cubic spline."""
    h = np.diff(knots.value)
    n = h.size - 1  # inner knots
    matrix, right = np.zeros((n, n + 2)), np.zeros((n, n + 2))
    for i in range(n):
        matrix[i, i : i + 3] = h[i] / 6, (h[i] + h[i + 1]) / 3, h[i + 1] / 6
        right[i, i : i + 3] = 1 / h[i], -1 / h[i] - 1 / h[i + 1], 1 / h[i + 1]
    return np.pad(np.linalg.solve(matrix[:, 1:-1], right), ((1, 1), (0, 0)))
