"""What keeps equilibria stable: the size of the Jacobian, its spectral radius, corrections on the way."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def jacobian_loss(f: Callable[[Any], Any], z: Any, key: jax.Array, probes: int = 1) -> jax.Array:
    r"""Hutchinson's estimate of :math:`\|\partial f / \partial z\|_F^2 / n`, as a penalty; never negative.

    The mean of :math:`|v^T J|^2 / n` over `probes` normal vectors `v`, where `n` counts the numbers of `z`, a pytree of
    arrays. It is differentiable by all that `f` holds and by `z`.

    Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization", ICML 2021.

    >>> jacobian_loss(lambda z: 0.5 * z, jnp.ones(1000), jax.random.key(0)).round(1)  # 0.25 in the mean
    Array(0.2, dtype=float32)
    """
    _, pullback = jax.vjp(f, z)

    def one(key):
        (row,) = pullback(random_like(z, key))
        return squares(row)

    total = jnp.sum(jax.vmap(one)(jax.random.split(key, probes)))
    return total / (probes * sum(leaf.size for leaf in jax.tree.leaves(z)))


def spectral_radius(f: Callable[[Any], Any], z: Any, key: jax.Array, steps: int = 32) -> jax.Array:
    r"""An estimate of the largest modulus of an eigenvalue of :math:`\partial f / \partial z`: below 1, `f` contracts.

    The power method by ratios of norms, :math:`(|J^k v| / |J^{k/2} v|)^{2/k}` with `k` = `steps`, which is right for
    complex eigenvalues too, where the Rayleigh quotient is not. It carries no derivative.

    >>> turn = 0.9 * jnp.array([[jnp.cos(1.2), -jnp.sin(1.2)], [jnp.sin(1.2), jnp.cos(1.2)]])
    >>> f"{spectral_radius(lambda z: turn @ z, jnp.ones(2), jax.random.key(0)):.3f}"
    '0.900'
    """
    if steps < 2:
        raise ValueError(f"the spectral radius needs two steps or more, got {steps}")
    f_, z = jax.tree.map(lax.stop_gradient, (jax.tree_util.Partial(f), z))
    _, push = jax.linearize(f_, z)
    tiny = min(jnp.finfo(leaf.dtype).tiny for leaf in jax.tree.leaves(z))

    def body(v, _):
        v = push(v)
        size = jnp.sqrt(squares(v))
        v = jax.tree.map(lambda leaf: leaf / jnp.maximum(size, tiny).astype(leaf.dtype), v)
        return v, size

    _, sizes = lax.scan(body, random_like(z, key), length=steps)
    later = lax.stop_gradient(sizes)[steps // 2 :]
    return jnp.exp(jnp.mean(jnp.log(jnp.maximum(later, tiny))))


def fixed_point_correction(n: int, kind: str = "exponential", gamma: float = 0.8) -> np.ndarray:
    r"""Weights `(n,)` of the losses of `n` states on the way to an equilibrium, the last one weighing 1.

    `"exponential"`: :math:`\gamma^{n-1-k}`; `"linear"`: :math:`1 - 0.9 (n - 1 - k) / n`; `"constant"`: 1.
    Bai, Geng, Savani and Kolter, "Deep equilibrium optical flow estimation", CVPR 2022.

    >>> fixed_point_correction(4)
    array([0.512, 0.64 , 0.8  , 1.   ])
    """
    left = n - 1 - np.arange(n)
    kinds = {"exponential": gamma**left, "linear": 1 - 0.9 * left / n, "constant": np.ones(n)}
    if kind not in kinds:
        raise ValueError(f"kind is one of {', '.join(map(repr, kinds))}, got {kind!r}")
    return kinds[kind]


def random_like(z: Any, key: jax.Array) -> Any:
    """Standard normal numbers like `z`."""
    leaves, treedef = jax.tree.flatten(z)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def squares(z: Any) -> jax.Array:
    """The sum of the squares of all numbers."""
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(z))
