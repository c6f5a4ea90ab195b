"""Layers made of layers: Chain, Parallel, SkipConnection."""

from collections.abc import Callable, Mapping
from typing import Any

from ..core import Container, Layer, as_layer
from ..core.container import named_layers


class Chain(Container):
    """Layers one after another; each gets the output of the one before.

    `Chain(a, b)`, `Chain([a, b])` or `Chain(first=a, second=b)`. Functions become `Lambda`s. The children are called
    `layer_0`, `layer_1`, ... or by the given names; `chain[0]` and `chain.layer_0` are layers, `chain[1:]` is a Chain
    of the rest under the same names. `Chain()` is the identity.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Chain(lambda u: u**3, lux.Dense(2, 16, jnp.tanh), lux.Dense(16, 2))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)
    """

    layers: Mapping[str, Layer]

    def __init__(self, *layers: Any, **named: Any):
        self.layers = named_layers(layers, named)

    def forward(self, x, ps, st):
        out = {}
        for name, layer in self.children.items():
            x, out[name] = layer.forward(x, ps[name], st[name])
        return x, out


class Parallel(Container):
    """Layers side by side: `y = connection(layer_0(x_0), layer_1(x_1), ...)`.

    An array goes to every layer; of a tuple, each layer gets one item. `connection` is a function of as many arguments
    as there are layers (`jnp.add`, say), or a layer, which gets the tuple and is then the child `connection`. With
    `connection=None` the output is the tuple. Raises `ValueError` for a tuple of another length.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Parallel(jnp.add, lux.Dense(2, 3), lux.Dense(4, 3))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model((jnp.ones((8, 2)), jnp.ones((8, 4))), ps, st)[0].shape
    (8, 3)
    """

    connection: Callable | None
    layers: Mapping[str, Layer]

    def __init__(self, connection: Callable | None, *layers: Any, **named: Any):
        self.connection = connection
        self.layers = named_layers(layers, named)

    def forward(self, x, ps, st):
        xs = x if isinstance(x, tuple) else (x,) * len(self.layers)
        if len(xs) != len(self.layers):
            raise ValueError(f"Parallel has {len(self.layers)} layers, got a tuple of {len(xs)} inputs")
        ys, st = self.run(ps, st, **dict(zip(self.layers, xs, strict=True)))
        return _connect(self, ys, ps, st)


class SkipConnection(Container):
    """A layer and a way around it: `y = connection(layer(x), x)`.

    `connection` is a function of two arguments, `jnp.add` for a residual block, or a layer, which gets the tuple
    `(layer(x), x)` and is then the child `connection`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.SkipConnection(lux.Dense(2, 2), jnp.add)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)
    """

    layer: Layer
    connection: Callable

    def __init__(self, layer: Any, connection: Callable):
        self.layer = as_layer(layer)
        self.connection = connection

    def forward(self, x, ps, st):
        (y,), st = self.run(ps, st, layer=x)
        return _connect(self, (y, x), ps, st)


def _connect(container: Any, ys: tuple[Any, ...], ps: Any, st: Any) -> tuple[Any, Any]:
    """Join several outputs by the container's connection: a layer gets the tuple, a function gets the arguments."""
    if isinstance(container.connection, Layer):
        (y,), st = container.run(ps, st, connection=ys)
        return y, st
    return (ys if container.connection is None else container.connection(*ys)), st
