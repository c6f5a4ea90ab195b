"""lux.field: an option of a layer that says how what is given for it is converted and checked."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .static import TRACED, holds_traced

F = TypeVar("F", bound=Callable[..., Any])


def field(
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    converter: Callable[[Any], Any] | None = None,
    init: bool = True,
    kw_only: Any = dataclasses.MISSING,
    metadata: dict[str, Any] | None = None,
) -> Any:
    """An option of a layer: as `dataclasses.field`, with a converter.

    * `default`, `default_factory`, `init`, `kw_only`, `metadata`: as in `dataclasses.field`;
    * `converter`: a function of what is given for the option, which returns what the option becomes.

    Whatever is assigned to the option while the layer is made, its default too, goes through `converter(value)`: before
    `__post_init__` and `__check_init__` see it, and again in `replace`. A converter therefore takes its own result as
    it is. Its `ValueError`s and `TypeError`s are raised with the name of the option in front. A subclass that declares
    the option anew, for another default, keeps the converter unless it gives one.

    The converters that layers share are in `lux_sciml.core.converters`; their annotations tell
    type checkers what an option takes, and the annotation of the option what it becomes.

    >>> from lux_sciml import Layer
    >>> def rate(value: float) -> float:
    ...     if not 0 <= value < 1:
    ...         raise ValueError(f"expected a rate in [0, 1), got {value}")
    ...     return float(value)
    >>> class Drop(Layer):
    ...     rate: float = field(default=0, converter=rate)
    ...     def forward(self, x, ps, st):
    ...         return x, st
    >>> Drop().rate
    0.0
    >>> Drop(2)
    Traceback (most recent call last):
    ...
    ValueError: Drop.rate: expected a rate in [0, 1), got 2
    """
    metadata = dict(metadata or {}) | ({"converter": converter} if converter else {})
    return dataclasses.field(  # pyright: ignore[reportCallIssue]  # the overloads do not know MISSING
        default=default, default_factory=default_factory, init=init, kw_only=kw_only, metadata=metadata
    )


def checks_itself(converter: F) -> F:
    """A converter whose annotations are for type checkers only: it says itself what is wrong.

    >>> @checks_itself
    ... def positive(value: float) -> float:
    ...     if not value > 0:
    ...         raise ValueError(f"expected a number above 0, got {value!r}")
    ...     return float(value)
    >>> positive(2)
    2.0
    """
    return inspect.unwrap(converter)  # of the checks that tests put around every annotated function


def converters_of(cls: type) -> dict[str, Callable[[Any], Any]]:
    """The converters of a class's fields by name, those of its bases included."""
    inherited = [getattr(base, "_converters", {}) for base in reversed(cls.__bases__)]
    own = {f.name: f.metadata["converter"] for f in dataclasses.fields(cls) if "converter" in f.metadata}
    return {name: converter for found in (*inherited, own) for name, converter in found.items()}


def convert(cls: Any, name: str, value: Any) -> Any:
    """The value as the field's converter makes it, if there is one; its errors name the field."""
    converter = cls._converters.get(name)
    if converter is None:
        return value
    if holds_traced(value):
        raise TypeError(f"{cls.__name__}.{name} {TRACED}")
    try:
        return converter(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        between = "" if str(error).startswith("[") else ": "  # `Many.layers[1]: ...`, an item of the field
        raise kind(f"{cls.__name__}.{name}{between}{error}") from error
