"""Flat vectors and trees as tables: pandas' Series and DataFrames, and flat dicts by path."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._libraries import library
from .._tree import is_random_key
from .layout import Layout, layout_of
from .nodes import Path, key_names, nest

_TABLES = "lux-sciml[tables]"
_LABEL = re.compile(r"(?P<path>.*?)(?:\[(?P<index>\d+(?:,\d+)*)\])?")


def to_pandas(data: Any, layout: Layout) -> Any:
    """A Series of a vector, by the labels of its elements; a DataFrame of a batch of vectors, a row for each."""
    pandas = library("pandas", _TABLES)
    data = np.asarray(data)
    data = data.astype("float32") if data.dtype.kind == "V" else data  # bfloat16
    labels = pandas.Index(layout.labels(), name="component")
    if data.ndim > 2:
        raise ValueError(f"a table has a row for each vector of a batch, got data of shape {data.shape}: reshape it")
    return pandas.Series(data, labels) if data.ndim == 1 else pandas.DataFrame(data, columns=labels)


def matrix_to_pandas(data: Any, rows: Layout, columns: Layout) -> Any:
    """A DataFrame of a matrix with the labels of its rows and columns."""
    pandas, data = library("pandas", _TABLES), np.asarray(data)
    if data.ndim != 2:
        raise ValueError(f"a table holds one matrix, got data of shape {data.shape}: take one of the batch")
    index, labels = pandas.Index(rows.labels(), name="component"), pandas.Index(columns.labels(), name="component")
    return pandas.DataFrame(data.astype("float32") if data.dtype.kind == "V" else data, index, labels)


def from_pandas(table: Any, like: Layout | None) -> tuple[np.ndarray, Layout]:
    """Data and layout of a Series by label, or of a DataFrame, whose columns are the labels.

    With `like`, in its order and its types, else as the labels say.
    """
    pandas = library("pandas", _TABLES)
    if not isinstance(table, pandas.Series | pandas.DataFrame):
        raise TypeError(f"from_pandas takes a Series or a DataFrame, got a {type(table).__name__}")
    labels = [str(label) for label in (table.index if isinstance(table, pandas.Series) else table.columns)]
    places = {label: i for i, label in enumerate(labels)}
    if len(places) < len(labels):
        twice = sorted(label for i, label in enumerate(labels) if places[label] != i)
        raise ValueError(f"the table has {twice[0]!r} twice: every element has one label")
    data = table.to_numpy()
    if data.dtype.kind not in "fciu":
        raise TypeError(f"the table holds elements of type {data.dtype}, not numbers")
    data = data.astype(float) if data.dtype.kind in "iu" else data
    if like is None:
        like = _layout(labels, data.dtype)
    wanted = like.labels()
    missing, extra = (sorted({*a} - {*b}) for a, b in ((wanted, labels), (labels, wanted)))
    if missing or extra:
        texts = [f"{name} {', '.join(found[:5])}" for name, found in (("lacks", missing), ("adds", extra)) if found]
        raise ValueError(f"the table has other labels than the components: it {' and '.join(texts)}")
    return data[..., [places[label] for label in wanted]], like


def _layout(labels: Sequence[str], dtype: Any) -> Layout:
    """What labels say of components: names, nested by dots, and shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for label in labels:
        match = _LABEL.fullmatch(label)
        assert match is not None
        sizes = tuple(int(i) + 1 for i in match["index"].split(",")) if match["index"] else ()
        old = shapes.setdefault(match["path"], sizes)
        if len(old) != len(sizes):
            raise ValueError(f"{match['path']!r} has labels with {len(old)} and with {len(sizes)} indices")
        shapes[match["path"]] = tuple(map(max, old, sizes))
    tree = nest((tuple(path.split(".")), jax.ShapeDtypeStruct(shape, dtype)) for path, shape in shapes.items())
    return Layout.of(tree)


def flat_dict(tree: Any, separator: str = ".") -> dict[str, Any]:
    """The arrays of parameters, or of any tree, by their paths: for loggers and files of other libraries.

    Random keys and what is no array are left out. Raises `ValueError` where two paths read the same.

    >>> from lux_sciml import ComponentVector
    >>> flat_dict(ComponentVector(a=1, b={"c": [2, 3]}))
    {'a': Array(1., dtype=float32), 'b.c': Array([2., 3.], dtype=float32)}
    """
    out: dict[str, Any] = {}
    for path, leaf in _leaves(tree):
        name = separator.join(map(str, path))
        if name in out:
            raise ValueError(f"two arrays have the path {name!r}: choose another separator")
        if hasattr(leaf, "dtype") and not is_random_key(leaf):
            out[name] = leaf
    return out


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Leaves with their paths, in declared order."""
    layout = layout_of(tree)
    if layout is not None:
        yield from (((*path, *leaf.path), x) for leaf, x in zip(layout.leaves, layout.collect(tree), strict=True))
    elif isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from _leaves(child, (*path, key))
    else:
        for rest, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: layout_of(x) is not None):
            names = (*path, *key_names(rest))
            yield from [(names, leaf)] if layout_of(leaf) is None else _leaves(leaf, names)
