"""Depth by one `lax.scan`: the same layer several times over, with one set of parameters or with as many as copies."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._compat import JitKey
from .._tree import dict_map, in_order
from ..components import ComponentVector, Layout
from ..core import Layer, Wrapper, as_layer, field
from ..core.converters import checks_itself, flag, function, natural
from ..core.frozen import kept_entries
from ..core.parameters import layout_like, parameter_layout
from ._affine import shared_by_steps
from ._shapes import cast_like, shapes_of, shapes_text

ROW_MULTIPLE = 128


class RepeatedLayer(Wrapper):
    """One layer several times over, with the same parameters: `y = layer(layer(...layer(x)))`.

    With `input_injection` the layer gets the pair of its last output and the input, `y = layer((y, x))`, from `y = x`
    on: the unrolled form of a deep equilibrium layer. The state goes from one repeat to the next. The output of the
    layer must have the shape of its input: an array, a ComponentVector or a tree of arrays. Compile time does not
    depend on `repeats`, 10 by default.

    Raises `ValueError` where output and input differ in shape, and for a negative number of repeats.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.RepeatedLayer(lux.Parallel(jnp.add, lux.Dense(2, 2), lux.Dense(2, 2)), input_injection=True)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)
    """

    layer: Layer = field(converter=as_layer)
    repeats: int = field(default=10, converter=natural)
    input_injection: bool = field(default=False, converter=flag)

    def forward(self, x, ps, st):
        def call(y, ps, st):
            return self.layer.forward((y, x) if self.input_injection else y, ps, st)

        def body(carry, _):
            y, leaves = carry
            y, st_next = call(y, narrow(wide), update(leaves))
            return (as_first(y), changed(st_next)), None

        wide, narrow = shared_by_steps(ps)
        as_first, changed, update = _loop(self, call, x, ps, st, st)
        (y, leaves), _ = lax.scan(body, (as_first(x), changed(st)), length=self.repeats)
        return y, update(leaves)


@checks_itself
def _row_multiple(value: bool | int) -> int:
    """What the length of rows is a multiple of; 0 for parameters by name."""
    return (ROW_MULTIPLE if value else 0) if isinstance(value, bool) else natural(value)


@checks_itself
def _checkpoint(value: Any) -> Any:
    return function(value) if callable(value) else flag(value)


class Stack(Wrapper):
    """`n` copies of a layer one after another, each with its own parameters and state, run by one `lax.scan`.

    It computes what `Chain(*[layer] * n)` does, from the same values for the same key, but its compile time does not
    depend on `n`. Parameters and state are those of the layer with the copies along a new first axis, `(n, ...)`.

    * `checkpoint`: with `True` the backward pass computes each copy anew from its input (`jax.checkpoint`), so that
      memory holds one copy's intermediate values and the `n` inputs; or a policy of `jax.checkpoint_policies`, of what
      is kept.
    * `flat_rows`: the parameters are one matrix, `rows` `(n, m)`, with the elements of a copy in each row. With `True`,
      m is filled up with zeros to a multiple of 128; a number is another multiple. It is for parameters that are
      sharded over devices, see `lux.distributed.shard`: the scan then gathers a row at a time, once for each pass,
      where it would gather every array of a copy; take `checkpoint=True` with it. `named(ps)` reads them by name.

    The output of the layer must have the shape of its input: an array, a ComponentVector or a tree of arrays.

    Raises `ValueError` where output and input differ in shape, and for a negative number of copies.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Stack(lux.SkipConnection(lux.Dense(2, 2, jnp.tanh), jnp.add), 20)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> ps.layer.weight.shape, model(jnp.ones((8, 2)), ps, st)[0].shape
    ((20, 2, 2), (8, 2))
    >>> flat = model.replace(flat_rows=True)
    >>> ps, st = lux.setup(jax.random.key(0), flat)
    >>> ps.rows.shape, flat.named(ps).layer.weight.shape
    ((20, 128), (20, 2, 2))
    """

    layer: Layer = field(converter=as_layer)
    n: int = field(converter=natural)
    checkpoint: bool | Callable[..., Any] = field(default=False, converter=_checkpoint)
    flat_rows: bool | int = field(default=0, converter=_row_multiple, kw_only=True)

    def init_params(self, key):
        trees = _init_copies(self.layer.init_params, key, self.n)
        return self._in_rows(trees) if self.flat_rows else trees

    def init_state(self, key):
        return _init_copies(self.layer.init_state, key, self.n)

    def to_child(self, ps, st):
        """Those of the copies, along a first axis."""
        if not self.flat_rows:
            return ps, st
        layout, rows = _layout_of_rows(self.layer, ps["rows"])
        tree = jax.vmap(layout.unravel)(rows[:, : layout.size])
        return in_order(tree, layout.rebuild(layout.blocks)), st

    def from_child(self, ps, st, whole):
        return (self._in_rows(ps) if self.flat_rows else ps), st

    def _in_rows(self, trees: Any) -> dict[str, jax.Array]:
        layout = layout_like(self.layer, trees)
        rows = jax.vmap(layout.ravel, axis_size=self.n)(trees)
        return {"rows": jnp.pad(rows, ((0, 0), (0, -layout.size % self.flat_rows)))}

    def named(self, ps: Any) -> ComponentVector:
        """The parameters of flat rows by name, `(n, ...)` each."""
        layout, rows = _layout_of_rows(self.layer, ps["rows"])
        return ComponentVector(rows[:, : layout.size], layout)

    def forward(self, x, ps, st):
        if self.n == 0:
            return x, st

        def of_copy(ps):
            if not self.flat_rows:
                return ps
            layout, row = _layout_of_rows(self.layer, _whole(ps["rows"]))
            return layout.unravel(row[: layout.size])

        def body(x, copy):
            y, st = self.layer.forward(x, of_copy(copy[0]), copy[1])
            return as_first(y), changed(st)

        ps_one, st_one = jax.eval_shape(lambda trees: jax.tree.map(lambda leaf: leaf[0], trees), (ps, st))
        ps_one = jax.eval_shape(of_copy, ps_one)
        as_first, changed, update = _loop(self, self.layer.forward, x, ps_one, st_one, st)
        if self.checkpoint:
            policy = None if self.checkpoint is True else self.checkpoint
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        y, leaves = lax.scan(body, as_first(x), (ps, st), length=self.n)
        return y, update(leaves)


_shardings = JitKey()  # of a row of `rows`, as it lies, and as it is used


@contextlib.contextmanager
def sharded_rows(mesh: Mesh, axes: tuple[str, ...]):
    """Inside, the rows of stacks are sharded over axes of a mesh, and gathered one by one."""
    with _shardings.holding((NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec()))):
        yield


def _whole(row: jax.Array) -> jax.Array:
    """A row on each device. The first constraint keeps XLA from gathering `(1, m)`, for which it copies all rows."""
    for sharding in _shardings.value or ():
        row = lax.with_sharding_constraint(row, sharding)
    return row


def _layout_of_rows(layer: Layer, rows: jax.Array) -> tuple[Layout, jax.Array]:
    """The layout of a copy's parameters in the type of its elements, and these."""
    rows = jnp.asarray(rows)
    return parameter_layout(layer).astype(rows.dtype), rows


