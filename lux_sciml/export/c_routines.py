"""What the functions of a C file compute for one sample: a model, and products of its Jacobian with vectors."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import equations
from .c_loops import MATH, SUPPORTED, varying
from .c_text import TYPES
from .function import PlainFunction
from .lowering import Block, Value, lower


@dataclasses.dataclass
class Argument:
    """An array of a routine: its shape of one sample, whether samples share it, what it is in a block."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    shared: bool
    output: bool
    summed: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def type(self) -> str:
        return TYPES[self.dtype.name]


@dataclasses.dataclass
class Routine:
    """A function of the file: what it computes for one sample, from its inputs to its outputs."""

    name: str
    arguments: list[Argument]
    block: Block
    says: str
    work: int = 0

    @property
    def inputs(self) -> list[Argument]:
        return [argument for argument in self.arguments if not argument.output]

    @property
    def outputs(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.output]


def routines_of(function: PlainFunction, jvp: bool, vjp: bool) -> list[Routine]:
    """`forward`, and `jvp` and `vjp` where they are asked for."""
    one = function.fixed(**{symbol: 1 for symbol in function.symbols}) if function.symbols else function
    inputs = [_argument(name, spec, False) for name, spec in function.inputs.items()]
    outputs = [_argument(name, spec, True) for name, spec in function.outputs.items()]
    smooth = [k for k, x in enumerate(inputs) if x.dtype.kind == "f"]
    results = [k for k, y in enumerate(outputs) if y.dtype.kind == "f"]

    owned = [k for k in results if not (function.symbols and outputs[k].shared)]

    def of_sample(*arrays):
        batched = [jnp.reshape(x, spec.shape) for x, spec in zip(arrays, one.specs, strict=True)]
        return [jnp.reshape(y, out.shape) for y, out in zip(one.call(*batched), outputs, strict=True)]

    def of_floats(arrays, results):
        def f(*floats):
            every = list(arrays)
            for k, x in zip(smooth, floats, strict=True):
                every[k] = x
            found = of_sample(*every)
            return [found[k] for k in results]

        return f, [arrays[k] for k in smooth]

    def tangent(*arrays):
        f, floats = of_floats(arrays[: len(inputs)], results)
        y, y_dot = jax.jvp(f, floats, list(arrays[len(inputs) :]))
        return [*y, *y_dot]

    def cotangent(*arrays):
        f, floats = of_floats(arrays[: len(inputs)], owned)
        return jax.vjp(f, *floats)[1](list(arrays[len(inputs) :]))

    def routine(name, call, arguments, says):
        arguments = [dataclasses.replace(x, name=_in_c(x.name)) for x in arguments]
        foreign = [x.name for x in arguments if not x.name.isascii()]
        if foreign:
            raise ValueError(
                f"names in C and Fortran are of Latin letters, digits and underscores: rename {', '.join(foreign)} by "
                "names={'old': 'new'}"
            )
        if len({x.name.lower() for x in arguments}) < len(arguments):
            raise ValueError(
                f"Fortran takes two names of {', '.join(x.name for x in arguments)} for one: rename an input or output "
                "by names={'old': 'new'}"
            )
        specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments if not x.output]
        target = "C source" if name == "forward" else f"C source with {name}=True"
        block = lower(call, *specs, supported=SUPPORTED, to=target)
        block.outputs = [_before_reshapes(block, value) for value in block.outputs]
        return Routine(name, arguments, block, says)

    def renamed(k, arguments, suffix, output, **more):
        old = arguments[k]
        return dataclasses.replace(old, name=old.name + suffix, output=output, **more)

    x, y = [a.name for a in inputs], [a.name for a in outputs]
    routines = [routine("forward", of_sample, [*inputs, *outputs], f"{', '.join(y)} = f({', '.join(x)})")]
    for wanted, what in ((jvp, "jvp"), (vjp, "vjp")):
        if wanted and not (smooth and owned):
            raise ValueError(f"{what}=True is for functions of floating-point arrays, and {function.name} has none")
    if jvp:
        dots = [renamed(k, inputs, "_dot", False) for k in smooth]
        found = [outputs[k] for k in results] + [renamed(k, outputs, "_dot", True) for k in results]
        says = "the outputs, and their derivatives in the direction of the _dot inputs"
        routines.append(routine("jvp", tangent, [*inputs, *dots, *found], says))
    if vjp:
        bars = [renamed(k, outputs, "_bar", False) for k in owned]
        found = [renamed(k, inputs, "_bar", True, summed=inputs[k].shared) for k in smooth]
        says = "the gradient of the sum of _bar inputs times outputs"
        try:
            routines.append(routine("vjp", cotangent, [*inputs, *bars, *found], says))
        except ValueError as error:
            if "Reverse-mode differentiation does not work" not in str(error):
                raise
            raise ValueError(
                f"{function.name} has a loop of any length, as solves of equations are, which has no derivative in "
                "reverse mode: take jvp=True"
            ) from error
    for each in routines:
        _require_samples(function, each)
    return routines


