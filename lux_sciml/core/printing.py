"""The printed model: valid Python, only options that are not the defaults, and parameter counts as comments."""

import dataclasses
import functools
import inspect
from typing import Any

from .static import exact_key, fields_of, freeze

_INDENT, _COLUMN, _COLUMN_ALONE = 4, 50, 29


def show(layer: Any) -> str:
    """A layer as text, with the number of its parameters and of the numbers in its state."""
    lines = _lines(layer, "", 0)
    count, states = _counts(layer)
    if len(lines) == 1:
        return _comment(lines[0].rstrip(","), _counted(count, states), _COLUMN_ALONE)
    lines[-1] = lines[-1].removesuffix(",")
    if _written(layer):
        lines.append("")
    if count or states:
        lines[-1] += f"         # Total: {count:_} parameters" + ("," if states else ".")
    if states:
        lines.append(f"          #        plus {states:_} states.")
    return "\n".join(lines)


def option_text(layer: Any) -> str:
    """The layer on one line: `Dense(2, 3, relu)`."""
    return f"{type(layer).__name__}({', '.join(_options(layer))})"


def _lines(layer: Any, name: str, depth: int) -> list[str]:
    """The lines of one layer; the last one ends in a comma."""
    pad, label = " " * (_INDENT * depth), f"{name} = " if name else ""
    inside, written = _inside(layer), _written(layer)
    if not inside and not written:
        count, states = _counts(layer) if depth else (0, 0)
        return [_comment(f"{pad}{label}{option_text(layer)},", _counted(count, states), _COLUMN)]
    options, body = written or (_options(layer, skip=inside), [])
    out = [f"{pad}{label}{'@compact' if written else type(layer).__name__}("]
    out += [f"{pad}{' ' * _INDENT}{option}," for option in options]
    items = list(inside.items())
    while items:
        run = _run_of_equals(items)
        child, child_name = items[0][1], items[0][0]
        if run > 1:
            child_name = f"{_stem(child_name)}({_suffix(child_name)}-{_suffix(items[run - 1][0])})"
        lines = _lines(child, child_name, depth + 1)
        if run > 1 and len(lines) == 1:
            count, states = _counts(child)
            text = f"{pad}{' ' * _INDENT}{child_name} = {option_text(child)},"
            lines = [_comment(text, _counted(count, states, run), _COLUMN)]
        out += lines
        del items[:run]
    return [*out, f"{pad})", *(pad + line for line in body)] if written else [*out, f"{pad}),"]


def _written(layer: Any) -> tuple[list[str], list[str]] | None:
    """Of a layer that `@compact` made: the lines of its values that are no layers, and its body."""
    printed = getattr(type(layer), "printed", None)
    return printed and printed(layer)


def _inside(layer: Any) -> dict[str, Any]:
    """The layers to print inside this one, by name; none where the layer made them from its options."""
    if any(_holds(vars(layer).get(field.name), True) for field in dataclasses.fields(layer) if not field.init):
        return {}
    children = getattr(layer, "children", None)
    if children is not None:
        return dict(children)
    return {name: value for name, value in fields_of(layer).items() if _is_layer(value)}


def _options(layer: Any, skip: Any = ()) -> list[str]:
    """The arguments that rebuild the layer: by position as far as possible, then by name; defaults left out."""
    fields = {name: value for name, value in fields_of(layer).items() if not _holds(value, skip)}
    out, by_position = [], not skip
    for name, parameter in _signature(type(layer)).items():
        if name not in fields:
            continue
        value = fields[name]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:  # `*layers`, `*sizes`
            out += map(value_text, value.values() if hasattr(value, "values") else value)
            continue
        by_position &= parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        if parameter.default is not inspect.Parameter.empty and _same(value, parameter.default):
            by_position = False
            continue
        out.append(value_text(value) if by_position else f"{name}={value_text(value)}")
    return [option.replace("=", " = ", 1) for option in out] if skip else out


def _holds(value: Any, names: Any) -> bool:
    """Whether a field holds the layers that are printed as children."""
    if not names:
        return False
    items = value.values() if hasattr(value, "values") else value if isinstance(value, tuple) else [value]
    return bool(items) and all(map(_is_layer, items))


def _is_layer(value: Any) -> bool:
    return hasattr(value, "init_params") and not isinstance(value, type)


@functools.cache
def _signature(cls: type) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


def _same(value: Any, default: Any) -> bool:
    return exact_key(value, "") == exact_key(freeze(default), "")


def value_text(value: Any) -> str:
    """A value of a field as it prints: functions by their names."""
    if isinstance(value, functools.partial):
        parts = [value_text(value.func), *map(value_text, value.args)]
        return f"partial({', '.join([*parts, *(f'{k}={value_text(v)}' for k, v in value.keywords.items())])})"
    if _is_layer(value):
        return option_text(value)
    if type(value) is tuple:
        return f"({', '.join(map(value_text, value))}{',' if len(value) == 1 else ''})"
    name = getattr(value, "__name__", None)
    return name if callable(value) and isinstance(name, str) else repr(value)


def _counts(layer: Any) -> tuple[int, int]:
    """How many numbers parameters and state hold; none where the layer cannot say, so that it prints all the same."""
    from .setup import parameter_length, state_length

    try:
        return parameter_length(layer), state_length(layer)
    except Exception:
        return 0, 0


def _counted(count: int, states: int, times: int = 1) -> str:
    many = f" ({count:_} x {times})" if times > 1 else ""
    text = f"{count * times:_}{many} parameters" if count else ""
    if states:
        text += (", plus " if text else "") + f"{states * times:_} non-trainable"
    return text


def _comment(text: str, comment: str, column: int) -> str:
    if not comment:
        return text
    return f"{text.ljust(column) if len(text) < column - 1 else text + '  '}# {comment}"


def _run_of_equals(items: list[tuple[str, Any]]) -> int:
    """How many of the first siblings are equal and numbered in sequence."""
    name, layer = items[0]
    if not _suffix(name).isdigit() or _inside(layer):
        return 1
    run = 1
    while run < len(items) and items[run][1] == layer and items[run][0] == f"{_stem(name)}{int(_suffix(name)) + run}":
        run += 1
    return run


def _suffix(name: str) -> str:
    return name[len(_stem(name)) :]


def _stem(name: str) -> str:
    return name.rstrip("0123456789")
