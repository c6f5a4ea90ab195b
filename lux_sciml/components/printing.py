"""How vectors and matrices print: the names, the shapes and a few values; tables for terminals and notebooks."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from .._tree import is_random_key, is_traced
from .layout import Layout, Leaf
from .nodes import LIST, NONE, Path, Static

_MOST_COMPONENTS, _MOST_ELEMENTS = 20, 6
_MOST_ROWS, _MOST_WIDTH = 12, 110  # of a printed matrix
_MOST_COMPLETIONS = 1000

Row = Sequence[str]


# --- vectors ----------------------------------------------------------------------------------------------------


def show(data: Any, layout: Layout) -> str:
    """`a=1, b=[2, 3], c=(d=float32[2,3])`: the components as they print, of a vector or a batch of them."""
    if not _readable(data):
        return f"{_kind(data)}, {layout!r}"
    data = np.asarray(data)
    return _inside(data, layout, layout) if data.shape == (layout.size,) else f"{_short(data)}, {layout!r}"


def _inside(data: np.ndarray, layout: Layout, root: Layout, path: Path = ()) -> str:
    if layout.is_array:
        return _short(np.asarray(data[root.index(path)]))
    if layout.container == NONE or isinstance(layout.container, Static):
        return repr(layout.rebuild([]))
    entries = []
    for key, child in list(layout.children.items())[:_MOST_COMPONENTS]:
        text = _inside(data, child, root, (*path, key))
        if not (child.is_array or child.container == NONE or isinstance(child.container, Static)):
            left, right = "[]" if child.container == LIST else "()"
            text = f"{left}{text}{right}"
        entries.append(text if layout.is_sequence else f"{key}={text}")
    more = len(layout.children) - _MOST_COMPONENTS
    return ", ".join([*entries, f"... and {more} more"] if more > 0 else entries)


_HEAD = ("component", "shape", "dtype", "place", "values")


def table(data: Any, layout: Layout) -> str:
    """One line for each array: its path, shape, dtype, place in the vector, and range of values."""
    lines = in_columns([_HEAD, *(_row(data, leaf, layout) for leaf in layout.leaves)])
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def table_html(data: Any, layout: Layout) -> str:
    """The same for notebooks; long ones are folded."""
    rows = [_row(data, leaf, layout) for leaf in layout.leaves]
    return _html(f"ComponentVector {_kind(data)}", _HEAD, rows, folded=len(rows) > _MOST_COMPONENTS)


def _row(data: Any, leaf: Leaf, layout: Layout) -> Row:
    end = leaf.offset + leaf.size
    fits = _readable(data) and np.shape(data)[-1:] == (layout.size,)
    values = _range(np.asarray(data)[..., leaf.offset : end]) if fits else ""
    tied = f" = {layout.name(leaf.owner)}" if leaf.owner else ""
    return layout.name(leaf.path) + tied, str(leaf.shape), str(leaf.dtype), f"{leaf.offset}:{end}", values


def _range(x: np.ndarray) -> str:
    if x.size <= _MOST_ELEMENTS or np.iscomplexobj(x):
        return _short(x)
    return f"{_number(x.min())} to {_number(x.max())}"


# --- matrices ---------------------------------------------------------------------------------------------------


def show_matrix(data: Any, rows: Layout, columns: Layout) -> str:
    """The kind of a matrix and its names, and below them, if they can be read, its elements; long ones with gaps."""
    title = f"ComponentMatrix({_kind(data)}, rows={rows!r}, columns={columns!r})"
    if not _is_matrix(data, rows, columns):
        return title
    most_columns = _MOST_ROWS
    cells = _cells(np.asarray(data), rows, columns, _MOST_ROWS, most_columns)
    while most_columns > 3 and sum(_widths(cells)) + 2 * len(cells[0]) > _MOST_WIDTH:  # as many columns as fit
        most_columns -= 1
        cells = _cells(np.asarray(data), rows, columns, _MOST_ROWS, most_columns)
    first, *others = _widths(cells)
    aligned = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in cells]
    return "\n".join([title, *("  ".join(row).rstrip() for row in aligned)])


def matrix_html(data: Any, rows: Layout, columns: Layout) -> str:
    """The same for notebooks."""
    if not _is_matrix(data, rows, columns):
        return f"<pre>{html.escape(show_matrix(data, rows, columns))}</pre>"
    head, *body = _cells(np.asarray(data), rows, columns, 2 * _MOST_ROWS, 2 * _MOST_ROWS)
    return _html(f"ComponentMatrix {_kind(data)}", head, body)


def _is_matrix(data: Any, rows: Layout, columns: Layout) -> bool:
    return _readable(data) and np.shape(data) == (rows.size, columns.size)


def _cells(x: np.ndarray, rows: Layout, columns: Layout, most_rows: int, most_columns: int) -> list[Row]:
    """The names of the columns, and for each row its name and elements, with "..." for what is left out."""
    across = _places(columns.size, most_columns)
    lines: list[Row] = [["", *(_label(columns, j) for j in across)]]
    for i in _places(rows.size, most_rows):
        lines.append([_label(rows, i), *(_GAP if i is None or j is None else _number(x[i, j]) for j in across)])
    return lines


_GAP = "..."


def _places(size: int, most: int) -> list[int | None]:
    """All indices up to a size, or the first and last ones around a gap."""
    if size <= most:
        return list(range(size))
    last = (most - 1) // 2
    return [*range(most - 1 - last), None, *range(size - last, size)]


def _label(layout: Layout, i: int | None) -> str:
    return _GAP if i is None else layout.label(i)


# --- both -------------------------------------------------------------------------------------------------------


def completions(layout: Layout) -> list[str]:
    """What `cv["<tab>` offers: the texts of all components, the inner ones too."""
    paths = dict.fromkeys(leaf.path[: i + 1] for leaf in layout.leaves for i in range(len(leaf.path)))
    ordered = sorted(paths, key=len)[:_MOST_COMPLETIONS]
    return [layout.name(path) for path in ordered if not layout.name(path).startswith("(")]


def attributes(layout: Layout) -> list[str]:
    """What `cv.<tab>` offers of the components: those whose names Python takes after a dot."""
    children = [*layout.children, *(layout.children[0].children if layout.is_stack else ())]
    return [key for key in children if isinstance(key, str) and key.isidentifier()]


def in_columns(rows: Sequence[Row]) -> list[str]:
    """Rows of texts as lines, in columns that begin at one place.

    >>> in_columns([("name", "size"), ("weight", "6")])
    ['name    size', 'weight  6']
    """
    widths = _widths(rows)
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _widths(rows: Iterable[Row]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _html(title: str, head: Row, rows: Iterable[Row], folded: bool = False) -> str:
    def line(kind: str, row: Row) -> str:
        first, *rest = (html.escape(cell) for cell in row)
        return f"<tr><th>{first}</th>{''.join(f'<{kind}>{cell}</{kind}>' for cell in rest)}</tr>"

    body = f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"
    if folded:
        return f"<details><summary>{html.escape(title)}</summary>{body}</details>"
    return f"<p>{html.escape(title)}</p>{body}"


def _short(x: np.ndarray) -> str:
    """Elements where there are few, else the type and shape."""
    if x.size <= _MOST_ELEMENTS and x.ndim <= 1:
        return f"[{', '.join(map(_number, x))}]" if x.ndim else _number(x)
    return _kind(x)


def _kind(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]" if hasattr(x, "dtype") and hasattr(x, "shape") else str(x)


def _number(x: Any) -> str:
    return f"{x.item():.4g}"


def _readable(data: Any) -> bool:
    """Whether the elements can be read here and now: not those of a trace, of another host, or given away."""
    if isinstance(data, np.ndarray):
        return data.dtype.kind != "O"
    if not isinstance(data, jax.Array) or is_traced(data) or is_random_key(data):
        return False
    return data.is_fully_addressable and not data.is_deleted()
