"""Windows that slide over space: their strides and padding, written once for convolutions and pooling."""

import math
from collections.abc import Sequence
from typing import Any

from jax import lax

from ..core.printing import option_text

Sizes = int | Sequence[int]  # for all axes of space, or for each
Padding = str | int | Sequence[int | Sequence[int]]  # "SAME", "VALID", 1, (1, 2), ((0, 1), (1, 1))


def check_window(layer: Any) -> None:
    """Raise `ValueError` unless window, stride, dilation and padding of a layer fit together."""
    name, n = type(layer).__name__, len(layer.window)
    if n == 0:
        raise ValueError(f"{name} needs a window of one size for each axis of space, got ()")
    for option, sizes in (
        ("window", layer.window),
        ("stride", strides(layer)),
        ("dilation", per_axis(layer.dilation, n)),
    ):
        if len(sizes) != n:
            raise ValueError(f"{name} with a window of {n} axes got a {option} of {len(sizes)}: {sizes}")
        if min(sizes) < 1:
            raise ValueError(f"{name} needs a {option} of 1 or more, got {sizes}")
    if isinstance(layer.padding, str) and layer.padding not in ("SAME", "VALID"):
        raise ValueError(f'{name} knows the paddings "SAME" and "VALID", got {layer.padding!r}')
    if len(per_axis(layer.padding, n)) != n:
        raise ValueError(f"{name} with a window of {n} axes got a padding for {len(layer.padding)}: {layer.padding}")


def per_axis(value: Any, n: int) -> tuple[Any, ...]:
    """One value for each of `n` axes, from such a tuple or from one value for all."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * n


def strides(layer: Any) -> tuple[int, ...]:
    """The step of the window along each axis; the window itself where none is given."""
    return per_axis(layer.window if layer.stride is None else layer.stride, len(layer.window))


def extent(layer: Any) -> tuple[int, ...]:
    """How far the dilated window of a layer reaches along each axis."""
    dilation = per_axis(layer.dilation, len(layer.window))
    return tuple(d * (size - 1) + 1 for d, size in zip(dilation, layer.window, strict=True))


def as_pairs(padding: Padding, n: int) -> list[tuple[int, int]]:
    """Numbers before and after each of `n` axes, from any padding but "SAME"."""
    padding = 0 if padding == "VALID" else padding
    return [(pad, pad) if isinstance(pad, int) else tuple(pad) for pad in per_axis(padding, n)]


def pads(layer: Any, space: tuple[int, ...]) -> list[tuple[int, int]]:
    """Numbers before and after each axis for a window that slides over `space`. Raises where it does not fit."""
    n = len(layer.window)
    if layer.padding == "SAME":
        out = lax.padtype_to_pads(space, extent(layer), strides(layer), "SAME")
    else:
        out = as_pairs(layer.padding, n)
    padded = tuple(size + sum(pad) for size, pad in zip(space, out, strict=True))
    if any(reach > size for reach, size in zip(extent(layer), padded, strict=True)):
        raise ValueError(f"{option_text(layer)}: a window that reaches {extent(layer)} does not fit into {padded}")
    return out


def as_batch(layer: Any, x: Any, features: int | None = None) -> tuple[Any, tuple[int, ...]]:
    """`(..., *space, features)` with the first axes as one, and these axes. Raises `ValueError` for other inputs."""
    n = len(layer.window)
    if x.ndim <= n or features not in (None, x.shape[-1]):
        space = ", ".join(("depth", "height", "width")[-n:] if n <= 3 else ["space"] * n)
        last = "features" if features is None else features
        raise ValueError(f"{option_text(layer)} expects inputs of shape (..., {space}, {last}), got {x.shape}")
    lead = x.shape[: x.ndim - n - 1]
    return x.reshape(math.prod(lead), *x.shape[x.ndim - n - 1 :]), lead
