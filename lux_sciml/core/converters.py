"""The converters that layers share: each makes one form of an option from all that users write for it, or refuses it.

How to declare an option:

    from ..core import Layer, as_layer, field
    from ..core.converters import choice, count, flag, function, optional, sizes, tuple_of

    class Conv(Layer):
        in_features: int = field(converter=count)                              # Conv("a"): refused by name
        kernel_size: tuple[int, ...] = field(converter=sizes)                  # 3, [3, 3] and np.array([3, 3]) -> tuple
        activation: Callable[..., Any] = field(default=identity, converter=function)     # "tanh" is refused
        bias: Callable[..., Any] | None = field(default=None, converter=optional(function))
        padding_mode: str = field(default="zeros", converter=choice("zeros", "circular"))

    class Mixture(Container):
        gate: Layer = field(converter=as_layer)                                # a function becomes a `Lambda`
        norm: Layer | None = field(default=None, converter=optional(as_layer))
        experts: tuple[Layer, ...] = field(converter=tuple_of(as_layer))       # children experts_0, experts_1, ...
        ts: Constant | None = field(default=None, converter=optional(Constant))

* The annotation is what the option becomes; the converter's own annotation is what users may give. Type checkers read
  both.
* A converter sees normalized values: tuples for lists, `FrozenDict`s for dicts, and Python's integers and booleans for
  NumPy's and for arrays of one. This holds for options without a converter too.
* A converter takes its own result as it is, since `replace` converts again.
* It raises `TypeError` or `ValueError` that starts with "expected ...", or with "[i]: ..." for an item; the name of the
  option is put in front. What two options must agree on is checked in `__check_init__`, which is called for every
  class, bases first, without `super()`; `__post_init__` is left for options that are computed from others.
* In a class of one's own, decorate the converter with `checks_itself` where its annotation is narrower than what it
  may be called with, so that its sentence comes first also where a test checks all annotations.
"""

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .constant import Constant
from .field import checks_itself
from .static import FrozenDict, holds_arrays, is_random_key, is_traced
from .text import value_text

T = TypeVar("T")
R = TypeVar("R")
Call = TypeVar("Call", bound=Callable[..., Any])

__all__ = [
    "checks_itself",
    "choice",
    "choices",
    "count",
    "dict_of",
    "flag",
    "function",
    "integer",
    "integers",
    "natural",
    "naturals",
    "number",
    "numbers",
    "optional",
    "short",
    "sizes",
    "tuple_of",
]


@checks_itself
def function(value: Call) -> Call:
    """A function, `jnp.tanh` say; no layer, no string.

    >>> function(abs) is abs
    True
    """
    if not callable(value) or (hasattr(value, "init_params") and not isinstance(value, type)):
        raise TypeError(f"expected a function such as jnp.tanh, got {short(value)}")
    refuse_module(value)
    return value  # pyright: ignore[reportReturnType]  # narrowed to `Call | type`


@checks_itself
def integer(value: SupportsIndex) -> int:
    """A whole number.

    >>> integer(np.int64(3))
    3
    """
    try:
        return operator.index(_not_bool(value))
    except TypeError:
        raise TypeError(f"expected a whole number, got {short(value)}") from None


@checks_itself
def natural(value: SupportsIndex) -> int:
    """A whole number, zero or more.

    >>> natural(0)
    0
    """
    n = integer(value)
    if n < 0:
        raise ValueError(f"expected a whole number of at least 0, got {n}")
    return n


@checks_itself
def count(value: SupportsIndex) -> int:
    """A whole number, one or more.

    >>> count(0)
    Traceback (most recent call last):
    ...
    ValueError: expected a whole number of at least 1, got 0
    """
    n = integer(value)
    if n < 1:
        raise ValueError(f"expected a whole number of at least 1, got {n}")
    return n


