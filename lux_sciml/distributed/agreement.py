"""What the processes of a run have in common, and a sentence where they do not."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from .._compat import equations, of_all_processes, of_first_process
from .._tree import describe, is_random_key
from ..components import ComponentVector


def gathered(x: np.ndarray) -> np.ndarray:
    """The arrays of all processes, along a new first axis. All processes call this, in the same order."""
    if jax.process_count() == 1:
        return np.asarray(x)[None]
    with ThreadPoolExecutor(1) as thread:  # outside of what is being traced here
        return thread.submit(of_all_processes, np.asarray(x)).result()


def agreed(number: int, stop: bool) -> tuple[int, bool]:
    """The first process's number, and whether one of them stops."""
    if jax.process_count() == 1:
        return number, stop
    all_of_them = gathered(np.array([number, stop], np.int32))
    return int(all_of_them[0, 0]), bool(all_of_them[:, 1].any())


def everyone_has(batch: Any) -> bool:
    """Whether no process's batch is `None`. Raises `ValueError` where their shapes differ."""
    text = "" if batch is None else describe(batch)
    found = gathered(np.array([batch is not None, *_digest(text)], np.uint8))
    if not found[:, 0].all():
        return False
    other = next((i for i, row in enumerate(found) if (row != found[0]).any()), None)
    if other is not None:
        raise ValueError(
            f"the batches of processes 0 and {other} differ in shape, that of process {jax.process_index()} is {text}: "
            "each process yields an equal part of the batch"
        )
    return True


def require_same_program(closed: Any) -> None:
    """Raise `ValueError` where the objectives of the processes are not one program."""
    if jax.process_count() == 1:
        return
    lines = [f"{eqn.primitive.name} {[_known(x) for x in eqn.invars]} {[str(x.aval) for x in eqn.outvars]}"
             for eqn in equations(closed)]  # fmt: skip
    inputs = ", ".join(str(x.aval) for x in closed.jaxpr.invars)
    digests = gathered(np.frombuffer(_digest(inputs) + _digest("\n".join(lines)), np.uint8))
    other = next((i for i, row in enumerate(digests) if (row != digests[0]).any()), None)
    if other is None:
        return
    if (digests[:, :32] != digests[0, :32]).any():
        raise ValueError(
            f"processes 0 and {other} have parameters, states or batches of other shapes; those of process "
            f"{jax.process_index()} are {inputs}"
        )
    raise ValueError(
        f"processes 0 and {other} have traced other programs from the objective: run the same code, with the same "
        "versions, in all of them"
    )


def _known(x: Any) -> str:
    """A literal by its value, all else by its type."""
    return re.sub(r"0x[0-9a-f]+", "", f"{x.val} {x.aval}" if hasattr(x, "val") else str(x.aval))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def require_same_values(tree: Any) -> None:
    """Raise `ValueError`, naming the first path, where the arrays of a tree differ between processes."""
    if jax.process_count() == 1:
        return
    leaves = dict(_named(tree))
    shapes = "; ".join(f"{name} {describe(x)}" for name, x in leaves.items())
    found = gathered(np.frombuffer(_digest(shapes), np.uint8))
    if (found != found[0]).any():
        other = int(np.argmax((found != found[0]).any(1)))
        raise ValueError(
            f"the states of processes 0 and {other} have other entries; those of process {jax.process_index()} are "
            f"{shapes[:500]}"
        )
    found = gathered(np.stack([np.frombuffer(_checksum(x), np.uint8) for x in leaves.values()]))
    for i, name in enumerate(leaves):
        differ = (found[:, i] != found[0, i]).any(1)
        if differ.any():
            raise ValueError(
                f"`{name}` of processes 0 and {int(np.argmax(differ))} differ: make it from the same key in all "
                "processes, or pass broadcast=True to take those of process 0"
            )


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    """The arrays by their paths, those in vectors by their names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, ComponentVector))
    for path, x in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not isinstance(x, ComponentVector):
            yield name, x
        elif x.data.shape[-1:] != (x.layout.size,):
            yield name, x.data
        else:
            data = np.asarray(x.data)
            for leaf in x.layout.blocks:
                here = data[..., leaf.offset : leaf.offset + leaf.size]
                yield f"{name}.{x.layout.name(leaf.path)}".strip("."), here


def broadcast(tree: Any) -> Any:
    """The arrays of process 0, in all processes."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    keys = [is_random_key(x) for x in leaves]
    plain = [jax.random.key_data(x) if key else x for x, key in zip(leaves, keys, strict=True)]
    sent = of_first_process([np.asarray(x) for x in plain])
    back = [
        jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if key else np.asarray(new).astype(old.dtype)
        for new, old, key in zip(sent, leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, back)


def _checksum(x: Any) -> bytes:
    data = np.asarray(jax.random.key_data(x) if is_random_key(x) else x)
    return hashlib.sha256(data.tobytes()).digest()
