"""Derivatives that an adjoint does not have, refused in one sentence each."""

from typing import Any

import equinox as eqx
import jax

from ..._compat import one_mode

_SENTENCES = {
    "reverse": (
        "{} has reverse mode only, but forward mode was asked for, as by jax.jvp, jax.jacfwd and jax.hessian: with "
        'adjoint=\'auto\', use lux.jacobian, lux.hessian or `with lux.derivatives.mode("forward")` ("both" for second '
        "derivatives), or give adjoint='direct'"
    ),
    "forward": (
        "{} has forward mode only, but reverse mode was asked for, as by jax.grad and jax.jacrev: give adjoint='auto'"
    ),
    "forward over reverse": (
        "{} has second derivatives by forward over reverse mode only, as of jax.hessian, lux.hessian and lux.hvp, but "
        "reverse over reverse mode was asked for: use one of these, or give adjoint='direct'"
    ),
    "real": (
        "{} has derivatives of real states and parameters only, but these are complex: give an explicit solver and "
        "adjoint='auto', any solver and adjoint='gauss', or real and imaginary parts as entries of a real state"
    ),
    "first": (
        "{} has first derivatives only, but second ones were asked for: with adjoint='auto', use lux.hessian, lux.hvp "
        "or `with lux.derivatives.mode(\"both\")`, or give adjoint='direct'"
    ),
}


def only(modes: str, adjoint: str, tree: Any, more: str = "") -> Any:
    """The tree itself, whose derivatives in other modes raise `TypeError` with a sentence about the adjoint and `more`.

    `modes` is `"forward"` or `"reverse"`; for what a backward pass reads `"first"`, and for what it returns `"forward
    over reverse"`; for complex arrays `"real"`. `"first"` and `"real"` refuse all derivatives.
    """
    moving, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(moving)
    sentence = sentence_of(modes, adjoint) + more
    if modes in ("first", "real"):
        leaves = _refused(leaves, sentence)
    else:
        leaves = one_mode("reverse" if modes == "reverse" else "forward", leaves, sentence)
    return eqx.combine(treedef.unflatten(leaves), rest)


def sentence_of(modes: str, adjoint: str) -> str:
    """What is wrong with other modes, for an adjoint of this name."""
    return _SENTENCES[modes].format(adjoint)


def _refused(xs: list[Any], sentence: str) -> list[Any]:
    @jax.custom_jvp
    def identity(xs):
        return xs

    @identity.defjvp
    def _(primals, tangents):
        raise TypeError(sentence)

    return identity(xs)
