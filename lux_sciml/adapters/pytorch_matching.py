"""Which layer of a model goes with which module of PyTorch's: by name, or by the order in which they stand."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .._tree import dict_map
from ..components import Layout
from ..components.nodes import path_string
from ..core import Container, Layer, Wrapper, parameter_length
from ..core.printing import brief
from ..core.walk import instrument
from ..nn import (
    BatchNorm,
    BidirectionalRNN,
    BranchLayer,
    Chain,
    Conv,
    ConvTranspose,
    Dense,
    Flatten,
    LayerNorm,
    Maxout,
    MultiHeadAttention,
    Parallel,
    Recurrence,
    Reshape,
    RMSNorm,
    SkipConnection,
    Stack,
    TransformerEncoderBlock,
)
from .pytorch_entries import Entry, channels_first, entry, turned, variants

_VECTOR_NORMS = (BatchNorm, LayerNorm, RMSNorm)
_SIDE_BY_SIDE = (BranchLayer, Parallel, Maxout)  # all children get the same array
COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm, which needs it for no momentum


class Unit(NamedTuple):
    """A layer whose arrays stand together in one module, by its path."""

    path: str
    layer: Layer
    ps: Any
    st: Any
    flattened: int | None = None  # the channels of the images that were flattened to make its input
    images: int | None = None  # the channels of the images that are made of its output
    channels_first: bool = False  # whether it normalizes whole images, whose channels PyTorch has first

    def variants(self, names: Iterable[str]) -> list[list[Entry]]:
        """The ways in which its arrays may be called."""
        found = list(variants(self.layer, set(names))) or [self._by_own_names()]
        if self.channels_first:
            found = [channels_first(entries) for entries in found]
        if self.flattened:
            axis, only = (0, "weight") if isinstance(self.layer, Dense) else (-1, None)
            found = [turned(entries, axis, self.flattened, only) for entries in found]
        return [turned(entries, -1, self.images) for entries in found] if self.images else found

    def _by_own_names(self) -> list[Entry]:
        """Of a layer that PyTorch does not have: the names and shapes are those here."""
        paths = [leaf.path for leaf in Layout.of(self.ps).leaves]
        return [entry(path_string(path), ("ps", *path)) for path in paths]

    @property
    def named_path(self) -> str:
        """The path as PyTorch has it: `layer_0.layer_2` of Chains is `0.2` of Sequentials."""
        return re.sub(r"(?:^|(?<=\.))layer_(?=\d+(?:\.|$))", "", self.path)


Visit = Callable[[Unit], tuple[Any, Any]]


class Walk:
    """A walk over the layers of a model, in order: `Walk(visit, flattened)(layer, ps, st)`.

    It returns the parameters and the state as `visit` makes them of each unit. `flattened` has the shape of what each
    `Flatten` joins to one axis, by its path; `None` where they are not known.
    """

    def __init__(self, visit: Visit, flattened: Mapping[str, tuple[int, ...]] | None):
        self.visit, self.flattened = visit, flattened
        self.is_first = True
        self.last: int | None = None  # the channels of the last convolution, the features of a Dense behind it
        self.spatial = 0  # the spatial axes of that convolution
        self.flatten: str | None = None  # the one in front of the next unit, if it flattens images
        self.is_used = False  # whether another child of a container had its output before
        self.images: dict[str, int] | None = None

    def __call__(self, layer: Layer, ps: Any, st: Any, path: str = "") -> tuple[Any, Any]:
        if self.images is None:
            self.images = _made_to_images(layer)
        whole = next(variants(layer, set()), None)
        if flattens(layer):
            is_image = self.is_first and (self.flattened is None or len(self.flattened.get(path, ())) > 2)
            self.flatten, self.is_used = path if self.last or is_image else None, False
        elif isinstance(layer, Stack):
            params, states = layer.to_child(ps, st)
            copies = [
                self(layer.layer, _copy(params, i), _copy(states, i), _join(path, str(i))) for i in range(layer.n)
            ]
            if copies:
                return layer.from_child(_stacked([ps for ps, _ in copies]), _stacked([st for _, st in copies]), st)
        elif isinstance(layer, Container) and whole is None:
            own = {name: part for name, part in ps.items() if name not in layer.children}
            ps = {**ps, **self.visit(Unit(path, layer, own, {}))[0]} if own else ps
            if isinstance(layer, SkipConnection):
                self._flattened(path, layer, {}, {})  # raises: input and output stand in one order
            before = self.last, self.flatten, self.is_used
            for name, child in layer.children.items():
                if isinstance(layer, _SIDE_BY_SIDE) and before[1]:
                    self.last, self.flatten, self.is_used = before
                    self.flatten = None if name == "connection" else self.flatten
                flatten = self.flatten
                one, two = self(child, ps[name], st[name], _join(path, name))
                ps, st = {**ps, name: one}, {**st, name: two}
                if flatten and not self.flatten and not isinstance(layer, Chain):
                    self.flatten, self.is_used = flatten, True
            self.flatten = None if self.is_used and not before[2] else self.flatten
        elif isinstance(layer, Wrapper) and whole is None:
            return layer.from_child(*self(layer.child, *layer.to_child(ps, st), path), st)
        elif whole or (whole is None and ps):
            whole_images = isinstance(layer, LayerNorm | RMSNorm) and self._are_images(jax.tree.leaves(ps)[0].shape)
            flattened = self._flattened(path, layer, ps, st)
            return self.visit(Unit(path, layer, ps, st, flattened, self.images.get(path), whole_images))
        return ps, st

    def _are_images(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is that of all that the last convolution makes of a sample."""
        return self.last is not None and len(shape) == self.spatial + 1 and shape[-1] == self.last

    def _flattened(self, path: str, layer: Layer, ps: Any, st: Any) -> int | None:
        """The channels of the flattened images that a layer gets, if their order matters."""
        flatten, last, size = self.flatten, self.last, None
        self.is_first = False
        if isinstance(layer, Dense):
            size = layer.in_features
        elif isinstance(layer, _VECTOR_NORMS):
            size = jax.tree.leaves((ps, st))[0].shape[-1]
        if not isinstance(layer, _VECTOR_NORMS):
            self.flatten = None
        if isinstance(layer, Conv | ConvTranspose | Dense):
            self.last = layer.out_features if self.last or flatten or not isinstance(layer, Dense) else None
            self.spatial = self.spatial if isinstance(layer, Dense) else len(layer.kernel_size)
        elif isinstance(layer, MultiHeadAttention | TransformerEncoderBlock | Recurrence | BidirectionalRNN):
            self.last = None  # tokens, which both have in front of the features
        if flatten is None or size == last or (self.is_used and size is None):
            return None
        if self.flattened is None:
            raise ValueError(
                f"`{path}` gets flattened images, which PyTorch flattens with their channels first: give an input, "
                "`x=`, or its `jax.ShapeDtypeStruct`, from which their shape is found"
            )
        shape = self.flattened.get(flatten, ())
        if not shape or math.prod(shape) == shape[-1] or (self.is_used and size != math.prod(shape)):
            return None
        if size is None:
            raise ValueError(
                f"`{path}`, {brief(layer)}, gets flattened images, which PyTorch flattens with their channels first: "
                "only Dense, BatchNorm, LayerNorm and RMSNorm are turned, put one of these between"
            )
        return shape[-1]


