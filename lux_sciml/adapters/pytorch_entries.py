"""Where the arrays of a layer stand in PyTorch's state dicts, and how they are turned."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..components.nodes import Path
from ..core import Layer
from ..nn import (
    BatchNorm,
    BidirectionalRNN,
    Bilinear,
    Chain,
    Conv,
    ConvTranspose,
    Dense,
    Embedding,
    GroupNorm,
    GRUCell,
    InstanceNorm,
    LayerNorm,
    LearnedPositionalEmbedding,
    LSTMCell,
    MultiHeadAttention,
    PatchEmbedding,
    Recurrence,
    RMSNorm,
    RNNCell,
    StackedCells,
    TransformerEncoderBlock,
)

Arrays = tuple[np.ndarray, ...]


class Entry(NamedTuple):
    """One array of a state dict: its name in the module, the arrays here that it is made of, and both directions.

    The paths of ours start with `"ps"` or `"st"`.
    """

    name: str
    ours: tuple[Path, ...]
    to_torch: Callable[..., np.ndarray]
    from_torch: Callable[[np.ndarray, Arrays], Arrays]  # of theirs, and of arrays like ours

    def inside(self, prefix: str, *path: str) -> "Entry":
        """The entry of a child, in the module that it is a part of."""
        ours = tuple((where, *path, *rest) for where, *rest in self.ours)
        return self._replace(name=f"{prefix}{self.name}", ours=ours)


def entry(
    name: str,
    ours: str | Path,
    to_torch: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    from_torch: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> Entry:
    """The entry of one parameter of ours, or of what is at a path."""
    path = ("ps", ours) if isinstance(ours, str) else ours
    return Entry(name, (path,), to_torch, lambda x, like: (from_torch(x),))


def variants(layer: Layer, names: set[str]) -> Iterator[list[Entry]]:
    """The ways in which the arrays of a layer, as a whole, may stand in a state dict of the given names.

    None for layers that PyTorch does not have: containers, whose children are looked for, and others.
    """
    match layer:
        case MultiHeadAttention():
            if layer.key_features in (None, layer.features) and layer.value_features in (None, layer.features):
                yield [*_joined(layer), *_within("out_proj.", layer.output, "output")]
            yield [*_apart(layer), *_within("out_proj.", layer.output, "output")]
            for q, k, v, out in (("q_proj", "k_proj", "v_proj", "out_proj"), ("query", "key", "value", "output")):
                children = {"query": q, "key": k, "value": v, "output": out}
                yield [e for child, name in children.items() for e in _within(f"{name}.", layer[child], child)]
        case TransformerEncoderBlock(mlp=Chain() as mlp):
            for attention in variants(layer.attention, names):
                yield [
                    *(e.inside("self_attn.", "attention") for e in attention),
                    *_within("linear1.", mlp["layer_0"], "mlp", "layer_0"),
                    *_within("linear2.", mlp["layer_2"], "mlp", "layer_2"),
                    *_within("norm1.", layer.norm_1, "norm_1"),
                    *_within("norm2.", layer.norm_2, "norm_2"),
                ]
        case Recurrence() | BidirectionalRNN():
            yield from _recurrences(layer, names)
        case _:
            own = simple(layer)
            if own is not None:
                yield own


def simple(layer: Layer) -> list[Entry] | None:
    """The entries of a layer that is one module of PyTorch's, with the names of its parameters."""
    match layer:
        case Dense():
            return [entry("weight", "weight", np.transpose, np.transpose), *_bias(layer)]
        case Conv() | PatchEmbedding():
            return [entry("weight", "weight", _channels_first, _channels_last), *_bias(layer)]
        case ConvTranspose():
            return [_transposed(layer.groups), *_bias(layer)]
        case Bilinear():
            turned = entry("weight", "weight", lambda w: np.moveaxis(w, -1, 0), lambda w: np.moveaxis(w, 0, -1))
            return [turned, *_bias(layer)]
        case BatchNorm() | InstanceNorm():
            stats = [entry(name, ("st", name)) for name in ("running_mean", "running_var")]
            return _affine(layer) + (stats if layer.track_stats else [])
        case LayerNorm() | GroupNorm():
            return _affine(layer)
        case RMSNorm():
            return _affine(layer)[:1]
        case Embedding():
            return [entry("weight", "weight")]
        case LearnedPositionalEmbedding():
            return [entry("weight", "embedding")]
        case RNNCell() | LSTMCell() | GRUCell():
            return _cell(layer)
    return None


def turned(entries: list[Entry], axis: int, channels: int, only: str | None = None) -> list[Entry]:
    """The entries of a layer with an axis along the elements of images, which have their channels first in PyTorch.

    `axis` is that of our arrays; `only` is the name of the one entry that has it.
    """

    def first(x: np.ndarray) -> np.ndarray:
        return _swapped(x, axis, -1, channels)

    def last(x: np.ndarray) -> np.ndarray:
        return _swapped(x, axis, channels, -1)

    def turn(e: Entry) -> Entry:
        return e._replace(
            to_torch=lambda *ours: e.to_torch(*map(first, ours)),
            from_torch=lambda theirs, like: tuple(map(last, e.from_torch(theirs, like))),
        )

    return [turn(e) if only in (None, e.name) else e for e in entries]


