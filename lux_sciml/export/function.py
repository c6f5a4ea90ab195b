"""What is exported: a layer or a function as a pure function of plain arrays, with named inputs and outputs."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import diffrax
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .. import _compat
from .._platform import one_program
from .._tree import describe, is_random_key
from ..components import ComponentVector, Layout, to_json
from ..components.nodes import Path, close_container, open_container, path_string
from ..core import Layer, Mode, StatefulLayer
from ..core.parameters import layout_like, parameter_layout, parameter_tree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
BATCH = "batch"  # the name of the symbolic size
_ARRAYS = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
Arrays = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, eq=False)
class PlainFunction:
    """A pure function of plain arrays, with named inputs and outputs: what the writers of all formats get.

    * `name`: of the layer's class, or of the function;
    * `call`: from the input arrays, in order, to the tuple of the output arrays; under `jax.jit`, and traced already;
    * `inputs`, `outputs`: what each array is, by name, in order; sizes may be symbolic;
    * `layout`: that of the parameters, where they have one;
    * `params`: `"constant"`, or `"input"` where their vector is the first input, called `params`;
    * `values`: the parameters as they are now, their flat vector if they are an input.

    >>> function = plain_function(lambda x: x**2, x=jnp.ones((1, 2)))
    >>> function.call(jnp.array([[1.0, 3.0]])), function.params
    ((Array([[1., 9.]], dtype=float32),), 'constant')
    """

    name: str
    call: Any
    inputs: Arrays
    outputs: Arrays
    layout: Layout | None
    params: str
    values: Any

    @property
    def specs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What each input is, in order."""
        return tuple(self.inputs.values())

    @functools.cached_property
    def jaxpr(self) -> Any:
        """The program, a closed jaxpr."""
        return self.call.trace(*self.specs).jaxpr

    @functools.cached_property
    def operations(self) -> frozenset[str]:
        """JAX's names of the operations in it."""
        return frozenset(eqn.primitive.name for eqn in _compat.equations(self.jaxpr))

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names in the symbolic sizes of the inputs, such as `batch`."""
        sizes = [str(n) for spec in self.specs for n in spec.shape if not isinstance(n, int)]
        return tuple(dict.fromkeys(name for size in sizes for name in re.findall(r"[A-Za-z_]\w*", size)))

    def fixed(self, **sizes: int) -> "PlainFunction":
        """The same function with numbers in place of symbolic sizes: `function.fixed(batch=1)`."""

        def with_sizes(spec: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(tuple(sizes.get(str(n), n) for n in spec.shape), spec.dtype)

        inputs = {name: with_sizes(spec) for name, spec in self.inputs.items()}
        outputs = self.call.eval_shape(*inputs.values())
        return dataclasses.replace(self, inputs=inputs, outputs=dict(zip(self.outputs, outputs, strict=True)))

    def require_types(self, file_format: str, has: Iterable[Any], instead: str) -> None:
        """Raise `TypeError` where an input or output has a type that a format lacks; `instead` is one that has it."""
        known = set(map(np.dtype, has))
        for kind, arrays in (("input", self.inputs), ("output", self.outputs)):
            for name, spec in arrays.items():
                if np.dtype(spec.dtype) not in known:
                    raise TypeError(
                        f"the {kind} {name!r} of {self.name} is {spec.dtype}, which {file_format} lacks: convert it, "
                        f"or take {instead}"
                    )

    def metadata(self, file_format: str, **more: Any) -> dict[str, Any]:
        """What a file tells of itself, as for JSON: versions, inputs, outputs, parameters with their layout, `more`."""
        return {
            "lux_sciml_export": 1,
            "format": file_format,
            "model": self.name,
            "versions": {name: importlib.metadata.version(name) for name in ("lux-sciml", "jax")},
            "inputs": [_described(name, spec) for name, spec in self.inputs.items()],
            "outputs": [_described(name, spec) for name, spec in self.outputs.items()],
            "parameters": {"given": self.params, **_layout_json(self.layout)},
            **more,
        }


def plain_function(
    model: Any,
    ps: Any = None,
    st: Any = None,
    x: Any = None,
    *,
    batch_axis: Any = 0,
    params: str = "constant",
    names: Mapping[str, str] | None = None,
    portable: bool = False,
) -> PlainFunction:
    """The function of plain arrays that a layer is, or a function of parameters and data.

    * `model`: a layer, whose output goes out, and whose state stays as it is, or a `lux.StatefulLayer`, which has all
      three; or a function: `f(ps, x)` without `st`, as the losses of `lux.minimize` are written, so that
      `jax.value_and_grad(loss)` is one; `f(x)` without `ps`. A state that a function closes over is not looked at: take
      `lux.testmode(st)` there.
    * `ps`: its parameters; `st`: the state of a layer, in test mode.
    * `x`: an example of the input, an array or a tree of arrays; or `jax.ShapeDtypeStruct`s in their place, whose sizes
      may be symbolic (see `jax.export.symbolic_shape`).
    * `batch_axis`: the axis of `x` that may have any size, or `None`; for a tree of inputs also a tree of these, like
      the `in_axes` of `jax.vmap`. Without effect where sizes of `x` are symbolic already.
    * `params`: with `"constant"` they are part of the program; with `"input"` their flat vector is its first input.
    * `names`: other names of inputs and outputs than those by their paths: a single array is `x` or `y`, the items of a
      tuple are `x_0`, `x_1`, entries of dicts and fields are called as they are.
    * `portable`: for formats without a choice among platforms.

    A `diffrax.Solution` goes out as `ts` and `ys`, a ComponentVector as its flat vector.

    Raises `ValueError` for a state in training, a layer whose output depends on a random key of its state, a program
    that calls back to the host, an axis of any size where the program takes some sizes only, and names that are no
    names or stand twice; `TypeError` for inputs and outputs that are no plain arrays, random keys among them.

    >>> import lux_sciml as lux
    >>> layer = lux.Dense(2, 3)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> function = plain_function(layer, ps, lux.testmode(st), jnp.ones((1, 2)))
    >>> function.inputs, function.outputs["y"].shape
    ({'x': ShapeDtypeStruct(shape=(batch, 2), dtype=float32)}, (batch, 3))
    """
    if params not in ("constant", "input"):
        raise ValueError(f'params is "constant" or "input", got {params!r}')
    if isinstance(model, StatefulLayer):
        model, ps, st = model.layer, model.ps, model.st
    name = _name(model)
    _require_arguments(model, name, ps, st, x)
    leaves, build = _flatten(x)
    leaves = [(path, _as_input(path, leaf)) for path, leaf in leaves]
    specs = _batched(x, leaves, batch_axis)
    function, vector, layout = _of_parameters(model, ps, st, params)
    inputs: Arrays = {"params": jax.ShapeDtypeStruct(vector.shape, vector.dtype)} if params == "input" else {}
    inputs |= _named("x", [path for path, _ in leaves], specs, inputs)
    paths: list[Path] = []

    def call(*arrays: Any) -> tuple[Any, ...]:
        rest = iter(arrays)
        given = [next(rest)] if params == "input" else []
        given += [] if x is None else [build(rest)]
        with one_program() if portable else contextlib.nullcontext():
            out, _ = _flatten(_as_plain(function(*given)))
        paths[:] = [path for path, _ in out]
        return tuple(_as_output(path, leaf) for path, leaf in out)

    call.__name__ = re.sub(r"\W", "_", name)
    jitted = jax.jit(call)
    traced = _traced(name, jitted, list(inputs.values()), [vector] * (params == "input") + [leaf for _, leaf in leaves])
    _require_no_callbacks(name, traced.jaxpr)
    if isinstance(model, Layer):
        _require_no_randomness(model, ps, st, build, [leaf for _, leaf in leaves])
    outputs = _named("y", paths, traced.out_info, inputs)
    if not outputs:
        raise ValueError(f"{name} returns no array")
    inputs, outputs = _renamed(inputs, outputs, dict(names or {}))
    values = ps if vector is None else vector
    return PlainFunction(name, jitted, inputs, outputs, layout, params, values)


def require_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """The platforms that a program is for. Raises `ValueError` for none, and for others than JAX's names of them."""
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms are some of {', '.join(map(repr, PLATFORMS))} in a list, got {platforms!r}")
    return tuple(platforms)


