"""Layers made of layers: one after another, side by side, around, or the largest of several."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Container, Layer, Wrapper, as_layer
from ..core.container import call_child, named_layers


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
            x, out[name] = call_child(name, layer, x, ps, st)
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


class BranchLayer(Container):
    """One input for several layers: `y = connection(layer_0(x), layer_1(x), ...)`.

    Every layer gets `x` as it is, a tuple too (`Parallel` shares a tuple out). `connection` is a function of as many
    arguments as there are layers, or a layer, which gets the tuple and is then the child `connection`. Without one the
    output is the tuple.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.BranchLayer(mean=lux.Dense(2, 3), deviation=lux.Dense(2, 3, jax.nn.softplus))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> [y.shape for y in model(jnp.ones((8, 2)), ps, st)[0]]
    [(8, 3), (8, 3)]
    """

    layers: Mapping[str, Layer]
    connection: Callable | None

    def __init__(self, *layers: Any, connection: Callable | None = None, **named: Any):
        self.layers = named_layers(layers, named)
        self.connection = connection

    def forward(self, x, ps, st):
        ys, st = self.run(ps, st, **dict.fromkeys(self.layers, x))
        return _connect(self, ys, ps, st)


class PairwiseFusion(Container):
    """A chain that takes in a new input after each layer: `y = x_0`, then `y = connection(layer_i(y), x_{i+1})`.

    The input is a tuple, one item longer than the list of layers, or an array, which then is every item. `connection`
    is a function of two arguments, or a layer, which gets the pair and is then the child `connection`, the same in
    every step. Raises `ValueError` for a tuple of another length.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.PairwiseFusion(jnp.add, lux.Dense(2, 3), lux.Dense(3, 4))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model((jnp.ones((8, 2)), jnp.ones((8, 3)), jnp.ones((8, 4))), ps, st)[0].shape
    (8, 4)
    """

    connection: Callable
    layers: Mapping[str, Layer]

    def __init__(self, connection: Callable, *layers: Any, **named: Any):
        self.connection = connection
        self.layers = named_layers(layers, named)

    def forward(self, x, ps, st):
        count = len(self.layers)
        y, *others = x if isinstance(x, tuple) else (x,) * (count + 1)
        if len(others) != count:
            raise ValueError(
                f"PairwiseFusion of {count} layers takes {count + 1} inputs, got a tuple of {len(others) + 1}"
            )
        for name, other in zip(self.layers, others, strict=True):
            (y,), st = self.run(ps, st, **{name: y})
            y, st = _connect(self, (y, other), ps, st)
        return y, st


class Maxout(Container):
    r"""The largest of several layers' outputs, number by number: :math:`y = \max_i \mathrm{layer}_i(x)`.

    Layers equal to each other start from different parameters: `Maxout([lux.Dense(2, 3)] * 4)`. Raises `ValueError`
    without layers.

    Goodfellow et al., "Maxout networks", ICML 2013.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Maxout([lux.Dense(2, 3)] * 4)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 3)
    """

    layers: Mapping[str, Layer]

    def __init__(self, *layers: Any, **named: Any):
        self.layers = named_layers(layers, named)
        if not self.layers:
            raise ValueError("Maxout needs at least one layer")

    def forward(self, x, ps, st):
        ys, st = self.run(ps, st, **dict.fromkeys(self.layers, x))
        return functools.reduce(jnp.maximum, ys), st


class AlternatePrecision(Wrapper):
    """A layer computed in another precision: inputs and parameters are cast to `dtype`, outputs cast back.

    `dtype` is a real floating-point type, `"bfloat16"` or `jnp.bfloat16`. Outputs have the floating-point type of the
    input (of the parameters, where the input holds none). Parameters, their gradients and the state keep their own
    type: running statistics would lose small updates in half precision.

    Raises `TypeError` for types that are not floating-point.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.AlternatePrecision(lux.Dense(2, 3), "bfloat16")
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].dtype, ps.dtype
    (dtype('float32'), dtype('float32'))
    """

    layer: Layer
    dtype: str

    def __init__(self, layer: Any, dtype: Any):
        self.layer = as_layer(layer)
        self.dtype = jnp.dtype(dtype).name
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise TypeError(f"AlternatePrecision needs a floating-point type, got {self.dtype}")

    def forward(self, x, ps, st):
        outer = [leaf.dtype for tree in (x, ps) for leaf in jax.tree.leaves(tree) if _is_real_float(leaf)]
        y, st = self.layer.forward(_cast(x, self.dtype), _cast(ps, self.dtype), st)
        return (_cast(y, outer[0]) if outer else y), st


def _is_real_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_real_float(leaf) else leaf, tree)


def _connect(container: Any, ys: tuple[Any, ...], ps: Any, st: Any) -> tuple[Any, Any]:
    """Join several outputs by the container's connection: a layer gets the tuple, a function gets the arguments."""
    if isinstance(container.connection, Layer):
        (y,), st = container.run(ps, st, connection=ys)
        return y, st
    return (ys if container.connection is None else container.connection(*ys)), st