def _init_copies(init: Callable[[Any], Any], key: Any, n: int) -> Any:
    """The trees of `n` keys, stacked; by vmap, which sorts dicts, and then in their declared order again."""
    declared: list[Any] = []

    def init_one(i):
        tree = init(jax.random.fold_in(key, i))
        declared.append(dict_map(lambda _: None, tree))
        return tree

    trees = jax.vmap(init_one)(jnp.arange(n))
    return in_order(trees, declared[0])


def _loop(layer: Any, call: Callable[..., Any], x: Any, ps: Any, st: Any, whole: Any):
    """What a loop over `y, st = call(y, ps, st)` carries, from one trace of the call, as three functions.

    `as_first(y)` casts to the types of the first output, which the carry of a scan must keep; `changed(st)` lists the
    leaves of the state that the call does not pass through; `update(leaves)` puts them back into the `whole` state. The
    others are never sent through the scan, so that whoever watches the state sees that they are kept.

    Raises `ValueError` where the output is not like the input.
    """
    like, kept = kept_entries(call, x, ps, st)
    if shapes_of(x) != shapes_of(like):
        raise ValueError(
            f"{type(layer).__name__} needs a layer whose output has the shape of its input, got a "
            f"{type(layer.layer).__name__} from {_text(x)} to {_text(like)}"
        )

    def as_first(y):
        return cast_like(y, like)

    def changed(st):
        return [leaf for leaf, same in zip(jax.tree.leaves(st), kept, strict=True) if not same]

    def update(leaves):
        leaves = iter(leaves)
        old, treedef = jax.tree.flatten(whole)
        return treedef.unflatten([leaf if same else next(leaves) for leaf, same in zip(old, kept, strict=True)])

    return as_first, changed, update


def _text(x: Any) -> str:
    return shapes_text(x) if isinstance(x, ComponentVector) or not hasattr(x, "shape") else str(x.shape)
