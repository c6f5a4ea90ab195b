"""Cells that prepare once what does not change during a solve."""

import abc
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import Layer, Wrapper
from ..core.printing import option_text
from ..initializers import KaimingUniform, zeros


class EquilibriumCell(Layer):
    """A cell `z' = cell((z, x))` in two parts: what needs `x` and the parameters only, and the step of `z`.

    `lux.DeepEquilibrium` calls `prepare` once a solve, and `step` for every iteration. A cell of one's own subclasses
    this and writes the two; it may be called as a layer too. Any other layer of `(z, x)` is a cell as it is.
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

    Input `(z, x)`, of shapes `(..., features)` and `(..., in_features)`. With
    :math:`W = (1 - m) I - A^T A + B - B^T` the equation is strongly monotone, with the `margin` `m` > 0. The step is
    the forward-backward one, :math:`z' = \max(0, (1 - \alpha) z + \alpha (W z + x U + b))` with
    :math:`\alpha = m / \|I - W\|^2`, a contraction by at least :math:`\sqrt{1 - m^2 / \|I - W\|^2}`; `lux.Anderson`
    needs far fewer steps; large parameters need many all the same.

    Parameters: `a`, `b_skew` `(features, features)`, `input_weight` `(in_features, features)`, `bias` `(features,)`.

    Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020. Raises `ValueError` for a margin that
    is not positive.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.DeepEquilibrium(lux.MonotoneCell(2, 8), shape=8)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> z, st = model(jnp.ones((4, 2)), 3.0 * ps, st)
    >>> z.shape, st["info"]["converged"]
    ((4, 8), Array(True, dtype=bool))
    """

    in_features: int
    features: int
    margin: float = field(default=1.0, kw_only=True)
    init_weight: Callable = field(default=KaimingUniform(), kw_only=True)
    init_bias: Callable = field(default=zeros, kw_only=True)

    def __post_init__(self):
        if not self.margin > 0:
            raise ValueError(f"MonotoneCell needs a positive margin, got {self.margin}")

    def init_params(self, key):
        keys, dtype, n = jax.random.split(key, 4), jax.dtypes.canonicalize_dtype(float), self.features
        return {
            "a": self.init_weight(keys[0], (n, n), dtype),
            "b_skew": self.init_weight(keys[1], (n, n), dtype),
            "input_weight": self.init_weight(keys[2], (self.in_features, n), dtype),
            "bias": self.init_bias(keys[3], (n,), dtype),
        }

    def prepare(self, x, ps, st):
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"{option_text(self)} expects inputs of shape (..., {self.in_features}), got {x.shape}")
        a, b = ps["a"], ps["b_skew"]
        identity = jnp.eye(self.features, dtype=a.dtype)
        w = (1 - self.margin) * identity - a.T @ a + b - b.T
        norm = jnp.linalg.norm(lax.stop_gradient(identity - w), 2)
        return w.T, x @ ps["input_weight"] + ps["bias"], self.margin / norm**2

    def step(self, z, prepared, st):
        w, injected, alpha = prepared
        return jax.nn.relu((1 - alpha) * z + alpha * (z @ w + injected)), st


class NormalizedCell(Wrapper, EquilibriumCell):
    r"""A cell whose weights have a bounded norm, computed once a solve: :math:`W \min(1, c / \|W\|)`.

    It holds for every array of two or more dimensions among the cell's parameters, as a matrix with the last axis as
    its columns; `c` is `bound`. `norm` is `"spectral"`, the largest singular value by `iterations` steps of the power
    method, whose derivative is exact at its vectors, or `"weight"`, the norm of each column. Parameters and state are
    the cell's own. With 1-Lipschitz activations a bound below 1 makes a cell of one matrix a contraction.

    Miyato et al., "Spectral normalization", ICLR 2018; Salimans and Kingma, "Weight normalization", NeurIPS 2016.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(8, 8), lux.Dense(2, 8))
    >>> model = lux.DeepEquilibrium(lux.NormalizedCell(cell, bound=0.9), shape=8)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> z, st = model(jnp.ones((4, 2)), 10.0 * ps, st)
    >>> st["info"]["converged"]
    Array(True, dtype=bool)
    """

    cell: Layer
    norm: str = field(default="spectral", kw_only=True)
    bound: float = field(default=1.0, kw_only=True)
    iterations: int = field(default=20, kw_only=True)

    def __post_init__(self):
        if self.norm not in ("spectral", "weight"):
            raise ValueError(f'norm is "spectral" or "weight", got {self.norm!r}')
        if self.bound <= 0 or self.iterations < 1:
            raise ValueError(
                f"NormalizedCell needs a positive bound and iterations, got {self.bound}, {self.iterations}"
            )

    def prepare(self, x, ps, st):
        return jax.tree.map(self._bounded, ps), x

    def step(self, z, prepared, st):
        ps, x = prepared
        return self.cell.forward((z, x), ps, st)

    def _bounded(self, weight):
        if weight.ndim < 2:
            return weight
        matrix, tiny = weight.reshape(-1, weight.shape[-1]), jnp.finfo(weight.dtype).tiny
        if self.norm == "weight":
            size = jnp.sqrt(jnp.maximum(jnp.sum(matrix**2, axis=0), tiny))
        else:
            size = jnp.maximum(_spectral_norm(matrix, self.iterations), tiny)
        return weight * jnp.minimum(1, self.bound / size)


def _spectral_norm(matrix: jax.Array, iterations: int) -> jax.Array:
    """The largest singular value, by the power method from a fixed vector."""
    fixed, tiny = lax.stop_gradient(matrix), jnp.finfo(matrix.dtype).tiny

    def unit(v):
        return v / jnp.maximum(jnp.linalg.norm(v), tiny)

    v = unit(jax.random.normal(jax.random.key(0), matrix.shape[-1:], matrix.dtype))
    v = lax.fori_loop(0, iterations, lambda _, v: unit(fixed.T @ (fixed @ v)), v)
    return unit(fixed @ v) @ (matrix @ v)
