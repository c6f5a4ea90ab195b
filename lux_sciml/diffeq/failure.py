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


def raise_if_failed(sol: diffrax.Solution) -> diffrax.Solution:
    """The solution itself, if it, and every sample of a batch, is good; `RuntimeError` with what went wrong otherwise.

    For use outside of `jax.jit`, where results are known.

    >>> import diffrax, jax.numpy as jnp
    >>> term = diffrax.ODETerm(lambda t, y, args: -y)
    >>> sol = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.01, jnp.ones(2), max_steps=4, throw=False)
    >>> raise_if_failed(sol)
    Traceback (most recent call last):
    RuntimeError: the solve failed: The maximum number of solver steps was reached. Try increasing `max_steps`.
    """
    if sol.result.is_traced():
        raise TypeError("raise_if_failed needs known results: call it outside of jax.jit, or look at sol.result inside")
    failed = np.flatnonzero(~np.asarray(diffrax.is_okay(sol.result)))
    if failed.size == 0:
        return sol
    first = jax.tree.map(lambda code: np.asarray(np.ravel(code)[failed[0]]), sol.result)
    samples = np.size(np.asarray(diffrax.is_okay(sol.result)))
    where = "" if samples == 1 else f" for {failed.size} of {samples} samples (the first is {failed[0]})"
    raise RuntimeError(f"the solve failed{where}: {diffrax.RESULTS[first]}")
