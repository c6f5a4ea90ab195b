"""What layers ask of sizes, inputs and masks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe, floating
from ..components import ComponentVector
from ..core import Layer
from ..core.converters import checks_itself, count, function, number, tuple_of
from ..core.printing import brief
from ..core.static import is_traced

T = TypeVar("T")
R = TypeVar("R")


@checks_itself
def even(value: SupportsIndex) -> int:
    """An even whole number, two or more: of features that make pairs."""
    n = count(value)
    if n % 2:
        raise ValueError(f"expected an even number of features, which make pairs, got {n}")
    return n


@checks_itself
def activation_after_widths(value: Callable[..., Any]) -> Callable[..., Any]:
    """A function; a number is the width of another layer, which belongs into the tuple before."""
    if isinstance(value, int | np.integer):
        raise TypeError(f"expected a function such as jnp.tanh, got {value}: hidden widths are a tuple, (2, (8, 8), 1)")
    return function(value)


def one_or_each(converter: Callable[[T], R]) -> Callable[[T | Sequence[T] | np.ndarray], R | tuple[R, ...]]:
    """The converter of one value for all axes, or of a sequence with one for each."""
    each = tuple_of(converter)

    @checks_itself
    def convert(value: Any) -> R | tuple[R, ...]:
        if isinstance(value, np.ndarray | jax.Array) and not is_traced(value):
            value = value.tolist()
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return each(list(value))
        return converter(value)  # pyright: ignore[reportArgumentType]  # narrowed to what it is not

    return convert


size_or_sizes = one_or_each(count)


@checks_itself
def positive(value: float) -> float:
    """A finite number above zero."""
    x = number(value)
    if not 0 < x < math.inf:
        raise ValueError(f"expected a finite number above 0, got {value}")
    return x


@checks_itself
def fraction(value: float) -> float:
    """A number from 0 to 1."""
    p = number(value)
    if not 0 <= p <= 1:
        raise ValueError(f"expected a rate between 0 and 1, got {value}")
    return p


def as_tuple(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    """A size as a tuple of one."""
    return sizes if isinstance(sizes, tuple) else (sizes,)


def require_array(layer: Layer, x: Any, fix: str = "") -> Any:
    """`x` itself. Raises `TypeError` for what is no array."""
    if not hasattr(x, "ndim"):
        got = f"a {type(x).__name__} of {len(x)}" if isinstance(x, list | tuple) else type(x).__name__
        raise TypeError(f"{brief(layer)} takes an array, got {got}{fix}")
    return x


def require_real(layer: Layer, x: Any) -> Any:
    """`x` itself. Raises `TypeError` for what is no array, and for complex elements, which have no order."""
    if jnp.iscomplexobj(require_array(layer, x)):
        raise TypeError(f"{brief(layer)} takes real elements, got {x.dtype}: give it the real and the imaginary part")
    return x


def as_floating(layer: Layer, x: Any) -> jax.Array:
    """`x` in floating point. Raises `TypeError` for what is no array."""
    return floating(require_array(layer, x))


def require_last(layer: Layer, x: Any, shape: tuple[int, ...]) -> jax.Array:
    """`x` in floating point. Raises `ValueError` unless its last axes have this shape, `TypeError` for no array."""
    require_array(layer, x)
    if x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        sizes = ", ".join(map(str, shape))
        raise ValueError(f"{brief(layer)} expects inputs of shape (..., {sizes}), got {x.shape}")
    return floating(x)


def as_mask(mask: Any) -> jax.Array:
    """A mask as booleans. Raises `TypeError` unless it holds booleans or integers."""
    mask = jnp.asarray(mask)
    if not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise TypeError(
            f"a mask holds booleans or integers, True where something counts, got {mask.dtype}; what is added to the "
            "logits of attention is its `bias=`"
        )
    return mask.astype(bool)


def shapes_of(tree: Any) -> Any:
    """The structure of a tree, with layouts of ComponentVectors whatever their type, and the shapes of its arrays."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_vector)
    layouts = [leaf.layout.astype("float32") if _is_vector(leaf) else None for leaf in leaves]
    return treedef, layouts, [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def cast_like(tree: Any, like: Any) -> Any:
    """A tree in the types of another one of the same `shapes_of`."""
    leaves, treedef = jax.tree.leaves(tree), jax.tree.structure(like)
    pairs = zip(leaves, jax.tree.leaves(like), strict=True)
    return treedef.unflatten(jnp.asarray(leaf).astype(other.dtype) for leaf, other in pairs)


def shapes_text(tree: Any) -> str:
    """A tree as text for people: types and shapes, or the layout of a ComponentVector."""
    return repr(tree.layout) if _is_vector(tree) else describe(tree)


def _is_vector(node: Any) -> bool:
    return isinstance(node, ComponentVector)
