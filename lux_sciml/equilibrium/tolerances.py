"""When a residual counts as small."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax import Array

from .._tree import is_traced
from .precision import spacing, uniform

REDUCTION = 1e-2  # of the first residual, or of the first value: what a solve that goes far has to get below


class Tolerances(NamedTuple):
    """A residual `g` at `y` is small where it is at most `atol + rtol |y|`, in the `norm`."""

    rtol: float
    atol: float
    norm: Callable[[Any], Array] = optx.max_norm

    @classmethod
    def of(cls, solver: Any) -> "Tolerances":
        """Those of a solver. Raises `ValueError` where it has none."""
        if not (hasattr(solver, "rtol") and hasattr(solver, "atol")):
            raise ValueError(
                f"the solver {type(solver).__name__} has no tolerances `rtol` and `atol`, by which its result is judged"
            )
        return cls(solver.rtol, solver.atol, getattr(solver, "norm", optx.max_norm))

    def error(self, g: Any, y: Any) -> Array:
        """The residual in units of the tolerances."""
        rtol = attainable(self.rtol, spacing(y))
        g, y = uniform(g), uniform(y)
        return self.norm(jax.tree.map(lambda g, y: g / (self.atol + rtol * jnp.abs(y)), g, y))

    def size(self, tree: Any) -> Array:
        """The norm of a tree."""
        return self.norm(uniform(tree))

    def credible(self, first: Any, start: Any, last: Any, end: Any, rounding: float = 0.0) -> Array:
        """Whether a solve that ended at `end`, with the residual `last`, has got there by making it smaller.

        Where there is no solution iterates run away, and any residual gets small beside them, or is lost in their
        `rounding`. So where `end` is so far from `start` that its own size is what makes the residual small, it must
        have come down from the first one.
        """
        first, start, last, end = map(self.size, (first, start, last, end))
        limit = jnp.maximum(self.rtol * start, REDUCTION * first)
        return (self.rtol * end <= limit) | (jnp.maximum(last, rounding * end) <= self.atol + limit)


def require_tolerances(options: Any) -> None:
    """Raise `ValueError` for `rtol` and `atol` that are negative or NaN; traced ones are let through."""
    for name in ("rtol", "atol"):
        value = getattr(options, name)
        if not is_traced(value) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"tolerances are not negative, got {name}={value}")


def attainable(rtol: float, eps: float) -> float:
    """A relative tolerance that can be met: in half precision, four times the machine epsilon at least."""
    return max(rtol, 4 * eps) if eps > 1e-6 else rtol
