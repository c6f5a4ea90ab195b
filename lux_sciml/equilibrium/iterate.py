"""optimistix's loop for fixed points, where nothing is to be differentiated."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax

from .accelerated import Accelerated


def fixed_point(f: Callable, solver: Any, y0: Any, args: Any, max_steps: int) -> optx.Solution:
    """`optimistix.fixed_point(f, solver, y0, args, max_steps=max_steps, throw=False)`, for inputs without derivatives.

    optimistix tests every number of every iterate for NaN, which for small cells takes as long as the cell. The plain
    iteration and the accelerated ones see a NaN in their error, so that their loop here does without; other solvers go
    to optimistix.
    """
    if type(solver) is not optx.FixedPointIteration and not isinstance(solver, Accelerated):
        return optx.fixed_point(f, solver, y0, args, max_steps=max_steps, throw=False)

    def fn(y, args):
        return f(y, args), None

    start, static = eqx.partition(solver.init(fn, y0, args, {}, None, None, frozenset()), eqx.is_array)

    def proceed(carry):
        _, steps, _, end, _ = carry
        return ~end & (steps < max_steps)

    def body(carry):
        y, steps, dynamic, *_ = carry
        y, state, _ = solver.step(fn, y, args, {}, eqx.combine(dynamic, static), frozenset())
        end, result = solver.terminate(fn, y, args, {}, state, frozenset())
        if not isinstance(solver, Accelerated):
            finite = jnp.isfinite(state.relative_error)
            end, result = end | ~finite, optx.RESULTS.where(finite, result, optx.RESULTS.nonfinite)
        dynamic = jax.tree.map(lambda new, old: new.astype(old.dtype), eqx.filter(state, eqx.is_array), dynamic)
        return y, steps + 1, dynamic, end, result

    carry = (y0, jnp.array(0), start, jnp.array(False), optx.RESULTS.successful)
    y, steps, dynamic, end, result = lax.while_loop(proceed, body, carry)
    result = optx.RESULTS.where(end, result, optx.RESULTS.nonlinear_max_steps_reached)
    state = eqx.combine(dynamic, static)
    y, _, stats = solver.postprocess(fn, y, None, args, {}, state, frozenset(), result)
    stats = {"num_steps": steps, "max_steps": max_steps, **stats}
    return optx.Solution(value=y, result=result, aux=None, stats=stats, state=state)
