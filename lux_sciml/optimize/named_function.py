"""NamedFunction: a function of the named parameters, as one of flat vectors with its derivatives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..components import Layout
from .problem import Inputs, Problem, called


@dataclasses.dataclass(frozen=True, eq=False)
class NamedFunction:
    """A function called as the loss of a problem, `f(ps)` or `f(ps, args)`, whose value has names too, or is an array.

    `noun` is what messages call it.
    """

    function: Callable
    loss: Problem
    noun: str
    trace: Callable | None = None

    def facts(self) -> tuple[Any, ...]:
        return self.noun, *self.loss.facts()

    def traced(self, trace: Callable, params: Any, inputs: Inputs) -> Callable:
        return trace(self, params, inputs)[0]

    def returned(self, params: Any, inputs: Inputs) -> Any:
        """In the form that the function returns."""
        given = [self.loss.join(params, inputs)]
        given += [eqx.combine(inputs.args, self.loss.other_args)] if self.loss.has_args else []
        return called(self.noun, self.function, ["ps", "args"][: len(given)], *given)

    def layout(self, params: Any, inputs: Inputs) -> Layout:
        """Of the value. Raises `TypeError` where it holds no floating-point numbers."""
        out = jax.eval_shape(lambda params: self.returned(params, inputs), params)
        try:
            layout = Layout.of(out)
        except TypeError as error:
            raise TypeError(f"a {self.noun} has values that are floating-point numbers: {error}") from None
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in layout.leaves):
            raise TypeError(f"a {self.noun} has real values: of complex ones, return the real and the imaginary parts")
        return layout

    def __call__(self, params: Any, inputs: Inputs) -> jax.Array:
        """The value, `(m,)`."""
        if self.trace is not None:
            return self.trace(params, inputs)
        out = self.returned(params, inputs)
        return Layout.of(out).ravel(out, self.loss.dtype)


def values(function: NamedFunction, *arguments: Any) -> jax.Array:
    """At the flat vector and the inputs that are the last of the arguments."""
    flat, inputs = arguments[-2:]
    return function(function.loss.unravel(flat), inputs)


def jacobian(function: NamedFunction, forward: bool, flat: jax.Array, inputs: Inputs) -> jax.Array:
    return (jax.jacfwd if forward else jax.jacrev)(lambda flat: values(function, flat, inputs))(flat)


def product(function: NamedFunction, flat: jax.Array, u: jax.Array, v: jax.Array, inputs: Inputs) -> jax.Array:
    """The sum of v_i times the Hessian of value i, times u; forward over reverse mode."""
    gradient = jax.grad(lambda flat: jnp.vdot(v, values(function, flat, inputs)))
    return jax.jvp(gradient, (flat,), (u,))[1]
