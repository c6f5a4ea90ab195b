"""Models as C99 source that needs nothing but libm, for simulation codes in C, C++ and Fortran."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components import ComponentVector
from ..components.replacing import replacing
from ..core import StatefulLayer
from .c_loops import Loops, varying
from .c_places import Place
from .c_routines import Argument, Routine, require_independence, routines_of
from .c_text import TYPES, Constants
from .function import PlainFunction, plain_function
from .metadata import MARK, require_not_foreign
from .plain_solves import plain_solves

_FAST = "cc -O3 -march=native -fno-math-errno -fno-trapping-math -D__FAST_MATH__"
_MOST_STACK = 65536  # bytes of arrays on the stack


def c_source(
    path: str | os.PathLike[str],
    model: Any,
    ps: Any = None,
    st: Any = None,
    x: Any = None,
    *,
    batch_axis: Any = 0,
    params: str = "constant",
    names: Mapping[str, str] | None = None,
    jvp: bool = False,
    vjp: bool = False,
    dtype: Any = None,
    name: str | None = None,
    fortran: bool = True,
) -> None:
    r"""Write a layer or a function as C99 source: `path`, which ends in `.c`, a header and a Fortran module beside it.

    * `model`, `ps`, `st`, `x`, `batch_axis`, `params`, `names`: see `lux.export.plain_function`. With
      `params="input"` their flat vector is an argument of each function.
    * `jvp`, `vjp`: whether there are also functions of products of the Jacobian J with vectors.
    * `dtype`: `jnp.float32` or `jnp.float64`, to which floating-point parameters and inputs are converted.
    * `name`: what the names of the functions begin with (default: the name of the file).
    * `fortran`: whether the module `name.f90` is written, with the interfaces by `iso_c_binding`.

    There are, with `n` samples in each array, one after the other, whatever axis of `x` is the batch's, or with
    `batch_axis=None` arrays as they are, and no argument `n`:

    * `void name_forward(int n, const float *x, float *y)`: :math:`y_i = f(x_i)`;
    * `name_jvp(n, x, x_dot, y, y_dot)`: also :math:`\dot y_i = J(x_i) \dot x_i`;
    * `name_vjp(n, x, y_bar, x_bar)`: :math:`\bar x_i = J(x_i)^T \bar y_i`; for inputs that all samples share, as
      the parameters are, the sum over the samples. Outputs that all samples share are left out.

    Each sample is computed by itself: an adaptive solve takes the steps of a solve of that sample alone. The functions
    share no memory, so that threads may call them at the same time. Arrays of up to 64 kB are on the stack; beyond, a
    function takes memory as its last argument, `void *work`, of `NAME_FORWARD_WORK` bytes. The arrays of a call must
    not overlap. Equal models give equal files.

    Raises what `plain_function` raises, and `ValueError` for operations that have no translation, for a model
    whose output for one sample depends on the others, and with `vjp` for loops of any length, as solves of equations
    are; `FileExistsError` where a path is that of other source.

    >>> import jax, jax.numpy as jnp, pathlib, tempfile, lux_sciml as lux
    >>> from lux_sciml.export.c_source import c_source
    >>> net = lux.Dense(2, 3, jnp.tanh)
    >>> ps, st = lux.setup(jax.random.key(0), net)
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> c_source(folder / "net.c", net, ps, lux.testmode(st), jnp.ones((1, 2)))
    >>> sorted(file.name for file in folder.iterdir())
    ['net.c', 'net.f90', 'net.h']
    """
    path = Path(path)
    name = _identifier(path, name)
    paths = [path, path.with_suffix(".h"), *[path.with_suffix(".f90")] * fortran]
    for file in [path] if path.exists() else paths:  # beside our source lie our own
        require_not_foreign(file)
    if isinstance(model, StatefulLayer):
        model, ps, st = model.layer, model.ps, model.st
    with _precision(dtype), plain_solves():
        converted = [_converted(tree, dtype) for tree in (ps, st, x)]
        function = plain_function(model, *converted, batch_axis=batch_axis, params=params, names=names, portable=True)
        function.require_types("C source", [t for t in TYPES if t != "bool"], "StableHLO (.stablehlo)")
        routines = routines_of(function, jvp, vjp)
        require_independence(function)
    metadata = _samples_first(function).metadata("C source")
    texts = [_source(path, name, routines, metadata), _header(name, routines, function)]
    texts += [_module(name, routines)] * fortran
    for file, text in zip(paths, texts, strict=True):
        with replacing(file) as out:
            out.write(text.encode())


def _identifier(path: Path, name: str | None) -> str:
    if path.suffix != ".c":
        raise ValueError(f"the path of C source ends in .c, got {str(path)!r}")
    found = re.sub(r"\W", "_", path.stem) if name is None else name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", found):
        raise ValueError(f"{found!r} is no name that functions in C and Fortran can begin with: pass name='model'")
    return found


def _precision(dtype: Any) -> Any:
    if dtype is None:
        return contextlib.nullcontext()
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"C source is written in float32 or float64, got dtype={np.dtype(dtype).name}")
    return jax.enable_x64(True) if np.dtype(dtype) == np.float64 else contextlib.nullcontext()


def _converted(tree: Any, dtype: Any) -> Any:
    def convert(x: Any) -> Any:
        if isinstance(x, ComponentVector):
            return x.astype(dtype)
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jax.ShapeDtypeStruct(x.shape, dtype) if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x, dtype)

    return tree if dtype is None else jax.tree.map(convert, tree, is_leaf=lambda x: isinstance(x, ComponentVector))


def _samples_first(function: PlainFunction) -> PlainFunction:
    """What is said of the arrays in C, where the samples are one after the other, whatever axis they are on here."""

    def moved(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(sorted(x.shape, key=lambda n: isinstance(n, int))), x.dtype)

    inputs, outputs = ({name: moved(x) for name, x in arrays.items()} for arrays in (function.inputs, function.outputs))
    return dataclasses.replace(function, inputs=inputs, outputs=outputs)


# --- C --------------------------------------------------------------------------------------------------------------

_ALIGNED = """#if defined(__GNUC__)
#define ALIGNED __attribute__((aligned(64)))
#elif defined(_MSC_VER)
#define ALIGNED __declspec(align(64))
#else
#define ALIGNED
#endif"""


