"""What an ONNX graph is made of: nodes, constants, and sizes that are known when it runs."""

import itertools
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from .plain_program import NoForm


class Writer:
    """An ONNX graph on its way. Values are known by their names, which are unique in the graph and all inside of it.

    Constants are those of the whole graph. A value may still have sizes of one where the program has others: it is
    `loose`, as long as only operations use it that broadcast by themselves.
    """

    def __init__(self, onnx: Any, taken: Collection[str]):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.first: list[Any] = []  # nodes that compute sizes, before all others
        self.constants: dict[str, Any] = {}
        self.loose: set[str] = set()
        self.used: set[str] = set()
        self._known: dict[Any, str] = {}  # names of constants and sizes
        self._symbols: dict[str, str] = {}
        self._names = (name for i in itertools.count() if (name := f"v{i}") not in taken)

    def name(self) -> str:
        """One that nothing has yet."""
        return next(self._names)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """What an operator gives."""
        return self.several(kind, *inputs, outputs=1, **attributes)[0]

    def several(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """What an operator of several outputs gives."""
        names = [self.name() for _ in range(outputs)]
        self.used.update(inputs)
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, **attributes))
        return names

    def constant(self, value: Any, dtype: Any = None) -> str:
        array = np.asarray(value, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = self.name()
            self.constants[name] = array
        return self._known[key]

    def ints(self, values: Any) -> str:
        return self.constant(list(values), np.int64)

    def cast(self, x: str, dtype: Any) -> str:
        return self.node("Cast", x, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    # --- sizes ----------------------------------------------------------------------------------------------------

    def symbol(self, text: str, source: str, axis: int) -> None:
        """Sizes that are called so are those of this axis of an input."""
        if text not in self._symbols:
            self._symbols[text] = name = self.name()
            self.first.append(self.onnx.helper.make_node("Shape", [source], [name], start=axis, end=axis + 1))

    def size(self, n: Any) -> str:
        """A size as a vector of one, from a polynomial of symbols such as `4*batch + 1`."""
        if isinstance(n, int):
            return self.ints([n])
        text = str(n)
        if text not in self._known:
            outside, self.nodes = self.nodes, self.first
            terms = [self._product(term) for term in text.replace("- ", "+ -1*").removeprefix("+ ").split(" + ")]
            while len(terms) > 1:
                terms.append(self.node("Add", terms.pop(), terms.pop()))
            self.nodes, self._known[text] = outside, terms[0]
        return self._known[text]

    def _product(self, text: str) -> str:
        factors = []
        for factor in text.split("*"):
            base, _, power = factor.partition("^")
            if base not in self._symbols and not re.fullmatch(r"-?\d+", base):
                raise NoForm(f"a size {text!r} in the middle of it")
            name = self._symbols[base] if base in self._symbols else self.ints([int(base)])
            factors += [name] * int(power or 1)
        while len(factors) > 1:
            factors.append(self.node("Mul", factors.pop(), factors.pop()))
        return factors[0]

    def shape(self, sizes: Any) -> str:
        if all(isinstance(n, int) for n in sizes):
            return self.ints(sizes)
        key = ("shape", tuple(map(str, sizes)))
        if key not in self._known:
            parts = list(map(self.size, sizes))
            self._known[key] = name = self.name()
            self.first.append(self.onnx.helper.make_node("Concat", parts, [name], axis=0))
            self.used.update(parts)
        return self._known[key]

    # --- values ---------------------------------------------------------------------------------------------------

    def full(self, x: str, sizes: Any) -> str:
        """A value that has all its sizes."""
        if x not in self.loose or (x in self.constants and self.constants[x].shape == tuple(sizes)):
            return x
        return self.node("Expand", x, self.shape(sizes))

    def transposed(self, x: str, order: Any) -> str:
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return x
        if x in self.constants:
            return self.constant(np.transpose(self.constants[x], order))
        return self.node("Transpose", x, perm=order)

    def reshaped(self, x: str, sizes: Any) -> str:
        if sum(not isinstance(n, int) for n in sizes) == 1 and 0 not in sizes:
            shape = self.ints([n if isinstance(n, int) else -1 for n in sizes])
        else:
            shape = self.shape(sizes)
        return self.node("Reshape", x, shape, allowzero=1) if 0 in sizes else self.node("Reshape", x, shape)

    def sliced(self, x: str, axis: int, start: str, end: str, step: int = 1) -> str:
        return self.node("Slice", x, start, end, self.ints([axis]), self.ints([step]))

    def flipped(self, x: str, axes: Any) -> str:
        back, beyond = self.ints([-1] * len(axes)), self.ints([np.iinfo(np.int64).min] * len(axes))
        return self.node("Slice", x, back, beyond, self.ints(axes), back)

    def chosen(self, which: str, if_true: str, if_false: str, dtype: Any) -> str:
        """Elements of one value or of another; booleans by logic, for onnxruntime selects none."""
        if np.dtype(dtype) != bool:
            return self.node("Where", which, if_true, if_false)
        other = self.node("And", self.node("Not", which), if_false)
        return self.node("Or", self.node("And", which, if_true), other)

    # --- graphs inside ---------------------------------------------------------------------------------------------

    def subgraph(self, inputs: list[tuple[str, Any]], run: Callable[[], list[str]], avals: Any) -> Any:
        """A graph inside this one, whose outputs, what `run` returns, are like `avals`."""
        outside, self.nodes = self.nodes, []
        outputs = [self.node("Identity", name) for name in run()]
        nodes, self.nodes = self.nodes, outside
        describe = self.described
        return self.onnx.helper.make_graph(
            nodes,
            "inside",
            [describe(name, aval) for name, aval in inputs],
            [describe(name, aval) for name, aval in zip(outputs, avals, strict=True)],
        )

    def described(self, name: str, aval: Any, named: bool = False) -> Any:
        """Name, type and sizes of a value; symbolic sizes are unknown ones unless `named`."""
        sizes = [n if isinstance(n, int) else str(n) if named else None for n in aval.shape]
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, sizes)
