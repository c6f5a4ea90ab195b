"""Derivatives with names, and the context in which solvers choose their adjoint."""

import contextlib
from collections.abc import Iterator

import jax

_MODES = ("forward", "reverse", "both")
_wanted = jax.make_user_context(default_value=None)  # part of the key of every jit cache


@contextlib.contextmanager
def derivatives(mode: str) -> Iterator[None]:
    """Says how the functions called inside are differentiated: `"forward"`, `"reverse"` or `"both"` (second order).

    A layer cannot see the transform around it, but a solver must choose its adjoint for it; `adjoint="auto"` reads this
    context. It is part of the key of `jax.jit`, so that a function is traced anew where it changes. Contexts add up:
    `"reverse"` inside `"forward"` is `"both"`. `lux.jacobian`, `lux.hessian` and `lux.hvp` set it. Raises `ValueError`
    for another mode.

    >>> with derivatives("forward"):
    ...     current_derivatives()
    'forward'
    """
    if mode not in _MODES:
        raise ValueError(f"derivatives takes one of {', '.join(map(repr, _MODES))}, got {mode!r}")
    outer = current_derivatives()
    with _wanted(mode if outer in (None, mode) else "both"):
        yield


def current_derivatives() -> str | None:
    """The modes asked for by the `derivatives` contexts around this call; `None` outside of them."""
    return _wanted.value
