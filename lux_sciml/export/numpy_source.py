"""Models as Python source that needs nothing but NumPy."""

import json
import keyword
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..components.replacing import replacing
from .function import PlainFunction, plain_function
from .lowering import (
    CONVOLUTIONS,
    ELEMENTWISE,
    LOOPS,
    OTHERS,
    REDUCTIONS,
    VIEWS,
    Block,
    Operation,
    Value,
    filler,
    lower,
)
from .metadata import require_not_foreign
from .plain_solves import plain_solves

SUPPORTED = ELEMENTWISE | VIEWS | REDUCTIONS | LOOPS | OTHERS | CONVOLUTIONS | {"dim_as_value"}

_SAME = "exp exp2 log log1p expm1 sin cos tan sinh cosh tanh sqrt cbrt floor ceil sign abs square nextafter"
_FUNCTIONS = {name: f"np.{name}" for name in _SAME.split()}
_FUNCTIONS |= {"asin": "np.arcsin", "acos": "np.arccos", "atan": "np.arctan", "atan2": "np.arctan2"}
_FUNCTIONS |= {"asinh": "np.arcsinh", "acosh": "np.arccosh", "atanh": "np.arctanh", "is_finite": "np.isfinite"}
_FUNCTIONS |= {"max": "np.maximum", "min": "np.minimum", "rem": "np.fmod"}
_HELPERS = {
    "logistic": """@np.errstate(over="ignore")
def logistic(x):
    return 1 / (1 + np.exp(-x))""",
    "erf": """def erf(x):
    return np.vectorize(math.erf, otypes=[x.dtype])(x)""",
    "erfc": """def erfc(x):
    return np.vectorize(math.erfc, otypes=[x.dtype])(x)""",
    "floordiv": """def floordiv(a, b):
    return a // b""",
    "mod": """def mod(a, b):
    return a % b""",
    "whole": """def whole(x, dtype):
    least, top = np.iinfo(dtype).min, 2.0 ** (8 * np.dtype(dtype).itemsize - (np.iinfo(dtype).min < 0))
    near = np.where((x >= least) & (x < top), x, 0).astype(dtype)
    return np.where(x >= top, np.iinfo(dtype).max, np.where(x < least, least, near)).astype(dtype)""",
    "rounded": """def rounded(x):
    return np.trunc(x) + np.sign(x) * (np.abs(x - np.trunc(x)) >= 0.5)""",
    "quotient": """def quotient(a, b):
    return a // b + ((a % b != 0) & ((a < 0) != (b < 0)))""",
    "clip_start": """def clip_start(start, size, n):
    return min(max(int(start), 0), n - size)""",
}
_TAKEN = {"np", "math", "METADATA", "bool", "range", "reversed", "min", "max", "int", *_HELPERS}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "and": "&", "or": "|", "xor": "^"}
_INFIX |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_REDUCED = {"sum": "sum", "prod": "prod", "max": "max", "min": "min", "and": "all", "or": "any"}
_CUMULATIVE = {"sum": "np.add", "prod": "np.multiply", "max": "np.maximum", "min": "np.minimum"}
_WARNING = frozenset("div log log1p exp exp2 expm1 sqrt rsqrt pow integer_pow rem atanh acosh asin acos".split())
_LONGEST = 100  # characters of an expression, beyond which it gets a name


