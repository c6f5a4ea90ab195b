"""HardConstraint: conditions that a model meets exactly, whatever its parameters."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._tree import floating
from ..core import Layer, Wrapper, as_layer, field
from ..core.converters import function, optional
from ..core.printing import brief


class HardConstraint(Wrapper):
    r"""A model with known values where a factor is zero: :math:`y = d(x) f(x) + g(x)`.

    For boundary and initial conditions of differential equations: the loss then has no term for them. Input `(..., n)`,
    output `(..., m)` as of the model; parameters and state are the model's. Options:

    * `model`: the layer f;
    * `factor`: a function d from `(..., n)` to `(..., m)` or `(..., 1)`, zero where the value is known. A simple zero
      (a distance) leaves the derivative across it free; a double zero fixes it as well;
    * `value`: a function g of the same kind, with the known values there; zero by default.

    Lagaris, Likas and Fotiadis, "Artificial neural networks for solving ordinary and partial differential equations",
    IEEE Transactions on Neural Networks 9, 1998. Raises `ValueError` where a function returns another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> u = lux.HardConstraint(lux.MLP(1, 8, 1), lambda x: x * (1 - x), lambda x: 2 * x)  # u(0) = 0, u(1) = 2
    >>> ps, st = lux.setup(jax.random.key(0), u)
    >>> u(jnp.array([[0.0], [1.0]]), ps, st)[0]
    Array([[0.],
           [2.]], dtype=float32)
    """

    model: Layer = field(converter=as_layer)
    factor: Callable[..., Any] = field(converter=function)
    value: Callable[..., Any] | None = field(default=None, converter=optional(function))

    def forward(self, x, ps, st):
        x = floating(x)
        y, st = self.model.forward(x, ps, st)
        out = self._of(x, y, "factor") * y
        return (out if self.value is None else out + self._of(x, y, "value")), st

    def _of(self, x, y, name):
        known = floating(jnp.asarray(getattr(self, name)(x)))
        if known.shape not in ((), y.shape, (*y.shape[:-1], 1)):
            raise ValueError(
                f"{brief(self)} has a {name} of shape {known.shape} beside a model's output {y.shape}: it must return "
                f"{(*y.shape[:-1], 1)}, as x[..., :1] is and sums are by keepdims=True, or {y.shape}"
            )
        return known
