"""What tests of other libraries' modules compare: outputs in training, with a gradient."""

import jax
import jax.numpy as jnp


def with_gradient(f, ps):
    """The pair `(y, state)` that `f(ps)` returns, and the gradient of the sum of squares of `y`."""

    def loss(ps):
        y, after = f(ps)
        return jnp.sum(y**2), (y, after)

    (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(ps)
    return out, gradient
