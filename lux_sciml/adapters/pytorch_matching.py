"""Which layer of a model goes with which module of PyTorch's: by name, or by the order in which they stand."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .._tree import dict_map
from ..components import Layout
from ..components.nodes import path_string
from ..core import Container, Layer, Wrapper
from ..core.walk import instrument
from ..nn import (
    BidirectionalRNN,
    Conv,
    ConvTranspose,
    Dense,
    Flatten,
    MultiHeadAttention,
    Recurrence,
    Reshape,
    Stack,
    TransformerEncoderBlock,
)
from .pytorch_entries import Entry, after_flatten, entry, variants

COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm, which needs it for no momentum


class Unit(NamedTuple):
    """A layer whose arrays stand together in one module, by its path."""

    path: str
    layer: Layer
    ps: Any
    st: Any
    channels: int | None = None  # of the images that were flattened to make its input

    def variants(self, names: Iterable[str]) -> list[list[Entry]]:
        """The ways in which its arrays may be called."""
        found = list(variants(self.layer, set(names))) or [self._by_own_names()]
        return [after_flatten(entries, self.channels) for entries in found] if self.channels else found

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
    """A walk over the layers of a model, in order: `Walk(visit, x)(layer, ps, st)`.

    It returns the parameters and the state as `visit` makes them of each unit. `channels` are those of the images that
    each `Flatten` gets; `None` where they are not known.
    """

    def __init__(self, visit: Visit, channels: Mapping[str, int] | None):
        self.visit, self.channels = visit, channels
        self.last: int | None = None  # the channels of the last convolution
        self.flatten: str | None = None  # the one in front of the next unit, if it flattens images

    def __call__(self, layer: Layer, ps: Any, st: Any, path: str = "") -> tuple[Any, Any]:
        whole = next(variants(layer, set()), None)
        if flattens(layer):
            self.flatten = path if self.last else None
        elif isinstance(layer, Stack):
            copies = [self(layer.layer, _copy(ps, i), _copy(st, i), _join(path, str(i))) for i in range(layer.n)]
            return (_stacked([ps for ps, _ in copies]), _stacked([st for _, st in copies])) if copies else (ps, st)
        elif isinstance(layer, Container) and whole is None:
            own = {name: part for name, part in ps.items() if name not in layer.children}
            ps = {**ps, **self.visit(Unit(path, layer, own, {}))[0]} if own else ps
            for name, child in layer.children.items():
                one, two = self(child, ps[name], st[name], _join(path, name))
                ps, st = {**ps, name: one}, {**st, name: two}
        elif isinstance(layer, Wrapper) and whole is None:
            return layer.from_child(*self(layer.child, *layer.to_child(ps, st), path), st)
        elif whole or (whole is None and ps):
            return self.visit(Unit(path, layer, ps, st, self._flattened(path, layer)))
        return ps, st

    def _flattened(self, path: str, layer: Layer) -> int | None:
        """The channels of the flattened images that a layer gets."""
        flatten, self.flatten = self.flatten, None
        channels = None
        if flatten is not None and isinstance(layer, Dense) and layer.in_features != self.last:
            if self.channels is None:
                raise ValueError(
                    f"`{path}` gets flattened images, which PyTorch flattens with their channels first: give an input, "
                    "`x=`, or its `jax.ShapeDtypeStruct`, from which their shape is found"
                )
            channels = self.channels.get(flatten)
        if isinstance(layer, Conv | ConvTranspose | Dense):
            self.last = layer.out_features if self.last or not isinstance(layer, Dense) else None
        elif isinstance(layer, MultiHeadAttention | TransformerEncoderBlock | Recurrence | BidirectionalRNN):
            self.last = None  # tokens, which both have in front of the features
        return channels


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

    Those that are `given` first; then, if all others are found under their own paths, by these, else by their order.
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
    by_name = [_at(unit, path, rest) for unit in left for path in (unit.path, unit.named_path)]
    pairs = {unit.path: a or b for unit, a, b in zip(left, by_name[::2], by_name[1::2], strict=True)}
    out |= pairs if all(pairs.values()) else _in_order(left, rest)  # pyright: ignore[reportAssignmentType]
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
    """A Flatten that tells how many channels its input has."""

    layer: Layer
    found: Callable[[int], None]
    watches: ClassVar = True

    def forward(self, x, ps, st):
        self.found(jnp.shape(x)[-1])
        return self.layer.forward(x, ps, st)


def flattened_channels(layer: Layer, ps: Any, st: Any, x: Any) -> dict[str, int]:
    """The size of the last axis of what each Flatten of a model gets, by its path, in a call with `x`."""
    found: dict[str, int] = {}

    def watch(path: str, layer: Layer, inner: Layer) -> Layer:
        return _Watched(inner, lambda size: found.update({path: size})) if flattens(layer) else inner

    jax.eval_shape(instrument(layer, watch).forward, x, ps, st)
    return found