def _made_to_images(layer: Layer) -> dict[str, int]:
    """The channels of the images that a Reshape makes of the output of a layer, by its path.

    Of one with three sizes and more, or in front of a convolution.
    """
    found: dict[str, int] = {}
    vectors: dict[str, int] = {}  # a Dense and the norms behind it, with their features
    waiting: tuple[dict[str, int], tuple[int, ...]] = {}, ()  # those in front of a Reshape, and its shape

    def settle(channels: int) -> None:
        made, shape = waiting
        channels = channels or (shape[-1] if len(shape) > 2 else 0)
        if channels > 0 and shape[-1:] in ((channels,), (-1,)):
            found.update((path, channels) for path, size in made.items() if size != channels)

    for path, inner in _in_line(layer):
        if isinstance(inner, Reshape) and len(inner.shape) > 1:
            settle(0)
            waiting, vectors = (vectors, inner.shape), {}
        elif isinstance(inner, _VECTOR_NORMS):
            vectors = {**vectors, path: next(iter(vectors.values()))} if vectors else {}
        elif flattens(inner) or parameter_length(inner):
            settle(inner.in_features if isinstance(inner, Conv | ConvTranspose) else 0)
            waiting, vectors = ({}, ()), {path: inner.out_features} if isinstance(inner, Dense) else {}
    settle(0)
    return found


