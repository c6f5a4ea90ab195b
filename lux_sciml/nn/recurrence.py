"""Runners of recurrent cells over a sequence. The cells are in `recurrent_cells.py`."""

from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import Container, Layer, StatefulWrapper, Wrapper
from ..core.printing import option_text
from .recurrent_cells import cell_of


def concatenate(a: jax.Array, b: jax.Array) -> jax.Array:
    """The two arrays side by side along the last axis."""
    return jnp.concatenate([a, b], axis=-1)


class Recurrence(Wrapper):
    r"""A recurrent cell over a sequence, :math:`(y_t, h_t) = \mathrm{cell}(x_t, h_{t-1})`, by `jax.lax.scan`.

    Input: `x` `(..., time, features)`, or with `time_major` `(time, ..., features)`; or a tuple `(x, carry)`, or
    `(x, carry, mask)`, with `None` for what is not given. Without a carry the cell's initial one is taken, zeros or
    trained. `mask`, of the shape of `x` without features, marks the steps that count with `True`: at the others the
    carry stays and the output is zero, so that sequences of several lengths fit into one array.

    Output: that of the last step that counts, `(..., features)`; with `return_sequence` all of them, in the layout of
    `x`; with `return_carry` a tuple of this and the last carry. With `reverse` time runs from the end. With
    `checkpoint` the gradient computes each step again instead of keeping what happens inside it. Time and memory of the
    gradient are linear in the length either way. Parameters and state are the cell's; a state that steps renew, such as
    the key of `Dropout` between cells, is renewed at each.

    Raises `TypeError` for a layer that is no cell, `ValueError` for inputs and masks of other shapes.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> rnn = lux.Recurrence(lux.LSTMCell(2, 3), return_carry=True)
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> (y, (h, c)), st = rnn(jnp.ones((8, 10, 2)), ps, st)
    >>> y.shape, c.shape
    ((8, 3), (8, 3))
    """

    cell: Layer
    time_major: bool = field(default=False, kw_only=True)
    return_sequence: bool = field(default=False, kw_only=True)
    return_carry: bool = field(default=False, kw_only=True)
    reverse: bool = field(default=False, kw_only=True)
    checkpoint: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        _require_cell(self, self.cell)

    def forward(self, x, ps, st):
        x, carry, mask = _parts(x)
        options = {name: getattr(self, name) for name in ("time_major", "return_sequence", "reverse", "checkpoint")}
        y, carry, st = _scan(self.cell, x, carry, mask, ps, st, **options)
        return (y, carry) if self.return_carry else y, st


class BidirectionalRNN(Container):
    """Two recurrent cells over a sequence, one forward and one backward in time, with their outputs merged.

    Input: as for `Recurrence`; a given carry is the tuple `(carry of cell, carry of backward_cell)`. Output: the whole
    sequence, `merge(forward, backward)`, side by side along the features by default; with `merge=None` the tuple of
    both; with `return_carry` a tuple of this and the two last carries. The backward cell starts, for each sample, at
    its last step that counts. Children: `cell` and `backward_cell`, by default another one like `cell`.

    Schuster and Paliwal, IEEE Transactions on Signal Processing 45, 1997. Raises as `Recurrence` does.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> rnn = lux.BidirectionalRNN(lux.GRUCell(2, 3))
    >>> ps, st = lux.setup(jax.random.key(0), rnn)
    >>> rnn(jnp.ones((8, 10, 2)), ps, st)[0].shape
    (8, 10, 6)
    """

    cell: Layer
    backward_cell: Layer | None = None
    merge: Callable | None = field(default=concatenate, kw_only=True)
    time_major: bool = field(default=False, kw_only=True)
    return_carry: bool = field(default=False, kw_only=True)
    checkpoint: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        self.backward_cell = self.backward_cell or self.cell
        _require_cell(self, self.cell)
        _require_cell(self, self.backward_cell)

    def forward(self, x, ps, st):
        x, carry, mask = _parts(x)
        ys, carries, out = [], [], {}
        for name, start in zip(("cell", "backward_cell"), carry or (None, None), strict=True):
            y, last, out[name] = _scan(
                self.children[name], x, start, mask, ps[name], st[name], time_major=self.time_major,
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

    cell: Layer
    batch_shape: int | tuple[int, ...] = ()

    def __post_init__(self):
        _require_cell(self, self.cell)
        if isinstance(self.batch_shape, int):
            self.batch_shape = (self.batch_shape,)

    def init_state(self, key):
        dtype = jax.dtypes.canonicalize_dtype(float)
        ps = jax.eval_shape(self.cell.init_params, key)
        carry = jax.eval_shape(lambda ps: cell_of(self.cell).initial_carry(ps, self.batch_shape, dtype), ps)
        zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), carry)
        return {"cell": self.cell.init_state(key), "carry": zeros, "started": jnp.array(False)}

    def forward(self, x, ps, st):
        if x.shape[:-1] != self.batch_shape:
            raise ValueError(
                f"{option_text(self)} keeps the carry of a batch of shape {self.batch_shape}, got inputs {x.shape}; "
                f"batch_shape={x.shape[:-1]} is for these"
            )
        initial = cell_of(self.cell).initial_carry(ps, self.batch_shape, x.dtype)
        carry = jax.tree.map(
            lambda old, start: jnp.where(st["started"], old, start.astype(old.dtype)), st["carry"], initial
        )
        (y, carry), cell = self.cell.forward((x, carry), ps, st["cell"])
        carry = jax.tree.map(lambda new, old: new.astype(old.dtype), carry, st["carry"])
        return y, {"cell": cell, "carry": carry, "started": jnp.ones_like(st["started"])}


