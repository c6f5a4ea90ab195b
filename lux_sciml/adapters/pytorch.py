"""PyTorch: the weights of its models in ours, and back."""

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._libraries import library
from .._tree import is_inexact
from ..components import safetensors
from ..core import Layer
from ..core.converters import checks_itself
from ..core.layer import Parameters, State
from ..core.parameters import parameter_tree
from ..core.printing import brief
from ..parameters.paths import like_parameters, value_at, with_value
from .pytorch_entries import Entry
from .pytorch_matching import COUNTER, Match, Unit, Walk, flattened_shapes, matches

_MOST = 40  # lines of what does not fit


@checks_itself
def load_torch(
    layer: Layer,
    ps: Parameters,
    st: State,
    state_dict: Any,
    *,
    names: Mapping[str, str] | None = None,
    x: Any = None,
    strict: bool = True,
) -> tuple[Any, State]:
    """Parameters and state with the weights of a PyTorch model: `ps, st = load_torch(layer, ps, st, state_dict)`.

    * `state_dict`: that of the model, of tensors or of NumPy's arrays; the model itself; or the path of a file in the
      safetensors format. Files of `torch.save` are read by `torch.load(path, weights_only=True)`.
    * `names`: for layers by their paths, the paths of their modules, `{"encoder.layer_0": "backbone.conv1"}`.
    * `x`: an input, or its `jax.ShapeDtypeStruct`, where a Dense follows on flattened images: PyTorch flattens them
      with their channels first. A Dense whose output a `Reshape` makes images of needs none.
    * `strict`: whether all must fit; else what fits is taken, and a warning lists the rest.

    A layer goes with the module of its own path (`layer_2` of a Chain is `2` of a Sequential); unless all do, those
    whose paths have no numbers do, and the others go together in the order in which they stand. Kernels are turned, the
    statistics of normalizations go to the state, `LSTM`, `GRU`, `MultiheadAttention` and `TransformerEncoderLayer` are
    taken apart; arrays of layers that PyTorch does not have are found under their own names. Everything is cast to the
    types of `ps` and `st`.

    The same numbers come out of nets of the same options: images are `N H W C` here, so the input is
    `x.permute(0, 2, 3, 1)`; `padding=1` is the same in both, `"SAME"` only without stride; `nn.GELU()` is
    `functools.partial(jax.nn.gelu, approximate=False)`.

    Raises `ValueError` with all that does not fit, path by path: layers without a module, arrays without a layer, other
    shapes, elements that are not floating-point numbers; and for flattened images without `x`, or that go to another
    layer than a Dense, a BatchNorm, a LayerNorm or an RMSNorm.

    >>> import jax, lux_sciml as lux
    >>> layer = lux.Dense(2, 3)
    >>> weights = {"weight": np.ones((3, 2), "float32"), "bias": np.zeros(3, "float32")}
    >>> ps, st = load_torch(layer, *lux.setup(jax.random.key(0), layer), weights)
    >>> layer(jnp.ones(2), ps, st)[0]
    Array([2., 2., 2.], dtype=float32)
    """
    tree, weights = parameter_tree(layer, ps), _weights(state_dict)
    shapes = None if x is None else flattened_shapes(layer, tree, st, x)
    found, wrong = _matched(layer, tree, st, shapes, weights, names)
    if wrong:
        lines = [*wrong[:_MOST], *([f"and {len(wrong) - _MOST} more"] if len(wrong) > _MOST else [])]
        text = "the weights of PyTorch do not fit the model:\n  " + "\n  ".join(lines)
        if strict:
            raise ValueError(f"{text}\n`names=` says which layer is which module; `strict=False` takes what fits")
        warnings.warn(text, stacklevel=2)

    def fill(unit: Unit) -> tuple[Any, Any]:
        whole, match = {"ps": unit.ps, "st": unit.st}, found.get(unit.path)
        for e, name in zip(match.entries, match.names(), strict=True) if match else ():
            old = tuple(_numpy(value_at(whole, path)) for path in e.ours)
            if _difference(e, old, weights[name]) is None:
                for path, before, new in zip(e.ours, old, e.from_torch(weights[name], old), strict=True):
                    whole = with_value(whole, path, jnp.asarray(new.astype(before.dtype)))
        return whole["ps"], whole["st"]

    tree, st = Walk(fill, shapes)(layer, tree, st)
    return like_parameters(ps, tree), st


