"""Sharing: several parameters that are one."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..components import ComponentVector


def share_parameters(ps: Any, groups: Iterable[Sequence[str]], values: Sequence[Any] | None = None) -> ComponentVector:
    """The parameters with groups of them shared: each group is one block of the flat vector.

    `groups` are tuples of paths, of arrays or of sub-trees of the same structure: `[("encoder", "decoder.layer_1")]`. A
    group has the numbers of its first member in declared order, or those of `values`, one for each group. Shared
    parameters stay equal under every optimizer, and their gradients add up. Raises `ValueError` for groups that overlap
    and for members of different shapes.

    >>> import jax, lux_sciml as lux
    >>> ps, st = lux.setup(jax.random.key(0), lux.Chain(lux.Dense(2, 2), lux.Dense(2, 2)))
    >>> shared = lux.parameters.share_parameters(ps, [("layer_0", "layer_1")])
    >>> ps.size, shared.size, bool((shared.layer_0.weight == shared.layer_1.weight).all())
    (12, 6, True)
    """
    groups = [tuple(group) for group in groups]
    members = [(path.split("."), group) for group in groups for path in group]
    for i, (a, _) in enumerate(members):
        for b, _ in members[i + 1 :]:
            shorter = min(len(a), len(b))
            if a[:shorter] == b[:shorter]:
                raise ValueError(
                    f"the shared parameters {'.'.join(a)!r} and {'.'.join(b)!r} overlap: a parameter can be in one "
                    "group only; join the groups"
                )
    ps = ps if isinstance(ps, ComponentVector) else ComponentVector.from_tree(ps)
    shared = ComponentVector.from_tree(ps.tree(), dtype=ps.dtype, ties=[*ps.layout.ties, *groups])
    for group, value in zip(groups, values or (), strict=bool(values)):
        shared = shared.at[group[0]].set(value)
    return shared
