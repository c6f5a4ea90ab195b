"""The printed model: the Python that makes it, with parameter counts as comments, and how notebooks show it."""

import html
import inspect
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any, NamedTuple

import numpy as np

from .constant import Constant
from .field import convert
from .parameters import parameter_layout, state_size
from .text import LONG, same, value_text

_INDENT, _COLUMN, _COLUMN_ALONE = 4, 50, 29
_MANY = 3  # equal neighbors, from here on, are printed once
_BRIEF = 100
_FOLDED = 20  # lines; longer models are folded in notebooks


def show(layer: Any) -> str:
    """A layer as the Python that makes it, with the sizes of its parameters and of its state."""
    lines = _lines(_Member("", "", layer, ","), 0)
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


def show_html(layer: Any) -> str:
    """The printed model for notebooks; a long one is folded."""
    text = show(layer)
    shown = f"<pre>{html.escape(text)}</pre>"
    if text.count("\n") < _FOLDED:
        return shown
    size = _counted(*_counts(layer))
    return f"<details><summary><code>{type(layer).__name__}</code> {size}</summary>{shown}</details>"


def option_text(layer: Any, exact: bool = False) -> str:
    """The layer on one line, `Dense(2, 3, relu)`: for people, or `exact`, as the Python that makes it."""
    texts = [a.text(layer, exact).join(_named(a.label, "=")) for a in arguments(layer)]
    return f"{type(layer).__name__}({', '.join(texts)})"


def brief(layer: Any) -> str:
    """The layer on one line, for errors; only its name where that is long; for one that watches, the layer watched."""
    while getattr(layer, "watches", False):
        layer = layer.child
    text = option_text(layer)
    return text if len(text) <= _BRIEF else type(layer).__name__


class Argument(NamedTuple):
    """An argument of the class, as it is printed."""

    label: str  # empty where it stands by position
    field: str  # whose converter it goes through; empty for an item of several
    value: Any

    def text(self, layer: Any, exact: bool) -> str:
        """The text of the value, or of less of which the converter makes the same: `3` for `(3,)`, a list of times."""
        given = self.value
        if type(given) is tuple and len(given) == 1:
            given = given[0]
        elif exact and isinstance(given, Constant) and isinstance(given.value, np.ndarray):
            given = given.value.tolist() if given.value.ndim and given.value.size <= LONG else given
        if given is not self.value and self.field in type(layer)._converters and self._is(layer, given):
            return value_text(given, exact)
        return value_text(self.value, exact)

    def _is(self, layer: Any, given: Any) -> bool:
        """Whether the converter makes the value of `given`."""
        try:
            return same(convert(type(layer), self.field, given), self.value)
        except (TypeError, ValueError):
            return False


def arguments(layer: Any, by_name: bool = False) -> list[Argument]:
    """What makes the layer, without what is the default: by position as far as possible, or by name."""
    values, out = layer.init_arguments(), []
    signature = inspect.signature(type(layer)).parameters
    parameters = [p for name, p in signature.items() if name in values]
    starred = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL and isinstance(values[p.name], tuple | Mapping)]
    starred = [name for name in starred if values[name]]
    if any(p.kind is p.VAR_KEYWORD for p in signature.values()):  # children are printed with their names
        starred = [name for name in starred if not _are_named(values[name], by_name)]
    needs_position, by_position = bool(starred), not by_name
    for p in parameters:
        value = values[p.name]
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and isinstance(value, tuple | Mapping):
            items = value.items() if isinstance(value, Mapping) else [("", item) for item in value]
            out += [Argument("" if p.name in starred else name, "", item) for name, item in items]
            needs_position = needs_position and p.name not in starred
            continue
        argument = Argument(p.name, p.name, value)
        by_position = by_position and p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)
        default = p.default is not p.empty and (argument._is(layer, p.default) or same(value, p.default))
        if needs_position or not default:
            out.append(argument._replace(label="" if needs_position or by_position else p.name))
        else:
            by_position = False
    return out


def _are_named(children: Any, by_name: bool) -> bool:
    """Whether children stand with their names: on one line only where these are not those that positions give."""
    return isinstance(children, Mapping) and (by_name or [*children] != [f"layer_{i}" for i in range(len(children))])


# --- lines --------------------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    """What stands between the brackets of a call, a tuple or a dict: a text, or layers, between two texts."""

    label: str
    left: str
    content: Any
    right: str


