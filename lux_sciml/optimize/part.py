"""Part: a loss of some of the parameters, the others held fixed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ..components import ComponentVector, Layout
from ..components.containers import path_string


@dataclasses.dataclass(frozen=True)
class Part:
    """A loss as a function of the chosen blocks of a vector. Compares and hashes by value, as `Problem` does.

    Called as `part(chosen, (vector, args))`, where `chosen` is a ComponentVector of these blocks, named by their paths.
    """

    loss: Callable
    takes_args: bool
    layout: Layout
    chosen: tuple[bool, ...]  # for each block of the layout

    @classmethod
    def of(cls, loss: Callable, ps: Any, args: Any, patterns: str | tuple[str, ...] | list[str]) -> "Part":
        """The part that matches one of the patterns; `KeyError` for a pattern that matches nothing."""
        if not isinstance(ps, ComponentVector):
            raise TypeError(f"`trainable` goes by name and needs a ComponentVector, got {type(ps).__name__}")
        mask = ps.layout.mask(*([patterns] if isinstance(patterns, str) else patterns))
        chosen = tuple(bool(mask[leaf.offset : leaf.offset + leaf.size].any()) for leaf in ps.layout.blocks)
        return cls(loss, args is not None, ps.layout, chosen)

    def __call__(self, chosen: ComponentVector, fixed: tuple[ComponentVector, Any]) -> Any:
        ps, args = fixed
        ps = self.join(chosen, ps)
        return self.loss(ps, args) if self.takes_args else self.loss(ps)

    def take(self, ps: ComponentVector) -> ComponentVector:
        """The chosen blocks of a vector."""
        blocks = zip(self.layout.blocks, self.layout.split(ps), self.chosen, strict=True)
        return ComponentVector.from_tree({path_string(leaf.path): x for leaf, x, used in blocks if used}, ps.dtype)

    def join(self, chosen: ComponentVector, ps: ComponentVector) -> ComponentVector:
        """The vector with its chosen blocks replaced."""
        new = iter(chosen.layout.split(chosen))
        blocks = [next(new) if used else x for x, used in zip(self.layout.split(ps), self.chosen, strict=True)]
        return self.layout.wrap(self.layout.join(blocks, ps.dtype))

    def bounds(self, bounds: Any) -> Any:
        """Bounds of the whole vector as bounds of the part."""
        return jax.tree.map(self._bound, bounds, is_leaf=lambda x: isinstance(x, ComponentVector))

    def _bound(self, bound: Any) -> Any:
        if not isinstance(bound, ComponentVector):
            return bound
        self.layout.require_same(bound.layout)
        return self.take(bound)
