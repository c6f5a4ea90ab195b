"""SplitODE: a stiff part stepped implicitly, the rest explicitly."""

from dataclasses import field
from typing import Any

import diffrax

from ...core import Container, Layer
from ..equation import Equation, batched, initial_value_and_times, output, save_times, solve
from ..field import OfChild, vector_field


class SplitODE(Container, Equation):
    r"""The solution of :math:`dy/dt = f(y) + g(y)` by an implicit-explicit method: f is cheap to step, g is stiff.

    `explicit` and `implicit` are layers, vector fields both, and children of these names. The solver is one of
    diffrax's IMEX methods: `KenCarp4()` by default, `KenCarp3()`, `KenCarp5()` or `Sil3()`. Input, output and all other
    options are those of `NeuralODE`.

    Kennedy and Carpenter, "Additive Runge-Kutta schemes for convection-diffusion-reaction equations", Applied Numerical
    Mathematics 44, 2003.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> stiff = lux.Lambda(lambda y: -1000.0 * y)
    >>> split = lux.SplitODE(lux.Dense(2, 2), stiff, ts=[0.0, 1.0], output="final")
    >>> ps, st = lux.setup(jax.random.key(0), split)
    >>> split(jnp.ones(2), ps, st)[0].shape
    (2,)
    """

    explicit: Layer
    implicit: Layer
    ts: Any = None
    solver: Any = field(default=diffrax.KenCarp4(), kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self.ts = save_times(self.ts)

    def forward(self, x, ps, st):
        y0, ts = initial_value_and_times(self, x)
        terms = diffrax.MultiTerm(*(diffrax.ODETerm(self._field(name, st)) for name in ("explicit", "implicit")))
        return output(self, batched(self, st, lambda y0, ts: solve(self, terms, y0, ts, ps), (y0,), ts)), st

    def _field(self, name: str, st: Any) -> OfChild:
        return OfChild(name, vector_field(self.children[name], st[name], on_state_update=self.on_state_update))
