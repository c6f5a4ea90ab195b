"""Windows that slide over spatial axes: their options, their padding, written once for convolutions and pools."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import Layer, field
from ..core.converters import checks_itself, choice, natural, optional
from ..core.printing import brief
from ._shapes import one_or_each, size_or_sizes

Sizes = int | tuple[int, ...]  # for all spatial axes, or for each
Pads = int | tuple[int | tuple[int, int], ...]  # for all spatial axes, or for each: before and after, or a pair

_MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}  # names of PyTorch and of NumPy
_mode = choice("zeros", *_MODES)


@checks_itself
def _pad(value: SupportsIndex | Sequence[SupportsIndex]) -> int | tuple[int, int]:
    """How much to pad an axis: a whole number of at least 0, or a pair `(before, after)` of them."""
    pair = one_or_each(natural)(value)
    if isinstance(pair, int):
        return pair
    if len(pair) != 2:
        raise ValueError(f"expected for each axis a whole number or a pair (before, after), got {pair}")
    return pair


@checks_itself
def _padding(value: str | SupportsIndex | Sequence[Any] | np.ndarray) -> str | Pads:
    """`"SAME"`, `"VALID"`, or how much to pad all axes, or each."""
    if isinstance(value, str) and value not in ("SAME", "VALID"):
        mode = value.lower()
        fix = f'; what the padding holds is padding_mode="{mode}"' if mode in _MODES else ""
        raise ValueError(f'expected "SAME", "VALID" or whole numbers, got {value!r}{fix}')
    return value if isinstance(value, str) else one_or_each(_pad)(value)


@dataclasses.dataclass(frozen=True)
class Window:
    """A window that slides over spatial axes: one value of each option for each axis."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]  # "SAME", or before and after

    @property
    def extent(self) -> tuple[int, ...]:
        """How far the dilated window reaches along each axis."""
        return tuple(d * (size - 1) + 1 for d, size in zip(self.dilation, self.size, strict=True))


class Sliding(Layer, kw_only=True):
    """The options of a layer with a window; a subclass declares `kernel_size`, one size for each spatial axis."""

    stride: Sizes | None = field(default=1, converter=optional(size_or_sizes))
    padding: str | Pads = field(default=0, converter=_padding)
    padding_mode: str = field(default="zeros", converter=_mode)
    dilation: Sizes = field(default=1, converter=size_or_sizes)
    window: Window = field(init=False)

    def __post_init__(self):
        size = vars(self)["kernel_size"]  # declared by the subclasses, each at its place among their arguments
        if not size:
            raise ValueError(f"{type(self).__name__} needs a kernel_size of one size for each spatial axis, got ()")
        stride = size if self.stride is None else self._each("stride", self.stride)
        dilation = self._each("dilation", self.dilation)
        pads: str | tuple[tuple[int, int], ...] = "SAME"
        if self.padding != "SAME":
            given = self._each("padding", 0 if self.padding == "VALID" else self.padding)
            pads = tuple((pad, pad) if isinstance(pad, int) else pad for pad in given)
            self.padding = _short(tuple(before if before == after else (before, after) for before, after in pads))
        self.window = Window(size, stride, dilation, pads)
        self.stride, self.dilation = None if self.stride is None else _short(stride), _short(dilation)

    def _each(self, option: str, value: Any) -> tuple[Any, ...]:
        """One value of an option for each axis."""
        n = len(vars(self)["kernel_size"])
        values = value if isinstance(value, tuple) else (value,) * n
        if len(values) != n:
            name = type(self).__name__
            raise ValueError(f"{name} with a kernel of {n} axes got a {option} for {len(values)}: {values}")
        return values

    def batched(self, x: Any, features: int | None = None) -> tuple[jax.Array, tuple[Any, ...]]:
        """`(..., *space, features)` with the first axes as one, and these axes; `ValueError` for other inputs."""
        n = len(self.window.size)
        if x.ndim <= n or features not in (None, x.shape[-1]):
            space = ", ".join(("depth", "height", "width")[-n:] if n <= 3 else ["space"] * n)
            last = "features" if features is None else features
            raise ValueError(f"{brief(self)} expects inputs of shape (..., {space}, {last}), got {x.shape}")
        lead = x.shape[: x.ndim - n - 1]
        return jnp.reshape(x, (math.prod(lead), *x.shape[x.ndim - n - 1 :])), lead

    def padded(self, x: jax.Array) -> tuple[jax.Array, list[tuple[int, int]]]:
        """`(batch, *space, features)`, padded unless by zeros, and the padding by zeros that is left to do.

        Raises `ValueError` where the window does not fit, and for padding that an axis cannot give.
        """
        space, pads = x.shape[1:-1], self._pads(x.shape[1:-1])
        if self.padding_mode == "zeros" or not any(map(any, pads)):
            return x, pads
        for size, pad in zip(space, pads, strict=True):
            if max(pad) and size <= (max(pad) if self.padding_mode == "reflect" else 0):
                says = "reflected padding is narrower than the axis" if size else "an empty axis has nothing to repeat"
                raise ValueError(f"{brief(self)} cannot pad an axis of {size} elements by {pad}: {says}")
        return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode=_MODES[self.padding_mode]), [(0, 0)] * len(pads)

    def _pads(self, space: tuple[int, ...]) -> list[tuple[int, int]]:
        """How many elements to put before and after each axis."""
        window = self.window
        if isinstance(window.padding, str):
            pads = lax.padtype_to_pads(space, window.extent, window.stride, window.padding)
        else:
            pads = list(window.padding)
        padded = tuple(size + sum(pad) for size, pad in zip(space, pads, strict=True))
        if any(reach > size for reach, size in zip(window.extent, padded, strict=True)):
            raise ValueError(f"{brief(self)}: a window that reaches {window.extent} does not fit into {padded}")
        return pads


def _short(values: tuple[Any, ...]) -> Any:
    """The one whole number of all axes, else the values of all: options that mean the same are equal."""
    return values[0] if isinstance(values[0], int) and set(values) == {values[0]} else values
