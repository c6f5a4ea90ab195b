"""Second derivatives carried forward through a program, summed over the directions as early as can be."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._compat import inner_program, run_equation, runs_equations

# Primitives whose second derivative is zero; that of a product is, where one factor alone varies.
LINEAR = {
    *("add", "add_any", "sub", "neg", "reduce_sum", "cumsum", "real", "imag", "conj", "convert_element_type", "copy"),
    *("reshape", "broadcast_in_dim", "transpose", "squeeze", "concatenate", "stack", "unstack", "split", "slice"),
    *("dynamic_slice", "gather", "pad", "rev", "select_n", "reduce_window_sum", "max", "min", "abs", "reduce_max"),
    *("reduce_min", "clamp", "stop_gradient"),
}
PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}


class _Varying(NamedTuple):
    """A value that varies along k directions; `second` is the sum of its second derivatives, `None` for zero."""

    value: Any
    first: Any  # (k, *shape)
    second: Any


def second_order(f: Callable[[Any], Any], x: Any, directions: Any) -> tuple[Any, Any, Any]:
    """`f(x)`, its derivatives `(k, ...)` along k directions `(k, *x.shape)`, and the sum of its second derivatives.

    One pass with 1 + k + 1 values for each one of the function, where k second derivatives one by one take 1 + 2 k:
    what is linear in the program, which is most of it, takes their sum.

    Li et al., "A computational framework for neural network-based variational Monte Carlo with Forward Laplacian",
    Nature Machine Intelligence 6, 2024; Dangel et al., "Collapsing Taylor Mode Automatic Differentiation",
    arXiv:2505.13644.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(x)
    if not runs_equations():
        return _one_by_one(f, x, directions)
    outputs = [_filled(out, len(directions)) for out in _run(closed, [_Varying(x, directions, None)])]
    treedef = jax.tree.structure(shape)
    value, first, second = [jax.tree.unflatten(treedef, part) for part in zip(*outputs, strict=True)]
    return value, first, second


def _one_by_one(f: Callable[[Any], Any], x: Any, directions: Any) -> tuple[Any, Any, Any]:
    def along(v):
        return jax.jvp(lambda x: jax.jvp(f, (x,), (v,))[1], (x,), (v,))

    first, second = jax.vmap(along)(directions)
    return f(x), first, jax.tree.map(lambda s: jnp.sum(s, 0), second)


def _filled(x: Any, k: int) -> tuple[Any, Any, Any]:
    if not isinstance(x, _Varying):  # a constant
        return x, jnp.zeros((k, *jnp.shape(x)), jnp.result_type(x)), jnp.zeros_like(x)
    return x.value, x.first, jnp.zeros_like(x.value) if x.second is None else x.second


def _run(closed: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of a program of inputs of which some vary."""
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(closed.jaxpr.invars, inputs, strict=True))

    def read(atom):
        return atom.val if hasattr(atom, "val") else known[atom]

    for eqn in closed.jaxpr.eqns:
        known |= zip(eqn.outvars, _outputs(eqn, [read(atom) for atom in eqn.invars]), strict=True)
    return [read(atom) for atom in closed.jaxpr.outvars]


def _outputs(eqn: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of one equation."""
    varying = [i for i, x in enumerate(inputs) if isinstance(x, _Varying)]
    inner = inner_program(eqn)
    if varying and inner is not None:
        return _run(inner, inputs)
    moving = [i for i in varying if jnp.issubdtype(jnp.result_type(inputs[i].value), jnp.inexact)]
    constant = [x.value if isinstance(x, _Varying) else x for x in inputs]
    if not moving or not any(jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.outvars):
        return run_equation(eqn, constant)

    def f(*moved):
        given = list(constant)
        for i, x in zip(moving, moved, strict=True):
            given[i] = x
        out = run_equation(eqn, given)
        inexact = [jnp.issubdtype(jnp.result_type(y), jnp.inexact) for y in out]
        return [y for y, yes in zip(out, inexact, strict=True) if yes], out

    values = tuple(inputs[i].value for i in moving)
    name = eqn.primitive.name
    flat = name in LINEAR or (len(moving) == 1 and name in PRODUCTS)
    if name == "abs" and jnp.iscomplexobj(values[0]):  # the length of a vector in the plane: curved
        flat = False

    def along(tangents):
        first = lambda *x: jax.jvp(f, x, tangents, has_aux=True)[1]  # noqa: E731
        return (first(*values), None) if flat else jax.jvp(first, values, tangents)

    first, seconds = jax.vmap(along)(tuple(inputs[i].first for i in moving))
    second = None if seconds is None else [_sum(x) for x in seconds]
    if any(inputs[i].second is not None for i in moving):
        tangents = tuple(_filled(inputs[i], 0)[2] for i in moving)
        pushed = jax.jvp(f, values, tangents, has_aux=True)[1]
        second = pushed if second is None else [a + b for a, b in zip(second, pushed, strict=True)]
    y = iter(zip(first, second or [None] * len(first), strict=True))
    out = run_equation(eqn, constant)
    return [_Varying(x, *next(y)) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x for x in out]


def _sum(x: jax.Array) -> jax.Array:
    """Over the first axis, one by one where it is short: XLA's fused reductions on CPU are ten times slower."""
    return functools.reduce(jnp.add, list(x)) if 0 < len(x) <= 16 else jnp.sum(x, 0)
