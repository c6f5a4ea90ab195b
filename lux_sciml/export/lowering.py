"""A function as a short list of array operations, for the formats whose loops we write ourselves: C and NumPy.

What JAX traces is brought to few forms: calls are opened, what does not depend on the input is computed once, branches
whose choice is known are taken, and what nobody reads is left out. Blocks of loops read outer values by themselves.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from .._compat import called_program, scan_counts
from .._tree import is_random_key
from . import factorizations
from .factorizations import over_batch, sorted_integers

UNARY = frozenset(
    "neg sign floor ceil round is_finite abs exp exp2 log log1p expm1 sin cos tan asin acos atan sinh cosh tanh asinh"
    " acosh atanh sqrt rsqrt cbrt logistic erf erfc square not integer_pow convert_element_type"
    " bitcast_convert_type".split()
)
BINARY = frozenset("add sub mul div rem max min pow atan2 nextafter eq ne lt le gt ge and or xor".split())
ELEMENTWISE = UNARY | BINARY | {"select_n", "clamp"}
VIEWS = frozenset("broadcast_in_dim reshape transpose slice split rev iota".split())  # other indices, nothing computed
REDUCTIONS = frozenset(
    "reduce_sum reduce_prod reduce_max reduce_min reduce_and reduce_or argmax argmin"
    " cumsum cumprod cummax cummin".split()
)
LOOPS = frozenset({"scan", "while", "cond"})
OTHERS = frozenset("dot_general concatenate pad dynamic_slice dynamic_update_slice gather scatter scatter-add".split())
CONVOLUTIONS = frozenset("conv_general_dilated reduce_window_max reduce_window_sum".split())

_CALLS = frozenset(
    "jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call"
    " custom_vjp_call_jaxpr".split()
)
_SAME = frozenset("copy copy_p stop_gradient optimization_barrier sharding_constraint name pvary device_put".split())
_OTHER_NAMES = {"add_any": "add", "squeeze": "reshape", "expand_dims": "reshape", "scatter_add": "scatter-add"}
_LARGEST_FOLDED = 2**16  # elements: beyond, a constant is computed at run time from smaller ones


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """An array: known where it does not depend on the inputs."""

    shape: tuple[Any, ...]
    dtype: np.dtype
    known: np.ndarray | None = None

    @property
    def size(self) -> Any:
        return math.prod(self.shape)

    @property
    def uniform(self) -> Any:
        """The element that a known array repeats, else None."""
        if self.known is None or self.known.size == 0:
            return None
        first = self.known.flat[0]
        same = self.known.tobytes() == np.full(self.known.shape, first, self.known.dtype).tobytes()
        return first if same else None


@dataclasses.dataclass(eq=False, slots=True)
class Operation:
    """One of the names above, with JAX's parameters; the `blocks` are those of a loop or of the branches."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    params: dict[str, Any]
    blocks: list["Block"] = dataclasses.field(default_factory=list)

    def reads(self) -> Iterator[Value]:
        """The inputs, and what the blocks read from outside."""
        yield from self.inputs
        for block in self.blocks:
            inside = {*block.inputs, *(value for op in block.operations for value in op.outputs)}
            for value in (*(value for op in block.operations for value in op.reads()), *block.outputs):
                if value not in inside:
                    yield value


@dataclasses.dataclass(eq=False, slots=True)
class Block:
    """Operations in order, from inputs to outputs."""

    inputs: list[Value]
    operations: list[Operation]
    outputs: list[Value]

    def all(self) -> Iterator[Operation]:
        """The operations, those inside loops included."""
        for op in self.operations:
            yield op
            for block in op.blocks:
                yield from block.all()


def lower(
    function: Callable[..., Any],
    *specs: jax.ShapeDtypeStruct,
    supported: Iterable[str],
    to: str,
    otherwise: str = "export it as StableHLO, which holds every operation and type of JAX: path='model.stablehlo'",
) -> Block:
    """The operations of `function`, from one array for each of `specs` to a flat list of arrays.

    Raises `ValueError` for an operation that is not among the `supported` ones, naming it and the format `to`, and for
    numbers of other types, with the way on.
    """
    closed = jax.make_jaxpr(function)(*specs)
    inputs = [_value(var) for var in closed.jaxpr.invars]
    operations: list[Operation] = []
    outputs = _opened(closed, inputs, operations)
    block = Block(inputs, operations, outputs)
    _keep_what_is_read(block)
    unknown = sorted({op.name for op in block.all()} - set(supported))
    if unknown:
        raise ValueError(
            f"{to} has no translation of {', '.join(map(repr, unknown))}, which this model computes with; {otherwise}"
        )
    for op in block.all():
        for value in (*op.reads(), *op.outputs):
            if value.dtype.kind not in "fiub" or (value.dtype.kind == "f" and value.dtype.itemsize < 4):
                raise ValueError(
                    f"{to} is written in float32 or float64, with integers and booleans, and this model computes with "
                    f"{value.dtype}: convert it; otherwise, {otherwise}"
                )
    return block


