"""What the tests of runs share: a few samples, and the bits of a tree."""

import jax
import numpy as np

X = np.random.default_rng(0).normal(size=(22, 2)).astype(np.float32)
Y = X.sum(1, keepdims=True)


def numbers(tree):
    """The arrays of a tree, keys as what is behind them."""
    return [np.asarray(jax.random.key_data(x) if "key" in str(x.dtype) else x) for x in jax.tree.leaves(tree)]


def bits(tree):
    return [x.tobytes() for x in numbers(tree)]
