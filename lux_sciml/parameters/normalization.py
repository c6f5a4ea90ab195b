"""Normalized weights: by length and direction, and by their largest singular value."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import Layer, Mode, Wrapper
from .paths import as_tuple, at_paths

_TINY = 1e-24  # keeps the length or norm of zero weights differentiable


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

    def to_child(self, ps, st):
        return at_paths(ps, as_tuple(self.parameters), _joined), st

    def from_child(self, ps, st, whole):
        return at_paths(ps, as_tuple(self.parameters), _split), st

    def forward(self, x, ps, st):
        return self.layer.forward(x, *self.to_child(ps, st))


def _split(path: str, weight: Any) -> dict[str, Any]:
    if isinstance(weight, dict) or weight.ndim == 0:
        what = "a dict" if isinstance(weight, dict) else "a single number"
        raise ValueError(f"WeightNorm normalizes arrays with an axis of output features; {path!r} is {what}")
    return {"g": _length(weight), "v": weight}


def _joined(path: str, weight: dict[str, Any]) -> Any:
    return weight["g"] * (weight["v"] / _length(weight["v"]))


def _length(v: Any) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(v), tuple(range(v.ndim - 1))) + _TINY)


class SpectralNorm(Wrapper):
    r"""A layer whose chosen parameters are divided by their largest singular value: :math:`w / \sigma_{\max}(w)`.

    `parameters` is a path in the parameters of the layer, such as `"layer_0.weight"` in a Chain, or several. An
    array counts as a matrix: its last axis, the output features, against all others. The singular value is estimated
    from below by power iteration, :math:`\sigma = \|W u\|` with a unit vector u in the state. In training each call
    takes `iterations` steps :math:`u \leftarrow W^T W u / \|W^T W u\|`, and the gradient treats u as a constant; in
    test mode u stays. The estimate gets better with the calls: just after `setup`, it is the length of a random
    combination of the weight's columns.

    Parameters: the layer's own. State: `layer`, the layer's own; `u`, one vector for each path; `mode`.

    Miyato et al., "Spectral normalization for generative adversarial networks", ICLR 2018. Raises `ValueError` for a
    path that does not exist, and for one that is no array.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.SpectralNorm(lux.Dense(3, 3, use_bias=False), iterations=100)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> jacobian, st = layer(jnp.eye(3), ps, st)
    >>> bool(jnp.isclose(jnp.linalg.norm(jacobian, 2), 1.0))
    True
    """

    layer: Layer
    parameters: str | Sequence[str] = "weight"
    iterations: int = 1

    def init_state(self, key):
        u = {}

        def start(path, weight):
            if isinstance(weight, dict) or weight.ndim == 0:
                what = "a dict" if isinstance(weight, dict) else "a single number"
                raise ValueError(f"SpectralNorm normalizes arrays with an axis of output features; {path!r} is {what}")
            vector = jax.random.normal(jax.random.fold_in(key, len(u) + 1), weight.shape[-1:])
            u[path] = vector / _norm(vector)

        at_paths(jax.eval_shape(self.layer.init_params, key), as_tuple(self.parameters), start)
        return {"layer": self.layer.init_state(jax.random.fold_in(key, 0)), "u": u, "mode": Mode.TRAIN}

    def to_child(self, ps, st):
        return ps, st["layer"]

    def from_child(self, ps, st, whole):
        return ps, {**whole, "layer": st}

    def forward(self, x, ps, st):
        u = dict(st["u"])

        def normalized(path, weight):
            matrix = weight.reshape(-1, weight.shape[-1])
            if st["mode"] is Mode.TRAIN:
                u[path] = _iterated(lax.stop_gradient(matrix), u[path], self.iterations)
            return weight / _norm(matrix @ u[path])

        y, inner = self.layer.forward(x, at_paths(ps, as_tuple(self.parameters), normalized), st["layer"])
        return y, {**st, "layer": inner, "u": u}


def _iterated(matrix: Any, u: Any, steps: int) -> Any:
    def step(_, u):
        new = (matrix @ u) @ matrix
        size = _norm(new)
        return jnp.where(size > 1e3 * _TINY**0.5, new / size, u)  # zero weights leave the vector as it is

    return lax.fori_loop(0, steps, step, u)


def _norm(x: Any) -> Any:
    return jnp.sqrt(jnp.sum(jnp.square(x)) + _TINY)
