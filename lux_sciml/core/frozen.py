"""Which entries of a layer's state a call updates, decided while tracing."""

from collections.abc import Callable
from typing import Any

import jax

from .._compat import passed_through
from .layer import Layer
from .mode import Mode, modes
from .printing import option_text
from .static import is_random_key
from .walk import walk


def kept_entries(call: Callable[..., tuple[Any, Any]], *args: Any) -> tuple[Any, list[bool]]:
    """The shapes of `y` in `y, st_next = call(*args, st)`, and which leaves of the state the call passes through.

    A leaf is kept where the output is the same object, or where the jaxpr of the output passes it through, also through
    `jit`, `checkpoint` and custom derivative rules. The last one of `args` is the state; arrays may stand for their
    shapes. Raises `ValueError` where the state that comes out has other entries.
    """
    before = [path for path, _ in jax.tree_util.tree_leaves_with_path(args[-1])]
    same: list[bool] = []

    def traced(*args):
        y, st = call(*args)
        after = [path for path, _ in jax.tree_util.tree_leaves_with_path(st)]
        if after != before:
            names = _names(set(after) ^ set(before))
            raise ValueError(f"the state that comes out has other entries than the one that went in: {names}")
        same[:] = [a is b for a, b in zip(jax.tree.leaves(args[-1]), jax.tree.leaves(st), strict=True)]
        return y, st

    closed, (y, _) = jax.make_jaxpr(traced, return_shape=True)(*args)
    first_in, first_out = len(jax.tree.leaves(args)) - len(before), len(jax.tree.leaves(y))
    return y, [kept or passed_through(closed, first_out + i) == first_in + i for i, kept in enumerate(same)]


def updated_entries(call: Callable[[Any], Any], st: Any) -> list[str]:
    """The paths of the array entries of `st` that `call(st)`, which returns the next state, does not pass through."""
    kept = kept_entries(lambda st: (None, call(st)), st)[1]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(st)]
    return [_name(path) for path, same in zip(paths, kept, strict=True) if not same]


def refuse_updates(layer: Layer, call: Callable[[Any], Any], st: Any, kept: Any) -> None:
    """Raise `ValueError`, naming the layer by its path, if `call(st)` changes the state.

    `kept` is a state that the call has returned before; where it is made of the same objects nothing is traced.
    """
    before, after = jax.tree.leaves(st), jax.tree.leaves(kept)
    if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        return
    updated = updated_entries(call, st)
    if not updated:
        return
    path, _, entry = updated[0].rpartition(".")
    inner = [found for where, found in walk(layer) if where == path]
    name = f"`{path}` ({option_text(inner[-1])})" if path and inner else option_text(layer)
    raise ValueError(
        f"{name} updates its state (`{entry}`) inside a solve, which evaluates it many times and may reject steps; "
        'pass `lux.testmode(st)`, or `on_state_update="discard"` to keep one state for the whole solve, or "first" for '
        "the statistics of its first evaluation"
    )


def refuse_training(st: Any) -> None:
    """Raise `ValueError` for a state in training where every sample is solved independently."""
    if Mode.TRAIN in modes(st):
        raise ValueError(
            'batching="vmap" solves every sample independently, where a state in training has no meaning; '
            'pass `lux.testmode(st)` or use batching="joint"'
        )


def keys_after(layer: Layer, x: Any, ps: Any, st: Any) -> Any:
    """The state with its random keys, if it has any, as they are after the call `layer(x, ps, st)`.

    Nothing but the keys is computed, outside of `jax.jit` too: there the call is compiled, once for each shape.
    """
    leaves, treedef = jax.tree.flatten(st)
    if not any(map(is_random_key, leaves)):
        return st
    keys = _keys_after(layer, x, ps, st)
    return treedef.unflatten([keys.pop(0) if is_random_key(leaf) else leaf for leaf in leaves])


@jax.jit
def _keys_after(layer: Layer, x: Any, ps: Any, st: Any) -> list[jax.Array]:
    return list(filter(is_random_key, jax.tree.leaves(layer.forward(x, ps, st)[1])))


def held_statistics(layer: Layer, x: Any, ps: Any, st: Any) -> tuple[Any, Any]:
    """The state in which normalizations use the statistics of the call `layer(x, ps, st)`, and the one after the call.

    All else in the first one, such as random keys, is as it was. Both calls compute the same, and XLA does it once.
    """
    found = layer.forward(x, ps, _switched(st, Mode.TRAIN, Mode.HOLD))[1]
    return _held(st, found), layer.forward(x, ps, st)[1]


_STATISTICS = {"running_mean", "running_var", "mode"}


def _switched(st: Any, before: Mode, after: Mode) -> Any:
    """The state with another mode for all normalizations that keep statistics and have the first one."""
    if not isinstance(st, dict):
        return st
    if _STATISTICS <= st.keys() and st["mode"] is before:
        return {**st, "mode": after}
    return {name: _switched(entry, before, after) for name, entry in st.items()}


def _held(st: Any, found: Any) -> Any:
    """`st`, with what was found where statistics were to be held, in test mode."""
    if not isinstance(st, dict):
        return st
    if _STATISTICS <= st.keys() and st["mode"] is Mode.TRAIN:
        return {**found, "mode": Mode.TEST}
    return {name: _held(entry, found[name]) for name, entry in st.items()}


def _name(path: Any) -> str:
    return ".".join(str(getattr(entry, "key", entry)) for entry in path)


def _names(paths: Any) -> str:
    return ", ".join(f"`{_name(path)}`" for path in sorted(paths, key=str))
