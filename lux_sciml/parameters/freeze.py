"""Freezing: parameters that are not trained move to the state."""

from collections.abc import Sequence
from typing import Any

import jax

from ..components import ComponentVector, Layout
from ..components.nodes import Path, path_string
from ..core import Layer, Wrapper, as_layer, field
from ..core.converters import optional
from ..core.parameters import parameter_layout, parameter_tree
from .paths import find_paths, like_parameters, path_or_paths, value_at, with_value, without


class Frozen(Wrapper):
    """A layer whose chosen parameters are kept in its state, where no gradient and no optimizer reaches them.

    `paths` name arrays or sub-trees, `"weight"`, `"layer_0"`, `"layer_0.weight"`; `None` freezes all parameters.
    Parameters: those that are left. State: `frozen`, the others, nested as in the layer, and `layer`, the layer's own.
    `lux.parameters.freeze` makes one of a layer with its parameters. Raises `ValueError` for paths that do not exist or
    overlap.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Frozen(lux.Dense(2, 3), ("weight",))
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> list(ps.keys()), st["frozen"]["weight"].shape
    (['bias'], (2, 3))
    """

    layer: Layer = field(converter=as_layer)
    paths: tuple[str | Path, ...] | None = field(default=None, converter=optional(path_or_paths))

    def __check_init__(self) -> None:
        find_paths(self.layer, self.paths or ())  # raises

    def split(self, ps: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters that are trained, and the frozen ones."""
        paths = [(name,) for name in ps] if self.paths is None else find_paths(self.layer, self.paths)
        frozen: dict[str, Any] = {}
        for path in paths:
            frozen = with_value(frozen, path, value_at(ps, path))
            ps = without(ps, path)
        return ps, frozen

    def join(self, ps: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
        """The parameters of the layer, in their declared order."""
        return _merged(parameter_layout(self.layer), ps, frozen)

    def init_params(self, key):
        return self.split(self.layer.init_params(key))[0]

    def init_state(self, key):
        frozen = self.split(self.layer.init_params(jax.random.fold_in(key, 0)))[1]
        return {"frozen": frozen, "layer": self.layer.init_state(jax.random.fold_in(key, 1))}

    def to_child(self, ps, st):
        return self.join(ps, st["frozen"]), st["layer"]

    def from_child(self, ps, st, whole):
        kept, frozen = self.split(ps)
        return kept, {**whole, "frozen": frozen, "layer": st}

    def forward(self, x, ps, st):
        y, inner = self.layer.forward(x, *self.to_child(ps, st))
        return y, {**st, "layer": inner}


def freeze(layer: Layer, ps: Any = None, st: Any = None, *, which: str | Sequence[str | Path] | None = None) -> Any:
    """A layer with parameters frozen: `layer, ps, st = lux.parameters.freeze(layer, ps, st, which=("layer_0",))`.

    `which` names the parameters by their paths; by default all are frozen. Their values move from `ps` to `st`. Without
    `ps` and `st` only the layer is returned. `lux.parameters.unfreeze` is the way back. Raises `ValueError` for paths
    that do not exist or overlap, and where one of several shared parameters would be frozen without the others.

    >>> import lux_sciml as lux
    >>> ps, st = lux.setup(jax.random.key(0), lux.Dense(2, 3))
    >>> layer, ps, st = lux.parameters.freeze(lux.Dense(2, 3), ps, st, which=("bias",))
    >>> ps.size, layer
    (6, Frozen(
        paths = 'bias',
        layer = Dense(2, 3),                          # 9 parameters
    )         # Total: 6 parameters,
              #        plus 3 states.)
    """
    frozen = Frozen(layer, which)
    if ps is None and st is None:
        return frozen
    _require_both("freeze", ps, st)
    kept, moved = frozen.split(parameter_tree(layer, ps))
    left = {leaf.path for leaf in Layout.of(kept).leaves}
    for shared in ps.layout.ties if isinstance(ps, ComponentVector) else ():
        if len(left.intersection(shared)) == 1:
            names = " and ".join(repr(path_string(path)) for path in shared)
            raise ValueError(f"the shared parameters {names} are one: freeze both or neither")
    return frozen, like_parameters(ps, kept), {"frozen": moved, "layer": st}


def unfreeze(layer: Layer, ps: Any = None, st: Any = None) -> Any:
    """The layer inside of a frozen one, with all its parameters: `layer, ps, st = unfreeze(layer, ps, st)`.

    Without `ps` and `st` only the layer is returned. Raises `TypeError` for a layer that is not frozen.

    >>> import lux_sciml as lux
    >>> frozen = lux.parameters.freeze(lux.Dense(2, 3))
    >>> layer, ps, st = lux.parameters.unfreeze(frozen, *lux.setup(jax.random.key(0), frozen))
    >>> layer, ps.size
    (Dense(2, 3)                # 9 parameters, 9)
    """
    if not isinstance(layer, Frozen):
        raise TypeError(f"expected a frozen layer, got {type(layer).__name__}")
    if ps is None and st is None:
        return layer.layer
    _require_both("unfreeze", ps, st)
    return layer.layer, like_parameters(ps, layer.join(parameter_tree(layer, ps), st["frozen"])), st["layer"]


def _merged(layout: Layout, a: dict[Any, Any], b: dict[Any, Any]) -> dict[Any, Any]:
    """The nested dict of two that have different parts of it."""
    out = {}
    for name, child in layout.children.items():
        if name in a and name in b:
            out[name] = _merged(child, a[name], b[name])
        else:
            out[name] = b[name] if name in b else a[name]
    return out


def _require_both(name: str, ps: Any, st: Any) -> None:
    if ps is None or st is None:
        raise TypeError(f"{name} takes parameters and state together, {name}(layer, ps, st), or the layer alone")
