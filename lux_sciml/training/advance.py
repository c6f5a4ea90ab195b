"""The compiled programs of a run: some steps on resident data, one step on a batch, an evaluation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._tree import where
from ..core import testmode
from .batches import Padded
from .state import TrainState
from .step import Stats, objective_of, one_step


class Programs:
    """The programs of one objective, for a state or for an ensemble of states along a first axis.

    Members of an ensemble for which `active` is false stay as they are.
    """

    def __init__(self, objective: Any, accumulate: int, nonfinite: str, ensemble: bool, padded: bool):
        step = one_step(objective, accumulate, nonfinite)
        if ensemble:
            step = jax.vmap(functools.partial(_if_active, step), in_axes=(0, 0, None))
        else:
            step = functools.partial(_without_members, step)
        self.chunk = jax.jit(functools.partial(_chunk, step, padded), donate_argnums=0)
        self.single = jax.jit(step, donate_argnums=0)
        self._objective, self._ensemble = objective, ensemble

    def evaluation(self, metrics: Mapping[str, Callable[..., Any]]) -> Callable[[TrainState, Any], Stats]:
        """The objective's loss and stats and the metrics on a batch, of the learned parameters in test mode."""

        def evaluate(state: Any, batch: Any) -> Stats:
            state = state.replace(ps=state.learned, st=testmode(state.st))
            model, ps, st, batch, evaluated = objective_of(self._objective, state, batch)
            loss, _, stats = evaluated
            found = {name: jnp.asarray(metric(model, ps, st, batch)) for name, metric in metrics.items()}
            return {"loss": loss, **stats, **found}

        return jax.jit(jax.vmap(evaluate, in_axes=(0, None)) if self._ensemble else evaluate)


def _without_members(step: Callable[..., Any], state: Any, active: Any, batch: Any) -> tuple[Any, Stats]:
    return step(state, batch)


def _if_active(step: Callable[..., Any], state: Any, active: Any, batch: Any) -> tuple[Any, Stats]:
    after, stats = step(state, batch)
    return where(active, after, state), stats


def _chunk(
    step: Callable[..., Any], padded: bool, state: Any, active: Any, data: Any, rows: Any, sizes: Any, count: Any
) -> tuple[Any, Stats]:
    """`count` steps on the samples `rows` `(most, batch_size)` of the data; the stats of each, `(most, ...)`."""

    def batch(i: Any) -> Any:
        here = jax.tree.map(lambda x: x.at[rows[i]].get(mode="promise_in_bounds"), data)
        return Padded(here, jnp.arange(rows.shape[1]) < sizes[i]) if padded else here

    def body(i: Any, carry: Any) -> Any:
        state, kept = carry
        state, stats = step(state, active, batch(i))
        return state, {name: kept[name].at[i].set(x) for name, x in stats.items()}

    _, shapes = jax.eval_shape(step, state, active, jax.eval_shape(batch, 0))
    kept = {name: jnp.zeros((rows.shape[0], *x.shape), x.dtype) for name, x in shapes.items()}
    return jax.lax.fori_loop(0, count, body, (state, kept))
