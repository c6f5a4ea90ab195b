"""When a run has learned what it can: early stopping, and the best parameters so far."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import where
from ..core.converters import checks_itself, count, number


@checks_itself
@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stop where what is watched has not become better for some validations.

    * `patience`: how many validations without an improvement are waited for;
    * `monitor`: a name of the validation, `"validation_loss"`, `"validation_accuracy"`;
    * `min_delta`: what counts as an improvement is better by more than this;
    * `higher`: whether higher values are better, as for an accuracy.

    Members of an ensemble stop one by one. Raises `ValueError` for a patience below 1 and a negative `min_delta`.

    >>> EarlyStopping(patience=5, monitor="validation_accuracy", higher=True).patience
    5
    """

    patience: int = 10
    monitor: str = "validation_loss"
    min_delta: float = 0.0
    higher: bool = False

    def __post_init__(self) -> None:
        count(self.patience)
        if not number(self.min_delta) >= 0:
            raise ValueError(f"min_delta is at least 0, got {self.min_delta}")


class Best(NamedTuple):
    """The parameters and the state with the best value of what is watched, its value, and the step."""

    ps: Any
    st: Any
    value: Any
    step: Any


class Watch:
    """The best point so far, and for how many validations there was no better one; of each member of an ensemble."""

    def __init__(self, rule: EarlyStopping | None, members: tuple[int, ...]):
        self.rule = rule or EarlyStopping()
        self.stops = rule is not None
        self.best: Best | None = None
        self.waited = np.zeros(members, np.int64)
        self.active = np.ones(members, bool)

    def see(self, state: Any, values: dict[str, np.ndarray], step: int) -> None:
        """Note a validation of a state."""
        value = self._watched(values)
        new = self._cost(value)
        old = np.full(value.shape, np.inf) if self.best is None else self._cost(self.best.value)
        better = (new < old) & self.active
        improved = (new < old - self.rule.min_delta) & self.active
        here = jax.tree.map(jnp.copy, (state.learned, state.st))
        if self.best is None:
            self.best = Best(*here, value=value, step=np.full(value.shape, step))
        elif better.any():
            kept = (self.best.ps, self.best.st)
            ps, st = jax.vmap(where)(jnp.asarray(better), here, kept) if value.ndim else here
            self.best = Best(ps, st, np.where(better, value, self.best.value), np.where(better, step, self.best.step))
        self.waited = np.where(improved, 0, self.waited + 1)
        if self.stops:
            self.active = self.active & (self.waited < self.rule.patience)

    def cost(self, values: dict[str, np.ndarray]) -> float:
        """Of a validation, of an ensemble that of the best member; lower is better."""
        return float(np.min(self._cost(self._watched(values))))

    def _watched(self, values: dict[str, np.ndarray]) -> np.ndarray:
        if self.rule.monitor not in values:
            raise ValueError(f"early stopping watches `{self.rule.monitor}`; there is {', '.join(map(repr, values))}")
        return np.asarray(values[self.rule.monitor], np.float64)

    def _cost(self, value: np.ndarray) -> np.ndarray:
        """What is watched, the lower the better, and what is NaN the worst."""
        return np.where(np.isnan(value), np.inf, -value if self.rule.higher else value)

    def place(self) -> dict[str, Any]:
        """What has been seen, as a tree for a file."""
        best = None if self.best is None else self.best._asdict()
        return {"best": best, "waited": self.waited}

    def go_to(self, place: dict[str, Any]) -> None:
        """Go on from what was seen."""
        self.best = None if place["best"] is None else Best(**place["best"])
        self.waited = place["waited"]
        self.active = self.waited < self.rule.patience if self.stops else np.ones_like(self.active)