@checks_itself
def number(value: SupportsFloat) -> float:
    """A real number, as a float; not NaN.

    >>> number(2)
    2.0
    """
    if isinstance(value, str | bytes) or np.ndim(value):  # pyright: ignore[reportArgumentType]  # of anything
        raise TypeError(f"expected a number, got {short(value)}")
    try:
        x = float(value)
    except TypeError:
        raise TypeError(f"expected a number, got {short(value)}") from None
    if math.isnan(x):
        raise ValueError(f"expected a number, got {short(value)}")
    return x


@checks_itself
def numbers(value: Any) -> Constant:
    """A constant array of real or complex numbers, or a tree of such arrays.

    >>> numbers([[0, 1], [1, 0]])
    Constant([[0, 1], [1, 0]])
    """
    constant = Constant(value)
    for leaf in jax.tree.leaves(constant.value):
        dtype = leaf.dtype if is_random_key(leaf) else np.asarray(leaf).dtype
        if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, bool)):
            raise TypeError(f"expected numbers, got {short(leaf)}")
    return constant


@checks_itself
def flag(value: bool) -> bool:
    """True or False.

    >>> flag(np.True_)
    True
    """
    if np.ndim(value) or value not in (True, False):
        raise TypeError(f"expected True or False, got {short(value)}")
    return bool(value)


@checks_itself
def integers(value: SupportsIndex | Sequence[SupportsIndex] | np.ndarray) -> tuple[int, ...]:
    """A tuple of whole numbers, from one, a sequence or an array of them.

    >>> integers(-1), integers(np.arange(2))
    ((-1,), (0, 1))
    """
    return _each(integer, value, "whole numbers")


@checks_itself
def naturals(value: SupportsIndex | Sequence[SupportsIndex] | np.ndarray) -> tuple[int, ...]:
    """A tuple of whole numbers of at least 0, from one, a sequence or an array of them.

    >>> naturals(0), naturals([3, 0])
    ((0,), (3, 0))
    """
    return _each(natural, value, "whole numbers of at least 0")


@checks_itself
def sizes(value: SupportsIndex | Sequence[SupportsIndex] | np.ndarray) -> tuple[int, ...]:
    """A tuple of whole numbers of at least 1, from one, a sequence or an array of them.

    >>> sizes(3), sizes([3, 4])
    ((3,), (3, 4))
    """
    return _each(count, value, "whole numbers of at least 1")


def choice(*names: str) -> Callable[[str], str]:
    """The converter that takes one of the names.

    >>> choice("zeros", "circular")("zero")
    Traceback (most recent call last):
    ...
    ValueError: expected 'zeros' or 'circular', got 'zero'
    """

    @checks_itself
    def one(value: str) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"expected {' or '.join(map(repr, names))}, got {short(value)}")
        return value

    return one


def choices(*names: str) -> Callable[[str | Sequence[str]], tuple[str, ...]]:
    """The converter that takes some of the names, or one of them, to a tuple.

    >>> choices("times", "amounts")("times")
    ('times',)
    """

    @checks_itself
    def some(value: str | Sequence[str]) -> tuple[str, ...]:
        given = tuple(value) if _is_sequence(value) else (value,)
        for name in given:
            if name not in names:
                raise ValueError(f"expected some of {', '.join(map(repr, names))}, got {short(name)}")
        return given  # pyright: ignore[reportReturnType]  # strings, as the names are

    return some


def optional(converter: Callable[[T], R]) -> Callable[[T | None], R | None]:
    """The converter that lets `None` through and converts all else.

    >>> optional(number)(None), optional(number)(2)
    (None, 2.0)
    """

    @checks_itself
    def convert(value: T | None) -> R | None:
        return None if value is None else converter(value)

    return convert


