"""Embedding: a table of vectors, read by index."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._tree import single
from ..core import Layer, field
from ..core.converters import count, function
from ..core.printing import brief
from ..initializers import Normal
from ._shapes import as_tuple, size_or_sizes


class Embedding(Layer):
    """A table of vectors, read by index: `y = weight[x]`.

    Input: integers `(...)` from 0 to `num_embeddings - 1`; output `(..., features)`. With a tuple of sizes, as for the
    axes of a grid, the input is a tuple of as many arrays of integers. An index outside its range gives NaNs, not
    another row. Parameter: `weight` `(num_embeddings, features)`, or `(*num_embeddings, features)`, drawn by
    `init_weight`, by default from N(0, 1).

    Raises `ValueError` for another number of index arrays and `TypeError` for indices that are not integers.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Embedding(10, 4)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.array([[1, 2, 3], [7, 8, 9]]), ps, st)[0].shape
    (2, 3, 4)
    """

    num_embeddings: int | tuple[int, ...] = field(converter=size_or_sizes)
    features: int = field(converter=count)
    init_weight: Callable[..., Any] = field(default=Normal(), converter=function, kw_only=True)

    def init_params(self, key):
        return {"weight": self.init_weight(key, (*as_tuple(self.num_embeddings), self.features), float)}

    def forward(self, x, ps, st):
        indices, sizes = x if isinstance(x, tuple) else (x,), as_tuple(self.num_embeddings)
        if len(indices) != len(sizes):
            raise ValueError(f"{brief(self)} expects {len(sizes)} arrays of indices, got {len(indices)}")
        indices = tuple(map(jnp.asarray, indices))
        for index in indices:
            if not jnp.issubdtype(index.dtype, jnp.integer):
                raise TypeError(f"{brief(self)} expects integers, got {index.dtype}")
        rows = single(ps["weight"]).at[indices]  # in half precision gradients add up in float32
        y = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return y.astype(ps["weight"].dtype), st
