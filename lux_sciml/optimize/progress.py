"""Progress: how far a run has come, kept where an interrupt finds it, shown, and told to the user."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .problem import called

SECONDS = 10.0  # between two lines of a log


class Finished(Exception):
    """Raised to end a run from inside a callback or a function that a method calls."""

    def __init__(self, success: bool, message: str):
        super().__init__(message)
        self.success, self.message = success, message


class Patience:
    """Ends a run, by `Finished`, after so many steps in a row without a lower loss; `None` has no end."""

    def __init__(self, steps: int | None):
        self.steps, self.lowest, self.since = steps, np.inf, 0

    def see(self, value: float) -> None:
        """The loss after a step."""
        self.lowest, self.since = (value, 0) if value < self.lowest else (self.lowest, self.since + 1)
        if self.steps is not None and self.since >= self.steps:
            raise Finished(True, f"ended: no lower loss in patience={self.steps} steps")


class Progress:
    """What to return if the run ended now, and the numbers that describe the run.

    `params()` makes the parameters, which nobody reads in most steps.
    """

    def __init__(
        self,
        params: Callable[[], Any],
        state: Any,
        max_steps: int,
        callback: Callable | None,
        every: int | None,
        show: bool,
        name: str = "minimize",
        seconds: float | None = None,
    ):
        self.params, self.value = params, np.inf
        self.state = self.before = state  # what the loss returned there, and what it was given
        self.steps, self.evaluations = 0, 0
        self.memory: Any = None  # what a method knows, to go on from here
        self.stopped = False  # by the callback, by Ctrl-C or by the time
        self.uses_all = False  # the method has no criterion of convergence: its steps and seconds are to be used up
        self.seconds, self._start = seconds, time.monotonic()
        self.history: list[float] = []
        self.max_steps = max_steps
        self.every = every if callback is not None else None  # steps between two calls of the callback
        self._callback = callback
        self._display = display(name, max_steps) if show else None

    def report(self, steps: int, params: Callable[[], Any], value: float) -> None:
        """Show and tell the user where the run is. Raises `Finished` where the callback returns True, or time is up."""
        self.steps = steps
        self.tell(steps, params, value)

    def tell(self, steps: int, params: Callable[[], Any], value: float) -> None:
        if self._display is not None:
            self._display.set_postfix(value=f"{value:.4g}", refresh=False)
            self._display.update(steps - self._display.n)
        self.check_time()
        if self._callback is None or (self.every is not None and steps % self.every):
            return
        answer = called("callback", self._callback, ("step", "ps", "value"), steps, params(), value)
        if is_true(answer):
            self.stopped = True
            raise Finished(True, f"stopped by the callback after {steps} steps")

    def check_time(self) -> None:
        if self.seconds is not None and time.monotonic() - self._start >= self.seconds:
            self.stopped = True
            fell = bool(self.history) and self.value < self.history[0]
            raise Finished(self.uses_all and fell, f"max_seconds={self.seconds:g} were over after {self.steps} steps")

    def close(self) -> None:
        if self._display is not None:
            self._display.close()


def to_its_end(run: Callable[[], tuple[bool, str]], progress: Progress) -> tuple[bool, str]:
    """Success and message of a run, however it ends."""
    try:
        return run()
    except Finished as finished:
        return finished.success, finished.message
    except KeyboardInterrupt:
        progress.stopped = True
        return False, f"interrupted after {progress.steps} steps"
    finally:
        progress.close()


def is_true(answer: Any) -> bool:
    """What a callback answered. Raises `TypeError` for what is no truth value."""
    if answer is None or isinstance(answer, bool):
        return bool(answer)
    if isinstance(answer, np.bool_ | np.ndarray | jax.Array) and answer.dtype == bool and answer.size == 1:
        return bool(answer)
    what = f"an array of shape {answer.shape}" if hasattr(answer, "shape") else f"a {type(answer).__name__}"
    raise TypeError(f"the callback must return True, to stop, or False or None, to go on, got {what}")


def display(name: str, max_steps: int | None) -> Any:
    """A progress bar in a terminal or a notebook; lines elsewhere, as in a log."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        from tqdm import tqdm

        return tqdm(total=max_steps, desc=name, unit="step")
    return _Lines(name, max_steps)


class _Lines:
    """What `Progress` uses of tqdm's bar, as a line from time to time, and one at the end."""

    def __init__(self, name: str, total: int | None):
        self.name, self.n, self.postfix = name, 0, ""
        self.total = "" if total is None else f" of {total}"
        self.start = self.last = time.monotonic()

    def set_postfix(self, refresh: bool, **numbers: str) -> None:
        self.postfix = "".join(f", {name}={number}" for name, number in numbers.items())

    def update(self, steps: int) -> None:
        self.n += steps
        if time.monotonic() - self.last > SECONDS:
            self.write()

    def write(self) -> None:
        self.last = time.monotonic()
        seconds = self.last - self.start
        print(f"{self.name}: step {self.n}{self.total}, {seconds:.0f} s{self.postfix}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.write()


NOT_FINITE_RESAMPLED = "the residuals are not finite at the samples that `resample` returned"
NOT_FINITE_ANYWHERE = "the loss is not finite anywhere that was looked: check the model, the data and the bounds"
NOT_FINITE_AT_START = (
    "the loss or its gradient is not finite at the start: check the model and the data there, or start elsewhere"
)
