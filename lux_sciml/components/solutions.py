"""Named components of solutions."""

from typing import Any

from .vector import ComponentVector


def component(solution: Any, path: Any) -> Any:
    """A component of the saved states of a solve, with time as the leading axis: `(times, *shape)`.

    `solution` is a `diffrax.Solution`, or anything else with `ys`, of a solve that started from a `ComponentVector`.
    Raises `TypeError` where the states have no names, `KeyError` for an unknown path.

    >>> import diffrax
    >>> u0 = ComponentVector(prey=1.0, predators=2.0)
    >>> term = diffrax.ODETerm(lambda t, u, args: u.replace(prey=u.prey, predators=-u.predators))
    >>> solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.1, u0)
    >>> component(solution, "prey").shape
    (1,)
    """
    if not isinstance(solution.ys, ComponentVector):
        raise TypeError(
            f"the states of this solution have no names ({type(solution.ys).__name__}): start the solve from a "
            "ComponentVector, or name them by `layout.wrap(solution.ys)`"
        )
    return solution.ys[path]
