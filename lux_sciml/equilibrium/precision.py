"""What solvers compute in: single precision at least, and real numbers where they take no others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._tree import is_half, single


def spacing(tree: Any) -> float:
    """The machine epsilon of the coarsest precision of a tree."""
    return max((float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree)), default=0.0)


def has_half(tree: Any) -> bool:
    """Whether some leaf is in half precision."""
    return any(map(is_half, jax.tree.leaves(tree)))


def rounded(tree: Any, like: Any) -> Any:
    """A tree in the types of another one of its structure."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def in_single(f: Callable[..., Any], y: Any) -> Callable[..., Any]:
    """`f(y, ...)`, that is defined in the precision of `y`, between trees in single precision at least."""
    return lambda x, *args: single(f(rounded(x, y), *args))


def widest(tree: Any) -> Any:
    """The type of the real elements in the widest precision of a tree, single at least."""
    types = (jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(single(tree)))
    return max(types, key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.dtype(jnp.float32))


def uniform(tree: Any) -> Any:
    """A tree as norms take it: real, complex leaves by their modulus, and of one precision, single at least."""
    dtype = widest(tree)
    return jax.tree.map(lambda x: (jnp.abs(x) if jnp.iscomplexobj(x) else x).astype(dtype), tree)


def as_real(tree: Any) -> Any:
    """A tree with real and imaginary parts of complex leaves along a last axis of their own."""
    return jax.tree.map(lambda x: jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x, tree)


def from_real(tree: Any, like: Any) -> Any:
    """The way back from `as_real(like)`."""
    return jax.tree.map(lambda x, y: lax.complex(x[..., 0], x[..., 1]) if jnp.iscomplexobj(y) else x, tree, like)


def on_reals(f: Callable[..., Any], y: Any) -> Callable[..., Any]:
    """`f(y, ...)` as a function between real trees."""
    return lambda x, *args: as_real(f(from_real(x, y), *args))
