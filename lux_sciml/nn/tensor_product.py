"""TensorProduct: a linear map of products of basis functions, one basis for each input."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from .._tree import widened
from ..core import Layer, field
from ..core.converters import checks_itself, count, function, short
from ..initializers import KaimingUniform
from ._affine import product
from ._shapes import require_last
from .basis import Basis, as_basis


@checks_itself
def bases(value: Callable[..., Any] | Sequence[Callable[..., Any]]) -> tuple[Basis, ...]:
    """The converter of one basis for each input, at least one."""
    items = (value,) if callable(value) else value
    if not isinstance(items, list | tuple) or not items:
        raise TypeError(f"expected one basis for each input, such as (lux.ChebyshevBasis(5),), got {short(value)}")
    return tuple(map(as_basis, items))


class TensorProduct(Layer):
    r"""A linear map of a tensor product of bases: :math:`y = (B_1(x_1) \otimes \dots \otimes B_d(x_d)) W`.

    `bases` holds one basis for each of the d inputs: `lux.ChebyshevBasis(5)`, or any callable value with a `size`.
    Input `(..., d)`, output `(..., out_features)`. Parameter: `weight` `(product of sizes, out_features)`, the last
    basis running fastest, drawn by `init_weight`. Raises `ValueError` for inputs of another size.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.TensorProduct((lux.ChebyshevBasis(4), lux.FourierBasis(5)), 3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 2)), ps, st)[0].shape, ps.size
    ((8, 3), 60)
    """

    bases: tuple[Basis, ...] = field(converter=bases)
    out_features: int = field(converter=count)
    init_weight: Callable[..., Any] = field(default=KaimingUniform(), converter=function, kw_only=True)

    def init_params(self, key):
        shape = (math.prod(basis.size for basis in self.bases), self.out_features)
        return {"weight": self.init_weight(key, shape, float)}

    def forward(self, x, ps, st):
        x = require_last(self, x, (len(self.bases),))
        wide = widened(x)
        products = jnp.ones((*x.shape[:-1], 1), wide.dtype)
        for i, basis in enumerate(self.bases):
            pairs = products[..., None] * basis(wide[..., i])[..., None, :]
            products = pairs.reshape(*x.shape[:-1], products.shape[-1] * basis.size)
        return product(products.astype(x.dtype), ps["weight"]), st