def numpy_source(
    path: str | os.PathLike[str],
    model: Any,
    ps: Any = None,
    st: Any = None,
    x: Any = None,
    *,
    batch_axis: Any = 0,
    params: str = "constant",
    names: Mapping[str, str] | None = None,
    name: str = "forward",
) -> None:
    """Write a layer or a function as a Python file that needs nothing but NumPy 2: a function of arrays.

    * `model`, `ps`, `st`, `x`, `batch_axis`, `params`, `names`: see `lux.export.plain_function`. With
      `params="input"` their flat vector is the first argument.
    * `name`: of the function.

    The function has the inputs as arguments, in order and by name, and returns the output, or the tuple of outputs.
    The batch may have any size. Equal models give equal files. What the function returns differs from JAX by rounding.

    Raises what `plain_function` raises, `ValueError` for operations that have no translation, and `FileExistsError`
    where the path is that of other source, such as the module of the model.

    >>> import jax, jax.numpy as jnp, pathlib, runpy, tempfile, lux_sciml as lux
    >>> from lux_sciml.export import numpy_source
    >>> net = lux.Dense(2, 3, jnp.tanh)
    >>> ps, st = lux.setup(jax.random.key(0), net)
    >>> path = pathlib.Path(tempfile.mkdtemp(), "net.py")
    >>> numpy_source(path, net, ps, lux.testmode(st), jnp.ones((1, 2)))
    >>> runpy.run_path(path)["forward"](np.ones((8, 2), np.float32)).shape
    (8, 3)
    """
    path = Path(path)
    if path.suffix != ".py":
        raise ValueError(f"the path of NumPy source ends in .py, got {str(path)!r}")
    require_not_foreign(path)
    with plain_solves():
        function = plain_function(model, ps, st, x, batch_axis=batch_axis, params=params, names=names, portable=True)
        block = lower(function.call, *function.specs, supported=SUPPORTED, to="NumPy source")
    for text in (name, *function.inputs):
        if not text.isidentifier() or keyword.iskeyword(text) or text in _TAKEN:
            raise ValueError(f"{text!r} is no name that the function or an input can have: pass another one")
    with replacing(path) as file:
        file.write(_Source(function, block, name).text().encode())


