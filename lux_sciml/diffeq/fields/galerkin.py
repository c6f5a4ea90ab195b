"""Galerkin: weights that vary along the depth, or time, of a differential equation."""

from typing import Any

import jax
import jax.numpy as jnp

from ..._tree import floating
from ...components import Layout
from ...core import Layer, Wrapper, as_layer, field
from ...nn.basis import Basis, as_basis


class Galerkin(Wrapper):
    r"""A layer whose parameters are functions of time: :math:`\theta(t) = \sum_i c_i \phi_i(t)`.

    `basis` is any of `lux_sciml`'s bases, such as `lux.LegendreBasis(4)`. The input is the tuple `(t, x)`: for a
    `NeuralODE` with `time_dependent=True`. The parameters are those of `layer`, each with a new first axis of
    coefficients `c`; the first one starts as the layer's own, the others at zero. Raises `ValueError` for an input that
    is no such tuple.

    Massaroli et al., "Dissecting neural ODEs", NeurIPS 2020.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> field = lux.Galerkin(lux.Dense(2, 2), lux.LegendreBasis(3))
    >>> node = lux.NeuralODE(field, ts=[0.0, 1.0], time_dependent=True, output="final")
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> ps.weight.shape, node(jnp.ones(2), ps, st)[0].shape
    ((3, 2, 2), (2,))
    """

    layer: Layer = field(converter=as_layer)
    basis: Basis = field(converter=as_basis)

    def init_params(self, key):
        ps = self.layer.init_params(key)
        layout = Layout.of(ps)
        return layout.rebuild([self._constant(leaf) for leaf in layout.collect(ps)])

    def _constant(self, leaf: Any) -> jax.Array:
        rest = jnp.zeros((self.basis.size - 1, *leaf.shape), leaf.dtype)
        return jnp.concatenate([jnp.asarray(leaf)[None], rest])

    def forward(self, x, ps, st):
        if not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError("a Galerkin layer is called with (t, x): give the NeuralODE time_dependent=True")
        t, x = x
        values = self.basis(floating(t))
        return self.layer.forward(x, jax.tree.map(lambda c: jnp.tensordot(values.astype(c.dtype), c, 1), ps), st)
