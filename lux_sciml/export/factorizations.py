"""What JAX leaves to LAPACK, as loops: small linear systems, for formats whose loops we write ourselves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def over_batch(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """A function of arrays with so many axes, of arrays with further ones in front."""

    def batched(*arrays: Any, **params: Any) -> Any:
        f = lambda *x: function(*x, **params)  # noqa: E731
        for _ in range(arrays[0].ndim - axes):
            f = jax.vmap(f)
        return f(*arrays)

    return batched


def lu(a: jax.Array, **_: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both factors in one square matrix, the pivots and the permutation of the rows, by Gauss's elimination."""
    n = a.shape[0]
    rows = jnp.arange(n, dtype=jnp.int32)
    zero = jnp.zeros((), a.dtype)

    def eliminate(k, carry):
        a, order, pivots = carry
        k = k.astype(jnp.int32)
        column = lax.dynamic_index_in_dim(a, k, 1, keepdims=False)
        pivot = jnp.argmax(jnp.where(rows >= k, jnp.abs(column), -jnp.ones_like(zero))).astype(jnp.int32)
        swap = jnp.where(rows == k, pivot, jnp.where(rows == pivot, k, rows))
        a, order = a[swap], order[swap]
        column = lax.dynamic_index_in_dim(a, k, 1, keepdims=False)
        row = lax.dynamic_index_in_dim(a, k, 0, keepdims=False)
        factors = jnp.where(rows > k, column / lax.dynamic_index_in_dim(row, k, 0, keepdims=False), zero)
        a = a - factors[:, None] * jnp.where(rows > k, row, zero)
        a = jnp.where((rows == k) & (rows[:, None] > k), factors[:, None], a)
        return a, order, jnp.where(rows == k, pivot, pivots)

    a, order, pivots = lax.fori_loop(jnp.int32(0), jnp.int32(n), eliminate, (a, rows, rows))
    return a, pivots, order


def permutation(pivots: jax.Array, **_: Any) -> jax.Array:
    """The order of the rows after the swaps of each row with its pivot."""
    rows = jnp.arange(pivots.shape[0], dtype=jnp.int32)

    def swap(k, order):
        k = k.astype(jnp.int32)
        pivot = lax.dynamic_index_in_dim(pivots, k, 0, keepdims=False)
        return order[jnp.where(rows == k, pivot, jnp.where(rows == pivot, k, rows))]

    return lax.fori_loop(jnp.int32(0), jnp.int32(pivots.shape[0]), swap, rows)


def triangular_solve(
    a: jax.Array, b: jax.Array, *, left_side: bool, lower: bool, transpose_a: bool, unit_diagonal: bool, **_: Any
) -> jax.Array:
    """`a^-1 b`, or `b a^-1`, by substitution."""
    if not left_side:
        other = {"left_side": True, "lower": lower, "transpose_a": not transpose_a, "unit_diagonal": unit_diagonal}
        return triangular_solve(a, b.T, **other).T
    a, lower = (a.T, not lower) if transpose_a else (a, lower)
    n = a.shape[0]
    rows = jnp.arange(n, dtype=jnp.int32)

    def substitute(k, x):
        k = k.astype(jnp.int32)
        k = k if lower else n - 1 - k
        row = lax.dynamic_index_in_dim(a, k, 0, keepdims=False)
        rest = lax.dynamic_index_in_dim(b, k, 0, keepdims=False) - row @ x
        rest = rest if unit_diagonal else rest / lax.dynamic_index_in_dim(row, k, 0, keepdims=False)
        return jnp.where(rows[:, None] == k, rest, x)

    return lax.fori_loop(jnp.int32(0), jnp.int32(n), substitute, jnp.zeros_like(b))


def sorted_integers(keys: jax.Array, *others: jax.Array, **_: Any) -> tuple[jax.Array, ...]:
    """Integers in ascending order, and other arrays along: a rank is the count of those that come before."""
    places = jnp.arange(keys.shape[0], dtype=jnp.int32)
    before = (keys < keys[:, None]) | ((keys == keys[:, None]) & (places < places[:, None]))
    rank = jnp.sum(before.astype(jnp.int32), axis=1, dtype=jnp.int32)
    order = jnp.argmax(rank == places[:, None], axis=1)
    return tuple(x[order] for x in (keys, *others))


def linear_solve(inputs: Sequence[Any], params: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The program of `jax.lax.custom_linear_solve` that solves, and those of its inputs that are for it."""
    lengths = params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    return params["jaxprs"].solve, [*inputs[start : start + lengths.solve], *inputs[sum(lengths) :]]


RULES: dict[str, Callable[..., Any]] = {
    "lu": over_batch(lu, 2),
    "lu_pivots_to_permutation": over_batch(permutation, 1),
    "triangular_solve": over_batch(triangular_solve, 2),
}
