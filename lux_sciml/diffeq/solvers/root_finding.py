"""Implicit solvers with a root finder that converges."""

import diffrax
import equinox as eqx
import optimistix


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
    if type(finder) is not diffrax.VeryChord or isinstance(finder.rtol, float | int):
        return solver
    chord = diffrax.with_stepsize_controller_tols(optimistix.Chord)(kappa=finder.kappa)
    return eqx.tree_at(lambda s: s.root_finder, solver, chord)
