"""The state of a model: nested dicts that mirror it, switched and changed at all depths."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ..components import ComponentVector
from .mode import Mode
from .stateful import StatefulLayer

S = TypeVar("S")


def trainmode(st: S) -> S:
    """The state with every layer in training; of a `StatefulLayer`, one in this state.

    Raises `TypeError` for what is no state, such as a layer or parameters.

    >>> trainmode({"layer_0": {"mode": Mode.TEST}})
    {'layer_0': {'mode': Mode.TRAIN}}
    """
    return _changed(st, lambda st: _switched(st, Mode.TRAIN))


def testmode(st: S) -> S:
    """The state with every layer in testing: dropout is off, normalizations use their running statistics.

    Of a `StatefulLayer`, one in this state. Raises `TypeError` for what is no state, such as a layer or parameters.

    >>> testmode({"layer_0": {"mode": Mode.TRAIN, "key": 3}})
    {'layer_0': {'mode': Mode.TEST, 'key': 3}}
    """
    return _changed(st, lambda st: _switched(st, Mode.TEST))


testmode.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  # pytest: not a test


def update_state(st: S, name: str, value: Any) -> S:
    """The state with every entry called `name`, at all depths, replaced. Raises `KeyError` where there is none.

    Of a `StatefulLayer`, one in this state. Raises `TypeError` for what is no state.

    >>> update_state({"layer_0": {"scale": 1.0}, "layer_1": {}}, "scale", 2.0)
    {'layer_0': {'scale': 2.0}, 'layer_1': {}}
    """
    return _changed(st, lambda st: _updated(st, name, value))


def _changed(st: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(st, StatefulLayer):
        return StatefulLayer(st.layer, st.ps, change(st.st))
    leaf = st is None or (jax.tree_util.all_leaves([st]) and not isinstance(st, Mode))
    if leaf or isinstance(st, ComponentVector) or hasattr(st, "init_state"):
        what = "the layer" if hasattr(st, "init_state") else "a"
        raise TypeError(f"expected a state, got {what} {type(st).__name__}: `ps, st = lux.setup(key, layer)` makes one")
    return change(st)


def _switched(st: Any, mode: Mode) -> Any:
    """Dicts keep their order."""
    if isinstance(st, dict):
        return {name: _switched(child, mode) for name, child in st.items()}
    return jax.tree.map(lambda x: mode if isinstance(x, Mode) else x, st, is_leaf=lambda x: isinstance(x, Mode))


def _updated(st: Any, name: str, value: Any) -> Any:
    found = False

    def walk(node: Any) -> Any:
        nonlocal found
        if not isinstance(node, dict):
            return node
        found |= name in node
        return {key: value if key == name else walk(child) for key, child in node.items()}

    out = walk(st)
    if not found:
        raise KeyError(f"no entry of the state is called {name!r}")
    return out