class _Source:
    """Writes the statements of a block; elementwise expressions that are read once stand where they are read."""

    def __init__(self, function: PlainFunction, block: Block, name: str):
        self.function, self.block, self.name = function, block, name
        self.lines: list[str] = []
        self.constants: dict[tuple[Any, ...], tuple[str, np.ndarray]] = {}
        self.helpers: set[str] = set()
        self.names: dict[Value, str] = {}  # expressions, with operators only in parentheses
        self.small: dict[Value, Value] = {}  # broadcast values, by what NumPy broadcasts by itself
        self.uses: dict[Value, int] = {}
        self.sizes: dict[str, str] = {}  # where symbolic sizes are read from
        self.count, self.depth = 0, 1
        self.taken = {name, *function.inputs, *_TAKEN}

    def text(self) -> str:
        about = self.function.metadata("NumPy source")
        for value, (name, spec) in zip(self.block.inputs, self.function.inputs.items(), strict=True):
            self.names[value] = name
            for axis, size in enumerate(spec.shape):
                if not isinstance(size, int) and not str(size).isidentifier():
                    raise ValueError(
                        f"NumPy source reads open sizes off its inputs, and {name!r} has one that is {size}: give it a "
                        "name of its own"
                    )
                if not isinstance(size, int) and str(size) not in self.sizes:
                    self.sizes[str(size)] = f"{name}.shape[{axis}]"
        self.taken |= set(self.sizes)
        self.run(self.block)
        self.line(f"return {', '.join(self.whole(value) for value in self.block.outputs)}")
        body = re.sub(r"(?<=[\w)])\^(?=\d)", "**", "\n".join(self.lines))  # powers of sizes, as JAX prints them
        self.helpers |= {name for name in ("floordiv", "mod") if f"{name}(" in body}  # as symbolic sizes are printed
        sizes = [f"    {size} = {where}" for size, where in self.sizes.items() if re.search(rf"\b{size}\b", body)]
        described = [f"{name}: {_described(spec)}" for name, spec in self.function.inputs.items()]
        results = [f"{name}: {_described(spec)}" for name, spec in self.function.outputs.items()]
        metadata = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in about.items())
        head = [
            f'"""{about["model"]} in NumPy, written by lux_sciml {about["versions"]["lux-sciml"]}."""',
            "import math\n\n" * bool(self.helpers & {"erf", "erfc"}) + "import numpy as np",
            f"METADATA = r'''{{\n{metadata}\n}}'''" if "'''" not in metadata else "",
        ]
        constants = [_constant(name, array) for name, array in self.constants.values()]
        silent = any(op.name in _WARNING for op in self.block.all())
        function = [
            '@np.errstate(all="ignore")' if silent else "",
            f"def {self.name}({', '.join(self.function.inputs)}):",
            f'    """{"; ".join(described)}; returns {"; ".join(results)}."""',
            *sizes,
            body,
        ]
        helpers = [_HELPERS[name] for name in sorted(self.helpers)]
        first = "\n\n".join(part for part in [*head, "\n".join(constants)] if part)
        return "\n\n\n".join([first, *helpers, "\n".join(line for line in function if line)]) + "\n"

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def new(self, letter: str = "h") -> str:
        while True:
            self.count += 1
            if f"{letter}{self.count}" not in self.taken:
                return f"{letter}{self.count}"

    # --- values -----------------------------------------------------------------------------------------------------

    def read(self, value: Value) -> str:
        """A value as an expression of its shape."""
        if value in self.small:
            return f"np.broadcast_to({self.read(self.small[value])}, {self.shape(value.shape)})"
        if value in self.names:
            return self.names[value]
        assert value.known is not None
        known: Any = value.known
        if known.ndim == 0 or (known.size > 8 and value.uniform is not None):
            number = known if known.ndim == 0 else known.flat[0]
            scalar = f"np.{bool(number)}_" if value.dtype.kind == "b" else f"np.{value.dtype.name}({_number(number)})"
            return scalar if known.ndim == 0 else f"np.full({known.shape}, {scalar})"
        key = (known.dtype.name, known.shape, known.tobytes())
        if key not in self.constants:
            self.constants[key] = (self.new("C"), known)
        return self.constants[key][0]

    def loose(self, value: Value) -> str:
        """A value as an expression that NumPy broadcasts to its shape, and whose type does not matter."""
        if value in self.small:
            return self.loose(self.small[value])
        if value.known is not None and value not in self.names and value.uniform is not None:
            number = value.uniform
            return _number(number) if value.dtype.kind != "b" else str(bool(number))
        return self.read(value)

    def whole(self, value: Value) -> str:
        """A value that is returned: an array of its type."""
        return _bare(self.read(value))

    def shape(self, shape: Sequence[Any]) -> str:
        return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"

    def is_loose(self, value: Value) -> bool:
        known = value.known is not None and value not in self.names and value.uniform is not None
        return (value in self.small or known) and math.prod(value.shape) != 1

    # --- statements -------------------------------------------------------------------------------------------------

    def run(self, block: Block) -> None:
        for op in block.operations:
            for value in op.reads():
                self.uses[value] = self.uses.get(value, 0) + 1
        for value in block.outputs:
            self.uses[value] = self.uses.get(value, 0) + 2
        for op in block.operations:
            if op.name in LOOPS or op.name in ("split", "dynamic_update_slice", "scatter", "scatter-add"):
                getattr(self, "_" + op.name.replace("-add", ""))(op)
            elif op.name == "broadcast_in_dim":
                self.broadcast(op)
            else:
                self.set(op.outputs[0], self.expression(op), inline=op.name in ELEMENTWISE)

    def set(self, value: Value, text: str, inline: bool = False) -> None:
        if inline and self.uses[value] == 1 and len(text) < _LONGEST:
            self.names[value] = text
            return
        name = self.new()
        self.line(f"{name} = {_bare(text)}")
        self.names[value] = name

    def broadcast(self, op: Operation) -> None:
        """Kept small, since NumPy broadcasts by itself what ends in the same axes."""
        (operand,), (out,) = op.inputs, op.outputs
        dims = op.params["broadcast_dimensions"]
        first = len(out.shape) - len(operand.shape)
        if tuple(dims) != tuple(range(first, len(out.shape))):
            shape = [1] * len(out.shape)
            for d, n in zip(dims, operand.shape, strict=True):
                shape[d] = n
            while shape and shape[0] == 1:
                shape = shape[1:]
            longer = Value(tuple(shape), operand.dtype)
            if shape:
                self.uses[longer] = 2
                self.set(longer, f"{self.read(operand)}.reshape({self.shape(shape)})")
            else:
                longer = operand
            operand = longer
        self.small[out] = operand

    def expression(self, op: Operation) -> str:
        name, params, (out, *_) = op.name, op.params, op.outputs
        if name in ELEMENTWISE:
            return self.elementwise(op)
        if name == "dim_as_value":
            return f"np.{out.dtype.name}({params['dim']})"
        if name == "dot_general":
            return self.product(op)
        if name.startswith("reduce_") and name in REDUCTIONS:
            axes = tuple(params["axes"])
            if name in ("reduce_and", "reduce_or") and out.dtype.kind != "b":
                return f"np.bitwise_{name.removeprefix('reduce_')}.reduce({self.read(op.inputs[0])}, axis={axes})"
            kind = _REDUCED[name.removeprefix("reduce_")]
            more = f", dtype=np.{out.dtype.name}" if kind in ("sum", "prod") and out.dtype.kind in "iu" else ""
            return f"{self.read(op.inputs[0])}.{kind}(axis={axes[0] if len(axes) == 1 else axes}{more})"
        x = self.read(op.inputs[0]) if op.inputs else ""
        if name in ("argmax", "argmin"):
            return f"{x}.{name}(axis={params['axes'][0]}).astype(np.{out.dtype.name})"
        if name.startswith("cum"):
            flip = f"[{':, ' * params['axis']}::-1]" if params["reverse"] else ""
            kind = _CUMULATIVE[name.removeprefix("cum")]
            return f"{kind}.accumulate({x}{flip}, axis={params['axis']}, dtype=np.{out.dtype.name}){flip}"
        if name == "reshape":
            return f"{x}.reshape({self.shape(out.shape)})"
        if name == "transpose":
            return f"{x}.transpose({self.shape(params['permutation'])})"
        if name == "rev":
            return f"np.flip({x}, {tuple(params['dimensions'])})"
        if name == "iota":
            d = params["dimension"]
            shape = [n if k == d else 1 for k, n in enumerate(out.shape)]
            text = f"np.arange({out.shape[d]}, dtype=np.{out.dtype.name})"
            return f"np.broadcast_to({text}.reshape({self.shape(shape)}), {self.shape(out.shape)})"
        if name == "concatenate":
            return f"np.concatenate([{', '.join(map(_bare, map(self.read, op.inputs)))}], axis={params['dimension']})"
        if name == "slice":
            strides = params["strides"] or [1] * len(out.shape)
            parts = zip(params["start_indices"], params["limit_indices"], strides, op.inputs[0].shape, strict=True)
            return f"{x}[{', '.join(_range(*part) for part in parts) or '()'}]"
        if name == "dynamic_slice":
            self.helpers.add("clip_start")
            return f"{x}[{self.ranges(op.inputs[1:], op.inputs[0].shape, out.shape)}]"
        if name == "pad":
            return self.pad(op)
        if name == "gather":
            return self.gather(op)
        if name.startswith("reduce_window_"):
            return self.pooling(op)
        return self.convolution(op)

    def elementwise(self, op: Operation) -> str:
        name, params, (out,) = op.name, op.params, op.outputs
        # One operand at least has the full shape and the type; NumPy brings the others to these.
        loose = [self.is_loose(v) or (v.shape == () and v.known is not None) for v in op.inputs]
        if all(loose[1:] if name == "select_n" else loose):
            whole = [k for k, v in enumerate(op.inputs) if v.shape == out.shape and (k or name != "select_n")]
            loose[whole[-1] if whole else -1] = False
        x = [self.loose(v) if free else self.read(v) for v, free in zip(op.inputs, loose, strict=True)]
        real = op.inputs[-1].dtype.kind == "f"
        if name == "div" and not real:
            self.helpers.add("quotient")
            return f"quotient({', '.join(map(_bare, x))})"
        if name == "pow" and op.inputs[1].dtype != out.dtype:
            x[1] = f"np.asarray({_bare(x[1])}, np.{out.dtype.name})"
        if name in _INFIX:
            return f"({x[0]} {_INFIX[name]} {x[1]})"
        if name == "neg":
            return f"(-{x[0]})"
        if name == "not":
            return f"(~{x[0]})"
        if name == "rsqrt":
            return f"(1 / np.sqrt({_bare(x[0])}))"
        if name in ("logistic", "erf", "erfc"):
            self.helpers.add(name)
            return f"{name}({_bare(x[0])})"
        if name == "round":
            if params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
                return f"np.rint({_bare(x[0])})"
            self.helpers.add("rounded")
            return f"rounded({_bare(x[0])})"
        if name == "integer_pow":
            return f"({x[0]} ** {params['y']})" if params["y"] >= 0 else f"(1 / {x[0]} ** {-params['y']})"
        if name == "bitcast_convert_type":
            return f"{x[0]}.view(np.{out.dtype.name})"
        if name == "convert_element_type" and real and out.dtype.kind in "iu":
            self.helpers.add("whole")
            return f"whole({_bare(x[0])}, np.{out.dtype.name})"
        if name == "convert_element_type":
            if op.inputs[0].shape == ():
                return f"np.{out.dtype.name}({_bare(x[0])})" if out.dtype.kind != "b" else f"np.bool_({_bare(x[0])})"
            return f"{x[0]}.astype({'bool' if out.dtype.kind == 'b' else 'np.' + out.dtype.name})"
        if name == "clamp":
            return f"np.minimum(np.maximum({_bare(x[1])}, {_bare(x[0])}), {_bare(x[2])})"
        if name == "select_n":
            if len(x) == 3:
                return f"np.where({_bare(x[0])}, {_bare(x[2])}, {_bare(x[1])})"
            return f"np.choose({_bare(x[0])}, [{', '.join(map(_bare, x[1:]))}])"
        return f"{_FUNCTIONS[name]}({', '.join(map(_bare, x))})"

    def product(self, op: Operation) -> str:
        (left, right), (out,) = op.inputs, op.outputs
        (lc, rc), (lb, rb) = op.params["dimension_numbers"]
        kind = f".astype(np.{out.dtype.name})"
        a, b = (self.read(v) + kind * (v.dtype != out.dtype) for v in op.inputs)
        if not lb and len(lc) == 1 and len(right.shape) == 2 and tuple(lc) == (len(left.shape) - 1,):
            return f"({a} @ {b})" if tuple(rc) == (0,) else f"({a} @ {b}.T)"
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        first = [next(letters) for _ in left.shape]
        second = [next(letters) for _ in right.shape]
        for k, j in zip((*lc, *lb), (*rc, *rb), strict=True):
            second[j] = first[k]
        result = [first[k] for k in lb] + [s for k, s in enumerate(first) if k not in (*lb, *lc)]
        result += [s for k, s in enumerate(second) if k not in (*rb, *rc)]
        return f'np.einsum("{"".join(first)},{"".join(second)}->{"".join(result)}", {_bare(a)}, {_bare(b)})'

    def pad(self, op: Operation) -> str:
        (operand, filler), (out,) = op.inputs, op.outputs
        name = self.new()
        self.line(f"{name} = np.full({self.shape(out.shape)}, {_bare(self.read(filler))})")
        to, source = [], []
        for n, whole, (low, _, inside) in zip(operand.shape, out.shape, op.params["padding_config"], strict=True):
            step = inside + 1
            if not isinstance(n, int):
                if (low, inside) != (0, 0) or n != whole:
                    raise ValueError("NumPy source has no padding of an axis of any size; export it as StableHLO")
                to.append(":")
                source.append(":")
                continue
            kept = [i for i in range(n) if 0 <= low + i * step < whole]
            first, last = (kept[0], kept[-1]) if kept else (0, -1)
            to.append(f"{low + first * step}:{low + last * step + 1}:{step}")
            source.append(f"{first}:{last + 1}")
        self.line(f"{name}[{', '.join(to)}] = {self.read(operand)}[{', '.join(source)}]")
        return name

    def ranges(self, starts: Iterable[Value], shape: Sequence[Any], sizes: Sequence[Any]) -> str:
        texts = []
        for start, n, size in zip(starts, shape, sizes, strict=True):
            if n == size:
                texts.append(":")
                continue
            name = self.new("i")
            self.line(f"{name} = clip_start({_bare(self.read(start))}, {size}, {n})")
            texts.append(f"{name}:{name} + {size}")
        return ", ".join(texts) or "()"

    def gather(self, op: Operation) -> str:
        (operand, indices), (out,) = op.inputs, op.outputs
        numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
        at, inside = self.places(
            operand,
            indices,
            len(out.shape),
            numbers.offset_dims,
            {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims},
            numbers.start_index_map,
            dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)),
            sizes,
            out.shape,
        )
        text = f"{self.read(operand)}[{', '.join(at)}]"
        if op.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP and inside:
            outside = self.read(Value((), out.dtype, np.asarray(filler(op.params, out.dtype))))
            text = f"np.where({' & '.join(inside)}, {text}, {outside})"
        return text

    def places(
        self, operand, indices, rank, window, fixed, dims, batching, sizes, shape
    ) -> tuple[list[str], list[str]]:
        """Index arrays, one for each axis of the operand, in the shape of what is gathered or scattered."""
        batch = [k for k in range(rank) if k not in window]

        def along(k, text):
            return f"{text}.reshape({self.shape([-1 if j == k else 1 for j in range(rank)])})"

        free = iter(window)
        at = [
            "0" if k in fixed else along(axis := next(free), f"np.arange({shape[axis]})")
            for k in range(len(operand.shape))
        ]
        for k, j in batching.items():
            at[k] = along(batch[j], f"np.arange({operand.shape[k]})")
        inside = []
        starts = self.read(indices)
        for j, k in enumerate(dims):
            name, high = self.new("i"), operand.shape[k] - sizes[k]
            spread = [indices.shape[batch.index(d)] if d in batch else 1 for d in range(rank)]
            self.line(f"{name} = {starts}[..., {j}].reshape({self.shape(spread)})")
            inside.append(f"({name} >= 0) & ({name} <= {high})")
            moved = f"np.clip({name}, 0, {high})"
            at[k] = moved if at[k] == "0" else f"{moved} + {at[k]}"
        return at, inside

    def _scatter(self, op: Operation) -> None:
        operand, indices, updates = op.inputs
        numbers, rank = op.params["dimension_numbers"], len(updates.shape)
        fixed = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        window = iter(numbers.update_window_dims)
        sizes = [1 if k in fixed else updates.shape[next(window)] for k in range(len(operand.shape))]
        at, inside = self.places(
            operand,
            indices,
            rank,
            numbers.update_window_dims,
            fixed,
            numbers.scatter_dims_to_operand_dims,
            dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)),
            sizes,
            updates.shape,
        )
        name, index = self.new(), self.new("i")
        self.line(f"{name} = {self.read(operand)}.copy()")
        self.line(f"{index} = np.broadcast_arrays({', '.join(at)}, {self.read(updates)})")
        if op.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP and inside:
            kept = self.new("i")
            self.line(f"{kept} = np.broadcast_to({' & '.join(inside)}, {index}[-1].shape)")
            self.line(f"{index} = [part[{kept}] for part in {index}]")
        if op.name == "scatter-add":
            self.line(f"np.add.at({name}, tuple({index}[:-1]), {index}[-1])")
        else:
            self.line(f"{name}[tuple({index}[:-1])] = {index}[-1]")
        self.names[op.outputs[0]] = name

    def convolution(self, op: Operation) -> str:
        """A sum over the taps of the window."""
        (x, kernel), (out,), p = op.inputs, op.outputs, op.params
        numbers, groups = p["dimension_numbers"], p["feature_group_count"]
        xs, ks, os_ = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        spatial = len(xs) - 2
        if groups != 1 or p["batch_group_count"] != 1 or any(d != 1 for d in p["lhs_dilation"]):
            raise ValueError("NumPy source has no convolution of groups or with gaps; export this model as StableHLO")
        padded, total = self.new(), self.new()
        pads = [(0, 0), (0, 0), *((max(low, 0), max(high, 0)) for low, high in p["padding"])]
        self.line(f"{padded} = np.pad({self.read(x)}.transpose({tuple(xs)}), {tuple(pads)})")
        weight = self.new()
        self.line(f"{weight} = {self.read(kernel)}.transpose({(*ks[2:], ks[1], ks[0])})")
        taps = [self.new("i") for _ in range(spatial)]
        sizes = [out.shape[k] for k in os_[2:]]
        ranges = map(_window, taps, sizes, p["window_strides"], p["rhs_dilation"], p["padding"])
        window = tuple(kernel.shape[k] for k in ks[2:])
        self.line(f"{total} = 0")
        self.line(f"for {', '.join(taps)}{',' * (spatial == 1)} in np.ndindex({window}):")
        part = f"np.moveaxis({padded}[:, :, {', '.join(ranges)}], 1, -1)"
        self.line(f"    {total} = {total} + {part} @ {weight}[{', '.join(taps)}]")
        back = [0] * len(os_)
        for place, axis in zip((0, spatial + 1, *range(1, spatial + 1)), os_, strict=True):
            back[axis] = place
        return f"{total}.transpose({tuple(back)})"

    def pooling(self, op: Operation) -> str:
        """The largest, or the sum, over the taps of the window."""
        (x,), (out,), p = op.inputs, op.outputs, op.params
        if any(d != 1 for d in p["base_dilation"]):
            raise ValueError("NumPy source has no pooling with gaps; export this model as StableHLO")
        kind = op.name.removeprefix("reduce_window_")
        low = "-np.inf" if out.dtype.kind == "f" else str(np.iinfo(out.dtype).min)
        start = f"np.{out.dtype.name}({'0' if kind == 'sum' else low})"
        padded, total = self.new(), self.new()
        pads = tuple((max(before, 0), max(after, 0)) for before, after in p["padding"])
        self.line(f"{padded} = np.pad({_bare(self.read(x))}, {pads}, constant_values={start})")
        taps = [self.new("i") for _ in out.shape]
        settings = (p["window_strides"], p["window_dilation"], p["padding"], p["window_dimensions"])
        ranges = [
            ":" if (size, stride, pad) == (1, 1, (0, 0)) else _window(tap, n, stride, d, pad)
            for tap, n, stride, d, pad, size in zip(taps, out.shape, *settings, strict=True)
        ]
        self.line(f"{total} = {start}")
        self.line(f"for {', '.join(taps)}{',' * (len(taps) == 1)} in np.ndindex({tuple(p['window_dimensions'])}):")
        self.line(f"    {total} = {_CUMULATIVE[kind]}({total}, {padded}[{', '.join(ranges)}])")
        return total

    def _split(self, op: Operation) -> None:
        start, axis = 0, op.params["axis"]
        for value, size in zip(op.outputs, op.params["sizes"], strict=True):
            if value in self.uses:
                self.set(value, f"{self.read(op.inputs[0])}[{':, ' * axis}{start}:{start + size}]")
            start += size

    def _dynamic_update_slice(self, op: Operation) -> None:
        operand, update, *starts = op.inputs
        self.helpers.add("clip_start")
        name = self.new()
        self.line(f"{name} = {self.read(operand)}.copy()")
        self.line(f"{name}[{self.ranges(starts, operand.shape, update.shape)}] = {_bare(self.read(update))}")
        self.names[op.outputs[0]] = name

    # --- loops ------------------------------------------------------------------------------------------------------

    def carry(self, op: Operation, inputs: Sequence[Value], *blocks: Block) -> list[str]:
        names = []
        for k, value in enumerate(inputs):
            name = self.new()
            self.line(f"{name} = {_bare(self.read(value))}")
            names.append(name)
            self.names[op.outputs[k]] = name
            self.names.update((block.inputs[k], name) for block in blocks)
        return names

    def advance(self, names: list[str], body: Block, among: Value | None = None) -> None:
        pairs = []
        for name, value in zip(names, body.outputs, strict=False):
            text = self.read(value)
            if name != text and among is not None:
                rows, ones = self.read(among), (1,) * (len(value.shape) - len(among.shape))
                rows = f"{rows}.reshape({self.shape((*among.shape, *ones))})" if ones else rows
                text = f"np.where({rows}, {_bare(text)}, {name})"
            pairs.append((name, text))
        pairs = [(name, text) for name, text in pairs if name != text]
        if pairs:
            self.line(f"{', '.join(name for name, _ in pairs)} = {', '.join(_bare(text) for _, text in pairs)}")

    def _scan(self, op: Operation) -> None:
        (body,), carried, length = op.blocks, op.params["carried"], op.params["length"]
        names = self.carry(op, op.inputs[:carried], body)
        step = self.new("i")
        sources = []
        for xs, value in zip(op.inputs[carried:], body.inputs[carried:], strict=True):
            source = self.new()
            self.line(f"{source} = {_bare(self.read(xs))}")
            sources.append((value, source))
        stacked = [self.new() for _ in op.outputs[carried:]]
        for name, value in zip(stacked, op.outputs[carried:], strict=True):
            self.line(f"{name} = np.empty({self.shape(value.shape)}, np.{value.dtype.name})")
            self.names[value] = name
        self.line(f"for {step} in " + (f"reversed(range({length})):" if op.params["reverse"] else f"range({length}):"))
        self.depth += 1
        for value, source in sources:
            self.names[value] = f"{source}[{step}]"
        self.run(body)
        for name, value in zip(stacked, body.outputs[carried:], strict=True):
            self.line(f"{name}[{step}] = {_bare(self.read(value))}")
        self.advance(names, body)
        self.depth -= 1

    def _while(self, op: Operation) -> None:
        test, body = op.blocks
        names = self.carry(op, op.inputs, test, body)
        self.line("while True:")
        self.depth += 1
        self.run(test)
        goes_on = test.outputs[0]
        each = bool(goes_on.shape)  # has a loop of its own: samples that are done stay as they are
        if each:
            name, text = self.new(), self.read(goes_on)
            self.line(f"{name} = {_bare(text)}")
            self.names[goes_on] = name
        self.line(f"if not {self.read(goes_on)}{'.any()' * each}:")
        self.line("    break")
        self.run(body)
        self.advance(names, body, goes_on if each else None)
        self.depth -= 1

    def _cond(self, op: Operation) -> None:
        names = [self.new() for _ in op.outputs]
        which = _bare(self.read(op.inputs[0]))
        for i, block in reversed(list(enumerate(op.blocks))):
            last = i == len(op.blocks) - 1
            self.line(f"{'if' if last else 'elif'} {which} >= {i}:" if i else "else:")
            self.depth += 1
            self.run(block)
            for name, value in zip(names, block.outputs, strict=True):
                self.line(f"{name} = {_bare(self.read(value))}")
            if not names:
                self.line("pass")
            self.depth -= 1
        self.names.update(zip(op.outputs, names, strict=True))


