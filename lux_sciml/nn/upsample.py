"""Resizing the spatial axes: interpolation, and features that become space."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import widened
from ..core import Layer, field
from ..core.converters import choice, count, flag, optional
from ..core.printing import brief
from ._shapes import as_floating, one_or_each, positive, require_array, size_or_sizes
from ._windows import Sizes


class Upsample(Layer):
    """The spatial axes in another size, by interpolation.

    * `mode`: `"nearest"`, the element whose cell holds the center of the output's cell; `"linear"`, linear along each
      axis (bilinear and trilinear in two and three); `"cubic"`, cubic convolution along each axis with a = -3/4,
      repeating the elements at the border (Keys, "Cubic convolution interpolation", IEEE Trans. ASSP 29, 1981).
    * `size` or `scale`, exactly one of them: the size of the output, or a factor; one value for all spatial axes, or a
      tuple for the last ones.
    * `align_corners`: the centers of the first and last cells stay where they are; by default the outer edges do.

    Input `(batch, *space, features)`, output of the same form. Nothing is smoothed before a reduction. These are
    PyTorch's conventions, with its "nearest-exact" for "nearest".

    Raises `ValueError` for unknown modes, for both or none of `size` and `scale`, for `align_corners` with "nearest",
    and for inputs with too few axes or with an empty one.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.Upsample("linear", size=5, align_corners=True)(jnp.array([[[0.0], [1.0], [2.0]]]), {}, {})[0].ravel()
    Array([0. , 0.5, 1. , 1.5, 2. ], dtype=float32)
    """

    mode: str = field(default="nearest", converter=choice("nearest", "linear", "cubic"))
    size: Sizes | None = field(default=None, converter=optional(size_or_sizes), kw_only=True)
    scale: float | tuple[float, ...] | None = field(
        default=None, converter=optional(one_or_each(positive)), kw_only=True
    )
    align_corners: bool = field(default=False, converter=flag, kw_only=True)

    def __check_init__(self):
        if (self.size is None) == (self.scale is None):
            raise ValueError(f"Upsample takes either size or scale, got size={self.size} and scale={self.scale}")
        if self.align_corners and self.mode == "nearest":
            raise ValueError('Upsample with mode "nearest" has no align_corners')

    def forward(self, x, ps, st):
        x = as_floating(self, x)
        n = x.ndim - 2
        given: Any = self.size if self.scale is None else self.scale
        given = given if isinstance(given, tuple) else (given,) * n
        if n < 1 or len(given) > n or 0 in x.shape[1:-1]:
            raise ValueError(
                f"{brief(self)} expects inputs of shape (batch, *space, features), no spatial axis empty, got {x.shape}"
            )
        axes = list(range(1 + n - len(given), 1 + n))
        shape, scales = list(x.shape), []
        for axis, value in zip(axes, given, strict=True):
            old = shape[axis]
            shape[axis], scale = (value, value / old) if self.scale is None else (math.floor(old * value), value)
            if shape[axis] < 1:
                raise ValueError(f"{brief(self)} makes a size of {shape[axis]} from {old}")
            scales.append(scale)
        if self.mode == "nearest":
            for axis, scale in zip(axes, scales, strict=True):
                cells = np.floor((np.arange(shape[axis]) + 0.5) / scale).astype(int)
                x = jnp.take(x, np.minimum(cells, x.shape[axis] - 1), axis)
            return x, st
        return self._interpolated(widened(x), axes, shape, np.array(scales)).astype(x.dtype), st

    def _interpolated(self, x, axes, shape, scales):
        shifts = np.zeros(len(axes))
        if self.align_corners:
            scales = np.array([_aligned(x.shape[axis], shape[axis]) for axis in axes])
            shifts = np.where([min(x.shape[axis], shape[axis]) > 1 for axis in axes], (1 - scales) / 2, 0)
        method = "cubic-pytorch" if self.mode == "cubic" else self.mode
        scales, shifts = (jnp.asarray(part, jnp.finfo(x.dtype).dtype) for part in (scales, shifts))
        return jax.image.scale_and_translate(x, tuple(shape), axes, scales, shifts, method, antialias=False)


def _aligned(old: int, new: int) -> float:
    """The scale that maps the centers of the first and last of `old` cells to those of `new` cells."""
    if min(old, new) > 1:
        return (new - 1) / (old - 1)
    return float(new) if old == 1 else 1.0


class PixelShuffle(Layer):
    """Features as space: `(batch, *space, features * factor^n)` to `(batch, *(space * factor), features)`.

    n is the number of spatial axes. Feature `c * factor^n + i` goes to feature c of the i-th cell, the last spatial
    axis running fastest.

    Shi et al., "Real-time single image and video super-resolution", CVPR 2016. Raises `ValueError` where the features
    do not divide evenly.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.PixelShuffle(2)(jnp.ones((8, 5, 5, 12)), {}, {})[0].shape
    (8, 10, 10, 3)
    """

    factor: int = field(converter=count)

    def forward(self, x, ps, st):
        x = jnp.asarray(require_array(self, x))
        n, r = x.ndim - 2, self.factor
        if n < 1 or x.shape[-1] % r**n:
            raise ValueError(
                f"{brief(self)} expects inputs of shape (batch, *space, a multiple of {r ** max(n, 1)}), got {x.shape}"
            )
        batch, *space, features = x.shape
        x = x.reshape(batch, *space, features // r**n, *(r,) * n)
        pairs = [axis for i in range(n) for axis in (1 + i, 2 + n + i)]
        return x.transpose(0, *pairs, 1 + n).reshape(batch, *(size * r for size in space), features // r**n), st
