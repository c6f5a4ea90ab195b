"""Pooling: the maximum, the mean or the p-norm over a window, over bins of the spatial axes, or over all of them."""

import abc
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._tree import real_type, squared, widened
from ..core import Layer, field
from ..core.converters import flag, optional, sizes
from ..core.printing import brief
from ._shapes import as_floating, positive, require_real, size_or_sizes
from ._windows import Sizes, Sliding


class _Reduction(Layer):
    """One element for many."""

    @abc.abstractmethod
    def _pooled(self, x: jax.Array) -> jax.Array:
        """The output for `(batch, *space, features)`."""

    @abc.abstractmethod
    def _reduce(self, x: jax.Array, axes: Any) -> jax.Array:
        """One element for all along the axes, which stay with size one."""


class _Max(_Reduction):
    def forward(self, x, ps, st):
        return self._pooled(jnp.asarray(require_real(self, x))), st

    def _reduce(self, x, axes):
        return jnp.max(x, axes, keepdims=True)


class _Sum(_Reduction):
    def forward(self, x, ps, st):
        """Half precision is added up in float32, and rounded at the end."""
        x = as_floating(self, x)
        y = self._pooled(widened(x))
        return y.astype(x.dtype if jnp.iscomplexobj(y) else real_type(x)), st


class _Mean(_Sum):
    def _reduce(self, x, axes):
        return jnp.mean(x, axes, keepdims=True)


class _LP(_Sum):
    p: float = field(default=2.0, converter=positive, kw_only=True)

    def _reduce(self, x, axes):
        return self._root(jnp.sum(self._powers(x), axes, keepdims=True))

    def _powers(self, x):
        """The p-th powers, with a gradient of zero at zero."""
        if self.p == 2:
            return squared(x)
        zero = x == 0
        return jnp.where(zero, 0, jnp.abs(jnp.where(zero, 1, x)) ** self.p)

    def _root(self, total):
        """The p-th root, with a gradient of zero at zero."""
        some = total > 0
        return jnp.where(some, jnp.where(some, total, 1) ** (1 / self.p), 0)


# --- sliding windows ------------------------------------------------------------------------------------------------


class _Pool(_Reduction, Sliding):
    """Pooling by a window that slides over the spatial axes."""

    kernel_size: tuple[int, ...] = field(converter=sizes)
    stride: Sizes | None = field(default=None, converter=optional(size_or_sizes), kw_only=True)

    def _pooled(self, x):
        x, lead = self.batched(x)
        y = self._slid(*self.padded(x), x.shape[1:-1])
        return y.reshape(*lead, *y.shape[1:])

    @abc.abstractmethod
    def _slid(self, x, pads, space) -> jax.Array:
        """The pooled `(batch, *space, features)`, for what is padded already and the padding that is left to do."""

    def _slide(self, x, start, combine, pads):
        window = self.window
        return lax.reduce_window(
            x,
            np.asarray(start, x.dtype),
            combine,
            (1, *window.size, 1),
            (1, *window.stride, 1),
            ((0, 0), *pads, (0, 0)),
            None,
            (1, *window.dilation, 1),
        )

    def _counts(self, pads, space):
        """How many elements that are no padding each window holds, `(*windows,)`. Raises where one holds none."""
        along = []
        for k, s, d, reach, (before, after), n in zip(
            self.window.size, self.window.stride, self.window.dilation, self.window.extent, pads, space, strict=True
        ):
            places = np.arange(0, before + n + after - reach + 1, s)[:, None] + d * np.arange(k) - before
            along.append(np.sum((places >= 0) & (places < n), 1))
        counts = functools.reduce(np.multiply.outer, along)
        if not counts.all():
            raise ValueError(f"{brief(self)}: with padding by {pads}, a window on {space} holds nothing else")
        return counts