@contextlib.contextmanager
def lowered(name: str, platforms: Sequence[str]) -> Iterator[None]:
    """What JAX cannot lower to a program that is kept, or not for these platforms, becomes a `ValueError`."""
    try:
        yield
    except NotImplementedError as error:
        require_no_hidden_callbacks(name, error)
        raise ValueError(
            f"{name} computes what some of the platforms {', '.join(platforms)} lack: {error}. Name those that it is "
            'for, such as platforms=["cpu"]'
        ) from error


# --- what is called ---------------------------------------------------------------------------------------------


def _name(model: Any) -> str:
    if isinstance(model, Layer):
        return type(model).__name__
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"a layer or a function is exported, got {model!r}")
    return getattr(model, "__name__", type(model).__name__)


def _require_arguments(model: Any, name: str, ps: Any, st: Any, x: Any) -> None:
    if not isinstance(model, Layer):
        if st is not None:
            raise TypeError(f"{name} is a function, f(ps, x) or f(x), and takes no state: leave `st` out")
        if ps is None and x is None:
            raise TypeError(f"give an example of what {name} is called with: its parameters, its input, or both")
        return
    if not isinstance(st, dict) or ps is None:
        raise TypeError(
            f"a layer is exported with its parameters and its state, got a {type(ps).__name__} and a "
            f"{type(st).__name__}: `ps, st = lux.setup(key, layer)`, and `lux.testmode(st)` for the state"
        )
    if x is None:
        raise TypeError(f"give an example of the input of {name}, `x`, or jax.ShapeDtypeStructs")
    training = [path for path, leaf in _flatten(st, Mode)[0] if leaf is Mode.TRAIN]
    if training:
        raise ValueError(
            f"the state of {name} is in training, at `{path_string(training[0])}`: export it with `lux.testmode(st)`"
        )


