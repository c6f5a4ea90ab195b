"""Operations element by element as operators of ONNX, which broadcast by themselves."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .onnx_graph import Writer
from .plain_program import NoForm


def _same(kind: str) -> Callable[..., str]:
    return lambda graph, eqn, *xs: graph.node(kind, *xs)


def _single(kind: str) -> Callable[..., str]:
    """An operator that onnxruntime has in single precision only."""

    def write(graph: Writer, eqn: Any, x: str) -> str:
        if eqn.invars[0].aval.dtype == np.float64:
            raise NoForm(f"its operation `{eqn.primitive.name}` in float64, which onnxruntime has in float32 only")
        return graph.node(kind, x)

    return write


def _one(eqn: Any, value: float) -> Any:
    return np.asarray(value, eqn.outvars[0].aval.dtype)


def _logical(of_booleans: str, of_numbers: str) -> Callable[..., str]:
    def write(graph: Writer, eqn: Any, *xs: str) -> str:
        return graph.node(of_booleans if eqn.invars[0].aval.dtype == bool else of_numbers, *xs)

    return write


def _ordered(kind: str) -> Callable[..., str]:
    def write(graph: Writer, eqn: Any, *xs: str) -> str:
        return graph.node(kind, *(graph.cast(x, np.int32) if eqn.invars[0].aval.dtype == bool else x for x in xs))

    return write


def _extreme(of_numbers: str, of_booleans: str) -> Callable[..., str]:
    def write(graph: Writer, eqn: Any, *xs: str) -> str:
        return graph.node(of_booleans if eqn.outvars[0].aval.dtype == bool else of_numbers, *xs)

    return write


def _convert(graph: Writer, eqn: Any, x: str) -> str:
    """As XLA: floating-point numbers that whole ones of a type do not reach become the nearest one, NaN zero."""
    old, new = eqn.invars[0].aval.dtype, np.dtype(eqn.params["new_dtype"])
    if old.kind != "f" or new.kind not in "iu" or new == np.uint64:  # which onnxruntime does not choose among
        return graph.cast(x, new)
    least, most = np.iinfo(new).min, np.iinfo(new).max
    low, top = (graph.constant(n, old) for n in (least, most + 1))
    below, above = graph.node("Less", x, low), graph.node("GreaterOrEqual", x, top)
    outside = graph.node("Or", graph.node("IsNaN", x), graph.node("Or", below, above))
    whole = graph.cast(graph.node("Where", outside, graph.constant(0, old), x), np.int64)
    ends = (graph.constant(n, np.int64) for n in (least, most))
    whole = graph.node("Where", below, next(ends), whole)
    return graph.cast(graph.node("Where", above, next(ends), whole), new)


def _integer_pow(graph: Writer, eqn: Any, x: str) -> str:
    power = eqn.params["y"]
    if power == 2:
        return graph.node("Mul", x, x)
    if power == -1:
        return graph.node("Reciprocal", x)
    return graph.node("Pow", x, graph.constant(_one(eqn, power)))


def _expm1(graph: Writer, eqn: Any, x: str) -> str:
    """tanh(x / 2) (exp(x) + 1), which is exact near zero."""
    half = graph.node("Tanh", graph.node("Mul", x, graph.constant(_one(eqn, 0.5))))
    return graph.node("Mul", half, graph.node("Add", graph.node("Exp", x), graph.constant(_one(eqn, 1))))


def _log1p(graph: Writer, eqn: Any, x: str) -> str:
    """log(u) x / (u - 1) with u = 1 + x, which is exact near zero."""
    one = graph.constant(_one(eqn, 1))
    u = graph.node("Add", x, one)
    ratio = graph.node("Div", x, graph.node("Sub", u, one))
    plain = graph.node("Or", graph.node("Equal", u, one), graph.node("IsInf", x))
    return graph.node("Where", plain, x, graph.node("Mul", graph.node("Log", u), ratio))


def _atan2(graph: Writer, eqn: Any, y: str, x: str) -> str:
    zero, pi = graph.constant(_one(eqn, 0)), _one(eqn, math.pi)
    angle = _single("Atan")(graph, eqn, graph.node("Div", y, x))
    below, left, none = (graph.node("Less", y, zero), graph.node("Less", x, zero), graph.node("Equal", x, zero))
    turn = graph.node("Where", below, graph.constant(-pi), graph.constant(pi))
    upright = graph.node("Mul", graph.node("Sign", y), graph.constant(_one(eqn, math.pi / 2)))
    angle = graph.node("Where", left, graph.node("Add", angle, turn), angle)
    return graph.node("Where", none, upright, angle)


def _is_finite(graph: Writer, eqn: Any, x: str) -> str:
    return graph.node("Not", graph.node("Or", graph.node("IsNaN", x), graph.node("IsInf", x)))


def _round(graph: Writer, eqn: Any, x: str) -> str:
    if int(eqn.params["rounding_method"]) == 1:
        return graph.node("Round", x)
    size = graph.node("Abs", x)
    down = graph.node("Floor", size)
    up = graph.node("GreaterOrEqual", graph.node("Sub", size, down), graph.constant(_one(eqn, 0.5)))
    up = graph.cast(up, eqn.outvars[0].aval.dtype)
    return graph.node("Mul", graph.node("Sign", x), graph.node("Add", down, up))


def _cbrt(graph: Writer, eqn: Any, x: str) -> str:
    root = graph.node("Pow", graph.node("Abs", x), graph.constant(_one(eqn, 1 / 3)))
    return graph.node("Mul", graph.node("Sign", x), root)


def _select(graph: Writer, eqn: Any, which: str, *cases: str) -> str:
    kind = eqn.invars[0].aval.dtype
    if kind.kind == "b":
        return graph.node("Where", which, cases[1], cases[0])
    out = cases[0]
    for i, case in enumerate(cases[1:], 1):
        out = graph.node("Where", graph.node("Equal", which, graph.constant(i, kind)), case, out)
    return out


def _equal_not(graph: Writer, eqn: Any, x: str, y: str) -> str:
    return graph.node("Not", graph.node("Equal", x, y))


ELEMENTWISE: dict[str, Callable[..., str]] = {
    "add": _same("Add"), "add_any": _same("Add"), "sub": _same("Sub"), "mul": _same("Mul"), "div": _same("Div"),
    "max": _extreme("Max", "Or"), "min": _extreme("Min", "And"), "pow": _same("Pow"), "neg": _same("Neg"),
    "abs": _same("Abs"),
    "rem": lambda graph, eqn, x, y: graph.node("Mod", x, y, fmod=1), "sign": _same("Sign"), "floor": _same("Floor"),
    "ceil": _same("Ceil"), "round": _round, "exp": _same("Exp"), "log": _same("Log"), "sqrt": _same("Sqrt"),
    "rsqrt": lambda graph, eqn, x: graph.node("Reciprocal", graph.node("Sqrt", x)), "cbrt": _cbrt,
    "exp2": lambda graph, eqn, x: graph.node("Pow", graph.constant(_one(eqn, 2)), x),
    "square": lambda graph, eqn, x: graph.node("Mul", x, x), "integer_pow": _integer_pow,
    "expm1": _expm1, "log1p": _log1p, "logistic": _same("Sigmoid"), "tanh": _same("Tanh"), "sin": _same("Sin"),
    "cos": _same("Cos"), "tan": _single("Tan"), "asin": _single("Asin"), "acos": _single("Acos"),
    "atan": _single("Atan"), "atan2": _atan2, "sinh": _single("Sinh"), "cosh": _single("Cosh"),
    "asinh": _single("Asinh"), "acosh": _single("Acosh"), "atanh": _single("Atanh"), "erf": _single("Erf"),
    "erfc": lambda graph, eqn, x: graph.node("Sub", graph.constant(_one(eqn, 1)), _single("Erf")(graph, eqn, x)),
    "eq": _same("Equal"), "ne": _equal_not, "lt": _ordered("Less"), "le": _ordered("LessOrEqual"),
    "gt": _ordered("Greater"), "ge": _ordered("GreaterOrEqual"),
    "and": _logical("And", "BitwiseAnd"), "or": _logical("Or", "BitwiseOr"),
    "xor": _logical("Xor", "BitwiseXor"), "not": _logical("Not", "BitwiseNot"), "is_finite": _is_finite,
    "select_n": _select, "clamp": lambda graph, eqn, low, x, up: graph.node("Min", graph.node("Max", x, low), up),
    "convert_element_type": _convert,
}  # fmt: skip
