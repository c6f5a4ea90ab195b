"""Compiled loops in chunks, short enough that Ctrl-C, progress and callbacks are prompt."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LONGEST = 4096  # steps in a chunk: the size of its buffer of values
SECONDS = 0.1  # what a chunk should take


def in_chunks(
    advance: Callable[[Any, int], tuple[Any, Any, Any]],
    carry: Any,
    total: int,
    every: int | None = None,
    first: int = 1,
) -> Iterator[tuple[Any, np.ndarray]]:
    """Advance a carry by `total` steps, or until a chunk ends early.

    `advance(carry, limit)` makes at most `limit <= LONGEST` steps and returns the carry, how many it made, and a buffer
    `(LONGEST,)` of values. Yields the carry and the chunk's values after each chunk. Lengths adapt to the time a step
    takes; the first chunk, which compiles, is not timed. With `every`, chunks also end after the steps whose number is
    a multiple of it; that of the first one is `first`.
    """
    done, length, compiled = 0, 1, False
    while done < total:
        limit = min(length, total - done)
        if every is not None:
            limit = min(limit, every - (done + first - 1) % every)
        start = time.perf_counter()
        carry, count, values = advance(carry, limit)
        count, values = int(count), np.asarray(values)
        per_step = (time.perf_counter() - start) / max(count, 1)
        if count == 0:
            return
        done += count
        yield carry, values[:count]
        if count < limit:
            return
        if compiled:
            length = max(1, min(LONGEST, 8 * length, int(SECONDS / per_step)))
        compiled = True


def strong(carry: Any) -> Any:
    """A carry without weak types: these turn strong in a loop, and the next chunk would be another program."""

    def cast(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.astype(x.dtype)

    return jax.tree.map(cast, carry)
