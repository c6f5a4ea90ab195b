"""Operations on whole arrays as operators of ONNX: shapes, indices, sums, products and windows."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .lowering import filler
from .onnx_graph import Writer
from .plain_program import NoForm

# --- shapes -------------------------------------------------------------------------------------------------------


def _broadcast(graph: Writer, eqn: Any, x: str) -> str:
    sizes, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    old = eqn.invars[0].aval.shape
    new = [axis for axis in range(len(sizes)) if axis not in axes]
    if old and new:
        x = graph.node("Unsqueeze", x, graph.ints(new))
    if old != sizes and not (old and tuple(n for i, n in enumerate(sizes) if i in axes) == old and _ones(sizes, new)):
        graph.loose.add(x)
    return x


def _ones(sizes: Any, axes: Any) -> bool:
    return all(isinstance(sizes[axis], int) and sizes[axis] == 1 for axis in axes)


def _reshape(graph: Writer, eqn: Any, x: str) -> str:
    return graph.reshaped(x, eqn.outvars[0].aval.shape)


def _squeeze(graph: Writer, eqn: Any, x: str) -> str:
    return graph.node("Squeeze", x, graph.ints(eqn.params["dimensions"]))


def _transpose(graph: Writer, eqn: Any, x: str) -> str:
    return graph.transposed(x, eqn.params["permutation"])


def _concatenate(graph: Writer, eqn: Any, *xs: str) -> str:
    return graph.node("Concat", *xs, axis=eqn.params["dimension"])


def _stack(graph: Writer, eqn: Any, *xs: str) -> str:
    axis = eqn.params["axis"]
    parts = [graph.node("Unsqueeze", x, graph.ints([axis])) for x in xs]
    return graph.node("Concat", *parts, axis=axis)


def _slice(graph: Writer, eqn: Any, x: str) -> str:
    params, shape = eqn.params, eqn.invars[0].aval.shape
    steps = params["strides"] or (1,) * len(shape)
    for axis, (first, end, step) in enumerate(
        zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    ):
        if (first, end, step) != (0, shape[axis], 1):
            x = graph.sliced(x, axis, graph.size(first), graph.size(end), step)
    return x


def _split(graph: Writer, eqn: Any, x: str) -> list[str]:
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    return graph.several("Split", x, graph.shape(sizes), outputs=len(sizes), axis=axis)


def _starts(graph: Writer, inner: Any, outer: Any, first: Any) -> dict[int, str]:
    """The places where a part starts, along the axes of which it is not the whole."""
    places = {axis: i for axis, i in enumerate(first) if inner[axis] != outer[axis]}
    return {axis: graph.node("Unsqueeze", graph.cast(i, np.int64), graph.ints([0])) for axis, i in places.items()}


def _dynamic_slice(graph: Writer, eqn: Any, x: str, *first: str) -> str:
    sizes = eqn.params["slice_sizes"]
    for axis, start in _starts(graph, sizes, eqn.invars[0].aval.shape, first).items():
        x = graph.sliced(x, axis, start, graph.node("Add", start, graph.size(sizes[axis])))
    return x


def _dynamic_update_slice(graph: Writer, eqn: Any, x: str, update: str, *first: str) -> str:
    whole, part = (var.aval.shape for var in eqn.invars[:2])
    starts = _starts(graph, part, whole, first)
    if not starts:
        return update
    if len(starts) > 1:
        raise NoForm("a part that is replaced along several axes at a place that is computed")
    ((axis, start),) = starts.items()
    after = graph.sliced(x, axis, graph.node("Add", start, graph.size(part[axis])), graph.size(whole[axis]))
    return graph.node("Concat", graph.sliced(x, axis, graph.ints([0]), start), update, after, axis=axis)


def _spread(graph: Writer, x: str, shape: Any, between: list[int], value: str) -> tuple[str, list[Any]]:
    """`x` with so many values between its elements along each axis, and the sizes that it then has."""
    shape = list(shape)
    for axis, gap in enumerate(between):
        if gap:
            pads = [0] * (2 * len(shape) + 2)
            pads[len(shape) + axis + 2] = gap
            x = graph.node("Pad", graph.node("Unsqueeze", x, graph.ints([axis + 1])), graph.ints(pads), value)
            shape[axis] = shape[axis] * (gap + 1)
            x = graph.reshaped(x, shape)
            shape[axis] = shape[axis] - gap
            x = graph.sliced(x, axis, graph.ints([0]), graph.size(shape[axis]))
    return x, shape


def _pad(graph: Writer, eqn: Any, x: str, value: str) -> str:
    low, up, between = ([int(pad[i]) for pad in eqn.params["padding_config"]] for i in range(3))
    x, shape = _spread(graph, x, eqn.invars[0].aval.shape, between, value)
    if any(n < 0 for n in (*low, *up)):
        for axis, n in enumerate(shape):
            if low[axis] < 0 or up[axis] < 0:
                x = graph.sliced(x, axis, graph.ints([max(-low[axis], 0)]), graph.size(n + min(up[axis], 0)))
        low, up = ([max(n, 0) for n in pads] for pads in (low, up))
    return graph.node("Pad", x, graph.ints([*low, *up]), value)


def _iota(graph: Writer, eqn: Any) -> str:
    axis, sizes, dtype = eqn.params["dimension"], eqn.params["shape"], eqn.params["dtype"]
    n, others = sizes[axis], [i for i in range(len(sizes)) if i != axis]
    if isinstance(n, int):
        x = graph.constant(np.expand_dims(np.arange(n), others), dtype)
    else:
        limit = graph.node("Squeeze", graph.size(n), graph.ints([0]))
        places = graph.node("Range", graph.constant(0, np.int64), limit, graph.constant(1, np.int64))
        x = graph.cast(places, dtype)
        x = graph.node("Unsqueeze", x, graph.ints(others)) if others else x
    if others:
        graph.loose.add(x)
    return x


def _dim_as_value(graph: Writer, eqn: Any) -> str:
    return graph.cast(graph.node("Squeeze", graph.size(eqn.params["dim"]), graph.ints([0])), eqn.outvars[0].aval.dtype)


def _gather(graph: Writer, eqn: Any, x: str, indices: str) -> str:
    """Of rows, as in tables of embeddings."""
    numbers, shape, at = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    axes, lead = numbers.start_index_map, len(at) - 1
    rows = len(axes) == 1 and numbers.collapsed_slice_dims == axes and not numbers.operand_batching_dims
    axis = axes[0] if rows else 0
    after = (*range(axis), *range(axis + lead, lead + len(shape) - 1))
    whole = all(n == m for i, (n, m) in enumerate(zip(eqn.params["slice_sizes"], shape, strict=True)) if i != axis)
    if not (rows and whole and numbers.offset_dims == after):
        raise NoForm("an index of several axes, or of another part of each sample")
    place = graph.node("Squeeze", graph.cast(indices, np.int64), graph.ints([lead]))
    last = graph.node("Squeeze", graph.size(shape[axis] - 1), graph.ints([0]))
    inside = graph.node("Min", graph.node("Max", place, graph.constant(0, np.int64)), last)
    out = graph.node("Gather", x, inside, axis=axis)
    dtype = eqn.outvars[0].aval.dtype
    if "FILL" in str(eqn.params["mode"]):
        good = graph.node("Equal", place, inside)
        good = graph.node("Unsqueeze", good, graph.ints(after)) if after else good
        out = graph.chosen(good, out, graph.constant(filler(eqn.params, dtype)), dtype)
    return out


def _sort(graph: Writer, eqn: Any, *xs: str) -> list[str]:
    axis = eqn.params["dimension"]
    if eqn.params["num_keys"] != 1:
        raise NoForm("sorting by several keys")
    size = graph.size(eqn.invars[0].aval.shape[axis])
    values, places = graph.several("TopK", xs[0], size, outputs=2, axis=axis, largest=0)
    return [values, *(graph.node("GatherElements", x, places, axis=axis) for x in xs[1:])]


def _top_k(graph: Writer, eqn: Any, x: str) -> list[str]:
    k, axis = eqn.params["k"], eqn.params.get("axis", -1)
    values, places = graph.several("TopK", x, graph.size(k), outputs=2, axis=axis)
    return [values, graph.cast(places, eqn.outvars[1].aval.dtype)]


# --- sums and products --------------------------------------------------------------------------------------------


def _reduce(kind: str) -> Callable[..., str]:
    def write(graph: Writer, eqn: Any, x: str) -> str:
        axes = eqn.params["axes"]
        if axes and eqn.invars[0].aval.dtype == bool:
            return graph.cast(graph.node(kind, graph.cast(x, np.int32), graph.ints(axes), keepdims=0), bool)
        return graph.node(kind, x, graph.ints(axes), keepdims=0) if axes else x

    return write


def _reduce_extreme(kind: str) -> Callable[..., str]:
    """NaN, the mark of a failed solve, where an element is, which onnxruntime passes over."""

    def write(graph: Writer, eqn: Any, x: str) -> str:
        out, dtype = _reduce(kind)(graph, eqn, x), eqn.outvars[0].aval.dtype
        if dtype.kind != "f" or not eqn.params["axes"]:
            return out
        found = graph.cast(graph.node("IsNaN", x), np.int32)
        found = graph.cast(graph.node("ReduceMax", found, graph.ints(eqn.params["axes"]), keepdims=0), bool)
        return graph.node("Where", found, graph.constant(np.nan, dtype), out)

    return write


def _reduce_boolean(kind: str) -> Callable[..., str]:
    def write(graph: Writer, eqn: Any, x: str) -> str:
        if eqn.invars[0].aval.dtype != bool:
            raise NoForm(f"its operation `{eqn.primitive.name}` of whole numbers")
        return _reduce(kind)(graph, eqn, x)

    return write


def _argument(kind: str) -> Callable[..., str]:
    def write(graph: Writer, eqn: Any, x: str) -> str:
        (axis,) = eqn.params["axes"]
        x = graph.cast(x, np.int32) if eqn.invars[0].aval.dtype == bool else x
        return graph.cast(graph.node(kind, x, axis=axis, keepdims=0), eqn.params["index_dtype"])

    return write


def _cumsum(graph: Writer, eqn: Any, x: str) -> str:
    return graph.node("CumSum", x, graph.constant(eqn.params["axis"], np.int64), reverse=int(eqn.params["reverse"]))


def _dot_general(graph: Writer, eqn: Any, x: str, y: str) -> str:
    (of_x, of_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    n, m = (len(var.aval.shape) for var in eqn.invars)
    k = len(batch_x)
    dtype = eqn.outvars[0].aval.dtype
    x, y = (v if var.aval.dtype == dtype else graph.cast(v, dtype) for v, var in zip((x, y), eqn.invars, strict=True))
    if len(of_x) == 1 and not k and m == 2:
        x = graph.transposed(x, [*(i for i in range(n) if i != of_x[0]), of_x[0]])
        return graph.node("MatMul", x, graph.transposed(y, [of_y[0], 1 - of_y[0]]))
    if len(of_x) == 1 and batch_x == batch_y == tuple(range(k)) and n == m == k + 2:
        x = graph.transposed(x, [*range(k), 2 * k + 1 - of_x[0], of_x[0]])
        return graph.node("MatMul", x, graph.transposed(y, [*range(k), of_y[0], 2 * k + 1 - of_y[0]]))
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in range(n)]
    right = [next(letters) for _ in range(m)]
    for i, j in (*zip(of_x, of_y, strict=True), *zip(batch_x, batch_y, strict=True)):
        right[j] = left[i]
    kept = [left[i] for i in batch_x] + [c for i, c in enumerate(left) if i not in (*of_x, *batch_x)]
    kept += [c for i, c in enumerate(right) if i not in (*of_y, *batch_y)]
    return graph.node("Einsum", x, y, equation=f"{''.join(left)},{''.join(right)}->{''.join(kept)}")


# --- windows, along the axes after batch and features ---------------------------------------------------------------


def _conv(graph: Writer, eqn: Any, x: str, kernel: str) -> str:
    params = eqn.params
    numbers, padding = params["dimension_numbers"], params["padding"]
    if params["batch_group_count"] != 1 or any(n < 0 for pad in padding for n in pad):
        raise NoForm("a convolution of groups of samples, or with less than no padding")
    if eqn.invars[0].aval.dtype == np.float64:
        raise NoForm("a convolution in float64, which onnxruntime has in float32 only")
    gaps = dict(zip(numbers.lhs_spec[2:], params["lhs_dilation"], strict=True))
    shape, zero = eqn.invars[0].aval.shape, graph.constant(0, eqn.invars[0].aval.dtype)
    x, _ = _spread(graph, x, shape, [gaps.get(axis, 1) - 1 for axis in range(len(shape))], zero)
    out = graph.node(
        "Conv",
        graph.transposed(x, numbers.lhs_spec),
        graph.transposed(kernel, numbers.rhs_spec),
        group=params["feature_group_count"],
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        pads=[int(pad[i]) for i in (0, 1) for pad in padding],
    )
    return graph.transposed(out, np.argsort(numbers.out_spec))


def _pool(kind: str) -> Callable[..., str]:
    def write(graph: Writer, eqn: Any, x: str) -> str:
        params, n = eqn.params, len(eqn.invars[0].aval.shape)
        size, strides, padding, dilation = (
            params[name] for name in ("window_dimensions", "window_strides", "padding", "window_dilation")
        )
        ends = [(option[0], option[-1]) for option in (size, strides, dilation)]
        plain = set(ends) == {(1, 1)} and not any((*padding[0], *padding[-1])) and set(params["base_dilation"]) == {1}
        if not plain or not 3 <= n <= 5 or not jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating):
            raise NoForm("a window that is not one of floating-point numbers over one to three spatial axes")
        if kind == "AveragePool" and eqn.invars[0].aval.dtype == np.float64:
            raise NoForm("a sum over windows in float64, which onnxruntime has in float32 only")
        out = graph.node(
            kind,
            graph.transposed(x, (0, n - 1, *range(1, n - 1))),
            kernel_shape=size[1:-1],
            strides=strides[1:-1],
            pads=[int(pad[i]) for i in (0, 1) for pad in padding[1:-1]],
            **({"dilations": dilation[1:-1]} if set(dilation) != {1} else {}),
            **({"count_include_pad": 1} if kind == "AveragePool" else {}),
        )
        if kind == "AveragePool":
            out = graph.node("Mul", out, graph.constant(np.asarray(math.prod(size), eqn.outvars[0].aval.dtype)))
        return graph.transposed(out, (0, *range(2, n), 1))

    return write


ARRAYS: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "squeeze": _squeeze, "transpose": _transpose,
    "rev": lambda graph, eqn, x: graph.flipped(x, eqn.params["dimensions"]),
    "concatenate": _concatenate, "stack": _stack, "slice": _slice, "split": _split, "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice, "pad": _pad, "iota": _iota, "dim_as_value": _dim_as_value,
    "tile": lambda graph, eqn, x: graph.node("Tile", x, graph.ints(eqn.params["reps"])),
    "gather": _gather, "sort": _sort, "top_k": _top_k,
    "reduce_sum": _reduce("ReduceSum"), "reduce_max": _reduce_extreme("ReduceMax"),
    "reduce_min": _reduce_extreme("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"), "reduce_or": _reduce_boolean("ReduceMax"),
    "reduce_and": _reduce_boolean("ReduceMin"), "argmax": _argument("ArgMax"), "argmin": _argument("ArgMin"),
    "cumsum": _cumsum, "dot_general": _dot_general, "conv_general_dilated": _conv,
    "reduce_window_max": _pool("MaxPool"), "reduce_window_sum": _pool("AveragePool"),
}  # fmt: skip
