"""Sharing: several parameters that are one."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..components import ComponentVector
from ..components.nodes import Path, path_string
from .paths import find_path, overlaps


def share_parameters(
    ps: Any, groups: Iterable[Sequence[str | Path]], values: Sequence[Any] | None = None
) -> ComponentVector:
    """The parameters with groups of them shared: each group is one block of the flat vector.

    `groups` are tuples of paths, of arrays or of sub-trees of the same structure: `[("encoder", "decoder.layer_1")]`. A
    group has the values of its first member in declared order, or those of `values`, one for each group. Shared
    parameters stay equal under every optimizer, and their gradients add up. Raises `ValueError` for unknown paths, for
    groups that overlap and for members of different shapes.

    >>> import jax, lux_sciml as lux
    >>> ps, st = lux.setup(jax.random.key(0), lux.Chain(lux.Dense(2, 2), lux.Dense(2, 2)))
    >>> shared = lux.parameters.share_parameters(ps, [("layer_0", "layer_1")])
    >>> ps.size, shared.size, bool((shared.layer_0.weight == shared.layer_1.weight).all())
    (12, 6, True)
    """
    ps = ps if isinstance(ps, ComponentVector) else ComponentVector.from_tree(ps)
    groups = list(groups)
    if any(isinstance(group, str) for group in groups):
        raise TypeError(f"expected groups of paths, such as [('layer_0', 'layer_1')], got {groups!r}")
    if values and len(values) != len(groups):
        raise ValueError(f"expected a value for each of {len(groups)} groups of shared parameters, got {len(values)}")
    found = [[find_path(ps.layout, path) for path in group] for group in groups]
    for a, b in overlaps([path for group in found for path in group]):
        raise ValueError(
            f"the shared parameters {path_string(a)!r} and {path_string(b)!r} overlap: a parameter can be in one "
            "group only; join the groups"
        )
    shared = ComponentVector.from_tree(ps.tree(), dtype=ps.dtype, ties=[*ps.layout.ties, *found])
    for group, value in zip(found, values or (), strict=False):
        shared = shared.at[group[0]].set(value)
    return shared
