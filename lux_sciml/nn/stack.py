"""Depth by one `lax.scan`: the same layer several times over, with one set of parameters or with as many as copies."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import Layer, Wrapper
from ..core.frozen import kept_entries


class RepeatedLayer(Wrapper):
    """One layer several times over, with the same parameters: `y = layer(layer(...layer(x)))`.

    With `input_injection` the layer gets the pair of its last output and the input, `y = layer((y, x))`, from `y = x`
    on: the unrolled form of a deep equilibrium layer. The state goes from one repeat to the next. The output of the
    layer must have the shape of its input. Compile time does not depend on `repeats`.

    Raises `ValueError` where output and input differ in shape, and for a negative number of repeats.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.RepeatedLayer(lux.Parallel(jnp.add, lux.Dense(2, 2), lux.Dense(2, 2)), input_injection=True)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> model(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)
    """

    layer: Layer
    repeats: int = 10
    input_injection: bool = False

    def __post_init__(self):
        _require_count(self, self.repeats)

    def forward(self, x, ps, st):
        def call(y, ps, st):
            return self.layer.forward((y, x) if self.input_injection else y, ps, st)

        def body(carry, _):
            y, leaves = carry
            y, st_next = call(y, ps, update(leaves))
            return (as_first(y), changed(st_next)), None

        as_first, changed, update = _loop(self, call, x, ps, st, st)
        (y, leaves), _ = lax.scan(body, (as_first(x), changed(st)), length=self.repeats)
        return y, update(leaves)


class Stack(Wrapper):
    """`n` copies of a layer one after another, each with its own parameters and state, run by one `lax.scan`.

    It computes what `Chain(*[layer] * n)` does, from the same numbers for the same key, but its compile time does not
    depend on `n`. Parameters and state are those of the layer with the copies along a new first axis, `(n, ...)`. With
    `checkpoint` the backward pass computes each copy anew from its input (`jax.checkpoint`), so that memory holds one
    copy's intermediate values and the `n` inputs. The output of the layer must have the shape of its input.

    Raises `ValueError` where output and input differ in shape, and for a negative number of copies.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Stack(lux.SkipConnection(lux.Dense(2, 2, jnp.tanh), jnp.add), 20)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> ps.layer.weight.shape, model(jnp.ones((8, 2)), ps, st)[0].shape
    ((20, 2, 2), (8, 2))
    """

    layer: Layer
    n: int
    checkpoint: bool = False

    def __post_init__(self):
        _require_count(self, self.n)

    def init_params(self, key):
        return _init_copies(self.layer.init_params, key, self.n)

    def init_state(self, key):
        return _init_copies(self.layer.init_state, key, self.n)

    def forward(self, x, ps, st):
        if self.n == 0:
            return x, st

        def body(x, copy):
            y, st = self.layer.forward(x, *copy)
            return as_first(y), changed(st)

        one_copy = jax.eval_shape(lambda trees: jax.tree.map(lambda leaf: leaf[0], trees), (ps, st))
        as_first, changed, update = _loop(self, self.layer.forward, x, *one_copy, st)
        body = jax.checkpoint(body, prevent_cse=False) if self.checkpoint else body
        y, leaves = lax.scan(body, as_first(x), (ps, st))
        return y, update(leaves)


def _require_count(layer: Layer, count: int) -> None:
    if count < 0:
        raise ValueError(f"{type(layer).__name__} needs a number of copies that is not negative, got {count}")


def _init_copies(init: Callable[[Any], Any], key: Any, n: int) -> Any:
    """The trees of `n` keys, stacked; by vmap, which sorts dicts, and then in their declared order again."""
    outline: dict[str, Any] = {}

    def init_one(i):
        tree = init(jax.random.fold_in(key, i))
        outline.update(_outline(tree))
        return tree

    return _in_order(jax.vmap(init_one)(jnp.arange(n)), outline)


def _outline(tree: Any) -> Any:
    return {name: _outline(child) for name, child in tree.items()} if isinstance(tree, dict) else None


def _in_order(tree: Any, outline: Any) -> Any:
    return tree if outline is None else {name: _in_order(tree[name], child) for name, child in outline.items()}


def _loop(layer: Layer, call: Callable[..., Any], x: Any, ps: Any, st: Any, whole: Any):
    """What a loop over `y, st = call(y, ps, st)` carries, from one trace of the call, as three functions.

    `as_first(y)` casts to the types of the first output, which the carry of a scan must keep; `changed(st)` lists the
    leaves of the state that the call does not pass through; `update(leaves)` puts them back into the `whole` state. The
    others are never sent through the scan, so that one sees that they are kept.

    Raises `ValueError` where the output is not like the input.
    """
    like, passed = kept_entries(call, x, ps, st)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (x, like)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{type(layer).__name__} needs a layer whose output has the shape of its input, got a "
            f"{type(layer.layer).__name__} from {shapes[0]} to {shapes[1]}"
        )

    def as_first(y):
        return jax.tree.map(lambda leaf, first: jnp.asarray(leaf, first.dtype), y, like)

    def changed(st):
        return [leaf for leaf, kept in zip(jax.tree.leaves(st), passed, strict=True) if not kept]

    def update(leaves):
        leaves = iter(leaves)
        old, treedef = jax.tree.flatten(whole)
        return treedef.unflatten([leaf if kept else next(leaves) for leaf, kept in zip(old, passed, strict=True)])

    return as_first, changed, update
