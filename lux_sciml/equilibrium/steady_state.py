"""SteadyState: where the equations of a model stand still."""

import jax
import lineax as lx
import optimistix as optx

from .._tree import floating
from ..core import Layer, Wrapper, as_layer, field
from ..core.converters import choice, flag
from .fixed_point import EquilibriumLayer

_DENSE = 512  # unknowns up to which the gradient's linear system is solved dense


class SteadyState(Wrapper, EquilibriumLayer):
    r"""The steady state of :math:`du/dt = f(u; p)`: a root :math:`f(u; p) = 0`, near a guess.

    The model is a layer, a net or physical equations with parameters; its output has the shape of its input, an array,
    a `ComponentVector` or a pytree, real or complex. The layer takes the guess and returns the root, whose gradients by
    the parameters are those of the implicit function theorem, exact up to the tolerances; the guess has none.
    Parameters and state are those of the model. Options, besides those of `lux.EquilibriumLayer`:

    * `with_input`: the layer takes `(guess, x)`, and calls the model with `(u, x)`: `x` is a forcing or a control, a
      pytree with gradients.
    * `solver`: `optimistix.Newton` by default; any solver of `optimistix.root_find`, or of `diffrax`, which then
      integrates the equations until they are steady, will do.
    * `on_failure`: `"nan"` by default, a solve that has not converged is NaN: the state of the layer has no room for
      statistics.

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

    inner, is_root = "model", True

    model: Layer = field(converter=as_layer)
    with_input: bool = field(default=False, kw_only=True, converter=flag)
    on_failure: str = field(default="nan", kw_only=True, converter=choice("flag", "nan", "raise"))

    def __check_init__(self) -> None:
        if isinstance(self.solver, optx.AbstractFixedPointSolver):
            raise ValueError(
                f"{type(self.solver).__name__} finds fixed points; a SteadyState needs a solver of roots, such as "
                "optimistix.Newton(1e-5, 1e-5)"
            )

    def start(self, x, ps, st):
        if not self.with_input:
            return floating(x), None, st
        if not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError("a SteadyState with an input takes the tuple (guess, x)")
        return floating(x[0]), x[1], st

    def pair(self, z, x):
        return (z, x) if self.with_input else z

    def default_solver(self, z):
        return optx.Newton(self.rtol, self.atol)

    def linear_solver(self, z):
        size = sum(leaf.size for leaf in jax.tree.leaves(z))
        dense = isinstance(size, int) and size <= _DENSE  # `jax.export` has sizes that are no integers
        return lx.LU() if dense else lx.GMRES(self.rtol, self.atol)

    def solutions(self, z0, args):
        found = self.find(z0, args, self.adjoint_for(z0), self.max_steps)
        return (self.marked(found.value, found.okay),), found

    def statistics(self, found, z0, args, st):
        return {}

    def finish(self, zs, stats, inner, st):
        return zs[0], inner
