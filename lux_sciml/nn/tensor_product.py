"""TensorProduct: a linear map of products of basis functions, one basis for each input."""

import math
from collections.abc import Callable
from dataclasses import field

import jax
import jax.numpy as jnp

from ..core import Layer
from ..initializers import KaimingUniform
from ._shapes import require_last


class TensorProduct(Layer):
    r"""A linear map of a tensor product of bases: :math:`y = (B_1(x_1) \otimes \dots \otimes B_d(x_d)) W`.

    `bases` holds one basis for each of the d inputs: `lux.ChebyshevBasis(5)`, or any callable value with a `size`.
    Input `(..., d)`, output `(..., out_features)`. Parameter: `weight` `(product of sizes, out_features)`, the last
    basis running fastest. Raises `ValueError` for inputs of another size.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.TensorProduct((lux.ChebyshevBasis(4), lux.FourierBasis(5)), 3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 2)), ps, st)[0].shape, ps.size
    ((8, 3), 60)
    """

    bases: tuple[Callable, ...]
    out_features: int
    init_weight: Callable = field(default=KaimingUniform(), kw_only=True)

    def init_params(self, key):
        shape = (math.prod(basis.size for basis in self.bases), self.out_features)
        return {"weight": self.init_weight(key, shape, jax.dtypes.canonicalize_dtype(float))}

    def forward(self, x, ps, st):
        require_last(self, x, (len(self.bases),))
        products = jnp.ones((*x.shape[:-1], 1), x.dtype)
        for i, basis in enumerate(self.bases):
            products = (products[..., None] * basis(x[..., i])[..., None, :]).reshape(*x.shape[:-1], -1)
        return products @ ps["weight"], st
