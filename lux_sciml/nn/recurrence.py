"""Runners of recurrent cells over a sequence. The cells are in `recurrent_cells.py`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._tree import floating
from ..core import Container, Layer, StatefulWrapper, Wrapper, as_layer, field
from ..core.converters import checks_itself, flag, function, integer, integers, optional
from ..core.errors import errors_of
from ..core.printing import brief
from ._affine import shared_by_steps
from ._shapes import as_mask, cast_like, require_array, shapes_of, shapes_text
from .recurrent_cells import as_carry, cell_of, initial_carry


@checks_itself
def as_cell(value: Layer) -> Layer:
    """The converter of a recurrent cell, or of a layer around one."""
    if isinstance(value, list | tuple):
        raise TypeError(f"expected a recurrent cell, got {len(value)}: lux.StackedCells(...) makes one of several")
    return as_layer(value)


def concatenate(a: jax.Array, b: jax.Array) -> jax.Array:
    """The two arrays side by side along the last axis."""
    return jnp.concatenate([a, b], axis=-1)


class Recurrence(Wrapper):
    r"""A recurrent cell over a sequence, :math:`(y_t, h_t) = \mathrm{cell}(x_t, h_{t-1})`, by `jax.lax.scan`.

    Input: `x` `(..., time, features)`, or a tuple `(x, carry)`, or `(x, carry, mask)`, with `None` for what is not
    given. Without a carry the cell's initial one is taken, zeros or trained; a given one is cast to the type of the
    next. `mask`, of the shape of `x` without features, marks the steps that count with `True`: at the others the carry
    stays and the output is zero, so that sequences of several lengths fit into one array. What stands there in `x` is
    not read and has a zero gradient, NaN too. Output: that of the last step that counts, `(..., features)`. Options:

    * `cell`: a recurrent cell, `lux.GRUCell(2, 3)`, or several as one, `lux.StackedCells(...)`;
    * `time_major`: whether time is the first axis of `x`, `(time, ..., features)`, and of the sequence of outputs;
    * `return_sequence`: whether the output is that of all steps, in the layout of `x`;
    * `return_carry`: whether the output is a tuple, with the last carry;
    * `reverse`: whether time runs from the end;
    * `checkpoint`: whether the gradient computes each step again instead of keeping what happens inside it.

    Time and memory of the gradient are linear in the length. Parameters and state are the cell's; a state that steps
    renew, such as the key of `Dropout` between cells, is renewed at each.

    Raises `TypeError` for a layer that is no cell, for a list of steps and for masks that hold floating-point elements,
    `ValueError` for inputs, carries and masks of other shapes.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> rnn = lux.Recurrence(lux.LSTMCell(2, 3), return_carry=True)
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> (y, (h, c)), st = rnn(jnp.ones((8, 10, 2)), ps, st)
    >>> y.shape, c.shape
    ((8, 3), (8, 3))
    """

    cell: Layer = field(converter=as_cell)
    time_major: bool = field(default=False, converter=flag, kw_only=True)
    return_sequence: bool = field(default=False, converter=flag, kw_only=True)
    return_carry: bool = field(default=False, converter=flag, kw_only=True)
    reverse: bool = field(default=False, converter=flag, kw_only=True)
    checkpoint: bool = field(default=False, converter=flag, kw_only=True)

    def __check_init__(self) -> None:
        _require_cell(self, self.cell)

    def forward(self, x, ps, st):
        x, carry, mask = _parts(self, x)
        options = {name: getattr(self, name) for name in ("time_major", "return_sequence", "reverse", "checkpoint")}
        y, carry, st = _scan(self.cell, x, carry, mask, ps, st, **options)
        return (y, carry) if self.return_carry else y, st


class BidirectionalRNN(Container):
    """Two recurrent cells over a sequence, one forward and one backward in time, with their outputs merged.

    Input: as for `Recurrence`; a given carry is the tuple `(carry of cell, carry of backward_cell)`. Output: the whole
    sequence, merged. The backward cell starts, for each sample, at its last step that counts. Options:

    * `cell`: a recurrent cell, the child `cell`;
    * `backward_cell`: the one that runs from the end, the child `backward_cell`; by default another one like `cell`;
    * `merge`: a function of both outputs, which puts them side by side along the features by default; with `None` the
      output is the tuple of both;
    * `time_major`, `checkpoint`: as in `Recurrence`;
    * `return_carry`: whether the output is a tuple, with the tuple of the two last carries.

    Schuster and Paliwal, IEEE Transactions on Signal Processing 45, 1997. Raises as `Recurrence` does.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> rnn = lux.BidirectionalRNN(lux.GRUCell(2, 3))
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> rnn(jnp.ones((8, 10, 2)), ps, st)[0].shape
    (8, 10, 6)
    """

    cell: Layer = field(converter=as_cell)
    backward_cell: Layer | None = field(default=None, converter=optional(as_cell))
    merge: Callable[..., Any] | None = field(default=concatenate, converter=optional(function), kw_only=True)
    time_major: bool = field(default=False, converter=flag, kw_only=True)
    return_carry: bool = field(default=False, converter=flag, kw_only=True)
    checkpoint: bool = field(default=False, converter=flag, kw_only=True)

    def __post_init__(self) -> None:
        self.backward_cell = self.cell if self.backward_cell is None else self.backward_cell

    def __check_init__(self) -> None:
        _require_cell(self, self.cell)
        _require_cell(self, self.backward_cell)

    def forward(self, x, ps, st):
        x, carry, mask = _parts(self, x)
        starts = (None, None) if carry is None else as_carry(carry)
        if not isinstance(starts, tuple) or len(starts) != 2:
            raise ValueError(f"{brief(self)} takes a tuple of two carries, got {shapes_text(carry)}")
        ys, carries, out = [], [], {}
        for (name, cell), start in zip(self.children.items(), starts, strict=True):
            with errors_of(name, cell):
                y, last, out[name] = _scan(
                    cell, x, start, mask, ps[name], st[name], time_major=self.time_major,
                    return_sequence=True, reverse=name == "backward_cell", checkpoint=self.checkpoint,
                )  # fmt: skip
            ys.append(y)
            carries.append(last)
        y = tuple(ys) if self.merge is None else self.merge(*ys)
        return (y, tuple(carries)) if self.return_carry else y, out


class StatefulRecurrentCell(StatefulWrapper):
    """A recurrent cell that keeps its carry in its state: called with one step at a time, it goes on where it was.

    Input `(*batch_shape, features)`, output `(*batch_shape, out)`. Parameters: the cell's. State: `cell`, `carry` and
    `started`. As long as `started` is false the cell's initial carry is taken; `lux.update_state(st, "started",
    jnp.array(False))` starts anew. The batch is part of the state's shape and so must be given. Raises `ValueError` for
    another one.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.StatefulRecurrentCell(lux.GRUCell(2, 3), batch_shape=(8,))
    >>> ps, st = lux.setup(jax.random.key(0), cell)
    >>> for _ in range(5):
    ...     y, st = cell(jnp.ones((8, 2)), ps, st)
    >>> y.shape
    (8, 3)
    """

    cell: Layer = field(converter=as_cell)
    batch_shape: tuple[int, ...] = field(default=(), converter=integers)

    def __check_init__(self) -> None:
        _require_cell(self, self.cell)
        if min(self.batch_shape, default=0) < 0:
            raise ValueError(f"StatefulRecurrentCell has a batch_shape of sizes from 0 on, got {self.batch_shape}")

    def init_state(self, key):
        st = self.cell.init_state(key)
        carry = jax.eval_shape(lambda key: self._initial_carry(self.cell.init_params(key), st, float), key)
        zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), carry)
        return {"cell": st, "carry": zeros, "started": jnp.array(False)}

    def forward(self, x, ps, st):
        require_array(self, x)
        if x.shape[:-1] != self.batch_shape:
            raise ValueError(
                f"{brief(self)} keeps the carry of a batch of shape {self.batch_shape}, got inputs {x.shape}; "
                f"batch_shape={x.shape[:-1]} is for these"
            )
        x = floating(x)
        initial = self._initial_carry(ps, st["cell"], x.dtype)
        initial = cast_like(initial, st["carry"])
        carry = jax.tree.map(lambda old, start: jnp.where(st["started"], old, start), st["carry"], initial)
        (y, carry), cell = self.cell.forward((x, carry), ps, st["cell"])
        carry = cast_like(carry, st["carry"])
        return y, {"cell": cell, "carry": carry, "started": jnp.ones_like(st["started"])}

    def _initial_carry(self, ps: Any, st: Any, dtype: Any) -> Any:
        return initial_carry(self.cell, ps, st, self.batch_shape, dtype)


class ReverseSequence(Layer):
    """The sequence from its end: flips one axis, by default time in `(..., time, features)`.

    Raises `ValueError` for inputs without that axis.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.ReverseSequence()(jnp.array([[1.0], [2.0]]), {}, {})[0].tolist()
    [[2.0], [1.0]]
    """

    axis: int = field(default=-2, converter=integer)

    def forward(self, x, ps, st):
        require_array(self, x)
        if not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"{brief(self)} flips axis {self.axis}, got an input of shape {x.shape}")
        return jnp.flip(x, self.axis), st


def _require_cell(runner: Layer, cell: Layer | None) -> None:
    if cell_of(cell) is None:
        raise TypeError(f"{type(runner).__name__} runs a recurrent cell, got {brief(cell)}")


def _parts(runner: Layer, x: Any) -> tuple[Any, Any, Any]:
    """The sequence, the carry and the mask; `None` for what is not given."""
    parts = x if isinstance(x, tuple) else (x,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"a recurrence takes x, (x, carry) or (x, carry, mask), got a tuple of {len(parts)}")
    axis = 0 if getattr(runner, "time_major", False) else -2
    require_array(runner, parts[0], f"; `jnp.stack(steps, axis={axis})` makes one of steps")
    x, carry, mask = (*parts, None, None)[:3]
    return x, carry, mask


def _scan(cell, x, carry, mask, ps, st, *, time_major, return_sequence, reverse, checkpoint):
    """The output (of the last step, or all), the last carry and the next state."""
    if x.ndim < 2:
        raise ValueError(f"a recurrence takes sequences of shape (..., time, features), got {x.shape}")
    x = floating(x)
    xs = x if time_major else _moved(x, -2, 0)
    masks = None
    if mask is not None:
        mask = as_mask(mask)
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"the mask of a sequence of shape {x.shape} has shape {x.shape[:-1]}, got {mask.shape}")
        masks = mask if time_major else jnp.moveaxis(mask, -1, 0)
        xs = _where(masks, xs, jax.tree.map(jnp.zeros_like, xs))  # before the step: its derivative may be NaN
    carry, y = _start(cell, carry, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs), ps, st)

    wide, narrow = shared_by_steps(ps)

    def step(before, now):
        carry, st, last = before
        x, keep = now
        (y, new), st = cell.forward((x, carry), narrow(wide), st)
        new = cast_like(new, carry)
        if keep is not None:
            new = _where(keep, new, carry)
            y = _where(keep, y, jax.tree.map(jnp.zeros_like, y) if return_sequence else last)
        return (new, st, None if return_sequence else y), (y if return_sequence else None)

    last = None if return_sequence else jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), y)
    body = jax.checkpoint(step) if checkpoint else step
    (carry, st, last), ys = lax.scan(body, (carry, st, last), (xs, masks), reverse=reverse)
    if return_sequence:
        return (ys if time_major else _moved(ys, 0, -2)), carry, st
    return last, carry, st


def _start(cell: Layer, carry: Any, x: Any, ps: Any, st: Any) -> tuple[Any, Any]:
    """The carry before the first step, in the types of the one after it, and the shapes of an output.

    Raises `ValueError` for a carry that is not like the cell's initial one, or not like the next one.
    """

    def initial(ps, st):
        return initial_carry(cell, ps, st, x.shape[:-1], x.dtype)

    if carry is None:
        carry = initial(ps, st)
    else:
        carry, like = as_carry(carry), jax.eval_shape(initial, ps, st)
        _require_like(like, carry, f"the carry of {brief(cell)}")
        carry = cast_like(carry, like)
    (y, after), _ = jax.eval_shape(cell.forward, (x, carry), ps, st)
    _require_like(carry, after, f"the next carry of {brief(cell)}, like the one before,")
    return cast_like(carry, after), y


def _require_like(like: Any, carry: Any, what: str) -> None:
    if shapes_of(like) != shapes_of(carry):
        raise ValueError(f"{what} is {shapes_text(like)}, got {shapes_text(carry)}")


def _moved(tree: Any, source: int, to: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, source, to), tree)


def _where(keep: Any, new: Any, old: Any) -> Any:
    """Choose by sample; the leaves have axes after those of the mask."""

    def choose(a, b):
        return jnp.where(jnp.reshape(keep, keep.shape + (1,) * (a.ndim - keep.ndim)), a, b)

    return jax.tree.map(choose, new, old)
