"""What the layers made of other libraries' modules share: keys, training and testing, inputs."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ..core import Layer, Mode, field
from ..core.converters import flag
from ..core.static import FrozenDict

_IN_TRAINING = ("train", "training", "is_training")  # arguments by which modules are switched
_IN_TESTING = ("deterministic", "use_running_average", "inference")


class Adapted(Layer, kw_only=True):
    """A module of another library as a layer. Its state has a `key` if it is random, and a `mode` if that matters."""

    spread: bool = field(default=False, converter=flag)
    random: bool = field(default=False, converter=flag)
    has_modes: bool = field(default=False, converter=flag)
    train: Mapping[str, Any] = field(default=FrozenDict(), converter=FrozenDict)
    test: Mapping[str, Any] = field(default=FrozenDict(), converter=FrozenDict)

    def init_arguments(self):
        return {name: value for name, value in self.options().items() if name != "initial"}

    def switches(self, key: jax.Array) -> dict[str, Any]:
        """The part of the state that all have."""
        key_entry = {"key": key} if self.random else {}
        return key_entry | ({"mode": Mode.TRAIN} if self.random or self.has_modes else {})

    def inputs(self, x: Any) -> tuple[Any, ...]:
        """The arguments of the module: `x`, or all that a tuple holds."""
        return x if self.spread and isinstance(x, tuple) else (x,)

    def is_testing(self, st: dict[str, Any]) -> bool:
        """Whether the state is in test mode."""
        return st.get("mode") is Mode.TEST

    def switched(self, st: dict[str, Any]) -> dict[str, Any]:
        """The arguments that say in which mode the module is called."""
        return dict(self.test if self.is_testing(st) else self.train)

    def keys(self, st: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The key of this call, `None` where there is none, and the state with the next one; in test mode it stays."""
        if not self.random:
            return None, st
        key, next_key = jax.random.split(st["key"])
        return key, st if self.is_testing(st) else {**st, "key": next_key}


def mode_arguments(
    call: Callable[..., Any], train: Mapping[str, Any] | None, test: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a call in training and in test mode: those given, or what its signature has of the usual ones.

    >>> mode_arguments(lambda x, *, is_training: x, None, None)
    ({'is_training': True}, {'is_training': False})
    """
    if train is not None or test is not None:
        return dict(train or {}), dict(test or {})
    names = inspect.signature(call).parameters
    found = {name: True for name in _IN_TRAINING if name in names} | {
        name: False for name in _IN_TESTING if name in names
    }
    return found, {name: not value for name, value in found.items()}


def require_call(module: Any, name: str) -> None:
    """Raise `TypeError` for a module that cannot be called."""
    if not callable(module):
        raise TypeError(f"{name} takes a module that can be called, and {type(module).__name__} has no `__call__`")
