"""Wrapped: the base of solvers whose steps are made of those of another one."""

import diffrax


class Wrapped(diffrax.AbstractWrappedSolver):
    """A solver of the orders, terms and vector field of the one inside; its steps, and what they need, are its own."""

    solver: diffrax.AbstractSolver  # pyright: ignore[reportIncompatibleVariableOverride]  # abstract in diffrax

    @property
    def term_structure(self):  # pyright: ignore[reportIncompatibleVariableOverride]  # as in diffrax's own wrappers
        return self.solver.term_structure

    @property
    def term_compatible_contr_kwargs(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.term_compatible_contr_kwargs

    def order(self, terms):
        return self.solver.order(terms)

    def strong_order(self, terms):
        return self.solver.strong_order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)
