"""Which entries of a layer's state a call updates, decided while tracing."""

from collections.abc import Callable
from typing import Any

import jax

from .._compat import passed_through
from .layer import Layer
from .mode import Mode
from .printing import option_text
from .static import is_random_key
from .walk import walk


def updated_entries(call: Callable[[Any], Any], st: Any) -> list[str]:
    """The paths of the array entries of `st` that `call(st)`, which returns the next state, does not pass through.

    An entry is kept where the output is the same object, or where the jaxpr of the output passes it through, also
    through `jit`, `checkpoint` and custom derivative rules.
    """
    before = dict(jax.tree_util.tree_leaves_with_path(st))
    paths = list(before)
    closed, shapes = jax.make_jaxpr(call, return_shape=True)(st)
    after = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    if after != paths:
        changed = set(after) ^ set(paths)
        raise ValueError(f"the state that comes out has other entries than the one that went in: {_names(changed)}")
    return [_name(path) for i, path in enumerate(paths) if passed_through(closed, i) != i]


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
        'pass `lux.testmode(st)`, or `on_state_update="discard"` to keep one state for the whole solve'
    )


def refuse_training(st: Any) -> None:
    """Raise `ValueError` for a state in training where every sample is solved by itself."""
    modes = jax.tree.leaves(st, is_leaf=lambda x: isinstance(x, Mode))
    if Mode.TRAIN in [mode for mode in modes if isinstance(mode, Mode)]:
        raise ValueError(
            'batching="vmap" solves every sample by itself, where a state in training has no meaning; '
            'pass `lux.testmode(st)` or use batching="joint"'
        )


def renewed_keys(st: Any, after: Callable[[], Any]) -> Any:
    """The state with its random keys, if it has any, as they are in the state `after()` a call."""
    if not any(map(is_random_key, jax.tree.leaves(st))):
        return st
    return jax.tree.map(lambda old, new: new if is_random_key(old) else old, st, after())


def _name(path: Any) -> str:
    return ".".join(str(getattr(entry, "key", entry)) for entry in path)


def _names(paths: Any) -> str:
    return ", ".join(f"`{_name(path)}`" for path in sorted(paths, key=str))
