"""Fourier neural operators: spectral convolution and the network built of it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._tree import widened
from ..activations import identity
from ..core import Container, Layer, field
from ..core.converters import count, function, sizes
from ..core.printing import brief
from ..initializers import Uniform
from ._shapes import as_floating, require_real
from .linear import Dense
from .mlp import MLP


class SpectralConv(Layer):
    r"""A convolution over a whole periodic domain, as a matrix at each low frequency: :math:`\hat y_k = \hat x_k W_k`.

    Input `(..., *space, in_features)`, output `(..., *space, out_features)`, on 1 to 3 spatial axes, as many as
    `modes` has entries (a whole number is one axis). Along the last spatial axis the frequencies 0 to `modes - 1` are
    kept, along the others also the negative ones, 2 `modes` in all; the others become zero. The Fourier coefficients
    are those of the function, not of its samples, so that the same parameters serve grids of every resolution; they
    are computed in float32 at least. Parameter: `weight` `(2, *kept, in_features, out_features)`, the real and the
    imaginary parts, which at first keep the variance of each frequency.

    Li et al., "Fourier neural operator for parametric partial differential equations", ICLR 2021. Raises `ValueError`
    for grids too coarse for the modes, and for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.SpectralConv(1, 2, (4, 3))
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 16, 16, 1)), ps, st)[0].shape, ps.weight.shape
    ((8, 16, 16, 2), (2, 8, 3, 1, 2))
    """

    in_features: int = field(converter=count)
    out_features: int = field(converter=count)
    modes: tuple[int, ...] = field(converter=sizes)

    def __check_init__(self):
        if not 1 <= len(self.modes) <= 3:
            raise ValueError(f"SpectralConv takes 1 to 3 positive numbers of modes, got {self.modes}")

    def init_params(self, key):
        kept = (*(2 * m for m in self.modes[:-1]), self.modes[-1])
        init = Uniform(math.sqrt(3 / (2 * self.in_features)))
        shape = (2, *kept, self.in_features, self.out_features)
        return {"weight": init(key, shape, float)}

    def forward(self, x, ps, st):
        n, x = len(self.modes), as_floating(self, require_real(self, x))
        space = x.shape[-n - 1 : -1]
        if x.ndim < n + 1 or x.shape[-1] != self.in_features or any(
            size < 2 * m for size, m in zip(space, self.modes, strict=True)
        ):  # fmt: skip
            raise ValueError(
                f"{brief(self)} expects inputs (..., *space, {self.in_features}) with at least "
                f"{tuple(2 * m for m in self.modes)} points along the spatial axes, got {x.shape}"
            )
        axes = tuple(range(-n - 1, -1))
        coefficients = jnp.fft.rfftn(widened(x), axes=axes, norm="forward")
        shape = coefficients.shape
        for axis, m in zip(axes, self.modes, strict=True):
            coefficients = _low(coefficients, axis, m)
        weight = lax.complex(*widened((ps["weight"][0], ps["weight"][1])))
        mixed = jnp.einsum("...i,...io->...o", coefficients, weight)
        for axis, m in zip(axes, self.modes, strict=True):
            mixed = _widen(mixed, axis, m, shape[axis])
        y = jnp.fft.irfftn(mixed, s=space, axes=axes, norm="forward")
        return y.astype(jnp.result_type(x, ps["weight"])), st


class FourierBlock(Container):
    """A layer of an FNO: `activation(SpectralConv(x) + Dense(x))`, from `features` to `features`.

    Input and output `(..., *space, features)`. `modes` and errors are those of `SpectralConv`; the `activation` is
    `gelu` by default. Children: `spectral` and `pointwise`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> block = lux.FourierBlock(3, modes=4)
    >>> ps, st = lux.setup(jax.random.key(0), block)
    >>> block(jnp.ones((8, 32, 3)), ps, st)[0].shape
    (8, 32, 3)
    """

    features: int = field(converter=count)
    modes: tuple[int, ...] = field(converter=sizes)
    activation: Callable[..., Any] = field(default=jax.nn.gelu, converter=function)
    spectral: Layer = field(init=False)
    pointwise: Layer = field(init=False)

    def __post_init__(self):
        self.spectral = SpectralConv(self.features, self.features, self.modes)
        self.pointwise = Dense(self.features, self.features)

    def forward(self, x, ps, st):
        (a, b), st = self.run(ps, st, spectral=x, pointwise=x)
        return self.activation(a + b), st


class FNO(Container):
    r"""A Fourier neural operator, from functions to functions on a periodic grid of 1 to 3 dimensions.

    * `in_features`, `out_features`: sizes of the last axis of input and output.
    * `width`: the features inside. At each point a `Dense` layer lifts to them, and a network with one hidden layer of
      `2 width` projects to the output.
    * `modes`: the frequencies that are kept along each spatial axis; see `SpectralConv`.
    * `depth`: the number of blocks :math:`\sigma(\mathrm{SpectralConv}(v) + v W + b)`, the last without activation.
    * `activation`: a function of an array.

    Input `(..., *space, in_features)`, output `(..., *space, out_features)`. Children: `lift`, `blocks_0`, ...,
    `project`. Trained on one grid it can be applied on finer ones.

    Li et al., "Fourier neural operator for parametric partial differential equations", ICLR 2021. Raises `ValueError`
    for grids too coarse for the modes, and for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.FNO(1, 1, width=8, modes=4, depth=2)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 32, 1)), ps, st)[0].shape, model(jnp.ones((8, 64, 1)), ps, st)[0].shape
    ((8, 32, 1), (8, 64, 1))
    """

    in_features: int = field(converter=count)
    out_features: int = field(converter=count)
    width: int = field(converter=count, kw_only=True)
    modes: tuple[int, ...] = field(converter=sizes, kw_only=True)
    depth: int = field(default=4, converter=count, kw_only=True)
    activation: Callable[..., Any] = field(default=jax.nn.gelu, converter=function, kw_only=True)
    lift: Layer = field(init=False)
    blocks: tuple[Layer, ...] = field(init=False)
    project: Layer = field(init=False)

    def __post_init__(self):
        self.lift = Dense(self.in_features, self.width)
        activations = (*[self.activation] * (self.depth - 1), identity)
        self.blocks = tuple(FourierBlock(self.width, self.modes, activation) for activation in activations)
        self.project = MLP(self.width, 2 * self.width, self.out_features, self.activation)

    def forward(self, x, ps, st):
        for name in self.children:
            (x,), st = self.run(ps, st, **{name: x})
        return x, st


def _low(x, axis, m):
    """The frequencies 0 to m - 1 along an axis and, but for the last spatial axis, -m to -1."""
    parts = [lax.slice_in_dim(x, 0, m, axis=axis)]
    if axis != -2:
        parts.append(lax.slice_in_dim(x, x.shape[axis] - m, None, axis=axis))
    return jnp.concatenate(parts, axis)


def _widen(x, axis, m, size):
    """Zeros for the frequencies that `_low` has cut out."""
    shape = list(x.shape)
    shape[axis] = size - x.shape[axis]
    parts = [lax.slice_in_dim(x, 0, m, axis=axis), jnp.zeros(shape, x.dtype)]
    if axis != -2:
        parts.append(lax.slice_in_dim(x, m, None, axis=axis))
    return jnp.concatenate(parts, axis)
