"""Honest timing: everything in one process, warmed up, interleaved, blocked on, medians."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Big arrays come fresh from the kernel at every step under glibc's defaults, and page faults then move timings two- to
# tenfold from one process to the next. With these set, freed memory is kept.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def pin_allocator() -> None:
    """Start this script again with the allocator pinned; call it before importing JAX."""
    if any(os.environ.get(name) != value for name, value in _ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ALLOCATOR})


def interleaved(calls: dict[str, Callable[[], Any]], *, repeats: int = 200, seconds: float = 20.0) -> dict[str, float]:
    """The median time of each call, in seconds. The calls take turns, so that noise meets all of them alike."""
    import jax

    for call in calls.values():
        for _ in range(3):
            jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for i in range(repeats):
        order = list(calls.items()) if i % 2 else list(calls.items())[::-1]
        for name, call in order:
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() > end and i >= 10:
            break
    return {name: statistics.median(values) for name, values in times.items()}


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

    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.platform} ({device.device_kind}), {os.cpu_count()} cores, {platform.platform()}")
