"""symbolic: a small layer as SymPy's expressions of its inputs."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._libraries import library
from .._tree import describe
from ..core import Layer
from ..core.converters import checks_itself


@checks_itself
def symbolic(layer: Callable[..., Any], ps: Any = None, st: Any = None, variables: Sequence[Any] = ("x",)) -> Any:
    """A layer as SymPy's expressions: a small net, a basis, a KAN.

    * `layer`, `ps`, `st`: a layer, its parameters, which become numbers, and its state; or a function of one array,
      alone.
    * `variables`: the names of the elements of the input, an array `(len(variables),)`; or SymPy's symbols.

    Returns one expression where the output is one number, `()`, else a nested tuple of them, in the shape of the
    output. It is what JAX computes, operation by operation, so that its values are those of the layer up to rounding;
    `sympy.N(expression, 3)` rounds its coefficients. Choices become `Piecewise`, as of B-splines, or `Max`, as of
    `relu`. Deep nets become long; for a short form of what a net has learned, see `sparse_regression`.

    Raises `ValueError` for operations that have no expression, such as lookups at positions that the input decides,
    and for two variables of one name, `TypeError` for variables that are no names, `ImportError` without SymPy:
    `pip install lux-sciml[symbolic]`. A net of one unit:

    >>> import lux_sciml as lux
    >>> net = lux.Chain(lux.Dense(2, 1, jnp.tanh), lux.Dense(1, 1, use_bias=False))
    >>> ps, st = lux.setup(jax.random.key(0), net)
    >>> ps = ps.replace(layer_0={"weight": [[2.0], [-1.0]], "bias": [0.5]}, layer_1={"weight": [[3.0]]})
    >>> symbolic(net, ps, st, ("x", "y"))  # doctest: +SKIP
    (3*tanh(2*x - y + 0.5),)
    """
    from ..export.lowering import lower  # a long room, imported when it is asked for

    sympy = library("sympy", "lux-sciml[symbolic]")

    if isinstance(variables, str) or not all(isinstance(name, str | sympy.Symbol) for name in variables):
        raise TypeError(f'variables are a tuple of names, ("x", "y"), got {variables!r}')
    if len(set(map(str, variables))) != len(variables):
        raise ValueError(f"variables have different names, got {variables!r}")
    if not callable(layer):
        raise TypeError(f"symbolic takes a layer, or a function of one array, got {describe(layer)}")

    def function(x):
        out = layer(x, ps, st)[0] if isinstance(layer, Layer) else layer(x)
        if len(jax.tree.leaves(out)) != 1 or not hasattr(out, "shape"):
            raise TypeError(f"symbolic takes a layer whose output is one array, got {describe(out)}")
        return [out]

    words = _Words(sympy)
    spec = jax.ShapeDtypeStruct((len(variables),), jnp.zeros(()).dtype)
    block = lower(function, spec, supported=words.supported, to="SymPy", otherwise=_OTHERWISE)
    symbols = [sympy.Symbol(name, real=True) if isinstance(name, str) else name for name in variables]
    (out,) = _run(words, block, [np.array(symbols, object)], {})
    return _nested(np.asarray(out, object).tolist())


_OTHERWISE = (
    "symbolic is for layers of functions and bases; what is looked up at positions that the input decides has no "
    "expression"
)


def _nested(x: Any) -> Any:
    return tuple(map(_nested, x)) if isinstance(x, list) else x


def _run(words: "_Words", block: Any, inputs: list[Any], outer: Mapping[Any, Any]) -> list[Any]:
    """The outputs of a block of operations on arrays of expressions; `outer` are values from outside of it."""
    values = {**outer, **dict(zip(block.inputs, inputs, strict=True))}

    def read(value):
        if value not in values:
            values[value] = words.numbers(value.known)
        return values[value]

    for op in block.operations:
        arrays = [read(value) for value in op.inputs]
        if op.name == "scan":
            results = _scan(words, op, arrays, {value: read(value) for value in op.reads()})
        else:
            results = words.apply(op, arrays)
        values.update(zip(op.outputs, results, strict=True))
    return [read(value) for value in block.outputs]


def _scan(words: "_Words", op: Any, arrays: list[np.ndarray], outer: dict[Any, np.ndarray]) -> list[np.ndarray]:
    """A loop over layers, unrolled."""
    carried, (body,) = op.params["carried"], op.blocks
    carry, stacks = arrays[:carried], []
    steps = range(op.params["length"])
    for i in reversed(steps) if op.params["reverse"] else steps:
        out = _run(words, body, [*carry, *(xs[i] for xs in arrays[carried:])], outer)
        carry = out[: len(out) - (len(op.outputs) - carried)]
        stacks.append(out[carried:])
    stacks = stacks[::-1] if op.params["reverse"] else stacks
    return [*carry, *(_stacked(column) for column in zip(*stacks, strict=True))]


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([np.asarray(part, object) for part in parts])


class _Words:
    """What each operation of `export.lowering` is in SymPy."""

    def __init__(self, sympy: Any):
        self.sympy = sympy
        one = sympy.Integer(1)
        self.elementwise: dict[str, Callable[..., Any]] = {
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul": lambda a, b: a * b,
            "div": lambda a, b: a / b,
            "pow": lambda a, b: a**b,
            "neg": lambda a: -a,
            "square": lambda a: a**2,
            "rsqrt": lambda a: 1 / sympy.sqrt(a),
            "cbrt": lambda a: sympy.sign(a) * sympy.Abs(a) ** (one / 3),
            "exp2": lambda a: 2**a,
            "log1p": lambda a: sympy.log(1 + a),
            "expm1": lambda a: sympy.exp(a) - 1,
            "logistic": lambda a: 1 / (1 + sympy.exp(-a)),
            "is_finite": lambda a: sympy.true,
            "max": sympy.Max,
            "min": sympy.Min,
            "clamp": lambda low, x, high: sympy.Min(sympy.Max(x, low), high),
            "eq": sympy.Eq,
            "ne": sympy.Ne,
            "lt": sympy.Lt,
            "le": sympy.Le,
            "gt": sympy.Gt,
            "ge": sympy.Ge,
            "and": sympy.And,
            "or": sympy.Or,
            "not": sympy.Not,
            "abs": sympy.Abs,
            "floor": sympy.floor,
            "ceil": sympy.ceiling,
        }
        for (
            name
        ) in "sign exp log sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh sqrt erf erfc".split():
            self.elementwise[name] = getattr(sympy, name)
        self.supported = {*self.elementwise, *_ARRAYS, "integer_pow", "convert_element_type", "select_n", "scan"}

    def numbers(self, known: np.ndarray) -> np.ndarray:
        """A known array; whole numbers as such, so that those that are 0 and 1 do not show."""

        def number(x):
            if isinstance(x, bool):
                return self.sympy.true if x else self.sympy.false
            return self.sympy.Integer(int(x)) if abs(x) < 2**53 and float(x).is_integer() else self.sympy.Float(x)

        return _each(number, np.asarray(known).astype(object))

    def apply(self, op: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
        name, params, (out, *_) = op.name, op.params, op.outputs
        if out.dtype.kind in "iu":
            if name in ("and", "or", "not"):
                raise ValueError(f"SymPy has no translation of {name!r} of the bits of integers; {_OTHERWISE}")
            if name == "div":  # towards zero
                return [_each(lambda a, b: self._truncated(a / b), *arrays)]
        if name in self.elementwise:
            return [_each(self.elementwise[name], *arrays)]
        if name == "integer_pow":
            return [_each(lambda a: a ** params["y"], *arrays)]
        if name == "convert_element_type":
            return [_each(self._converter(op.inputs[0].dtype, out.dtype), *arrays)]
        if name == "select_n":
            return [_each(self._chosen, *arrays)]
        return _ARRAYS[name](self, op, *arrays)

    def _converter(self, dtype: np.dtype, to: np.dtype) -> Callable[[Any], Any]:
        sympy = self.sympy
        if dtype.kind == "b" and to.kind != "b":
            return lambda a: sympy.Piecewise((1, a), (0, True))
        if to.kind == "b" and dtype.kind != "b":
            return lambda a: sympy.Ne(a, 0)
        if to.kind in "iu" and dtype.kind == "f":
            return self._truncated
        return lambda a: a

    def _truncated(self, a: Any) -> Any:
        return self.sympy.sign(a) * self.sympy.floor(self.sympy.Abs(a))

    def _chosen(self, which: Any, *cases: Any) -> Any:
        sympy = self.sympy
        if isinstance(which, sympy.logic.boolalg.Boolean):
            return sympy.Piecewise((cases[1], which), (cases[0], True))
        parts = [(case, sympy.Eq(which, i)) for i, case in enumerate(cases[:-1])]
        return sympy.Piecewise(*parts, (cases[-1], True))


def _each(function: Callable[..., Any], *arrays: Any) -> np.ndarray:
    out = np.frompyfunc(function, len(arrays), 1)(*arrays)
    return np.asarray(out, object)


def _broadcast(words: _Words, op: Any, x: np.ndarray) -> list[np.ndarray]:
    shape = [1] * len(op.outputs[0].shape)
    for axis, n in zip(op.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = n
    return [np.broadcast_to(x.reshape(shape), op.outputs[0].shape)]


def _slice(words: _Words, op: Any, x: np.ndarray) -> list[np.ndarray]:
    p = op.params
    strides = p["strides"] or [1] * x.ndim
    return [x[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]]


def _split(words: _Words, op: Any, x: np.ndarray) -> list[np.ndarray]:
    ends = list(itertools.accumulate(op.params["sizes"]))[:-1]
    return np.split(x, ends, axis=op.params["axis"])


def _pad(words: _Words, op: Any, x: np.ndarray, filler: np.ndarray) -> list[np.ndarray]:
    out = np.full(op.outputs[0].shape, filler.item(), object)
    for at in np.ndindex(*x.shape):
        to = tuple(low + i * (inside + 1) for i, (low, _, inside) in zip(at, op.params["padding_config"], strict=True))
        if all(0 <= i < n for i, n in zip(to, out.shape, strict=True)):
            out[to] = x[at]
    return [out]


def _dot(words: _Words, op: Any, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    (left, right), (left_batch, right_batch) = op.params["dimension_numbers"]
    letters: Iterator[int] = itertools.count()
    first, second = [next(letters) for _ in a.shape], [next(letters) for _ in b.shape]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        second[j] = first[i]
    batch = [first[i] for i in left_batch]
    rest = [x for i, x in enumerate(first) if i not in (*left, *left_batch)]
    rest += [x for j, x in enumerate(second) if j not in (*right, *right_batch)]
    return [np.asarray(np.einsum(a, first, b, second, [*batch, *rest]), object)]


def _reduced(pair: Callable[[_Words], Callable[..., Any]]) -> Callable[..., list[np.ndarray]]:
    def reduce(words, op, x):
        axes = tuple(op.params["axes"])
        moved = np.moveaxis(x, axes, range(len(axes)))
        moved = moved.reshape(-1, *moved.shape[len(axes) :])
        return [_each(lambda *parts: pair(words)(*parts), *moved)]

    return reduce


def _cumulative(function: np.ufunc) -> Callable[..., list[np.ndarray]]:
    def accumulate(words, op, x):
        axis = op.params["axis"]
        x = np.flip(x, axis) if op.params["reverse"] else x
        out = function.accumulate(x, axis=axis)
        return [np.flip(out, axis) if op.params["reverse"] else out]

    return accumulate


_ARRAYS: dict[str, Callable[..., list[np.ndarray]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda words, op, x: [x.reshape(op.outputs[0].shape)],
    "transpose": lambda words, op, x: [x.transpose(op.params["permutation"])],
    "rev": lambda words, op, x: [np.flip(x, op.params["dimensions"])],
    "slice": _slice,
    "split": _split,
    "concatenate": lambda words, op, *xs: [np.concatenate(xs, axis=op.params["dimension"])],
    "pad": _pad,
    "dot_general": _dot,
    "cumsum": _cumulative(np.add),
    "cumprod": _cumulative(np.multiply),
    "reduce_sum": _reduced(lambda words: lambda *xs: words.sympy.Add(*xs)),
    "reduce_prod": _reduced(lambda words: lambda *xs: words.sympy.Mul(*xs)),
    "reduce_max": _reduced(lambda words: words.sympy.Max),
    "reduce_min": _reduced(lambda words: words.sympy.Min),
    "reduce_and": _reduced(lambda words: words.sympy.And),
    "reduce_or": _reduced(lambda words: words.sympy.Or),
}
