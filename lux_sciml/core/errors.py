"""Errors name the layer in which they are raised, by its path, in a note."""

import contextlib
from collections.abc import Iterator
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


def require_pair(layer: Any, out: Any) -> tuple[Any, Any]:
    """What `forward` returns, if it is the output and the next state."""
    if isinstance(out, tuple) and len(out) == 2:
        return out
    got = f"a {type(out).__name__} of {len(out)}" if isinstance(out, tuple) else f"an output alone, {describe(out)}"
    raise TypeError(f"`forward` of {brief(layer)} returns the pair (y, st), got {got}: write `return y, st`")
