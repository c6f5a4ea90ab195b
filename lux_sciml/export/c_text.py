"""Numbers, constant arrays and small functions as C99."""

import re
from typing import Any

import numpy as np

TYPES = {"float32": "float", "float64": "double", "bool": "unsigned char"} | {
    f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_HELPERS = {  # of two numbers of which one is NaN, that is the larger and the smaller one, as in JAX
    "max": "static inline {t} max_{t}({t} a, {t} b) {{ return a > b{nan} ? a : b; }}",
    "min": "static inline {t} min_{t}({t} a, {t} b) {{ return a < b{nan} ? a : b; }}",
    "bits": "static inline {to} bits_{t}_{to}({t} a) {{ union {{ {t} a; {to} b; }} both; both.a = a; return both.b; }}",
    "sign": "static inline {t} sign_{t}({t} a) {{ return a > 0 ? 1 : a < 0 ? -1 : a; }}",
    "logistic": "static inline {t} logistic_{t}({t} a) {{ return 1 / (1 + exp{f}(-a)); }}",
    "whole": "static inline {to} whole_{t}_{to}({t} a)"  # as XLA: the nearest one, of NaN zero
    " {{ return a != a ? 0 : a >= {top} ? {high} : a < {low} ? {least} : ({to})a; }}",
    "clip": "static inline int64_t clip_{t}(int64_t a, int64_t high) {{ return a < 0 ? 0 : a > high ? high : a; }}",
}


class Constants:
    """The constant arrays and the small functions of a file, each once."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, bytes], tuple[str, np.ndarray]] = {}
        self._helpers: dict[str, str] = {}

    def array(self, array: np.ndarray) -> str:
        array = np.ascontiguousarray(array)
        key = (array.dtype.name, array.tobytes())
        return self._arrays.setdefault(key, (f"c{len(self._arrays)}", array))[0]

    def helper(self, name: str, dtype: np.dtype, out: np.dtype | None = None) -> str:
        """The name of one of the functions above, for numbers of a type."""
        kind, to = "int64_t" if name == "clip" else TYPES[dtype.name], TYPES[(out or dtype).name]
        nan = " || a != a" if dtype.kind == "f" else ""
        full = f"{name}_{kind}" if out is None else f"{name}_{kind}_{to}"
        ends = _ends(dtype, out) if name == "whole" and out is not None else {}
        self._helpers[full] = _HELPERS[name].format(t=kind, f=suffix(dtype), nan=nan, to=to, **ends)
        return full

    def text(self) -> str:
        parts = sorted(self._helpers.values())
        for name, array in self._arrays.values():
            body = ",\n".join(f"    {row}" for row in _rows(array)) or "    0"  # of an array of no elements
            parts.append(f"static const {TYPES[array.dtype.name]} {name}[{max(array.size, 1)}] ALIGNED = {{\n{body}}};")
        return "\n".join(parts)


def _ends(dtype: np.dtype, whole: np.dtype) -> dict[str, str]:
    """The least and the largest of a type of whole numbers, and where they begin in a type of others."""
    least, high = np.iinfo(whole).min, np.iinfo(whole).max
    places = {"low": dtype.type(least), "top": dtype.type(high + 1)}
    numbers = {**places, "least": whole.type(least), "high": whole.type(high)}
    return {name: literal(number) for name, number in numbers.items()}


def _rows(array: np.ndarray) -> list[str]:
    numbers = array.ravel()
    return [", ".join(map(literal, numbers[i : i + 8])) for i in range(0, numbers.size, 8)]


def literal(number: Any) -> str:
    """A number as C reads it back bit by bit."""
    number = np.asarray(number)[()]
    if number.dtype.kind == "f":
        if not np.isfinite(number):
            return "NAN" if np.isnan(number) else "INFINITY" if number > 0 else "-INFINITY"
        text = repr(number.item()) if number.dtype.itemsize == 8 else str(number)
        return (text if re.search(r"[.e]", text) else text + ".0") + suffix(number.dtype)
    if number.dtype == np.int64 and not -(2**31) < number < 2**31:
        return "INT64_MIN" if number == np.iinfo(np.int64).min else f"INT64_C({number})"
    if number.dtype == np.int32 and number == np.iinfo(np.int32).min:
        return "INT32_MIN"
    if number.dtype.kind == "u" and number >= 2**31:
        return f"UINT{8 * number.dtype.itemsize}_C({number})"
    return str(int(number))


def suffix(dtype: np.dtype) -> str:
    return "f" if dtype.itemsize == 4 and dtype.kind == "f" else ""
