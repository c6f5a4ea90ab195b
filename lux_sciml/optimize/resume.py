"""Memory: what a method knows at the end of a run, so that another run goes on from there."""

from typing import Any, NamedTuple

import jax

from .progress import Progress


class Memory(NamedTuple):
    """What a method knows, and how far it has come."""

    backend: str
    carry: Any
    values: int  # of the history that go before
    evaluations: int

    def checked(self, like: Any) -> Any:
        """The carry, where it has the structure, shapes and dtypes of another one. Raises `ValueError`."""
        if _outline(self.carry) != _outline(like):
            raise ValueError(
                "resume: the result is of another method, of one with other options, or of parameters or a state of "
                "another layout; go on with the method that made it, or start anew from result.params"
            )
        return self.carry


def memory_of(result: Any, backend: str, method: str) -> Memory:
    """The memory of a result, for a method; `TypeError` for what is no result, `ValueError` where there is none."""
    memory = getattr(result, "memory", None)
    if not hasattr(result, "history") or not hasattr(result, "params"):
        raise TypeError(f"resume is a result of minimize, got a {type(result).__name__}")
    if backend not in ("optax", "optimistix"):
        raise ValueError(
            f"{method} cannot be resumed, as SciPy keeps its memory to itself: start anew from result.params, or take "
            "an optax or optimistix method"
        )
    if memory is None:
        raise ValueError(
            "resume: this result holds no memory of its method: SciPy's methods keep theirs to themselves, and a run "
            "that is not finite at its start has none; start anew from result.params"
        )
    if memory.backend != backend:
        raise ValueError(f"resume: the result is of a method of {memory.backend}, and this method is one of {backend}")
    return memory


def go_on(progress: Progress, result: Any, memory: Memory) -> None:
    """Set a record to where a run had come, with as many steps more as it has."""
    progress.history = [float(value) for value in result.history[: memory.values]]
    progress.evaluations, progress.steps = memory.evaluations, result.steps
    progress.value, progress.memory = result.value, memory
    progress.max_steps += result.steps


def _outline(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype) for x in leaves]
