"""@compact: a layer from one function and the values it uses."""

import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import is_inexact
from ..components.vector import refuse_reserved
from . import converters
from .constant import Constant
from .container import Container, call_child
from .field import checks_itself, field
from .layer import Layer
from .mode import Mode
from .printing import Argument
from .static import FrozenDict, is_random_key
from .text import value_text


class compact:  # a decorator
    """A decorator that makes a layer of a function `f(self, x)`: the values are what `self` has.

    * floating-point **arrays** become parameters;
    * **layers**, and lists, tuples or dicts of them, are called as `self.dense(x)`, `self.blocks[0](x)`; their
      parameters and states are handled, and stand under `dense`, `blocks_0`;
    * **Python's numbers**, other arrays, random keys and a `Mode` become state; the body may assign them,
      `self.count = self.count + 1`, in their shape and precision;
    * everything else (functions, strings) is a fixed option.

    `lux.compact.parameter(f)` draws a parameter, and `lux.compact.state(f)` an entry of the state, by `f(key)`, anew in
    each `setup`; `lux.compact.state(array)` puts an array into the state. The result is a layer like others: it nests,
    it is called as `y, st = layer(x, ps, st)`, and it prints its body. The function must be pure apart from `self`.
    What decides Python's control flow, such as a number of repeats, comes by a closure, since the state is traced.

    Raises `TypeError` for a list of layers and other things, and where it is written without parentheses; `ValueError`
    for names that a ComponentVector needs, and for names with an underscore in front.

    >>> import lux_sciml as lux
    >>> @lux.compact(dense=lux.Dense(2, 3), scale=jnp.ones(3), calls=0)
    ... def model(self, x):
    ...     self.calls = self.calls + 1
    ...     return self.scale * self.dense(x)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> y, st = model(jnp.ones((8, 2)), ps, st)
    >>> y.shape, ps.size, st["calls"]
    ((8, 3), 12, Array(1, dtype=int32))
    """

    def __init__(self, /, *function: Any, **values: Any):
        if function:
            raise TypeError("write `@lux.compact(name=value, ...)`, with parentheses and the values by name")
        self.values = values

    @checks_itself
    def __call__(self, function: Callable[[Any, Any], Any]) -> Layer:
        return Compact(function, **self.values)

    @staticmethod
    def parameter(draw: Callable[[jax.Array], jax.Array]) -> "Entry":
        """A parameter, drawn as `draw(key)`: a floating-point array.

        >>> compact.parameter(lambda key: jax.random.normal(key, (3,))).kind
        'parameter'
        """
        return Entry(draw, "parameter")

    @staticmethod
    def state(value: Any) -> "Entry":
        """An entry of the state: an array, or what a function `value(key)` draws.

        >>> compact.state(jnp.ones(3)).kind
        'state'
        """
        return Entry(value if callable(value) else Fixed(Constant(value)), "state")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A parameter or an entry of the state: how to draw it from a random key, and what it is."""

    draw: Callable[[Any], Any]
    kind: str  # "parameter" or "state"

    def _as_text(self, exact: bool) -> str:
        value = self.draw.value.value if isinstance(self.draw, Fixed) else self.draw
        text, alone = value_text(value, exact), _as_entry(value)
        return text if alone is not None and alone.kind == self.kind else f"compact.{self.kind}({text})"


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Draws the same value every time; Python's numbers in JAX's precision of the moment, never weakly typed."""

    value: Constant

    def __call__(self, key: Any) -> Any:
        return jax.tree.map(lambda x: x if is_random_key(x) else jnp.array(x, _dtype(x)), self.value.value)


