"""Recurrent cells: one step in time. The runners over a sequence are in `recurrence.py`."""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..core import Container, Layer, Wrapper
from ..core.container import call_child, named_layers
from ..core.printing import option_text
from ..initializers import Uniform, zeros
from ._shapes import require_last


class RecurrentCell(Layer):
    """A step in time: `(y, carry), st = cell((x, carry), ps, st)`; with `x` alone the carry is the initial one.

    A cell of one's own subclasses this, writes the hooks of a `Layer` and `initial_carry`, and then runs in
    `Recurrence`, `BidirectionalRNN`, `StackedCells` and `StatefulRecurrentCell`. The carry is an array or a tuple of
    arrays, and comes out as it goes in.
    """

    @abc.abstractmethod
    def initial_carry(self, ps: dict[str, Any], batch_shape: tuple[int, ...], dtype: Any) -> Any:
        """The carry before the first step, for inputs of shape `(*batch_shape, features)`."""


def cell_of(layer: Any) -> RecurrentCell | None:
    """The cell in a layer: the layer itself, or what it wraps; `None` where there is none."""
    while isinstance(layer, Wrapper) and not isinstance(layer, RecurrentCell):
        layer = layer.child
    return layer if isinstance(layer, RecurrentCell) else None


class _GatedCell(RecurrentCell):
    """What the cells of torch share: two affine maps into all gates, one of the input, one of the hidden state."""

    gates: ClassVar[int]
    carry_names: ClassVar[tuple[str, ...]] = ("hidden",)

    in_features: int
    out_features: int
    use_bias: bool = field(default=True, kw_only=True)
    train_carry: bool = field(default=False, kw_only=True)
    init_weight: Callable | None = field(default=None, kw_only=True)
    init_recurrent: Callable | None = field(default=None, kw_only=True)
    init_bias: Callable | None = field(default=None, kw_only=True)
    init_carry: Callable = field(default=zeros, kw_only=True)

    def init_params(self, key):
        uniform, dtype = Uniform(1 / math.sqrt(max(self.out_features, 1))), jax.dtypes.canonicalize_dtype(float)
        width = self.gates * self.out_features
        makers = {
            "weight_ih": (self.init_weight or uniform, (self.in_features, width)),
            "weight_hh": (self.init_recurrent or uniform, (self.out_features, width)),
        }
        if self.use_bias:
            makers |= {name: (self.init_bias or uniform, (width,)) for name in ("bias_ih", "bias_hh")}
        if self.train_carry:
            makers |= {name: (self.init_carry, (self.out_features,)) for name in self.carry_names}
        keys = jax.random.split(key, len(makers))
        return {name: init(k, shape, dtype) for k, (name, (init, shape)) in zip(keys, makers.items(), strict=True)}

    def initial_carry(self, ps, batch_shape, dtype):
        shape, dtype = (*batch_shape, self.out_features), jnp.result_type(dtype, ps["weight_hh"].dtype)
        if self.train_carry:
            parts = tuple(jnp.broadcast_to(ps[name].astype(dtype), shape) for name in self.carry_names)
        else:
            parts = tuple(jnp.zeros(shape, dtype) for _ in self.carry_names)
        return parts if len(parts) > 1 else parts[0]

    def forward(self, x, ps, st):
        x, carry = x if isinstance(x, tuple) else (x, None)
        require_last(self, x, (self.in_features,))
        if carry is None:
            carry = self.initial_carry(ps, x.shape[:-1], x.dtype)
        self._check_carry(carry, x.shape[:-1])
        return self.step(x, carry, ps), st

    @abc.abstractmethod
    def step(self, x: Any, carry: Any, ps: dict[str, Any]) -> tuple[Any, Any]:
        """The output and the next carry."""

    def _check_carry(self, carry, batch_shape):
        parts = carry if isinstance(carry, tuple) else (carry,)
        shapes = [jnp.shape(part) for part in parts]
        if shapes != [(*batch_shape, self.out_features)] * len(self.carry_names):
            raise ValueError(
                f"{option_text(self)} expects a carry of {len(self.carry_names)} array(s) "
                f"({', '.join(self.carry_names)}) of shape {(*batch_shape, self.out_features)}, got "
                f"{', '.join(map(str, shapes))}"
            )

    def _of_input(self, x, ps):
        y = x @ ps["weight_ih"]
        return y + ps["bias_ih"] if self.use_bias else y

    def _of_hidden(self, h, ps):
        y = h @ ps["weight_hh"]
        return y + ps["bias_hh"] if self.use_bias else y