def tuple_of(converter: Callable[[T], R]) -> Callable[[Sequence[T]], tuple[R, ...]]:
    """The converter of every item of a list or tuple.

    >>> tuple_of(number)([1, 2])
    (1.0, 2.0)
    """

    @checks_itself
    def convert(value: Sequence[T]) -> tuple[R, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list or a tuple, got {short(value)}")
        return tuple(_item(converter, item, i) for i, item in enumerate(value))

    return convert


def dict_of(converter: Callable[[T], R]) -> Callable[[Mapping[str, T]], FrozenDict]:
    """The converter of every value of a dict.

    >>> dict(dict_of(number)({"a": 1}))
    {'a': 1.0}
    """

    @checks_itself
    def convert(value: Mapping[str, T]) -> FrozenDict:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected a dict, got {short(value)}")
        return FrozenDict({name: _item(converter, item, name) for name, item in value.items()})

    return convert


def converted(name: str, converter: Callable[[Any], Any], value: Any) -> Any:
    """An argument converted, as options of layers are; errors begin with its name.

    >>> converted("max_steps", count, 0)
    Traceback (most recent call last):
    ...
    ValueError: max_steps: expected a whole number of at least 1, got 0
    """
    try:
        return converter(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments by position that have no default; none of functions written in C.

    >>> required_arguments(lambda x, y, z=1: x)
    ['x', 'y']
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind in places]


def refuse_module(value: Any) -> None:
    """Raise `TypeError` for a callable that keeps arrays of its own, as the modules of other libraries do.

    What `jax.vmap`, `jax.jit` and their like made of one is such a callable too.
    """
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    kinds = {cls.__name__ for cls in type(value).__mro__}
    module = not isinstance(value, type | eqx.Module) and not kinds.isdisjoint(("Module", "Layer", "StatefulLayer"))
    if module or holds_arrays(value):
        name = f"{type(value).__module__.partition('.')[0]} {type(value).__name__}"
        if name == "lux_sciml StatefulLayer":
            raise TypeError("expected a layer or a function, got a StatefulLayer: give its `layer`")
        raise TypeError(
            f"expected a function, got an object of its own arrays ({name}), which would not be parameters here: "
            f"{_way_in(type(value))}"
        )


_ADAPTERS = {
    "equinox": "from_equinox(module)",
    "flax.nnx": "from_nnx(module)",
    "flax.linen": "from_linen(module, x)",
    "haiku": "from_haiku(transformed, x)",
    "keras": "from_keras(model)",
    "torch": "load_torch(layer, ps, st, module)",
}


def _way_in(kind: type) -> str:
    return adapter_of(kind) or (
        "write a `lux.Layer` whose `init_params` returns the arrays and whose `forward` computes with them"
    )


def adapter_of(kind: type) -> str:
    """How the module of another library comes in; empty for what is of none."""
    for cls in kind.__mro__:
        for package, call in _ADAPTERS.items():
            if f"{cls.__module__}.".startswith(f"{package}."):
                makes = "takes its weights into a layer" if package == "torch" else "makes a layer of it"
                return f"`lux.adapters.{call}` {makes}"
    return ""


def _each(converter: Callable[[Any], int], value: Any, what: str) -> tuple[int, ...]:
    if isinstance(value, np.ndarray | jax.Array) and not is_traced(value):
        value = np.asarray(value).tolist()
    if not _is_sequence(value):
        return (converter(value),)
    items = list(value)
    if any(map(_is_sequence, items)):
        raise TypeError(f"expected {what}, got {short(value)}")
    return tuple(_item(converter, item, i) for i, item in enumerate(items))


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)


def _item(converter: Callable[[Any], Any], item: Any, place: Any) -> Any:
    """An item converted; its errors start with its place."""
    try:
        return converter(item)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"[{place!r}]{'' if str(error).startswith('[') else ': '}{error}") from error


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return value


def short(value: Any) -> str:
    """A value as text for errors, on one line.

    >>> short(0.5), short(np.zeros(100))
    ('0.5', 'a ndarray')
    """
    text = value_text(value, exact=False) if hasattr(type(value), "_as_text") else repr(value)
    return text if len(text) <= 100 and "\n" not in text else f"a {type(value).__name__}"