def _source(path: Path, name: str, routines: list[Routine], metadata: dict[str, Any]) -> str:
    constants = Constants()
    functions = [text for routine in routines for text in _functions(name, routine, constants)]
    about = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in metadata.items())
    about = about.replace("*/", "*\\/")
    return (
        "\n\n".join(
            [
                f"/* {metadata['model']} as C99, written by lux_sciml {metadata['versions']['lux-sciml']}.\n"
                f"   Fast: {_FAST}\n"
                "   lets the headers of glibc offer vector functions. So does -ffast-math, which takes NaN,\n"
                "   the mark of a failed solve, for impossible.\n\n"
                f"{{\n{about}\n}} */",
                f'#include "{path.with_suffix(".h").name}"\n\n#include <math.h>\n#include <stddef.h>',
                _ALIGNED,
                constants.text(),
                *functions,
            ]
        ).replace("\n\n\n", "\n\n")
        + "\n"
    )


def _functions(name: str, routine: Routine, constants: Constants) -> list[str]:
    """The function for one sample, that for several side by side where there is one, and that for `n` of them."""
    full = f"{name}_{routine.name}"
    batched = any(not argument.shared for argument in routine.arguments)
    one = _body(routine, Loops(constants))
    if one.bytes > _MOST_STACK:
        one = _body(routine, Loops(constants, workspace=True))
        routine.work = one.bytes
    functions = [_defined(f"{routine.name}_one", routine, one)]
    lanes = 8 if any(argument.dtype.itemsize == 8 for argument in routine.arguments) else 16
    several = None
    if batched and not routine.work and not any(op.name in ("while", "cond") for op in routine.block.all()):
        several = _side_by_side(routine, Loops(constants, lanes))
        if several.bytes > _MOST_STACK:
            several = None
        else:
            functions.append(_defined(f"{routine.name}_{lanes}", routine, several))
    lines = [f"{_signature(full, routine, batched)} {{"]
    lines += [f"    for (int i = 0; i < {y.size}; i++) {y.name}[i] = 0;" for y in routine.outputs if y.summed]
    work = ", work" if routine.work else ""

    def call(kind: str) -> str:
        given = ", ".join(a.name + ("" if a.shared else f" + (size_t)i*{a.size}") for a in routine.arguments)
        return f"{routine.name}_{kind}({given}{work});"

    if not batched:
        lines.append("    " + call("one"))
    else:
        lines.append("    int i = 0;")
        if several is not None:
            lines.append(f"    for (; i + {lanes} <= n; i += {lanes}) {call(str(lanes))}")
        lines.append(f"    for (; i < n; i++) {call('one')}")
    return [*functions, "\n".join([*lines, "}"])]


