"""Honest timing: everything in one process, warmed up, interleaved, blocked on, medians."""

import functools
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


def pin_allocator(*, one_arena: bool = False) -> None:
    """Start this script again with the allocator pinned; call it before importing JAX.

    `one_arena` keeps the memory of XLA's threads too, for arrays of tens of megabytes; it slows calls of microseconds.
    """
    pinned = {**_ALLOCATOR, "MALLOC_ARENA_MAX": "1"} if one_arena else _ALLOCATOR
    if any(os.environ.get(name) != value for name, value in pinned.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **pinned})


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


def first_calls(makes: dict[str, Callable[[], Callable[[], Any]]], turns: int = 3) -> dict[str, float]:
    """The median time, in seconds, of the first call of what each maker returns: tracing, compiling and running it.

    They take turns in one process, and JAX forgets all that it has traced and compiled before each.
    """
    import jax

    times: dict[str, list[float]] = {name: [] for name in makes}
    for _ in range(turns):
        for name, make in makes.items():
            call = make()
            jax.clear_caches()
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


Step = Callable[[Any, Any], tuple[Any, Any]]


def compare(
    makes: dict[str, Callable[[], tuple[Step, Any]]], batches: list[Any], *, turns: int = 3, seconds: float = 25.0
) -> None:
    """Print the losses of some training steps, the time of a step and that of the first one, compiling included.

    Each maker returns a step `(carry, batch) -> (loss, carry)` and where to start. All steps are timed from the same
    weights, those of the start. The first entry is what the others are compared with.
    """
    rows, calls = [], {}
    for name, make in makes.items():
        step, carry = make()
        calls[name] = lambda step=step, carry=carry: step(carry, batches[0])
        losses = []
        for batch in batches:
            loss, carry = step(carry, batch)
            losses.append(f"{float(loss):.6f}")
        rows.append((name, *losses))
    table(("loss at step", *map(str, range(len(batches)))), rows)
    times = interleaved(calls, seconds=seconds, least=5)

    def first(make):
        step, carry = make()
        return lambda: step(carry, batches[0])

    firsts = first_calls({name: functools.partial(first, make) for name, make in makes.items()}, turns)
    print()
    rows = [
        (n, t * 1e3, times[next(iter(times))] / t, firsts[n], firsts[next(iter(times))] / firsts[n])
        for n, t in times.items()
    ]
    table(("step", "median (ms)", "published / this", "first step (s)", "published / this"), rows)
    print()


def values(parameters: list[Any]) -> list[Any]:
    """The values of PyTorch's parameters."""
    return [p.detach().clone() for p in parameters]


def load(parameters: list[Any], values: list[Any]) -> None:
    """Set PyTorch's parameters, in place."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data.copy_(value)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print rows as a Markdown table."""
    cells = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for i, row in enumerate(cells):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def machine() -> None:
    """Print what the measurements were made on."""
    import jax

    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