def filler(params: dict[str, Any], dtype: np.dtype) -> Any:
    """What a gather puts where an index is outside."""
    if params["fill_value"] is not None:
        return dtype.type(params["fill_value"])
    if dtype.kind == "f":
        return dtype.type(np.nan)
    return dtype.type(True) if dtype.kind == "b" else getattr(np.iinfo(dtype), "min" if dtype.kind == "i" else "max")


def _value(var: Any) -> Value:
    aval = var.aval
    dtype = aval.dtype if isinstance(aval.dtype, np.dtype) else np.dtype("V1")  # keys
    return Value(tuple(aval.shape), dtype)


def _known(array: Any) -> Value:
    if is_random_key(array):
        return Value(array.shape, np.dtype("V1"))
    array = np.asarray(array)
    return Value(array.shape, array.dtype, array)


def _run(jaxpr: Any, consts: Iterable[Any], args: list[Value], operations: list[Operation]) -> list[Value]:
    """Appends the operations of a jaxpr to the list; returns its outputs."""
    env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
    env.update((var, x if isinstance(x, Value) else _known(x)) for var, x in zip(jaxpr.constvars, consts, strict=True))

    def read(atom):
        return _known(np.asarray(atom.val, atom.aval.dtype)) if hasattr(atom, "val") else env[atom]

    for eqn in jaxpr.eqns:
        outputs = _equation(eqn, [read(atom) for atom in eqn.invars], operations)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _opened(closed: Any, args: list[Value], operations: list[Operation]) -> list[Value]:
    """A jaxpr, closed or, as calls have it in some versions, without constants."""
    return _run(getattr(closed, "jaxpr", closed), getattr(closed, "consts", ()), args, operations)


def _equation(eqn: Any, inputs: list[Value], operations: list[Operation]) -> list[Value]:
    params = {key: _with_integers(x) for key, x in eqn.params.items()}
    name = _OTHER_NAMES.get(eqn.primitive.name, str(eqn.primitive.name))
    outputs = [_value(var) for var in eqn.outvars]
    if name in _CALLS:
        return _opened(called_program(eqn), inputs, operations)
    if name == "custom_linear_solve":
        return _opened(*factorizations.linear_solve(inputs, params), operations)[: len(outputs)]
    if name in _SAME or (name == "convert_element_type" and inputs[0].dtype == outputs[0].dtype):
        return inputs
    if name == "reduce_precision" and np.finfo(inputs[0].dtype).nmant == params["mantissa_bits"]:
        return inputs
    if name == "platform_index":
        return [_known(np.int32(next(i for i, p in enumerate(params["platforms"]) if p is None or "cpu" in p)))]
    if name == "cond" and inputs[0].known is not None:
        branches = params["branches"]
        chosen = branches[int(np.clip(inputs[0].known, 0, len(branches) - 1))]
        return _opened(chosen, inputs[1:], operations)
    if all(value.known is not None for value in inputs) and _small(outputs, inputs) and not _is_symbolic(eqn):
        folded = _evaluated(eqn, inputs)
        if name not in VIEWS:
            return folded
        for value, result in zip(outputs, folded, strict=True):
            value.known = result.known
        return outputs
    if all(0 in value.shape and all(isinstance(n, int) for n in value.shape) for value in outputs):
        return [_known(np.zeros(value.shape, value.dtype)) for value in outputs]
    if name == "select_n" and inputs[0].uniform is not None:
        return [inputs[1 + int(inputs[0].uniform)]]
    if name == "concatenate":
        inputs = [value for value in inputs if 0 not in value.shape or value.shape == outputs[0].shape]
    if name in _REWRITTEN:
        rewritten = _REWRITTEN[name](inputs, params, outputs, operations)
        if rewritten is not None:
            return rewritten
    if name in ELEMENTWISE:
        inputs = [_broadcast(value, outputs[0].shape, operations) for value in inputs]
    if name in LOOPS:
        operations.append(_loop(name, params, inputs, outputs))
    else:
        operations.append(Operation(name, inputs, outputs, params))
    return outputs


def _with_integers(x: Any) -> Any:
    """A parameter with Python's integers in place of NumPy's."""
    if type(x) is tuple:
        return tuple(map(_with_integers, x))
    return int(x) if isinstance(x, np.integer) else x


def _broadcast(value: Value, shape: tuple[Any, ...], operations: list[Operation]) -> Value:
    """An operand in the shape of the result, which axes of size one need not have."""
    if value.shape == shape or len(value.shape) != len(shape):
        return value
    full = Value(shape, value.dtype)
    params = {"shape": shape, "broadcast_dimensions": tuple(range(len(shape)))}
    operations.append(Operation("broadcast_in_dim", [value], [full], params))
    return full


