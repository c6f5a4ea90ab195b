"""Recurrent cells: one step in time. The runners over a sequence are in `recurrence.py`."""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._tree import floating, single
from ..core import Container, Layer, Wrapper, as_layer, field
from ..core.container import call_child, named_layers
from ..core.converters import count, dict_of, flag, function, optional
from ..core.printing import brief
from ..initializers import Uniform, zeros
from ._affine import product, shared
from ._shapes import require_array, require_last


class RecurrentCell(Layer):
    """A step in time: `(y, carry), st = cell((x, carry), ps, st)`; with `x` alone the carry is the initial one.

    A cell of one's own subclasses this, writes the hooks of a `Layer` and `initial_carry`, and then runs in
    `Recurrence`, `BidirectionalRNN`, `StackedCells` and `StatefulRecurrentCell`. The carry is an array, a
    ComponentVector or a tuple of such, and comes out as it goes in.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> class Leaky(lux.RecurrentCell):
    ...     features: int
    ...     def init_params(self, key):
    ...         return {"rate": jnp.full(self.features, 0.5)}
    ...     def initial_carry(self, ps, batch_shape, dtype):
    ...         return jnp.zeros((*batch_shape, self.features), dtype)
    ...     def forward(self, x, ps, st):
    ...         x, carry = x
    ...         carry = ps["rate"] * carry + x
    ...         return (carry, carry), st
    >>> rnn = lux.Recurrence(Leaky(1), return_sequence=True)
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> rnn(jnp.ones((3, 1)), ps, st)[0][:, 0].tolist()
    [1.0, 1.5, 1.75]
    """

    @abc.abstractmethod
    def initial_carry(self, ps: dict[str, Any], batch_shape: tuple[Any, ...], dtype: Any) -> Any:
        """The carry before the first step, for inputs of shape `(*batch_shape, features)`."""


def cell_of(layer: Any) -> RecurrentCell | None:
    """The cell in a layer: the layer itself, or what it wraps; `None` where there is none."""
    while isinstance(layer, Wrapper) and not isinstance(layer, RecurrentCell):
        layer = layer.child
    return layer if isinstance(layer, RecurrentCell) else None


def initial_carry(layer: Layer, ps: dict[str, Any], st: Any, batch_shape: tuple[Any, ...], dtype: Any) -> Any:
    """The carry before the first step of a cell, or of a layer around one that keeps parameters in another form."""
    while isinstance(layer, Wrapper) and not isinstance(layer, RecurrentCell):
        ps, st = layer.to_child(ps, st)
        layer = layer.child
    if isinstance(layer, StackedCells):
        cells = layer.cells().items()
        return tuple(initial_carry(cell, ps[name], st[name], batch_shape, dtype) for name, cell in cells)
    if not isinstance(layer, RecurrentCell):
        raise TypeError(f"expected a recurrent cell, got {brief(layer)}")
    return layer.initial_carry(ps, batch_shape, dtype)


def as_carry(carry: Any) -> Any:
    """A carry with tuples for lists."""
    return tuple(map(as_carry, carry)) if isinstance(carry, list | tuple) else carry


