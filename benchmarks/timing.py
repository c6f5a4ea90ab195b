"""Honest timing: everything in one process, warmed up, interleaved, blocked on, medians; and a record of it.

Scripts print. Where `run.py` has started one, its tables with a name are recorded too, with all that was timed for
them and what it was timed on. Names that begin with `lux` are ours, `floor` is what no library can be below, and the
others are peers.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

QUICK = "LUX_BENCH_QUICK" in os.environ  # fewer turns
LIBRARIES = (
    *("jax", "jaxlib", "equinox", "diffrax", "optimistix", "lineax", "optax", "flax", "numpy", "scipy", "sklearn"),
    *("torch", "torchdiffeq", "torchdeq", "tensorflow", "ai_edge_litert", "onnx", "onnxruntime"),
)
_START, _LOAD = time.time(), os.getloadavg()[0]
_tables: list[dict[str, Any]] = []
_timed: list[list[dict[str, Any]]] = []  # since the last table

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
) -> dict[str, "Time"]:
    """The median time of each call, in seconds.

    The calls take turns, so that noise meets all of them alike. A turn is some milliseconds of calls back to back, as
    in a training loop: a single short call after another program's would measure cold caches. Every call is waited for;
    where calls are `chained`, each needing the results of the one before, only the last one of a turn is.
    There are at most `turns` turns, and no more after `seconds`, but the `least` number of them in any case.
    """
    seconds = seconds / 4 if QUICK else seconds
    inner = {name: max(1, int(0.005 / _turn(call, 3, chained))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for i in range(turns):
        for name, call in list(calls.items())[:: 1 if i % 2 else -1]:
            times[name].append(_turn(call, inner[name], chained))
        if time.perf_counter() > end and i + 1 >= least:
            break
    return medians(times)


class Time(float):
    """A median in seconds; `spread` is half of what lies between the quartiles, relative to it."""

    spread: float = 0.0


def medians(times: dict[str, list[float]]) -> dict[str, Time]:
    """The medians of what was timed in turns, in seconds, for the next table."""
    found, group = {}, []
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        found[name] = Time(middle)
        found[name].spread = (high - low) / 2 / middle
        kind = "ours" if name.startswith(("lux", "`lux")) else "floor" if name.startswith("floor") else "peer"
        group.append({"name": name, "kind": kind, "seconds": middle, "quartiles": [low, high], "turns": len(values)})
    _timed.append(group)
    return found


def _turn(call: Callable[[], Any], inner: int, chained: bool) -> float:
    import jax

    jax.block_until_ready(call())
    start = time.perf_counter()
    for i in range(inner):
        out = call()
        if not chained or i == inner - 1:
            jax.block_until_ready(out)
    return (time.perf_counter() - start) / inner


def first_calls(makes: dict[str, Callable[[], Callable[[], Any]]], turns: int = 3) -> dict[str, Time]:
    """The median time, in seconds, of the first call of what each maker returns: tracing, compiling and running it.

    They take turns in one process, and JAX forgets all that it has traced and compiled before each.
    """
    import jax

    times: dict[str, list[float]] = {name: [] for name in makes}
    for _ in range(1 if QUICK else turns):
        for name, make in makes.items():
            call = make()
            jax.clear_caches()
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return medians(times)


Step = Callable[[Any, Any], tuple[Any, Any]]


def compare(
    makes: dict[str, Callable[[], tuple[Step, Any]]],
    batches: list[Any],
    name: str,
    *,
    turns: int = 3,
    seconds: float = 25.0,
) -> None:
    """Print the losses of some training steps, the time of a step and that of the first one, compiling included.

    Each maker returns a step `(carry, batch) -> (loss, carry)` and where to start. All steps are timed from the same
    weights, those of the start. The first entry is what the others are compared with. First steps of PyTorch, which
    remembers what it has compiled, are timed once.
    """
    rows, calls, once = [], {}, {}
    for which, make in makes.items():
        step, carry = make()
        calls[which] = lambda step=step, carry=carry: step(carry, batches[0])
        losses, start = [], time.perf_counter()
        for batch in batches:
            loss, carry = step(carry, batch)
            losses.append(f"{float(loss):.6f}")
            once.setdefault(which, time.perf_counter() - start)
        rows.append((which, *losses))
    table(("loss at step", *map(str, range(len(batches)))), rows)
    times = interleaved(calls, seconds=seconds, least=5)

    def first(make):
        step, carry = make()
        return lambda: step(carry, batches[0])

    ours = {which: functools.partial(first, make) for which, make in makes.items() if not which.startswith("torch")}
    firsts = once | first_calls(ours, turns)
    base = next(iter(times))
    print()
    ratios = {n: (times[base] / t, firsts[base] / firsts[n]) for n, t in times.items()}
    rows = [(n, t * 1e3, f"{t.spread:.0%}", ratios[n][0], firsts[n], ratios[n][1]) for n, t in times.items()]
    table(("step", "median (ms)", "spread", "published / this", "first step (s)", "published / this"), rows, name)
    print()


def values(parameters: list[Any]) -> list[Any]:
    """The values of PyTorch's parameters."""
    return [p.detach().clone() for p in parameters]


def load(parameters: list[Any], values: list[Any]) -> None:
    """Set PyTorch's parameters, in place."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data.copy_(value)


def markdown(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A table of numbers with three digits."""
    cells = [[_shown(x) for x in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _shown(x: Any) -> str:
    if not isinstance(x, float):
        return "" if x is None else str(x)
    text = f"{x:.3g}"
    return f"{float(text):.0f}" if "e+" in text and abs(x) < 1e7 else text


def _digits(x: Any) -> Any:
    """What is recorded of a number, and None in place of NaN."""
    if isinstance(x, dict):
        return {name: _digits(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [_digits(value) for value in x]
    if not isinstance(x, float):
        return x
    return float(f"{x:.4g}") if x == x else None


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]], name: str | None = None) -> None:
    """Print rows as a Markdown table, and record it under its name with what was timed since the last one."""
    rows = _digits(rows)
    print(markdown(head, rows), flush=True)
    if name:
        _tables.append({"name": name, "columns": head, "rows": rows, "timed": _digits(_timed)})
        _timed.clear()
        if path := os.environ.get("LUX_BENCH_RECORD"):
            text = json.dumps({**about(), "tables": _tables}, indent=1)
            text = re.sub(r"\n {5,}", " ", text)  # a row in a line
            Path(path).write_text(re.sub(r"\n {4}(?=[\]}])", "", text))


@functools.cache
def _commit() -> str:
    """That of what is measured, with a plus where something was changed since; empty outside of a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    asked = ["rev-parse", "--short=7", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "../lux_sciml"]
    try:
        commit, changed = (subprocess.run([*git, *x], capture_output=True, text=True, check=True).stdout for x in asked)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.strip() + "+" * bool(changed)


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    """The packages by what they are imported as: tensorflow comes from two."""
    return importlib.metadata.packages_distributions()


def about() -> dict[str, Any]:
    """What is measured on, and with which of the libraries that are loaded."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = f"{platform.system()} {platform.release()}"
    packages = _packages()
    used = [package for name in LIBRARIES if name in sys.modules for package in packages.get(name, ())]
    versions = {package: importlib.metadata.version(package) for package in used}
    return {
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": model or platform.processor(),
            "cores": os.cpu_count(),
            "system": system,
            "load": round(_LOAD, 1),
        },
        "versions": {"python": platform.python_version(), **versions},
        "seconds": round(time.time() - _START),
    }


def machine() -> None:
    """Print what the measurements were made on."""
    import jax

    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
