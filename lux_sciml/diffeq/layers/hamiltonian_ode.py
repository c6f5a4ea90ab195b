"""HamiltonianODE: a Hamiltonian that separates, solved by a symplectic method."""

from typing import Any, ClassVar

import diffrax

from ...core import Constant, Container, Layer, as_layer, field
from ...core.parameters import parameter_tree
from ..equation import Equation, solver_object
from ..fields.energy import EnergyGradient
from ..solvers.symplectic import Verlet
from ..times import save_times


class HamiltonianODE(Container, Equation):
    r"""The motion of :math:`H(q, p) = T(p) + V(q)`, by a symplectic solver with fixed steps `dt0`.

    :math:`dq/dt = \nabla T(p)`, :math:`dp/dt = -\nabla V(q)`. The energy of the numerical solution oscillates, by an
    amount that shrinks with `dt0` to the order of the solver, and does not drift, however long the solve. Where the
    Hamiltonian does not separate, use `NeuralODE(HamiltonianNN(H))`.

    * `kinetic`, `potential`: the layers `T` and `V`, `(..., n) -> (..., 1)` or `(...)`;
    * `solver`: `lux.Verlet()`, `lux.Yoshida4()` or `diffrax.SemiImplicitEuler()`;
    * `dt0`: the size of the steps;
    * the options of `lux.Equation`, without tolerances. With `time_dependent` and `controlled` both layers are called
      with the time and the value of the control, and the energy is not kept.

    The input is the pair `(q, p)` in place of `y0`; `ys` of the solution are such a pair, each of shape
    `(times, ...)`. Raises `ValueError` without `dt0`, for other solvers, and for tolerances, which
    fixed steps do not have.

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

    takes: ClassVar = "a pair (q, p)"
    lacks: ClassVar = dict.fromkeys(
        ("rtol", "atol"), "it has fixed steps, and no tolerances: a smaller dt0 is more exact"
    )
    fixed_steps: ClassVar = True

    kinetic: Layer = field(converter=as_layer)
    potential: Layer = field(converter=as_layer)
    ts: Constant | None = field(default=None, converter=save_times)
    solver: diffrax.AbstractSolver | Constant = field(default=Verlet(), converter=solver_object, kw_only=True)

    def __check_init__(self):
        if self.dt0 is None:
            raise ValueError("a HamiltonianODE has fixed steps: give their size, dt0=...")
        solver = self.option("solver")
        if not isinstance(solver.term_structure, tuple):
            raise ValueError(
                "a HamiltonianODE takes a solver of the pair (q, p), such as lux.Verlet(), lux.Yoshida4() or "
                f"diffrax.SemiImplicitEuler(), got {solver!r}"
            )

    def problem(self, x, ps, st):
        alone = self.ts is not None and not self.controlled
        start = x if alone else x[0] if isinstance(x, tuple) and x else None
        if not (isinstance(start, tuple) and len(start) == 2):
            kind = "pair (q, p)" if self.ts is not None else "tuple ((q, p), times)"
            raise ValueError(f"this HamiltonianODE takes the {kind}{', with its control' if self.controlled else ''}")
        return super().problem(x, ps, st)

    def terms(self, fields):
        signs = {"kinetic": 1, "potential": -1}
        return tuple(diffrax.ODETerm(EnergyGradient(fields[name], sign)) for name, sign in signs.items())

    def first_inputs(self, fields):
        q, p = fields.problem.y0
        return {name: fields[name].input(fields.problem.ts[0], y) for name, y in (("kinetic", p), ("potential", q))}

    def energy(self, y: Any, ps: Any, st: Any, *, t: Any = None, u: Any = None) -> Any:
        """The energy of `y = (q, p)`, in total and sample by sample, of the shape that both layers give.

        With `time_dependent` at the time `t`, and with `controlled` for the value `u` of the control.
        """
        q, p = y
        if self.controlled:
            q, p = (q, u), (p, u)
        if self.time_dependent:
            q, p = (t, q), (t, p)
        (kinetic, potential), _ = self.run(parameter_tree(self, ps), st, kinetic=p, potential=q)
        return kinetic + potential
