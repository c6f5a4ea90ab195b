"""Convolutions in one, two, three or more dimensions, and their transposes."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..activations import gain, identity
from ..core import field
from ..core.converters import choice, count, flag, function, natural, optional, sizes
from ..initializers import KaimingUniform, Uniform
from ._affine import shared, weight_and_bias
from ._shapes import as_floating, one_or_each
from ._windows import Sizes, Sliding


class _Convolution(Sliding):
    """What Conv and ConvTranspose share: options, checks, parameters."""

    in_features: int = field(converter=count)
    out_features: int = field(converter=count)
    kernel_size: tuple[int, ...] = field(converter=sizes)
    activation: Callable[..., Any] = field(default=identity, converter=function)
    groups: int = field(default=1, converter=count, kw_only=True)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)
    init_weight: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    init_bias: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)

    def __check_init__(self):
        if self.in_features % self.groups or self.out_features % self.groups:
            raise ValueError(
                f"{type(self).__name__}: {self.groups} groups must divide the features, "
                f"got {self.in_features} in and {self.out_features} out"
            )

    def init_params(self, key):
        shape = (*self.kernel_size, self.in_features // self.groups, self.out_features)
        init_weight = self.init_weight or KaimingUniform(gain(self.activation))
        init_bias = self.init_bias or Uniform(1 / math.sqrt(math.prod(shape[:-1])))
        return weight_and_bias(key, shape, init_weight, shape[-1:], init_bias if self.use_bias else None)

    def _convolve(self, x, ps, weight, lead, **options):
        n = len(self.kernel_size)
        channels_last = (0, n + 1, *range(1, n + 1))
        dtype = jnp.result_type(x, weight)
        y = lax.conv_general_dilated(
            x.astype(dtype),
            weight.astype(dtype),
            rhs_dilation=self.window.dilation,
            dimension_numbers=lax.ConvDimensionNumbers(channels_last, (n + 1, n, *range(n)), channels_last),
            feature_group_count=self.groups,
            **options,
        )
        if self.use_bias:
            y = y + shared(ps["bias"], y)
        return self.activation(y.reshape(*lead, *y.shape[1:]))


class Conv(_Convolution):
    r"""A convolution over the spatial axes, then an activation: each output sees a window of the input.

    .. math:: y_{p,o} = \sigma\Big(\sum_{k,i} x_{s p + d k,\,i}\, W_{k,i,o} + b_o\Big)

    with stride s and dilation d, as all Python libraries define it (a cross-correlation: the kernel is not flipped).

    * `in_features`, `out_features`: the sizes of the last axis.
    * `kernel_size`: one size for each spatial axis; a whole number is a kernel in one dimension.
    * `activation`: a function of an array (default: the identity).
    * `stride`, `dilation`: a whole number, or one for each axis.
    * `padding`: `"VALID"` (none, the default), `"SAME"` (the size of the output is ceil(input / stride), as in XLA), or
      how many elements to add before and after every axis, or, for each axis, such a number or a pair
      `(before, after)`.
    * `padding_mode`: what the padding holds: `"zeros"`; `"circular"`, the other end of the axis, for functions on
      periodic domains; `"reflect"`, the elements next to the border in reverse, without the border itself;
      `"replicate"`, the border. The names are PyTorch's. Without `padding` it has no effect.
    * `groups`: inputs and outputs are split into as many groups that do not see each other; as many groups as input
      features make a depthwise convolution.
    * `use_bias`: whether there is a bias b.
    * `init_weight`, `init_bias`: initializers; by default as in `Dense`, with fan_in the size of the kernel times
      `in_features / groups`.

    Input `(..., *space, in_features)`, `N H W C` for images; output `(..., *space, out_features)`. Parameters: `weight`
    `(*kernel_size, in_features / groups, out_features)` and, with `use_bias`, `bias` `(out_features,)`.

    Raises `ValueError` for another number of features or too few axes, groups that do not divide the features, a window
    that does not fit, reflected padding that is not narrower than the axis, and options that do not have one value for
    each axis.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Conv(3, 8, (3, 3), jax.nn.relu, stride=2, padding="SAME")
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((4, 32, 32, 3)), ps, st)[0].shape
    (4, 16, 16, 8)
    """

    def forward(self, x, ps, st):
        x, lead = self.batched(as_floating(self, x), self.in_features)
        x, pads = self.padded(x)
        return self._convolve(x, ps, ps["weight"], lead, window_strides=self.window.stride, padding=pads), st


class ConvTranspose(_Convolution):
    r"""The transpose of a convolution, then an activation: each input is spread over a window of the output.

    .. math:: y_{p,o} = \sigma\Big(\sum_{s q + d k = p,\,i} x_{q,i}\, W_{k,i,o} + b_o\Big)

    It is the gradient of the `Conv` from output to input with the same options. The size of the output along an axis is
    `(size - 1) * stride + dilation * (kernel_size - 1) + 1 - before - after + output_padding`, where `padding` removes
    elements before and after; `"SAME"` makes it `size * stride + output_padding`.

    * `output_padding`: a whole number, or one for each axis, smaller than stride or dilation; it tells apart the inputs
      that a `Conv` with a stride maps to one size.
    * `padding_mode` is `"zeros"`, as in PyTorch.
    * All other options, shapes, parameters and errors are those of `Conv`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.ConvTranspose(8, 3, (3, 3), stride=2, padding="SAME")
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((4, 16, 16, 8)), ps, st)[0].shape
    (4, 32, 32, 3)
    """

    padding_mode: str = field(default="zeros", converter=choice("zeros"), kw_only=True)
    output_padding: Sizes = field(default=0, converter=one_or_each(natural), kw_only=True)

    def __check_init__(self):
        extra = self._each("output_padding", self.output_padding)
        largest = tuple(map(max, self.window.stride, self.window.dilation))
        if not all(a < b for a, b in zip(extra, largest, strict=True)):
            raise ValueError(
                f"ConvTranspose needs an output_padding from 0 to below stride or dilation {largest}, got {extra}"
            )

    def forward(self, x, ps, st):
        x, lead = self.batched(as_floating(self, x), self.in_features)
        n = len(self.kernel_size)
        flipped = jnp.flip(ps["weight"], range(n))
        options = {"window_strides": (1,) * n, "lhs_dilation": self.window.stride, "padding": self._transposed_pads()}
        return self._convolve(x, ps, flipped, lead, **options), st

    def _transposed_pads(self):
        """What to pad the input with, which the stride has spread out."""
        window = self.window
        if isinstance(window.padding, str):
            excess = [reach - step for reach, step in zip(window.extent, window.stride, strict=True)]
            removed = [(max(more, 0) // 2, more - max(more, 0) // 2) for more in excess]
        else:
            removed = window.padding
        return [
            (reach - 1 - before, reach - 1 - after + more)
            for reach, (before, after), more in zip(
                window.extent, removed, self._each("output_padding", self.output_padding), strict=True
            )
        ]
