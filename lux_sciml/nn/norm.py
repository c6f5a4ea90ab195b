"""Normalizations: over the batch, over groups of features, over the spatial axes, over the features of a sample."""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._tree import squared, widened
from ..activations import identity
from ..core import Layer, Mode, field
from ..core.converters import checks_itself, count, flag, function, number
from ..core.printing import brief
from ._shapes import as_floating, as_tuple, fraction, require_last, require_real, size_or_sizes


@checks_itself
def _from_zero(value: float) -> float:
    """A number, zero or more."""
    x = number(value)
    if not 0 <= x < math.inf:
        raise ValueError(f"expected a finite number of at least 0, got {value}")
    return x


class _Norm(Layer):
    """What all normalizations share. Statistics are computed in float32 at least, and the output is rounded once."""

    affine: bool = field(default=True, converter=flag, kw_only=True)
    epsilon: float = field(default=1e-5, converter=_from_zero, kw_only=True)

    def _init_affine(self, shape):
        return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)} if self.affine else {}

    def _affine(self, x, standard, ps):
        """The standardized elements, scaled and shifted, in the precision of the input x and the parameters."""
        if not ps:
            return standard.astype(x.dtype)
        y = standard * widened(ps["scale"])
        if "bias" in ps:
            y = y + widened(ps["bias"])
        return y.astype(jnp.result_type(x, ps["scale"]))


def _require_features(layer: Any, x: Any, before: int = 1) -> None:
    """Raise unless x has `features` last and at least `before` axes in front of them, the batch first."""
    if x.ndim <= before or x.shape[-1] != layer.features:
        space = "space, " * (before - 1)
        raise ValueError(f"{brief(layer)} expects inputs of shape (batch, {space}..., {layer.features}), got {x.shape}")


