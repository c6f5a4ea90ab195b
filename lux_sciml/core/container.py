"""Container and Wrapper: layers made of layers."""

import operator
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex, TypeVar, overload

import jax

from ..components.vector import refuse_reserved
from .errors import errors_of, require_pair
from .layer import Layer, as_layer, restore
from .parameters import has_parameters_or_state
from .printing import holds_layers
from .static import FrozenDict, fields_of

C = TypeVar("C", bound="Container")
W = TypeVar("W", bound="Wrapper")


class Container(Layer):
    """A layer with children: every field that holds a Layer, a tuple of them or a dict of them, in the fields' order.

    A field `encoder: Layer` makes the child `encoder`; a tuple in a field `layers` makes `layer_0`, `layer_1`, ... and
    in any other field `blocks` makes `blocks_0`, `blocks_1`, ...; a dict makes children of its keys. Functions become
    `Lambda`s where the field says so, by `lux.field(converter=lux.as_layer)`, or by `Layer` alone as its type.
    Parameters and state are dicts with the children's names. `forward` calls them by `run`, which adds their path to
    the errors that they raise.

    Fields that the class names in `beside` come last, and layers without parameters or state in them are no children.

    Children are read by name (`model.encoder`, `model["encoder"]`), by position (`model[0]`), counted by `len`.

    Raises `ValueError` for two children of one name, and for names that a ComponentVector needs; `TypeError` for a
    tuple or a dict that mixes layers with other values.

    >>> import jax, jax.numpy as jnp
    >>> from lux_sciml import Dense, field, setup
    >>> class Sum(Container):
    ...     left: Layer = field(converter=as_layer)
    ...     right: Layer = field(converter=as_layer)
    ...     def forward(self, x, ps, st):
    ...         (a, b), st = self.run(ps, st, left=x, right=x)
    ...         return a + b, st
    >>> ps, st = setup(jax.random.key(0), Sum(Dense(2, 3), Dense(2, 3)))
    >>> ps.left.weight.shape
    (2, 3)
    """

    def __check_init__(self) -> None:
        out: dict[str, Layer] = {}
        fields = fields_of(self)
        for field, value in sorted(fields.items(), key=lambda item: item[0] in type(self).beside):
            children = _children_of(field, value)
            if not children and holds_layers(value):
                raise TypeError(
                    f"{type(self).__name__}.{field} has layers beside or below other values, where they are no "
                    "children: a field holds a layer, or a tuple or a dict of layers; functions become layers by "
                    "`lux.field(converter=tuple_of(as_layer))`"
                )
            for name, child in children:
                if field in type(self).beside and not has_parameters_or_state(child):
                    continue
                if name in out:
                    raise ValueError(f"{type(self).__name__} has two children of the name {name!r}")
                refuse_reserved(name)
                out[name] = child
        vars(self)["_children"] = out

    @property
    def children(self) -> Mapping[str, Layer]:
        """The children by name."""
        return vars(self)["_children"]

    def init_params(self, key):
        return {name: c.init_params(jax.random.fold_in(key, i)) for i, (name, c) in enumerate(self.children.items())}

    def init_state(self, key):
        return {name: c.init_state(jax.random.fold_in(key, i)) for i, (name, c) in enumerate(self.children.items())}

    def run(self, ps: dict[str, Any], st: dict[str, Any], **inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The outputs of the named children, each for its own input, and the state with theirs renewed."""
        outputs, st = [], dict(st)
        for name, x in inputs.items():
            y, st[name] = call_child(name, self[name], x, ps, st)
            outputs.append(y)
        return tuple(outputs), st

    def replace(self: C, **changes: Any) -> C:
        """The same container with some fields changed, or children, by their names. Raises `TypeError` for others.

        >>> import lux_sciml as lux
        >>> model = lux.Chain(inject=lux.Dense(2, 8), head=lux.Dense(8, 1))
        >>> model.replace(head=lux.Dense(8, 3)).head == lux.Dense(8, 3)
        True
        """
        own = fields_of(self)
        children = {name: as_layer(child) for name, child in changes.items() if name in self.children.keys() - own}
        fields = {name: value for name, value in changes.items() if name not in children}
        if unknown := fields.keys() - own.keys():
            raise TypeError(f"{type(self).__name__} has no field or child {', '.join(unknown)}; "
                            f"it has {', '.join(own)}{self._its_children()}")  # fmt: skip
        out = super().replace(**fields)
        return out.replace_children(children) if children else out

    def replace_children(self: C, children: Mapping[str, Layer]) -> C:
        """The same container with other children under the same names."""
        out = {}
        for field, value in fields_of(self).items():
            names = [name for name, _ in _children_of(field, value)]
            children = {**dict(_children_of(field, value)), **children}
            if isinstance(value, Layer):
                out[field] = children[field]
            elif names and isinstance(value, tuple):
                out[field] = tuple(children[name] for name in names)
            elif names:
                out[field] = {name: children[name] for name in names}
        return restore(type(self), {**fields_of(self), **out})

    def __getattr__(self, name: str) -> Layer:
        if name.startswith("_") or "_children" not in vars(self):
            raise AttributeError(name)
        if name not in self.children:
            raise AttributeError(f"{type(self).__name__} has no field or child {name!r}{self._its_children()}")
        return self.children[name]

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> Layer: ...

    @overload
    def __getitem__(self: C, key: slice) -> C: ...

    def __getitem__(self, key: Any) -> Any:
        name, items = type(self).__name__, list(self.children.items())
        if isinstance(key, slice):
            if dict(fields_of(self).get("layers", {})) != dict(items):
                raise TypeError(f"{name} cannot be sliced: it is more than a sequence of layers")
            return self.replace(layers=dict(items[key]))
        if isinstance(key, str):
            if key not in self.children:
                raise KeyError(f"{name} has no child {key!r}{self._its_children()}")
            return self.children[key]
        if not -len(items) <= (i := operator.index(key)) < len(items):
            raise IndexError(f"{name} has {len(items)} children, got the index {i}")
        return items[i][1]

    def _its_children(self) -> str:
        return f"; its children: {', '.join(self.children) or 'none'}"

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.children]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.children)

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.children.values())

    def __bool__(self) -> bool:
        return True


class Wrapper(Layer):
    """A layer around exactly one child, whose parameters and state are the child's own, under no extra name.

    The child is the one field that holds a Layer. Raises `TypeError` where there is none or more than one. A wrapper
    that keeps the child's parameters or state in another form says by `to_child` and `from_child` how they are found in
    its own; one that only adds to the state is a `StatefulWrapper`. Layers in the fields that the class names in
    `beside` are not wrapped: where they have parameters or a state, these stand under their names, beside those of the
    child under the name of its field.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> class Negative(Wrapper):
    ...     layer: Layer = lux.field(converter=lux.as_layer)
    ...     def forward(self, x, ps, st):
    ...         y, st = self.layer.forward(x, ps, st)
    ...         return -y, st
    >>> Negative(jnp.sin).child, lux.setup(jax.random.key(0), Negative(lux.Dense(2, 3)))[0].weight.shape
    (Lambda(jnp.sin), (2, 3))
    """

    @property
    def child_field(self) -> str:
        fields = fields_of(self).items()
        names = [name for name, value in fields if isinstance(value, Layer) and name not in type(self).beside]
        if len(names) != 1:
            raise TypeError(
                f"{type(self).__name__} wraps exactly one layer, got {len(names)}: {', '.join(names) or 'none'}"
            )
        return names[0]

    @property
    def child(self) -> Layer:
        """The wrapped layer."""
        return vars(self)[self.child_field]

    def __check_init__(self) -> None:
        _ = self.child_field  # raises
        found = [pair for field in type(self).beside for pair in _children_of(field, vars(self)[field])]
        vars(self)["_beside"] = {name: layer for name, layer in found if has_parameters_or_state(layer)}

    @property
    def layers_beside(self) -> Mapping[str, Layer]:
        """The layers beside the child that have parameters or a state, by name."""
        return vars(self)["_beside"]

    def init_params(self, key):
        child = self.child.init_params(key)
        if not self.layers_beside:
            return child
        others = enumerate(self.layers_beside.items(), 1)
        return {self.child_field: child} | {n: x.init_params(jax.random.fold_in(key, i)) for i, (n, x) in others}

    def init_state(self, key):
        child = self.child.init_state(key)
        if not self.layers_beside:
            return child
        others = enumerate(self.layers_beside.items(), 1)
        return {self.child_field: child} | {n: x.init_state(jax.random.fold_in(key, i)) for i, (n, x) in others}

    def to_child(self, ps: dict[str, Any], st: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The child's parameters and state, out of the wrapper's."""
        return (ps[self.child_field], st[self.child_field]) if self.layers_beside else (ps, st)

    def from_child(self, ps: dict[str, Any], st: dict[str, Any], whole: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """The wrapper's parameters and state from the child's, and from a state of the wrapper, `whole`."""
        return (ps, {**whole, self.child_field: st}) if self.layers_beside else (ps, st)

    def replace_child(self: W, child: Layer) -> W:
        """The same wrapper around another layer."""
        return restore(type(self), {**fields_of(self), self.child_field: child})


class StatefulWrapper(Wrapper):
    """A Wrapper with entries of its own in the state, beside the child's, which stands under the name of its field.

    A subclass writes `init_state(key)`, which returns both.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> class Counted(StatefulWrapper):
    ...     layer: Layer = lux.field(converter=lux.as_layer)
    ...     def init_state(self, key):
    ...         return {"layer": self.layer.init_state(key), "calls": jnp.zeros((), int)}
    ...     def forward(self, x, ps, st):
    ...         y, inner = self.layer.forward(x, ps, st["layer"])
    ...         return y, {"layer": inner, "calls": st["calls"] + 1}
    >>> layer = Counted(lux.Dense(2, 3))
    >>> layer(jnp.ones(2), *lux.setup(jax.random.key(0), layer))[1]["calls"]
    Array(1, dtype=int32)
    """

    def to_child(self, ps, st):
        return ps[self.child_field] if self.layers_beside else ps, st[self.child_field]

    def from_child(self, ps, st, whole):
        return ps, {**whole, self.child_field: st}


def call_child(name: str, child: Layer, x: Any, ps: Any, st: Any) -> tuple[Any, Any]:
    """The output of a child and its next state."""
    with errors_of(name, child):
        return require_pair(child, child.forward(x, _entry(ps, name, "parameters"), _entry(st, name, "state")))


def _entry(tree: Any, name: str, of: str) -> Any:
    try:
        return tree[name]
    except (KeyError, TypeError, IndexError):
        found = f"a {type(tree).__name__}"
        if isinstance(tree, dict):
            found = f"a dict of {', '.join(tree)}" if tree else "an empty dict"
        raise ValueError(f"no entry {name!r} in the {of}, got {found}: `lux.setup(key, layer)` makes both") from None


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
        flat += item if isinstance(item, list | tuple) and not hasattr(item, "_fields") else [item]
    items = named or {f"layer_{i}": item for i, item in enumerate(flat)}
    return FrozenDict({name: as_layer(item, name) for name, item in items.items()})