def channels_first(entries: list[Entry]) -> list[Entry]:
    """The entries of a layer whose arrays have the shape of images."""

    def turn(e: Entry) -> Entry:
        return e._replace(
            to_torch=lambda ours: np.moveaxis(ours, -1, 0),
            from_torch=lambda theirs, like: (np.moveaxis(theirs, 0, -1),),
        )

    return [turn(e) for e in entries]


def _swapped(x: np.ndarray, axis: int, rows: int, columns: int) -> np.ndarray:
    x = np.moveaxis(x, axis, 0)
    return np.moveaxis(x.reshape(rows, columns, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape), 0, axis)


def _bias(layer: Any) -> list[Entry]:
    return [entry("bias", "bias")] if layer.use_bias else []


def _affine(layer: Any) -> list[Entry]:
    return [entry("weight", "scale"), entry("bias", "bias")] if layer.affine else []


def _channels_first(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, (-1, -2), (0, 1))


def _channels_last(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, (0, 1), (-1, -2))


def _transposed(groups: int) -> Entry:
    """The kernel `(in, out / groups, *kernel)`, where ours is `(*kernel, in / groups, out)`."""

    def to_torch(weight: np.ndarray) -> np.ndarray:
        *kernel, inner, out = weight.shape
        w = np.moveaxis(weight.reshape(*kernel, inner, groups, out // groups), (-2, -3, -1), (0, 1, 2))
        return w.reshape(groups * inner, out // groups, *kernel)

    def from_torch(weight: np.ndarray) -> np.ndarray:
        features, out, *kernel = weight.shape
        w = np.moveaxis(weight.reshape(groups, features // groups, out, *kernel), (0, 1, 2), (-2, -3, -1))
        return w.reshape(*kernel, features // groups, groups * out)

    return entry("weight", "weight", to_torch, from_torch)


def _cell(cell: Any, suffix: str = "") -> list[Entry]:
    names = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * cell.use_bias
    return [entry(f"{name}{suffix}", name, np.transpose, np.transpose) for name in names]


def _within(prefix: str, child: Layer, *path: str) -> list[Entry]:
    return [e.inside(prefix, *path) for e in simple(child) or []]


def _recurrences(layer: Any, names: set[str]) -> Iterator[list[Entry]]:
    """The layers of `torch.nn.LSTM` and its like, from any one on; of a single cell also a cell of PyTorch's."""
    found = {int(match[1]) for name in names if (match := re.search(r"_ih_l(\d+)(_reverse)?$", name))}
    for first in sorted(found | {0}):
        rows = list(_cells(layer, first))
        if any(not isinstance(cell, RNNCell | LSTMCell | GRUCell) for _, cell, _ in rows):
            return
        yield [e.inside("", *path) for path, cell, suffix in rows for e in _cell(cell, suffix)]
    if isinstance(layer, Recurrence) and isinstance(layer.cell, RNNCell | LSTMCell | GRUCell):
        yield _cell(layer.cell)


def _cells(layer: Any, first: int) -> Iterator[tuple[tuple[str, ...], Layer, str]]:
    """The cells of a recurrence: where they are, and the end of their names."""
    if isinstance(layer, BidirectionalRNN):
        yield ("cell",), layer.cell, f"_l{first}"
        assert layer.backward_cell is not None
        yield ("backward_cell",), layer.backward_cell, f"_l{first}_reverse"
    elif isinstance(layer.cell, StackedCells):
        for i, (name, cell) in enumerate(layer.cell.cells().items(), first):
            yield (name,), cell, f"_l{i}"
    else:
        yield (), layer.cell, f"_l{first}"


def _joined(layer: MultiHeadAttention) -> list[Entry]:
    """Queries, keys and values in one matrix, as in `torch.nn.MultiheadAttention`."""
    parts = ("query", "key", "value")

    def split(x: np.ndarray, like: Arrays) -> Arrays:
        ends = np.cumsum([part.shape[-1] for part in like])
        return tuple(np.split(x.T if x.ndim > 1 else x, ends[:-1], axis=-1))

    def join(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate([array.T for array in arrays])

    weights = Entry("in_proj_weight", tuple(("ps", part, "weight") for part in parts), join, split)
    return [weights, *_joined_bias(layer, split)]


def _joined_bias(layer: MultiHeadAttention, split: Callable[[np.ndarray, Arrays], Arrays]) -> list[Entry]:
    ours = tuple(("ps", part, "bias") for part in ("query", "key", "value"))
    return [Entry("in_proj_bias", ours, lambda *x: np.concatenate(x), split)] if layer.use_bias else []


def _apart(layer: MultiHeadAttention) -> list[Entry]:
    """Queries, keys and values of several sizes, as in `torch.nn.MultiheadAttention` with `kdim` and `vdim`."""
    names = {"q_proj_weight": "query", "k_proj_weight": "key", "v_proj_weight": "value"}
    weights = [entry(name, ("ps", part, "weight"), np.transpose, np.transpose) for name, part in names.items()]
    return weights + _joined(layer)[1:]