@checks_itself
def to_torch(
    layer: Layer,
    ps: Parameters,
    st: State,
    *,
    names: Mapping[str, str] | None = None,
    like: Any = None,
    x: Any = None,
) -> dict[str, Any]:
    """The state dict of a PyTorch model with the weights of a layer, as tensors: the way back from `load_torch`.

    * `names`: for layers by their paths, the paths of their modules; for all others it is their own path, in which
      `layer_2` is `2`, as in a Sequential;
    * `like`: the state dict of the model that is to load it, or the model: the names and their order are found as
      `load_torch` does, and what no layer has, such as counters of batches, is kept;
    * `x`: as in `load_torch`.

    Raises `ValueError` as `load_torch` does, and where two arrays would have one name, `ImportError` without PyTorch.

    >>> import jax, lux_sciml as lux
    >>> layer = lux.Chain(lux.Dense(2, 3), jnp.tanh, lux.Dense(3, 1))
    >>> state_dict = to_torch(layer, *lux.setup(jax.random.key(0), layer))  # doctest: +SKIP
    >>> list(state_dict)  # doctest: +SKIP
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    torch = library("torch", "torch")
    tree, out = parameter_tree(layer, ps), {}
    shapes = None if x is None else flattened_shapes(layer, tree, st, x)
    found: dict[str, Match] = {}
    if like is not None:
        weights = _weights(like)
        found, wrong = _matched(layer, tree, st, shapes, weights, names)
        if wrong:
            raise ValueError("the model is not like `like`:\n  " + "\n  ".join(wrong))
        out = {name: torch.tensor(array) for name, array in weights.items()}

    def write(unit: Unit) -> tuple[Any, Any]:
        match = found.get(unit.path) or _named(unit, (names or {}).get(unit.path, unit.named_path))
        whole = {"ps": unit.ps, "st": unit.st}
        for e, name in zip(match.entries, match.names(), strict=True):
            if like is None and name in out:
                raise ValueError(f"two arrays would be called `{name}`: tell them apart by `names=`")
            array = e.to_torch(*(_numpy(value_at(whole, path)) for path in e.ours))
            half = array.dtype.name == "bfloat16"
            tensor = torch.tensor(np.ascontiguousarray(array.astype("float32") if half else array))
            out[name] = tensor.bfloat16() if half else tensor
        if like is None and any(e.name == "running_var" for e in match.entries):
            out[f"{match.prefix}{COUNTER}"] = torch.tensor(0)
        return unit.ps, unit.st

    Walk(write, shapes)(layer, tree, st)
    return out


def _named(unit: Unit, path: str) -> Match:
    return Match(f"{path}." if path else "", unit.variants(())[0])


def _matched(
    layer: Layer,
    ps: Any,
    st: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    weights: Mapping[str, np.ndarray],
    names: Mapping[str, str] | None,
) -> tuple[dict[str, Match], list[str]]:
    """The module of each layer by its path, and what does not fit, a sentence each."""
    units: list[Unit] = []

    def collect(unit: Unit) -> tuple[Any, Any]:
        units.append(unit)
        return unit.ps, unit.st

    Walk(collect, shapes)(layer, ps, st)
    _require_names(names or {}, [unit.path for unit in units])
    found, missing, left = matches(units, list(weights), names or {})
    wrong = []
    for unit in units:
        if unit in missing:
            wanted = ", ".join(e.name for e in unit.variants(())[0])
            wrong.append(f"`{unit.path}`, {brief(unit.layer)}, finds no module of {wanted}")
            continue
        whole, match = {"ps": unit.ps, "st": unit.st}, found[unit.path]
        for e, name in zip(match.entries, match.names(), strict=True):
            difference = _difference(e, tuple(_numpy(value_at(whole, path)) for path in e.ours), weights[name])
            if difference:
                wrong.append(f"`{name}`, for `{unit.path}`, {brief(unit.layer)}, {difference}")
    return found, [*wrong, *(f"`{name}` {_text(weights[name])} finds no layer" for name in left)]


def _difference(e: Entry, old: tuple[np.ndarray, ...], new: np.ndarray) -> str | None:
    """Why an array of PyTorch's cannot take the place of ours, if so."""
    if not is_inexact(new) or (np.iscomplexobj(new) and not np.iscomplexobj(old[0])):
        return f"is of type {new.dtype}, where {old[0].dtype} is expected"
    expected = e.to_torch(*old).shape
    return None if new.shape == expected else f"has the shape {new.shape}, where {expected} is expected"


def _require_names(names: Mapping[str, str], paths: Iterable[str]) -> None:
    """Raise `ValueError` for names of layers that are none, and for two layers with one module."""
    paths = list(paths)
    for path in names:
        if path not in paths:
            raise ValueError(f"`names` has the layer `{path}`; the layers with weights are {', '.join(paths)}")
    modules = list(names.values())
    twice = [path for path, module in names.items() if modules.count(module) > 1]
    if twice:
        raise ValueError(f"`names` leads the layers {', '.join(twice)} to the same module, `{names[twice[0]]}`")


def _numpy(x: Any) -> np.ndarray:
    return np.asarray(x)


def _text(x: np.ndarray) -> str:
    return f"{x.dtype}{list(x.shape)}"


# --- weights ----------------------------------------------------------------------------------------------------------


def _weights(given: Any) -> dict[str, np.ndarray]:
    """The arrays of a state dict, of a module or of a file by name."""
    if isinstance(given, str | os.PathLike):
        return _read(given)
    if hasattr(given, "state_dict"):
        given = given.state_dict()
    if not isinstance(given, Mapping):
        raise TypeError(
            f"expected a state dict, a model of PyTorch or the path of a safetensors file, got a {type(given).__name__}"
        )
    return {str(name): _array(name, value) for name, value in given.items()}


def _array(name: Any, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if isinstance(value, Mapping) or array.dtype.hasobject:
        raise TypeError(
            f"`{name}` of the state dict is a {type(value).__name__}, no tensor: give the state dict in a checkpoint"
        )
    return array


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        if file.peek(4)[:4] == b"PK\3\4":
            raise ValueError(
                f"{os.fspath(path)!r} is a file of `torch.save`, a pickle, which may run code when it is read: give "
                "`torch.load(path, weights_only=True)`, or a safetensors file"
            )
        try:
            with safetensors.reading(file, safetensors.read_header(file), checked=False) as arrays:
                return dict(arrays)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r} cannot be loaded: {error}") from error
