"""Blocks of array operations as C99: plain loops over arrays of fixed sizes.

What is computed element by element stays an expression until something needs the array, so that a chain of such
operations is one loop. With `lanes`, the statements are those of so many samples side by side: each array that depends
on the sample has them as its last axis, the innermost loop runs over them, and compilers turn it into vector
instructions, whatever the model is.
"""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from .c_places import (
    Flat,
    Index,
    Place,
    by_specification,
    flat,
    in_one_piece,
    inserted,
    is_flat,
    merged,
    operand_index,
    plus,
    reshaped,
    times,
    without_ones,
)
from .c_text import TYPES, Constants, literal, suffix
from .lowering import CONVOLUTIONS, ELEMENTWISE, LOOPS, OTHERS, REDUCTIONS, VIEWS, Block, Operation, Value, filler

SUPPORTED = ELEMENTWISE | VIEWS | REDUCTIONS | LOOPS | OTHERS | CONVOLUTIONS

MATH = {
    name: name for name in "exp exp2 log log1p expm1 sin cos tan sinh cosh tanh sqrt cbrt erf erfc floor ceil".split()
}
MATH |= {a: a for a in ("asin", "acos", "atan", "asinh", "acosh", "atanh", "atan2", "nextafter", "pow")}
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_SIGNS |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BITS = {"and": "&", "or": "|", "xor": "^"}
_START = {"reduce_sum": 0, "reduce_prod": 1, "reduce_and": -1, "reduce_or": 0}
_WRAPS = frozenset("add sub mul div neg abs not square integer_pow pow".split())
_COMBINED = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "and": "and", "or": "or"}