def _signature(name: str, routine: Routine, batched: bool, qualifier: str = "*restrict ") -> str:
    pointers = [f"{'' if a.output else 'const '}{a.type} {qualifier}{a.name}" for a in routine.arguments]
    work = [f"void {qualifier}work"] if routine.work else []
    return f"void {name}({', '.join([*['int n'] * batched, *pointers, *work])})"


def _defined(name: str, routine: Routine, loops: Loops) -> str:
    return "\n".join([f"static {_signature(name, routine, False)} {{", *loops.lines, "}"])


def _body(routine: Routine, loops: Loops) -> Loops:
    """The statements for one sample: inputs are read, and outputs computed, where they are."""
    block = routine.block
    made = {value for op in block.operations for value in op.outputs}
    read = {value for op in block.operations for value in op.reads()} | set(block.outputs)
    for value, argument in zip(block.inputs, routine.inputs, strict=True):
        loops.places[value] = Place(argument.name, value.shape)
        if value not in read:
            loops.line(f"(void){argument.name};")
    pairs = list(zip(block.outputs, routine.outputs, strict=True))
    for value, argument in pairs:
        if value in made and value.known is None and not argument.summed:
            loops.given.setdefault(value, Place(argument.name, value.shape))
    loops.run(block)
    for value, argument in pairs:
        place = Place(argument.name, value.shape)
        if value.size == 0:
            loops.line(f"(void){argument.name};")
        if argument.summed:
            with loops.loop(value.shape) as index:
                loops.line(f"{place.at(index)} += {loops.scalar(value, index)};")
        elif loops.given.get(value) != place:
            loops.copy(value, place)
    return loops


def _side_by_side(routine: Routine, loops: Loops) -> Loops:
    """The statements for several samples, whose arrays have the samples as their last axis."""
    block, lanes = routine.block, loops.lanes
    owned = [v for v, x in zip(block.inputs, routine.inputs, strict=True) if not x.shared]
    loops.varying = varying(block, owned)
    read = {value for op in block.operations for value in op.reads()} | set(block.outputs)
    for value, argument in zip(block.inputs, routine.inputs, strict=True):
        if value not in read:
            loops.line(f"(void){argument.name};")
            continue
        if argument.shared:
            loops.places[value] = Place(argument.name, value.shape)
            continue
        place = loops.declare(value)
        with loops.loop([argument.size], lanes=True) as (i,):
            source = Place(argument.name, (lanes, argument.size)).at(["l", i])
            loops.line(f"{dataclasses.replace(place, shape=(argument.size,)).at([i])} = {source};")
    loops.run(block)
    for value, argument in zip(block.outputs, routine.outputs, strict=True):
        if argument.summed:
            with loops.loop(value.shape, lanes=True) as index:
                loops.line(f"{Place(argument.name, value.shape).at(index)} += {loops.scalar(value, index)};")
        elif argument.shared:
            loops.copy(value, Place(argument.name, value.shape))
        else:
            to = Place(argument.name, (lanes, *value.shape))
            with loops.loop(value.shape) as index, loops.lane():
                loops.line(f"{to.at(['l', *index])} = {loops.scalar(value, index)};")
    return loops


