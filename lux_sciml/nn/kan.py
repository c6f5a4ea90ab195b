"""KANLayer: trained functions of one variable on the edges, sums at the nodes."""

from collections.abc import Callable
from typing import Any

import jax

from ..core import Layer, field
from ..core.converters import count, function, optional
from ..initializers import KaimingUniform
from ._affine import product
from ._shapes import require_last
from .basis import Basis, BSplineBasis, as_basis


class KANLayer(Layer):
    r"""A layer of a Kolmogorov-Arnold network: :math:`y_j = \sum_i (v_{ij}\, \sigma(x_i) + \sum_k w_{ikj} B_k(x_i))`.

    Input `(..., in_features)`, output `(..., out_features)`. Options, after these two:

    * `basis`: any basis of functions; cubic B-splines on [-1, 1] by default, which are zero outside;
    * `activation`: that of the residual part, or `None` for none;
    * `init_weight`: draws `weight`, with the fan-in of both sums.

    Parameters: `weight` `(in_features, basis.size, out_features)` and, with an activation, `base_weight`
    `(in_features, out_features)`.

    Liu et al., "KAN: Kolmogorov-Arnold networks", ICLR 2025. Raises `ValueError` for another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Chain(lux.KANLayer(2, 5), lux.KANLayer(5, 1, lux.ChebyshevBasis(4), activation=None))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape, ps.size
    ((8, 1), 110)
    """

    in_features: int = field(converter=count)
    out_features: int = field(converter=count)
    basis: Basis = field(default=BSplineBasis(8), converter=as_basis)
    activation: Callable[..., Any] | None = field(default=jax.nn.silu, converter=optional(function), kw_only=True)
    init_weight: Callable[..., Any] = field(default=KaimingUniform(), converter=function, kw_only=True)

    def init_params(self, key):
        key_weight, key_base = jax.random.split(key)
        weight = self.init_weight(key_weight, (self.in_features * self.basis.size, self.out_features), float)
        ps = {"weight": weight.reshape(self.in_features, self.basis.size, self.out_features)}
        if self.activation is not None:
            ps["base_weight"] = KaimingUniform()(key_base, (self.in_features, self.out_features), float)
        return ps

    def forward(self, x, ps, st):
        x = require_last(self, x, (self.in_features,))
        values = self.basis(x)
        values = values.reshape(*x.shape[:-1], self.in_features * self.basis.size)
        y = product(values, ps["weight"].reshape(values.shape[-1], self.out_features))
        return (y if self.activation is None else y + product(self.activation(x), ps["base_weight"])), st
