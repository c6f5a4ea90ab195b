"""What several rooms need of trees of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
from jax.core import Tracer


def describe(tree: Any) -> str:
    """Types and shapes as text, `f32[2,3]`, of an array or of a tree of arrays.

    >>> describe({"a": jnp.ones((2, 3))})
    "{'a': f32[2,3]}"
    """
    return eqx.tree_pformat(tree, width=10_000, struct_as_array=True)


def dict_map(f: Callable[[Any], Any], tree: Any) -> Any:
    """`f` of every leaf, as by `jax.tree.map`, with nested dicts in their declared order, where JAX sorts them.

    >>> dict_map(abs, {"b": -1, "a": -2})
    {'b': 1, 'a': 2}
    """
    if type(tree) is dict:
        return {name: dict_map(f, child) for name, child in tree.items()}
    return jax.tree.map(f, tree)


def in_order(tree: Any, like: Any) -> Any:
    """A tree of nested dicts in the order of those of another one.

    >>> in_order({"a": 2, "b": 1}, {"b": 0, "a": 0})
    {'b': 1, 'a': 2}
    """
    if type(tree) is dict and type(like) is dict and tree.keys() == like.keys():
        return {name: in_order(tree[name], child) for name, child in like.items()}
    return tree


def where(condition: jax.Array, a: Any, b: Any) -> Any:
    """The leaves of `a` where the condition holds, else those of `b`."""
    return optax.tree.where(condition, a, b)


def all_finite(tree: Any) -> jax.Array:
    """Whether every inexact leaf of a tree is finite everywhere."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return functools.reduce(jnp.logical_and, finite, jnp.array(True))


def zeros_of(structure: Any) -> Any:
    """Zeros in place of the `jax.ShapeDtypeStruct`s of a tree, other leaves as they are.

    >>> zeros_of({"a": jax.ShapeDtypeStruct((2,), "int32"), "b": "text"})
    {'a': Array([0, 0], dtype=int32), 'b': 'text'}
    """
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, structure)


def is_inexact(x: Any) -> bool:
    """Whether `x` is an array of real or complex floating-point elements."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def is_half(x: Any) -> bool:
    """Whether `x` is an array of floating-point elements in half precision."""
    return is_inexact(x) and jnp.finfo(x.dtype).bits < 32


def is_none(x: Any) -> bool:
    """For `is_leaf`: JAX takes `None` for a tree without leaves."""
    return x is None


def is_traced(x: Any) -> bool:
    """Whether `x` is an array inside a transformation of JAX, without elements of its own."""
    return isinstance(x, Tracer)


def is_random_key(x: Any) -> bool:
    """Whether `x` is a typed random key, or an array of them."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def floating(tree: Any) -> Any:
    """The arrays of a tree in floating point: integers and booleans in JAX's default float, the others as they are.

    >>> floating(jnp.arange(2))
    Array([0., 1.], dtype=float32)
    """

    def convert(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x if is_inexact(x) else x.astype(float)

    return jax.tree.map(convert, tree)


def single(tree: Any) -> Any:
    """The leaves in half precision in float32, all others as they are: integers and keys too, and what is no array.

    >>> single({"a": jnp.ones(2, jnp.bfloat16), "n": 3})["a"].dtype
    dtype('float32')
    """
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_half(x) else x, tree)


def with_tangent(primals: Any, tangents: Any) -> Any:
    """The primals that have a tangent, `None` in the place of the others, as `eqx.combine` takes them."""
    return jax.tree.map(lambda x, dx: None if dx is None else x, primals, tangents, is_leaf=is_none)


def widened(tree: Any) -> Any:
    """The arrays of a tree in `floating` point, half precision in float32: for sums, means, norms, angles, positions.

    What is computed from them is rounded at the end, to the type of the `floating` input.

    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return single(floating(tree))


def still(tree: Any) -> Any:
    """The tree, its arrays without derivatives.

    >>> float(jax.grad(lambda x: x * still({"a": x})["a"])(3.0))
    3.0
    """
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)


def squared(x: Any) -> jax.Array:
    """`|x|^2` of an array or a ComponentVector, elementwise, and real for complex elements too; smooth at zero.

    >>> squared(jnp.array([3 + 4j, 0j]))
    Array([25.,  0.], dtype=float32)
    """
    return jnp.square(jnp.real(x)) + jnp.square(jnp.imag(x)) if jnp.iscomplexobj(x) else jnp.square(x)


def root(size: Any, dtype: Any) -> Any:
    """The square root of a number of elements, which is symbolic where `jax.export` lets it open.

    >>> root(4, jnp.float32)
    2.0
    """
    return math.sqrt(size) if isinstance(size, int) else jnp.sqrt(jnp.asarray(size).astype(dtype))


def rms_norm(tree: Any) -> jax.Array:
    """`optimistix.rms_norm`, the root of the mean square, of trees of symbolic sizes too.

    >>> rms_norm({"a": jnp.ones(3), "b": jnp.array(3.0)})
    Array(1.7320508, dtype=float32)
    """
    size = sum(map(jnp.size, jax.tree.leaves(tree)))
    if isinstance(size, int):
        return optimistix.rms_norm(tree)
    norm = optimistix.two_norm(tree)
    return norm / root(size, norm.dtype)


def real_type(x: jax.Array) -> np.dtype:
    """The type of the elements' real parts."""
    return np.dtype(jnp.finfo(x.dtype).dtype)


def exact_key(value: Any) -> Hashable:
    """A hashable key of a static value, which differs where types or bits differ.

    For Python `1`, `1.0` and `True` are equal, and so are `0.0` and `-0.0`, also inside of tuples, dicts, dataclasses
    and static fields: what is cached or interned by `==` gives back one for another. Arrays count by content. Raises
    `TypeError` for traced arrays and for values without a hash.

    >>> exact_key((1, 0.0)) == exact_key((1.0, 0.0)), exact_key((1, 0.0)) == exact_key((1, 0.0))
    (False, True)
    """
    kind = type(value)
    if value is None or kind in (bool, int, str, bytes):
        return (kind, value)
    if kind is float:
        return (kind, value.hex())
    if kind is complex:
        return (kind, value.real.hex(), value.imag.hex())
    if is_traced(value):
        raise TypeError(f"{value} is traced: a static value is known before tracing")
    if isinstance(value, jax.Array) and is_random_key(value):
        return (kind, value.dtype, exact_key(jax.random.key_data(value)))
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        data = np.asarray(value)
        content = exact_key(data.tolist()) if data.dtype.hasobject else data.tobytes()
        return (kind, value.dtype, data.shape, content)
    if isinstance(value, tuple | list):
        return (kind, *map(exact_key, value))
    if isinstance(value, set | frozenset):
        return (kind, frozenset(map(exact_key, value)))
    if isinstance(value, Mapping):
        return (kind, tuple((exact_key(key), exact_key(item)) for key, item in value.items()))
    if isinstance(value, functools.partial):
        return (kind, exact_key(value.func), exact_key(value.args), exact_key(value.keywords))
    if isinstance(value, slice):
        return (kind, *map(exact_key, (value.start, value.stop, value.step)))
    children, treedef = jax.tree.flatten(value, is_leaf=lambda node: node is not value)
    if not jax.tree_util.treedef_is_leaf(treedef):  # modules and option objects
        _, static = treedef.node_data()
        if static is not value:
            return (kind, exact_key(static), *map(exact_key, children))
    hash(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (kind, value, *(exact_key(getattr(value, field.name, None)) for field in dataclasses.fields(value)))
    return (kind, value)
