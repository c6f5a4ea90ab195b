"""Cutting a vector into parts so that XLA compiles what follows quickly: see docs/flat_vectors.md."""

import contextlib
import functools

import jax
import jax.numpy as jnp
from jax import lax

from .._compat import never_inlined
from .._platform import by_platform

_FEWEST_PARTS, _MOST_ELEMENTS = 8, 2**22  # fewer parts compile quickly anyway; of more elements, copies cost run time


def split(x: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    """The parts of `x` along its last axis; the gradient is one `concatenate`.

    XLA on the CPU compiles a slice, and whatever is fused with it, anew for each offset. For many parts the offsets are
    therefore made at run time, so that equal parts are cut, and used, by the same compiled code. And it computes what
    is fused with a `concatenate`, such as the sum that makes the gradient of a bias, again for every element of the
    result, so that this is kept apart.
    """
    if len(sizes) == 1:
        return [x]
    if x.ndim > 1:
        return list(lax.split(x, sizes, axis=x.ndim - 1))
    return _split(x, tuple(sizes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _split(x, sizes):
    if len(sizes) < _FEWEST_PARTS or x.size > _MOST_ELEMENTS:
        return _parts(x, sizes)
    return _on_cpu(_chain, x, sizes)


@_split.defjvp
def _tangent(sizes, primals, tangents):
    return _split(*primals, sizes), _on_cpu(_apart, *tangents, sizes)  # transposed: one `concatenate`


@functools.partial(jax.jit, static_argnums=(0, 2))
def _on_cpu(split, x, sizes):
    return by_platform(x, cpu=lambda x: split(x, sizes), default=lambda x: _parts(x, sizes))


def _chain(x, sizes):
    """Each part together with the offset of the next one, by functions that are neither inlined nor specialized."""
    inlining = never_inlined()
    if inlining is None:
        return _parts(x, sizes)
    offset, parts = lax.optimization_barrier(jnp.int32(0)), []
    with inlining:
        for size in sizes:
            part, offset = _cut(x, offset, size)
            parts.append(part)
    return parts


@functools.partial(jax.jit, static_argnums=2)
def _cut(x, offset, size):
    return lax.dynamic_slice(x, (offset,), (size,), allow_negative_indices=False), offset + size


def _apart(x, sizes):
    """The parts by a function that is not inlined, nor is its transpose."""
    with never_inlined() or contextlib.nullcontext():
        return jax.jit(_parts, static_argnums=1)(x, sizes)


def _parts(x, sizes):
    return list(lax.split(x, sizes))
