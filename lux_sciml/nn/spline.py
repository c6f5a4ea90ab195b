"""Spline: a function of one variable, given by its values at knots."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._tree import floating, widened
from ..core import Constant, Layer, field
from ..core.converters import checks_itself, choice, count, function
from ..initializers import zeros


@checks_itself
def knots(value: Any) -> Constant:
    """The converter of at least two increasing numbers."""
    constant = Constant(np.asarray(value.value if isinstance(value, Constant) else value, float))
    if constant.value.ndim != 1 or constant.value.size < 2 or not np.all(np.diff(constant.value) > 0):
        raise ValueError(f"Spline needs two or more increasing knots, got {constant.value.tolist()}")
    return constant


class Spline(Layer):
    r"""A function of one variable through trained values at fixed knots.

    Input `(...)`, output `(..., out_features)`. Options:

    * `knots`: at least two increasing numbers;
    * `out_features`: how many functions, 1 by default;
    * `kind`: `"linear"` for straight lines between the knots, or `"cubic"` (the default) for the natural cubic spline,
      whose second derivatives are continuous, and zero at the ends; it is linear in the values;
    * `init_values`: draws the values at the knots; zeros by default.

    Parameter: `knot_values` `(len(knots), out_features)`. The outermost pieces extend beyond the ends. Positions are
    computed in float32 at least.

    de Boor, "A practical guide to splines", 1978. Raises `ValueError` for knots that do not increase, also where two of
    them are one in the precision of the input, and for another `kind`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Spline([0.0, 1.0, 3.0], 2, kind="linear")
    >>> ps = lux.ComponentVector(knot_values=[[0.0, 0.0], [1.0, 2.0], [5.0, 0.0]])
    >>> layer(jnp.array([0.5, 2.0]), ps, {})[0].tolist()
    [[0.5, 1.0], [3.0, 1.0]]
    """

    knots: Constant = field(converter=knots)
    out_features: int = field(default=1, converter=count)
    kind: str = field(default="cubic", converter=choice("linear", "cubic"), kw_only=True)
    init_values: Callable[..., Any] = field(default=zeros, converter=function, kw_only=True)

    def init_params(self, key):
        return {"knot_values": self.init_values(key, (self.knots.value.size, self.out_features), float)}

    def forward(self, x, ps, st):
        x, values = floating(jnp.asarray(x)), widened(ps["knot_values"])
        wide = widened(x)
        rounded = self.knots.value.astype(wide.dtype)
        if not np.all(np.diff(rounded) > 0):
            raise ValueError(f"two knots of this Spline are one in {wide.dtype}; use 64-bit inputs, or shift the knots")
        grid = jnp.asarray(rounded)
        i = jnp.clip(jnp.searchsorted(grid, wide, side="right") - 1, 0, grid.size - 2)
        left, step = grid[i], (grid[i + 1] - grid[i])
        b = ((wide - left) / step)[..., None]
        a = 1 - b
        y = a * values[i] + b * values[i + 1]
        if self.kind == "cubic":
            bend = jnp.asarray(_second_derivatives(self.knots), values.dtype) @ values
            y = y + (step**2 / 6)[..., None] * ((a**3 - a) * bend[i] + (b**3 - b) * bend[i + 1])
        return y.astype(jnp.result_type(x, ps["knot_values"])), st


def _second_derivatives(knots: Constant) -> np.ndarray:
    """The matrix from values to second derivatives at the knots of the natural cubic spline."""
    h = np.diff(knots.value)
    n = h.size - 1  # inner knots
    matrix, right = np.zeros((n, n + 2)), np.zeros((n, n + 2))
    for i in range(n):
        matrix[i, i : i + 3] = h[i] / 6, (h[i] + h[i + 1]) / 3, h[i + 1] / 6
        right[i, i : i + 3] = 1 / h[i], -1 / h[i] - 1 / h[i + 1], 1 / h[i + 1]
    return np.pad(np.linalg.solve(matrix[:, 1:-1], right), ((1, 1), (0, 0)))