def _of_parameters(model: Any, ps: Any, st: Any, params: str) -> tuple[Callable[..., Any], Any, Layout | None]:
    """The function of the input, or of the vector and the input, the vector, and the layout of the parameters."""

    def of(ps: Any) -> Callable[..., Any]:
        if isinstance(model, Layer):
            return lambda x: model(x, ps, st)[0]
        return lambda *x: model(*(() if ps is None else (ps,)), *x)

    if params == "constant":
        constant = parameter_tree(model, ps) if isinstance(model, Layer) else ps
        return of(constant), None, _layout(model, ps)
    layout = _layout(model, ps)
    if ps is None or (layout is not None and layout.size == 0):
        raise ValueError(f'{_name(model)} has no parameters: leave params="input" out')
    if isinstance(ps, ComponentVector):
        vector, wrap = ps.data, lambda vector: ComponentVector(vector, ps.layout)
    elif isinstance(ps, _ARRAYS):
        vector, wrap = ps, lambda vector: vector
    else:
        assert layout is not None
        vector, wrap = layout.ravel(ps), layout.unravel
    return lambda vector, *x: of(wrap(vector))(*x), jnp.asarray(vector), layout


def _layout(model: Any, ps: Any) -> Layout | None:
    if isinstance(ps, ComponentVector):
        return ps.layout
    if isinstance(model, Layer):
        return parameter_layout(model) if isinstance(ps, _ARRAYS) else layout_like(model, ps)
    if ps is None or isinstance(ps, _ARRAYS):
        return None
    return Layout.of(ps)


def _layout_json(layout: Layout | None) -> dict[str, Any]:
    if layout is None:
        return {}
    try:
        return {"count": layout.size, "layout": json.loads(to_json(layout))}
    except TypeError:  # only code knows its structure
        return {"count": layout.size}


def _described(name: str, spec: jax.ShapeDtypeStruct) -> dict[str, Any]:
    shape = [n if isinstance(n, int) else str(n) for n in spec.shape]
    return {"name": name, "shape": shape, "dtype": np.dtype(spec.dtype).name}


# --- trees as named arrays --------------------------------------------------------------------------------------


def _flatten(node: Any, kind: Any = (), path: Path = ()) -> tuple[list[tuple[Path, Any]], Callable[[Iterator], Any]]:
    """The leaves of a tree with their paths, in declared order, and what builds the tree of other leaves."""
    if isinstance(node, ComponentVector):
        layout = node.layout
        return [(path, node.data)], lambda leaves: ComponentVector(next(leaves), layout)
    opened = None if isinstance(node, _ARRAYS) or isinstance(node, kind) else open_container(node)
    if opened is None:
        return [(path, node)], next
    container, items = opened
    parts = {key: _flatten(child, kind, (*path, key)) for key, child in items}

    def build(leaves: Iterator) -> Any:
        return close_container(container, {key: part(leaves) for key, (_, part) in parts.items()})

    return [leaf for leaves, _ in parts.values() for leaf in leaves], build


def _as_plain(out: Any) -> Any:
    """An output, with what there is to see of the solutions in it."""

    def open_solution(node: Any) -> Any:
        return {"ts": node.ts, "ys": node.ys} if isinstance(node, diffrax.Solution) else node

    if isinstance(out, diffrax.Solution):
        return open_solution(out)
    if type(out) in (tuple, list):
        return [_as_plain(item) for item in out]
    if type(out) is dict:
        return {key: _as_plain(item) for key, item in out.items()}
    return out


