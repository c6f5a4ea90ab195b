"""Derivatives that stay away from where a vector field is not finite."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ..._tree import all_finite, is_none, where, with_tangent


class Isolated(eqx.Module):
    """A vector field whose derivatives are zero wherever its value is not finite.

    A solver tries steps, and rejects those that have left the domain of the field; a solve that has failed is NaN,
    whatever it has computed; and the samples of a batch go on until the last one is done. None of these evaluations is
    part of a result, and their cotangents are zero; but zero times a derivative that is not finite is NaN, which would
    spoil the gradient of everything else.
    """

    function: Callable[..., Any]
    slope: float = eqx.field(static=True, default=0.0)  # of the derivative by the state that stands in for it

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        function = eqx.filter_closure_convert(self.function, t, y, args)
        return _evaluated(y, function, t, args, slope=self.slope)


@eqx.filter_custom_jvp
def _evaluated(y, function, t, args, *, slope):
    out = function(t, y, args)
    return _batched_alike(out, all_finite(out))


@_evaluated.def_jvp
def _derivative(primals, tangents, *, slope):
    moved = with_tangent(primals, tangents)

    def value(moved):
        y, function, t, args = eqx.combine(moved, primals)
        return function(t, y, args)

    out, push = jax.linearize(value, moved)
    good = all_finite(out)
    tangent = push(jax.tree.map(lambda dx: jnp.where(good, dx, 0), tangents))
    still = jax.tree.map(jnp.zeros_like, tangent)
    if slope:
        still = jax.tree.map(lambda zero, dy: zero if dy is None else slope * dy, still, tangents[0], is_leaf=is_none)
    return _batched_alike(out, good), where(good, tangent, still)


def _batched_alike(out: Any, good: jax.Array) -> Any:
    """`out`, where `jax.vmap` batches all arrays, if it does one of them, as their derivatives, which look at `good`.

    JAX takes it for granted that a derivative is batched only where its value is. XLA takes out the choice.
    """
    return out if len(jax.tree.leaves(out)) == 1 else jax.tree.map(lambda x: jnp.where(good, x, x), out)


def isolated(terms: Any, slope: float = 0.0, *, with_noise: bool = True) -> Any:
    """Terms whose vector fields are `Isolated`; with noise, or those of `dt` only."""
    return _fields(terms, lambda field: Isolated(field, slope), diffrax.AbstractTerm if with_noise else diffrax.ODETerm)


def plain(terms: Any) -> Any:
    """Terms as they were before `isolated`."""
    return _fields(terms, lambda field: field.function if isinstance(field, Isolated) else field)


def _fields(terms: Any, change: Callable[[Any], Any], kind: type = diffrax.AbstractTerm) -> Any:
    """The terms, with the vector field changed of each that is of a kind."""

    def has_field(x):
        return isinstance(x, kind) and hasattr(x, "vector_field")

    def changed(term):
        return eqx.tree_at(lambda t: t.vector_field, term, change(term.vector_field)) if has_field(term) else term

    return jax.tree.map(changed, terms, is_leaf=has_field)
