"""Directional derivatives of a layer, with respect to its input and its parameters."""

from collections.abc import Callable
from typing import Any

import jax

from .layer import Layer


def jacobian_vector_product(layer: Layer, x: Any, ps: Any, st: Any, *, dx: Any = None, dps: Any = None) -> Any:
    """The derivative of a layer's output along `dx`, a direction of its input, and `dps`, one of its parameters.

    Returns `(y, dy, st)`. A direction that is left out is zero. Raises `ValueError` where both are.

    >>> import jax.numpy as jnp
    >>> from lux_sciml import Dense, setup
    >>> ps, st = setup(jax.random.key(0), Dense(2, 3))
    >>> y, dy, st = jacobian_vector_product(Dense(2, 3), jnp.ones(2), ps, st, dps=ps)
    >>> bool(jnp.allclose(y, dy))
    True
    """
    given = [(0, x, dx), (1, ps, dps)]
    wanted = [(place, value, direction) for place, value, direction in given if direction is not None]
    if not wanted:
        raise ValueError("a directional derivative needs a direction: dx=..., dps=..., or both")
    places, values, directions = zip(*wanted, strict=True)

    def f(*values):
        arguments = dict(enumerate((x, ps))) | dict(zip(places, values, strict=True))
        return layer(*arguments.values(), st)

    return jax.jvp(f, values, directions, has_aux=True)


def vector_jacobian_product(layer: Layer, x: Any, ps: Any, st: Any) -> tuple[Any, Callable[[Any], Any], Any]:
    """A layer's output, its pullback and the next state: `y, pullback, st`; then `dx, dps = pullback(dy)`.

    `dy` has the structure of `y`. `dx` and `dps`, a ComponentVector if `ps` is one, are the gradients of
    `sum(y * dy)` by the input and by the parameters.

    >>> import jax.numpy as jnp
    >>> from lux_sciml import Dense, setup
    >>> ps, st = setup(jax.random.key(0), Dense(2, 3))
    >>> y, pullback, st = vector_jacobian_product(Dense(2, 3), jnp.ones(2), ps, st)
    >>> dx, dps = pullback(jnp.ones(3))
    >>> dx.shape, dps.bias
    ((2,), Array([1., 1., 1.], dtype=float32))
    """
    return jax.vjp(lambda x, ps: layer(x, ps, st), x, ps, has_aux=True)
