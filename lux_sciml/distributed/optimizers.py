"""Whether an optimizer does the same to a vector in parts as to a whole one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._tree import is_random_key
from ..components import ComponentVector
from .form import Form

SCALES = (1e3, 1.0, 1e-3)  # of gradients, one a step: some are clipped


def require_same_updates(optimizer: optax.GradientTransformationExtraArgs, rows: bool) -> bool:
    """Raise `ValueError` where an optimizer's steps depend on the form, tried with a few numbers; whether it was tried.

    Means over arrays count the zeros that fill a vector up, norms of single arrays are others where rows of stacks are
    arrays of their own, and some keep memory of other shapes than the parameters'.
    """
    vector = ComponentVector(a=jnp.arange(1.0, 4.0), b=jnp.arange(4.0, 8.0).reshape(2, 2))
    path = vector.layout.leaves[1].path
    form = Form.of(vector.layout, (path,) if rows else (), 1)

    def steps(stored: bool, first: Any) -> jax.Array:
        """The vector after some steps, from the optimizer's memory of a whole one."""

        def placed(x: Any) -> Any:
            return form.stored(x) if stored and form.is_whole(x) else x

        def value(ps: Any) -> jax.Array:
            return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(ps)), jnp.zeros(()))

        ps = placed(vector)
        memory = jax.tree.map(placed, first, is_leaf=lambda x: isinstance(x, ComponentVector))
        for scale in SCALES:
            gradients = placed(ComponentVector(scale * (vector.data - 2.5), vector.layout))
            extra = {"value": value(ps), "grad": gradients, "value_fn": value}
            updates, memory = optimizer.update(gradients, memory, ps, **extra)
            ps = jax.tree.map(jnp.add, ps, updates)
        return form.whole(ps, named=True).data if stored else ps.data

    with jax.numpy_dtype_promotion("standard"):
        try:
            first = optimizer.init(vector)
            whole = jax.jit(lambda: steps(False, first))()
        except Exception:  # made for one vector alone, as by a mask of its length
            return False
        if rows and any(map(is_random_key, jax.tree.leaves(first))):  # other random numbers
            return True
        try:
            same = np.allclose(whole, jax.jit(lambda: steps(True, first))(), rtol=1e-3, atol=1e-6, equal_nan=True)
        except (TypeError, ValueError):
            same = False
    if not same:
        why = "rows of stacks as arrays of their own" if rows else "filled up with zeros"
        raise ValueError(
            f'how="full" stores parameters in parts, {why}, and this '
            "optimizer's steps depend on that: take one that goes element by element, or by norms of all parameters, "
            'such as optax.adamw, or how="replicated"'
        )
    return True


def require_a_step(optimizer: optax.GradientTransformationExtraArgs, memory: Any, form: Form) -> None:
    """Raise `ValueError` where an optimizer that was made for whole vectors alone does not take one in parts."""
    ps = form.stored(ComponentVector(jnp.zeros(form.layout.size, form.layout.leaves[0].dtype), form.layout))
    extra = {"value": jnp.zeros(()), "grad": ps, "value_fn": lambda ps: jnp.zeros(())}
    with jax.numpy_dtype_promotion("standard"):
        try:
            jax.eval_shape(lambda memory: optimizer.update(ps, memory, ps, **extra), memory)
        except (TypeError, ValueError) as error:
            raise ValueError(
                'how="full" stores parameters in parts, which this optimizer does not take: give masks and labels as '
                'functions of the parameters, `mask=lambda ps: jax.tree.map(...)`, or take how="replicated"'
            ) from error
