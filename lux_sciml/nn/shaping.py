"""Layers that only rearrange: Flatten, Reshape, SelectDim, NoOp."""

import math
from typing import Any

import jax.numpy as jnp

from ..core import Layer
from ..core.printing import option_text


class NoOp(Layer):
    """The identity: `y = x`, for any input.

    >>> import lux_sciml as lux
    >>> lux.NoOp()(3.0, {}, {})
    (3.0, {})
    """

    def forward(self, x, ps, st):
        return x, st


class Flatten(Layer):
    """Joins the last `axes` axes into one; by default all but the first, the batch.

    Raises `ValueError` for inputs with fewer axes.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.Flatten()(jnp.ones((8, 3, 4)), {}, {})[0].shape, lux.Flatten(2)(jnp.ones((8, 5, 3, 4)), {}, {})[0].shape
    ((8, 12), (8, 5, 12))
    """

    axes: int | None = None

    def __post_init__(self):
        if self.axes is not None and self.axes < 1:
            raise ValueError(f"Flatten joins at least one axis, got {self.axes}")

    def forward(self, x, ps, st):
        kept = 1 if self.axes is None else x.ndim - self.axes
        if not 0 <= kept <= x.ndim:
            raise ValueError(f"{option_text(self)} needs an input of {self.axes or 1} axes or more, got {x.shape}")
        return x.reshape(*x.shape[:kept], math.prod(x.shape[kept:])), st


class Reshape(Layer):
    """Gives each sample the shape `shape`; the first axis, the batch, stays. One size may be -1.

    Raises `ValueError` where the numbers do not fit.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.Reshape(2, -1)(jnp.ones((8, 12)), {}, {})[0].shape
    (8, 2, 6)
    """

    shape: tuple[int, ...]

    def __init__(self, *shape: Any):
        self.shape = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
        if sum(size == -1 for size in self.shape) > 1:
            raise ValueError(f"Reshape can work out one size only, got {self.shape}")

    def forward(self, x, ps, st):
        known, size = math.prod(size for size in self.shape if size != -1), math.prod(x.shape[1:])
        free = -1 in self.shape
        if x.ndim == 0 or (size != known if not free else known == 0 or size % known):
            raise ValueError(f"{option_text(self)} cannot take samples of {size} numbers, of an input {x.shape}")
        return x.reshape(x.shape[0], *(size // known if n == -1 else n for n in self.shape)), st


class SelectDim(Layer):
    """One slice of an axis: `y = x[..., index, ...]`, without that axis.

    Raises `ValueError` for an axis or an index that the input does not have.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.SelectDim(1, 0)(jnp.ones((8, 5, 3)), {}, {})[0].shape
    (8, 3)
    """

    axis: int
    index: int

    def forward(self, x, ps, st):
        if not -x.ndim <= self.axis < x.ndim or not -x.shape[self.axis] <= self.index < x.shape[self.axis]:
            raise ValueError(
                f"{option_text(self)} takes item {self.index} along axis {self.axis}, got an input {x.shape}"
            )
        return jnp.take(x, self.index % x.shape[self.axis], axis=self.axis), st
