"""Objective: a loss as SciPy calls it, always float64 and always finite, and the best point that it was called at."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import convergence

VALUE, GRADIENT, PRODUCTS, HESSIAN = "value", "gradient", "Hessian-vector products", "Hessian"
FEASIBLE = 1e-6  # violations of constraints below it do not count


class Objective:
    """What SciPy calls. Values and gradients are float64 and finite, and the best point is kept.

    SciPy's line searches do not survive inf: L-BFGS-B returns the start with `success=True`. Where the loss or its
    gradient is not finite they see a barrier.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        kind: str,
        bounds: Any,
        start: np.ndarray,
        violation: Callable[[np.ndarray], float] | None = None,
    ):
        self.function, self.kind, self.bounds, self.violation = function, kind, bounds, violation
        self.excess = np.inf  # by how much the best point violates the constraints, beyond the tolerance
        self.evaluations = self.failures = 0
        self.best, self.value = self.inside(start), np.inf
        self.gradient = np.zeros(0)  # there; empty for methods of values alone
        self.found = False  # whether anything was finite
        self.highest = -np.inf
        self.recent: dict[bytes, tuple[float, np.ndarray]] = {}  # the evaluations of this step

    def __call__(self, x: np.ndarray) -> Any:
        value, gradient = self.evaluate(x)
        if not np.isfinite(value):
            self.failures += 1
            value, gradient = barrier(x, self.best, self.highest, self.gradient)
        return value if self.kind == VALUE else (value, gradient)

    def evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; a value of inf where one of them is not finite. Never outside of the bounds."""
        x = self.inside(x)
        key = x.tobytes()
        if key not in self.recent:
            self.recent[key] = self._evaluate(x)
        return self.recent[key]

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.evaluations += 1
        value, gradient = self.function(x)
        value, gradient = float(value), np.asarray(gradient).astype(np.float64)
        if self.evaluations == 1:  # of the start, which is returned where nothing is found
            self.value = value
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return np.inf, gradient
        self.highest = max(self.highest, value)
        excess = self.excess_at(x)
        if not self.found or (excess, value) < (self.excess, self.value):
            self.best, self.value, self.gradient, self.excess = x.copy(), value, gradient, excess
        self.found = True
        return value, gradient

    def excess_at(self, x: np.ndarray) -> float:
        return 0.0 if self.violation is None else max(self.violation(x) - FEASIBLE, 0.0)

    def take(self, points: np.ndarray, values: np.ndarray) -> None:
        """Points that were evaluated elsewhere."""
        self.evaluations += len(points)
        for i in np.argsort(values)[: 1 if self.violation is None else None]:
            if not np.isfinite(values[i]):
                break
            excess = self.excess_at(points[i])
            if not self.found or (excess, values[i]) < (self.excess, self.value):
                self.best, self.value, self.excess = points[i].copy(), float(values[i]), excess
            self.found = True

    def inside(self, x: np.ndarray) -> np.ndarray:
        """The nearest point within the bounds: some methods step outside on their way, or by rounding."""
        return x if self.bounds is None else np.clip(x, *self.bounds)

    def begin_step(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """The point where a step ended and its value, or the best ones: SLSQP also tells of points that it rejects."""
        x = self.inside(x).copy()
        key = x.tobytes()
        self.recent = {key: self.recent[key]} if key in self.recent else {}
        value = self.recent[key][0] if self.recent else np.inf
        return (x, value) if np.isfinite(value) else (self.best, self.value)

    def keep(self, x: np.ndarray) -> None:
        """Take a point for the best one."""
        self.best = self.inside(x).copy()
        self.value, self.gradient = self.evaluate(x)
        self.excess = self.excess_at(self.best)

    def doubt(self, dtype: np.dtype, tol: float) -> str:
        """Why the best point is no minimum, or nothing."""
        best = self.best, self.value, self.gradient

        def loss(x: np.ndarray) -> float:
            return self.evaluate(x)[0]

        if self.kind == VALUE:
            fall = convergence.fall(self.best, self.value, loss, self.inside, dtype)
            doubt = f"a small step lowers the loss by {fall:.1g} of it" if fall > max(convergence.FALL, tol) else ""
        else:
            slope = convergence.steepness(*best, loss, self.inside, dtype, tol)
            doubt = f"the gradient, {slope:.1g} relative to the loss, is not small" if slope else ""
        self.best, self.value, self.gradient = best  # which looking around may have moved
        return doubt


def barrier(x: np.ndarray, best: np.ndarray, highest: float, gradient: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and gradient of a cone above every value so far that slopes back to the best point, where `gradient` is."""
    difference = x - best
    distance = float(np.linalg.norm(difference))
    steepness = max(float(np.linalg.norm(gradient)), 1.0)
    value = highest + 1.0 + abs(highest) + steepness * distance
    return min(value, float(np.finfo(float).max)), steepness * difference / max(distance, np.finfo(float).tiny)
