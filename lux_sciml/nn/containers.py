"""Layers made of layers: one after another, side by side, around, or the largest of several."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._tree import describe, is_inexact
from ..components import ComponentVector
from ..core import Container, Layer, Wrapper, as_layer, field
from ..core.container import call_child, named_layers
from ..core.converters import checks_itself, dict_of, optional, short


@checks_itself
def function_or_layer(value: Callable[..., Any]) -> Callable[..., Any]:
    """The converter of what joins outputs: a function of several arguments, or a layer, which gets the tuple."""
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"expected a function such as jnp.add, or a layer, got {short(value)}")
    return value


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

    layers: Mapping[str, Layer] = field(converter=dict_of(as_layer))

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

    connection: Callable[..., Any] | None = field(converter=optional(function_or_layer))
    layers: Mapping[str, Layer] = field(converter=dict_of(as_layer))

    def __init__(self, connection: Any, *layers: Any, **named: Any):
        self.connection = connection
        self.layers = named_layers(layers, named)

    def forward(self, x, ps, st):
        xs = x if isinstance(x, tuple) else (x,) * len(self.layers)
        if len(xs) != len(self.layers):
            raise ValueError(f"Parallel has {len(self.layers)} layers, got a tuple of {len(xs)} inputs")
        ys, st = self.run(ps, st, **dict(zip(self.layers, xs, strict=True)))
        return _connect(self, ys, ps, st)


class SkipConnection(Container):
    """A layer with a skip connection: `y = connection(layer(x), x)`.

    `connection` is a function of two arguments, `jnp.add` for a residual block, or a layer, which gets the tuple
    `(layer(x), x)` and is then the child `connection`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.SkipConnection(lux.Dense(2, 2), jnp.add)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)
    """

    layer: Layer = field(converter=as_layer)
    connection: Callable[..., Any] = field(converter=function_or_layer)

    def forward(self, x, ps, st):
        (y,), st = self.run(ps, st, layer=x)
        return _connect(self, (y, x), ps, st)


class BranchLayer(Container):
    """One input for several layers: `y = connection(layer_0(x), layer_1(x), ...)`.

    Every layer gets `x` as it is, a tuple too (`Parallel` distributes a tuple). `connection` is a function of as many
    arguments as there are layers, or a layer, which gets the tuple and is then the child `connection`. Without one the
    output is the tuple.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.BranchLayer(mean=lux.Dense(2, 3), deviation=lux.Dense(2, 3, jax.nn.softplus))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> [y.shape for y in model(jnp.ones((8, 2)), ps, st)[0]]
    [(8, 3), (8, 3)]
    """

    layers: Mapping[str, Layer] = field(converter=dict_of(as_layer))
    connection: Callable[..., Any] | None = field(converter=optional(function_or_layer))

    def __init__(self, *layers: Any, connection: Any = None, **named: Any):
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

    connection: Callable[..., Any] = field(converter=function_or_layer)
    layers: Mapping[str, Layer] = field(converter=dict_of(as_layer))

    def __init__(self, connection: Any, *layers: Any, **named: Any):
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
    r"""The largest of several layers' outputs, elementwise: :math:`y = \max_i \mathrm{layer}_i(x)`.

    The outputs are arrays, or trees of arrays, of one structure and shape. Layers equal to each other start from
    different parameters: `Maxout([lux.Dense(2, 3)] * 4)`. Raises `ValueError` without layers, and for outputs of
    several shapes.

    Goodfellow et al., "Maxout networks", ICML 2013.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Maxout([lux.Dense(2, 3)] * 4)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 3)
    """

    layers: Mapping[str, Layer] = field(converter=dict_of(as_layer))

    def __init__(self, *layers: Any, **named: Any):
        self.layers = named_layers(layers, named)

    def __check_init__(self) -> None:
        if not self.layers:
            raise ValueError("Maxout needs at least one layer")

    def forward(self, x, ps, st):
        ys, st = self.run(ps, st, **dict.fromkeys(self.layers, x))
        kinds = {(jax.tree.structure(y), *map(jnp.shape, jax.tree.leaves(y))) for y in ys}
        if len(kinds) > 1:
            raise ValueError(f"Maxout compares outputs of one shape, got {', '.join(map(describe, ys))}")
        return jax.tree.map(lambda *leaves: functools.reduce(jnp.maximum, leaves), *ys), st


@checks_itself
def float_type(value: Any) -> str:
    """The converter of a real floating-point type, to its name."""
    name = jnp.dtype(value).name
    if not jnp.issubdtype(name, jnp.floating):
        raise TypeError(f"AlternatePrecision needs a floating-point type, got {name}")
    return name


class AlternatePrecision(Wrapper):
    """A layer computed in another precision: inputs and parameters are cast to `dtype`, outputs cast back.

    `dtype` is a real floating-point type, `"bfloat16"` or `jnp.bfloat16`. Inputs and outputs are arrays,
    ComponentVectors or trees of them; integers stay what they are. Outputs have the floating-point type of the input
    (of the parameters, where the input holds none; the default one, where there are none either). Parameters, their
    gradients and the state keep their own type: running statistics would lose small updates in half precision.

    Raises `TypeError` for types that are not floating-point.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.AlternatePrecision(lux.Dense(2, 3), "bfloat16")
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].dtype, ps.dtype
    (dtype('float32'), dtype('float32'))
    """

    layer: Layer = field(converter=as_layer)
    dtype: str = field(converter=float_type)

    def forward(self, x, ps, st):
        given = [leaf.dtype for tree in (x, ps) for leaf in jax.tree.leaves(tree) if _is_real_float(leaf)]
        y, st = self.layer.forward(_cast(x, self.dtype), _cast(ps, self.dtype), st)
        return _cast(y, given[0] if given else float), st


def _is_real_float(x: Any) -> bool:
    return is_inexact(x) and jnp.issubdtype(x.dtype, jnp.floating)


def _cast(tree: Any, dtype: Any) -> Any:
    """The real floating-point arrays in another type; of a ComponentVector its record of it too."""

    def is_vector(node: Any) -> bool:
        return isinstance(node, ComponentVector)

    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_real_float(leaf) else leaf, tree, is_leaf=is_vector)


def _connect(container: Any, ys: tuple[Any, ...], ps: Any, st: Any) -> tuple[Any, Any]:
    """Join several outputs by the container's connection: a layer gets the tuple, a function gets the arguments."""
    if isinstance(container.connection, Layer):
        (y,), st = container.run(ps, st, connection=ys)
        return y, st
    return (ys if container.connection is None else container.connection(*ys)), st
