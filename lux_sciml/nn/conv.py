"""Convolutions in one, two, three or more dimensions, and their transposes."""

import math
from collections.abc import Callable
from dataclasses import field

import jax
import jax.numpy as jnp
from jax import lax

from ..activations import gain, identity
from ..core import Layer
from ..initializers import KaimingUniform, Uniform
from ._windows import Padding, Sizes, as_batch, as_pairs, check_window, extent, pads, per_axis, strides


class _Convolution(Layer):
    """What Conv and ConvTranspose share: options, checks, parameters."""

    in_features: int
    out_features: int
    window: Sizes
    activation: Callable = identity
    stride: Sizes = field(default=1, kw_only=True)
    padding: Padding = field(default=0, kw_only=True)
    dilation: Sizes = field(default=1, kw_only=True)
    groups: int = field(default=1, kw_only=True)
    use_bias: bool = field(default=True, kw_only=True)
    init_weight: Callable | None = field(default=None, kw_only=True)
    init_bias: Callable | None = field(default=None, kw_only=True)

    def __post_init__(self):
        self.window = per_axis(self.window, 1)
        check_window(self)
        if self.groups < 1 or self.in_features % self.groups or self.out_features % self.groups:
            raise ValueError(
                f"{type(self).__name__}: {self.groups} groups must divide the features, "
                f"got {self.in_features} in and {self.out_features} out"
            )

    def init_params(self, key):
        key_weight, key_bias = jax.random.split(key)
        shape = (*self.window, self.in_features // self.groups, self.out_features)
        init_weight = self.init_weight or KaimingUniform(gain(self.activation))
        init_bias = self.init_bias or Uniform(1 / math.sqrt(max(math.prod(shape[:-1]), 1)))
        dtype = jax.dtypes.canonicalize_dtype(float)
        ps = {"weight": init_weight(key_weight, shape, dtype)}
        if self.use_bias:
            ps["bias"] = init_bias(key_bias, shape[-1:], dtype)
        return ps

    def _convolve(self, x, ps, weight, lead, **options):
        n = len(self.window)
        channels_last = (0, n + 1, *range(1, n + 1))
        dtype = jnp.result_type(x, weight)
        y = lax.conv_general_dilated(
            x.astype(dtype),
            weight.astype(dtype),
            rhs_dilation=per_axis(self.dilation, n),
            dimension_numbers=lax.ConvDimensionNumbers(channels_last, (n + 1, n, *range(n)), channels_last),
            feature_group_count=self.groups,
            **options,
        )
        if self.use_bias:
            y = y + ps["bias"]
        return self.activation(y.reshape(*lead, *y.shape[1:]))


class Conv(_Convolution):
    r"""A convolution over space, then an activation: each output sees a window of the input.

    .. math:: y_{p,o} = \sigma\Big(\sum_{k,i} x_{s p + d k,\,i}\, W_{k,i,o} + b_o\Big)

    with stride s and dilation d, as all Python libraries define it (a cross-correlation: the window is not flipped).
    Input `(..., *space, in_features)`, `N H W C` for images; output `(..., *space, out_features)`. `window` has a size
    for each axis of space; a number is a window in one dimension. `stride` and `dilation` are a number or one for each
    axis. `padding` is `"VALID"`, `"SAME"` (output size ceil(input / stride), as in XLA), a number, or, for each axis, a
    number or a pair `(before, after)`. With `groups`, inputs and outputs are split into as many groups that do not see
    each other; as many groups as input features make a depthwise convolution.

    Parameters: `weight` `(*window, in_features / groups, out_features)` and, with `use_bias`, `bias`, drawn as in
    `Dense`, with fan_in the size of the window times `in_features / groups`.

    Raises `ValueError` for another number of features or too few axes, groups that do not divide the features, a window
    that does not fit, and options that do not have one value for each axis.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Conv(3, 8, (3, 3), jax.nn.relu, stride=2, padding="SAME")
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((4, 32, 32, 3)), ps, st)[0].shape
    (4, 16, 16, 8)
    """

    def forward(self, x, ps, st):
        x, lead = as_batch(self, x, self.in_features)
        options = {"window_strides": strides(self), "padding": pads(self, x.shape[1:-1])}
        return self._convolve(x, ps, ps["weight"], lead, **options), st


class ConvTranspose(_Convolution):
    r"""The transpose of a convolution over space, then an activation: each input is spread over a window of the output.

    .. math:: y_{p,o} = \sigma\Big(\sum_{s q + d k = p,\,i} x_{q,i}\, W_{k,i,o} + b_o\Big)

    It is the gradient of the `Conv` from output to input with the same options. The size of the output along an axis is
    `(size - 1) * stride + dilation * (window - 1) + 1 - before - after + output_padding`, where `padding` removes
    numbers before and after; `"SAME"` makes it `size * stride + output_padding`. `output_padding`, smaller than stride
    or dilation, tells apart the inputs that a `Conv` with a stride maps to one size. Shapes, other options, parameters
    and errors are those of `Conv`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.ConvTranspose(8, 3, (3, 3), stride=2, padding="SAME")
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((4, 16, 16, 8)), ps, st)[0].shape
    (4, 32, 32, 3)
    """

    output_padding: Sizes = field(default=0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        n = len(self.window)
        extra = per_axis(self.output_padding, n)
        largest = tuple(map(max, strides(self), per_axis(self.dilation, n)))
        if len(extra) != n or not all(0 <= a < b for a, b in zip(extra, largest, strict=True)):
            raise ValueError(
                f"ConvTranspose needs an output_padding from 0 to below stride or dilation {largest}, got {extra}"
            )

    def forward(self, x, ps, st):
        x, lead = as_batch(self, x, self.in_features)
        n = len(self.window)
        flipped = jnp.flip(ps["weight"], range(n))
        options = {"window_strides": (1,) * n, "lhs_dilation": strides(self), "padding": self._pads()}
        return self._convolve(x, ps, flipped, lead, **options), st

    def _pads(self):
        """What to pad the input with, which the stride has spread out."""
        n = len(self.window)
        extra = per_axis(self.output_padding, n)
        if self.padding == "SAME":
            excess = [reach - step for reach, step in zip(extent(self), strides(self), strict=True)]
            removed = [(max(more, 0) // 2, more - max(more, 0) // 2) for more in excess]
        else:
            removed = as_pairs(self.padding, n)
        return [
            (reach - 1 - before, reach - 1 - after + more)
            for reach, (before, after), more in zip(extent(self), removed, extra, strict=True)
        ]
