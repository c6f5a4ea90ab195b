"""HamiltonianODE: a Hamiltonian that separates, solved by a symplectic method."""

from dataclasses import field
from typing import Any

import diffrax

from ...core import Container, Layer, Wrapper
from ...core.parameters import parameter_tree
from ..equation import Equation, batched, initial_value_and_times, output, renewed, save_times, solve
from ..field import OfChild, vector_field
from ..fields.energy import GradientFlow, energy_gradient
from ..solvers.symplectic import Verlet


class HamiltonianODE(Container, Equation):
    r"""The motion of :math:`H(q, p) = T(p) + V(q)`, by a symplectic solver with fixed steps `dt0`.

    :math:`dq/dt = \nabla T(p)`, :math:`dp/dt = -\nabla V(q)`, where the kinetic energy `T` and the potential `V` are
    layers, `(..., n) -> (..., 1)` or `(...)`. The energy of the numerical solution oscillates, by an amount that
    shrinks with `dt0` to the order of the solver, and does not drift, however long the solve. Solvers: `lux.Verlet()`,
    `lux.Yoshida4()`, `diffrax.SemiImplicitEuler()`. Where the Hamiltonian does not separate, use
    `NeuralODE(HamiltonianNN(H))`.

    The input is the pair `(q, p)`, or `((q, p), ts)` where `ts` is not given; `ys` of the solution are such a pair,
    each of shape `(times, ...)`. Raises `ValueError` without `dt0`, and for tolerances, which fixed steps do not have.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> net = lux.Chain(lux.Dense(2, 8, jnp.tanh), lux.Dense(8, 1))
    >>> kinetic = lux.Lambda(lambda p: jnp.sum(p**2, -1) / 2)
    >>> ode = lux.HamiltonianODE(kinetic, net, ts=[0.0, 0.5, 1.0], dt0=0.1)
    >>> ps, st = lux.setup(jax.random.key(0), ode)
    >>> sol, st = ode((jnp.ones(2), jnp.zeros(2)), ps, st)
    >>> q, p = sol.ys
    >>> q.shape, p.shape
    ((3, 2), (3, 2))
    """

    kinetic: Layer
    potential: Layer
    ts: Any = None
    solver: Any = field(default=Verlet(), kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self.ts = save_times(self.ts)
        if self.dt0 is None:
            raise ValueError("a HamiltonianODE has fixed steps: give their size, dt0=...")
        if (self.rtol, self.atol) != (1e-6, 1e-8):
            raise ValueError("a HamiltonianODE has fixed steps, and no tolerances: a smaller dt0 is more exact")

    def forward(self, x, ps, st):
        start = x if self.ts is not None else x[0] if isinstance(x, tuple) and x else None
        if not (isinstance(start, tuple) and len(start) == 2):
            kind = "pair (q, p)" if self.ts is not None else "tuple ((q, p), times)"
            raise ValueError(f"this HamiltonianODE takes the {kind}")
        y0, ts = initial_value_and_times(self, x)
        parts = {"kinetic": _Velocity(self.kinetic), "potential": GradientFlow(self.potential)}
        terms = tuple(
            diffrax.ODETerm(OfChild(name, vector_field(part, st[name], on_state_update=self.on_state_update)))
            for name, part in parts.items()
        )
        controller = self.controller() if self.stepsize_controller is not None else diffrax.ConstantStepSize()

        def one(y0, ts):
            return solve(self, terms, y0, ts, ps, controller=controller)

        sol = batched(self, st, one, (y0,), ts)
        q, p = y0
        inputs = {"kinetic": p, "potential": q}
        return output(self, sol), {
            name: renewed(self, self.children[name], value, ps[name], st[name]) for name, value in inputs.items()
        }

    def energy(self, y: Any, ps: Any, st: Any) -> Any:
        """The energy of `y = (q, p)`, in total and sample by sample, of the shape that both layers give."""
        q, p = y
        (kinetic, potential), _ = self.run(parameter_tree(self, ps), st, kinetic=p, potential=q)
        return kinetic + potential


class _Velocity(Wrapper):
    """The gradient of the kinetic energy."""

    energy: Layer

    def forward(self, x, ps, st):
        return energy_gradient(self.energy, x, ps, st)
