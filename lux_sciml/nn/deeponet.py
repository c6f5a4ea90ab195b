"""DeepONet: an operator as the product of two networks."""

from typing import Any

import jax.numpy as jnp

from .._tree import floating
from ..core import Container, Layer, as_layer, field
from ..core.converters import count
from ._affine import shared


class DeepONet(Container):
    r"""An operator from functions to functions: :math:`G(u)(p) = \sum_k b_k(u)\, t_k(p) + \beta`.

    Input: a tuple `(u, points)` of the values of the input function at fixed sensors, `(..., sensors)`, and the points
    where to evaluate, `(points, dimension)`, the same for all samples, or `(..., points, dimension)`. Output `(...,
    points, out_features)`. `branch` maps `(..., sensors)` to `(..., out_features * p)`, one output feature after the
    other, and `trunk` `(..., dimension)` to `(..., p)`. Children: `branch` and `trunk`; own parameter: `bias`
    `(out_features,)`, zero at first.

    Lu et al., "Learning nonlinear operators via DeepONet", Nature Machine Intelligence 3, 2021. Raises `ValueError`
    where branch and trunk do not fit.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.DeepONet(lux.MLP(20, 32, 16), lux.MLP(1, 32, 16))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model((jnp.ones((8, 20)), jnp.ones((50, 1))), ps, st)[0].shape
    (8, 50, 1)
    """

    branch: Layer = field(converter=as_layer)
    trunk: Layer = field(converter=as_layer)
    out_features: int = field(default=1, converter=count)

    def init_params(self, key):
        return {**super().init_params(key), "bias": jnp.zeros(self.out_features)}

    def forward(self, x, ps, st):
        u, points = _pair(x)
        (b, t), st = self.run(ps, st, branch=u, trunk=points)
        b, t = floating((b, t))
        width = t.shape[-1]
        if b.shape[-1] != self.out_features * width:
            raise ValueError(
                f"DeepONet multiplies the {width} outputs of its trunk with as many of its branch for each of "
                f"{self.out_features} output features, got {b.shape[-1]}"
            )
        b = b.reshape(*b.shape[:-1], self.out_features, width)
        y = jnp.einsum("...op,...np->...no", b, t)
        return y + shared(ps["bias"], y), st


def _pair(x: Any) -> tuple[Any, Any]:
    if not isinstance(x, tuple) or len(x) != 2:
        got = f"a tuple of {len(x)}" if isinstance(x, tuple) else type(x).__name__
        raise ValueError(f"DeepONet takes a tuple (u, points), got {got}")
    return x