def _header(name: str, routines: list[Routine], function: PlainFunction) -> str:
    guard = f"{name.upper()}_H"
    samples = "arrays of n samples, one after the other; they" if function.symbols else "arrays"
    lines = [f"/* {function.name}, {MARK}: {samples} must not overlap. */"]
    lines += [f"#ifndef {guard}", f"#define {guard}", "", "#include <stdint.h>", ""]
    lines += ["#ifdef __cplusplus", 'extern "C" {', "#endif", ""]
    for routine in routines:
        arrays = [f"   {a.name}: {_shape(a)}{_kind(a)}" for a in routine.arguments]
        lines += [f"/* {routine.says}.", *arrays]
        if routine.work:
            lines += [f"   work: {routine.work} bytes, of each thread its own"]
        lines[-1] += " */"
        if routine.work:
            lines.append(f"#define {name.upper()}_{routine.name.upper()}_WORK {routine.work}")
        batched = any(not a.shared for a in routine.arguments)
        lines += [_signature(f"{name}_{routine.name}", routine, batched, "*") + ";", ""]
    lines += ["#ifdef __cplusplus", "}", "#endif", "", "#endif"]
    return "\n".join(lines) + "\n"


def _shape(argument: Argument) -> str:
    return f"({', '.join(map(str, argument.shape if argument.shared else ('n', *argument.shape)))})"


def _kind(argument: Argument) -> str:
    if argument.summed:
        return ", the sum over the samples"
    return ", shared by the samples" if argument.shared and argument.size else ""


# --- Fortran --------------------------------------------------------------------------------------------------------

_FORTRAN = {"float32": "real(c_float)", "float64": "real(c_double)"}
_FORTRAN |= {f"int{bits}": f"integer(c_int{bits}_t)" for bits in (8, 16, 32, 64)}


def _module(name: str, routines: list[Routine]) -> str:
    """A module of interfaces; the axes of arrays are in the opposite order, the samples last."""
    types = {_fortran(a) for routine in routines for a in routine.arguments}
    kinds = sorted({re.findall(r"\((\w+)\)", text)[0] for text in types} | {"c_int"})
    pointers = any(routine.work for routine in routines)
    used = ", ".join([*kinds, *["c_ptr"] * pointers])
    lines = [f"! {MARK}", f"module {name}", f"  use, intrinsic :: iso_c_binding, only: {used}"]
    lines += ["  implicit none", "", "  interface"]
    for routine in routines:
        full, batched = f"{name}_{routine.name}", any(not a.shared for a in routine.arguments)
        given = [*["n"] * batched, *(a.name for a in routine.arguments), *["work"] * bool(routine.work)]
        arguments = ", &\n        ".join(given)
        lines += [f"    subroutine {full}({arguments}) &", f'        bind(c, name="{full}")']
        lines += [f"      import :: {used}"] + ["      integer(c_int), value :: n"] * batched
        for a in routine.arguments:
            sizes = [*map(str, reversed(a.shape)), *["*"] * (not a.shared)]
            shape = f"({', '.join(sizes)})" if sizes else ""
            lines.append(f"      {_fortran(a)}, intent({'out' if a.output else 'in'}) :: {a.name}{shape}")
        lines += ["      type(c_ptr), value :: work"] * bool(routine.work)
        lines.append(f"    end subroutine {full}")
    return "\n".join([*lines, "  end interface", "", f"end module {name}"]) + "\n"


def _fortran(argument: Argument) -> str:
    return _FORTRAN[argument.dtype.name.removeprefix("u")]