def _small(outputs: list[Value], inputs: list[Value]) -> bool:
    sizes = [value.size for value in (*outputs, *inputs)]
    if not all(isinstance(size, int) for size in sizes):  # symbolic ones
        return False
    return sum(sizes[: len(outputs)]) <= max(_LARGEST_FOLDED, sum(sizes[len(outputs) :]))


def _is_symbolic(eqn: Any) -> bool:
    """Whether an equation computes with a size that is not known."""
    sizes = [n for var in eqn.outvars for n in var.aval.shape]
    inner = [jaxpr for x in eqn.params.values() for jaxpr in (x if isinstance(x, tuple) else (x,))]
    inner = [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in inner if hasattr(jaxpr, "eqns")]
    return (
        eqn.primitive.name == "dim_as_value"
        or not all(isinstance(n, int) for n in sizes)
        or any(_is_symbolic(each) for jaxpr in inner for each in jaxpr.eqns)
    )


def _evaluated(eqn: Any, inputs: list[Value]) -> list[Value]:
    results = eqn.primitive.bind(*(jax.numpy.asarray(value.known) for value in inputs), **eqn.params)
    return [_known(result) for result in (results if eqn.primitive.multiple_results else [results])]


# --- what is written by other operations ----------------------------------------------------------------------------


def _reshape(value: Value, shape: tuple[Any, ...], operations: list[Operation], out: Value | None = None) -> Value:
    out = out or Value(shape, value.dtype)
    out.known = None if value.known is None else value.known.reshape(shape)
    operations.append(Operation("reshape", [value], [out], {}))
    return out


def _stack(inputs: list[Value], params: Any, outputs: list[Value], operations: list[Operation]) -> list[Value]:
    axis = params["axis"]
    parts = [_reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]), operations) for x in inputs]
    operations.append(Operation("concatenate", parts, outputs, {"dimension": axis}))
    return outputs


def _one_minus_square(inputs: list[Value], _: Any, outputs: list[Value], operations: list[Operation]) -> list[Value]:
    (x,), square = inputs, Value(inputs[0].shape, inputs[0].dtype)
    one = _known(np.ones((), x.dtype))
    operations += [Operation("square", [x], [square], {}), Operation("sub", [one, square], outputs, {})]
    return outputs


def _polynomial(inputs: list[Value], _: Any, outputs: list[Value], operations: list[Operation]) -> list[Value]:
    """By Horner's rule; the coefficients are in ascending order."""
    x, *coefficients, total = inputs
    for coefficient in reversed(coefficients):
        product, total_before = Value(outputs[0].shape, x.dtype), total
        total = Value(outputs[0].shape, x.dtype)
        operations.append(Operation("mul", [x, total_before], [product], {}))
        operations.append(Operation("add", [product, coefficient], [total], {}))
    return [total]


def _unstack(inputs: list[Value], params: Any, outputs: list[Value], operations: list[Operation]) -> list[Value]:
    (x,), axis = inputs, params["axis"]
    parts = [Value((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype) for _ in outputs]
    operations.append(Operation("split", [x], parts, {"axis": axis, "sizes": [1] * len(parts)}))
    return [_reshape(part, out.shape, operations, out) for part, out in zip(parts, outputs, strict=True)]


def _tile(inputs: list[Value], params: Any, outputs: list[Value], operations: list[Operation]) -> list[Value]:
    (x,), shape = inputs, [n for pair in zip(params["reps"], inputs[0].shape, strict=True) for n in pair]
    full = Value(tuple(shape), x.dtype)
    dimensions = {"shape": full.shape, "broadcast_dimensions": tuple(range(1, len(shape), 2))}
    operations.append(Operation("broadcast_in_dim", [x], [full], dimensions))
    return [_reshape(full, outputs[0].shape, operations, outputs[0])]


def _dynamic_slice(inputs: list[Value], params: Any, outputs: list[Value], operations: list[Operation]) -> Any:
    """A slice, where it is known where it starts."""
    x, *starts = inputs
    if any(start.known is None for start in starts) or not all(isinstance(n, int) for n in x.shape):
        return None
    first = [
        int(np.clip(start.known, 0, n - size))  # type: ignore
        for start, n, size in zip(starts, x.shape, params["slice_sizes"], strict=True)
    ]
    limits = tuple(i + n for i, n in zip(first, params["slice_sizes"], strict=True))
    at = {"start_indices": tuple(first), "limit_indices": limits, "strides": None}
    operations.append(Operation("slice", [x], outputs, at))
    return outputs


def _by(function: Callable[..., Any]) -> Callable[..., list[Value]]:
    """What traces a function in the place of an operation."""

    def rewrite(inputs: list[Value], params: Any, _: Any, operations: list[Operation]) -> list[Value]:
        specs = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs]
        return _opened(jax.make_jaxpr(lambda *x: function(*x, **params))(*specs), inputs, operations)

    return rewrite


