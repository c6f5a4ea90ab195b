"""Where the elements of arrays lie in memory: indices as C expressions, and those of views in their operands."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from .lowering import Operation, Value

Index = Sequence[int | str]


class Flat(str):
    """The place of an element in the whole array, in place of an index for each axis."""


@dataclasses.dataclass(slots=True)
class Place:
    """Where an array lies: `name[(offset + place)*lanes + l]`, or a plain variable."""

    name: str
    shape: tuple[int, ...]
    lanes: int = 1
    plain: bool = False
    offset: int | str = 0

    def at(self, index: Index) -> str:
        if self.plain:
            return self.name
        element = plus(self.offset, index[0] if is_flat(index) else flat(index, self.shape))
        return f"{self.name}[{plus(times(element, self.lanes), 'l') if self.lanes > 1 else element}]"


def is_flat(index: Index) -> bool:
    return len(index) == 1 and isinstance(index[0], Flat)


def plus(*terms: int | str) -> int | str:
    texts = [str(term) for term in terms if isinstance(term, str)]
    number = sum(term for term in terms if not isinstance(term, str))
    if not texts:
        return number
    return " + ".join(texts) + (f" + {number}" if number > 0 else f" - {-number}" if number < 0 else "")


def times(term: int | str, factor: int) -> int | str:
    if not isinstance(term, str):
        return term * factor
    if factor == 1:
        return str(term)
    return 0 if factor == 0 else f"{factor}*{term}" if term.isidentifier() else f"{factor}*({term})"


def flat(index: Index, shape: Sequence[int]) -> int | str:
    strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    return plus(*(times(i, stride) for i, stride in zip(index, strides, strict=True)))


def without_ones(shape: Iterable[Any]) -> list[Any]:
    return [n for n in shape if n != 1]


def reshaped(index: Index, shape: Sequence[int], to: Sequence[int]) -> list[int | str]:
    """The index of the same element in another shape."""
    if without_ones(shape) == without_ones(to):
        rest = iter([i for i, n in zip(index, shape, strict=True) if n != 1])
        return [0 if n == 1 else next(rest) for n in to]
    place = flat(index, shape)
    strides = [math.prod(to[k + 1 :]) for k in range(len(to))]
    return [f"({place}) / {stride} % {n}" for stride, n in zip(strides, to, strict=True)]


def operand_index(op: Operation, value: Value, index: Index) -> list[int | str]:
    """The index in its operand of an element of a view."""
    (operand,), params = op.inputs, op.params
    if op.name == "broadcast_in_dim":
        dims = params["broadcast_dimensions"]
        return [0 if n == 1 else index[d] for n, d in zip(operand.shape, dims, strict=True)]
    if op.name == "transpose":
        return [index[params["permutation"].index(k)] for k in range(len(index))]
    if op.name == "slice":
        strides = params["strides"] or [1] * len(index)
        return [plus(times(i, s), start) for i, s, start in zip(index, strides, params["start_indices"], strict=True)]
    if op.name == "split":
        start = sum(params["sizes"][: next(k for k, v in enumerate(op.outputs) if v is value)])
        return [plus(i, start) if k == params["axis"] else i for k, i in enumerate(index)]
    return [plus(operand.shape[k] - 1, times(i, -1)) if k in params["dimensions"] else i for k, i in enumerate(index)]


def in_one_piece(op: Operation, value: Value) -> bool:
    """Whether a part of an array is one piece of memory: no axis cut but one, and only single indices before it."""
    if op.name == "slice" and any(s != 1 for s in op.params["strides"] or ()):
        return False
    pairs = list(zip(value.shape, op.inputs[0].shape, strict=True))
    cut = max((k for k, (n, whole) in enumerate(pairs) if n != whole), default=0)
    return all(n == 1 for n, _ in pairs[:cut])


def inserted(index: Index, axes: Sequence[int], inner: Index) -> list[int | str]:
    """An index with those of other axes put in."""
    found = list(index)
    for axis, i in zip(axes, inner, strict=True):
        found.insert(axis, i)
    return found


def merged(around: Index, outer: Sequence[int], own: Index, inner: Sequence[int]) -> list[int | str]:
    places = dict(zip(outer, around, strict=True)) | dict(zip(inner, own, strict=True))
    return [places[k] for k in range(len(places))]


def by_specification(spec: Sequence[int], index: Index) -> list[int | str]:
    """An index by the order of axes that a specification of convolutions gives."""
    found: list[int | str] = [0] * len(spec)
    for axis, i in zip(spec, index, strict=True):
        found[axis] = i
    return found
