"""Validation: the loss, the stats and the metrics on data that are not trained on."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from .._tree import describe
from .batches import Padded, as_arrays, is_arrays, samples
from .placement import Placement


class Validation:
    """The means over all samples of what `evaluate(state, batch)` returns, a dict of numbers."""

    def __init__(self, data: Any, batch_size: int | None, padded: bool, evaluate: Callable[..., Any], place: Placement):
        data = as_arrays(data)
        self.data, self.padded, self.evaluate, self.place = data, padded, evaluate, place
        self.arrays = is_arrays(data)
        if self.arrays:
            self.n = samples(data)
            if not self.n:
                raise ValueError(f"the validation has no samples, got {describe(data)}")
            self.batch_size = self.n if batch_size is None else batch_size
            self.data = place.everywhere(data) if place.processes > 1 else data
        elif not hasattr(data, "__iter__") or iter(data) is data:
            raise TypeError(
                "validation is arrays, or an iterable that yields the same batches each time it is iterated, got "
                f"{describe(data)}"
            )

    def __call__(self, state: Any) -> dict[str, np.ndarray]:
        found = [(self.evaluate(state, batch), n) for batch, n in self._batches()]
        if not found:
            raise ValueError("the validation has no batches")
        total = sum(n for _, n in found)
        sums = [{name: np.asarray(x, np.float64) * n for name, x in values.items()} for values, n in found]
        return {f"validation_{name}": np.asarray(sum(values[name] for values in sums) / total) for name in sums[0]}

    def _batches(self) -> Iterator[tuple[Any, int]]:
        if not self.arrays:
            for batch in self._of_all_processes():
                yield self._as_trained(batch, samples(batch))
            return
        for start in range(0, self.n, self.batch_size):
            batch = jax.tree.map(lambda x, start=start: x[start : start + self.batch_size], self.data)
            yield self._as_trained(batch, samples(batch))

    def _of_all_processes(self) -> Iterator[Any]:
        batches = iter(self.data)
        while (batch := self.place.joined(jax.tree.map(np.asarray, next(batches, None)))) is not None:
            yield batch

    def _as_trained(self, batch: Any, n: int) -> tuple[Any, int]:
        return (Padded(batch, np.ones(n, bool)) if self.padded else batch), n
