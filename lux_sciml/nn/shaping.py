"""Layers that only rearrange: Flatten, Reshape, SelectDim, NoOp."""

import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np

from ..core import Layer, field
from ..core.converters import checks_itself, count, integer, integers, optional
from ..core.printing import brief
from ._shapes import require_array


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

    axes: int | None = field(default=None, converter=optional(count))

    def forward(self, x, ps, st):
        x = jnp.asarray(require_array(self, x))
        kept = 1 if self.axes is None else x.ndim - self.axes
        if not 0 <= kept <= x.ndim:
            raise ValueError(f"{brief(self)} needs an input of {self.axes or 1} axes or more, got {x.shape}")
        return x.reshape(*x.shape[:kept], math.prod(x.shape[kept:])), st


@checks_itself
def _shape(value: Any) -> tuple[int, ...]:
    """A tuple of whole numbers of at least 0; one of them may be -1."""
    sizes = integers(value)
    if min(sizes, default=0) < -1 or sizes.count(-1) > 1:
        raise ValueError(f"expected sizes, of which one may be -1, to be worked out, got {sizes}")
    return sizes


class Reshape(Layer):
    """Gives each sample the shape `shape`; the first axis, the batch, stays. One size may be -1.

    `Reshape(2, 3)` or `Reshape((2, 3))`. Raises `ValueError` where the elements do not fit.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.Reshape(2, -1)(jnp.ones((8, 12)), {}, {})[0].shape
    (8, 2, 6)
    """

    shape: tuple[int, ...] = field(converter=_shape)

    def __init__(self, *shape: SupportsIndex | Sequence[SupportsIndex] | np.ndarray):
        given: Any = shape[0] if len(shape) == 1 else shape
        self.shape = given  # which converts it

    def forward(self, x, ps, st):
        x = jnp.asarray(require_array(self, x))
        known, size = math.prod(size for size in self.shape if size != -1), math.prod(x.shape[1:])
        free = -1 in self.shape
        if x.ndim == 0 or (size != known if not free else known == 0 or size % known):
            raise ValueError(f"{brief(self)} cannot take samples of {size} elements, of an input {x.shape}")
        return x.reshape(x.shape[0], *(size // known if n == -1 else n for n in self.shape)), st


class SelectDim(Layer):
    """One slice of an axis: `y = x[..., index, ...]`, without that axis.

    Raises `ValueError` for an axis or an index that the input does not have.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.SelectDim(1, 0)(jnp.ones((8, 5, 3)), {}, {})[0].shape
    (8, 3)
    """

    axis: int = field(converter=integer)
    index: int = field(converter=integer)

    def forward(self, x, ps, st):
        x = jnp.asarray(require_array(self, x))
        if not -x.ndim <= self.axis < x.ndim or not -x.shape[self.axis] <= self.index < x.shape[self.axis]:
            raise ValueError(f"{brief(self)} takes item {self.index} along axis {self.axis}, got an input {x.shape}")
        return jnp.take(x, self.index % x.shape[self.axis], axis=self.axis), st
