"""Resizing space: interpolation, and features that become space."""

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core import Layer
from ..core.printing import option_text
from ._windows import Sizes, per_axis


class Upsample(Layer):
    """Space in another size, by interpolation.

    Input `(batch, *space, features)`, output of the same form. Exactly one of `size`, the size of the output, and
    `scale`, a factor, is given: one number for all axes of space, or a tuple for the last ones. Modes:

    * `"nearest"`: the number whose cell holds the center of the output's cell;
    * `"linear"`: linear along each axis (bilinear and trilinear in two and three);
    * `"cubic"`: cubic convolution along each axis with a = -3/4, repeating the numbers at the border (Keys, "Cubic
      convolution interpolation", IEEE Trans. ASSP 29, 1981).

    With `align_corners` the centers of the first and last cells stay where they are; otherwise the edges of space do.
    Nothing is smoothed before a reduction. These are PyTorch's conventions, with its "nearest-exact" for "nearest".

    Raises `ValueError` for unknown modes, for both or none of `size` and `scale`, for `align_corners` with "nearest",
    and for inputs with too few axes.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.Upsample("linear", size=5, align_corners=True)(jnp.array([[[0.0], [1.0], [2.0]]]), {}, {})[0].ravel()
    Array([0. , 0.5, 1. , 1.5, 2. ], dtype=float32)
    """

    mode: str = "nearest"
    size: Sizes | None = field(default=None, kw_only=True)
    scale: float | Sequence[float] | None = field(default=None, kw_only=True)
    align_corners: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        if self.mode not in _REACH:
            raise ValueError(f"Upsample knows the modes {', '.join(map(repr, _REACH))}, got {self.mode!r}")
        if (self.size is None) == (self.scale is None):
            raise ValueError(f"Upsample takes either size or scale, got size={self.size} and scale={self.scale}")
        if self.align_corners and self.mode == "nearest":
            raise ValueError('Upsample with mode "nearest" has no align_corners')

    def forward(self, x, ps, st):
        count = x.ndim - 2
        given = per_axis(self.size if self.scale is None else self.scale, count)
        if count < 1 or len(given) > count:
            raise ValueError(f"{option_text(self)} expects inputs of shape (batch, *space, features), got {x.shape}")
        for axis, value in zip(range(1 + count - len(given), 1 + count), given, strict=True):
            old = x.shape[axis]
            new, scale = (value, value / old) if self.scale is None else (math.floor(old * value), value)
            if new < 1:
                raise ValueError(f"{option_text(self)} makes a size of {new} from {old}")
            x = self._along(x, axis, _centers(old, new, scale, self.align_corners))
        return x, st

    def _along(self, x, axis, centers):
        """The numbers at `centers`, where the index i stands for the center of cell i."""
        size, reach = x.shape[axis], _REACH[self.mode]
        if self.mode == "nearest":
            return jnp.take(x, np.clip(np.floor(centers + 0.5).astype(int), 0, size - 1), axis)
        if self.mode == "linear":
            centers = np.clip(centers, 0, size - 1)
        dtype, matrix = jnp.result_type(x, 0.0), np.zeros((len(centers), size))
        rows, first = np.arange(len(centers)), np.floor(centers).astype(int)
        for i in range(1 - reach, reach + 1):
            np.add.at(matrix, (rows, np.clip(first + i, 0, size - 1)), _WEIGHTS[self.mode](np.abs(centers - first - i)))
        return jnp.moveaxis(jnp.tensordot(jnp.asarray(matrix, dtype), x.astype(dtype), (1, axis)), 0, axis)


class PixelShuffle(Layer):
    """Features as space: `(batch, *space, features * factor^n)` to `(batch, *(space * factor), features)`.

    n is the number of axes of space. Feature `c * factor^n + i` goes to feature c of the i-th cell, the last axis of
    space running fastest.

    Shi et al., "Real-time single image and video super-resolution", CVPR 2016. Raises `ValueError` where the features
    cannot be shared out evenly.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.PixelShuffle(2)(jnp.ones((8, 5, 5, 12)), {}, {})[0].shape
    (8, 10, 10, 3)
    """

    factor: int

    def forward(self, x, ps, st):
        n, r = x.ndim - 2, self.factor
        if n < 1 or x.shape[-1] % r**n:
            raise ValueError(
                f"{option_text(self)} expects inputs of shape (batch, *space, a multiple of {r ** max(n, 1)}), "
                f"got {x.shape}"
            )
        batch, *space, features = x.shape
        x = x.reshape(batch, *space, features // r**n, *(r,) * n)
        pairs = [axis for i in range(n) for axis in (1 + i, 2 + n + i)]
        return x.transpose(0, *pairs, 1 + n).reshape(batch, *(size * r for size in space), -1), st


def _centers(old: int, new: int, scale: float, align_corners: bool) -> np.ndarray:
    """Where the centers of the new cells lie among those of the old ones."""
    if align_corners:
        return np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return (np.arange(new) + 0.5) / scale - 0.5


def _cubic(distance: Any) -> Any:
    a, d = -0.75, distance
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


_REACH = {"nearest": 0, "linear": 1, "cubic": 2}
_WEIGHTS = {"linear": lambda distance: np.maximum(1 - distance, 0), "cubic": _cubic}
