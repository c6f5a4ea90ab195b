"""What keeps equilibria stable: the size of the Jacobian, its spectral radius, corrections on the way."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jaxtyping import Float

from .precision import as_real, uniform


def jacobian_loss(f: Callable[[Any], Any], z: Any, key: Array, probes: int = 1) -> Float[Array, ""]:
    r"""Hutchinson's estimate of :math:`\|\partial f / \partial z\|_F^2 / n`, as a penalty; never negative.

    The mean of :math:`|v^T J|^2 / n` over `probes` normal vectors `v`, where `n` counts the elements of `z`, a pytree
    of arrays. It is differentiable by all that `f` holds and by `z`. Sums are in single precision at least.

    Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization", ICML 2021.

    >>> jacobian_loss(lambda z: 0.5 * z, jnp.ones(1000), jax.random.key(0)).round(1)  # 0.25 on average
    Array(0.2, dtype=float32)
    """
    _, pullback = jax.vjp(f, z)

    def one(key: Array) -> Array:
        (row,) = pullback(optax.tree.random_like(key, z))
        return mean_square(row)

    return jnp.mean(jax.vmap(one)(jax.random.split(key, probes)))


def spectral_radius(f: Callable[[Any], Any], z: Any, key: Array, steps: int = 32) -> Float[Array, ""]:
    r"""An estimate of the largest modulus of an eigenvalue of :math:`\partial f / \partial z`: below 1, `f` contracts.

    The power method by ratios of norms, :math:`(|J^k v| / |J^{k/2} v|)^{2/k}` with `k` = `steps`, which is right for
    complex eigenvalues too, where the Rayleigh quotient is not. It carries no derivative. Raises `ValueError` for fewer
    than two steps.

    >>> turn = 0.9 * jnp.array([[jnp.cos(1.2), -jnp.sin(1.2)], [jnp.sin(1.2), jnp.cos(1.2)]])
    >>> f"{spectral_radius(lambda z: turn @ z, jnp.ones(2), jax.random.key(0)):.3f}"
    '0.900'
    """
    if steps < 2:
        raise ValueError(f"the spectral radius needs two steps or more, got {steps}")
    f_, z = lax.stop_gradient((jax.tree_util.Partial(f), z))
    _, push = jax.linearize(f_, z)

    def body(v: Any, _: Any) -> tuple[Any, Array]:
        v = push(v)
        size = jnp.sqrt(_squares(v))
        v = jax.tree.map(lambda leaf: leaf / jnp.where(size > 0, size, 1).astype(leaf.dtype), v)
        return v, size

    _, sizes = lax.scan(body, optax.tree.random_like(key, z), length=steps)
    later = lax.stop_gradient(sizes)[steps // 2 :]
    return jnp.exp(jnp.mean(jnp.log(later)))


def fixed_point_correction(n: int, kind: str = "exponential", gamma: float = 0.8) -> np.ndarray:
    r"""Weights `(n,)` of the losses of `n` states on the way to an equilibrium, the last one weighing 1.

    `"exponential"`: :math:`\gamma^{n-1-k}`; `"linear"`: :math:`1 - 0.9 (n - 1 - k) / n`; `"constant"`: 1.
    Bai, Geng, Savani and Kolter, "Deep equilibrium optical flow estimation", CVPR 2022. Raises `ValueError` for another
    kind.

    >>> fixed_point_correction(4)
    array([0.512, 0.64 , 0.8  , 1.   ])
    """
    left = n - 1 - np.arange(n)
    kinds = {"exponential": gamma**left, "linear": 1 - 0.9 * left / n, "constant": np.ones(n)}
    if kind not in kinds:
        raise ValueError(f"kind is one of {', '.join(map(repr, kinds))}, got {kind!r}")
    return kinds[kind]


def mean_square(z: Any) -> Float[Array, ""]:
    """The mean of the squares of all elements; zero where there are none."""
    return _squares(z) / max(sum(leaf.size for leaf in jax.tree.leaves(z)), 1)


def _squares(z: Any) -> Array:
    return jnp.asarray(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(uniform(as_real(z)))))
