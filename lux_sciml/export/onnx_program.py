"""Programs in plain operations, with their loops and branches, as ONNX graphs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._compat import Literal, scan_counts
from .._tree import is_random_key
from .onnx_arrays import ARRAYS
from .onnx_elementwise import ELEMENTWISE
from .onnx_graph import Writer
from .plain_program import NoForm

_MEANT = {"custom_linear_solve": ", a linear system, as in gradients of equilibria"}


def run(graph: Writer, closed: Any, inputs: list[str]) -> list[str]:
    """Write a closed jaxpr; the values of its outputs. `NoForm` for what ONNX has no form for."""
    jaxpr = closed.jaxpr
    names = dict(zip(jaxpr.invars, inputs, strict=True))
    constants = [(var, x) for var, x in zip(jaxpr.constvars, closed.consts, strict=True) if not is_random_key(x)]
    names.update((var, graph.constant(x)) for var, x in constants)  # nothing reads a key

    def name(atom: Any) -> str:
        dtype = atom.aval.dtype
        return graph.constant(atom.val, dtype) if isinstance(atom, Literal) else names[atom]

    for eqn in jaxpr.eqns:
        names.update(zip(eqn.outvars, _written(graph, eqn, list(map(name, eqn.invars))), strict=True))
    return [graph.full(name(var), var.aval.shape) for var in jaxpr.outvars]


def _written(graph: Writer, eqn: Any, inputs: list[str]) -> list[str]:
    kind, shapes = eqn.primitive.name, [var.aval.shape for var in eqn.invars]
    if kind in ELEMENTWISE:
        out = ELEMENTWISE[kind](graph, eqn, *inputs)
        small = [
            x in graph.loose or shape != eqn.outvars[0].aval.shape for x, shape in zip(inputs, shapes, strict=True)
        ]
        if all(small):
            graph.loose.add(out)
        return [out]
    rule = ARRAYS.get(kind) or _LOOPS.get(kind)
    if rule is None:
        raise NoForm(f"its operation `{kind}`{_MEANT.get(kind, '')}")
    out = rule(graph, eqn, *map(graph.full, inputs, shapes))
    return out if eqn.primitive.multiple_results else [out]


# --- loops and branches -------------------------------------------------------------------------------------------


def _loop(graph: Writer, count: str, goes: str, start: list[str], avals: Any, ys: Any, body: Callable) -> list[str]:
    """A loop over values like `avals`, from `start`, whose `body` returns whether it goes on, values, and rows `ys`."""
    step, on, *carry = (graph.name() for _ in range(2 + len(start)))
    flag, number = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), np.int64)
    inputs = [(step, number), (on, flag), *zip(carry, avals, strict=True)]
    inside = graph.subgraph(inputs, lambda: body(step, on, carry), [flag, *avals, *ys])
    return graph.several("Loop", count, goes, *start, outputs=len(avals) + len(ys), body=inside)


def _while(graph: Writer, eqn: Any, *xs: str) -> list[str]:
    params = eqn.params
    cond, body, n, m = (params[key] for key in ("cond_jaxpr", "body_jaxpr", "cond_nconsts", "body_nconsts"))
    start = list(xs[n + m :])

    def step(_: str, on: str, carry: list[str]) -> list[str]:
        new = run(graph, body, [*xs[n : n + m], *carry])
        return [*run(graph, cond, [*xs[:n], *new]), *new]

    (goes,) = run(graph, cond, [*xs[:n], *start])
    return _loop(graph, "", goes, start, [var.aval for var in eqn.outvars], [], step)


def _scan(graph: Writer, eqn: Any, *xs: str) -> list[str]:
    params = eqn.params
    (n, m), length, back = scan_counts(params), params["length"], params["reverse"]
    count = graph.node("Squeeze", graph.size(length), graph.ints([0]))

    def step(i: str, on: str, carry: list[str]) -> list[str]:
        if back:
            i = graph.node("Sub", graph.node("Sub", count, graph.constant(1, np.int64)), i)
        rows = [graph.node("Gather", x, i, axis=0) for x in xs[n + m :]]
        return [on, *run(graph, params["jaxpr"], [*xs[:n], *carry, *rows])]

    avals, ys = ([var.aval for var in part] for part in (eqn.outvars[:m], eqn.outvars[m:]))
    rows = [jax.ShapeDtypeStruct(y.shape[1:], y.dtype) for y in ys]
    out = _loop(graph, count, "", list(xs[n : n + m]), avals, rows, step)
    return [*out[:m], *(graph.flipped(y, [0]) if back else y for y in out[m:])]


def _cond(graph: Writer, eqn: Any, index: str, *xs: str) -> list[str]:
    avals = [var.aval for var in eqn.outvars]

    def choice(branches: Any, first: int) -> list[str]:
        if len(branches) == 1:
            return run(graph, branches[0], list(xs))
        here = graph.node("Equal", index, graph.constant(first, eqn.invars[0].aval.dtype))
        this = graph.subgraph([], lambda: choice(branches[:1], first), avals)
        others = graph.subgraph([], lambda: choice(branches[1:], first + 1), avals)
        return graph.several("If", here, outputs=len(avals), then_branch=this, else_branch=others)

    return choice(eqn.params["branches"], 0)


_LOOPS = {"while": _while, "scan": _scan, "cond": _cond}
