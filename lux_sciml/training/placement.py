"""Where a training state lies: what a step and a run ask of it, and the answers for one device.

`lux.distributed.shard` gives a state another placement; nothing here knows of meshes or processes.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp


@runtime_checkable
class Placement(Protocol):
    """What a step asks while it is traced, and a run between its steps. It is static: it compares and hashes by value.

    The parameters of the state may lie in another form than the model takes: `whole` makes this of it, inside of a
    step, and `scattered` the other way makes gradients like the parameters.
    """

    @property
    def lanes(self) -> int:
        """Into how many parts, each on devices of its own, a batch is cut where gradients accumulate."""
        ...

    @property
    def first(self) -> bool:
        """Whether this process writes logs and shows progress."""
        ...

    @property
    def processes(self) -> int:
        """How many processes take part in a run."""
        ...

    # --- in a step -------------------------------------------------------------------------------------------------

    def split(self, batch: Any, required: bool = True) -> Any:
        """A batch, divided among devices; where it cannot be, `ValueError` if that is `required`."""
        ...

    def whole(self, ps: Any) -> Any:
        """The parameters as the model takes them."""
        ...

    def scattered(self, gradients: Any) -> Any:
        """What is like what `whole` returns, such as its gradients, in the form of the parameters."""
        ...

    def accumulated(self, over_parts: Callable[..., Any], trained: Any, st: Any, batch: Any, parts: int) -> Any:
        """`over_parts(trained, st, parts of the batch)`, four trees: averages of gradients, a state, and two more."""
        ...

    def kept(self, state: Any, stats: Any) -> tuple[Any, Any]:
        """What comes out of a step, where it was."""
        ...

    def tracing(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which the objective is traced."""
        ...

    def same_program(self, closed: Any) -> None:
        """Raise where other processes have traced another program."""
        ...

    # --- in a run --------------------------------------------------------------------------------------------------

    def everywhere(self, data: Any) -> Any:
        """Data that are the same in all processes, on all devices."""
        ...

    def joined(self, batch: Any, whole: bool = False) -> Any:
        """The parts of a batch that the processes have, as one; `None` where one process has none.

        With `whole` each process has all of it.
        """
        ...

    def agreed(self, number: int, stop: bool) -> tuple[int, bool]:
        """The first process's number, and whether one of them stops."""
        ...


@dataclasses.dataclass(frozen=True)
class OnOneDevice:
    """A state as `TrainState.create` makes it."""

    lanes: int = 1
    first: bool = True
    processes: int = 1

    def split(self, batch: Any, required: bool = True) -> Any:
        return batch

    def whole(self, ps: Any) -> Any:
        return ps

    def scattered(self, gradients: Any) -> Any:
        return gradients

    def accumulated(self, over_parts: Callable[..., Any], trained: Any, st: Any, batch: Any, parts: int) -> Any:
        return over_parts(trained, st, cut(batch, parts))

    def kept(self, state: Any, stats: Any) -> tuple[Any, Any]:
        return state, stats

    def tracing(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def same_program(self, closed: Any) -> None:
        pass

    def everywhere(self, data: Any) -> Any:
        return data

    def joined(self, batch: Any, whole: bool = False) -> Any:
        return batch

    def agreed(self, number: int, stop: bool) -> tuple[int, bool]:
        return number, stop


HERE = OnOneDevice()


def cut(batch: Any, parts: int) -> Any:
    """The parts of a batch along a new first axis."""
    return jax.tree.map(lambda x: jnp.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:])), batch)


def require_parts(batch: Any, accumulate: int, lanes: int) -> None:
    """Raise `ValueError` where a batch cannot be cut into equal parts."""
    for x in jax.tree.leaves(batch) if accumulate > 1 else ():
        if not jnp.shape(x) or x.shape[0] % (accumulate * lanes):
            devices = f" on each of {lanes} devices" if lanes > 1 else ""
            raise ValueError(
                f"accumulate={accumulate} cuts the first axis of the batch into {accumulate} equal parts{devices}, got "
                f"shape {jnp.shape(x)}"
            )
