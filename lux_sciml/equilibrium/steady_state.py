"""SteadyState: where the equations of a model stand still."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx

from ..core import Layer, Wrapper
from ..core.frozen import refuse_training, refuse_updates, renewed_keys
from .deep_equilibrium import fitting_guess
from .fixed_point import EquilibriumLayer

_DENSE = 512  # unknowns up to which the gradient's linear system is solved dense


class SteadyState(Wrapper, EquilibriumLayer):
    r"""The steady state of :math:`du/dt = f(u; p)`: a root :math:`f(u; p) = 0`, near a guess.

    The model is a layer, a net or physical equations with parameters; its output has the shape of its input, an array,
    a `ComponentVector` or a pytree. The layer takes the guess and returns the root, whose gradients by the parameters
    are those of the implicit function theorem, exact up to the tolerances; the guess has none. Parameters and state are
    those of the model. With `with_input=True` the layer takes `(guess, x)`, and calls the model with `(u, x)`: `x` is a
    forcing or a control, a pytree with gradients.

    The default solver is `optimistix.Newton`; any solver of `optimistix.root_find`, or of `diffrax`, which then
    integrates the equations until they are steady, will do; more: `EquilibriumLayer`. A solve that has not converged
    is NaN unless `on_failure` says otherwise: the state of the layer has no room for figures.

    Raises `ValueError` for a model that returns another structure than it gets, and for layers that update their state.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> class Growth(lux.Layer):
    ...     def init_params(self, key):
    ...         return {"rate": jnp.array(0.5), "capacity": jnp.array(3.0)}
    ...     def forward(self, u, ps, st):
    ...         return ps["rate"] * u * (1 - u / ps["capacity"]), st
    >>> layer = lux.SteadyState(Growth())
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> jax.grad(lambda ps: layer(jnp.array(2.0), ps, st)[0])(ps).capacity.round(3)
    Array(1., dtype=float32)
    """

    model: Layer
    with_input: bool = field(default=False, kw_only=True)
    on_failure: str = field(default="nan", kw_only=True)

    def forward(self, x, ps, st):
        if self.with_input and not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError("a SteadyState with an input takes the tuple (guess, x)")
        guess, x = x if self.with_input else (x, None)

        def solve(guess, x):
            return self._solve(guess, (x, ps, st))

        if self.batching == "vmap":
            refuse_training(st)
            u = jax.vmap(solve)(guess, x)
        else:
            u = solve(guess, x)
        if self.on_state_update == "discard":
            st = renewed_keys(st, lambda: self._call(u, (x, ps, st))[1])
        return u, st

    def _solve(self, guess, args):
        u0 = fitting_guess(lambda u: self._rate(u, args), jax.tree.map(_floating, guess))
        if self.on_state_update == "raise":
            refuse_updates(self.model, lambda st: self._call(u0, (*args[:2], st))[1], args[2], ())

        def run(solver, u0, args, adjoint):
            adjoint = adjoint or optx.ImplicitAdjoint()
            return optx.root_find(self._rate, solver, u0, args, max_steps=self.max_steps, adjoint=adjoint, throw=False)

        size = sum(leaf.size for leaf in jax.tree.leaves(u0))
        linear = lx.LU() if size <= _DENSE else lx.GMRES(self.rtol, self.atol)
        found = self.find(run, self._rate, self.chosen_solver(optx.Newton), u0, args, self.chosen_adjoint(linear))
        return self.marked(found.value, found.okay)

    def _call(self, u, args):
        x, ps, st = args
        return self.model.forward((u, x) if self.with_input else u, ps, st)

    def _rate(self, u, args):
        return self._call(u, args)[0]


def _floating(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
