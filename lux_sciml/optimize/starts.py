"""Several runs of one fit: where they start, how they run at once, and the table of their results."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components import ComponentVector, Layout
from ..components.printing import in_columns
from .chunks import in_chunks
from .fitted_parameters import FittedParameters, text_of
from .progress import Progress, to_its_end


class Runs(tuple[Any, ...]):
    """The results of several runs, printed as a table; `best` is the one with the lowest finite value."""

    __slots__ = ()

    @property
    def best(self) -> Any:
        return min(self, key=lambda run: run.value if np.isfinite(run.value) else np.inf)

    def __repr__(self) -> str:
        rows = [("run", "value", "success", "steps", "message")]
        rows += [
            (str(i), f"{run.value:.6g}", str(run.success), str(run.steps), run.message) for i, run in enumerate(self)
        ]
        return "\n".join(in_columns(rows))


def starting_points(
    starts: Any, ps: Any, problem: FittedParameters, bounds: tuple[np.ndarray, np.ndarray] | None
) -> list[Any]:
    """Parameters like `ps` to start from, each checked.

    A number n means `ps` and n - 1 Sobol points within the bounds of what is fitted. A list of parameters or a batch
    `(k, n)` of vectors comes after `ps`; of these the fitted components count.
    """
    if isinstance(starts, int | np.integer) and not isinstance(starts, bool):
        return [ps, *_within(bounds, int(starts), ps, problem)]
    if not isinstance(starts, list | tuple):
        if jnp.ndim(starts) != 2:
            raise TypeError(
                f"starts are a number, a list of parameters, or a batch (k, {problem.whole.size}), got "
                f"{text_of(starts)}"
            )
        rows = starts if isinstance(starts, ComponentVector) else ComponentVector(jnp.asarray(starts), problem.whole)
        starts = [ComponentVector(row, rows.layout) for row in rows.data]
        starts = starts if problem.named else [start.tree() for start in starts]
    for i, start in enumerate(starts):
        try:
            problem.whole.require_same(Layout.of(start))
        except (TypeError, ValueError) as error:
            raise type(error)(f"starts[{i}] is not like the parameters: {error}") from None
    if problem.part is not None:
        starts = [problem.part.join(problem.part.take(start), ps) for start in starts]
    return [ps, *starts]


def _within(bounds: tuple[np.ndarray, np.ndarray] | None, n: int, ps: Any, problem: FittedParameters) -> list[Any]:
    """Sobol points, the first of which is the middle."""
    from scipy.stats import qmc

    if n < 1:
        raise ValueError(f"starts: expected one at least, got {n}")
    if bounds is None or not np.isfinite(bounds).all():
        open_ended = problem.layout.label(int(np.argmin(np.isfinite(bounds).all(0)))) if bounds is not None else ""
        missing = f", and `{open_ended}` has none" if open_ended else ""
        raise ValueError(
            f"starts={n} draws them within finite bounds{missing}: pass `bounds=(lower, upper)`, or the starts "
            "themselves, as jax.vmap(lambda key: lux.setup(key, model)[0])(jax.random.split(key, n))"
        )
    lower, upper = bounds
    unit = qmc.Sobol(lower.size, scramble=False).random_base2((n - 1).bit_length())[1:n]  # after the corner at zero
    points = [problem.unravel(jnp.asarray(lower + x * (upper - lower))) for x in unit]
    return points if problem.part is None else [problem.part.join(point, ps) for point in points]


def stacked(trees: list[Any]) -> Any:
    """Trees of arrays as one, each array with an axis more in front."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def together(
    advance: Callable[[Any, int], tuple[Any, Any, Any]],
    carry: Any,
    records: list[Progress],
    total: int,
    take: Callable[[Any, Progress, np.ndarray], None],
    first: int,
) -> list[Any]:
    """Advance a stacked carry by `total` steps; `take(carry, record, values)` takes those of a start. The carries.

    Callback and bar are those of the first record, and are given the best start. `first` is the first step's number.
    """
    counts: Any = None

    def all_at_once(carry, limit):
        nonlocal counts
        carry, counts, values = advance(carry, limit)
        return carry, np.max(counts), np.asarray(values).T

    carries = _each(carry, len(records))
    done = 0
    for later, values in in_chunks(all_at_once, carry, total, records[0].every, first=first):
        carries = _each(later, len(records))
        for i, (one, record) in enumerate(zip(carries, records, strict=True)):
            take(one, record, values[: int(counts[i]), i])
        done += len(values)
        best = min(records, key=lambda record: record.value if np.isfinite(record.value) else np.inf)
        records[0].tell(done + first - 1, best.params, best.value)
    return carries


def one_by_one(run: Callable[..., Any], starts: list[Any], records: list[Progress]) -> list[tuple[bool, str]]:
    """The outcomes of `run(params=, progress=)` from each start; none more runs where one was stopped."""
    outcomes: list[tuple[bool, str]] = []
    for i, (params, record) in enumerate(zip(starts, records, strict=True)):
        if any(earlier.stopped for earlier in records[:i]):
            outcomes.append((False, "not run: stopped before"))
            continue
        outcomes.append(to_its_end(lambda params=params, record=record: run(params=params, progress=record), record))
    return outcomes


def to_their_ends(run: Callable[[], list[tuple[bool, str]]], records: list[Progress]) -> list[tuple[bool, str]]:
    """The outcomes of all starts that run at once, however they end."""
    outcomes: list[tuple[bool, str]] = []

    def all_of_them():
        outcomes.extend(run())
        return outcomes[0]

    ended = to_its_end(all_of_them, records[0])
    for record in records[1:]:
        record.stopped = records[0].stopped
    return outcomes or [ended] * len(records)


@functools.partial(jax.jit, static_argnums=1)
def _each(carry: Any, n: int) -> list[Any]:
    """The carries of n starts; as one program, where slices one by one would be one for each index and shape."""
    return [jax.tree.map(lambda x, i=i: x[i], carry) for i in range(n)]