def _in_line(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """The layers of a model that hold no others, in order."""
    if isinstance(layer, Container) and next(variants(layer, set()), None) is None:
        for name, child in layer.children.items():
            yield from _in_line(child, _join(path, name))
    elif isinstance(layer, Wrapper) and not isinstance(layer, Stack) and next(variants(layer, set()), None) is None:
        yield from _in_line(layer.child, path)
    else:
        yield path, layer


def flattens(layer: Layer) -> bool:
    """Whether a layer makes one axis of the features and axes before them."""
    return isinstance(layer, Flatten) or (isinstance(layer, Reshape) and len(layer.shape) == 1)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _copy(tree: Any, i: int) -> Any:
    return dict_map(lambda leaf: leaf[i], tree)


def _stacked(trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], dict):
        return {name: _stacked([tree[name] for tree in trees]) for name in trees[0]}
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class Match(NamedTuple):
    """A unit with the prefix of its module, and what its arrays are called there."""

    prefix: str
    entries: list[Entry]

    def names(self) -> list[str]:
        """The names in the state dict."""
        return [f"{self.prefix}{e.name}" for e in self.entries]


def matches(
    units: list[Unit], names: list[str], given: Mapping[str, str]
) -> tuple[dict[str, Match], list[Unit], list[str]]:
    """The module of each unit by its path; the units that have none; and the names that are left.

    Those that are `given` first; then, if all others are found under their own paths, by these; else those by theirs
    whose paths have no numbers, which count layers here and modules there, and the rest in order.
    """
    names = [name for name in names if name.rpartition(".")[2] != COUNTER]
    out: dict[str, Match] = {}
    for unit in units:
        if unit.path in given:
            match = _at(unit, given[unit.path], names)
            if match is not None:
                out[unit.path] = match
    left = [unit for unit in units if unit.path not in given]
    taken = {name for match in out.values() for name in match.names()}
    rest = [name for name in names if name not in taken]
    tried = ((unit.path, _at(unit, unit.path, rest) or _at(unit, unit.named_path, rest)) for unit in left)
    pairs = {path: match for path, match in tried if match is not None}
    if len(pairs) < len(left):
        pairs = {path: match for path, match in pairs.items() if not re.search(r"\d", path)}  # words
        taken = {name for match in pairs.values() for name in match.names()}
        others = [unit for unit in left if unit.path not in pairs]
        pairs |= _in_order(others, [name for name in rest if name not in taken])
    out |= pairs
    missing = [unit for unit in units if unit.path not in out]
    taken = {name for match in out.values() for name in match.names()}
    return out, missing, [name for name in names if name not in taken]


def _at(unit: Unit, path: str, names: Iterable[str]) -> Match | None:
    """The unit in the module at a path, if all its arrays are there."""
    prefix = f"{path}." if path else ""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    for entries in unit.variants(inside):
        if entries and inside.issuperset(e.name for e in entries):
            return Match(prefix, entries)
    return None


def _in_order(units: list[Unit], names: list[str]) -> dict[str, Match]:
    """Units and modules side by side; names that a unit cannot have are passed over."""
    out: dict[str, Match] = {}
    left = list(names)
    for unit in units:
        for i in range(len(left)):
            match = _next(unit, left[i:])
            if match is not None:
                out[unit.path] = match
                taken = set(match.names())
                left = [name for name in left[i:] if name not in taken]
                break
    return out


def _next(unit: Unit, names: list[str]) -> Match | None:
    """The unit in the module whose array is the first of the names."""
    ends = {e.name for entries in unit.variants(names) for e in entries}
    paths = {names[0].removesuffix(end).removesuffix(".") for end in ends if f".{names[0]}".endswith(f".{end}")}
    found = [_at(unit, path, names) for path in sorted(paths, key=len, reverse=True)]
    return next((match for match in found if match is not None), None)


# --- images that are flattened ----------------------------------------------------------------------------------------


class _Watched(Wrapper):
    """A Flatten that tells the shape of what it joins to one axis."""

    layer: Layer
    found: Callable[[tuple[int, ...]], None]
    watches: ClassVar = True

    def forward(self, x, ps, st):
        axes = self.layer.axes if isinstance(self.layer, Flatten) else None
        self.found(jnp.shape(x)[1 if axes is None else -axes :])
        return self.layer.forward(x, ps, st)


def flattened_shapes(layer: Layer, ps: Any, st: Any, x: Any) -> dict[str, tuple[int, ...]]:
    """The shape of what each Flatten of a model joins to one axis, by its path, in a call with `x`."""
    found: dict[str, tuple[int, ...]] = {}

    def watch(path: str, layer: Layer, inner: Layer) -> Layer:
        return _Watched(inner, lambda shape: found.update({path: shape})) if flattens(layer) else inner

    jax.eval_shape(instrument(layer, watch).forward, x, ps, st)
    return found
