"""Pooling: the largest number, the mean or the p-norm of a window, of a share or of the whole of space."""

import abc
import functools
import itertools
import math
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import Layer
from ..core.printing import option_text
from ._windows import Padding, Sizes, as_batch, check_window, extent, pads, per_axis, strides


class _Reduction(Layer):
    """One number for many."""

    @abc.abstractmethod
    def _reduce(self, x, axes):
        """One number for all along the axes, which stay with size one."""


class _Max(_Reduction):
    def _reduce(self, x, axes):
        return jnp.max(x, axes, keepdims=True)


class _Mean(_Reduction):
    def _reduce(self, x, axes):
        return jnp.mean(x, axes, keepdims=True)


class _LP(_Reduction):
    p: float = field(default=2.0, kw_only=True)

    def __post_init__(self):
        if not 0 < self.p < math.inf:
            raise ValueError(f"{type(self).__name__} needs a finite p above 0, got {self.p}")

    def _reduce(self, x, axes):
        return self._root(jnp.sum(self._powers(x), axes, keepdims=True))

    def _powers(self, x):
        return jnp.square(x) if self.p == 2 else jnp.abs(x) ** self.p

    def _root(self, total):
        """The p-th root, with a gradient of zero at zero."""
        positive = total > 0
        return jnp.where(positive, jnp.where(positive, total, 1) ** (1 / self.p), 0)


# --- sliding windows ------------------------------------------------------------------------------------------------


class _Pool(Layer):
    """The options of pooling by a window that slides over space."""

    window: Sizes
    stride: Sizes | None = field(default=None, kw_only=True)
    padding: Padding = field(default=0, kw_only=True)
    dilation: Sizes = field(default=1, kw_only=True)

    def __post_init__(self):
        self.window = per_axis(self.window, 1)
        check_window(self)

    def forward(self, x, ps, st):
        x, lead = as_batch(self, x)
        y = self._pool(x, pads(self, x.shape[1:-1]))
        return y.reshape(*lead, *y.shape[1:]), st

    @abc.abstractmethod
    def _pool(self, x, padding):
        """The pooled `(batch, *space, features)`."""

    def _slide(self, x, start, combine, padding):
        return lax.reduce_window(
            x,
            np.asarray(start, x.dtype),
            combine,
            (1, *self.window, 1),
            (1, *strides(self), 1),
            ((0, 0), *padding, (0, 0)),
            None,
            (1, *per_axis(self.dilation, len(self.window)), 1),
        )


class MaxPool(_Pool):
    """The largest number of each window.

    Input `(..., *space, features)`, output of the same form. `window` has a size for each axis of space; a number is a
    window in one dimension. `stride` (by default the window), `padding` and `dilation` are as in `Conv`; padding never
    is the largest number.

    Raises `ValueError` for too few axes, for a window that does not fit, and for options that do not have one value for
    each axis.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.MaxPool(2)(jnp.array([[1.0], [4.0], [2.0], [3.0]]), {}, {})[0].ravel()
    Array([4., 3.], dtype=float32)
    """

    def _pool(self, x, padding):
        least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min
        if per_axis(self.dilation, len(self.window)) == (1,) * len(self.window):
            return self._slide(x, least, lax.max, padding)
        # JAX has no gradient of a dilated maximum: one slice of the input for each place in the window.
        x = lax.pad(x, np.asarray(least, x.dtype), [(0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0)])
        axes = zip(
            self.window,
            per_axis(self.dilation, len(self.window)),
            strides(self),
            extent(self),
            x.shape[1:-1],
            strict=True,
        )
        places = [
            [slice(d * i, size - reach + d * i + 1, s) for i in range(count)] for count, d, s, reach, size in axes
        ]
        return functools.reduce(jnp.maximum, (x[:, *place] for place in itertools.product(*places)))


class MeanPool(_Pool):
    """The mean of each window.

    Shapes, options and errors are those of `MaxPool`. Padding counts as zeros; with `count_padding=False` it does not
    count.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.MeanPool(2)(jnp.array([[1.0], [4.0], [2.0], [3.0]]), {}, {})[0].ravel()
    Array([2.5, 2.5], dtype=float32)
    """

    count_padding: bool = field(default=True, kw_only=True)

    def _pool(self, x, padding):
        total = self._slide(x, 0, lax.add, padding)
        if self.count_padding:
            return total / math.prod(self.window)
        return total / self._slide(jnp.ones((1, *x.shape[1:-1], 1), total.dtype), 0, lax.add, padding)


