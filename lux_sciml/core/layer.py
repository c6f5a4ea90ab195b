"""Layer: an immutable description that makes parameters and is called with them."""

import abc
import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from ..components.vector import refuse_reserved
from .display import show
from .static import FrozenDict, exact_key, freeze, picklable
from .structure import parameter_tree

_DERIVED = ("_key", "_hash", "_children")  # kept beside the fields


@typing.dataclass_transform(field_specifiers=(dataclasses.field,))
class _LayerMeta(abc.ABCMeta):
    """Makes every subclass a dataclass and a static pytree node, and freezes instances after `__init__`."""

    def __new__(mcs, name, bases, namespace, *, kw_only: bool = False, **kwargs):
        cls = super().__new__(mcs, name, bases, namespace, **kwargs)
        cls._own_init = "__init__" in namespace or any(getattr(base, "_own_init", False) for base in bases)
        cls = dataclasses.dataclass(init=not cls._own_init, eq=False, repr=False, kw_only=kw_only)(cls)
        return jax.tree_util.register_static(cls)

    def __call__(cls, *args, **kwargs):
        return super().__call__(*args, **kwargs)._freeze()


class Layer(metaclass=_LayerMeta):
    """An immutable description of a computation; it never holds numbers that are trained.

    A subclass declares its options as fields, or assigns them in an `__init__` of its own, and writes up to three
    hooks:

    * `init_params(key)` -> dict of floating-point arrays (default: none);
    * `init_state(key)` -> dict of arrays, random keys and `Mode` (default: none);
    * `forward(x, ps, st)` -> `(y, st)`, a pure function; `ps` is a plain nested dict here.

    It is called as `y, st = layer(x, ps, st)`, where `ps` is a `ComponentVector` or a nested dict. Layers compare and
    hash by value, type- and bit-exact, and may be arguments of `jax.jit`. Fields hold hashable values: lists become
    tuples, dicts become `FrozenDict`s, arrays are refused with `TypeError` (see `lux.Constant`).

    >>> import jax, jax.numpy as jnp
    >>> class Scale(Layer):
    ...     size: int
    ...     def init_params(self, key):
    ...         return {"weight": jnp.ones(self.size)}
    ...     def forward(self, x, ps, st):
    ...         return x * ps["weight"], st
    >>> Scale(2)(jnp.ones(2), {"weight": jnp.array([1.0, 3.0])}, {})[0]
    Array([1., 3.], dtype=float32)
    """

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """The parameters, from a random key: a dict of floating-point arrays, or of such dicts."""
        return {}

    def init_state(self, key: jax.Array) -> dict[str, Any]:
        """The state, from a random key: a dict of arrays, random keys and `Mode`."""
        return {}

    @abc.abstractmethod
    def forward(self, x: Any, ps: dict[str, Any], st: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The output and the next state; a pure function of its arguments."""

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Any]:
        """The output for input `x`, and the next state.

        `ps` is unravelled once, here, and its structure is checked: `ValueError` names the first path that is missing,
        unknown or of another shape.
        """
        return self.forward(x, parameter_tree(self, ps), st)

    def replace(self, **fields: Any) -> "Layer":
        """The same layer with some fields changed. Raises `TypeError` for unknown names."""
        unknown = fields.keys() - self.fields().keys()
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no field {', '.join(unknown)}; it has {', '.join(self.fields())}"
            )
        if not self._own_init:
            return dataclasses.replace(self, **fields)
        out = object.__new__(type(self))
        vars(out).update(self.fields() | fields)
        return out._freeze()

    def fields(self) -> dict[str, Any]:
        """The options of this layer by name."""
        return {name: value for name, value in vars(self).items() if name not in _DERIVED}

    def _freeze(self) -> "Layer":
        if "_key" not in vars(self):
            fields = {name: freeze(value) for name, value in vars(self).items()}
            fields |= {name: _as_layers(fields[name]) for name in _layer_fields(type(self)) & fields.keys()}
            name = type(self).__name__
            key = tuple((field, exact_key(value, f"{name}.{field}")) for field, value in fields.items())
            vars(self).update(fields, _key=key, _hash=hash((type(self), key)))
            self._check()
        return self

    def _check(self) -> None:
        """Raise where the finished layer is no valid one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if "_key" in vars(self):
            raise AttributeError(f"a layer is immutable: use layer.replace({name}=...)")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a layer is immutable")

    def __eq__(self, other: Any) -> bool:
        return self is other or (type(self) is type(other) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __copy__(self) -> "Layer":
        return self

    def __deepcopy__(self, memo) -> "Layer":
        return self

    def __reduce__(self):
        return _restore, (type(self), {name: picklable(value) for name, value in self.fields().items()})

    def __repr__(self) -> str:
        return show(self)


def _restore(cls: type[Layer], fields: dict[str, Any]) -> Layer:
    out = object.__new__(cls)
    vars(out).update(fields)
    return out._freeze()


class Lambda(Layer):
    """Any function of one argument as a layer: `y = function(x)`, without parameters or state.

    >>> import jax.numpy as jnp
    >>> Lambda(jnp.square)(3.0, {}, {})[0]
    Array(9., dtype=float32, weak_type=True)
    """

    function: Callable[[Any], Any]

    def forward(self, x, ps, st):
        return self.function(x), st


@functools.cache
def _layer_fields(cls: type) -> frozenset[str]:
    """The fields declared as layers, `Layer` or `tuple[Layer, ...]`; as text, since annotations may be postponed."""
    annotations = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    return frozenset(name for name, text in annotations.items() if re.search(r"\bLayer\b", text))


def _as_layers(value: Any) -> Any:
    """The functions in the value of a field, a tuple or a FrozenDict as Lambdas."""
    if type(value) is tuple:
        return tuple(map(_as_layers, value))
    if isinstance(value, FrozenDict):
        return FrozenDict({name: _as_layers(item) for name, item in value.items()})
    return value if value is None else as_layer(value)


def as_layer(x: Any) -> Layer:
    """A layer as it is; any other callable as a `Lambda`. Raises `TypeError` for everything else."""
    if isinstance(x, Layer):
        return x
    if isinstance(x, type) or not callable(x):
        raise TypeError(f"expected a layer or a function, got {x!r}")
    return Lambda(x)


class Container(Layer):
    """A layer with children: every field that holds a Layer, a tuple of them or a dict of them, in the fields' order.

    A field `encoder: Layer` makes the child `encoder`; a tuple in a field `layers` makes `layer_0`, `layer_1`, ... and
    in any other field `blocks` makes `blocks_0`, `blocks_1`, ...; a dict makes children of its keys. Functions become
    `Lambda`s in fields declared as `Layer`, or as tuples or dicts of them. Parameters and state are dicts with the
    children's names. `forward` calls them by `run`, or by `child.forward(x, ps[name], st[name])`.

    Children are read by name (`model.encoder`, `model["encoder"]`), by position (`model[0]`), counted by `len`.

    >>> import jax, jax.numpy as jnp
    >>> from lux_sciml import Dense, setup
    >>> class Sum(Container):
    ...     left: Layer
    ...     right: Layer
    ...     def forward(self, x, ps, st):
    ...         (a, b), st = self.run(ps, st, left=x, right=x)
    ...         return a + b, st
    >>> ps, st = setup(jax.random.key(0), Sum(Dense(2, 3), Dense(2, 3)))
    >>> ps.left.weight.shape
    (2, 3)
    """

    def _check(self) -> None:
        out: dict[str, Layer] = {}
        for field, value in self.fields().items():
            for name, child in _children_of(field, value):
                if name in out:
                    raise ValueError(f"{type(self).__name__} has two children of the name {name!r}")
                refuse_reserved(name)
                out[name] = child
        vars(self)["_children"] = out

    @property
    def children(self) -> Mapping[str, Layer]:
        """The children by name."""
        return self._children

    def init_params(self, key):
        return {name: c.init_params(jax.random.fold_in(key, i)) for i, (name, c) in enumerate(self.children.items())}

    def init_state(self, key):
        return {name: c.init_state(jax.random.fold_in(key, i)) for i, (name, c) in enumerate(self.children.items())}

    def run(self, ps: dict[str, Any], st: dict[str, Any], **inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The outputs of the named children, each for its own input, and the state with theirs renewed."""
        outputs, st = [], dict(st)
        for name, x in inputs.items():
            y, st[name] = self.children[name].forward(x, ps[name], st[name])
            outputs.append(y)
        return tuple(outputs), st

    def replace_children(self, children: Mapping[str, Layer]) -> "Container":
        """The same container with other children under the same names."""
        out = {}
        for field, value in self.fields().items():
            names = [name for name, _ in _children_of(field, value)]
            if isinstance(value, Layer):
                out[field] = children[field]
            elif names and isinstance(value, tuple):
                out[field] = tuple(children[name] for name in names)
            elif names:
                out[field] = {name: children[name] for name in names}
        return _restore(type(self), {**self.fields(), **out})

    def __getattr__(self, name: str) -> Layer:
        if name.startswith("_") or "_children" not in vars(self):
            raise AttributeError(name)
        if name not in self.children:
            raise AttributeError(f"{type(self).__name__} has no field or child {name!r}{self._its_children()}")
        return self.children[name]

    def __getitem__(self, key: Any) -> Any:
        name, items = type(self).__name__, list(self.children.items())
        if isinstance(key, slice):
            if dict(self.fields().get("layers", {})) != dict(items):
                raise TypeError(f"{name} cannot be sliced: it is more than a sequence of layers")
            return self.replace(layers=dict(items[key]))
        if isinstance(key, str) and key not in self.children:
            raise KeyError(f"{name} has no child {key!r}{self._its_children()}")
        if isinstance(key, int) and not -len(items) <= key < len(items):
            raise IndexError(f"{name} has {len(items)} children, got the index {key}")
        return self.children[key] if isinstance(key, str) else items[key][1]

    def _its_children(self) -> str:
        return f"; its children: {', '.join(self.children) or 'none'}"

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.children.values())

    def __bool__(self) -> bool:
        return True


class Wrapper(Layer):
    """A layer around exactly one child, whose parameters and state are the child's own, under no extra name.

    The child is the one field that holds a Layer. Raises `TypeError` where there is none or more than one.
    """

    @property
    def child_field(self) -> str:
        names = [name for name, value in self.fields().items() if isinstance(value, Layer)]
        if len(names) != 1:
            raise TypeError(
                f"{type(self).__name__} wraps exactly one layer, got {len(names)}: {', '.join(names) or 'none'}"
            )
        return names[0]

    @property
    def child(self) -> Layer:
        """The wrapped layer."""
        return vars(self)[self.child_field]

    def _check(self) -> None:
        _ = self.child_field  # raises

    def init_params(self, key):
        return self.child.init_params(key)

    def init_state(self, key):
        return self.child.init_state(key)

    def replace_child(self, child: Layer) -> "Wrapper":
        """The same wrapper around another layer."""
        return _restore(type(self), {**self.fields(), self.child_field: child})


def _children_of(field: str, value: Any) -> list[tuple[str, Layer]]:
    if isinstance(value, Layer):
        return [(field, value)]
    if isinstance(value, tuple) and value and all(isinstance(item, Layer) for item in value):
        stem = "layer" if field == "layers" else field
        return [(f"{stem}_{i}", item) for i, item in enumerate(value)]
    if isinstance(value, FrozenDict) and value and all(isinstance(item, Layer) for item in value.values()):
        return list(value.items())
    return []


def named_layers(layers: tuple[Any, ...], named: Mapping[str, Any]) -> FrozenDict:
    """The children of a container from its call: `Chain(a, b)`, `Chain([a, b])` or `Chain(first=a, second=b)`."""
    if layers and named:
        raise TypeError("give the layers either by position or by name, not both")
    flat: list[Any] = []
    for item in layers:
        flat += item if isinstance(item, list | tuple) else [item]
    items = named or {f"layer_{i}": item for i, item in enumerate(flat)}
    return FrozenDict({name: as_layer(item) for name, item in items.items()})
