"""Programs in few kinds of operations: calls inlined, constants computed, what a format lacks written otherwise."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _compat
from .._tree import is_traced

Rules = Mapping[str, Callable[..., Any]]


def in_plain_operations(function: Callable[..., Any], rules: Rules | None = None) -> Callable[..., list[Any]]:
    """The same function of arrays, in which no function is called, and nothing computed of constants alone.

    `rules` say, by the name of an operation, what stands for it: a function of its operands and its parameters that
    returns its results, or `None` for the operation as it is.
    """

    def plain(*arrays: Any) -> list[Any]:
        specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
        return _evaluated(jax.make_jaxpr(function)(*specs), arrays, {**_RULES, **(rules or {})})

    return plain


class NoForm(ValueError):
    """What a format has no form for."""


_MOST_FOLDED = 2**14  # elements of a constant that is made of smaller ones


def _evaluated(closed: Any, args: Any, rules: Rules) -> list[Any]:
    """The outputs of a jaxpr, closed or, as of a checkpoint, without constants, in operations of the trace around."""
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def value(atom: Any) -> Any:
        return _typed(atom.val, atom) if isinstance(atom, _compat.Literal) else known[atom]

    for eqn in _compat.needed(jaxpr):
        values = list(map(value, eqn.invars))
        known.update(zip(eqn.outvars, _results(eqn, values, rules), strict=True))
    return [_typed(value(var), var) for var in jaxpr.outvars]


def _results(eqn: Any, values: list[Any], rules: Rules) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    inner = _compat.called_program(eqn)
    if inner is not None and name not in _LOOPS and name not in rules:
        return _evaluated(inner, values, rules)
    if name in ("linear_solve", "vprim"):  # of lineax, and in a batch: a program only when it is lowered
        solve = lambda *xs: eqn.primitive.impl(*xs, **params)  # noqa: E731
        specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in values]
        return _evaluated(jax.make_jaxpr(solve)(*specs), values, rules)
    if _is_constant(eqn, values):
        with jax.ensure_compile_time_eval():
            return _compat.run_equation(eqn, values)
    if name in _LOOPS:
        return _LOOPS[name](eqn, values, rules)
    out = rules[name](*values, **params) if name in rules else None
    if out is None:
        return _compat.run_equation(eqn, values)
    return list(out) if eqn.primitive.multiple_results else [out]


def _is_constant(eqn: Any, values: list[Any]) -> bool:
    """Whether the results are known and not much larger than what they are made of."""
    if (not values and eqn.primitive.name == "dim_as_value") or eqn.effects or any(map(is_traced, values)):
        return False
    shapes = [var.aval.shape for var in eqn.outvars]
    if not all(isinstance(n, int) for shape in shapes for n in shape):
        return False
    return sum(map(math.prod, shapes)) <= max(_MOST_FOLDED, sum(np.size(x) for x in values))


# --- loops and branches -------------------------------------------------------------------------------------------


def _while(eqn: Any, values: list[Any], rules: Rules) -> list[Any]:
    params = eqn.params
    cond, body, n, m = (params[key] for key in ("cond_jaxpr", "body_jaxpr", "cond_nconsts", "body_nconsts"))

    def goes_on(carry: Any) -> Any:
        return _evaluated(cond, [*values[:n], *carry], rules)[0]

    def all_end(carry: Any) -> Any:
        goes = goes_on(carry)
        return lax.reduce_or(goes, tuple(range(goes.ndim)))

    def step(carry: Any) -> Any:
        new = _evaluated(body, [*values[n : n + m], *carry], rules)
        goes = goes_on(carry)
        if goes.ndim == 0:
            return new
        goes = [lax.broadcast_in_dim(goes, x.shape, tuple(range(goes.ndim))) for x in new]
        return [_select(go, x, old) for go, x, old in zip(goes, new, carry, strict=True)]

    return lax.while_loop(all_end, step, list(map(_typed, values[n + m :], eqn.invars[n + m :])))


def _scan(eqn: Any, values: list[Any], rules: Rules) -> list[Any]:
    params = eqn.params
    n, m = _compat.scan_counts(params)

    def step(carry: Any, x: Any) -> Any:
        out = _evaluated(params["jaxpr"], [*values[:n], *carry, *x], rules)
        return out[:m], out[m:]

    init = list(map(_typed, values[n : n + m], eqn.invars[n : n + m]))
    xs = list(map(_typed, values[n + m :], eqn.invars[n + m :]))
    if isinstance(params["length"], int) and params["length"] == 0:
        return [*init, *(jnp.zeros(var.aval.shape, var.aval.dtype) for var in eqn.outvars[m:])]
    carry, ys = lax.scan(step, init, xs, None if xs else params["length"], reverse=params["reverse"])
    return [*carry, *ys]


def _cond(eqn: Any, values: list[Any], rules: Rules) -> list[Any]:
    index, *operands = values
    branches = eqn.params["branches"]
    if not is_traced(index):
        return _evaluated(branches[int(index)], operands, rules)
    return lax.switch(
        index, [lambda *xs, branch=branch: _evaluated(branch, xs, rules) for branch in branches], *operands
    )


_LOOPS = {"while": _while, "scan": _scan, "cond": _cond}


def _typed(x: Any, atom: Any) -> Any:
    """A value, which may be a Python number, in the type of a variable."""
    if is_traced(x):
        return lax.convert_element_type(x, atom.aval.dtype)
    return x if isinstance(x, jax.Array) and x.dtype == atom.aval.dtype else np.asarray(x, atom.aval.dtype)


# --- operations written otherwise ---------------------------------------------------------------------------------


def _select(which: Any, if_true: Any, if_false: Any) -> Any:
    """`lax.select`; booleans by logic, for onnxruntime selects none."""
    if if_true.dtype != bool:
        return lax.select(which, if_true, if_false)
    return lax.bitwise_or(lax.bitwise_and(which, if_true), lax.bitwise_and(lax.bitwise_not(which), if_false))


def _select_n(which: Any, *cases: Any) -> Any:
    if len(cases) != 2 or cases[0].dtype != bool:
        return None
    which = which if which.dtype == bool else lax.ne(which, jnp.zeros((), which.dtype))
    which = which if jnp.shape(which) == cases[0].shape else lax.broadcast(which, cases[0].shape)
    return _select(which, cases[1], cases[0])


def _unstack(x: Any, *, axis: int) -> list[Any]:
    return [lax.squeeze(lax.slice_in_dim(x, i, i + 1, axis=axis), [axis]) for i in range(x.shape[axis])]


def _polynomial(x: Any, *coefficients: Any) -> Any:
    """By Horner's rule; the coefficients are in ascending order."""
    *rest, total = coefficients
    for coefficient in reversed(rest):
        total = x * total + coefficient
    return total


