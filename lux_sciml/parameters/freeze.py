"""Freezing: parameters that are not trained move to the state."""

from typing import Any

import jax

from ..components import ComponentVector
from ..core import Layer, Wrapper
from ..core.parameters import parameter_layout, parameter_tree
from .paths import at_paths, in_order


class Frozen(Wrapper):
    """A layer whose chosen parameters stand in its state, where no gradient and no optimizer reaches them.

    `paths` name arrays or sub-trees, `"weight"`, `"layer_0"`, `"layer_0.weight"`; `None` freezes all parameters.
    Parameters: those that are left. State: `frozen`, the others by path, and `layer`, the layer's own.
    `lux.parameters.freeze` makes one of a layer with its parameters. Raises `ValueError` for paths that do not exist or
    overlap.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.Frozen(lux.Dense(2, 3), ("weight",))
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> list(ps.keys()), st["frozen"]["weight"].shape
    (['bias'], (2, 3))
    """

    layer: Layer
    paths: tuple[str, ...] | None = None

    def __post_init__(self):
        paths = [path.split(".") for path in self.paths or ()]
        for a in paths:
            for b in paths:
                if a is not b and a == b[: len(a)]:
                    raise ValueError(f"{'.'.join(a)!r} and {'.'.join(b)!r} overlap: freeze one of them")

    def split(self, ps: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters that are trained, and the frozen ones by path."""
        paths = tuple(parameter_layout(self.layer).children) if self.paths is None else self.paths
        frozen: dict[str, Any] = {}
        at_paths(ps, paths, frozen.setdefault)
        for path in paths:
            ps = _without(ps, path.split("."))
        return ps, frozen

    def join(self, ps: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
        """The parameters of the layer."""
        for path, value in frozen.items():
            ps = _with(ps, path.split("."), value)
        return ps

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


def freeze(layer: Layer, ps: Any = None, st: Any = None, *, which: Any = None) -> Any:
    """A layer with parameters frozen: `layer, ps, st = lux.parameters.freeze(layer, ps, st, which=("layer_0",))`.

    `which` names the parameters by their paths; by default all are frozen. Their values move from `ps` to `st`. Without
    `ps` and `st` only the layer is returned. `lux.parameters.unfreeze` is the way back. Raises `ValueError` for paths
    that do not exist or overlap.

    >>> import lux_sciml as lux
    >>> ps, st = lux.setup(jax.random.key(0), lux.Dense(2, 3))
    >>> layer, ps, st = lux.parameters.freeze(lux.Dense(2, 3), ps, st, which=("bias",))
    >>> ps.size, layer
    (6, Frozen(
        paths = ('bias',),
        layer = Dense(2, 3),                          # 9 parameters
    )         # Total: 6 parameters,
              #        plus 3 states.)
    """
    which = (which,) if isinstance(which, str) else which
    frozen = Frozen(layer, which if which is None else tuple(which))
    if ps is None:
        return frozen
    kept, moved = frozen.split(parameter_tree(layer, ps))
    return frozen, _like(ps, kept), {"frozen": moved, "layer": st}


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
    if ps is None:
        return layer.layer
    tree = layer.join(parameter_tree(layer, ps), st["frozen"])
    return layer.layer, _like(ps, in_order(tree, parameter_layout(layer.layer))), st["layer"]


def _like(ps: Any, tree: dict[str, Any]) -> Any:
    """A dict for a dict, a flat vector for a flat vector."""
    return tree if isinstance(ps, dict) else ComponentVector.from_tree(tree)


def _without(tree: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    if len(keys) == 1:
        return {key: child for key, child in tree.items() if key != keys[0]}
    return {**tree, keys[0]: _without(tree[keys[0]], keys[1:])}


def _with(tree: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    return {**tree, keys[0]: value if len(keys) == 1 else _with(tree[keys[0]], keys[1:], value)}
