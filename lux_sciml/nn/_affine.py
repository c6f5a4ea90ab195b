"""The parameters of affine maps."""

from collections.abc import Callable, Sequence

import jax


def weight_and_bias(
    key: jax.Array, shape: Sequence[int], init_weight: Callable, bias_shape: Sequence[int], init_bias: Callable | None
) -> dict[str, jax.Array]:
    """`weight` and `bias`, each drawn from a key of its own; without an initializer of the bias there is none."""
    key_weight, key_bias = jax.random.split(key)
    ps = {"weight": init_weight(key_weight, shape, float)}
    return ps if init_bias is None else ps | {"bias": init_bias(key_bias, bias_shape, float)}