def _next_after(x: Any, y: Any) -> Any:
    """The neighbor of `x` on the way to `y`: for normal numbers, 0.75 units away, rounded."""
    eps = float(jnp.finfo(x.dtype).eps)
    away = lax.max(lax.abs(x) * (0.75 * eps), jnp.full_like(x, float(jnp.finfo(x.dtype).tiny)))
    y = y if jnp.shape(y) == x.shape else lax.broadcast(y, x.shape)
    return lax.select(lax.eq(x, y), y, x + lax.sign(y - x) * away)


def _gather(x: Any, indices: Any, *, dimension_numbers: Any, slice_sizes: Any, mode: Any, **_: Any) -> Any:
    """Slices, where there is one index, or a few that are known."""
    numbers = dimension_numbers
    axes, gone = numbers.start_index_map, numbers.collapsed_slice_dims
    if numbers.operand_batching_dims or indices.ndim > 2:
        return None
    if is_traced(indices):
        if indices.ndim != 1 or mode == lax.GatherScatterMode.FILL_OR_DROP:
            return None
        at = {axis: _item(indices, i) for i, axis in enumerate(axes)}
        first = [at.get(axis, jnp.zeros((), indices.dtype)) for axis in range(x.ndim)]
        return lax.squeeze(_dynamic_slice(x, *first, slice_sizes=slice_sizes), gone)
    rows, parts = np.atleast_2d(indices), []
    if not 0 < len(rows) <= _MOST_SLICES:
        return None
    for row in rows:
        at = dict(zip(axes, row.tolist(), strict=True))
        sizes = [(x.shape[axis], slice_sizes[axis], i) for axis, i in at.items()]
        if not all(isinstance(n, int) and 0 <= i <= n - size for n, size, i in sizes):
            return None
        first = [at.get(axis, 0) for axis in range(x.ndim)]
        part = lax.slice(x, first, [i + n for i, n in zip(first, slice_sizes, strict=True)])
        parts.append(lax.squeeze(part, gone))
    if indices.ndim == 1:
        return parts[0]
    (new,) = set(range(parts[0].ndim + 1)) - set(numbers.offset_dims)
    return lax.concatenate([lax.expand_dims(part, [new]) for part in parts], new)


