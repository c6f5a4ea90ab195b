"""What several rooms need of trees of arrays."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax


def describe(tree: Any) -> str:
    """Types and shapes as text, `f32[2,3]`, of an array or of a tree of arrays.

    >>> describe({"a": jnp.ones((2, 3))})
    "{'a': f32[2,3]}"
    """
    return eqx.tree_pformat(tree, width=10_000, struct_as_array=True)


def where(condition: jax.Array, a: Any, b: Any) -> Any:
    """The leaves of `a` where the condition holds, else those of `b`."""
    return optax.tree.where(condition, a, b)


def all_finite(tree: Any) -> jax.Array:
    """Whether every inexact leaf of a tree is finite everywhere."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return functools.reduce(jnp.logical_and, finite, jnp.array(True))


def is_inexact(x: Any) -> bool:
    """Whether `x` is an array of real or complex floating-point elements."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def floating(tree: Any) -> Any:
    """The arrays of a tree in floating point: integers and booleans in JAX's default float, the others as they are.

    >>> floating(jnp.arange(2))
    Array([0., 1.], dtype=float32)
    """

    def convert(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x if is_inexact(x) else x.astype(float)

    return jax.tree.map(convert, tree)


def widened(tree: Any) -> Any:
    """The arrays of a tree in `floating` point, half precision in float32: for sums, means, norms, angles, positions.

    What is computed from them is rounded at the end, to the type of the `floating` input.

    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x, floating(tree))
