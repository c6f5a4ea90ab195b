"""Methods in turn: each begins where the one before ended."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .starts import Runs


def in_turn(
    fit: Callable[..., Any],
    methods: Sequence[Any],
    max_steps: Sequence[int],
    ps: Any,
    *,
    state: Any,
    callback: Callable[[int, Any, float], Any] | None,
    max_seconds: float | None,
) -> Any:
    """The result of all methods together, `runs` being those of each.

    `fit(ps, method=, max_steps=, state=, callback=, max_seconds=)` runs one. The callback is given the steps of all;
    where it, Ctrl-C or the time stops one method, no other begins. Success and message are the last one's.
    """
    ends = None if max_seconds is None else time.monotonic() + max_seconds
    runs: list[Any] = []
    for method, steps in zip(methods, max_steps, strict=True):
        before = sum(run.steps for run in runs)
        seconds = None if ends is None else max(ends - time.monotonic(), 0.0)
        told = callback if not before or callback is None else _shifted(callback, before)
        run = fit(ps, method=method, max_steps=steps, state=state, callback=told, max_seconds=seconds)
        runs.append(run)
        ps, state = run.params, run.state
        if run.stopped:
            break
    last = runs[-1]
    message = last.message
    if len(methods) > 1:
        message = f"method {len(runs)} of {len(methods)}: {message}"
    return dataclasses.replace(
        last,
        message=message,
        steps=sum(run.steps for run in runs),
        evaluations=sum(run.evaluations for run in runs),
        history=np.concatenate([runs[0].history, *(run.history[1:] for run in runs[1:])]),
        runs=Runs(runs),
        memory=None,
    )


def _shifted(callback: Callable[[int, Any, float], Any], steps: int) -> Callable[[int, Any, float], Any]:
    return lambda step, ps, value: callback(step + steps, ps, value)
