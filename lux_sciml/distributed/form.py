"""How a flat vector is stored in parts: filled up to a length that devices divide, rows of stacks by themselves."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..components import ComponentVector, Layout
from ..components.nodes import ARRAY, DICT, Path, path_string
from ..components.split import split
from ..core import Layer
from ..core.walk import walk
from ..nn import Stack

MULTIPLE = 1024  # of lengths, so that files of one number of devices are read by most others
PAD = "pad_"


class Sharded(NamedTuple):
    """Parameters in parts: `rows`, the matrices of stacks with flat rows by their paths, and the `rest` as a vector.

    >>> import optax, lux_sciml as lux
    >>> net = lux.Chain(lux.Dense(2, 8), lux.Stack(lux.Dense(8, 8), 4, flat_rows=True))
    >>> state = lux.TrainState.create(net, optax.sgd(0.1), key=jax.random.key(0))
    >>> ps = lux.distributed.shard(state, lux.distributed.mesh(), "full").ps
    >>> ps.rest.layer_0.weight.shape, [len(rows) for rows in ps.rows.values()]
    ((2, 8), [4])
    """

    rest: ComponentVector
    rows: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Form:
    """The form in which vectors of a layout are stored: `Sharded`, or without stacks of flat rows one vector."""

    layout: Layout
    rows: tuple[Path, ...]
    filled: Layout  # of the vector, or of the rest, with zeros at the end, `pad_`

    @classmethod
    def of(cls, layout: Layout, rows: tuple[Path, ...], shards: int) -> "Form":
        if layout.container != DICT:
            raise ValueError(f"what is sharded has names at the root, ComponentVector(net=...); got {layout.summary()}")
        rest = layout.select(*[leaf.path for leaf in layout.leaves if leaf.path not in rows]) if rows else layout
        if rows and layout.ties:
            raise ValueError("parameters with ties and stacks of flat rows cannot be sharded together")
        pad = -rest.size % math.lcm(MULTIPLE, shards)
        if not pad:
            return cls(layout, rows, rest)
        if PAD in rest.children:
            raise ValueError(f"the name `{PAD}` is that of the zeros which fill a vector up: rename the component")
        zeros = Layout(ARRAY, {}, (pad,), rest.leaves[0].dtype if rest.leaves else layout.flat_dtype)
        filled = Layout(DICT, {**rest.children, PAD: zeros})
        return cls(layout, rows, filled.tie(*layout.ties) if layout.ties else filled)

    def stored(self, x: Any) -> Any:
        """A vector of the layout, or a tree of it, in this form."""
        if not self.rows and isinstance(x, ComponentVector):
            return self._fill([x.data])
        if isinstance(x, ComponentVector):
            blocks = [part.reshape(leaf.shape) for part, leaf in zip(self._parts(x), self.layout.blocks, strict=True)]
        else:
            blocks = self.layout.own(self.layout.collect(x))
            with jax.numpy_dtype_promotion("standard"):  # leaves may be of several types
                dtype = jnp.result_type(*blocks)
            blocks = [block.astype(dtype) for block in blocks]
        parts = {leaf.path: block for leaf, block in zip(self.layout.blocks, blocks, strict=True)}
        rest = self._fill([jnp.reshape(x, -1) for path, x in parts.items() if path not in self.rows])
        return Sharded(rest, {self.layout.name(path): parts[path] for path in self.rows}) if self.rows else rest

    def whole(self, x: Any, named: bool = False) -> Any:
        """What is in this form as a vector of the layout, where there are no rows, or `named` asks for one; else a tree
        of it, as nested dicts."""
        if not self.rows:
            return ComponentVector(x.data[: self.layout.size], self.layout)
        leaves = self.filled.blocks
        rest = zip(leaves, split(x.rest.data, tuple(leaf.size for leaf in leaves)), strict=True)
        parts = {leaf.path: part.reshape(leaf.shape) for leaf, part in rest}
        parts |= {path: x.rows[self.layout.name(path)] for path in self.rows}
        blocks = [parts[leaf.path] for leaf in self.layout.blocks]
        if not named:  # each in its own type, as a vector is unravelled
            types = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in self.layout.blocks]
            return self.layout.rebuild([block.astype(t) for block, t in zip(blocks, types, strict=True)])
        return ComponentVector(jnp.concatenate([block.reshape(-1) for block in blocks]), self.layout)

    def is_stored(self, x: Any) -> bool:
        if isinstance(x, Sharded):
            return True
        return isinstance(x, ComponentVector) and x.layout is self.filled and jnp.shape(x.data) == (self.filled.size,)

    def is_whole(self, x: Any) -> bool:
        return isinstance(x, ComponentVector) and x.layout is self.layout and jnp.shape(x.data) == (self.layout.size,)

    def _parts(self, x: ComponentVector) -> list[jax.Array]:
        return split(x.data, tuple(leaf.size for leaf in self.layout.blocks))

    def _fill(self, parts: list[jax.Array]) -> ComponentVector:
        pad = self.filled.size - sum(x.size for x in parts)
        dtype = parts[0].dtype if parts else self.layout.flat_dtype
        return ComponentVector(jnp.concatenate([*parts, jnp.zeros(pad, dtype)]), self.filled)


def flat_rows(model: Layer, layout: Layout) -> tuple[Path, ...]:
    """The paths of the matrices of a model's stacks with flat rows."""
    out: list[Path] = []
    for path, layer in walk(model):
        if isinstance(layer, Stack) and layer.flat_rows:
            name = f"{path}.rows" if path else "rows"
            out += [leaf.path for leaf in layout.leaves if path_string(leaf.path) == name and len(leaf.shape) == 2]
    return tuple(dict.fromkeys(out))
