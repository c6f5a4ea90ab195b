"""Part: the components of a vector that are fitted, chosen by patterns; the others stay as they are."""

from typing import Any, NamedTuple

import numpy as np

from ..components import ComponentVector, Layout


class Part(NamedTuple):
    """Some blocks of the layout `whole`, and the layout of the vector of these alone."""

    whole: Layout
    chosen: tuple[bool, ...]  # for each block of `whole`
    layout: Layout

    @classmethod
    def of(cls, ps: Any, patterns: Any) -> "Part":
        """The blocks that one of the patterns matches: see `Layout.match`. Raises `KeyError` where none does."""
        if not isinstance(ps, ComponentVector):
            raise TypeError(f"`trainable` goes by name and needs a ComponentVector, got {type(ps).__name__}")
        if not isinstance(patterns, str | list | tuple | set | frozenset):
            raise TypeError(f"`trainable` is a pattern such as 'physics.*', or a list of them, got {patterns!r}")
        mask = ps.layout.mask(*([patterns] if isinstance(patterns, str) else patterns))
        chosen = tuple(bool(mask[leaf.offset : leaf.offset + leaf.size].any()) for leaf in ps.layout.blocks)
        paths = [leaf.path for leaf, used in zip(ps.layout.blocks, chosen, strict=True) if used]
        return cls(ps.layout, chosen, ps.layout.select(*paths))

    @property
    def mask(self) -> np.ndarray:
        """For each element of the whole vector, whether it is in the part."""
        return np.repeat(self.chosen, [leaf.size for leaf in self.whole.blocks])

    def take(self, ps: ComponentVector) -> ComponentVector:
        """The part of a vector."""
        blocks = [x for x, used in zip(self.whole.split(ps), self.chosen, strict=True) if used]
        return ComponentVector(self.layout.join(blocks, ps.dtype), self.layout)

    def join(self, part: ComponentVector, ps: ComponentVector) -> ComponentVector:
        """A vector with the part in its place."""
        new = iter(self.layout.split(part))
        blocks = zip(self.whole.split(ps), self.chosen, strict=True)
        return ComponentVector(self.whole.join([next(new) if used else x for x, used in blocks], ps.dtype), self.whole)
