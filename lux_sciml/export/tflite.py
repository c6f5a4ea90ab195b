"""TFLite: for LiteRT on phones, microcontrollers and other edge devices."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax

from .._compat import equations, for_tensorflow, to_tensorflow
from .._libraries import library
from ..components.files import replacing
from .function import PlainFunction, plain_function, require_no_hidden_callbacks
from .plain_program import NoForm, in_plain_operations, scatter_add
from .plain_solves import plain_solves
from .saved_model import BY_LAPACK, holding, require_readable_sizes

_TYPES = (np.float32, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_)
_LACKING = {"bfloat16", "float16", "complex64", "complex128"}
_MISSING = r"\b(?:vhlo|stablehlo|mhlo|tfl?)\.(\w+?)(?:_v\d+)?(?:'|\()"
_MEANT = {"xla_call_module": BY_LAPACK, "sort": {"sort", "top_k"}}


def tflite(
    path: str | os.PathLike[str],
    model: Any,
    ps: Any = None,
    st: Any = None,
    x: Any = None,
    *,
    batch_axis: Any = 0,
    params: str = "constant",
    names: Mapping[str, str] | None = None,
) -> None:
    """Write a net, a solve or a function of arrays as a TFLite file, of LiteRT's own operations alone.

    Its signature `serving_default` has the names of inputs and outputs, and the metadata is in the buffer `lux_sciml`.
    Solves and equilibria are loops, as in `lux.export.onnx`.

    * `path`: the file, which is replaced when the new one is complete.
    * `model`, `ps`, `st`, `x`, `batch_axis`, `params`, `names`: see `lux.export.plain_function`. For one size of the
      batch, `batch_axis=None`, the file is smaller and LiteRT many times faster.

    While TensorFlow's converter runs, what the process writes to standard error is dropped: it prints whole programs.

    Raises what `plain_function` raises; `TypeError` for inputs and outputs that are not in single precision, whole or
    boolean; `ValueError` for what LiteRT has no operation for, above all other solves and the reverse mode of a solve,
    and for open sizes where TensorFlow is too old for this JAX: nothing is written then. `ImportError` without
    TensorFlow, which comes with `pip install lux-sciml[export]`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> net = lux.Dense(2, 3, jnp.tanh)
    >>> ps, st = lux.setup(jax.random.key(0), net)
    >>> tflite("net.tflite", net, ps, lux.testmode(st), jnp.ones((1, 2)))  # doctest: +SKIP
    """
    with plain_solves():
        function = plain_function(model, ps, st, x, batch_axis=batch_axis, params=params, names=names, portable=True)
        content = _content(function)
    with replacing(path) as file:
        file.write(content)


def _content(function: PlainFunction) -> bytes:
    """The bytes of the file."""
    tf = library("tensorflow", "lux-sciml[export]")
    flatbuffer_utils = library("tensorflow.lite.tools.flatbuffer_utils", "lux-sciml[export]")
    function.require_types("TFLite", _TYPES, holding(function))
    require_readable_sizes(tf, function)
    module = tf.Module()
    try:
        with for_tensorflow(), jax.enable_x64(False), _silent_converter():
            call = _tensorflow_function(tf, function)
            content = tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], module).convert()
    except Exception as error:
        require_no_hidden_callbacks(function.name, error)
        raise ValueError(
            f"{function.name} has no form in TFLite because of {_cause(function, error)}: export it by "
            f"{holding(function)}"
        ) from error
    schema, model = flatbuffer_utils.schema_fb, flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    about, entry = schema.BufferT(), schema.MetadataT()
    about.data = np.frombuffer(json.dumps(function.metadata("TFLite")).encode(), np.uint8)
    entry.name, entry.buffer = "lux_sciml", len(model.buffers)
    model.buffers, model.metadata = [*model.buffers, about], [*(model.metadata or ()), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _cause(function: PlainFunction, error: Exception) -> str:
    """What stands in the way, by JAX's name of it where there is one."""
    text = str(error)
    if isinstance(error, NoForm):
        return text
    found = re.search(_MISSING, text)
    if found is None:
        said = text.partition("\n")[0].rpartition(" error: ")[2]  # behind the place in a file
        return f"an error of its converter ({type(error).__name__}: {said})"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found[1]).lower()
    ours = sorted(function.operations & _MEANT.get(name, {name}))
    types = {str(var.aval.dtype) for eqn in equations(function.jaxpr) for var in eqn.outvars}
    lacking, illegal = sorted(types & _LACKING), "explicitly marked illegal" in text
    if lacking and (illegal or not ours):
        return f"numbers in {', '.join(lacking)}"
    if ours:
        named = " and ".join(f"`{name}`" for name in ours)
        return f"its operation {named}{', which LiteRT has for other types or shapes' if illegal else ''}"
    return f"TensorFlow's operation `{found[1]}`, which LiteRT lacks"


@contextlib.contextmanager
def _silent_converter() -> Iterator[None]:
    """The converter writes whole programs to standard error, past Python; what it says of an error is in the error."""
    try:
        stderr = os.dup(2)
    except OSError:  # there is none
        yield
        return
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _tensorflow_function(tf: Any, function: PlainFunction) -> Any:
    """The function in TensorFlow, in JAX's types without x64 inside."""
    options = {"with_gradient": False, "native_serialization_platforms": ("cpu",)}
    converted = to_tensorflow(in_plain_operations(function.call, _RULES), function.specs, **options)
    signature = [
        tf.TensorSpec([n if isinstance(n, int) else None for n in spec.shape], spec.dtype, name=name)
        for name, spec in function.inputs.items()
    ]
    inner = [jax.dtypes.canonicalize_dtype(spec.dtype) for spec in function.specs]

    def call(*arrays: Any) -> dict[str, Any]:
        results = converted(*(tf.cast(x, dtype) for x, dtype in zip(arrays, inner, strict=True)))
        outputs = zip(function.outputs.items(), results, strict=True)
        return {name: tf.cast(y, spec.dtype) for (name, spec), y in outputs}

    return tf.function(call, autograph=False, input_signature=signature)


def _rem(x: Any, y: Any) -> Any:
    """With the sign of `x`, where LiteRT's has that of `y`."""
    return None if x.dtype.kind == "u" else lax.sign(x) * lax.rem(lax.abs(x), lax.abs(y))


def _conv(*_: Any, padding: Any, **__: Any) -> None:
    if any(n < 0 for pad in padding for n in pad):  # on which the converter ends the process
        raise NoForm("a convolution with less than no padding")


def _scatter(*_: Any, **__: Any) -> None:
    """LiteRT's own operation takes none of the sums and products that the converter writes, when it is run."""
    raise NoForm("numbers that are added or multiplied at indices, as in gradients of indexing")


def _scatter_add(*operands: Any, **params: Any) -> Any:
    total = scatter_add(*operands, **params)
    return _scatter() if total is None else total


_SCATTERS = ("scatter-sub", "scatter_sub", "scatter-mul", "scatter_mul")
_SCATTERS += ("scatter-min", "scatter_min", "scatter-max", "scatter_max")
_RULES = {"rem": _rem, "conv_general_dilated": _conv, "scatter-add": _scatter_add, "scatter_add": _scatter_add}
_RULES |= dict.fromkeys(_SCATTERS, _scatter)
