"""What a solve starts from: zeros of the right shape, and the check that the cell keeps it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_SHAPES = "`shape` is None, a number, a tuple of numbers, or a tuple of such tuples"


def zeros_like_input(x: Any, shape: Any) -> Any:
    """Zeros of the shape that `lux.DeepEquilibrium` describes for an input `x`, in the precision of `x`."""
    leaves = jax.tree.leaves(x)
    dtype = next((leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)), None)
    if shape is None:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), x)
    if leaves[0].ndim == 0:
        raise ValueError("`shape` replaces axes of the input, which is a single number")
    if isinstance(shape, int):
        return jnp.zeros((*leaves[0].shape[:-1], shape), dtype)
    return zeros_of(leaves[0].shape[:1], shape, dtype)


def zeros_of(batch: tuple[int, ...], shape: Any, dtype: Any) -> Any:
    """Zeros for a batch, from the field `shape`."""
    if isinstance(shape, int):
        return jnp.zeros((*batch, shape), dtype)
    if isinstance(shape, tuple) and shape and all(isinstance(size, int) for size in shape):
        return jnp.zeros((*batch, *shape), dtype)
    if isinstance(shape, tuple) and shape and all(isinstance(part, tuple) for part in shape):
        return tuple(zeros_of(batch, part, dtype) for part in shape)
    raise ValueError(f"{_SHAPES}, got {shape!r}")


def require_batch(x: Any, batch_shape: tuple[int, ...]) -> None:
    """Raise `ValueError` where an input is not of the batch whose last solution is kept."""
    for leaf in jax.tree.leaves(x)[:1]:
        if leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f'initial="last" keeps the solution of a batch {batch_shape}, but the input is {_text(leaf)}; '
                "another batch needs a layer of its own batch_shape and its state"
            )


def fitting_guess(step: Callable[[Any], Any], z: Any) -> Any:
    """The guess in the precision that `step` returns. `ValueError` where `step` returns another structure or shape."""
    out = jax.eval_shape(step, z)
    same = jax.tree.structure(z) == jax.tree.structure(out)
    if not same or any(a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (z, out)), strict=True)):
        raise ValueError(
            f"the cell must return a `z` like the one that it gets, {_text(z)}; it returned {_text(out)} "
            "(`shape` or `initial` says what `z` is)"
        )
    fitting = jax.tree.map(lambda a, b: a.astype(b.dtype), z, out)
    after = jax.eval_shape(step, fitting)
    for a, b in zip(*map(jax.tree.leaves, (out, after)), strict=True):
        if a.dtype != b.dtype or not jnp.issubdtype(b.dtype, jnp.floating):
            raise ValueError(f"the cell must return real numbers of one precision; it returned {_text(after)}")
    return fitting


def _text(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)).replace("'", "")
