"""Bounds and constraints by name: boxes for optimizers, and maps from free to constrained parameters."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _names
from .._tree import floating, widened
from .layout import Layout, as_layout
from .nodes import Path
from .vector import ComponentVector

__dir__ = _names.public(__name__)


def bounds(ps: ComponentVector, limits: Mapping[str | Path, Any]) -> tuple[ComponentVector, ComponentVector]:
    """Lower and upper bounds by name: `bounds(ps, {"physics.*": (0, None)})`; `None`, and unnamed, is unbounded.

    Keys are patterns as for `Layout.mask`, later ones override earlier ones; values are pairs of scalars or arrays that
    broadcast to the shape of each component. As SciPy takes them: `scipy.optimize.Bounds(lb.data, ub.data)`; a
    projected step is `ComponentVector(jnp.clip(ps.data, lb.data, ub.data), ps.layout)`.

    Raises `KeyError` for a pattern that matches nothing, `ValueError` where a lower bound is above the upper one and
    for limits that are no pairs.

    >>> bounds(ComponentVector(a=1, b=[2, 3]), {"b": (0, None)})
    (ComponentVector(a=-inf, b=[0, 0]), ComponentVector(a=inf, b=[inf, inf]))
    """
    data = np.asarray(jnp.zeros(ps.layout.size, ps.dtype))
    both = data - np.inf, data + np.inf
    for pattern, limit in limits.items():
        if not (isinstance(limit, tuple | list) and len(limit) == 2):
            raise ValueError(f"the limits of {pattern!r} are a pair, (lower, upper), got {limit!r}")
        for leaf in ps.layout.match(pattern):
            for side, value, free in zip(both, limit, (-np.inf, np.inf), strict=True):
                value = np.broadcast_to(free if value is None else value, leaf.shape)
                side[leaf.offset : leaf.offset + leaf.size] = value.reshape(-1)
    wrong = np.flatnonzero(~(both[0] <= both[1]))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"the lower bound of {ps.layout.label(i)}, {both[0][i]}, is above the upper one, {both[1][i]}")
    return ComponentVector(both[0], ps.layout), ComponentVector(both[1], ps.layout)


class Constraint(abc.ABC):
    """A differentiable one-to-one map from free arrays to arrays that keep a constraint.

    One of your own has the three methods below, and is hashable, as a frozen dataclass is.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Doubled(Constraint):
    ...     def forward(self, free):
    ...         return 2 * free
    ...
    ...     def inverse(self, x):
    ...         return x / 2
    ...
    ...     def log_det(self, free):
    ...         return free.size * jnp.log(2.0)
    >>> Constrained(ComponentVector(a=3), {"a": Doubled()}).inverse(ComponentVector(a=3))
    ComponentVector(a=1.5)
    """

    @abc.abstractmethod
    def forward(self, free: jax.Array) -> jax.Array:
        """The constrained array."""

    @abc.abstractmethod
    def inverse(self, x: jax.Array) -> jax.Array:
        """The free array; NaN where `x` does not keep the constraint."""

    @abc.abstractmethod
    def log_det(self, free: jax.Array) -> jax.Array:
        """The logarithm of the absolute determinant of the Jacobian of `forward`, a scalar."""


@dataclasses.dataclass(frozen=True)
class Positive(Constraint):
    """Positive elements, by softplus, :math:`x = log(1 + e^u)`, or, with `exponential`, by :math:`x = e^u`.

    >>> Positive().forward(jnp.array([-20.0, 0.0, 20.0]))
    Array([2.0611537e-09, 6.9314718e-01, 2.0000000e+01], dtype=float32)
    >>> Positive(exponential=True).inverse(jnp.array([1.0, -1.0]))
    Array([ 0., nan], dtype=float32)
    """

    exponential: bool = False

    def forward(self, free: Any) -> jax.Array:
        free = floating(free)
        return jnp.exp(free) if self.exponential else jax.nn.softplus(free)

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        x = jnp.where(x > 0, x, jnp.nan)
        return jnp.log(x) if self.exponential else x + jnp.log(-jnp.expm1(-x))

    def log_det(self, free: Any) -> jax.Array:
        free = floating(free)
        return jnp.sum(free if self.exponential else jax.nn.log_sigmoid(free))


@dataclasses.dataclass(frozen=True)
class Interval(Constraint):
    """Elements between `low` and `high`, by the logistic function. Raises `ValueError` unless `low < high`.

    >>> Interval(2, 4).forward(jnp.array([-50.0, 0.0]))
    Array([2., 3.], dtype=float32)
    >>> Interval(2, 4).inverse(jnp.array([3.0, 5.0]))
    Array([ 0., nan], dtype=float32)
    """

    low: float | np.number
    high: float | np.number

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"Interval needs low < high, got {self.low} and {self.high}")
        for name in ("low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))  # NumPy's have a dtype, which they would impose

    def forward(self, free: Any) -> jax.Array:
        return self.low + (self.high - self.low) * jax.nn.sigmoid(floating(free))

    def inverse(self, x: Any) -> jax.Array:
        x = (floating(x) - self.low) / (self.high - self.low)
        x = jnp.where((x > 0) & (x < 1), x, jnp.nan)
        return jnp.log(x) - jnp.log1p(-x)

    def log_det(self, free: Any) -> jax.Array:
        free = floating(free)
        width = jnp.log(jnp.asarray(self.high - self.low, free.dtype))
        return jnp.sum(width + jax.nn.log_sigmoid(free) + jax.nn.log_sigmoid(-free))


@dataclasses.dataclass(frozen=True)
class Simplex(Constraint):
    r"""Positive elements that sum to one along the last axis, :math:`x = softmax(u_1, ..., u_{k-1}, 0)`.

    The free array is shorter by one. The volume is that of the first k - 1 elements, whose log-determinant is
    :math:`\sum_{i=1}^k log x_i`.

    >>> Simplex().forward(jnp.zeros(3))
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    >>> Simplex().inverse(jnp.array([0.25, 0.75]))
    Array([-1.0986123], dtype=float32)
    """

    def forward(self, free: Any) -> jax.Array:
        return jax.nn.softmax(self._extended(free))

    def inverse(self, x: Any) -> jax.Array:
        x = floating(x)
        x = jnp.where(x > 0, x, jnp.nan)
        return jnp.log(x[..., :-1]) - jnp.log(x[..., -1:])

    def log_det(self, free: Any) -> jax.Array:
        return jnp.sum(jax.nn.log_softmax(self._extended(free)))

    def _extended(self, free: Any) -> jax.Array:
        free = floating(free)
        return jnp.concatenate([free, jnp.zeros((*free.shape[:-1], 1), free.dtype)], axis=-1)


@dataclasses.dataclass(frozen=True, init=False)
class Constrained:
    """Constraints by name for parameters of one layout: a map from free vectors to those that keep them.

    `Constrained(layout, {"physics.*": Positive(), "mix": Simplex()})`; keys are patterns as for `Layout.mask`, and what
    none of them names is free. Optimize `free = c.inverse(ps)`, evaluate the loss at `c.forward(free)`, and, for a
    density over the free vector, add `c.log_det(free)`. Half precision is computed in float32. Hashable, by value.

    Raises `KeyError` for a pattern that matches nothing, `ValueError` where two patterns match one component.

    >>> ps = ComponentVector(rate=2, weights=[0.25, 0.75])
    >>> c = Constrained(ps.layout, {"rate": Positive(exponential=True), "weights": Simplex()})
    >>> c.inverse(ps)
    ComponentVector(rate=0.6931, weights=[-1.099])
    >>> c.forward(c.inverse(ps))
    ComponentVector(rate=2, weights=[0.25, 0.75])
    """

    layout: Layout
    constraints: tuple[Constraint | None, ...]  # one for each block of the layout

    def __init__(self, layout: Layout | ComponentVector, constraints: Mapping[str | Path, Constraint]):
        layout = as_layout(layout)
        chosen: list[Constraint | None] = [None] * len(layout.blocks)
        for pattern, constraint in constraints.items():
            for leaf in layout.match(pattern):
                i = layout.block_of[leaf.path]
                if chosen[i] not in (None, constraint):
                    raise ValueError(f"`{layout.name(leaf.path)}` has two constraints: {chosen[i]} and {constraint}")
                chosen[i] = constraint
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "constraints", tuple(chosen))

    @functools.cached_property
    def free_layout(self) -> Layout:
        """The layout of the free vectors: that of the parameters, but for components with fewer free elements."""
        blocks = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.layout.blocks]
        pairs = zip(self.constraints, blocks, strict=True)
        free = [x if c is None else jax.eval_shape(c.inverse, x) for c, x in pairs]
        return Layout.of(self.layout.rebuild(free), self.layout.ties)

    def forward(self, free: ComponentVector) -> ComponentVector:
        """The parameters, which keep the constraints."""
        blocks = self.free_layout.split(free)
        parts = [x if c is None else c.forward(widened(x)) for c, x in zip(self.constraints, blocks, strict=True)]
        return ComponentVector(self.layout.join(parts, free.dtype), self.layout)

    def inverse(self, ps: ComponentVector) -> ComponentVector:
        """The free vector of parameters; NaN where they do not keep the constraints."""
        blocks = self.layout.split(ps)
        parts = [x if c is None else c.inverse(widened(x)) for c, x in zip(self.constraints, blocks, strict=True)]
        return ComponentVector(self.free_layout.join(parts, ps.dtype), self.free_layout)

    def log_det(self, free: ComponentVector) -> jax.Array:
        """The logarithm of the absolute determinant of the Jacobian of `forward`, a scalar."""
        pairs = zip(self.constraints, self.free_layout.split(free), strict=True)
        each = [c.log_det(widened(x)) for c, x in pairs if c is not None]
        return sum(each, start=widened(jnp.zeros((), free.dtype))).astype(free.dtype)
