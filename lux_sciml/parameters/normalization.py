"""Normalized weights: by length and direction, and by their largest singular value."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from .._tree import squared, widened
from ..components.nodes import Path, path_string
from ..core import Layer, Mode, StatefulWrapper, Wrapper, as_layer, field
from ..core.converters import count
from ..core.parameters import parameter_layout
from .paths import at_paths, find_paths, path_or_paths, value_at, with_value


class WeightNorm(Wrapper):
    r"""A layer whose chosen parameters are given by length and direction: :math:`w = g \, v / \|v\|`.

    `parameters` is a path in the parameters of the layer, such as `"layer_0.weight"` in a Chain, or several. Each
    of these arrays becomes two: `g`, one length for each output feature (the last axis), and `v`, of the array's shape;
    the norm is taken over all other axes, in float32 at least. At first `v` is the weight that the layer starts with
    and `g` its length, so that the layer starts as without the wrapper. Where `v` is zero the weight is `v`, so that
    zero weights can be trained. The state is the layer's own.

    Salimans and Kingma, "Weight normalization", NeurIPS 2016. Raises `ValueError` for a path that does not
    exist, and for one that is no array.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.WeightNorm(lux.Dense(2, 3))
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> ps.weight.g.shape, ps.weight.v.shape, layer(jnp.ones((8, 2)), ps, st)[0].shape
    ((3,), (2, 3), (8, 3))
    """

    layer: Layer = field(converter=as_layer)
    parameters: tuple[str | Path, ...] = field(default=("weight",), converter=path_or_paths)

    def __check_init__(self) -> None:
        _require_arrays(self)

    def init_params(self, key):
        return self._apart(self.layer.init_params(key))

    def to_child(self, ps, st):
        return at_paths(ps, find_paths(self.layer, self.parameters), _joined), st

    def from_child(self, ps, st, whole):
        return self._apart(ps), st

    def forward(self, x, ps, st):
        return self.layer.forward(x, *self.to_child(ps, st))

    def _apart(self, ps: dict[str, Any]) -> dict[str, Any]:
        return at_paths(ps, find_paths(self.layer, self.parameters), _split)


def _split(path: Path, weight: jax.Array) -> dict[str, jax.Array]:
    axes = tuple(range(weight.ndim - 1))
    return {"g": _norm(widened(weight), axes).astype(weight.dtype), "v": weight}


def _joined(path: Path, parts: dict[str, jax.Array]) -> jax.Array:
    g, v = widened((parts["g"], parts["v"]))
    length = _norm(v, tuple(range(v.ndim - 1)))
    return jnp.where(length > 0, g * (v / _or_one(length)), v).astype(parts["v"].dtype)


class SpectralNorm(StatefulWrapper):
    r"""A layer whose chosen parameters are divided by their largest singular value: :math:`w / \sigma_{\max}(w)`.

    `parameters` is a path in the parameters of the layer, such as `"layer_0.weight"` in a Chain, or several. An
    array counts as a matrix: its last axis, the output features, against all others. The singular value is estimated
    from below by power iteration, :math:`\sigma = \|W u\|` with a unit vector u in the state, in float32 at least. In
    training each call takes `iterations` steps :math:`u \leftarrow W^T W u / \|W^T W u\|`, and the gradient treats u as
    a constant; in test mode u stays. The estimate gets better with the calls: just after `setup`, it is the length of a
    random combination of the weight's columns. Weights of zero stay as they are.

    Parameters: the layer's own. State: `layer`, the layer's own; `u`, a vector for each path, nested like the
    parameters; `mode`.

    Miyato et al., "Spectral normalization for generative adversarial networks", ICLR 2018. Raises `ValueError` for a
    path that does not exist, and for one that is no array.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.SpectralNorm(lux.Dense(3, 3, use_bias=False), iterations=100)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> jacobian, st = layer(jnp.eye(3), ps, st)
    >>> bool(jnp.isclose(jnp.linalg.norm(jacobian, 2), 1.0))
    True
    """

    layer: Layer = field(converter=as_layer)
    parameters: tuple[str | Path, ...] = field(default=("weight",), converter=path_or_paths)
    iterations: int = field(default=1, converter=count)

    def __check_init__(self) -> None:
        _require_arrays(self)

    def init_state(self, key):
        u, shapes = {}, jax.eval_shape(self.layer.init_params, key)
        for i, path in enumerate(find_paths(self.layer, self.parameters)):
            weight = value_at(shapes, path)
            dtype = weight.dtype if jnp.issubdtype(weight.dtype, jnp.complexfloating) else float
            vector = jax.random.normal(jax.random.fold_in(key, i + 1), weight.shape[-1:], dtype)
            u = with_value(u, path, vector / _or_one(_norm(vector)))
        return {"layer": self.layer.init_state(jax.random.fold_in(key, 0)), "u": u, "mode": Mode.TRAIN}

    def forward(self, x, ps, st):
        us = st["u"]

        def normalized(path: Path, weight: jax.Array) -> jax.Array:
            nonlocal us
            matrix = widened(weight).reshape(math.prod(weight.shape[:-1]), weight.shape[-1])
            u = widened(value_at(us, path))
            if st["mode"] is Mode.TRAIN:
                u = power_iteration(lax.stop_gradient(matrix), u, self.iterations)
                us = with_value(us, path, u.astype(value_at(us, path).dtype))
            largest = _norm(matrix @ u) / _or_one(_norm(u))  # a vector kept in half precision has no exact length
            return (widened(weight) / _or_one(largest)).astype(weight.dtype)

        ps = at_paths(ps, find_paths(self.layer, self.parameters), normalized)
        y, inner = self.layer.forward(x, ps, st["layer"])
        return y, {**st, "layer": inner, "u": us}


def power_iteration(matrix: Inexact[Array, "m n"], u: Inexact[Array, " n"], steps: int) -> Inexact[Array, " n"]:
    r"""The vector :math:`u \leftarrow W^* W u / \|W^* W u\|`, after some steps: the right singular vector, in the end.

    It has unit length; a zero matrix leaves it as it is.

    >>> power_iteration(jnp.diag(jnp.array([3.0, 1.0])), jnp.array([0.6, 0.8]), 20).round(6)
    Array([1., 0.], dtype=float32)
    """

    def unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = _norm(x)
        return x / _or_one(size), size

    def step(_: Any, u: jax.Array) -> jax.Array:
        new, size = unit(unit(matrix @ u)[0] @ matrix.conj())  # of unit length between, lest squares over- or underflow
        return jnp.where(size > 0, new, u)

    return lax.fori_loop(0, steps, step, u)


def _norm(x: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """The square root of the sum of squares, with derivative zero where that is zero."""
    squares = jnp.sum(squared(x), axes)
    return jnp.where(squares > 0, jnp.sqrt(_or_one(squares)), 0)


def _or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1)


def _require_arrays(wrapper: WeightNorm | SpectralNorm) -> None:
    """Raise `ValueError` for paths that do not exist or are no arrays with an axis of output features."""
    layout = parameter_layout(wrapper.layer)
    for path in find_paths(wrapper.layer, wrapper.parameters):
        node = layout.find(path)[1]
        if not node.is_array or node.shape == ():
            what = "a scalar" if node.is_array else "a dict"
            name = type(wrapper).__name__
            raise ValueError(
                f"{name} normalizes arrays with an axis of output features; {path_string(path)!r} is {what}"
            )
