"""Weight normalization: length and direction of weights as separate parameters."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ..core import Layer, Wrapper
from .paths import as_tuple, at_paths

_TINY = 1e-24  # keeps the length of zero weights differentiable


class WeightNorm(Wrapper):
    r"""A layer whose chosen parameters are given by length and direction: :math:`w = g \, v / \|v\|`.

    `parameters` is a path in the parameters of the layer, such as `"layer_0.weight"` in a Chain, or several. Each
    of these arrays becomes two: `g`, one length for each output feature (the last axis), and `v`, of the array's shape;
    the norm is taken over all other axes. At first `v` is the weight that the layer starts with and `g` its length, so
    that the layer starts as without the wrapper. The state is the layer's own.

    Salimans and Kingma, "Weight normalization", NeurIPS 2016. Raises `ValueError` for a path that does not
    exist, and for one that is no array.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.WeightNorm(lux.Dense(2, 3))
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> ps.weight.g.shape, ps.weight.v.shape, layer(jnp.ones((8, 2)), ps, st)[0].shape
    ((3,), (2, 3), (8, 3))
    """

    layer: Layer
    parameters: str | Sequence[str] = "weight"

    def init_params(self, key):
        return at_paths(self.layer.init_params(key), as_tuple(self.parameters), _split)

    def open(self, ps, st):
        return at_paths(ps, as_tuple(self.parameters), _joined), st

    def close(self, ps, st, whole):
        return at_paths(ps, as_tuple(self.parameters), _split), st

    def forward(self, x, ps, st):
        return self.layer.forward(x, *self.open(ps, st))


def _split(path: str, weight: Any) -> dict[str, Any]:
    if isinstance(weight, dict) or weight.ndim == 0:
        what = "a dict" if isinstance(weight, dict) else "a single number"
        raise ValueError(f"WeightNorm normalizes arrays with an axis of output features; {path!r} is {what}")
    return {"g": _length(weight), "v": weight}


def _joined(path: str, weight: dict[str, Any]) -> Any:
    return weight["g"] * (weight["v"] / _length(weight["v"]))


def _length(v: Any) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(v), tuple(range(v.ndim - 1))) + _TINY)