_WORDS = frozenset(  # of C, C++ and Fortran's declarations, and what the functions use themselves
    "auto bool break case char class const continue default delete do double else enum extern false float for"
    " goto if inline int long namespace new operator private protected public register restrict return short"
    " signed sizeof static struct switch template this throw true try typedef union unsigned using virtual void"
    " volatile while work fabs fmod rint round isfinite NAN INFINITY ALIGNED".split()
)


def _in_c(name: str) -> str:
    """A name of an argument that is no word of the languages, and none that the statements have."""
    taken = (
        name in _WORDS
        or name.removesuffix("f") in MATH
        or name in MATH
        or re.fullmatch(r"[acijklnst]\d*", name.lower())
    )
    return f"x{name}" if name.startswith("_") else f"{name}_" if taken else name


def _before_reshapes(block: Block, value: Value) -> Value:
    """What an output is before its last reshapes: the same memory."""
    makers = {out: op for op in block.operations for out in op.outputs}
    while value in makers and makers[value].name == "reshape":
        (value,) = makers[value].inputs
    return value


def _argument(name: str, spec: jax.ShapeDtypeStruct, output: bool) -> Argument:
    """An array by its shape of one sample: the one symbolic size is that of the batch."""
    symbolic = [k for k, n in enumerate(spec.shape) if not isinstance(n, int)]
    if len(symbolic) > 1 or any(not re.fullmatch(r"[A-Za-z_]\w*", str(spec.shape[k])) for k in symbolic):
        raise ValueError(
            f"C source has one size that is known at run time, the number of samples, and {name!r} is of shape "
            f"{spec.shape}: fix the other sizes"
        )
    shape = tuple(int(n) for k, n in enumerate(spec.shape) if k not in symbolic)
    return Argument(name, shape, np.dtype(spec.dtype), not symbolic, output)


def _require_samples(function: PlainFunction, routine: Routine) -> None:
    """Raise `ValueError` for an output of the whole batch."""
    if not function.symbols:
        return
    owned = [v for v, x in zip(routine.block.inputs, routine.inputs, strict=True) if not x.shared]
    found = varying(routine.block, owned)
    for value, y in zip(routine.block.outputs, routine.outputs, strict=True):
        if y.shared and not y.summed and value in found:
            raise ValueError(
                f"{y.name!r}, an output of {function.name}, has no batch axis and depends on the samples, and C source "
                "computes one sample after the other: with batch_axis=None it is exported for a fixed batch"
            )


def require_independence(function: PlainFunction) -> None:
    """Raise `ValueError` where samples of a batch come out otherwise than alone, by more than rounding.

    In loops of any length by more than a solver's tolerance, for a batch may share its steps.
    """
    if len(function.symbols) != 1:
        return
    solves = any(eqn.primitive.name == "while" for eqn in equations(function.jaxpr))
    tolerance = 1e-2 if solves else 1e-4
    rng = np.random.default_rng(0)
    one, two = (function.fixed(**{function.symbols[0]: n}) for n in (1, 2))
    batched = [[k for k, n in enumerate(spec.shape) if not isinstance(n, int)] for spec in function.specs]
    values = [_sampled(rng, spec) for spec in two.specs]
    if function.params == "input":
        values[0] = function.values
    together = two.call(*values)
    for sample in (0, 1):
        alone = one.call(*(np.take(x, [sample], k[0]) if k else x for x, k in zip(values, batched, strict=True)))
        for (name, spec), a, b in zip(function.outputs.items(), together, alone, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            for axis in (k for k, n in enumerate(spec.shape) if not isinstance(n, int)):
                a, b = np.take(a, sample, axis), np.take(b, 0, axis)
            scale = np.max(np.abs(a), initial=0.0, where=np.isfinite(a)) if a.dtype.kind == "f" else 0
            if not np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True):
                raise ValueError(
                    f"{name!r}, an output of {function.name}, for one sample depends on the others of the batch, on "
                    "their number, or on its place among them, and C source computes each by itself: with "
                    "batch_axis=None it is exported for a fixed batch"
                )


def _sampled(rng: np.random.Generator, spec: jax.ShapeDtypeStruct) -> np.ndarray:
    numbers = rng.normal(size=spec.shape) if np.dtype(spec.dtype).kind == "f" else rng.integers(0, 2, spec.shape)
    return numbers.astype(spec.dtype)
