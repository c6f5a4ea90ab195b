"""Where a training state lies on a mesh: what its steps and runs ask."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from .._tree import is_inexact, is_random_key
from ..nn.stack import sharded_rows
from ..training.placement import cut
from .agreement import agreed, everyone_has, require_same_program
from .form import Form, Sharded
from .meshes import put


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A state on a mesh: `specs` are those of its arrays, `batch` the axes that divide the samples.

    With `forms` the parameters are stored in the first of them, those that are trained, where these are not all, in the
    second, and divided along `batch`. Members of an ensemble are divided along `members`, and batches are not.
    """

    mesh: Mesh
    how: str
    batch: tuple[str, ...]
    members: tuple[str, ...]
    specs: tuple[P, ...]
    forms: tuple[Form, ...] = ()

    @property
    def shards(self) -> int:
        """How many parts a batch is divided into."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch)

    @property
    def lanes(self) -> int:
        """Gradients of whole parameters are added up on each device by itself; those of rows are divided at once."""
        return 1 if self._by_row or self.how == "patterns" else self.shards

    @property
    def first(self) -> bool:
        return jax.process_index() == 0

    @property
    def processes(self) -> int:
        return jax.process_count()

    @property
    def _by_row(self) -> bool:
        return any(form.rows for form in self.forms)

    def _constrained(self, x: Any, *spec: Any) -> Any:
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*spec)))

    # --- in a step -------------------------------------------------------------------------------------------------

    def split(self, batch: Any, required: bool = True) -> Any:
        """The batch, divided along its first axes. Raises `ValueError` where devices do not divide it."""

        def divided(x: Any) -> Any:
            if jnp.ndim(x) == 0 or not self.batch:
                return self._constrained(x)
            if x.shape[0] % self.shards == 0:
                return self._constrained(x, self.batch)
            if not required:
                return x
            raise self._indivisible(x.shape[0])

        return jax.tree.map(divided, batch)

    def _indivisible(self, samples: int) -> ValueError:
        axes = ", ".join(f"{axis}={self.mesh.shape[axis]}" for axis in self.batch)
        return ValueError(
            f"a batch of {samples} samples cannot be divided equally among {self.shards} devices "
            f'(mesh axes {axes}): take a batch_size that is a multiple of {self.shards}, or last="pad" in fit'
        )

    def whole(self, ps: Any) -> Any:
        form = next((form for form in self.forms if form.is_stored(ps)), None)
        if form is None:
            return ps
        return form.whole(self._rest(ps, lambda x: self._constrained(self._constrained(x, self.batch))))

    def scattered(self, gradients: Any) -> Any:
        """Summed over devices as they are, and then divided: XLA would else divide each array, and gather it again."""
        if not self.forms:
            return gradients
        form = next((form for form in self.forms if form.is_whole(gradients)), self.forms[0])
        if form.rows:
            leaves = form.layout.collect(gradients)
            rows = [leaf.path in form.rows for leaf in form.layout.leaves]
            summed = [x if row else self._constrained(x) for x, row in zip(leaves, rows, strict=True)]
            gradients = form.layout.rebuild(form.layout.own(summed))
        else:
            gradients = jax.tree.map(self._constrained, gradients)
        stored = form.stored(gradients)
        stored = self._rest(stored, lambda x: self._constrained(x, self.batch))
        if form.rows:
            rows = {name: self._constrained(x, None, self.batch) for name, x in stored.rows.items()}
            stored = stored._replace(rows=rows)
        return stored

    def _rest(self, stored: Any, change: Callable[[Any], Any]) -> Any:
        if isinstance(stored, Sharded):
            return stored._replace(rest=jax.tree.map(change, stored.rest))
        return jax.tree.map(change, stored)

    def accumulated(self, over_parts: Callable[..., Any], trained: Any, st: Any, batch: Any, parts: int) -> Any:
        """Each device adds up the gradients of its own samples, so that they are summed over devices once, at the end.

        Random keys are others on each device, and statistics are averages over devices. Rows of stacks are divided in
        every part, as whole gradients would take the memory that sharding saves.
        """
        shards = self.shards
        if shards == 1:
            return over_parts(trained, st, cut(batch, parts))
        if self.lanes == 1:
            return over_parts(trained, st, jax.tree.map(lambda x: self._parts_of_all(x, parts), batch))

        def lane(i: jax.Array, batch: Any) -> Any:
            own = jax.tree.map(lambda x: jax.random.fold_in(x, i) if is_random_key(x) and not x.shape else x, st)
            gradients, after, value, stats = over_parts(trained, own, cut(batch, parts))
            after = jax.tree.map(_unless_kept, after, own, st)
            return gradients, after, value, stats

        samples = jax.tree.map(
            lambda x: self._constrained(jnp.reshape(x, (shards, -1, *x.shape[1:])), self.batch), batch
        )
        found = jax.vmap(lane, spmd_axis_name=self.batch)(jnp.arange(shards), samples)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0) if is_inexact(x) else x[0], found)

    def _parts_of_all(self, x: jax.Array, parts: int) -> jax.Array:
        """The parts of a batch, each with samples of every device, `(parts, n, ...)`, so that none is moved."""
        x = jnp.swapaxes(jnp.reshape(x, (self.shards, parts, -1, *x.shape[1:])), 0, 1)
        return self._constrained(jnp.reshape(x, (parts, -1, *x.shape[3:])), None, self.batch)

    def kept(self, state: Any, stats: Any) -> tuple[Any, Any]:
        if self.members and not jnp.ndim(state.step):  # one member, inside of vmap
            return state, stats
        leaves, structure = jax.tree.flatten(state)
        kept = [self._constrained(x, *spec) for x, spec in zip(leaves, self.specs, strict=True)]
        return jax.tree.unflatten(structure, kept), jax.tree.map(self._constrained, stats)

    def tracing(self) -> contextlib.AbstractContextManager[Any]:
        return sharded_rows(self.mesh, self.batch) if self._by_row else contextlib.nullcontext()

    def same_program(self, closed: Any) -> None:
        require_same_program(closed)

    # --- in a run --------------------------------------------------------------------------------------------------

    def everywhere(self, data: Any) -> Any:
        return jax.tree.map(lambda x: put(x, NamedSharding(self.mesh, P())), data)

    def joined(self, batch: Any, whole: bool = False) -> Any:
        """The batch on its devices. The parts of several processes are those of their devices, in the mesh's order."""
        several = jax.process_count() > 1 and not whole
        if batch is None if not several else not everyone_has(batch):
            return None
        if not self.batch:
            return self.everywhere(batch)
        sharding = NamedSharding(self.mesh, P(self.batch))

        def join(x: Any) -> Any:
            if several:
                samples = np.shape(x)[0] * jax.process_count()
                if samples % self.shards:
                    raise self._indivisible(samples)
                return jax.make_array_from_process_local_data(sharding, np.asarray(x))
            divisible = np.ndim(x) and np.shape(x)[0] % self.shards == 0  # else the step says what is wrong
            return put(x, sharding) if divisible else x

        return jax.tree.map(join, batch)

    def agreed(self, number: int, stop: bool) -> tuple[int, bool]:
        return agreed(number, stop)


def _unless_kept(after: Any, own: Any, st: Any) -> Any:
    """A lane's state; a random key that was not used is that of before."""
    if not is_random_key(after) or after.shape:
        return after
    same = jnp.all(jax.random.key_data(after) == jax.random.key_data(own))
    return jax.random.wrap_key_data(
        jnp.where(same, jax.random.key_data(st), jax.random.key_data(after)), impl=jax.random.key_impl(after)
    )
