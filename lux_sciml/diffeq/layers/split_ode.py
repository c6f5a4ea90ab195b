"""SplitODE: a stiff part stepped implicitly, the rest explicitly."""

import diffrax

from ...core import Constant, Container, Layer, as_layer, field
from ..equation import Equation, solver_object
from ..times import save_times


class SplitODE(Container, Equation):
    r"""The solution of :math:`dy/dt = f(y) + g(y)` by an implicit-explicit method: f is cheap to step, g is stiff.

    * `explicit`, `implicit`: layers, the vector fields f and g, and children of these names;
    * `solver`: one of diffrax's IMEX methods, `KenCarp4()` by default, `KenCarp3()`, `KenCarp5()` or `Sil3()`;
    * the other options of `lux.Equation`.

    Input and output are those of `NeuralODE`.

    Kennedy and Carpenter, "Additive Runge-Kutta schemes for convection-diffusion-reaction equations", Applied Numerical
    Mathematics 44, 2003.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> stiff = lux.Lambda(lambda y: -1000.0 * y)
    >>> split = lux.SplitODE(lux.Dense(2, 2), stiff, ts=[0.0, 1.0], output="final")
    >>> ps, st = lux.setup(jax.random.key(0), split)
    >>> split(jnp.ones(2), ps, st)[0].shape
    (2,)
    """

    explicit: Layer = field(converter=as_layer)
    implicit: Layer = field(converter=as_layer)
    ts: Constant | None = field(default=None, converter=save_times)
    solver: diffrax.AbstractSolver | Constant = field(default=diffrax.KenCarp4(), converter=solver_object, kw_only=True)

    def terms(self, fields):
        return diffrax.MultiTerm(diffrax.ODETerm(fields["explicit"]), diffrax.ODETerm(fields["implicit"]))
