"""Record: how far a run has come, kept where an interrupt finds it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm


class Finished(Exception):
    """Raised to end a run from inside a callback or a function that a method calls."""

    def __init__(self, success: bool, message: str):
        super().__init__(message)
        self.success, self.message = success, message


class Record:
    """The parameters to return if the run ended now, and the numbers that describe the run."""

    def __init__(self, params: Any, max_steps: int, callback: Callable | None, progress: bool):
        self.params, self.value = params, np.inf
        self.steps, self.evaluations = 0, 0
        self.history: list[float] = []
        self.max_steps = max_steps
        self._callback = callback
        self._bar = tqdm(total=max_steps, desc="minimize", unit="step", disable=not progress)

    def report(self, steps: int, params: Any, value: float) -> None:
        """Show and tell the user where the run is. Raises `Finished` where the callback returns True."""
        self.steps = steps
        self._bar.set_postfix(value=f"{value:.4g}", refresh=False)
        self._bar.update(steps - self._bar.n)
        if self._callback is not None and self._callback(steps, params, value) is True:
            raise Finished(True, f"stopped by the callback after {steps} steps")

    def close(self) -> None:
        self._bar.close()


NOT_FINITE_AT_START = (
    "the loss or its gradient is not finite at the start: check the model and the data there, or start elsewhere"
)
