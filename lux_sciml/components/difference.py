"""Comparing layouts: the first difference as a sentence, or all of them."""

import collections
from typing import Any, NamedTuple

from .nodes import ARRAY, NONE, Path, Static, Tied, container_key, container_name, path_string, quoted


def difference(expected: Any, got: Any, order: bool, dtypes: bool, path: Path = ()) -> str | None:
    """The first difference between two layouts, as a sentence; `None` if there is none."""
    if expected is got:
        return None
    here = quoted(path)
    same_kind = container_key(expected.container) == container_key(got.container)
    if not same_kind and not (_has_names(expected) and _has_names(got)):
        return f"{here} should be {_noun(expected)}, got {_noun(got)}"
    if expected.shape != got.shape:
        return f"{here} should have shape {expected.shape}, got {got.shape}"
    if expected.is_array:
        return f"{here} should be {expected.dtype}, got {got.dtype}" if dtypes and expected.dtype != got.dtype else None
    for key in expected.children:
        if key not in got.children:
            return f"`{path_string((*path, key))}` is missing"
    for key in got.children:
        if key not in expected.children:
            return f"`{path_string((*path, key))}` is unknown"
    for key, child in expected.children.items():
        found = difference(child, got.children[key], order, dtypes, (*path, key))
        if found:
            return found
    if order and list(expected.children) != list(got.children):
        return (
            f"{here} holds the same components in another order, expected {', '.join(map(str, expected.children))}, "
            f"got {', '.join(map(str, got.children))}; `ComponentVector.from_tree(tree, like=layout)` orders them"
        )
    return None


class Differences(NamedTuple):
    """All differences between the arrays of an expected layout and another, by path; false without any.

    `missing` and `extra` are paths, such as `("encoder", "bias")`; `reshaped` has the expected and the other shape for
    each path. Printed, it is one line for each.
    """

    missing: tuple[Path, ...]
    extra: tuple[Path, ...]
    reshaped: dict[Path, tuple[tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.reshaped)

    def __str__(self) -> str:
        texts = collections.Counter(map(path_string, (*self.missing, *self.extra, *self.reshaped)))

        def name(path: Path) -> str:  # a tuple where two paths read the same
            return path_string(path) if texts[path_string(path)] == 1 else str(path)

        lines = [f"missing: {name(path)}" for path in self.missing] + [f"extra: {name(path)}" for path in self.extra]
        lines += [f"reshaped: {name(path)}, expected {old}, got {new}" for path, (old, new) in self.reshaped.items()]
        return "\n".join(lines) or "no differences"


def differences(expected: Any, got: Any) -> Differences:
    """What another layout lacks, adds or has in other shapes, by path; the order does not matter."""
    shapes = {leaf.path: leaf.shape for leaf in expected.leaves}
    others = {leaf.path: leaf.shape for leaf in got.leaves}
    return Differences(
        missing=tuple(path for path in shapes if path not in others),
        extra=tuple(path for path in others if path not in shapes),
        reshaped={path: (shape, others[path]) for path, shape in shapes.items() if others.get(path, shape) != shape},
    )


def _has_names(layout: Any) -> bool:
    return not (
        layout.is_array or layout.is_sequence or layout.container == NONE or isinstance(layout.container, Static)
    )


def _noun(layout: Any) -> str:
    if isinstance(layout.container, Tied):
        return f"tied to `{path_string(layout.container.owner)}`"
    if isinstance(layout.container, Static):
        return f"{layout.container.value!r}"
    if layout.container == ARRAY:
        return f"an array of shape {layout.shape}"
    names = ", ".join(map(str, layout.children)) or "nothing"
    return "None" if layout.container == NONE else f"a {container_name(layout.container)} of {names}"
