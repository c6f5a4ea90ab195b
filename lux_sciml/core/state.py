"""The state of a model: nested dicts that mirror it, switched and changed at all depths."""

from typing import Any

import jax

from .mode import Mode


def _is_mode(x: Any) -> bool:
    return isinstance(x, Mode)


def _switched(st: Any, mode: Mode) -> Any:
    return jax.tree.map(lambda x: mode if _is_mode(x) else x, st, is_leaf=_is_mode)


def trainmode(st: Any) -> Any:
    """The state with every layer in training.

    >>> trainmode({"layer_0": {"mode": Mode.TEST}})
    {'layer_0': {'mode': Mode.TRAIN}}
    """
    return _switched(st, Mode.TRAIN)


def testmode(st: Any) -> Any:
    """The state with every layer in testing: dropout is off, normalisations use their running statistics."""
    return _switched(st, Mode.TEST)


testmode.__test__ = False  # pytest: not a test


def update_state(st: Any, name: str, value: Any) -> Any:
    """The state with every entry called `name`, at all depths, replaced. Raises `KeyError` where there is none.

    >>> update_state({"layer_0": {"scale": 1.0}, "layer_1": {}}, "scale", 2.0)
    {'layer_0': {'scale': 2.0}, 'layer_1': {}}
    """
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
