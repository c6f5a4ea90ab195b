"""Functions with a known value at a point: PositiveDefinite and Pinned, for Lyapunov functions."""

from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax.numpy as jnp

from ..core import Constant, Layer, Wrapper


def squared_norm(x: Any) -> Any:
    """The sum of squares along the last axis, which stays, with size one."""
    return jnp.sum(x**2, axis=-1, keepdims=True)


class PositiveDefinite(Wrapper):
    r"""A function that is zero at a point and positive elsewhere: :math:`V(x) = \psi(f(x) - f(x_0)) + r(x - x_0)`.

    `f` is the layer `model`; `x0` is the point, zeros by default. `psi` and `r` are functions from `(..., n)` to
    `(..., 1)`, zero at zero; `psi` is nowhere negative and `r` positive elsewhere: both are the sum of squares by
    default. Input `(..., n)`, output `(..., 1)`. Parameters and state are the model's; where the model renews its
    state, it is by the call with x.

    Gaby, Zhang and Ye, "Lyapunov-Net", CDC 2022.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> V = lux.PositiveDefinite(lux.MLP(2, 8, 4), [1.0, 2.0])
    >>> ps, st = lux.setup(jax.random.key(0), V)
    >>> V(jnp.array([1.0, 2.0]), ps, st)[0], bool(V(jnp.array([1.0, 2.1]), ps, st)[0] > 0)
    (Array([0.], dtype=float32), True)
    """

    model: Layer
    x0: Any = None
    psi: Callable = field(default=squared_norm, kw_only=True)
    r: Callable = field(default=squared_norm, kw_only=True)

    def __post_init__(self):
        self.x0 = self.x0 if self.x0 is None else Constant(self.x0)

    def forward(self, x, ps, st):
        x0 = _point(self, self.x0, x)
        value, _ = self.model.forward(x0, ps, st)
        y, st = self.model.forward(x, ps, st)
        return self.psi(y - value) + self.r(x - x0), st


class Pinned(Wrapper):
    r"""A model moved so that it has a known value at a point: :math:`y = f(x) + y_0 - f(x_0)`.

    `f` is the layer `model`, `x0` the point and `y0` the value there, zeros by default. Input and output are those of
    the model, and so are parameters and state; where it renews its state, it is by the call with x.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Pinned(lux.Dense(2, 1), [1.0, 2.0], [5.0])
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.array([1.0, 2.0]), ps, st)[0]
    Array([5.], dtype=float32)
    """

    model: Layer
    x0: Any = None
    y0: Any = None

    def __post_init__(self):
        self.x0, self.y0 = (point if point is None else Constant(point) for point in (self.x0, self.y0))

    def forward(self, x, ps, st):
        value, _ = self.model.forward(_point(self, self.x0, x), ps, st)
        y, st = self.model.forward(x, ps, st)
        return y - value + _point(self, self.y0, y), st


def _point(layer: Layer, point: Any, x: Any) -> Any:
    """The point in the precision of `x`, or zeros like a sample of it."""
    if point is None:
        return jnp.zeros(x.shape[-1:], x.dtype)
    if point.value.shape != x.shape[-1:]:
        raise ValueError(f"{type(layer).__name__} has a point of shape {point.value.shape}, got an array of {x.shape}")
    return jnp.asarray(point.value, x.dtype)