def _standardized(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) over the axes, in float32 at least."""
    x = widened(x)
    mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    return (x - mean) * lax.rsqrt(var + epsilon)


class _TrackingNorm(_Norm):
    """A normalization of each feature that may keep running statistics for the test mode."""

    features: int = field(converter=count)
    activation: Callable[..., Any] = field(default=identity, converter=function)
    track_stats: bool = field(default=True, converter=flag, kw_only=True)
    momentum: float = field(default=0.1, converter=fraction, kw_only=True)

    def init_params(self, key):
        return self._init_affine(self.features)

    def init_state(self, key):
        if not self.track_stats:
            return {}
        zeros, ones = jnp.zeros(self.features), jnp.ones(self.features)
        return {"running_mean": zeros, "running_var": ones, "mode": Mode.TRAIN}

    @abc.abstractmethod
    def _axes(self, x) -> tuple[int, ...]:
        """The axes to take the statistics over."""

    def forward(self, x, ps, st):
        x = as_floating(self, require_real(self, x) if self.track_stats else x)
        axes = self._axes(x)
        if self.track_stats and st["mode"] is Mode.TEST:
            mean, var = st["running_mean"], st["running_var"]
        elif x.size == 0:  # no sample: nothing to normalize, and the running statistics stay
            mean, var = jnp.zeros((), widened(x).dtype), jnp.ones((), widened(x).dtype)
        else:
            count = math.prod(x.shape[axis] for axis in axes)
            if count < 2:
                raise ValueError(f"{brief(self)} needs more than one value per feature, got shape {x.shape}")
            mean, var = jnp.mean(widened(x), axes, keepdims=True), jnp.var(widened(x), axes, keepdims=True)
            if self.track_stats and st["mode"] is Mode.HOLD:
                st = {**st, **self._own(mean, var)}
            elif self.track_stats:
                st = {**st, **self._moved(st, mean, var * (count / (count - 1)))}
        return self.activation(self._rescaled(x, mean, var, ps)), st

    def _rescaled(self, x, mean, var, ps):
        """The normalized x as one scale and one shift for each feature: fewer passes over x, also in the gradient."""
        wide, dtype = widened(x), x.dtype
        scale = lax.rsqrt(var.astype(wide.dtype) + self.epsilon)
        shift = -mean.astype(wide.dtype) * scale
        if self.affine:
            dtype = jnp.result_type(x, ps["scale"])
            scale, shift = (widened(ps["scale"]) * part for part in (scale, shift))
            shift = shift + widened(ps["bias"])
        return (wide * scale + shift).astype(dtype)

    def _own(self, mean, var):
        """The statistics of a batch, with their gradients, in the place of the running ones."""
        if math.prod(mean.shape) != self.features:
            raise ValueError(f"{brief(self)} has statistics for each sample, which a solve cannot hold for all")
        return {"running_mean": mean.reshape(self.features), "running_var": var.reshape(self.features)}

    def _moved(self, st, mean, var):
        def towards(old, new):
            new = lax.stop_gradient(new).reshape(-1, self.features).mean(0).astype(old.dtype)
            return (1 - self.momentum) * old + self.momentum * new

        return {"running_mean": towards(st["running_mean"], mean), "running_var": towards(st["running_var"], var)}


class BatchNorm(_TrackingNorm):
    r"""Normalizes each feature over all other axes: :math:`y = \sigma(\gamma (x - \mu) / \sqrt{v + \epsilon} + \beta)`.

    In training, mean and (biased) variance are those of the batch, and the running ones in the state move toward them,
    the variance unbiased: `running = (1 - momentum) * running + momentum * new`. In test mode the running ones are
    used. A batch without samples gives an output without samples, and leaves the running statistics as they are.

    * `features`: the size of the last axis.
    * `activation`: a function of an array (default: the identity).
    * `affine`: whether there are parameters `scale` :math:`\gamma` and `bias` :math:`\beta`, both `(features,)`.
    * `epsilon`: what is added to the variance.
    * `track_stats`: whether there are running statistics; without, those of the batch are used in test mode too.
    * `momentum`: the weight of the new statistics.

    Input and output `(batch, ..., features)`. State, with `track_stats`: `running_mean`, `running_var`, both
    `(features,)` and never narrower than float32 (`lux.setup`), and `mode`.

    Ioffe and Szegedy, "Batch normalization", ICML 2015. Raises `ValueError` for another number of features, and where
    the statistics are those of a batch with a single value per feature.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.BatchNorm(3, momentum=0.5)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> y, st = layer(jnp.arange(12.0).reshape(4, 3), ps, st)
    >>> st["running_mean"]
    Array([2.25, 2.75, 3.25], dtype=float32)
    """

    def _axes(self, x):
        _require_features(self, x)
        return tuple(range(x.ndim - 1))


class InstanceNorm(_TrackingNorm):
    r"""Normalizes each feature of each sample over the spatial axes.

    .. math:: y = \sigma(\gamma (x - \mu) / \sqrt{v + \epsilon} + \beta)

    * `features`: the size of the last axis.
    * `activation`: a function of an array (default: the identity).
    * `affine`: whether there are parameters `scale` :math:`\gamma` and `bias` :math:`\beta`, both `(features,)`
      (default: no).
    * `epsilon`: what is added to the variance.
    * `track_stats`: whether running statistics are kept, means over the batch, and used in test mode (default: no).
    * `momentum`: the weight of the new statistics.

    Input and output `(batch, *space, features)`. State, with `track_stats`: that of `BatchNorm`.

    Ulyanov, Vedaldi and Lempitsky, "Instance normalization", arXiv:1607.08022. Raises `ValueError` for another number
    of features, for inputs without a spatial axis, and for a single spatial position.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.InstanceNorm(3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> bool(jnp.allclose(layer(jnp.arange(24.0).reshape(2, 4, 3), ps, st)[0].mean(1), 0.0, atol=1e-6))
    True
    """

    affine: bool = field(default=False, converter=flag, kw_only=True)
    track_stats: bool = field(default=False, converter=flag, kw_only=True)

    def _axes(self, x):
        _require_features(self, x, before=2)
        return tuple(range(1, x.ndim - 1))


class GroupNorm(_Norm):
    r"""Normalizes groups of features of each sample, together and over the spatial axes.

    .. math:: y = \sigma(\gamma (x - \mu) / \sqrt{v + \epsilon} + \beta)

    * `features`: the size of the last axis.
    * `groups`: into how many groups of neighbors the features are split.
    * `activation`: a function of an array (default: the identity).
    * `affine`: whether there are parameters `scale` :math:`\gamma` and `bias` :math:`\beta`, both `(features,)`.
    * `epsilon`: what is added to the variance.

    Input and output `(batch, ..., features)`. No state; training and testing are the same.

    Wu and He, "Group normalization", ECCV 2018. Raises `ValueError` for another number of features, and for groups that
    do not divide it.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.GroupNorm(6, 2)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 5, 5, 6)), ps, st)[0].shape
    (8, 5, 5, 6)
    """

    features: int = field(converter=count)
    groups: int = field(converter=count)
    activation: Callable[..., Any] = field(default=identity, converter=function)

    def __check_init__(self):
        if self.features % self.groups:
            raise ValueError(f"GroupNorm cannot split {self.features} features into {self.groups} equal groups")

    def init_params(self, key):
        return self._init_affine(self.features)

    def forward(self, x, ps, st):
        x = as_floating(self, x)
        _require_features(self, x)
        grouped = (x.shape[0], math.prod(x.shape[1:-1]), self.groups, self.features // self.groups)
        standard = _standardized(x.reshape(grouped), (1, 3), self.epsilon).reshape(x.shape)
        return self.activation(self._affine(x, standard, ps)), st


class LayerNorm(_Norm):
    r"""Normalizes each sample over its last axes: :math:`y = \sigma(\gamma (x - \mu) / \sqrt{v + \epsilon} + \beta)`.

    * `shape`: the number of features or a tuple of sizes; mean and variance are taken over these axes.
    * `activation`: a function of an array (default: the identity).
    * `affine`: whether there are parameters `scale` :math:`\gamma` and `bias` :math:`\beta`, both of that shape.
    * `epsilon`: what is added to the variance.

    Input and output `(..., *shape)`. No state.

    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450. Raises `ValueError` for inputs of another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.LayerNorm(4)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> bool(jnp.allclose(layer(jnp.arange(8.0).reshape(2, 4), ps, st)[0].mean(1), 0.0))
    True
    """

    shape: int | tuple[int, ...] = field(converter=size_or_sizes)
    activation: Callable[..., Any] = field(default=identity, converter=function)

    def init_params(self, key):
        return self._init_affine(self.shape)

    def forward(self, x, ps, st):
        shape = as_tuple(self.shape)
        x = require_last(self, x, shape)
        standard = _standardized(x, tuple(range(-len(shape), 0)), self.epsilon)
        return self.activation(self._affine(x, standard, ps)), st


class RMSNorm(_Norm):
    r"""Divides each sample by its root mean square over the last axes.

    .. math:: y = \gamma x / \sqrt{\overline{x^2} + \epsilon}

    Input and output `(..., *shape)`, where `shape` is the number of features or a tuple of sizes. Parameter, with
    `affine`: `scale` of that shape. No state.

    Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019. Raises `ValueError` for inputs of another
    shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.RMSNorm(2, epsilon=0.0)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.array([3.0, 4.0]), ps, st)[0]
    Array([0.84852815, 1.1313709 ], dtype=float32)
    """

    shape: int | tuple[int, ...] = field(converter=size_or_sizes)

    def init_params(self, key):
        return {"scale": jnp.ones(self.shape)} if self.affine else {}

    def forward(self, x, ps, st):
        shape = as_tuple(self.shape)
        x = require_last(self, x, shape)
        wide = widened(x)
        mean_square = jnp.mean(squared(wide), tuple(range(-len(shape), 0)), keepdims=True)
        return self._affine(x, wide * lax.rsqrt(mean_square + self.epsilon), ps), st