class Loops:
    """Writes the statements of blocks, in the order of their operations.

    * `varying`: the values that differ from sample to sample, which have lanes;
    * `given`: where values are to lie that have their place already, as outputs have.
    """

    def __init__(self, constants: Constants, lanes: int = 1, varying: Iterable[Value] = (), workspace: bool = False):
        self.constants, self.lanes, self.varying, self.workspace = constants, lanes, set(varying), workspace
        self.lines: list[str] = []
        self.places: dict[Value, Place] = {}
        self.given: dict[Value, Place] = {}
        self.bytes = 0  # of the arrays
        self._depth, self._loops, self._count = 1, 0, itertools.count()
        self._makers: dict[Value, Operation] = {}
        self._alias: dict[Value, tuple[Value, Index]] = {}
        self._stored: set[Value] = set()
        self._uses: dict[Value, list[Operation]] = {}
        self._memo: dict[Any, str] = {}

    # --- text -----------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self._depth + text)

    @contextlib.contextmanager
    def scope(self, head: str) -> Iterator[None]:
        self.line(head + " {")
        memo, self._memo = self._memo, dict(self._memo)
        self._depth += 1
        yield
        self._depth -= 1
        self._memo = memo
        self.line("}")

    @contextlib.contextmanager
    def loop(self, shape: Sequence[int], lanes: bool = False, flat: bool = False) -> Iterator[list[int | str]]:
        """Loops over a shape; the index of each axis, 0 where the axis has size one."""
        with contextlib.ExitStack() as stack:
            index: list[int | str] = []
            entered = 0  # loops; names are unique, so that without any no braces are needed
            for size in [math.prod(shape)] if flat else shape:
                if size == 1:
                    index.append(0)
                    continue
                name = f"i{self._loops}"
                self._loops += 1
                entered += 1
                stack.enter_context(self.scope(f"for (int {name} = 0; {name} < {size}; {name}++)"))
                index.append(Flat(name) if flat else name)
            if lanes and self.lanes > 1:
                stack.enter_context(self.lane())
            yield index
        self._loops -= entered

    def lane(self) -> Any:
        return self.scope(f"for (int l = 0; l < {self.lanes}; l++)")

    def varies(self, value: Value) -> bool:
        return self.lanes > 1 and value in self.varying

    def declare(self, value: Value, *, like: Value | None = None) -> Place:
        """A new array for a value, or the place that is given for it."""
        place = self.given.get(value) or self._new(value.shape, value.dtype, self.varies(like or value))
        self.places[value] = place
        return place

    def _new(self, shape: tuple[int, ...], dtype: np.dtype, varies: bool) -> Place:
        name, kind = f"t{next(self._count)}", TYPES[dtype.name]
        lanes = self.lanes if varies else 1
        size = max(math.prod(shape) * lanes, 1)
        if size == 1:
            self.line(f"{kind} {name};")
            return Place(name, shape, plain=True)
        if self.workspace:
            self.line(f"{kind} *restrict {name} = ({kind} *)(void *)((char *)work + {self.bytes});")
        else:
            self.line(f"{kind} {name}[{size}] ALIGNED;")
        self.bytes += -(-size * dtype.itemsize // 64) * 64
        return Place(name, shape, lanes)

    # --- what becomes an array --------------------------------------------------------------------------------------

    def _plan(self, block: Block) -> None:
        """Decides which values are arrays in memory; others are computed in the loop that reads them."""
        roots: dict[Value, set[Value]] = {}
        stored = {value for op in block.operations for value in op.outputs} & set(block.outputs)
        hard: set[Value] = set()
        for op in reversed(block.operations):
            through = op.name in VIEWS and [user for out in op.outputs for user in self._uses.get(out, [])]
            for value in op.reads():
                self._uses.setdefault(value, []).extend(through or [op])
            if op.name in ELEMENTWISE:
                (out,) = op.outputs
                if out in hard or len(roots.get(out, ())) != 1:
                    stored.add(out)
                targets = {out} if out in stored else roots[out]
            elif op.name in VIEWS:
                targets = set().union(*({v} if v in stored else roots.get(v, set()) for v in op.outputs))
                moves = op.name == "broadcast_in_dim" and op.outputs[0].size > op.inputs[0].size
                moves |= op.name == "reshape" and without_ones(op.inputs[0].shape) != without_ones(op.outputs[0].shape)
                if moves or any(v in hard for v in op.outputs):
                    hard.update(op.inputs)
            else:
                targets = set(op.outputs)
                if not ((op.name.startswith("reduce_") and op.name in REDUCTIONS) or op.name == "concatenate"):
                    hard.update(op.reads())
            for value in op.inputs:
                roots.setdefault(value, set()).update(targets)
        self._stored |= stored

    def run(self, block: Block) -> None:
        self._plan(block)
        for op in block.operations:
            self._makers.update((value, op) for value in op.outputs)
            if op.outputs[0] in self._alias:
                continue
            if op.name in ELEMENTWISE | VIEWS:
                for value in op.outputs:
                    if value in self._stored:
                        self._elementwise(op, value)
            else:
                getattr(self, "_" + re.sub(r"\W", "_", _WRITERS.get(op.name, op.name)))(op)

    def copy(self, value: Value, place: Place, prefix: Index = ()) -> None:
        """Writes a value to a place."""
        if value.size == 0:
            return
        with self.loop(value.shape, lanes=place.lanes > 1) as index:
            self.line(f"{place.at([*prefix, *index])} = {self.scalar(value, index)};")

    # --- elements -------------------------------------------------------------------------------------------------

    def scalar(self, value: Value, index: Index) -> str:
        """The element of a value, as an expression."""
        if value.size == 1:
            index = [0] * len(value.shape)
        if value.known is not None:
            return self._constant(value, index)
        if value in self.places:
            return self.places[value].at(index)
        if value in self._alias:
            base, prefix = self._alias[value]
            if prefix and is_flat(index):
                place = self._contiguous(value)
                assert place is not None
                return place.at(index)
            return self.scalar(base, [*prefix, *index])
        op = self._makers[value]
        if op.name in VIEWS:
            return self._view(op, value, index)
        key = (value, tuple(index))
        if key not in self._memo:
            text = self._formula(op, index)
            if len(self._uses[value]) < 2:
                return text
            name = f"s{next(self._count)}"
            self.line(f"const {TYPES[value.dtype.name]} {name} = {text};")
            self._memo[key] = name
        return self._memo[key]

    def _constant(self, value: Value, index: Index) -> str:
        known: Any = value.known
        if value.uniform is not None:
            return literal(value.uniform)
        if all(isinstance(i, int) for i in index):
            return literal(known[tuple(index)])
        return Place(self.constants.array(known), value.shape).at(index)

    def _view(self, op: Operation, value: Value, index: Index) -> str:
        if op.name == "iota":
            return f"({TYPES[value.dtype.name]})({index[op.params['dimension']]})"
        (operand,) = op.inputs
        if is_flat(index):
            if operand.size == 1:
                return self.scalar(operand, [0] * len(operand.shape))
            place = self._contiguous(value)
            assert place is not None
            return place.at(index)
        if op.name == "reshape":
            place = self._contiguous(value)
            if place is not None:
                return place.at(index)
            return self.scalar(operand, reshaped(index, value.shape, operand.shape))
        return self.scalar(operand, operand_index(op, value, index))

    def _contiguous(self, value: Value) -> Place | None:
        """Where a view lies in memory, if in one piece."""
        if value.known is not None:
            return Place(self.constants.array(value.known), value.shape)
        place = None
        if value in self.places:
            place = self.places[value]
        elif value in self._alias:
            base, prefix = self._alias[value]
            whole = self._contiguous(base)
            if whole is not None:
                start = flat([*prefix, *[0] * len(value.shape)], base.shape)
                place = dataclasses.replace(whole, offset=plus(whole.offset, start))
        elif self._makers[value].name in ("reshape", "slice", "split"):
            op = self._makers[value]
            whole = self._contiguous(op.inputs[0])
            if whole is None:
                return None
            if op.name == "reshape":
                place = whole
            elif in_one_piece(op, value):
                start = flat(operand_index(op, value, [0] * len(value.shape)), op.inputs[0].shape)
                place = dataclasses.replace(whole, offset=plus(whole.offset, start))
        return None if place is None else dataclasses.replace(place, shape=value.shape)

    def _flattens(self, value: Value, shape: tuple[int, ...]) -> bool:
        """Whether the element of a value, in one loop over the whole shape, is where the loop is."""
        if value.size == 1:
            return True
        if value.known is not None or value in self.places:
            return True
        op = self._makers.get(value)
        if op is not None and value not in self._alias:
            if op.name in ELEMENTWISE:
                return all(self._flattens(operand, shape) for operand in op.inputs)
            if op.name == "broadcast_in_dim":
                return op.inputs[0].size == 1
        return self._contiguous(value) is not None

    def _formula(self, op: Operation, index: Index) -> str:
        def element(value):
            whole = value.shape == op.outputs[0].shape
            return self.scalar(value, index if whole else [])

        dtype = op.outputs[0].dtype
        text = self._combine(op.name, [element(v) for v in op.inputs], op.inputs[-1].dtype, dtype, op.params)
        narrow = dtype.kind in "iu" and dtype.itemsize < 4  # C computes in int
        return f"({TYPES[dtype.name]})({text})" if narrow and op.name in _WRAPS else text

    def _combine(self, name: str, x: list[str], dtype: np.dtype, out: np.dtype, params: Any) -> str:
        """The C expression of an elementwise operation on operands of a type."""
        real, f = dtype.kind == "f", suffix(dtype)
        if name in _SIGNS:
            return f"({x[0]} {_SIGNS[name]} {x[1]})"
        if name in _BITS:
            return f"({x[0]} {_BITS[name]} {x[1]})"
        if name in ("max", "min") and dtype.kind == "b":
            return f"({x[0]} {'|' if name == 'max' else '&'} {x[1]})"
        if name in ("max", "min"):
            return f"{self.constants.helper(name, dtype)}({x[0]}, {x[1]})"
        if dtype.kind == "u" and name in ("sign", "abs"):
            return f"({x[0]} != 0)" if name == "sign" else x[0]
        if name in ("sign", "logistic"):
            return f"{self.constants.helper(name, dtype)}({x[0]})"
        if name == "clamp":
            return self._combine("min", [self._combine("max", x[:2], dtype, out, {}), x[2]], dtype, out, {})
        if name == "neg":
            return f"(- {x[0]})" if x[0].startswith("-") else f"(-{x[0]})"
        if name == "abs":
            return f"fabs{f}({x[0]})" if real else f"({x[0]} < 0 ? -{x[0]} : {x[0]})"
        if name == "not":
            return f"(!{x[0]})" if dtype.kind == "b" else f"(~{x[0]})"
        if name == "rem":
            return f"fmod{f}({x[0]}, {x[1]})" if real else f"({x[0]} % {x[1]})"
        if name == "rsqrt":
            return f"({literal(dtype.type(1))} / sqrt{f}({x[0]}))"
        if name == "is_finite":
            return f"(isfinite({x[0]}) != 0)"
        if name == "round":
            even = params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN
            return f"{'rint' if even else 'round'}{f}({x[0]})"
        if name == "square":
            x[0] = self._named(x[0], dtype)
            return f"({x[0]} * {x[0]})"
        if name == "integer_pow":
            return self._power(self._named(x[0], dtype), params["y"], dtype)
        if name == "bitcast_convert_type":
            return f"{self.constants.helper('bits', dtype, out)}({x[0]})"
        if name == "convert_element_type":
            if dtype.kind == "f" and out.kind in "iu":
                return f"{self.constants.helper('whole', dtype, out)}({x[0]})"
            return f"({x[0]} != 0)" if out.kind == "b" else f"({TYPES[out.name]})({x[0]})"
        if name == "select_n":
            if len(x) == 3:
                return f"({x[0]} ? {x[2]} : {x[1]})"
            return "(" + "".join(f"{x[0]} == {i} ? {case} : " for i, case in enumerate(x[1:-1])) + x[-1] + ")"
        return f"{MATH[name]}{f}({', '.join(x)})"

    def _named(self, text: str, dtype: np.dtype) -> str:
        """A name for an expression that is read more than once."""
        if re.fullmatch(r"\w+(\[[^\[\]]*\])?", text):
            return text
        name = f"s{next(self._count)}"
        self.line(f"const {TYPES[dtype.name]} {name} = {text};")
        return name

    def _power(self, x: str, y: int, dtype: np.dtype) -> str:
        if y < 0:
            return f"({literal(dtype.type(1))} / {self._power(x, -y, dtype)})"
        if y < 2:
            return x if y else literal(dtype.type(1))
        half = self._power(x, y // 2, dtype)
        half = self._named(half, dtype) if y > 3 else half
        return f"({half} * {half}" + (f" * {x})" if y % 2 else ")")

    # --- arrays ---------------------------------------------------------------------------------------------------

    def _elementwise(self, op: Operation, value: Value) -> None:
        if value.size == 1 and not self.varies(value) and value not in self.given:
            index = [0] * len(value.shape)
            text = self._view(op, value, index) if op.name in VIEWS else self._formula(op, index)
            place = self.places[value] = Place(f"t{next(self._count)}", value.shape, plain=True)
            self.line(f"const {TYPES[value.dtype.name]} {place.name} = {text};")
            return
        whole = op.name in ELEMENTWISE and all(self._flattens(operand, value.shape) for operand in op.inputs)
        place = self.given.get(value) or self._new(value.shape, value.dtype, self.varies(value))
        with self.loop(value.shape, lanes=place.lanes > 1, flat=whole and value.size > 1) as index:
            text = self._view(op, value, index) if op.name in VIEWS else self._formula(op, index)
            self.line(f"{place.at(index)} = {text};")
        self.places[value] = place

    def _reduce(self, op: Operation) -> None:
        (operand,), (out,) = op.inputs, op.outputs
        name, axes = op.name.removeprefix("reduce_"), sorted(op.params["axes"])
        place = self.declare(out)
        lanes = place.lanes > 1
        if name in ("max", "min"):
            with self.loop(out.shape, lanes) as index:
                self.line(f"{place.at(index)} = {self.scalar(operand, inserted(index, axes, [0] * len(axes)))};")
        else:
            with self.loop(out.shape, lanes) as index:
                self.line(f"{place.at(index)} = {1 if out.dtype.kind == 'b' and name == 'and' else _START[op.name]};")
        with self.loop(out.shape) as index, self.loop([operand.shape[a] for a in axes], lanes) as inner:
            element = self.scalar(operand, inserted(index, axes, inner))
            total = self._combine(_COMBINED[name], [place.at(index), element], out.dtype, out.dtype, {})
            self.line(f"{place.at(index)} = {total};")

    def _arg(self, op: Operation) -> None:
        (operand,), (out,) = op.inputs, op.outputs
        (axis,) = op.params["axes"]
        place = self.declare(out)
        with self.loop(out.shape, place.lanes > 1) as index:
            best = f"s{next(self._count)}"
            self.line(f"{TYPES[operand.dtype.name]} {best} = {self.scalar(operand, inserted(index, [axis], [0]))};")
            self.line(f"{place.at(index)} = 0;")
            with self.scope(f"for (int j = 1; j < {operand.shape[axis]}; j++)"):
                element = self._named(self.scalar(operand, inserted(index, [axis], ["j"])), operand.dtype)
                sign = ">" if op.name == "argmax" else "<"
                nan = f" || ({element} != {element} && {best} == {best})" if operand.dtype.kind == "f" else ""
                with self.scope(f"if ({element} {sign} {best}{nan})"):
                    self.line(f"{best} = {element};")
                    self.line(f"{place.at(index)} = j;")

    def _cumulative(self, op: Operation) -> None:
        (operand,), (out,) = op.inputs, op.outputs
        axis, size = op.params["axis"], operand.shape[op.params["axis"]]
        others = [n for k, n in enumerate(operand.shape) if k != axis]
        place = self.declare(out)
        step = -1 if op.params["reverse"] else 1
        first = size - 1 if step < 0 else 0
        with self.loop(others, place.lanes > 1) as index:
            start = inserted(index, [axis], [first])
            self.line(f"{place.at(start)} = {self.scalar(operand, start)};")
        with self.loop(others) as index, self.scope(f"for (int j = 1; j < {size}; j++)"):
            with self.lane() if place.lanes > 1 else contextlib.nullcontext():
                here, before = ("j", "j - 1") if step > 0 else (f"{first} - j", f"{size} - j")
                x = [
                    place.at(inserted(index, [axis], [before])),
                    self.scalar(operand, inserted(index, [axis], [here])),
                ]
                total = self._combine(_COMBINED[op.name.removeprefix("cum")], x, out.dtype, out.dtype, {})
                self.line(f"{place.at(inserted(index, [axis], [here]))} = {total};")

    def _concatenate(self, op: Operation) -> None:
        (out,) = op.outputs
        place, axis, start = self.declare(out), op.params["dimension"], 0
        for operand in op.inputs:
            with self.loop(operand.shape, place.lanes > 1) as index:
                to = [plus(i, start) if k == axis else i for k, i in enumerate(index)]
                self.line(f"{place.at(to)} = {self.scalar(operand, index)};")
            start += operand.shape[axis]

    def _pad(self, op: Operation) -> None:
        (operand, filler), (out,) = op.inputs, op.outputs
        place = self.declare(out)
        with self.loop(out.shape, place.lanes > 1) as index:
            self.line(f"{place.at(index)} = {self.scalar(filler, [])};")
        with self.loop(operand.shape, place.lanes > 1) as index:
            config = op.params["padding_config"]
            to = [plus(times(i, inside + 1), low) for i, (low, _, inside) in zip(index, config, strict=True)]
            cut = [k for k, (low, high, _) in enumerate(config) if low < 0 or high < 0]
            test = " && ".join(f"{to[k]} >= 0 && {to[k]} < {out.shape[k]}" for k in cut)
            with self.scope(f"if ({test})") if cut else contextlib.nullcontext():
                self.line(f"{place.at(to)} = {self.scalar(operand, index)};")

    def _starts(self, starts: list[Value], shape: Sequence[int], sizes: Sequence[int]) -> list[int | str]:
        """Where slices start, moved so that they fit, as XLA does."""
        found: list[int | str] = []
        for start, n, size in zip(starts, shape, sizes, strict=True):
            if n == size:
                found.append(0)
            elif start.known is not None:
                found.append(int(np.clip(start.known, 0, n - size)))
            else:
                found.append(f"{self.constants.helper('clip', start.dtype)}({self.scalar(start, [])}, {n - size})")
        return found

    def _dynamic_slice(self, op: Operation) -> None:
        operand, *starts = op.inputs
        (out,) = op.outputs
        place = self.declare(out)
        with self.loop(out.shape, place.lanes > 1) as index:
            offsets = self._starts(starts, operand.shape, out.shape)
            at = [plus(start, i) for start, i in zip(offsets, index, strict=True)]
            self.line(f"{place.at(index)} = {self.scalar(operand, at)};")

    def _dynamic_update_slice(self, op: Operation) -> None:
        operand, update, *starts = op.inputs
        place = self.declare(op.outputs[0])
        self.copy(operand, place)
        with self.loop(update.shape, place.lanes > 1) as index:
            offsets = self._starts(starts, operand.shape, update.shape)
            at = [plus(start, i) for start, i in zip(offsets, index, strict=True)]
            self.line(f"{place.at(at)} = {self.scalar(update, index)};")

    def _gather(self, op: Operation) -> None:
        (operand, indices), (out,) = op.inputs, op.outputs
        numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
        place = self.declare(out)
        with self.loop(out.shape, place.lanes > 1) as index:
            batch = [i for k, i in enumerate(index) if k not in numbers.offset_dims]
            window = iter([index[k] for k in numbers.offset_dims])
            fixed = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
            at: list[int | str] = [0 if k in fixed else next(window) for k in range(len(operand.shape))]
            for k, j in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
                at[k] = batch[j]
            inside = self._from_indices(at, indices, batch, numbers.start_index_map, operand.shape, sizes)
            element = self.scalar(operand, at)
            if op.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP and inside:
                element = f"({' && '.join(inside)} ? {element} : {literal(filler(op.params, out.dtype))})"
            self.line(f"{place.at(index)} = {element};")

    def _from_indices(self, at, indices, batch, dims, shape, sizes) -> list[str]:
        """Adds to places what an array of indices says, moved into the array; and what tells that it was inside."""
        clip, inside = self.constants.helper("clip", indices.dtype), []
        for j, dim in enumerate(dims):
            start = self._named(self.scalar(indices, [*batch, j]), indices.dtype)
            high = shape[dim] - sizes[dim]
            at[dim] = plus(f"{clip}({start}, {high})", at[dim])
            inside.append(f"{start} >= 0 && {start} <= {high}" if indices.dtype.kind == "i" else f"{start} <= {high}")
        return inside

    def _scatter(self, op: Operation) -> None:
        operand, indices, updates = op.inputs
        (out,) = op.outputs
        numbers, place = op.params["dimension_numbers"], self.declare(out)
        self.copy(operand, place)
        with self.loop(updates.shape, place.lanes > 1) as index:
            batch = [i for k, i in enumerate(index) if k not in numbers.update_window_dims]
            window = iter(numbers.update_window_dims)
            fixed = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
            dims: list[Any] = [None if k in fixed else next(window) for k in range(len(operand.shape))]
            sizes = [1 if k is None else updates.shape[k] for k in dims]
            at: list[int | str] = [0 if k is None else index[k] for k in dims]
            for k, j in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
                at[k] = batch[j]
            to = numbers.scatter_dims_to_operand_dims
            inside = self._from_indices(at, indices, batch, to, operand.shape, sizes)
            drop = op.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP and inside
            with self.scope(f"if ({' && '.join(inside)})") if drop else contextlib.nullcontext():
                sign = "+=" if op.name == "scatter-add" else "="
                self.line(f"{place.at(at)} {sign} {self.scalar(updates, index)};")

    # --- products -------------------------------------------------------------------------------------------------

    def _dot_general(self, op: Operation) -> None:
        """A product: `out[o] += left[k] * right[k, o]`, the innermost loop over what lies side by side in memory."""
        (left, right), (out,) = op.inputs, op.outputs
        (lc, rc), (lb, rb) = op.params["dimension_numbers"]
        lf = [k for k in range(len(left.shape)) if k not in (*lc, *lb)]
        rf = [k for k in range(len(right.shape)) if k not in (*rc, *rb)]
        summed = [left.shape[k] for k in lc]
        batch, rows = len(lb), len(lf)
        added, start = self._added(out)
        place = self.declare(added)
        if added is not out:
            self._alias[added] = (out, [])
            self.places[out] = place

        def product(index, k):
            """One term, at an index of the output and one of the contracted axes."""

            def element(value, batches, free, contracted, own):
                at: dict[int, int | str] = dict(zip(batches, index[:batch], strict=True))
                at |= dict(zip(free, own, strict=True)) | dict(zip(contracted, k, strict=True))
                text = self.scalar(value, [at[d] for d in range(len(value.shape))])
                return text if value.dtype == out.dtype else f"({TYPES[out.dtype.name]}){text}"

            return " * ".join(
                (
                    element(left, lb, lf, lc, index[batch : batch + rows]),
                    element(right, rb, rf, rc, index[batch + rows :]),
                )
            )

        def first(index):
            return "0" if start is None else self.scalar(start, index)

        if place.lanes > 1:
            # Constants as below: where the terms of a sum lay side by side, compilers would run over these, not lanes.
            left, right = self._side_by_side(left, lb, lc, lf), self._side_by_side(right, rb, rc, rf)
            with self.loop(out.shape) as index:
                total = Place(f"a{next(self._count)}", (), self.lanes)
                self.line(f"{TYPES[out.dtype.name]} {total.name}[{self.lanes}] ALIGNED;")
                with self.lane():
                    self.line(f"{total.at([])} = {first(index)};")
                with self.loop(summed, lanes=True) as k:
                    self.line(f"{total.at([])} += {product(index, k)};")
                with self.lane():
                    self.line(f"{place.at(index)} = {total.at([])};")
            return
        # The innermost loop runs over the free axes of the operand that has more of them: of constants, in their order.
        inner = list(range(batch + rows, len(out.shape)))
        if math.prod(out.shape[k] for k in inner) < math.prod(out.shape[batch : batch + rows]):
            inner = list(range(batch, batch + rows))
            left = self._side_by_side(left, lb, lc, lf)
        else:
            right = self._side_by_side(right, rb, rc, rf)
        outer = [k for k in range(len(out.shape)) if k not in inner]
        sizes, last = [out.shape[k] for k in inner], summed[-1] if summed else 1

        def statements(around, k, count, start=None):
            """`count` terms at once, from `k`, so that additions wait less for one another."""
            with self.loop(sizes) as own:
                index = merged(around, outer, own, inner)
                terms = [product(index, [*k[:-1], plus(k[-1], j)] if k else []) for j in range(count)]
                if start is not None:
                    self.line(f"{place.at(index)} = {' + '.join([start(index), *terms])};")
                else:
                    self.line(f"{place.at(index)} += {' + '.join(terms)};")

        with self.loop([out.shape[k] for k in outer]) as around:
            if math.prod(summed) == last <= _AT_ONCE:
                statements(around, [0] * len(summed), last, first)
                return
            statements(around, [0] * len(summed), 0, first)
            with self.loop(summed[:-1]) as k:
                whole = last - last % _AT_ONCE
                if whole:
                    with self.scope(f"for (int k = 0; k < {whole}; k += {_AT_ONCE})"):
                        statements(around, [*k, "k"], _AT_ONCE)
                if last % _AT_ONCE:
                    statements(around, [*k, whole], last % _AT_ONCE)

    def _side_by_side(self, value: Value, batches: Any, contracted: Any, free: Any) -> Value:
        """A constant with its free axes last in memory, as a view of which it is read."""
        order = [*batches, *contracted, *free]
        if value.known is None or value.uniform is not None or order == sorted(order):
            return value
        turned = np.ascontiguousarray(np.transpose(value.known, order))
        base = Value(turned.shape, turned.dtype, turned)
        view = Value(value.shape, value.dtype)
        back = tuple(int(k) for k in np.argsort(order))
        self._makers[view] = Operation("transpose", [base], [view], {"permutation": back})
        return view

    def _added(self, out: Value) -> tuple[Value, Value | None]:
        """The sum of a product and a bias, where that is all the product is for, and the bias, from which it starts."""
        uses = self._uses.get(out, [])
        if len(uses) == 1 and uses[0].name == "add" and out in uses[0].inputs and out not in self._stored:
            (bias,) = [v for v in uses[0].inputs if v is not out]
            if self._ready(bias):
                return uses[0].outputs[0], bias
        return out, None

    def _ready(self, value: Value) -> bool:
        if value.known is not None or value in self.places:
            return True
        if value in self._alias:
            return self._ready(self._alias[value][0])
        op = self._makers.get(value)
        return op is not None and op.name in VIEWS and all(map(self._ready, op.inputs))

    def _conv_general_dilated(self, op: Operation) -> None:
        (x, kernel), (out,) = op.inputs, op.outputs
        p = op.params
        numbers, groups = p["dimension_numbers"], p["feature_group_count"]
        if p["batch_group_count"] != 1:
            raise ValueError("C source has no convolution with batch_group_count; export this model as StableHLO")
        xs, ks, os = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        place = self.declare(out)
        lanes = place.lanes > 1
        features, per_group = kernel.shape[ks[0]] // groups, kernel.shape[ks[1]]
        window = [kernel.shape[k] for k in ks[2:]]
        with self.loop([out.shape[os[0]], *(out.shape[k] for k in os[2:])]) as (b, *spatial):
            with self.loop([out.shape[os[1]]], lanes) as (o,):
                self.line(f"{place.at(by_specification(os, [b, o, *spatial]))} = 0;")
            with self.loop(window) as taps:
                at, tests = self._window(spatial, taps, [x.shape[k] for k in xs[2:]], p, "rhs_dilation", "lhs_dilation")
                with self.scope(f"if ({' && '.join(tests)})") if tests else contextlib.nullcontext():
                    with self.loop([groups, per_group, features], lanes) as (g, c, o):
                        source = self.scalar(x, by_specification(xs, [b, plus(times(g, per_group), c), *at]))
                        o = plus(times(g, features), o)
                        weight = self.scalar(kernel, by_specification(ks, [o, c, *taps]))
                        self.line(f"{place.at(by_specification(os, [b, o, *spatial]))} += {source} * {weight};")

    def _window(self, index, taps, shape, params, dilation: str, base: str) -> tuple[list[int | str], list[str]]:
        """Where a tap of a window reads, and the tests that it is no padding."""
        at, tests = [], []
        strides, between, apart = params["window_strides"], params[dilation], params[base]
        for i, tap, n, stride, d, a, (low, high) in zip(
            index, taps, shape, strides, between, apart, params["padding"], strict=True
        ):
            where = plus(times(i, stride), times(tap, d), -low)
            if low > 0 or high > 0 or a > 1:
                tests.append(
                    f"{where} >= 0 && {where} < {(n - 1) * a + 1}" + (f" && ({where}) % {a} == 0" if a > 1 else "")
                )
            at.append(where if a == 1 else f"({where}) / {a}")
        return at, [test for test in tests if test]

    def _reduce_window(self, op: Operation) -> None:
        (x,), (out,) = op.inputs, op.outputs
        name = op.name.removeprefix("reduce_window_")
        place = self.declare(out)
        lanes = place.lanes > 1
        low = np.finfo(out.dtype).min if out.dtype.kind == "f" else np.iinfo(out.dtype).min
        start = "0" if name == "sum" else "-INFINITY" if out.dtype.kind == "f" else literal(out.dtype.type(low))
        with self.loop(out.shape, lanes) as index:
            self.line(f"{place.at(index)} = {start};")
        with self.loop(out.shape) as index, self.loop(op.params["window_dimensions"]) as taps:
            at, tests = self._window(index, taps, x.shape, op.params, "window_dilation", "base_dilation")
            with self.scope(f"if ({' && '.join(tests)})") if tests else contextlib.nullcontext():
                with self.lane() if lanes else contextlib.nullcontext():
                    x_here = [place.at(index), self.scalar(x, at)]
                    total = self._combine(_COMBINED[name], x_here, out.dtype, out.dtype, {})
                    self.line(f"{place.at(index)} = {total};")

    # --- loops ----------------------------------------------------------------------------------------------------

    def _carry(self, inputs: list[Value], outputs: list[Value], body: Block) -> list[Place]:
        places = []
        for start, result, value in zip(inputs, outputs, body.inputs, strict=False):
            place = self.declare(result, like=value)
            self.places[value] = place
            self.copy(start, place)
            places.append(place)
        return places

    def _advance(self, body: Block, places: list[Place]) -> None:
        """The results of a step become the carry; those that are other parts of the carry are saved before."""
        moved = []
        for place, result, value in zip(places, body.outputs, body.inputs, strict=False):
            if result is value:
                continue
            if result in body.inputs:
                saved = Value(result.shape, result.dtype)
                if result in self.varying:
                    self.varying.add(saved)
                self.copy(result, self.declare(saved))
                result = saved
            moved.append((result, place))
        for result, place in moved:
            self.copy(result, place)

    def _scan(self, op: Operation) -> None:
        (body,), carried, length = op.blocks, op.params["carried"], op.params["length"]
        places = self._carry(op.inputs[:carried], op.outputs[:carried], body)
        stacked = [self.declare(value) for value in op.outputs[carried:]]
        step = f"n{next(self._count)}"
        with self.scope(f"for (int {step} = 0; {step} < {length}; {step}++)"):
            at = f"{length - 1} - {step}" if op.params["reverse"] else step
            for value, xs in zip(body.inputs[carried:], op.inputs[carried:], strict=True):
                self._alias[value] = (xs, [at])
            self.run(body)
            for value, place in zip(body.outputs[carried:], stacked, strict=True):
                self.copy(value, place, [at])
            self._advance(body, places)

    def _while(self, op: Operation) -> None:
        test, body = op.blocks
        places = self._carry(op.inputs, op.outputs, body)
        self.places.update(zip(test.inputs, places, strict=True))
        with self.scope("for (;;)"):
            self.run(test)
            self.line(f"if (!({self.scalar(test.outputs[0], [])})) break;")
            self.run(body)
            self._advance(body, places)

    def _cond(self, op: Operation) -> None:
        places = [self.declare(value) for value in op.outputs]
        which = self.scalar(op.inputs[0], [])
        for i, block in reversed(list(enumerate(op.blocks))):  # out of range is the nearest one
            test = f"{which} >= {i}" if op.inputs[0].dtype.kind != "b" else which
            head = f"if ({test})" if i == len(op.blocks) - 1 else f"else if ({test})" if i else "else"
            with self.scope(head):
                self.run(block)
                for value, place in zip(block.outputs, places, strict=True):
                    self.copy(value, place)


_AT_ONCE = 4
_WRITERS = {name: "reduce" for name in REDUCTIONS if name.startswith("reduce_")} | {"scatter-add": "scatter"}
_WRITERS |= {
    "argmax": "arg",
    "argmin": "arg",
    "reduce_window_max": "reduce_window",
    "reduce_window_sum": "reduce_window",
}
_WRITERS |= {name: "cumulative" for name in REDUCTIONS if name.startswith("cum")}


def varying(block: Block, inputs: Iterable[Value]) -> set[Value]:
    """The values that depend on some of the inputs."""
    found = set(inputs)

    def run(block):
        for op in block.operations:
            if op.name == "scan":
                body, carried = op.blocks[0], op.params["carried"]
                found.update(v for v, outer in zip(body.inputs, op.inputs, strict=True) if outer in found)
                before = -1
                while before != len(found):
                    before = len(found)
                    run(body)
                    pairs = zip(body.inputs[:carried], body.outputs[:carried], strict=True)
                    found.update(v for v, result in pairs if result in found)
                results = [*body.inputs[:carried], *body.outputs[carried:]]
                found.update(v for v, result in zip(op.outputs, results, strict=True) if result in found)
            elif any(value in found for value in op.reads()):
                found.update(op.outputs)

    run(block)
    return found
