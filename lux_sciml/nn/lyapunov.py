"""Functions with a known value at a point: PositiveDefinite and Pinned, for Lyapunov functions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe, floating, is_inexact, squared, widened
from ..components import ComponentVector
from ..core import Constant, Layer, Wrapper, as_layer, field
from ..core.converters import checks_itself, function, numbers, optional


@checks_itself
def point(value: Any) -> Constant:
    """The converter of an array, a ComponentVector, or a dict of such: numbers and lists become arrays."""

    def arrays(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {name: arrays(child) for name, child in node.items()}
        return node if isinstance(node, ComponentVector | jax.Array) else np.asarray(node)

    return numbers(value if isinstance(value, Constant) else arrays(value))


def squared_norm(x: Any) -> jax.Array:
    """The sum of squares along the last axis of an array or of a ComponentVector; the axis stays, with size one."""
    return jnp.sum(squared(x), axis=-1, keepdims=True)


class PositiveDefinite(Wrapper):
    r"""A function that is zero at a point and positive elsewhere: :math:`V(x) = \psi(f(x) - f(x_0)) + r(x - x_0)`.

    Input `(..., n)`, output `(..., 1)`. Parameters and state are the model's; where the model renews its state, it is
    by the call with x. Half precision is computed in float32, outside of the model, and rounded at the end. Options:

    * `model`: the layer f;
    * `x0`: the point `(n,)`, zeros by default;
    * `psi`: a function from `(..., m)` to `(..., 1)`, zero at zero and nowhere negative: the sum of squares by default;
    * `r`: a function from `(..., n)` to `(..., 1)`, zero at zero and positive elsewhere: the sum of squares by default.

    Gaby, Zhang and Ye, "Lyapunov-Net", CDC 2022. Raises `ValueError` for inputs that the point does not fit.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> V = lux.PositiveDefinite(lux.MLP(2, 8, 4), [1.0, 2.0])
    >>> ps, st = lux.setup(jax.random.key(0), V)
    >>> V(jnp.array([1.0, 2.0]), ps, st)[0], bool(V(jnp.array([1.0, 2.1]), ps, st)[0] > 0)
    (Array([0.], dtype=float32), True)
    """

    model: Layer = field(converter=as_layer)
    x0: Constant | None = field(default=None, converter=optional(point))
    psi: Callable[..., Any] = field(default=squared_norm, converter=function, kw_only=True)
    r: Callable[..., Any] = field(default=squared_norm, converter=function, kw_only=True)

    def forward(self, x, ps, st):
        x = floating(x)
        value, _ = self.model.forward(_point(self, self.x0, x), ps, st)
        y, st = self.model.forward(x, ps, st)
        y, value = floating((y, value))
        wide = widened(x)
        out = self.psi(widened(y) - widened(value)) + self.r(wide - _point(self, self.x0, wide))
        return out.astype(jnp.result_type(x, y)), st


class Pinned(Wrapper):
    r"""A model moved so that it has a known value at a point: :math:`y = f(x) + y_0 - f(x_0)`.

    `f` is the layer `model`, `x0` the point and `y0` the value there, zeros by default. Input and output are those of
    the model, and so are parameters and state; where it renews its state, it is by the call with x. They are arrays,
    ComponentVectors or dicts of arrays, and so are `x0` and `y0`; an array stands for a ComponentVector too. Raises
    `ValueError` for inputs and outputs that the points do not fit.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Pinned(lux.Dense(2, 1), [1.0, 2.0], [5.0])
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.array([1.0, 2.0]), ps, st)[0]
    Array([5.], dtype=float32)
    """

    model: Layer = field(converter=as_layer)
    x0: Constant | None = field(default=None, converter=optional(point))
    y0: Constant | None = field(default=None, converter=optional(point))

    def forward(self, x, ps, st):
        value, _ = self.model.forward(_point(self, self.x0, x), ps, st)
        y, st = self.model.forward(x, ps, st)
        y = floating(y)
        return jax.tree.map(lambda y, value, y0: y - value + y0, y, floating(value), _point(self, self.y0, y)), st


def _point(layer: Layer, point: Constant | None, x: Any) -> Any:
    """The point like a sample of `x`, in its precision; zeros where there is none. Integers stay among integers."""
    leaves, treedef = jax.tree.flatten(x)
    if point is None:
        return treedef.unflatten(jnp.zeros(jnp.shape(leaf)[-1:], jnp.result_type(leaf)) for leaf in leaves)
    points = jax.tree.leaves(point.value)
    if [p.shape for p in points] != [jnp.shape(leaf)[-1:] for leaf in leaves]:
        shapes = ", ".join(str(p.shape) for p in points)
        got = f"an array of {x.shape}" if hasattr(x, "shape") else describe(x)
        raise ValueError(f"{type(layer).__name__} has a point of shape {shapes}, got {got}")
    keep = [is_inexact(leaf) or not is_inexact(p) for p, leaf in zip(points, leaves, strict=True)]
    dtypes = [leaf.dtype if kept else float for kept, leaf in zip(keep, leaves, strict=True)]
    return treedef.unflatten(map(jnp.asarray, points, dtypes))
