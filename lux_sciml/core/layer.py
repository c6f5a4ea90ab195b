"""Layer: an immutable description that makes parameters and is called with them."""

import abc
import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import jax
import numpy as np

from ..components import ComponentVector
from .converters import adapter_of, function, refuse_module, required_arguments
from .errors import note_layer, refuse_options, require_pair
from .field import checks_itself, convert, converters_of, field
from .parameters import fits, parameter_tree
from .pickling import picklable
from .printing import option_text, show, show_html
from .static import exact_key, fields_of, freeze

L = TypeVar("L", bound="Layer")
Parameters: TypeAlias = ComponentVector | Mapping[str, Any] | jax.Array | np.ndarray
State: TypeAlias = dict[str, Any]


@typing.dataclass_transform(field_specifiers=(field, dataclasses.field))
class _LayerMeta(abc.ABCMeta):
    """Makes every subclass a dataclass and a static pytree node, and freezes instances after `__init__`."""

    def __new__(mcs, name, bases, namespace, *, kw_only: bool = False, **kwargs):
        cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        cls._own_init = "__init__" in namespace or any(getattr(base, "_own_init", False) for base in bases)
        cls = dataclasses.dataclass(init=not cls._own_init, eq=False, repr=False, kw_only=kw_only)(cls)
        fields = [f for f in dataclasses.fields(cls) if isinstance(f.type, type) and issubclass(f.type, Layer)]
        cls._converters = {f.name: as_layer for f in fields} | converters_of(cls)
        if not cls._own_init:  # what a converter takes, it says itself; tests check the other annotations
            cls.__init__.__annotations__ |= dict.fromkeys(cls._converters.keys() & cls.__init__.__annotations__, Any)
        return jax.tree_util.register_static(cls)

    if not TYPE_CHECKING:  # type checkers read `__init__`

        def __call__(cls, *args, **kwargs):
            try:
                return type(cls)._made(cls, *args, **kwargs)
            except TypeError:
                refuse_options(cls, args, kwargs)
                raise

        def _made(cls, *args, **kwargs):
            layer = cls.__new__(cls, *args, **kwargs)
            post_init = cls._own_init and getattr(layer, "__post_init__", None)
            if not post_init:
                layer.__init__(*args, **kwargs)
                return layer._freeze()
            calls = []  # an `__init__` of one's own may or may not reach that of a base, which calls `__post_init__`
            vars(layer)["__post_init__"] = lambda: calls.append(post_init())
            layer.__init__(*args, **kwargs)
            del vars(layer)["__post_init__"]
            if not calls:
                post_init()
            return layer._freeze()

    @property
    def __signature__(cls) -> inspect.Signature:
        """The options, for `help`, notebooks and editors."""
        signature, fields = inspect.signature(cls.__init__), getattr(cls, "__dataclass_fields__", {})
        types = {} if getattr(cls, "_own_init", False) else {name: f.type for name, f in fields.items()}
        parameters = [p.replace(annotation=types.get(p.name, p.annotation)) for p in signature.parameters.values()][1:]
        return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


