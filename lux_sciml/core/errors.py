"""Errors name the layer in which they are raised, by its path, in a note; and its options, where these are wrong."""

import contextlib
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._tree import describe
from .printing import brief

_START = "in the layer "


@contextlib.contextmanager
def errors_of(name: str, child: Any = None) -> Iterator[None]:
    """Note the layer on errors raised inside; each container on the way out puts its name for it before the path."""
    try:
        yield
    except FloatingPointError:  # of check_finite, which names the layer
        raise
    except Exception as error:
        notes, start = getattr(error, "__notes__", []), f"{_START}`"
        for i, note in enumerate(notes):
            if note.startswith(start):
                notes[i] = f"{start}{name}.{note.removeprefix(start)}"
                raise
        error.add_note(f"{start}{name}`" + (f", {brief(child)}" if child else ""))
        raise


def note_layer(error: Exception, layer: Any) -> None:
    """Note the layer that was called on an error, unless the error names it, or one inside of it is noted."""
    noted = any(note.startswith(_START) for note in getattr(error, "__notes__", []))
    name = brief(layer)
    if not noted and name not in str(error) and not isinstance(error, FloatingPointError):
        error.add_note(f"{_START}{name}")
    if isinstance(error, AttributeError) and type(error.obj) is dict:
        fix = f"parameters and state are dicts in `forward`: ps[{error.name!r}], not ps.{error.name}"
        if fix not in getattr(error, "__notes__", []):
            error.add_note(fix)


def refuse_options(cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `TypeError` for options that a class of layers does not have, or more by position than it takes."""
    parameters = cls.__signature__.parameters.values()
    kinds = {p.kind for p in parameters}
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    unknown = [] if inspect.Parameter.VAR_KEYWORD in kinds else [name for name in kwargs if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        has = ", ".join(names) or "none by name"
        raise TypeError(f"{cls.__name__} has no option {unknown[0]!r}{meant}; it has {has}") from None
    if inspect.Parameter.VAR_POSITIONAL not in kinds and len(args) > len(by_position):
        several = "option" if len(by_position) == 1 else "options"
        options = f"{len(by_position)} {several} by position, {', '.join(by_position)}" if by_position else "no options"
        raise TypeError(
            f"{cls.__name__} takes {options}, got {len(args)}: others are given by name, and several values of one "
            "option, such as hidden widths, as a tuple"
        ) from None


def require_pair(layer: Any, out: Any) -> tuple[Any, Any]:
    """What `forward` returns, if it is the output and the next state."""
    if isinstance(out, tuple) and len(out) == 2:
        return out
    got = f"a {type(out).__name__} of {len(out)}" if isinstance(out, tuple) else f"an output alone, {describe(out)}"
    raise TypeError(f"`forward` of {brief(layer)} returns the pair (y, st), got {got}: write `return y, st`")