class RNNCell(_GatedCell):
    r"""Elman's cell: :math:`h' = \sigma(x W_{ih} + b_{ih} + h W_{hh} + b_{hh})`, with `torch.nn.RNNCell`'s biases.

    Input `(..., in_features)`, or a tuple of it and the carry `h` `(..., out_features)`; output `(h', h')`. Parameters:
    `weight_ih` `(in, out)`, `weight_hh` `(out, out)`, with `use_bias` also `bias_ih` and `bias_hh` `(out,)`, all from
    U(-1/sqrt(out), 1/sqrt(out)) unless `init_weight`, `init_recurrent` or `init_bias` say otherwise. With
    `train_carry` the initial carry is a parameter, `hidden`, drawn by `init_carry` (default: zeros); else it is zero.

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
    activation: Callable = jnp.tanh

    def step(self, x, carry, ps):
        h = self.activation(self._of_input(x, ps) + self._of_hidden(carry, ps))
        return h, h


class LSTMCell(_GatedCell):
    r"""Long short-term memory, with the gates in torch's order i, f, g, o.

    .. math::
        (i, f, g, o) = x W_{ih} + b_{ih} + h W_{hh} + b_{hh}, \quad
        c' = \sigma(f) c + \sigma(i) \tanh(g), \quad h' = \sigma(o) \tanh(c')

    Input `(..., in_features)`, or a tuple of it and the carry `(h, c)`, each `(..., out_features)`; output
    `(h', (h', c'))`. Parameters: `weight_ih` `(in, 4 out)`, `weight_hh` `(out, 4 out)`, with `use_bias` also `bias_ih`
    and `bias_hh` `(4 out,)`, all from U(-1/sqrt(out), 1/sqrt(out)): the transposed weights of `torch.nn.LSTMCell`. With
    `train_carry` the initial carry is made of the parameters `hidden` and `memory`; else it is zero.

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
    `(out, 3 out)`, with `use_bias` also `bias_ih` and `bias_hh` `(3 out,)`, all from U(-1/sqrt(out), 1/sqrt(out)): the
    transposed weights of `torch.nn.GRUCell`. With `train_carry` the initial carry is the parameter `hidden`.

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
    the input upwards. `StackedCells(a, b)`, `StackedCells([a, b])` or `StackedCells(lower=a, upper=b)`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.StackedCells(lux.LSTMCell(2, 8), lux.Dropout(0.1), lux.LSTMCell(8, 3))
    >>> rnn = lux.Recurrence(cell)
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> rnn(jnp.ones((4, 10, 2)), ps, st)[0].shape
    (4, 3)
    """

    layers: Mapping[str, Layer]

    def __init__(self, *layers: Any, **named: Any):
        self.layers = named_layers(layers, named)

    def initial_carry(self, ps, batch_shape, dtype):
        return tuple(cell.initial_carry(ps[name], batch_shape, dtype) for name, cell in self._cells().items())

    def forward(self, x, ps, st):
        x, carry = x if isinstance(x, tuple) else (x, None)
        cells, out, next_carry = self._cells(), {}, []
        if carry is None:
            carry = self.initial_carry(ps, x.shape[:-1], x.dtype)
        if len(carry) != len(cells):
            raise ValueError(f"StackedCells holds {len(cells)} cells, got a carry of {len(carry)} parts")
        carries = iter(carry)
        for name, layer in self.children.items():
            if name in cells:
                (x, new), out[name] = call_child(name, layer, (x, next(carries)), ps, st)
                next_carry.append(new)
            else:
                x, out[name] = call_child(name, layer, x, ps, st)
        return (x, tuple(next_carry)), out

    def _cells(self) -> dict[str, RecurrentCell]:
        found = {name: cell_of(child) for name, child in self.children.items()}
        return {name: cell for name, cell in found.items() if cell is not None}