def _lines(member: _Member, depth: int) -> list[str]:
    """The lines of one member, in its place."""
    _, left, content, right = member
    pad = " " * (_INDENT * depth)
    if isinstance(content, str):
        return [f"{pad}{left}{content}{right}"]
    if not _is_layer(content):
        named = isinstance(content, Mapping)
        items = content.items() if named else [("", item) for item in content]
        inside = [_Member("", f"{name!r}: " if named else "", item, ",") for name, item in items]
        return [f"{pad}{left}{'{' if named else '('}", *_inside(inside, depth), f"{pad}{'}' if named else ')'}{right}"]
    if _on_one_line(content):
        text = f"{pad}{left}{option_text(content, exact=True)}{right}"
        return [_comment(text, _counted(*_counts(content)) if depth else "", _COLUMN)]
    given, body = _written(content) or (arguments(content, by_name=True), None)
    inside = []
    for argument in given:
        before, after = _named(argument.label, " = ")
        shown = argument.value if holds_layers(argument.value) else argument.text(content, exact=True)
        inside.append(_Member(argument.label, before, shown, f"{after},"))
    if body is None and all(member.label for member in inside):  # options first
        inside.sort(key=lambda member: not isinstance(member.content, str))
    if body is not None:
        return [f"{pad}{left}@compact(", *_inside(inside, depth), f"{pad})", *(pad + line for line in body)]
    return [f"{pad}{left}{type(content).__name__}(", *_inside(inside, depth), f"{pad}){right}"]


def _inside(members: list[_Member], depth: int) -> list[str]:
    """The lines of members one level deeper; many equal layers in a row are written once."""
    out, start = [], 0
    while start < len(members):
        first = members[start]
        run = 1
        while start + run < len(members) and _follows(first, members[start + run], run):
            run += 1
        if run < _MANY:
            out += _lines(first, depth + 1)
            start += 1
            continue
        text = option_text(first.content, exact=True)
        if first.label:
            stem, number = _split(first.label)
            numbers = f"{number}, {number + run}" if number else f"{run}"
            text = f'**{{f"{stem}{{i}}": {text} for i in range({numbers})}},'
        else:
            text = f"*[{text}] * {run},"
        text = " " * (_INDENT * (depth + 1)) + text
        out.append(_comment(text, _counted(*_counts(first.content), run), _COLUMN))
        start += run
    return out


def _follows(first: _Member, other: _Member, distance: int) -> bool:
    """Whether a member is the same layer as the first, in its place `distance` after it."""
    if not _is_layer(first.content) or first.content != other.content or not _on_one_line(first.content):
        return False
    if not first.label:
        return not first.left and not other.left
    stem, number = _split(first.label)
    return number is not None and first.left == f"{first.label} = " and other.label == f"{stem}{number + distance}"


def _split(label: str) -> tuple[str, int | None]:
    """`layer_3` as `layer_` and 3; `None` where there is no number, or one that is written in another way, `03`."""
    stem = label.rstrip("0123456789")
    number = int(label[len(stem) :]) if stem != label else None
    return stem, number if f"{stem}{number}" == label else None


def _named(label: str, sign: str) -> tuple[str, str]:
    """What stands before and after an argument that is given by name."""
    if not label:
        return "", ""
    return (f"{label}{sign}", "") if label.isidentifier() and not iskeyword(label) else (f"**{{{label!r}: ", "}")


def _written(layer: Any) -> tuple[list[Argument], list[str]] | None:
    """Of a layer that `@compact` made: its values, and the lines of its body."""
    printed = getattr(type(layer), "printed", None)
    return printed and printed(layer)


def _on_one_line(layer: Any) -> bool:
    return not _written(layer) and not any(holds_layers(argument.value) for argument in arguments(layer))


def holds_layers(value: Any) -> bool:
    """Whether a value is a layer, or a tuple or a dict with layers in it."""
    if isinstance(value, tuple | Mapping):
        return any(map(holds_layers, value.values() if isinstance(value, Mapping) else value))
    return _is_layer(value)


def _is_layer(value: Any) -> bool:
    return hasattr(value, "init_params") and not isinstance(value, type)


# --- comments -----------------------------------------------------------------------------------------------------


def _counts(layer: Any) -> tuple[int, int]:
    """How many elements parameters and state hold; none where the layer cannot say, so that it prints all the same."""
    try:
        return parameter_layout(layer).size, state_size(layer)
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
