"""StableHLO: every layer and every solve, for `jax.export.deserialize` on any platform, and what loads it checked."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .._tree import describe
from ..components import ComponentVector, Layout, from_json
from ..components.replacing import replacing
from .function import PLATFORMS, lowered, plain_function, require_platforms
from .metadata import checksum, read_metadata


def stablehlo(
    path: str | os.PathLike[str],
    model: Any,
    ps: Any = None,
    st: Any = None,
    x: Any = None,
    *,
    batch_axis: Any = 0,
    params: str = "constant",
    names: Mapping[str, str] | None = None,
    platforms: Sequence[str] = PLATFORMS,
    derivatives: int = 0,
) -> None:
    """Write a model, a loss, a gradient or a whole solve as StableHLO, in the file format of `jax.export`.

    All layers and solves can be written; one file serves all `platforms`. `lux.export.load` gives a function that
    checks its inputs. Where there is JAX alone, without lux_sciml, Equinox and diffrax,
    `jax.export.deserialize(bytearray(open(path, "rb").read())).call(x)` calls it, with the inputs in their order, and
    gives the tuple of the outputs. The metadata stand as JSON behind the program, which JAX does not look at.

    * `path`: the file, which is written whole or not at all.
    * `model`, `ps`, `st`, `x`, `batch_axis`, `params`, `names`: see `lux.export.plain_function`.
    * `platforms`: of `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`.
    * `derivatives`: how often the loaded function can be differentiated in reverse mode.

    Raises what `plain_function` raises, `ValueError` for unknown platforms and for a program that one of them cannot
    compute, and `ImportError` without the package flatbuffers.

    >>> import os, tempfile, lux_sciml as lux
    >>> layer = lux.Dense(2, 3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> path = os.path.join(tempfile.mkdtemp(), "dense.stablehlo")
    >>> stablehlo(path, layer, ps, lux.testmode(st), jnp.ones((1, 2)))
    >>> load(path)(jnp.ones((8, 2))).shape
    (8, 3)
    """
    if type(derivatives) is not int or derivatives < 0:
        raise ValueError(f"derivatives is how often there are some, a number of at least 0, got {derivatives!r}")
    platforms = require_platforms(platforms)
    function = plain_function(model, ps, st, x, batch_axis=batch_axis, params=params, names=names)
    with lowered(function.name, platforms):
        exported = jax.export.export(function.call, platforms=platforms)(*function.specs)
    program = exported.serialize(vjp_order=derivatives)
    about = function.metadata("StableHLO", platforms=list(platforms), derivatives=derivatives)
    about["sha256"] = checksum(program, about)
    with replacing(path) as file:
        file.write(program)
        file.write(json.dumps(about).encode())


class ExportedFunction:
    """A function from a file, as `lux.export.load` gives it: called with its inputs in their order, or by name.

    It returns the array, where there is one output, and a dict of arrays by name elsewhere. It is compiled for each
    size of its batch. Under `jax.jit` it may be part of another program, and under `jax.grad` where it was exported
    with `derivatives`.

    * `metadata`: what the file tells of itself;
    * `inputs`, `outputs`: by name, the shapes, with names for open sizes, and the types;
    * `layout`: that of the parameters, or `None`.

    Inputs may be lists, and of other types than `inputs` has, from which they are cast: of another precision, and whole
    numbers or booleans for floats.

    Calls raise `TypeError` for inputs that are missing or unknown, and for those of a type that loses more than digits,
    such as complex numbers for floats or floats for whole numbers; `ValueError` for shapes outside of those that it was
    exported for, for whole numbers that do not fit, for parameters of another layout, under `jax.grad` without
    `derivatives`, and under `jax.vmap`, for which the axis of any size is there.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "squares.stablehlo")
    >>> stablehlo(path, lambda x: x**2, x=jnp.ones((1, 2)))
    >>> function = load(path)
    >>> function(x=jnp.array([[1.0, 3.0]])), function.metadata["format"]
    (Array([[1., 9.]], dtype=float32), 'StableHLO')
    """

    def __init__(self, exported: jax.export.Exported, metadata: dict[str, Any]):
        self.metadata = metadata
        self._call = jax.jit(exported.call if exported.has_vjp() else _without_gradient(exported.call, metadata))

    @functools.cached_property
    def inputs(self) -> dict[str, tuple[tuple[int | str, ...], np.dtype]]:
        return _arrays(self.metadata["inputs"])

    @functools.cached_property
    def outputs(self) -> dict[str, tuple[tuple[int | str, ...], np.dtype]]:
        return _arrays(self.metadata["outputs"])

    @functools.cached_property
    def layout(self) -> Layout | None:
        layout = self.metadata["parameters"].get("layout")
        return None if layout is None else from_json(json.dumps(layout))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = args if len(args) == len(self.inputs) and not kwargs else self._by_name(args, kwargs)
        sizes: dict[str, int] = {}
        arrays = [self._checked(name, x, sizes) for name, x in zip(self.inputs, given, strict=True)]
        outputs = self._called(arrays)
        return outputs[0] if len(outputs) == 1 else dict(zip(self.outputs, outputs, strict=True))

    def __repr__(self) -> str:
        def text(arrays: Any) -> str:
            return ", ".join(f"{name}: {dtype}{list(shape)}" for name, (shape, dtype) in arrays.items())

        return f"<exported {self.metadata['model']}: ({text(self.inputs)}) -> ({text(self.outputs)})>".replace("'", "")

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        names = list(self.inputs)
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or len(given) < len(args) + len(kwargs) or given.keys() != set(names):
            got = [f"{len(args)} by position"] * bool(args) + list(kwargs)
            raise TypeError(f"this function takes {', '.join(names)}; got {', '.join(got) or 'nothing'}")
        return [given[name] for name in names]

    def _called(self, arrays: list[Any]) -> Any:
        """The outputs; errors of JAX that have to do with the file as one sentence."""
        try:
            return self._call(*arrays)
        except NotImplementedError as error:
            if "Batching rule" not in str(error):
                raise
            raise ValueError(
                f"{self.metadata['model']} from a file is one program, to which jax.vmap does not apply: call it with "
                "the whole batch, in the axis of any size, or export the function that jax.vmap gives"
            ) from None
        except ValueError as error:
            if "refining shapes" not in str(error):
                raise
            sizes = ", ".join(f"{name} {x.shape}" for name, x in zip(self.inputs, arrays, strict=True))
            raise ValueError(
                f"the program of {self.metadata['model']} is not right for these sizes, {sizes}, though for others: "
                "export it with batch_axis=None, for the size that it has"
            ) from error

    def _checked(self, name: str, x: Any, sizes: dict[str, int]) -> Any:
        shape, dtype = self.inputs[name]
        if isinstance(x, ComponentVector):
            if name == "params" and self.layout is not None:
                self.layout.require_same(x.layout)
            x = x.data
        try:
            x = x if isinstance(x, np.ndarray | jax.Array) else np.asarray(x)
            converts = x.dtype == dtype or _converts(x.dtype, dtype)
        except (TypeError, ValueError):  # random keys, texts, ragged lists
            converts = False
        if not converts:
            raise TypeError(f"the input {name!r} is an array of {dtype}, got {describe(x)}")
        if not _fits(x.shape, shape, sizes):
            known = "".join(f", here {n} = {m}" for n, m in sizes.items() if n in shape and m not in x.shape)
            raise ValueError(
                f"the input {name!r} has the shape ({', '.join(map(str, shape))}), where a name stands for any size "
                f"above zero{known}; got {x.shape}"
            )
        if dtype.kind in "iu" and isinstance(x, np.ndarray) and x.size and x.dtype.itemsize > dtype.itemsize:
            ends = np.iinfo(dtype)
            if x.min() < ends.min or x.max() > ends.max:
                raise ValueError(
                    f"the input {name!r} is an array of {dtype}, from {ends.min} to {ends.max}, got {describe(x)} from "
                    f"{x.min()} to {x.max()}"
                )
        return x if x.dtype == dtype else x.astype(dtype)


def load(path: str | os.PathLike[str]) -> ExportedFunction:
    """The function in a file that `lux.export.stablehlo` wrote: see `ExportedFunction`, whose calls check their inputs.

    Only load files that you trust: a program may call what jaxlib has to be called. Raises `ValueError` for other
    files, for broken ones, by the sha256 that they hold, and for one in double precision where JAX has no 64-bit types.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "squares.stablehlo")
    >>> stablehlo(path, lambda x: x**2, x=jnp.ones((1, 2)))
    >>> load(path)(jnp.array([[1.0, 3.0]]))
    Array([[1., 9.]], dtype=float32)
    """
    metadata = read_metadata(path)
    if metadata.get("format") != "StableHLO":
        raise ValueError(
            f"{os.fspath(path)!r} is {metadata.get('format')}, which its own runtime loads; `lux.export.load` is for "
            "the files of `lux.export.stablehlo`"
        )
    try:
        exported = jax.export.deserialize(bytearray(Path(path).read_bytes()))
    except Exception as error:  # of whatever kind a broken file brings about
        raise ValueError(
            f"{os.fspath(path)!r} holds no program that this JAX {jax.__version__} reads: {error}"
        ) from error
    function = ExportedFunction(exported, metadata)
    for name, (_, dtype) in {**function.inputs, **function.outputs}.items():
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"{name!r} is {dtype}, and JAX has no 64-bit types here: "
                'call `jax.config.update("jax_enable_x64", True)` first'
            )
    return function


def _without_gradient(call: Callable[..., Any], metadata: dict[str, Any]) -> Callable[..., Any]:
    """The function, which says under `jax.grad` how to export it so that it has a gradient."""

    def refuse(*_: Any) -> Any:
        raise ValueError(
            f"{metadata['model']} was exported without its gradient: export it with derivatives=1, "
            "or more for derivatives of higher order"
        )

    function = jax.custom_vjp(lambda *arrays: call(*arrays))
    function.defvjp(refuse, refuse)
    return function


def _converts(dtype: Any, to: np.dtype) -> bool:
    """Whether elements may stand for those of another type: never for those of one with fewer kinds of numbers."""
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    (given,), (wanted,) = ([i for i, kind in enumerate(kinds) if jnp.issubdtype(d, kind)] for d in (dtype, to))
    return np.can_cast(dtype, to, "same_kind") if wanted == 1 else given <= wanted


def _fits(got: tuple[Any, ...], expected: tuple[int | str, ...], sizes: dict[str, int]) -> bool:
    """Whether a shape is as expected, where names stand for sizes, which this adds to those known."""
    if len(got) != len(expected):
        return False
    for m, n in zip(got, expected, strict=True):
        if isinstance(n, int):
            if m != n:
                return False
        elif m < 1 or sizes.setdefault(n, m) != m:
            return False
    return True


def _arrays(described: list[dict[str, Any]]) -> dict[str, tuple[tuple[int | str, ...], np.dtype]]:
    return {one["name"]: (tuple(one["shape"]), jnp.dtype(one["dtype"])) for one in described}
