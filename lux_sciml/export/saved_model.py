"""SavedModel: for TensorFlow and TensorFlow Serving."""

import contextlib
import functools
import json
import keyword
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export

from .._compat import for_tensorflow, run_jaxpr, to_tensorflow
from .._libraries import library
from . import factorizations
from .function import PLATFORMS, PlainFunction, lowered, plain_function, require_platforms
from .metadata import SAVED_MODEL
from .plain_program import in_plain_operations

BY_LAPACK = frozenset(
    "lu triangular_solve cholesky qr geqrf geqp3 householder_product eigh svd eig schur hessenberg tridiagonal"
    " tridiagonal_solve ormqr sylvester".split()
)


def saved_model(
    path: str | os.PathLike[str],
    model: Any,
    ps: Any = None,
    st: Any = None,
    x: Any = None,
    *,
    batch_axis: Any = 0,
    params: str = "constant",
    names: Mapping[str, str] | None = None,
    version: int = 1,
    gradient: bool = False,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Write a model, a loss, a gradient or a whole solve as a SavedModel, in the layout of TensorFlow Serving.

    The folder is `path/version`. Its signature `serving_default` takes the inputs and gives the outputs by name, and so
    does `tf.saved_model.load(folder).call`, by position too. The program in it is StableHLO, which TensorFlow compiles
    by XLA; other readers of SavedModels do not know it. It holds all layers and solves. TensorFlow brings no LAPACK for
    CPUs: linear systems, as of implicit solvers and Newton's method, are solved by elimination in loops, and other
    factorizations refused. Its metadata is in `assets.extra/lux_sciml.json`.

    * `path`: the folder of the model, which may hold other versions.
    * `model`, `ps`, `st`, `x`, `batch_axis`, `params`, `names`: see `lux.export.plain_function`.
    * `version`: a number; TensorFlow Serving serves the highest. One that is there already is replaced, when the new
      one is complete.
    * `gradient`: whether `tf.GradientTape` may differentiate the outputs.
    * `platforms`: of `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`.

    Raises what `plain_function` raises; `ValueError` for a negative version, for unknown platforms, for other
    factorizations than that of linear systems on a CPU, for these with `gradient`, and for open sizes where TensorFlow
    is too old for this JAX; `ImportError` without TensorFlow, which comes with `pip install lux-sciml[export]`;
    `FileExistsError` where there is a file in the place of the folder.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> net = lux.Dense(2, 3, jnp.tanh)
    >>> ps, st = lux.setup(jax.random.key(0), net)
    >>> saved_model("net", net, ps, lux.testmode(st), jnp.ones((1, 2)))  # doctest: +SKIP
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ValueError(f"a version of a SavedModel is a number of at least 0, got {version!r}")
    platforms = require_platforms(platforms)
    if Path(path).is_file():
        raise FileExistsError(
            f"{os.fspath(path)!r} is a file, and a SavedModel is a folder: choose another path, or, for another format "
            "by `lux.export.save`, one with its suffix, such as .stablehlo"
        )
    function = plain_function(model, ps, st, x, batch_axis=batch_axis, params=params, names=names)
    tf = library("tensorflow", "lux-sciml[export]")
    with for_tensorflow():
        module, call = tf.Module(), _tensorflow_function(tf, function, gradient, platforms)
        with lowered(function.name, platforms):
            call.get_concrete_function()  # before there is a folder
        setattr(module, "call", call)  # noqa: B010  # a module has whatever attributes it is given
        with replacing_folder(Path(path) / str(version)) as folder:
            tf.saved_model.save(module, str(folder), signatures={"serving_default": call})
            about = folder / SAVED_MODEL
            about.parent.mkdir()
            about.write_text(json.dumps(function.metadata("SavedModel", platforms=list(platforms), gradient=gradient)))


def _tensorflow_function(tf: Any, function: PlainFunction, gradient: bool, platforms: tuple[str, ...]) -> Any:
    """The function in TensorFlow, from the inputs by position or by name to the outputs by name."""
    function.require_types("SavedModel", _types(tf), "lux.export.stablehlo")
    for name in (*function.inputs, *function.outputs):
        if not name.isascii() or keyword.iskeyword(name) or name == "self":
            raise ValueError(
                f"TensorFlow takes no input or output called {name!r}: rename it by names={{{name!r}: 'other'}}"
            )
    require_readable_sizes(tf, function)
    options = {"with_gradient": gradient, "native_serialization_platforms": platforms}
    converted = to_tensorflow(_without_lapack(function, platforms, gradient), function.specs, **options)
    signature = [
        tf.TensorSpec([n if isinstance(n, int) else None for n in spec.shape], spec.dtype, name=name)
        for name, spec in function.inputs.items()
    ]

    def call(*arrays: Any) -> dict[str, Any]:
        return dict(zip(function.outputs, converted(*arrays), strict=True))

    return tf.function(call, autograph=False, input_signature=signature)


def _without_lapack(function: PlainFunction, platforms: tuple[str, ...], gradient: bool) -> Callable[..., Any]:
    """The function without what JAX computes by LAPACK on a CPU, which TensorFlow does not bring along."""
    found = BY_LAPACK & function.operations
    if not found or "cpu" not in platforms:
        return function.call
    refused = found if gradient else found - factorizations.RULES.keys()
    if refused:
        raise ValueError(
            f"{function.name} factorizes matrices, by {', '.join(f'`{name}`' for name in sorted(refused))}, for which "
            f"TensorFlow has no program on a CPU{' that has a gradient' if gradient else ''}: export it by "
            "lux.export.stablehlo"
        )
    return in_plain_operations(function.call, _RULES)


def _linear_solve(*values: Any, **params: Any) -> list[Any]:
    """What `jax.lax.custom_linear_solve` returns, without what stands for its derivatives."""
    solve, given = factorizations.linear_solve(values, params)
    return in_plain_operations(lambda *xs: run_jaxpr(solve, *xs), _RULES)(*given)


_RULES = {**factorizations.RULES, "custom_linear_solve": _linear_solve}


def holding(function: PlainFunction) -> str:
    """The formats that hold a function where others do not: StableHLO, and SavedModel without factorizations."""
    factorized = BY_LAPACK & function.operations - factorizations.RULES.keys()
    return "lux.export.stablehlo" if factorized else "lux.export.stablehlo or lux.export.saved_model"


def require_readable_sizes(tf: Any, function: PlainFunction) -> None:
    """Raise `ValueError` for open sizes where TensorFlow does not read them."""
    if function.symbols and not _reads_open_sizes():
        raise ValueError(
            f"TensorFlow {tf.__version__} does not read programs for any size of an axis as jax {jax.__version__} "
            "writes them: batch_axis=None exports for the size of the example; a later TensorFlow may read them"
        )


@functools.cache
def _reads_open_sizes() -> bool:
    """Whether TensorFlow knows the operations by which JAX checks sizes when a program is called."""
    import tensorflow as tf

    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n"), "float32")
    call = to_tensorflow(jax.numpy.negative, [spec], with_gradient=False)
    try:
        with for_tensorflow():
            tf.function(call, autograph=False)(tf.zeros(1))
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _types(tf: Any) -> list[Any]:
    real = [tf.bfloat16, tf.float16, tf.float32, tf.float64, tf.complex64, tf.complex128]
    whole = [tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.bool]
    return [dtype.as_numpy_dtype for dtype in real + whole]


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder, which takes the place of another one at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lux_sciml-", dir=target.parent) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
