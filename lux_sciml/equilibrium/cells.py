"""Cells that prepare once what does not change during a solve."""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .._tree import describe, floating, widened
from ..core import Layer, Wrapper, as_layer, field
from ..core.converters import choice, count, function, number
from ..initializers import KaimingUniform, zeros
from ..parameters.normalization import power_iteration


class EquilibriumCell(Layer):
    """A cell `z' = cell((z, x))` in two parts: what needs `x` and the parameters only, and the step of `z`.

    `lux.DeepEquilibrium` calls `prepare` once per solve, and `step` for every iteration. A cell of one's own subclasses
    this and writes the two; it may be called as a layer too. Any other layer of `(z, x)` is a cell as it is.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> class Injected(lux.EquilibriumCell):
    ...     features: int
    ...     def init_params(self, key):
    ...         return {"input": jnp.ones((2, self.features)), "rate": jnp.array(0.5)}
    ...     def prepare(self, x, ps, st):
    ...         return x @ ps["input"], ps["rate"]
    ...     def step(self, z, prepared, st):
    ...         injected, rate = prepared
    ...         return jnp.tanh(rate * z + injected), st
    >>> model = lux.DeepEquilibrium(Injected(3), shape=3)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((4, 2)), ps, st)[0].shape
    (4, 3)
    """

    @abc.abstractmethod
    def prepare(self, x: Any, ps: dict[str, Any], st: dict[str, Any]) -> Any:
        """A pytree of arrays, from the input, parameters and state."""

    @abc.abstractmethod
    def step(self, z: Any, prepared: Any, st: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The next `z`, and the state."""

    def forward(self, x, ps, st):
        z, x = x
        return self.step(z, self.prepare(x, ps, st), st)


class MonotoneCell(EquilibriumCell):
    r"""A cell that has exactly one fixed point, whatever its parameters: :math:`z = \max(0, W z + x U + b)`.

    Input `(z, x)`, of shapes `(..., features)` and `(..., in_features)`; integers in `x` become floats. With
    :math:`W = (1 - m) I - A^T A + B - B^T` the equation is strongly monotone, with the `margin` `m` > 0. The step is
    the forward-backward one, :math:`z' = \max(0, (1 - \alpha) z + \alpha (W z + x U + b))` with
    :math:`\alpha = m / \|I - W\|^2`, a contraction by at least :math:`\sqrt{1 - m^2 / \|I - W\|^2}`; `lux.Anderson`
    needs far fewer steps; large parameters need many all the same.

    * `in_features`, `features`: the sizes of `x` and `z`.
    * `margin`: m, which bounds how sensitive the fixed point is to `x`.
    * `init_weight`, `init_bias`: initializers of the matrices, and of the bias.

    Parameters: `a`, `b_skew` `(features, features)`, `input_weight` `(in_features, features)`, `bias` `(features,)`.

    Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020. Raises `ValueError` for a margin that
    is not positive, and for an input of another number of features.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.DeepEquilibrium(lux.MonotoneCell(2, 8), shape=8)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> z, st = model(jnp.ones((4, 2)), 3.0 * ps, st)
    >>> z.shape, st["stats"]["converged"]
    ((4, 8), Array(True, dtype=bool))
    """

    in_features: int = field(converter=count)
    features: int = field(converter=count)
    margin: float = field(default=1.0, kw_only=True, converter=number)
    init_weight: Callable[..., Any] = field(default=KaimingUniform(), kw_only=True, converter=function)
    init_bias: Callable[..., Any] = field(default=zeros, kw_only=True, converter=function)

    def __check_init__(self) -> None:
        if not self.margin > 0:
            raise ValueError(f"MonotoneCell needs a positive margin, got {self.margin}")

    def init_params(self, key):
        keys, n = jax.random.split(key, 4), self.features
        return {
            "a": self.init_weight(keys[0], (n, n), float),
            "b_skew": self.init_weight(keys[1], (n, n), float),
            "input_weight": self.init_weight(keys[2], (self.in_features, n), float),
            "bias": self.init_bias(keys[3], (n,), float),
        }

    def prepare(self, x, ps, st):
        x = floating(x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"MonotoneCell expects inputs of shape (..., {self.in_features}), got {describe(x)}")
        a, b = widened((ps["a"], ps["b_skew"]))
        identity = jnp.eye(self.features, dtype=a.dtype)
        w = (1 - self.margin) * identity - a.T @ a + b - b.T
        norm = _spectral_norm(identity - w, _by_eigenvectors)
        injected = x @ ps["input_weight"]
        injected = injected + jnp.broadcast_to(ps["bias"], injected.shape)
        w, alpha = (y.astype(ps["a"].dtype) for y in (w.T, self.margin / norm**2))
        return w, injected, alpha

    def step(self, z, prepared, st):
        w, injected, alpha = prepared
        return jax.nn.relu((1 - alpha) * z + alpha * (z @ w + injected)), st


class NormalizedCell(Wrapper, EquilibriumCell):
    r"""A cell whose weights have a bounded norm, computed once per solve: :math:`W \min(1, c / \|W\|)`.

    It holds for every array of two or more dimensions among the cell's parameters, as a matrix with the last axis as
    its columns. Parameters and state are the cell's own. With 1-Lipschitz activations a bound below 1 makes a cell of
    one matrix a contraction. Options:

    * `norm`: `"spectral"`, the largest singular value by the power method, whose derivative is exact at its vectors;
      or `"weight"`, the norm of each column.
    * `bound`: `c`.
    * `iterations`: the number of steps of the power method.

    Miyato et al., "Spectral normalization", ICLR 2018; Salimans and Kingma, "Weight normalization", NeurIPS 2016.
    Raises `ValueError` for a bound that is not positive.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(8, 8), lux.Dense(2, 8))
    >>> model = lux.DeepEquilibrium(lux.NormalizedCell(cell, bound=0.9), shape=8)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> z, st = model(jnp.ones((4, 2)), 10.0 * ps, st)
    >>> st["stats"]["converged"]
    Array(True, dtype=bool)
    """

    cell: Layer = field(converter=as_layer)
    norm: str = field(default="spectral", kw_only=True, converter=choice("spectral", "weight"))
    bound: float = field(default=1.0, kw_only=True, converter=number)
    iterations: int = field(default=20, kw_only=True, converter=count)

    def __check_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"NormalizedCell needs a positive bound, got {self.bound}")

    def prepare(self, x, ps, st):
        return jax.tree.map(self._bounded, ps), x

    def step(self, z, prepared, st):
        ps, x = prepared
        return self.cell.forward((z, x), ps, st)

    def _bounded(self, weight: Array) -> Array:
        if weight.ndim < 2:
            return weight
        wide = widened(weight)
        matrix = wide.reshape(math.prod(weight.shape[:-1]), weight.shape[-1])
        if self.norm == "spectral":
            if jnp.iscomplexobj(matrix):  # the real matrix with the same singular values, each of them twice
                parts = matrix.real, matrix.imag
                matrix = jnp.block([[parts[0], -parts[1]], [parts[1], parts[0]]])
            size = _spectral_norm(matrix, functools.partial(_by_power_method, iterations=self.iterations))
        else:
            size = jnp.sqrt(jnp.maximum(jnp.sum(jnp.abs(matrix) ** 2, axis=0), jnp.finfo(matrix.dtype).tiny))
        factor = jnp.minimum(1, self.bound / jnp.maximum(size, jnp.finfo(matrix.dtype).tiny))
        return (wide * jnp.broadcast_to(factor, wide.shape).astype(wide.dtype)).astype(weight.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _spectral_norm(matrix: Array, vector: Callable[[Array], Array]) -> Array:
    """The largest singular value of a real matrix, whose right vector `vector(matrix)` finds."""
    return jnp.linalg.norm(matrix @ vector(matrix))


@_spectral_norm.defjvp
def _(vector: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (matrix,), (change,) = primals, tangents
    v = _right_vector(matrix, vector)
    u = matrix @ v
    u = u / jnp.maximum(jnp.linalg.norm(u), jnp.finfo(u.dtype).tiny)
    return _spectral_norm(matrix, vector), u @ (change @ v)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _right_vector(matrix: Array, vector: Callable[[Array], Array]) -> Array:
    """The right singular vector, whose derivative only second derivatives ask for."""
    return vector(matrix)


@_right_vector.defjvp
def _(vector: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (matrix,), (change,) = primals, tangents
    v = _right_vector(matrix, vector)
    u, square = matrix @ v, jnp.outer(v, v)
    size = jnp.sum(u**2)
    turn = change.T @ u + matrix.T @ (change @ v)
    system = size * (jnp.eye(len(v), dtype=v.dtype) + square) - matrix.T @ matrix
    return v, jnp.linalg.solve(system, turn - square @ turn)


def _by_power_method(matrix: Array, iterations: int) -> Array:
    """The right singular vector of a real matrix, by the power method from a fixed one."""
    start = jax.random.normal(jax.random.key(0), matrix.shape[-1:], matrix.dtype)
    return power_iteration(matrix, start, iterations)


def _by_eigenvectors(matrix: Array) -> Array:
    return jnp.linalg.eigh(matrix.T @ matrix)[1][:, -1]
