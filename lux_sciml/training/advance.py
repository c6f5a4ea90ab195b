"""The compiled programs of a run: some steps on resident data, one step on a batch, an evaluation."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._compat import has_convolutions
from .._tree import where
from ..core import testmode
from ..core.reads import reading, reads
from ..optimize.problem import called
from ..optimize.programs import context_of, inside
from .batches import Padded
from .step import Stats, objective_of, one_step


class Programs:
    """The programs of one objective, for a state or for an ensemble of states along a first axis.

    Members of an ensemble for which `active` is false stay as they are. `Programs.of` takes those of an earlier run,
    compiled as they are, where all that the objective and the metrics read is known and as it was, and so is what is
    known of the functions `beside` them, in the model and the optimizer; else JAX traces anew what these read, also in
    functions that it has traced before.
    """

    @classmethod
    def of(
        cls, objective: Any, metrics: Mapping[str, Callable[..., Any]], beside: tuple[Any, ...], *options: Any
    ) -> "Programs":
        found, known = reads(objective, dict(metrics)), reading(beside)
        context = (context_of(found), known)
        context = None if context == (None, None) else context
        if not found.known:
            return cls(objective, metrics, context, *options)
        key = (found, known, options)
        with _lock:
            programs = _kept.pop(key, None) or cls(objective, metrics, context, *options)
            _kept[key] = programs
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
        return programs

    def __init__(
        self,
        objective: Any,
        metrics: Mapping[str, Callable[..., Any]],
        context: object,
        accumulate: int,
        nonfinite: str,
        ensemble: bool,
        padded: bool,
    ):
        self._context = context
        step = one_step(objective, accumulate, nonfinite)
        if ensemble:
            step = functools.partial(_of_members, jax.vmap(functools.partial(_if_active, step), in_axes=(0, 0, None)))
        else:
            step = functools.partial(_without_members, step)
        self.chunk = self._inside(jax.jit(functools.partial(_chunk, step, padded), donate_argnums=0))
        self.single = self._inside(jax.jit(step, donate_argnums=0))
        self._step, self._looped = step, {}
        evaluate = functools.partial(_evaluate, objective, dict(metrics))
        if ensemble:
            evaluate = functools.partial(_values_of_members, jax.vmap(evaluate, in_axes=(0, None)))
        self.evaluate = self._inside(jax.jit(evaluate))

    def _inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def within(*arguments: Any) -> Any:
            with inside(self._context):
                return function(*arguments)

        return within

    def belongs_in_a_loop(self, *arguments: Any) -> bool:
        """Whether many steps with such a state, activity and batch should be one program."""
        leaves, structure = jax.tree.flatten(arguments)
        on_cpu = any(device.platform == "cpu" for x in leaves if isinstance(x, jax.Array) for device in x.devices())
        kind = (on_cpu, structure, tuple(map(jax.typeof, leaves)))
        if kind not in self._looped:
            self._looped[kind] = not (on_cpu and has_convolutions(self._inside(jax.make_jaxpr(self._step))(*arguments)))
        return self._looped[kind]


KEPT = 16  # objectives whose programs are kept
_lock = threading.Lock()
_kept: "OrderedDict[Hashable, Programs]" = OrderedDict()


def _evaluate(objective: Any, metrics: Mapping[str, Callable[..., Any]], state: Any, batch: Any) -> Stats:
    """The objective's loss and stats and the metrics on a batch, of the learned parameters in test mode."""
    place = state.placement
    batch = place.split(batch, required=False)
    with place.tracing():
        here = state.replace(ps=place.whole(state.learned), st=testmode(state.st))
        model, ps, st, batch, (loss, _, stats) = objective_of(objective, here, batch)
        if "step" in stats:
            raise ValueError("the history has a `validation_step` already: give the stats `step` another name")
        names = ("model", "ps", "st", "batch")
        measured = {name: called(f"metric {name}", f, names, model, ps, st, batch) for name, f in metrics.items()}
        found = {"loss": loss, **stats, **{name: jnp.asarray(x) for name, x in measured.items()}}
    return place.kept(state, found)[1]


def _without_members(step: Callable[..., Any], state: Any, active: Any, batch: Any) -> tuple[Any, Stats]:
    return step(state, batch)


def _of_members(step: Callable[..., Any], state: Any, active: Any, batch: Any) -> tuple[Any, Stats]:
    return state.placement.kept(*step(state, active, batch))


def _values_of_members(evaluate: Callable[..., Any], state: Any, batch: Any) -> Stats:
    return state.placement.kept(state, evaluate(state, batch))[1]


def _if_active(step: Callable[..., Any], state: Any, active: Any, batch: Any) -> tuple[Any, Stats]:
    after, stats = step(state, batch)
    return where(active, after, state), stats


def _chunk(
    step: Callable[..., Any], padded: bool, state: Any, active: Any, data: Any, rows: Any, sizes: Any, count: Any
) -> tuple[Any, Stats]:
    """`count` steps on the samples `rows` `(most, batch_size)` of the data, or, `(most, 0)`, on all.

    Also the stats of each, `(most, ...)`.
    """

    def batch(i: Any) -> Any:
        whole = rows.shape[1] == 0
        here = data if whole else jax.tree.map(lambda x: x.at[rows[i]].get(mode="promise_in_bounds"), data)
        return Padded(here, jnp.arange(len(jax.tree.leaves(here)[0])) < sizes[i]) if padded else here

    def body(i: Any, carry: Any) -> Any:
        state, kept = carry
        state, stats = step(state, active, batch(i))
        return state, {name: kept[name].at[i].set(x) for name, x in stats.items()}

    _, shapes = jax.eval_shape(step, state, active, jax.eval_shape(batch, 0))
    kept = {name: jnp.zeros((rows.shape[0], *x.shape), x.dtype) for name, x in shapes.items()}
    return jax.lax.fori_loop(0, count, body, (state, kept))
