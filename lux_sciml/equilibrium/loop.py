"""The loop of fixed-point solvers, for inputs without derivatives, and what may stand for that of root finders."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import Array, lax

from .._compat import JitKey
from .._tree import is_traced, single
from .accelerated import Accelerated
from .precision import has_half, in_single, rounded, spacing
from .tolerances import Tolerances, attainable

_SHORT = 0.05  # `rtol` times the steps: with less, equal steps never look small beside the way that they make

_other_root_find = JitKey()


def roots_found_by(find: Callable[..., optx.Solution]) -> contextlib.AbstractContextManager[None]:
    """Roots inside are found by a function that is called as `optimistix.root_find`; layers are traced anew."""
    return _other_root_find.holding(find)


def root_find(f: Callable[[Any, Any], Any], solver: Any, y0: Any, args: Any, **options: Any) -> optx.Solution:
    """`optimistix.root_find`, or what stands for it."""
    return (_other_root_find.value or optx.root_find)(f, solver, y0, args, **options)


def fixed_point(
    f: Callable[[Any, Any], Any],
    solver: Any,
    y0: Any,
    args: Any,
    max_steps: int,
    options: Mapping[str, Any] | None = None,
) -> optx.Solution:
    """`optimistix.fixed_point(f, solver, y0, args, max_steps=max_steps, throw=False)`, for inputs without derivatives.

    optimistix tests every element of every iterate for NaN, which for small cells takes as long as the cell. The plain
    iteration and the accelerated ones see a NaN in their error, so that their loop here does without; other solvers go
    to optimistix. All but the accelerated ones, which see to it themselves, compute half precision in single.
    """
    if isinstance(solver, Accelerated):
        return _loop(f, solver, y0, args, max_steps, dict(options or {}))
    if has_half(y0):
        sol = fixed_point(in_single(f, y0), _attainable(solver, spacing(y0)), single(y0), args, max_steps)
        return eqx.tree_at(lambda sol: sol.value, sol, rounded(sol.value, y0))
    if type(solver) is not optx.FixedPointIteration:
        return optx.fixed_point(f, solver, y0, args, max_steps=max_steps, throw=False)
    sol = _loop(f, solver, y0, args, max_steps, {})
    if not is_traced(solver.rtol) and solver.rtol * max_steps < _SHORT:
        return sol
    fine = _has_slowed(solver, y0, sol) | (sol.result != optx.RESULTS.successful)
    result = optx.RESULTS.where(fine, sol.result, optx.RESULTS.nonlinear_divergence)
    return eqx.tree_at(lambda sol: sol.result, sol, result)


def _loop(f: Callable, solver: Any, y0: Any, args: Any, max_steps: int, options: dict[str, Any]) -> optx.Solution:
    def fn(y, args):
        return f(y, args), None

    start, static = eqx.partition(solver.init(fn, y0, args, options, None, None, frozenset()), eqx.is_array)

    def proceed(carry):
        _, steps, _, end, _ = carry
        return ~end & (steps < max_steps)

    def body(carry):
        y, steps, dynamic, *_ = carry
        y, state, _ = solver.step(fn, y, args, options, eqx.combine(dynamic, static), frozenset())
        end, result = solver.terminate(fn, y, args, options, state, frozenset())
        if not isinstance(solver, Accelerated):
            finite = jnp.isfinite(state.relative_error)
            end, result = end | ~finite, optx.RESULTS.where(finite, result, optx.RESULTS.nonfinite)
        dynamic = jax.tree.map(lambda new, old: new.astype(old.dtype), eqx.filter(state, eqx.is_array), dynamic)
        return y, steps + 1, dynamic, end, result

    carry = (y0, jnp.array(0), start, jnp.array(False), optx.RESULTS.successful)
    y, steps, dynamic, end, result = lax.while_loop(proceed, body, carry)
    result = optx.RESULTS.where(end, result, optx.RESULTS.nonlinear_max_steps_reached)
    state = eqx.combine(dynamic, static)
    y, _, stats = solver.postprocess(fn, y, None, args, options, state, frozenset(), result)
    stats = {"num_steps": steps, "max_steps": max_steps, **stats}
    return optx.Solution(value=y, result=result, aux=None, stats=stats, state=state)


def _has_slowed(solver: optx.FixedPointIteration, y0: Any, sol: optx.Solution) -> Array:
    """Whether the plain iteration has come to rest, and has not just gone so far that its steps look small.

    That is further than twice the size of its start.
    """
    tolerances = Tolerances.of(solver)
    way, start, end = map(tolerances.size, (jax.tree.map(jnp.subtract, sol.value, y0), y0, sol.value))
    error, steps = (x.astype(way.dtype) for x in (sol.state.relative_error, sol.stats["num_steps"]))
    last = error * (solver.atol + solver.rtol * end)
    return last <= jnp.maximum(2 * (solver.atol + solver.rtol * start), 0.5 * way / steps)


def _attainable(solver: Any, eps: float) -> Any:
    """The solver with a relative tolerance that can be met where `f` is in half precision."""
    if not any(field.name == "rtol" for field in dataclasses.fields(solver)):
        return solver
    return eqx.tree_at(lambda solver: solver.rtol, solver, attainable(solver.rtol, eps))