def _sort(inputs: list[Value], params: Any, outputs: list[Value], operations: list[Operation]) -> Any:
    """Of integers alone, as the transpose of a permutation sorts."""
    if params["num_keys"] != 1 or inputs[0].dtype.kind != "i" or params["dimension"] != len(inputs[0].shape) - 1:
        return None
    return _by(over_batch(sorted_integers, 1))(inputs, params, outputs, operations)


_REWRITTEN = {"stack": _stack, "unstack": _unstack, "tile": _tile, "dynamic_slice": _dynamic_slice}
_REWRITTEN |= {"one_minus_square": _one_minus_square, "polynomial": _polynomial}  # of jax 0.12

_REWRITTEN |= {
    "sort": _sort,
    **{name: _by(function) for name, function in factorizations.RULES.items()},
}


# --- loops ------------------------------------------------------------------------------------------------------------


def _loop(name: str, params: dict[str, Any], inputs: list[Value], outputs: list[Value]) -> Operation:
    """A loop whose blocks read its constants by themselves: its inputs are the carry and the arrays scanned over."""

    def block(closed, constants, operands):
        arguments = [Value(value.shape, value.dtype) for value in operands]
        operations: list[Operation] = []
        results = _opened(closed, [*constants, *arguments], operations)
        return Block(arguments, operations, results)

    if name == "cond":
        blocks = [block(branch, inputs[1:], []) for branch in params["branches"]]
        return Operation(name, inputs[:1], outputs, {}, blocks)
    if name == "while":
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        carry = inputs[tests + bodies :]
        test = block(params["cond_jaxpr"], inputs[:tests], carry)
        body = block(params["body_jaxpr"], inputs[tests : tests + bodies], carry)
        op = Operation(name, carry, outputs, {}, [test, body])
    else:
        constants, carried = scan_counts(params)
        carry, xs = inputs[constants : constants + carried], inputs[constants + carried :]
        slices = [Value(value.shape[1:], value.dtype) for value in xs]
        body = block(params["jaxpr"], inputs[:constants], [*carry, *slices])
        kept = {"length": params["length"], "reverse": params["reverse"], "carried": carried}
        op = Operation(name, [*carry, *xs], outputs, kept, [body])
    return op


def _keep_what_is_read(block: Block) -> None:
    """Leaves out the operations, and what loops carry, that no output depends on."""
    wanted = set(block.outputs)
    kept = []
    for op in reversed(block.operations):
        if not any(value in wanted for value in op.outputs):
            continue
        if op.name in LOOPS:
            _trim(op, wanted)
        wanted.update(op.reads())
        kept.append(op)
    block.operations = kept[::-1]


def _trim(op: Operation, wanted: set[Value]) -> None:
    """Leaves out what a loop or a branch returns for nobody."""
    carried = {"while": len(op.outputs), "scan": op.params.get("carried", 0), "cond": 0}[op.name]
    body = op.blocks[-1]
    keep = {i for i, value in enumerate(op.outputs) if value in wanted}
    if op.name != "cond":
        tested = set(_all_reads(op.blocks[0])) if op.name == "while" else set()
        keep |= {i for i in range(carried) if op.name == "while" and op.blocks[0].inputs[i] in tested}
        while True:  # what is kept reads other parts of the carry, which are then kept too
            reads = set(_all_reads(Block([], _needed(body, keep), [body.outputs[i] for i in keep])))
            more = keep | {i for i in range(carried) if body.inputs[i] in reads}
            if more == keep:
                break
            keep = more
    kept = sorted(keep)
    op.outputs = [op.outputs[i] for i in kept]
    for block in op.blocks if op.name != "while" else [body]:
        block.outputs = [block.outputs[i] for i in kept]
        _keep_what_is_read(block)
    if op.name == "while":
        _keep_what_is_read(op.blocks[0])
    if op.name != "cond":
        reads = set(_all_reads(body))
        places = [i for i in range(len(op.inputs)) if (i in keep if i < carried else body.inputs[i] in reads)]
        op.inputs = [op.inputs[i] for i in places]
        for block in op.blocks:
            block.inputs = [block.inputs[i] for i in places]
        if op.name == "scan":
            op.params = {**op.params, "carried": sum(i < carried for i in kept)}


def _needed(block: Block, keep: set[int]) -> list[Operation]:
    wanted, needed = {block.outputs[i] for i in keep}, []
    for op in reversed(block.operations):
        if any(value in wanted for value in op.outputs):
            wanted.update(op.reads())
            needed.append(op)
    return needed


def _all_reads(block: Block) -> Iterator[Value]:
    for op in block.operations:
        yield from op.reads()
    yield from block.outputs