class LPPool(_LP, _Pool):
    r"""The p-norm of each window: :math:`y = (\sum |x|^p)^{1/p}`.

    Shapes, options and errors are those of `MaxPool`; `p` is a finite number above zero. The gradient at a window of
    zeros is zero.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.LPPool(2)(jnp.array([[3.0], [4.0], [0.0], [-2.0]]), {}, {})[0].ravel()
    Array([5., 2.], dtype=float32)
    """

    def __post_init__(self):
        _Pool.__post_init__(self)
        _LP.__post_init__(self)

    def _pool(self, x, padding):
        return self._root(self._slide(self._powers(x), 0, lax.add, padding))


# --- all of space ---------------------------------------------------------------------------------------------------


class _GlobalPool(_Reduction):
    keepdims: bool = field(default=False, kw_only=True)

    def forward(self, x, ps, st):
        axes = _space(self, x)
        y = self._reduce(x, axes)
        return (y if self.keepdims else jnp.squeeze(y, axes)), st


class GlobalMaxPool(_Max, _GlobalPool):
    """The largest number of each feature over space: `(batch, *space, features)` to `(batch, features)`.

    With `keepdims` the axes of space stay, with size one. Raises `ValueError` for inputs without an axis of space.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.GlobalMaxPool()(jnp.arange(12.0).reshape(1, 2, 3, 2), {}, {})[0]
    Array([[10., 11.]], dtype=float32)
    """


class GlobalMeanPool(_Mean, _GlobalPool):
    """The mean of each feature over space: `(batch, *space, features)` to `(batch, features)`; see `GlobalMaxPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.GlobalMeanPool()(jnp.arange(12.0).reshape(1, 2, 3, 2), {}, {})[0]
    Array([[5., 6.]], dtype=float32)
    """


class GlobalLPPool(_LP, _GlobalPool):
    """The p-norm of each feature over space: `(batch, *space, features)` to `(batch, features)`; see `GlobalMaxPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.GlobalLPPool(p=1)(jnp.arange(12.0).reshape(1, 2, 3, 2), {}, {})[0]
    Array([[30., 36.]], dtype=float32)
    """


# --- shares of space ------------------------------------------------------------------------------------------------


class _AdaptivePool(_Reduction):
    size: Sizes

    def forward(self, x, ps, st):
        space = _space(self, x)
        sizes = per_axis(self.size, len(space))
        if len(sizes) > len(space) or min(sizes) < 1:
            raise ValueError(f"{option_text(self)} cannot pool the space of an input of shape {x.shape}")
        for axis, size in zip(space[len(space) - len(sizes) :], sizes, strict=True):  # maxima of maxima, and so on
            x = jnp.concatenate([self._reduce(part, axis) for part in _shares(x, axis, size)], axis)
        return x, st


class AdaptiveMaxPool(_Max, _AdaptivePool):
    """The largest number of each share of space, so that the output has a given size.

    Input `(batch, *space, features)`. `size` is one number for all axes of space, or a tuple for the last ones. Share i
    of n along an axis of m numbers goes from floor(i m / n) to ceil((i + 1) m / n): shares overlap where n does not
    divide m. Raises `ValueError` for inputs with too few axes and sizes below 1.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.AdaptiveMaxPool(2)(jnp.arange(5.0).reshape(1, 5, 1), {}, {})[0].ravel()
    Array([2., 4.], dtype=float32)
    """


class AdaptiveMeanPool(_Mean, _AdaptivePool):
    """The mean of each share of space, so that the output has a given size; see `AdaptiveMaxPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.AdaptiveMeanPool(2)(jnp.arange(5.0).reshape(1, 5, 1), {}, {})[0].ravel()
    Array([1., 3.], dtype=float32)
    """


class AdaptiveLPPool(_LP, _AdaptivePool):
    """The p-norm of each share of space, so that the output has a given size; see `AdaptiveMaxPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.AdaptiveLPPool(2, p=1)(jnp.arange(5.0).reshape(1, 5, 1), {}, {})[0].ravel()
    Array([3., 9.], dtype=float32)
    """


def _shares(x: Any, axis: int, count: int) -> list[jax.Array]:
    size = x.shape[axis]
    return [lax.slice_in_dim(x, i * size // count, -(-(i + 1) * size // count), axis=axis) for i in range(count)]


def _space(layer: Layer, x: Any) -> tuple[int, ...]:
    """The axes between the first and the last."""
    if x.ndim < 3:
        raise ValueError(f"{option_text(layer)} expects inputs of shape (batch, *space, features), got {x.shape}")
    return tuple(range(1, x.ndim - 1))
