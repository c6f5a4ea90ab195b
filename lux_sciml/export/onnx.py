"""ONNX: for onnxruntime, OpenVINO and the runtimes of edge devices and phones."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .. import _compat
from .._libraries import library
from ..components.files import replacing
from .function import PlainFunction, plain_function
from .onnx_graph import Writer
from .onnx_program import run
from .plain_program import NoForm, in_plain_operations
from .plain_solves import plain_solves
from .saved_model import holding

_REAL = (np.float32, np.float64)
_WHOLE = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_)


def onnx(
    path: str | os.PathLike[str],
    model: Any,
    ps: Any = None,
    st: Any = None,
    x: Any = None,
    *,
    batch_axis: Any = 0,
    params: str = "constant",
    names: Mapping[str, str] | None = None,
    opset: int = 21,
) -> None:
    """Write a net, a solve or a function of arrays as an ONNX file.

    Inputs and outputs have names, and the metadata is in the property `lux_sciml` of the model. Solves by explicit
    Runge-Kutta methods and symplectic ones, with fixed and PID-controlled steps, equilibria and roots by Newton's
    method are loops in it, which take the steps that they take here.

    * `path`: the file, which is replaced when the new one is complete.
    * `model`, `ps`, `st`, `x`, `batch_axis`, `params`, `names`: see `lux.export.plain_function`.
    * `opset`: the version of ONNX's operators, 18 to 23; a runtime reads those up to its own.

    Raises what `plain_function` raises; `TypeError` for half precision and complex numbers; `ValueError` for what ONNX
    has no form for: an operation, named, another solve, the reverse mode of a solve. Nothing is written then.
    `ImportError` without the package onnx, which comes with `pip install lux-sciml[export]`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> net = lux.Dense(2, 3, jnp.tanh)
    >>> ps, st = lux.setup(jax.random.key(0), net)
    >>> onnx("net.onnx", net, ps, lux.testmode(st), jnp.ones((1, 2)))  # doctest: +SKIP
    """
    with plain_solves():
        function = plain_function(model, ps, st, x, batch_axis=batch_axis, params=params, names=names, portable=True)
        content = _model(function, opset).SerializeToString()
    with replacing(path) as file:
        file.write(content)


def _model(function: PlainFunction, opset: int) -> Any:
    """The ONNX model of a function."""
    onnx = library("onnx", "lux-sciml[export]")
    if not 18 <= opset <= 23:
        raise ValueError(f"the version of ONNX's operators is one of 18 to 23, got {opset}")
    instead = holding(function)
    function.require_types("ONNX", (*_REAL, *_WHOLE), instead)
    program = _compat.without_unused(jax.make_jaxpr(in_plain_operations(function.call))(*function.specs))
    _require_types(function, program, instead)
    writer = Writer(onnx, {*function.inputs, *function.outputs})
    try:
        graph = _graph(function, program, writer)
    except NoForm as error:
        raise ValueError(f"{function.name} has no form in ONNX because of {error}: export it by {instead}") from error
    proto = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=10,
        producer_name="lux-sciml",
        producer_version=function.metadata("ONNX")["versions"]["lux-sciml"],
    )
    onnx.helper.set_model_props(proto, {"lux_sciml": json.dumps(function.metadata("ONNX", opset=opset))})
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(
            f"{function.name} has no form in ONNX because of an operation in a type that it does not have there "
            f"({str(error).strip().splitlines()[-1]}): export it by {instead}"
        ) from error
    return proto


def _graph(function: PlainFunction, program: Any, writer: Writer) -> Any:
    for name, spec in function.inputs.items():
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, int) and str(size).isidentifier():
                writer.symbol(str(size), name, axis)
    outputs = run(writer, program, list(function.inputs))
    constants = {name: value for name, value in writer.constants.items() if name in writer.used or name in outputs}
    make = writer.onnx.helper
    ends = [make.make_node("Identity", [x], [name]) for x, name in zip(outputs, function.outputs, strict=True)]
    return make.make_graph(
        [*writer.first, *writer.nodes, *ends],
        function.name,
        [writer.described(name, spec, named=True) for name, spec in function.inputs.items()],
        [writer.described(name, spec, named=True) for name, spec in function.outputs.items()],
        [writer.onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def _require_types(function: PlainFunction, program: Any, instead: str) -> None:
    """Raise `TypeError` where a program computes with numbers that runtimes of ONNX do not have."""
    known = set(map(np.dtype, (*_REAL, *_WHOLE)))
    for eqn in _compat.equations(program):
        for var in (*eqn.invars, *eqn.outvars):
            if var.aval.dtype not in known:
                raise TypeError(
                    f"{function.name} computes in {var.aval.dtype}, in `{eqn.primitive.name}`, which runtimes of ONNX "
                    f"do not: convert its parameters and inputs, or take {instead}"
                )
