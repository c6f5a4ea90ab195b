"""A failed solve is data: NaN where the result is a failure, and one sentence on request."""

import dataclasses
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np


def mark_failure(sol: diffrax.Solution, *, complete: bool) -> diffrax.Solution:
    """The solution with NaN in place of every floating-point output if the solve has failed.

    diffrax returns a finite, wrong state where it runs out of steps, and `inf` at the times that it has not reached.
    With `complete`, every output was to be filled, and one that is not finite is a failure too (`RESULTS.nonfinite`):
    a solver with fixed steps goes on through NaN.
    """
    if complete:
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(y)) for y in jax.tree.leaves(sol.ys)]))
        result = diffrax.RESULTS.where(
            finite | (sol.result != diffrax.RESULTS.successful), sol.result, diffrax.RESULTS.nonfinite
        )
    else:
        result = sol.result
    good = diffrax.is_okay(result)

    def mark(x: Any) -> Any:
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(good, x, jnp.full((), jnp.nan, x.dtype))

    ys, interpolation = jax.tree.map(mark, (sol.ys, sol.interpolation))
    return dataclasses.replace(sol, ys=ys, interpolation=interpolation, result=result)


_TRY = {
    "max_steps_reached": (
        "max_steps was reached",
        "a larger max_steps, looser tolerances (rtol, atol), or, if the equation is stiff, an implicit solver such as "
        "solver=diffrax.Kvaerno5()",
    ),
    "dt_min_reached": (
        "steps too small for the precision of the time were needed",
        "a look at where the solution grows without bound or the vector field jumps or is NaN; if it is stiff, an "
        "implicit solver such as solver=diffrax.Kvaerno5(), with looser tolerances or in float64",
    ),
    "nonfinite": (
        "a NaN or an infinity was met",
        "a look at the initial value, the parameters and the vector field, and smaller steps if they are fixed (dt0)",
    ),
}


def raise_if_failed(sol: Any) -> diffrax.Solution:
    """The solution itself, if it, and every sample of a batch, is good; `RuntimeError` with what went wrong otherwise.

    The error names the samples, by what they failed of, and what to try. For use outside of `jax.jit`, where results
    are known. Raises `TypeError` for anything but a solution of known results.

    >>> import diffrax, jax.numpy as jnp
    >>> term = diffrax.ODETerm(lambda t, y, args: -y)
    >>> sol = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.01, jnp.ones(2), max_steps=4, throw=False)
    >>> raise_if_failed(sol)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    RuntimeError: the solve failed: max_steps was reached; try a larger max_steps, looser tolerances (rtol, atol), ...
    """
    if not isinstance(sol, diffrax.Solution):
        raise TypeError(
            f"raise_if_failed takes the diffrax.Solution of a layer with output='solution', got {type(sol).__name__}"
        )
    if sol.result.is_traced():
        raise TypeError("raise_if_failed needs known results: call it outside of jax.jit, or look at sol.result inside")
    good = np.ravel(np.asarray(diffrax.is_okay(sol.result)))
    if np.all(good):
        return sol
    codes = jax.tree.map(np.ravel, sol.result)
    faults: dict[str, tuple[str, list[int]]] = {}
    for i in np.flatnonzero(~good):
        what, remedy = _explained(jax.tree.map(lambda code, i=i: np.asarray(code[i]), codes))
        faults.setdefault(what, (remedy, []))[1].append(int(i))
    texts = [
        f"{what}{'' if good.size == 1 else f' by {_samples(failed)} of {good.size}'}{remedy}"
        for what, (remedy, failed) in faults.items()
    ]
    raise RuntimeError(f"the solve failed: {'. '.join(texts)}")


def _explained(code: Any) -> tuple[str, str]:
    """What a result code says, and what to try."""
    for name, (what, remedy) in _TRY.items():
        if bool(code == getattr(diffrax.RESULTS, name)):
            return what, f"; try {remedy}"
    return diffrax.RESULTS[code], ""


def _samples(numbers: list[int]) -> str:
    first = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"sample {first}" if len(numbers) == 1 else f"samples {first}"
