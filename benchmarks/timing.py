"""Honest timing: everything in one process, warmed up, interleaved, blocked on, medians."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Big arrays come fresh from the kernel at every step under glibc's defaults, and page faults then move timings two- to
# tenfold from one process to the next. With these set, freed memory is kept, also that of XLA's threads.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def pin_allocator() -> None:
    """Start this script again with the allocator pinned; call it before importing JAX."""
    if any(os.environ.get(name) != value for name, value in _ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ALLOCATOR})


def interleaved(
    calls: dict[str, Callable[[], Any]],
    *,
    turns: int = 100,
    seconds: float = 20.0,
    chained: bool = False,
    least: int = 11,
) -> dict[str, float]:
    """The median time of each call, in seconds.

    The calls take turns, so that noise meets all of them alike. A turn is some milliseconds of calls back to back, as
    in a training loop: a single short call after another program's would measure cold caches. Every call is waited for;
    where calls are `chained`, each needing the results of the one before, only the last one of a turn is.
    There are at most `turns` turns, and no more after `seconds`, but the `least` number of them in any case.
    """
    inner = {name: max(1, int(0.005 / _turn(call, 3, chained))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for i in range(turns):
        for name, call in list(calls.items())[:: 1 if i % 2 else -1]:
            times[name].append(_turn(call, inner[name], chained))
        if time.perf_counter() > end and i + 1 >= least:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def _turn(call: Callable[[], Any], inner: int, chained: bool) -> float:
    import jax

    jax.block_until_ready(call())
    start = time.perf_counter()
    for i in range(inner):
        out = call()
        if not chained or i == inner - 1:
            jax.block_until_ready(out)
    return (time.perf_counter() - start) / inner


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print rows as a Markdown table."""
    cells = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for i, row in enumerate(cells):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def machine() -> None:
    """Print what the figures were measured on."""
    import jax

    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