class Layer(metaclass=_LayerMeta):
    """An immutable description of a computation; it never holds parameters.

    A subclass declares its options as fields, or assigns them in an `__init__` of its own, and writes up to three
    hooks:

    * `init_params(key)` -> dict of floating-point arrays (default: none);
    * `init_state(key)` -> dict of arrays, random keys and `Mode` (default: none); `setup` keeps entries that are called
      `running_...`, the statistics of many calls, in float32 where the others are in half precision;
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

    _exact: ClassVar[bool] = True  # compares by types and bits
    beside: ClassVar[tuple[str, ...]] = ()  # fields of a wrapper whose layers are not what it wraps
    _own_init: ClassVar[bool]
    _converters: ClassVar[Mapping[str, Callable[[Any], Any]]]

    if TYPE_CHECKING:  # made by `_freeze`; an annotation would be a field
        _key = ()
        _hash = 0

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """The parameters, from a random key: a dict of floating-point arrays, or of such dicts."""
        return {}

    def init_state(self, key: jax.Array) -> dict[str, Any]:
        """The state, from a random key: a dict of arrays, random keys and `Mode`."""
        return {}

    @abc.abstractmethod
    def forward(self, x: Any, ps: dict[str, Any], st: dict[str, Any], /) -> tuple[Any, dict[str, Any]]:
        """The output and the next state; a pure function of its arguments."""

    @checks_itself
    def __call__(self, x: Any, ps: Parameters, st: State) -> tuple[Any, State]:
        """The output for input `x`, and the next state.

        `ps` is unravelled once, here, and its structure is checked: `ValueError` names the first path that is missing,
        unknown or of another shape. Errors raised inside name the layer, in a note. Raises `TypeError` for a state that
        is no dict.
        """
        tree = self._tree_of(x, ps, st)
        try:
            return require_pair(self, self.forward(x, tree, st))
        except Exception as error:
            note_layer(error, self)
            raise

    def _tree_of(self, x: Any, ps: Any, st: Any) -> Any:
        """The parameters as a nested dict; errors where the arguments are not `x`, parameters, state, in this order."""
        call = f"call `y, st = layer(x, ps, st)` of a {type(self).__name__} with `ps, st = lux.setup(key, layer)`"
        if not isinstance(st, dict):
            raise TypeError(f"the state is a dict, got a {type(st).__name__}: {call}")
        try:
            return parameter_tree(self, ps)
        except (TypeError, ValueError) as error:
            if fits(self, x) or fits(self, st):
                raise TypeError(f"the parameters are the second of the three arguments: {call}") from error
            raise

    def replace(self: L, **fields: Any) -> L:
        """The same layer with some fields changed. Raises `TypeError` for unknown names."""
        unknown = fields.keys() - fields_of(self).keys()
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no field {', '.join(unknown)}; it has {', '.join(fields_of(self))}"
            )
        if not self._own_init:
            return dataclasses.replace(self, **fields)
        return restore(type(self), fields_of(self) | fields)

    def options(self) -> dict[str, Any]:
        """The options of this layer by name."""
        return fields_of(self)

    def _freeze(self: L) -> L:
        if "_key" not in vars(self):
            name = type(self).__name__
            self._set_defaults()
            fields = {name: freeze(value) for name, value in vars(self).items()}
            key = tuple((field, exact_key(value, f"{name}.{field}")) for field, value in fields.items())
            vars(self).update(fields, _key=key, _hash=hash((type(self), key)))
            for cls in reversed(type(self).__mro__):
                if "__check_init__" in vars(cls):
                    vars(cls)["__check_init__"](self)
        return self

    def _set_defaults(self) -> None:
        """The defaults of the fields that an `__init__` of one's own left alone."""
        for declared in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]  # the metaclass makes it one
            if declared.name in vars(self):
                continue
            if declared.default is not dataclasses.MISSING:
                setattr(self, declared.name, declared.default)
            elif declared.default_factory is not dataclasses.MISSING:
                setattr(self, declared.name, declared.default_factory())
            elif not hasattr(type(self), declared.name):  # a property
                name = f"{type(self).__name__}.{declared.name}"
                fix = "assign it in `__init__` or `__post_init__`, or give it a default"
                raise TypeError(f"{name} is declared, but was never set: {fix}")

    if not TYPE_CHECKING:  # type checkers then report names that are no fields

        def __setattr__(self, name, value):
            if "_key" in vars(self):
                raise AttributeError(f"a layer is immutable: use layer.replace({name}=...)")
            grows = self._own_init and isinstance(value, list | dict)  # until the `__init__` of one's own ends
            value = value if grows else freeze(value)
            object.__setattr__(self, name, convert(type(self), name, value))

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

    def __reduce__(self) -> tuple[Any, ...]:
        return restore, (type(self), {name: picklable(value) for name, value in fields_of(self).items()})

    def init_arguments(self) -> dict[str, Any]:
        """The arguments of `__init__` by name, as the layer prints them: its fields, where `__init__` takes these.

        A class whose own `__init__` takes others writes this method, for `eval(repr(layer)) == layer`.
        """
        return fields_of(self)

    def __repr__(self) -> str:
        return show(self)

    def _repr_html_(self) -> str:
        return show_html(self)

    def _as_text(self, exact: bool) -> str:
        return option_text(self, exact)


def restore(cls: type[L], fields: Mapping[str, Any]) -> L:
    """A layer of a class with the given fields, without its `__init__`."""
    out = object.__new__(cls)
    for name, value in fields.items():
        setattr(out, name, value)
    return out._freeze()


class Lambda(Layer):
    """Any function of one argument as a layer: `y = function(x)`, without parameters or state.

    >>> import jax.numpy as jnp
    >>> Lambda(jnp.square)(3.0, {}, {})[0]
    Array(9., dtype=float32, weak_type=True)
    """

    function: Callable[[Any], Any] = field(converter=function)

    def forward(self, x, ps, st):
        try:
            return self.function(x), st
        except TypeError as error:
            if len(needed := required_arguments(self.function)) > 1:
                raise TypeError(
                    "a function that stands for a layer is called with one argument, its input, a tuple where there "
                    f"are several; got a function of ({', '.join(needed)})"
                ) from error
            raise


@checks_itself
def as_layer(x: Layer | Callable[..., Any], where: str = "") -> Layer:
    """A layer as it is; any other callable as a `Lambda`: the converter of fields that hold a layer.

    Raises `TypeError`, with `where` in front, for everything else, and for modules of other libraries, which keep
    arrays of their own.

    >>> import jax.numpy as jnp
    >>> as_layer(jnp.tanh)
    Lambda(jnp.tanh)
    """
    if isinstance(x, Layer):
        return x
    if isinstance(x, type) or not callable(x):
        got = f"the class {x.__name__}: make a layer of it, {x.__name__}(...)" if isinstance(x, type) else repr(x)
        hint = adapter_of(type(x))
        raise TypeError(f"{where and where + ': '}expected a layer or a function, got {got}{hint and ': ' + hint}")
    refuse_module(x)
    return Lambda(x)
