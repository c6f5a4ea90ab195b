"""Implicit solvers with a root finder that converges, and that is differentiated without callbacks."""

import functools
import types
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jax.flatten_util import ravel_pytree

from ..._compat import Bisection, as_class, derived, rebound, while_loop, with_root_find
from ..._tree import with_tangent


def converging(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """An implicit solver with `optimistix.Chord` in place of diffrax's default root finder; others as they are.

    The default, `diffrax.VeryChord`, keeps one Jacobian for all stages of a step, and often does not converge: steps
    are rejected for that alone. For a smooth equation that is not even stiff, at rtol 1e-6, `KenCarp4` does not arrive
    in 4096 steps, and takes 8 with a Jacobian for each stage; `Kvaerno5` takes 54 and 5
    (benchmarks/bench_root_finders.py). A root finder with tolerances of its own is kept:
    `diffrax.Kvaerno5(root_finder=diffrax.VeryChord(rtol=..., atol=...))`.
    """
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.root_finder
    if type(finder) is diffrax.VeryChord and not isinstance(finder.rtol, float | int):
        chord = diffrax.with_stepsize_controller_tols(optimistix.Chord)(kappa=finder.kappa)
        solver = eqx.tree_at(lambda s: s.root_finder, solver, chord)
    return _with_implicit_derivatives(solver)


def _with_implicit_derivatives(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """The solver, with its root finds differentiated by `DenseImplicitAdjoint`."""
    return as_class(solver, _with_own_root_find(type(solver)))


@functools.cache
def _with_own_root_find(cls: type[diffrax.AbstractSolver]) -> type[diffrax.AbstractSolver]:
    find = functools.partial(optimistix.root_find, adjoint=DenseImplicitAdjoint())
    step = rebound(cls.step, optx=types.SimpleNamespace(root_find=find))
    return cls if step is cls.step else derived(cls, step=step)


def finding_events(adjoint: diffrax.AbstractAdjoint) -> diffrax.AbstractAdjoint:
    """The adjoint, with the times of events found, and differentiated, without callbacks."""
    return with_root_find(adjoint, _event_time)


def _event_time(conditions: Callable[..., Any], finder: Any, **options: Any) -> Any:
    """The root of the condition of the event that has happened; diffrax makes the others zero."""
    if type(finder) is optimistix.Bisection:
        finder = as_class(finder, Bisection)

    def condition(t, args):
        return sum(jax.tree.leaves(conditions(t, args)))

    return optimistix.root_find(condition, finder, adjoint=DenseImplicitAdjoint(), **options)


class DenseImplicitAdjoint(optimistix.AbstractAdjoint):
    """As `optimistix.ImplicitAdjoint`; where the Jacobian is singular derivatives are not finite, and nothing raises.

    lineax checks the transpose of each linear solve by a callback to the host, with which a program can be neither
    exported nor kept in the compilation cache. For a square system without structure it is dense, too.
    """

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        return implicit_root(primal_fn, rewrite_fn, (*inputs, functools.partial(while_loop, kind="lax")))


def implicit_root(primal: Callable[..., Any], rewrite: Callable[..., Any], inputs: Any, *_: Any) -> tuple[Any, Any]:
    """`primal(inputs)`: the root, with the derivatives of `rewrite(root, rest, inputs) = 0`, and the rest without.

    Takes the place of optimistix's `implicit_jvp`, whose other arguments are tags and the solver of the linear system.
    """
    return _root(inputs, primal=primal, rewrite=rewrite)


@eqx.filter_custom_jvp
def _root(inputs: Any, *, primal: Callable[..., Any], rewrite: Callable[..., Any]) -> tuple[Any, Any]:
    return jax.tree.map(jnp.asarray, primal(inputs))


@_root.def_jvp
def _derivative(primals, tangents, *, primal, rewrite):
    (inputs,), (moving,) = primals, tangents
    root, rest = _root(inputs, primal=primal, rewrite=rewrite)
    moved = with_tangent(inputs, moving)
    _, shift = jax.jvp(lambda moved: rewrite(root, rest, eqx.combine(moved, inputs)), (moved,), (moving,))
    flat, unravel = ravel_pytree(root)
    _, push = jax.linearize(lambda flat: ravel_pytree(rewrite(unravel(flat), rest, inputs))[0], flat)
    jacobian = jax.vmap(push, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
    step = jnp.linalg.solve(jacobian, -ravel_pytree(shift)[0])
    return (root, rest), (unravel(step), jax.tree.map(lambda _: None, rest))