def _input_at(path: Path) -> str:
    return f"the input at `{path_string(path)}`" if path else "the input"


def _as_input(path: Path, leaf: Any) -> Any:
    """A leaf of an example as an array or a ShapeDtypeStruct."""
    where = _input_at(path)
    if is_random_key(leaf):
        raise TypeError(
            f"{where} is a random key, and exported functions take plain arrays: take the random numbers themselves as "
            "an input, or a seed, from which the function makes its key by `jax.random.key(seed)`"
        )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise TypeError(
                f"{where} is {leaf.dtype}, and JAX has no 64-bit types here: set the environment variable "
                'JAX_ENABLE_X64=1, or call `jax.config.update("jax_enable_x64", True)` first'
            )
        return leaf
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError):
        raise TypeError(f"{where} is {describe(leaf)}, and exported functions take plain arrays") from None


def _as_output(path: Path, leaf: Any) -> Any:
    where = f"the output at `{path_string(path)}`" if path else "the output"
    if is_random_key(leaf) or not isinstance(leaf, _ARRAYS | bool | int | float | complex):
        raise TypeError(f"{where} is {describe(leaf)}, and exported functions return plain arrays")
    return jnp.asarray(leaf)


def _named(root: str, paths: list[Path], specs: Iterable[Any], taken: Arrays) -> Arrays:
    """What the arrays are by the names that their paths give them: none of those that are taken."""
    found: Arrays = {}
    for path, spec in zip(paths, specs, strict=True):
        keys = path if path and isinstance(path[0], str) else (root, *path)
        name = re.sub(r"\W", "_", "_".join(map(str, keys))).strip("_")
        name = f"{root}_{name}" if not name.isidentifier() or name in taken else name
        if name in found or name in taken:
            raise ValueError(f"two arrays are called {name!r}, one of them at `{path_string(path)}`: rename an entry")
        found[name] = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    return found


def _renamed(inputs: Arrays, outputs: Arrays, names: dict[str, str]) -> tuple[Arrays, Arrays]:
    known = [*inputs, *outputs]
    for name, new in names.items():
        if name not in known:
            raise ValueError(f"there is no input or output {name!r} to rename; there are {', '.join(known)}")
        if not new.isidentifier():
            raise ValueError(f"{new!r} is no name that all formats take: letters, digits and underscores")
    after = [names[name] if name in names else name for name in known]
    if len(set(after)) < len(after):
        raise ValueError(f"two arrays would have the same name: {', '.join(after)}")
    renamed = dict(zip(after, [*inputs.values(), *outputs.values()], strict=True))
    return dict(list(renamed.items())[: len(inputs)]), dict(list(renamed.items())[len(inputs) :])


# --- symbolic sizes -----------------------------------------------------------------------------------------------


def _batched(x: Any, leaves: list[tuple[Path, Any]], batch_axis: Any) -> list[jax.ShapeDtypeStruct]:
    """What the inputs are, their batch axes symbolic."""
    symbolic = _has_symbolic_sizes([leaf for _, leaf in leaves])
    (batch,) = jax.export.symbolic_shape(BATCH)
    specs, sizes = [], {}
    for path, leaf in leaves:
        axis = None if symbolic else _axis(x, batch_axis, path)
        shape = list(leaf.shape)
        if axis is not None and leaf.ndim > 0:
            if not -leaf.ndim <= axis < leaf.ndim:
                raise ValueError(f"{_input_at(path)} has {leaf.ndim} axes, and no axis {axis}")
            sizes[path_string(path)] = shape[axis]
            shape[axis] = batch
        specs.append(jax.ShapeDtypeStruct(tuple(shape), leaf.dtype))
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"`{path}` {size}" for path, size in sizes.items())
        raise ValueError(
            f"the inputs have batches of different sizes: {found}. Say which axis of each may have any size, "
            "`None` for those that are fixed: batch_axis=(0, None)"
        )
    return specs


def _axis(node: Any, axis: Any, path: Path) -> int | None:
    """The batch axis of the leaf at a path; the one axis of a vector of named components is not it."""
    whole, where = axis, _input_at(path)
    for key in path:
        node = dict(_items(node))[key]
        if axis is not None and not isinstance(axis, int):
            try:
                axis = axis[key]
            except (TypeError, KeyError, IndexError):
                raise ValueError(f"batch_axis is {whole!r}, which says nothing of {where}") from None
    if axis is not None and not isinstance(axis, int):
        raise ValueError(f"batch_axis is an axis, `None`, or a tree of these like that of the inputs, got {whole!r}")
    return None if isinstance(node, ComponentVector) and node.data.ndim == 1 else axis


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    opened = open_container(node)
    return opened[1] if opened else ()