class MaxPool(_Max, _Pool):
    """The maximum of each window.

    * `kernel_size`: one size for each spatial axis; a whole number is a window in one dimension.
    * `stride`: a whole number, or one for each axis (default: the kernel size).
    * `padding`, `dilation`: as in `Conv`.
    * `padding_mode`: as in `Conv`; with `"zeros"` the padding does not count: it never is the maximum.

    Input `(..., *space, features)`, output of the same form and type: integers stay integers.

    Raises `ValueError` for too few axes, for a window that does not fit or that holds nothing but padding, and for
    options that do not have one value for each axis.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.MaxPool(2)(jnp.array([[1.0], [4.0], [2.0], [3.0]]), {}, {})[0].ravel()
    Array([4., 3.], dtype=float32)
    """

    def _slid(self, x, pads, space):
        window = self.window
        self._counts(pads, x.shape[1:-1])
        if x.dtype == bool:
            least = False
        else:
            least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min
        if set(window.dilation) == {1}:
            return self._slide(x, least, lax.max, pads)
        # JAX has no gradient of a dilated maximum: one slice of the input for each place in the window.
        x = lax.pad(x, np.asarray(least, x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
        axes = zip(window.size, window.dilation, window.stride, window.extent, x.shape[1:-1], strict=True)
        places = [
            [slice(d * i, size - reach + d * i + 1, s) for i in range(count)] for count, d, s, reach, size in axes
        ]
        return functools.reduce(jnp.maximum, (x[:, *place] for place in itertools.product(*places)))


class MeanPool(_Mean, _Pool):
    """The mean of each window.

    * `count_padding`: whether padding by zeros counts as zeros (default), or not at all.
    * Shapes, all other options and errors are those of `MaxPool`; with `"zeros"` the padding is zero.

    Half-precision elements are added up in float32.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.MeanPool(2)(jnp.array([[1.0], [4.0], [2.0], [3.0]]), {}, {})[0].ravel()
    Array([2.5, 2.5], dtype=float32)
    """

    count_padding: bool = field(default=True, converter=flag, kw_only=True)

    def __check_init__(self):
        if not self.count_padding and self.padding_mode != "zeros":
            raise ValueError(
                f'{type(self).__name__}: count_padding=False is for padding_mode="zeros"; the elements that '
                f"{self.padding_mode!r} repeats always count"
            )

    def _slid(self, x, pads, space):
        counts = math.prod(self.window.size) if self.count_padding else self._counts(pads, space)[..., None]
        return self._slide(x, 0, lax.add, pads) / jnp.asarray(counts, x.dtype)


class LPPool(_LP, _Pool):
    r"""The p-norm of each window: :math:`y = (\sum |x|^p)^{1/p}`.

    * `p`: a finite number above zero (default: 2).
    * Shapes, all other options and errors are those of `MaxPool`; with `"zeros"` the padding is zero.

    The gradient at elements that are zero, and at a window of zeros, is zero.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.LPPool(2)(jnp.array([[3.0], [4.0], [0.0], [-2.0]]), {}, {})[0].ravel()
    Array([5., 2.], dtype=float32)
    """

    def _slid(self, x, pads, space):
        return self._root(self._slide(self._powers(x), 0, lax.add, pads))


# --- all of space ---------------------------------------------------------------------------------------------------


class _GlobalPool(_Reduction):
    keepdims: bool = field(default=False, converter=flag, kw_only=True)

    def _pooled(self, x):
        axes = _space(self, x)
        y = self._reduce(x, axes)
        return y if self.keepdims else jnp.squeeze(y, axes)


class GlobalMaxPool(_Max, _GlobalPool):
    """The maximum of each feature over the spatial axes: `(batch, *space, features)` to `(batch, features)`.

    With `keepdims` the spatial axes stay, with size one. Raises `ValueError` for inputs without a spatial axis, or with
    an empty one.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.GlobalMaxPool()(jnp.arange(12.0).reshape(1, 2, 3, 2), {}, {})[0]
    Array([[10., 11.]], dtype=float32)
    """


class GlobalMeanPool(_Mean, _GlobalPool):
    """The mean of each feature over the spatial axes: `(batch, *space, features)` to `(batch, features)`.

    Options and errors are those of `GlobalMaxPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.GlobalMeanPool()(jnp.arange(12.0).reshape(1, 2, 3, 2), {}, {})[0]
    Array([[5., 6.]], dtype=float32)
    """


class GlobalLPPool(_LP, _GlobalPool):
    """The p-norm of each feature over the spatial axes: `(batch, *space, features)` to `(batch, features)`.

    `p` is that of `LPPool`; options and errors are those of `GlobalMaxPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.GlobalLPPool(p=1)(jnp.arange(12.0).reshape(1, 2, 3, 2), {}, {})[0]
    Array([[30., 36.]], dtype=float32)
    """


# --- bins -----------------------------------------------------------------------------------------------------------


class _AdaptivePool(_Reduction):
    size: Sizes = field(converter=size_or_sizes)

    def _pooled(self, x):
        space = _space(self, x)
        sizes = self.size if isinstance(self.size, tuple) else (self.size,) * len(space)
        if len(sizes) > len(space):
            raise ValueError(f"{brief(self)} cannot pool the spatial axes of an input of shape {x.shape}")
        for axis, size in zip(space[len(space) - len(sizes) :], sizes, strict=True):  # maxima of maxima, and so on
            x = jnp.concatenate([self._reduce(part, axis) for part in _bins(x, axis, size)], axis)
        return x


class AdaptiveMaxPool(_Max, _AdaptivePool):
    """The maximum of each of several bins, so that the output has a given size.

    Input `(batch, *space, features)`. `size` is one size for all spatial axes, or a tuple for the last ones. Bin i of
    n along an axis of m elements goes from floor(i m / n) to ceil((i + 1) m / n): bins overlap where n does not divide
    m. Raises `ValueError` for inputs with too few axes or with an empty one.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.AdaptiveMaxPool(2)(jnp.arange(5.0).reshape(1, 5, 1), {}, {})[0].ravel()
    Array([2., 4.], dtype=float32)
    """


class AdaptiveMeanPool(_Mean, _AdaptivePool):
    """The mean of each of several bins, so that the output has a given size; see `AdaptiveMaxPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.AdaptiveMeanPool(2)(jnp.arange(5.0).reshape(1, 5, 1), {}, {})[0].ravel()
    Array([1., 3.], dtype=float32)
    """


class AdaptiveLPPool(_LP, _AdaptivePool):
    """The p-norm of each of several bins, so that the output has a given size; see `AdaptiveMaxPool` and `LPPool`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.AdaptiveLPPool(2, p=1)(jnp.arange(5.0).reshape(1, 5, 1), {}, {})[0].ravel()
    Array([3., 9.], dtype=float32)
    """


def _bins(x: jax.Array, axis: int, count: int) -> list[jax.Array]:
    size = x.shape[axis]
    return [lax.slice_in_dim(x, i * size // count, -(-(i + 1) * size // count), axis=axis) for i in range(count)]


def _space(layer: Layer, x: Any) -> tuple[int, ...]:
    """The axes between the first and the last, none of them empty."""
    if x.ndim < 3 or 0 in x.shape[1:-1]:
        raise ValueError(
            f"{brief(layer)} expects inputs of shape (batch, *space, features), no spatial axis empty, got {x.shape}"
        )
    return tuple(range(1, x.ndim - 1))