_MOST_SLICES = 64  # that stand for one gather


def _item(x: Any, i: int) -> Any:
    return lax.squeeze(lax.slice(x, [i], [i + 1]), [0])


def _dynamic_slice(x: Any, *first: Any, slice_sizes: Any) -> Any:
    """With starts inside, which JAX means and formats do not."""
    return lax.dynamic_slice_p.bind(x, *_inside(first, x.shape, slice_sizes), slice_sizes=tuple(slice_sizes))


def _dynamic_update_slice(x: Any, update: Any, *first: Any) -> Any:
    return lax.dynamic_update_slice_p.bind(x, update, *_inside(first, x.shape, update.shape))


def _inside(first: Any, shape: Any, sizes: Any) -> list[Any]:
    """The starts of a slice of these sizes, moved so that it is inside; along whole axes zero."""
    starts = []
    for i, size, n in zip(first, shape, sizes, strict=True):
        if n is size or n == size:
            starts.append(jnp.zeros((), i.dtype))
        else:
            starts.append(lax.clamp(jnp.zeros((), i.dtype), i, jnp.asarray(size - n, i.dtype)))
    return starts


def _scatter(x: Any, indices: Any, updates: Any, *, dimension_numbers: Any, mode: Any, **_: Any) -> Any:
    """A choice by position, where there is one index."""
    numbers = dimension_numbers
    gone, axes = numbers.inserted_window_dims, numbers.scatter_dims_to_operand_dims
    rest = tuple(axis for axis in range(x.ndim) if axis not in gone)
    if indices.ndim != 1 or numbers.operand_batching_dims or len(numbers.update_window_dims) != updates.ndim:
        return None
    sizes = dict(zip(rest, updates.shape, strict=True))
    here = None
    for i, axis in enumerate(axes):
        n = x.shape[axis]
        if sizes.get(axis, 1) == n and mode == lax.GatherScatterMode.CLIP:
            continue
        if sizes.get(axis, 1) != 1:
            return None
        index = _item(indices, i)
        if mode == lax.GatherScatterMode.CLIP:
            index = lax.clamp(jnp.zeros((), index.dtype), index, jnp.asarray(n - 1, index.dtype))
        same = lax.eq(lax.iota(index.dtype, n), lax.broadcast(index, (n,)))
        same = lax.broadcast_in_dim(same, x.shape, (axis,))
        here = same if here is None else lax.bitwise_and(here, same)
    new = lax.broadcast_in_dim(updates, x.shape, rest)
    return new if here is None else lax.select(here, new, x)


def scatter_add(x: Any, indices: Any, updates: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    """A sum with the updates between zeros, where there is one index that is known, as in gradients of `x[..., 0]`."""
    numbers = dimension_numbers
    if is_traced(indices) or np.ndim(indices) != 1 or len(numbers.update_window_dims) != updates.ndim:
        return None
    first = dict(zip(numbers.scatter_dims_to_operand_dims, np.asarray(indices).tolist(), strict=True))
    part, pads = lax.expand_dims(updates, numbers.inserted_window_dims), []
    for axis, (size, n) in enumerate(zip(part.shape, x.shape, strict=True)):
        before = first.get(axis, 0)
        after = -before if n == size else n - size - before
        if not isinstance(after, int) or before < 0 or after < 0:
            return None
        pads.append((before, after, 0))
    padded = lax.pad(part, np.zeros((), x.dtype), pads)
    return padded if not is_traced(x) and not np.any(x) else lax.add(x, padded)


_RULES: Rules = {
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": scatter_add,
    "scatter_add": scatter_add,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "nextafter": _next_after,
    "select_n": _select_n,
    "unstack": _unstack,
    "polynomial": _polynomial,
    "one_minus_square": lambda x: 1 - x * x,
    "optimization_barrier": lambda *xs: xs,
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
}
