"""A pytree of arrays as one vector, or as a matrix with a row for each sample."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def to_samples(tree: Any, per_sample: bool) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The numbers of a tree as `(n,)` or, with `per_sample`, as `(samples, n)`, and the way back.

    The samples lie along the first axis of every leaf.
    """
    leaves, treedef = jax.tree.flatten(tree)
    dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
    lead: tuple[int, ...] = ()
    if per_sample:
        sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
        if len(sizes) != 1 or None in sizes:
            raise ValueError(
                f"per_sample=True needs samples along the first axis of every array, got {_shapes(leaves)}"
            )
        lead = (sizes.pop(),)
    parts = [leaf.reshape(*lead, math.prod(leaf.shape[len(lead) :])).astype(dtype) for leaf in leaves]
    ends = [sum(part.shape[-1] for part in parts[: i + 1]) for i in range(len(parts) - 1)]

    def back(rows: jax.Array) -> Any:
        pieces = jnp.split(rows, ends, axis=-1) if ends else [rows]
        return treedef.unflatten(
            [piece.reshape(leaf.shape).astype(leaf.dtype) for piece, leaf in zip(pieces, leaves, strict=True)]
        )

    return (jnp.concatenate(parts, axis=-1) if ends else parts[0]), back


def _shapes(leaves: list[Any]) -> str:
    return ", ".join(str(leaf.shape) for leaf in leaves)