# --- what is refused ------------------------------------------------------------------------------------------------


def _traced(name: str, jitted: Any, specs: list[Any], example: list[Any]) -> Any:
    """The traced program; an error of its own where only the symbolic sizes are in the way."""
    if not _has_symbolic_sizes(specs) or _has_symbolic_sizes(example):
        return jitted.trace(*specs)
    try:
        traced = jitted.trace(*specs)
    except Exception as error:
        jitted.trace(*example)  # raises what is wrong with the function itself
        raise _of_one_size(name, str(error).partition(chr(10))[0] or type(error).__name__) from error
    uneven = _uneven_reshape(traced.jaxpr)
    if uneven is not None and not all(_is_even(jitted, specs, size) for size in (1, 2, 3, 5)):
        raise _of_one_size(name, uneven)
    return traced


def _has_symbolic_sizes(arrays: list[Any]) -> bool:
    return any(not isinstance(n, int) for array in arrays for n in array.shape)


def _of_one_size(name: str, cause: str) -> ValueError:
    return ValueError(
        f"{name} takes the example, but not inputs whose axis has any size, because it computes with that size "
        f"({cause}): with batch_axis=None it is exported for the size of the example"
    )


def _uneven_reshape(jaxpr: Any) -> str | None:
    """The first reshape to another number of elements, if any: JAX does not compare symbolic sizes there."""
    for eqn in _compat.equations(jaxpr):
        if eqn.primitive.name == "reshape":
            before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            if math.prod(before) != math.prod(after):
                return f"a reshape from ({', '.join(map(str, before))}) to ({', '.join(map(str, after))})"
    return None


def _is_even(jitted: Any, specs: list[Any], size: int) -> bool:
    """Whether no reshape is uneven for a batch of this size: symbolic sizes may be the same and look different."""
    shapes = [tuple(n if isinstance(n, int) else size for n in spec.shape) for spec in specs]
    fixed = [jax.ShapeDtypeStruct(shape, spec.dtype) for shape, spec in zip(shapes, specs, strict=True)]
    try:
        return _uneven_reshape(jitted.trace(*fixed).jaxpr) is None
    except Exception:  # of whatever kind the function raises for a size that it does not take
        return False


def _require_no_randomness(model: Layer, ps: Any, st: Any, build: Callable[[Iterator], Any], leaves: list[Any]) -> None:
    """Raise `ValueError` where the output depends on a random key in the state."""
    state, rebuild = _flatten(st)
    keys = {path: leaf for path, leaf in state if is_random_key(leaf)}
    if not keys:
        return

    def of_keys(keys: list[Any], x: list[Any]) -> Any:
        given = iter(keys)
        full = rebuild(iter([next(given) if is_random_key(leaf) else leaf for _, leaf in state]))
        return [x for _, x in _flatten(_as_plain(model(build(iter(x)), ps, full)[0]))[0]]

    used = _compat.used_inputs(jax.jit(of_keys).trace(list(keys.values()), leaves).jaxpr)
    for path, is_used in zip(keys, used, strict=False):
        if is_used:
            raise ValueError(
                f"the output of {type(model).__name__} depends on the random key `{path_string(path)}` of its state, "
                "and an exported function would draw the same numbers at each call. If that is what you want, export "
                "the function `lambda x: layer(x, ps, st)[0]`"
            )


def _require_no_callbacks(name: str, jaxpr: Any) -> None:
    for eqn in _compat.equations(jaxpr):
        kind = eqn.primitive.name
        if "callback" in kind or kind in ("debug_print", "infeed", "outfeed"):
            raise _calls_back(name, f"`{kind}`")


def require_no_hidden_callbacks(name: str, error: Exception) -> None:
    """Raise `ValueError` where an error of JAX says that an operation is lowered to a call of the host."""
    if isinstance(error, NotImplementedError) and "callback" in str(error):
        raise _calls_back(name, "what one of its operations becomes, as `lineax.linear_solve` does") from error


def _calls_back(name: str, by: str) -> ValueError:
    return ValueError(
        f"{name} calls back to Python, by {by}, which no exported program can: take out jax.debug.print, "
        "jax.pure_callback, checks by eqx.error_if or lux.check_finite, progress meters and throw=True, the default of "
        "lineax, optimistix and diffrax. `diffrax.diffeqsolve` checks its times with throw=False too: take an equation "
        "layer, such as lux.NeuralODE, in its place"
    )