class _GatedCell(RecurrentCell):
    """What the cells of torch share: two affine maps into all gates, one of the input, one of the hidden state."""

    gates: ClassVar[int]
    carry_names: ClassVar[tuple[str, ...]] = ("hidden",)

    in_features: int = field(converter=count)
    out_features: int = field(converter=count)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)
    train_carry: bool = field(default=False, converter=flag, kw_only=True)
    init_weight: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    init_recurrent: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    init_bias: Callable[..., Any] | None = field(default=None, converter=optional(function), kw_only=True)
    init_carry: Callable[..., Any] = field(default=zeros, converter=function, kw_only=True)

    def init_params(self, key):
        uniform, width = Uniform(1 / math.sqrt(self.out_features)), self.gates * self.out_features
        makers = {
            "weight_ih": (self.init_weight or uniform, (self.in_features, width)),
            "weight_hh": (self.init_recurrent or uniform, (self.out_features, width)),
        }
        if self.use_bias:
            makers |= {name: (self.init_bias or uniform, (width,)) for name in ("bias_ih", "bias_hh")}
        if self.train_carry:
            makers |= {name: (self.init_carry, (self.out_features,)) for name in self.carry_names}
        keys = jax.random.split(key, len(makers))
        return {name: init(k, shape, float) for k, (name, (init, shape)) in zip(keys, makers.items(), strict=True)}

    def initial_carry(self, ps, batch_shape, dtype):
        shape, dtype = (*batch_shape, self.out_features), jnp.result_type(dtype, ps["weight_hh"].dtype)
        if self.train_carry:
            parts = tuple(jnp.broadcast_to(single(ps[name]), shape).astype(dtype) for name in self.carry_names)
        else:
            parts = tuple(jnp.zeros(shape, dtype) for _ in self.carry_names)
        return parts[0] if len(parts) == 1 else parts

    def forward(self, x, ps, st):
        x, carry = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
        x = require_last(self, x, (self.in_features,))
        if carry is None:
            carry = self.initial_carry(ps, x.shape[:-1], x.dtype)
        return self.step(x, self._fitting(carry, x, ps), ps), st

    @abc.abstractmethod
    def step(self, x: Any, carry: Any, ps: dict[str, Any]) -> tuple[Any, Any]:
        """The output and the next carry."""

    def _fitting(self, carry: Any, x: jax.Array, ps: dict[str, Any]) -> Any:
        """A carry in the type of the computation. Raises `ValueError` for one of another shape."""
        shape, dtype = (*x.shape[:-1], self.out_features), jnp.result_type(x, ps["weight_hh"])
        parts = carry if isinstance(carry, list | tuple) else (carry,)
        shapes = [jnp.shape(part) for part in parts]
        if shapes != [shape] * len(self.carry_names):
            raise ValueError(
                f"{brief(self)} expects a carry of {len(self.carry_names)} array(s) "
                f"({', '.join(self.carry_names)}) of shape {shape}, got {', '.join(map(str, shapes))}"
            )
        parts = tuple(jnp.asarray(part).astype(dtype) for part in parts)
        return parts[0] if len(parts) == 1 else parts

    def _of_input(self, x, ps):
        y = product(x, ps["weight_ih"])
        return y + shared(ps["bias_ih"], y) if self.use_bias else y

    def _of_hidden(self, h, ps):
        y = product(h, ps["weight_hh"])
        return y + shared(ps["bias_hh"], y) if self.use_bias else y


class RNNCell(_GatedCell):
    r"""Elman's cell: :math:`h' = \sigma(x W_{ih} + b_{ih} + h W_{hh} + b_{hh})`, with `torch.nn.RNNCell`'s biases.

    Input `(..., in_features)`, or a tuple of it and the carry `h` `(..., out_features)`; output `(h', h')`. Parameters:
    `weight_ih` `(in, out)`, `weight_hh` `(out, out)`, `bias_ih` and `bias_hh` `(out,)`. Options:

    * `in_features`, `out_features`: the sizes of the input, and of the output and carry;
    * `activation`: `tanh` by default;
    * `use_bias`: whether there are the parameters `bias_ih` and `bias_hh`, `True` by default;
    * `train_carry`: whether the initial carry is a parameter, `hidden`; else it is zero;
    * `init_weight`, `init_recurrent`, `init_bias`: draw the parameters in place of U(-1/sqrt(out), 1/sqrt(out));
    * `init_carry`: draws the initial carry, zeros by default.

    Elman, "Finding structure in time", Cognitive Science 14, 1990. Raises `ValueError` for other shapes.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.RNNCell(2, 3)
    >>> ps, st = lux.setup(jax.random.key(0), cell)
    >>> (y, carry), st = cell(jnp.ones((8, 2)), ps, st)
    >>> (y, carry), st = cell((jnp.ones((8, 2)), carry), ps, st)
    >>> y.shape
    (8, 3)
    """

    gates = 1
    activation: Callable[..., Any] = field(default=jnp.tanh, converter=function)

    def step(self, x, carry, ps):
        h = self.activation(self._of_input(x, ps) + self._of_hidden(carry, ps))
        return h, h


