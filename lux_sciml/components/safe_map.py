"""The map between a tree and its flat vector, which raises where it could go wrong."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .nodes import Path, close_container, open_container, path_string
from .split import split


class SafeMap:
    """`unravel` and `ravel` for a class with the description: see `Layout`."""

    def check(self, flat: Any) -> jax.Array:
        """`flat` as an array, if it is a vector of this length and kind; otherwise `ValueError` or `TypeError`."""
        layout = layout_of(flat)
        if layout is not None:
            self.require_same(layout)
            flat = flat.data
        flat = jnp.asarray(flat)
        if flat.shape != (self.size,):
            raise ValueError(
                f"expected a flat vector of shape ({self.size},), got shape {flat.shape}; `jax.vmap` goes over a "
                f"batch. The layout has {self.summary()}"
            )
        return self.check_kind(flat)

    def check_kind(self, flat: jax.Array) -> jax.Array:
        """`flat` itself, if its numbers are of this kind, real or complex floating point; otherwise `TypeError`."""
        kind = np.inexact if not self.leaves else np.complexfloating if self._is_complex else np.floating
        if not jnp.issubdtype(flat.dtype, kind):
            raise TypeError(
                f"expected a vector of {kind.__name__} numbers, got {flat.dtype}; convert it explicitly if that is "
                f"meant. The layout has {self.summary()}"
            )
        return flat

    @cached_property
    def _is_complex(self) -> bool:
        return any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in self.leaves)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(leaf.size for leaf in self.blocks)

    @cached_property
    def block_of(self) -> dict[Path, int]:
        """For every path, which of the `blocks` holds its numbers."""
        position = {leaf.path: i for i, leaf in enumerate(self.blocks)}
        return {leaf.path: position[leaf.owner or leaf.path] for leaf in self.leaves}

    def split(self, flat: Any) -> list[jax.Array]:
        """The blocks of a flat vector `(n,)`, each in its recorded shape and dtype."""
        flat = self.check(flat)
        parts = split(flat, self._sizes) if self.blocks else []
        return [p.reshape(leaf.shape).astype(leaf.dtype) for p, leaf in zip(parts, self.blocks, strict=True)]

    def join(self, blocks: list[Any], dtype=None) -> jax.Array:
        """The flat vector `(n,)` of the blocks; the inverse of `split`."""
        dtype = jax.dtypes.canonicalize_dtype(self.flat_dtype if dtype is None else dtype)
        for leaf, x in zip(self.blocks, blocks, strict=True):
            if not self._is_complex and jnp.iscomplexobj(x):
                raise TypeError(f"`{path_string(leaf.path)}` is complex, where the layout has real numbers")
        if not blocks:
            return jnp.zeros(0, dtype)
        if any(isinstance(x, jax.Array) for x in blocks):
            return jnp.concatenate([jnp.asarray(x).astype(dtype).reshape(-1) for x in blocks])
        return jnp.asarray(np.concatenate([np.asarray(x).astype(dtype).reshape(-1) for x in blocks]))

    def unravel(self, flat: Any) -> Any:
        """The tree of a flat vector `(n,)`, every leaf in its recorded shape and dtype.

        One split, whose gradient is one `concatenate`. Raises `ValueError` for another length or rank,
        `TypeError` for integers or booleans, and for complex numbers where real ones are expected. A vector of
        another precision is cast to the recorded dtypes.
        """
        return self.rebuild(self.split(flat))

    def ravel(self, tree: Any, dtype=None) -> jax.Array:
        """The flat vector `(n,)` of a tree of this layout; the inverse of `unravel`. Goes by path: dicts in any order.

        Raises `ValueError` naming the first path that is missing, unknown or of another shape, and for tied arrays
        with different numbers; `TypeError` at leaves that are no floating-point arrays.
        """
        got = type(self).of(tree)
        if got is self and layout_of(tree) is not None:
            return jnp.asarray(tree.data, dtype)
        if got is not self:
            self.require_same(got, order=False, dtypes=False)
        leaves = self.collect(tree)
        self._require_agreement(leaves)
        return self.join(self.own(leaves), dtype)

    def rebuild(self, blocks: Iterable[Any]) -> Any:
        """The tree of this layout with the given arrays, one for each block, in order."""
        blocks = list(blocks)
        return self._rebuild(iter([blocks[i] for i in self.block_of.values()] if self.ties else blocks))

    def _rebuild(self, leaves: Iterator[Any]) -> Any:
        if self.is_array:
            return next(leaves)
        return close_container(self.container, {key: child._rebuild(leaves) for key, child in self.children.items()})

    def collect(self, tree: Any) -> list[Any]:
        """The leaves of a tree of this layout's paths, in the order of `leaves`."""
        if self.is_array:
            return [tree]
        if layout_of(tree) is not None:
            tree = tree.tree()
        items = dict(open_container(tree)[1]) if self.children else {}
        return [leaf for key, child in self.children.items() for leaf in child.collect(items[key])]

    def own(self, leaves: list[Any]) -> list[Any]:
        """The blocks among the leaves: of tied arrays the first one."""
        return [x for x, leaf in zip(leaves, self.leaves, strict=True) if leaf.owner is None]

    def _require_agreement(self, leaves: list[Any]) -> None:
        value = {leaf.path: x for leaf, x in zip(self.leaves, leaves, strict=True)}
        for owner, path in self.ties:
            a, b = value[owner], value[path]
            if a is b or isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
                continue
            if not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True):
                raise ValueError(
                    f"`{path_string(owner)}` and `{path_string(path)}` are tied, but hold different numbers"
                )

    def wrap(self, flat: Any) -> Any:
        """The ComponentVector of this layout with the given data: puts the names back on a plain array."""
        from .vector import ComponentVector

        return ComponentVector(flat.data if isinstance(flat, ComponentVector) else flat, self)

    def zeros(self, dtype=None) -> Any:
        """A ComponentVector of zeros."""
        return self.wrap(jnp.zeros(self.size, self.flat_dtype if dtype is None else dtype))


def layout_of(x: Any) -> Any:
    """The layout of a ComponentVector; `None` for everything else."""
    layout = None if isinstance(x, jax.Array) else getattr(x, "layout", None)
    return layout if isinstance(layout, SafeMap) else None
