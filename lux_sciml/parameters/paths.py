"""Nested dicts of parameters, read and changed by paths such as `layer_0.weight`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..components import Layout


def as_tuple(paths: str | Sequence[str]) -> tuple[str, ...]:
    """One path, or several, as a tuple."""
    return (paths,) if isinstance(paths, str) else tuple(paths)


def at_paths(tree: dict[str, Any], paths: Iterable[str], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """The tree with `change(path, value)` at each path, in its order. Raises `ValueError` for unknown paths."""
    for path in paths:
        tree = _at_path(tree, path.split("."), path, change)
    return tree


def _at_path(tree: Any, keys: list[str], path: str, change: Callable[[str, Any], Any]) -> Any:
    if not keys:
        return change(path, tree)
    if not isinstance(tree, dict) or keys[0] not in tree:
        has = f"the names here are {', '.join(tree)}" if isinstance(tree, dict) and tree else "nothing is below"
        raise ValueError(f"there is no parameter {path!r}: {keys[0]!r} is not found, {has}")
    return {key: _at_path(child, keys[1:], path, change) if key == keys[0] else child for key, child in tree.items()}


def in_order(tree: Any, layout: Layout) -> Any:
    """The nested dict with its keys in the declared order, that of `layout`."""
    if not isinstance(tree, dict):
        return tree
    return {key: in_order(tree[key], child) for key, child in layout.children.items()}