def _dtype(x: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(getattr(x, "dtype", type(x)))


class Compact(Container):
    """What `lux.compact` makes."""

    function: Callable[[Any, Any], Any] = field(converter=converters.function)
    layers: Mapping[str, Layer]  # by the name of the child
    groups: Mapping[str, Any]  # of layers: the names of the children, by place
    entries: Mapping[str, Entry]  # of parameters and state
    fixed: Mapping[str, Any]  # all other options
    order: tuple[str, ...]  # of the values

    def __init__(self, body: Any, /, **values: Any):
        layers, groups, entries, fixed = {}, {}, {}, {}
        for name, value in values.items():
            refuse_reserved(name)
            if name.startswith("_"):
                raise ValueError(f"a value of a compact layer is called {name!r}: leave out the underscore in front")
            items = _layers_in(name, value)
            if items is not None:
                taken = items.keys() & (layers.keys() | values.keys() - {name})
                if taken:
                    raise ValueError(f"two values of the name {', '.join(taken)}: rename {name!r}")
                layers |= items
                if not isinstance(value, Layer):
                    groups[name] = dict(zip(value, items, strict=True)) if isinstance(value, dict) else tuple(items)
            elif (entry := _as_entry(value)) is not None:
                entries[name] = entry
            else:
                fixed[name] = value
        self.function, self.layers, self.groups = body, layers, groups
        self.entries, self.fixed, self.order = entries, fixed, tuple(values)

    def init_params(self, key):
        return self._in_order(super().init_params(key) | self._drawn("parameter", key))

    def init_state(self, key):
        return self._in_order(super().init_state(key) | self._drawn("state", key))

    def _drawn(self, kind: str, key: Any) -> dict[str, Any]:
        keys = {name: jax.random.fold_in(key, len(self.layers) + i) for i, name in enumerate(self.entries)}
        return {name: entry.draw(keys[name]) for name, entry in self.entries.items() if entry.kind == kind}

    def _in_order(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The entries in the order of the call of `compact`."""
        names: list[str] = []
        for name in self.order:
            group = self.groups.get(name, (name,))
            names += group.values() if isinstance(group, Mapping) else group
        return {name: tree[name] for name in names if name in tree}

    def forward(self, x, ps, st):
        scope = _Scope(self, ps, dict(st))
        y = self.function(scope, x)
        return y, vars(scope)["_st"]

    def init_arguments(self):
        """What `compact` was called with, by name."""
        out: dict[str, Any] = {}
        for name in self.order:
            group = self.groups.get(name)
            if isinstance(group, Mapping):
                out[name] = FrozenDict({key: self.layers[child] for key, child in group.items()})
            elif group is not None:
                out[name] = tuple(self.layers[child] for child in group)
            else:
                out[name] = next(found[name] for found in (self.layers, self.entries, self.fixed) if name in found)
        return out

    def printed(self) -> tuple[list[Argument], list[str]]:
        """The values, and the lines of the body."""
        return [Argument(name, "", value) for name, value in self.init_arguments().items()], _body(self.function)

    def __reduce__(self):
        module, name = self.function.__module__, self.function.__qualname__
        if getattr(sys.modules.get(module), name, None) is self:  # the function itself is hidden by the layer
            return _at, (module, name)
        return super().__reduce__()


class _Scope:
    """The `self` of the body, for one call."""

    def __init__(self, layer: Compact, ps: Any, st: Any):
        vars(self).update(_layer=layer, _ps=ps, _st=st)

    def __getattr__(self, name: str) -> Any:
        layer, entry = self._layer, self._layer.entries.get(name)
        if entry is not None:
            return (self._ps if entry.kind == "parameter" else self._st)[name]
        if name in layer.groups:
            group = layer.groups[name]
            if isinstance(group, Mapping):
                return {key: self._caller(child) for key, child in group.items()}
            return tuple(map(self._caller, group))
        if name in layer.layers:
            return self._caller(name)
        if name in layer.fixed:
            return layer.fixed[name]
        raise AttributeError(f"this layer has no {name!r}; it has {', '.join(layer.order)}")

    def _caller(self, name: str) -> Callable[[Any], Any]:
        def call(x: Any) -> Any:
            y, self._st[name] = call_child(name, self._layer.layers[name], x, self._ps, self._st)
            return y

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        entry = self._layer.entries.get(name)
        if entry is None or entry.kind != "state":
            what = "a parameter" if entry else "no entry of the state"
            raise AttributeError(f"the body of a layer may assign its state only, and {name!r} is {what}")
        self._st[name] = _like(self._st[name], value, name)


def _like(old: Any, value: Any, name: str) -> Any:
    if isinstance(old, Mode) or is_random_key(old):
        return value
    value = jnp.asarray(value)
    if value.shape != old.shape:
        raise ValueError(f"the state's {name!r} has shape {old.shape}, and keeps it; it was assigned {value.shape}")
    return value.astype(old.dtype)


def _layers_in(name: str, value: Any) -> dict[str, Layer] | None:
    """The layers of a value, by the names of the children; `None` where there are none."""
    if isinstance(value, Layer):
        return {name: value}
    if not isinstance(value, list | tuple | dict) or not any(isinstance(item, Layer) for item in _items(value)):
        return None
    if not all(isinstance(item, Layer) for item in _items(value)):
        raise TypeError(f"{name!r} mixes layers and other values: give them separately")
    keys = value if isinstance(value, dict) else range(len(value))
    return {f"{name}_{key}": item for key, item in zip(keys, _items(value), strict=True)}


def _items(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)


def _as_entry(value: Any) -> Entry | None:
    """How a value becomes a parameter or state; `None` for what is neither."""
    if isinstance(value, Entry):
        return value
    if isinstance(value, Mode | bool | int | float | complex):
        return Entry(Fixed(Constant(value)), "state")
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return Entry(Fixed(Constant(value)), "parameter" if is_inexact(value) else "state")
    return None


def _body(function: Callable) -> list[str]:
    """The source of a function, without its decorators; nothing where it cannot be found."""
    try:
        lines = textwrap.dedent(inspect.getsource(function)).rstrip().splitlines()
    except (OSError, TypeError):
        return [f"def {function.__name__}(self, x): ..."]
    start = next((i for i, line in enumerate(lines) if line.startswith(("def ", "async def "))), 0)
    return lines[start:]


def _at(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name)