class LSTMCell(_GatedCell):
    r"""Long short-term memory, with the gates in torch's order i, f, g, o.

    .. math::
        (i, f, g, o) = x W_{ih} + b_{ih} + h W_{hh} + b_{hh}, \quad
        c' = \sigma(f) c + \sigma(i) \tanh(g), \quad h' = \sigma(o) \tanh(c')

    Input `(..., in_features)`, or a tuple of it and the carry `(h, c)`, each `(..., out_features)`; output
    `(h', (h', c'))`. Parameters: `weight_ih` `(in, 4 out)`, `weight_hh` `(out, 4 out)`, `bias_ih` and `bias_hh`
    `(4 out,)`: the transposed weights of `torch.nn.LSTMCell`. Options:

    * `in_features`, `out_features`: the sizes of the input, and of the output and carry;
    * `use_bias`: whether there are the parameters `bias_ih` and `bias_hh`, `True` by default;
    * `train_carry`: whether the initial carry is a parameter, made of `hidden` and `memory`; else it is zero;
    * `init_weight`, `init_recurrent`, `init_bias`: draw the parameters in place of U(-1/sqrt(out), 1/sqrt(out));
    * `init_carry`: draws the initial carry, zeros by default.

    Hochreiter and Schmidhuber, Neural Computation 9, 1997. Raises `ValueError` for other shapes.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.LSTMCell(2, 3)
    >>> ps, st = lux.setup(jax.random.key(0), cell)
    >>> (y, (h, c)), st = cell(jnp.ones((8, 2)), ps, st)
    >>> y.shape, c.shape
    ((8, 3), (8, 3))
    """

    gates = 4
    carry_names = ("hidden", "memory")

    def step(self, x, carry, ps):
        h, c = carry
        i, f, g, o = jnp.split(self._of_input(x, ps) + self._of_hidden(h, ps), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h, (h, c)


class GRUCell(_GatedCell):
    r"""Gated recurrent unit, with the gates in torch's order r, z, n, the reset gate after the product.

    .. math::
        r = \sigma(a_r + b_r), \quad z = \sigma(a_z + b_z), \quad n = \tanh(a_n + r \odot b_n), \quad
        h' = (1 - z) n + z h

    where :math:`a = x W_{ih} + b_{ih}` and :math:`b = h W_{hh} + b_{hh}`. Input `(..., in_features)`, or a tuple of it
    and the carry `h` `(..., out_features)`; output `(h', h')`. Parameters: `weight_ih` `(in, 3 out)`, `weight_hh`
    `(out, 3 out)`, `bias_ih` and `bias_hh` `(3 out,)`: the transposed weights of `torch.nn.GRUCell`. Options:

    * `in_features`, `out_features`: the sizes of the input, and of the output and carry;
    * `use_bias`: whether there are the parameters `bias_ih` and `bias_hh`, `True` by default;
    * `train_carry`: whether the initial carry is a parameter, `hidden`; else it is zero;
    * `init_weight`, `init_recurrent`, `init_bias`: draw the parameters in place of U(-1/sqrt(out), 1/sqrt(out));
    * `init_carry`: draws the initial carry, zeros by default.

    Cho et al., EMNLP 2014. Raises `ValueError` for other shapes.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.GRUCell(2, 3)
    >>> ps, st = lux.setup(jax.random.key(0), cell)
    >>> cell(jnp.ones((8, 2)), ps, st)[0][0].shape
    (8, 3)
    """

    gates = 3

    def step(self, x, carry, ps):
        of_input, of_hidden = self._of_input(x, ps), self._of_hidden(carry, ps)
        r, z, _ = jnp.split(jax.nn.sigmoid(of_input + of_hidden), 3, axis=-1)
        start = 2 * self.out_features
        n = jnp.tanh(of_input[..., start:] + r * of_hidden[..., start:])
        h = (1 - z) * n + z * carry
        return h, h


class StackedCells(Container, RecurrentCell):
    """Cells one above the other, as one cell: each takes the output of the one below as its input.

    Layers that are no cells, `Dropout` say, are applied in between. The carry is the tuple of the cells' carries, from
    the input upwards. `StackedCells(a, b)`, `StackedCells([a, b])` or `StackedCells(lower=a, upper=b)`. Raises
    `ValueError` for a carry with another number of parts.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.StackedCells(lux.LSTMCell(2, 8), lux.Dropout(0.1), lux.LSTMCell(8, 3))
    >>> rnn = lux.Recurrence(cell)
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> rnn(jnp.ones((4, 10, 2)), ps, st)[0].shape
    (4, 3)
    """

    layers: Mapping[str, Layer] = field(converter=dict_of(as_layer))

    def __init__(self, *layers: Any, **named: Any):
        self.layers = named_layers(layers, named)

    def cells(self) -> dict[str, Layer]:
        """The children that are cells, or wrap one, by name."""
        return {name: child for name, child in self.children.items() if cell_of(child) is not None}

    def initial_carry(self, ps, batch_shape, dtype):
        return initial_carry(self, ps, dict.fromkeys(self.children), batch_shape, dtype)

    def forward(self, x, ps, st):
        x, carry = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
        cells, out, next_carry = self.cells(), {}, []
        if carry is None:
            require_array(self, x)
            x = floating(x)
            carry = initial_carry(self, ps, st, x.shape[:-1], x.dtype)
        parts = len(carry) if isinstance(carry, list | tuple) else 1
        if parts != len(cells) or not isinstance(carry, list | tuple):
            raise ValueError(f"StackedCells holds {len(cells)} cells, got a carry of {parts} parts")
        carries = dict(zip(cells, carry, strict=True))
        for name, layer in self.children.items():
            if name in carries:
                (x, new), out[name] = call_child(name, layer, (x, carries[name]), ps, st)
                next_carry.append(new)
            else:
                x, out[name] = call_child(name, layer, x, ps, st)
        return (x, tuple(next_carry)), out