class ReverseSequence(Layer):
    """The sequence from its end: flips one axis, by default time in `(..., time, features)`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> lux.ReverseSequence()(jnp.array([[1.0], [2.0]]), {}, {})[0].tolist()
    [[2.0], [1.0]]
    """

    axis: int = -2

    def forward(self, x, ps, st):
        if not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"{option_text(self)} flips axis {self.axis}, got an input of shape {x.shape}")
        return jnp.flip(x, self.axis), st


def _require_cell(runner: Layer, cell: Any) -> None:
    if cell_of(cell) is None:
        raise TypeError(f"{type(runner).__name__} runs a recurrent cell, got {cell!r}")


def _parts(x: Any) -> tuple[Any, Any, Any]:
    """The sequence, the carry and the mask; `None` for what is not given."""
    parts = x if isinstance(x, tuple) else (x,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"a recurrence takes x, (x, carry) or (x, carry, mask), got a tuple of {len(parts)}")
    return (*parts, None, None)[:3]


def _scan(cell, x, carry, mask, ps, st, *, time_major, return_sequence, reverse, checkpoint):
    """The output (of the last step, or all), the last carry and the next state."""
    if x.ndim < 2:
        raise ValueError(f"a recurrence takes sequences of shape (..., time, features), got {x.shape}")
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(f"the mask of a sequence of shape {x.shape} has shape {x.shape[:-1]}, got {mask.shape}")
    xs = x if time_major else jnp.moveaxis(x, -2, 0)
    masks = mask if mask is None or time_major else jnp.moveaxis(mask, -1, 0)
    if carry is None:
        carry = cell_of(cell).initial_carry(ps, xs.shape[1:-1], x.dtype)

    def step(before, now):
        carry, st, last = before
        x, keep = now
        (y, new), st = cell.forward((x, carry), ps, st)
        if keep is not None:
            new = _where(keep, new, carry)
            y = _where(keep, y, jnp.zeros_like(y) if return_sequence else last)
        return (new, st, None if return_sequence else y), (y if return_sequence else None)

    if return_sequence:
        last = None
    else:
        one = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        (y, _), _ = jax.eval_shape(cell.forward, (one, carry), ps, st)
        last = jnp.zeros(y.shape, y.dtype)
    body = jax.checkpoint(step) if checkpoint else step
    (carry, st, last), ys = lax.scan(body, (carry, st, last), (xs, masks), reverse=reverse)
    if return_sequence:
        return (ys if time_major else jnp.moveaxis(ys, 0, -2)), carry, st
    return last, carry, st


def _where(keep: Any, new: Any, old: Any) -> Any:
    """Choose by sample; the leaves have axes behind those of the mask."""

    def choose(a, b):
        return jnp.where(jnp.reshape(keep, keep.shape + (1,) * (a.ndim - keep.ndim)), a, b)

    return jax.tree.map(choose, new, old)
