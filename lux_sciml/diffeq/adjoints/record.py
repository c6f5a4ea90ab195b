"""The record of a solve's steps, for its backward pass."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

_FEWEST, _MOST = 32, 256  # states that are held
_MEMORY = 2**20  # bytes of those of one sample, beyond the fewest: all of them are written to before any step is made


@jax.custom_batching.custom_vmap
def any_sample(x: jax.Array) -> jax.Array:
    """Whether `x` holds, in any sample of the batches around the call: one answer for all of them."""
    return jnp.any(x)


@any_sample.def_vmap
def _(size, mapped, x):
    return any_sample(x), False


class StepRecord(eqx.Module):
    """The times of all accepted steps, and the states before some of them.

    The state before every `stride`-th step is held, in a fixed number of slots: about half the square root of
    `max_steps`, more where states are small. When the slots are full, the stride doubles, and every other slot is free
    again. So no step is repeated on the way back as long as all states fit into the slots, each step once up to a
    quarter of `max_steps`, and beyond two and a half times at most, on the average.

    Samples of a batch are recorded together: a step is counted when any of them accepts it, and all but `ends`,
    `states`, `previous` and `last` are one for the batch. With a stride of one, each sample goes back over the steps
    that it has accepted itself.

    * `ends`: the time at which each step ended, `(max_steps,)`.
    * `states`: the pairs of a state and its solver's state before a step, one in each slot.
    * `held`: the step whose state is in each slot; -1 for a free one.
    * `previous`: the step that the sample accepted before that one.
    * `last`: the last step that the sample accepted; -1 before the first.
    * `count`: the number of steps.
    """

    ends: jax.Array
    states: Any
    held: jax.Array
    previous: jax.Array
    last: jax.Array
    stride: jax.Array
    count: jax.Array

    @classmethod
    def start(cls, state: Any, max_steps: int, slots: int | None = None) -> "StepRecord":
        """An empty record, for steps from diffrax's loop state `state`; of so many slots, or as many as are good."""
        slots = min(slots or _slots((state.y, state.solver_state), max_steps), max_steps + max_steps % 2)
        return cls(
            ends=jnp.zeros(max_steps, state.tprev.dtype),
            states=_room((state.y, state.solver_state), slots),
            held=jnp.full(slots, -1, jnp.int32),
            previous=jnp.zeros(slots, jnp.int32),
            last=jnp.array(-1, jnp.int32),
            stride=jnp.array(1, jnp.int32),
            count=jnp.array(0, jnp.int32),
        )

    def add(self, old: Any, new: Any) -> "StepRecord":
        """The record with the step between two states of the loop, if it was accepted."""
        mine = new.num_accepted_steps > old.num_accepted_steps
        accepted = any_sample(mine)
        full = accepted & (self.count == len(self.held) * self.stride)
        stride = jnp.where(full, 2 * self.stride, self.stride)
        slot = jnp.argmax((self.held < 0) | (self.held % stride != 0))
        due = accepted & (self.count % stride == 0)

        def write(xs, x, index, where):
            return lax.dynamic_update_index_in_dim(xs, jnp.where(where, x, _at(xs, index)), index, 0)

        states = jax.tree.map(lambda xs, x: write(xs, x, slot, due), self.states, (old.y, old.solver_state))
        return StepRecord(
            ends=write(self.ends, new.tprev, self.count, accepted),
            states=states,
            held=write(self.held, self.count, slot, due),
            previous=write(self.previous, self.last, slot, due & (stride == 1)),
            last=jnp.where(mine, self.count, self.last),
            stride=stride,
            count=jnp.where(accepted, self.count + 1, self.count),
        )

    # --- on the way back, step `i` after step `i` ------------------------------------------------------------------

    def end(self) -> jax.Array:
        """The last step."""
        return jnp.where(self.stride == 1, self.last, self.count - 1)

    def before(self, i: jax.Array) -> jax.Array:
        """The step before step `i`; negative where there is none."""
        return jnp.where(self.stride == 1, _at(self.previous, i), i - 1)  # with stride 1, slot i is that of step i

    def span(self, i: jax.Array, begin: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The times of step `i`, of a solve from `begin`: one time twice for a sample that did not accept it."""
        return jnp.where(i == 0, begin, _at(self.ends, i - 1)), _at(self.ends, i)

    def held_at(self, i: jax.Array, state: Any) -> Any:
        """The state that is held before step `i`, if there is one, else the given state."""
        place = self.held == i
        found = jax.tree.map(lambda xs: _at(xs, jnp.argmax(place)), self.states)
        return jax.tree.map(lambda new, old: jnp.where(jnp.any(place), new, old), found, state)

    def scratch(self) -> Any:
        """Room for the states between two that are held, or for some of them; `None` where all states have slots."""
        slots, max_steps = len(self.held), len(self.ends)
        if max_steps <= slots:
            return None
        stride = 2 ** math.ceil(math.log2(max_steps / slots))
        return _room(jax.tree.map(lambda x: x[0], self.states), min(stride, slots))

    def state(self, i: jax.Array, begin: jax.Array, scratch: Any, advance: Callable[..., Any]) -> tuple[Any, Any]:
        """The state before step `i`, and the scratch with those before it, of a solve from `begin`.

        At the last step of each stride, those before it are repeated by `advance(y, solver_state, t0, t1)`, from the
        state that is held, and kept in the scratch for the others: as many as there is room for, the last ones first.
        """
        i = jnp.maximum(i, 0)  # a sample without steps left
        first = (i // self.stride) * self.stride
        held = jax.tree.map(lambda xs: _at(xs, jnp.argmax(self.held == first)), self.states)
        if scratch is None:
            return held, None
        room = len(jax.tree.leaves(scratch)[0])
        kept = first + (i - first) // room * room  # the first step whose state comes into the scratch
        fresh = (i == self.count - 1) | (i % self.stride == self.stride - 1) | (i - kept == room - 1)
        start = jax.tree.map(lambda a, b: jnp.where(fresh, a, _at(b, i - kept)), held, scratch)

        def forward(carry):
            p, state, scratch = carry
            place = jnp.maximum(p - kept, 0)
            scratch = jax.tree.map(lambda xs, x: lax.dynamic_update_index_in_dim(xs, x, place, 0), scratch, state)
            t0, t1 = self.span(p, begin)
            new = advance(*state, t0, t1)
            return p + 1, jax.tree.map(lambda new, old: jnp.where(t1 > t0, new, old), new, state), scratch

        last = jnp.where(fresh, i, first)  # the same for all samples, where the stride is above one
        _, state, scratch = lax.while_loop(lambda carry: any_sample(carry[0] < last), forward, (first, start, scratch))
        return state, scratch


def _slots(state: Any, max_steps: int) -> int:
    """How many states are held."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    known = isinstance(size, int) and size > 0  # `jax.export` has sizes that are no integers
    many = 2 ** int(math.log2(max(_MEMORY / size, 1))) if known else 1
    return max(_FEWEST, min(_MOST, many), 2 ** math.ceil(math.log2(max_steps) / 2) // 2)


def _room(tree: Any, n: int) -> Any:
    """Room for as many; what stands in it differs for each array, or XLA would fill one and copy it."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), tree)


def _at(xs: jax.Array, i: jax.Array) -> jax.Array:
    i = jnp.clip(i, 0, len(xs) - 1)
    return lax.dynamic_index_in_dim(xs, i, keepdims=False)
