"""Shapes that layers ask for."""

from typing import Any

from ..core.printing import option_text


def as_tuple(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    """A size as a tuple of one."""
    return sizes if isinstance(sizes, tuple) else (sizes,)


def require_last(layer: Any, x: Any, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless the last axes of `x` have this shape, `TypeError` where it is no array."""
    if not hasattr(x, "ndim"):
        got = f"a tuple of {len(x)}" if isinstance(x, tuple) else type(x).__name__
        raise TypeError(f"{option_text(layer)} takes an array, got {got}")
    if x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        sizes = ", ".join(map(str, shape))
        raise ValueError(f"{option_text(layer)} expects inputs of shape (..., {sizes}), got {x.shape}")
