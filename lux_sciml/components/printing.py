"""How vectors print: the names, the shapes and a few values."""

from typing import Any

import jax
import numpy as np

from .layout import Layout, Leaf
from .nodes import LIST, NONE, Static

_MOST_COMPONENTS, _MOST_NUMBERS = 20, 6


def show(data: Any, layout: Layout) -> str:
    """`a=1, b=[2, 3], c=(d=float32[2,3])`: the components as they print, of a vector or a batch of them."""
    if not _readable(data):
        return f"{data}, {layout!r}"
    data = np.asarray(data)
    return _inside(data, layout, layout) if data.ndim == 1 else f"{_short(data)}, {layout!r}"


def _inside(data: np.ndarray, layout: Layout, root: Layout, path: tuple = ()) -> str:
    if layout.is_array:
        return _short(np.asarray(data[root.index(path)]))
    if layout.container == NONE or isinstance(layout.container, Static):
        return repr(layout.rebuild([]))
    entries = []
    for key, child in list(layout.children.items())[:_MOST_COMPONENTS]:
        text = _inside(data, child, root, (*path, key))
        if child.children:
            left, right = "[]" if child.container == LIST else "()"
            text = f"{left}{text}{right}"
        entries.append(text if layout.is_sequence else f"{key}={text}")
    more = len(layout.children) - _MOST_COMPONENTS
    return ", ".join([*entries, f"... and {more} more"] if more > 0 else entries)


def table(data: Any, layout: Layout) -> str:
    """One line for each array: its path, shape, dtype, place in the vector, and range of values."""
    rows = [("component", "shape", "dtype", "place", "values"), *(_row(data, leaf, layout) for leaf in layout.leaves)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(data: Any, leaf: Leaf, layout: Layout) -> tuple[str, ...]:
    end = leaf.offset + leaf.size
    values = _range(np.asarray(data)[..., leaf.offset : end]) if _readable(data) else ""
    tied = f" = {layout.name(leaf.owner)}" if leaf.owner else ""
    return layout.name(leaf.path) + tied, str(leaf.shape), str(leaf.dtype), f"{leaf.offset}:{end}", values


def _range(x: np.ndarray) -> str:
    if x.size <= _MOST_NUMBERS or np.iscomplexobj(x):
        return _short(x)
    return f"{_number(x.min())} to {_number(x.max())}"


def _short(x: np.ndarray) -> str:
    """Numbers where there are few, else the type and shape."""
    if x.size <= _MOST_NUMBERS and x.ndim <= 1:
        return f"[{', '.join(map(_number, x))}]" if x.ndim else _number(x)
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _number(x: Any) -> str:
    return f"{x.item():.4g}"


def _readable(data: Any) -> bool:
    """Whether the numbers can be read here and now: not those of a trace or of another host."""
    if isinstance(data, jax.core.Tracer):
        return False
    return isinstance(data, np.ndarray) or (isinstance(data, jax.Array) and data.is_fully_addressable)
