"""SparseTerms: a layer that is a sum of named terms with trained coefficients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from .._tree import floating
from ..core import Layer, field
from ..core.converters import checks_itself, dict_of, function, short


@checks_itself
def _chosen(value: Mapping[str, Sequence[str]]) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, Mapping) or not all(isinstance(names, list | tuple) for names in value.values()):
        raise TypeError(f"expected the names of the terms of each output, {{'dx': ('x y',)}}, got {short(value)}")
    return dict_of(tuple)(value)


class SparseTerms(Layer):
    r"""A sum of named terms for each output: :math:`y_j = \sum_k c_{jk} f_k(x_1, ..., x_n)`.

    Input `(..., n)`, output `(..., outputs)`. Options:

    * `terms`: functions of the n variables by name, of JAX and elementwise;
    * `outputs`: for each output by name the names of its terms.

    Parameters: a coefficient for each term of each output, by name, ones at first: `ps["dx"]["x y"]`. It is what
    `sparse_regression` returns, and stands wherever a net does. Raises `ValueError` for a term that there is not.

    >>> import jax, lux_sciml as lux
    >>> layer = SparseTerms({"x y": lambda x, y: x * y, "x": lambda x, y: x}, {"dx": ["x", "x y"], "dy": ["x y"]})
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> ps = ps.replace(dx={"x y": -2.0})
    >>> layer(jnp.array([3.0, 4.0]), ps, st)[0].tolist()
    [-21.0, 12.0]
    """

    terms: Mapping[str, Callable[..., Any]] = field(converter=dict_of(function))
    outputs: Mapping[str, tuple[str, ...]] = field(converter=_chosen)

    def __check_init__(self):
        for output, names in self.outputs.items():
            for name in names:
                if name not in self.terms:
                    raise ValueError(f"{output!r} has a term {name!r}, and there is {', '.join(map(repr, self.terms))}")

    def init_params(self, key):
        return {output: {name: jnp.ones(()) for name in names} for output, names in self.outputs.items()}

    def forward(self, x, ps, st):
        x = floating(jnp.asarray(x))
        columns = [x[..., i] for i in range(x.shape[-1])]
        sums = []
        for output, names in self.outputs.items():
            zero = jnp.zeros(x.shape[:-1], x.dtype)
            sums.append(sum((ps[output][name] * self.terms[name](*columns) for name in names), start=zero))
        return jnp.stack(sums, axis=-1), st