def _bare(text: str) -> str:
    """An expression without the parentheses around the whole of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for k, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if k == len(text) - 1 and "," not in text else text
    return text


def _number(number: Any) -> str:
    number = np.asarray(number)[()]
    if number.dtype.kind != "f":
        return str(int(number))
    if not np.isfinite(number):
        return "np.nan" if np.isnan(number) else "np.inf" if number > 0 else "(-np.inf)"
    text = repr(number.item()) if number.dtype.itemsize == 8 else str(number)
    text = text if re.search(r"[.e]", text) else text + ".0"
    return f"({text})" if text.startswith("-") else text


def _range(start: Any, limit: Any, stride: int, n: Any) -> str:
    if stride == 1 and isinstance(start, int) and start == 0 and str(limit) == str(n):
        return ":"
    return f"{start}:{limit}" + (f":{stride}" if stride != 1 else "")


def _window(tap: str, n: Any, stride: int, dilation: int, pad: tuple[int, int]) -> str:
    """The range of an axis that a tap of a window reads for `n` results."""
    start = f"{tap}*{dilation}" if dilation > 1 else tap
    start = f"{start} + {-pad[0]}" if pad[0] < 0 else start
    return f"{start}:{start} + {(n - 1) * stride + 1}:{stride}"


def _constant(name: str, array: np.ndarray) -> str:
    """A constant array, eight numbers a line."""
    numbers = [_bare(_number(x)) if array.dtype.kind != "b" else str(bool(x)) for x in array.ravel()]
    rows = [", ".join(numbers[i : i + 8]) for i in range(0, len(numbers), 8)]
    kind = "bool" if array.dtype.kind == "b" else f"np.{array.dtype.name}"
    body = ",\n    ".join(rows)
    shape = "" if array.ndim == 1 else f".reshape({array.shape})"
    return f"{name} = np.array([\n    {body},\n], {kind}){shape}"


def _described(spec: jax.ShapeDtypeStruct) -> str:
    return f"{np.dtype(spec.dtype).name} ({', '.join(map(str, spec.shape))})"
