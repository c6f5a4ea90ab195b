"""Vector fields from energies and accelerations.

The input of each is a state, or what an equation makes of it: `(t, state)`, `(state, u)` or `(t, (state, u))`, with the
time and with the value of a control. They reach the layers inside in the same form.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._tree import describe, floating, widened
from ...core import Container, Layer, Wrapper, as_layer, field
from ...core.container import call_child
from ...core.converters import optional
from ...derivatives import batched_jacobian
from ..field import Field


class HamiltonianNN(Wrapper):
    r"""The vector field of a Hamiltonian.

    .. math:: \dot q = \frac{\partial H}{\partial p}, \quad \dot p = -\frac{\partial H}{\partial q}

    `model` is the Hamiltonian, a layer from `(..., 2 n)` to `(..., 1)` or `(...)`. Input: `(q, p)` side by side along
    the last axis; output: their derivatives in time, of the same shape. Solved by `NeuralODE`, the energy of the exact
    solution is constant. Parameters and state are the model's.

    Greydanus, Dzamba and Yosinski, "Hamiltonian neural networks", NeurIPS 2019. Raises `ValueError` for an odd number
    of features and for a model that is no energy.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> pendulum = lux.HamiltonianNN(lux.Lambda(lambda z: z[..., 1] ** 2 / 2 - jnp.cos(z[..., 0])))
    >>> pendulum(jnp.array([0.0, 2.0]), {}, {})[0]
    Array([ 2., -0.], dtype=float32)
    """

    model: Layer = field(converter=as_layer)

    def forward(self, x, ps, st):
        t, z, u = split_input(x)
        n = _degrees_of_freedom(self, z)
        slope, st = energy_gradient(lambda z: self.model.forward(join_input(t, z, u), ps, st), z, self.model)
        of_q, of_p = jnp.split(jnp.asarray(slope), [n], axis=-1)
        return jnp.concatenate([of_p, -of_q], -1), st


class LagrangianNN(Wrapper):
    r"""The vector field of a Lagrangian, by the Euler-Lagrange equation.

    .. math:: \dot q = v, \quad
        \dot v = \left(\frac{\partial^2 L}{\partial v^2}\right)^{-1}
        \left(\frac{\partial L}{\partial q} - \frac{\partial^2 L}{\partial v\, \partial q} v\right)

    `model` is the Lagrangian, a layer from `(..., 2 n)` to `(..., 1)` or `(...)`. Input: `(q, v)` side by side along
    the last axis; output: their derivatives in time. Where the mass matrix, the second derivative by v, is singular,
    the output is not finite. Parameters and state are the model's.

    Cranmer et al., "Lagrangian neural networks", arXiv:2003.04630. Raises `ValueError` for an odd number of features
    and for a model that is no energy.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> pendulum = lux.LagrangianNN(lux.Lambda(lambda z: z[..., 1] ** 2 / 2 + jnp.cos(z[..., 0])))
    >>> pendulum(jnp.array([jnp.pi / 2, 2.0]), {}, {})[0]
    Array([ 2., -1.], dtype=float32)
    """

    model: Layer = field(converter=as_layer)

    def forward(self, x, ps, st):
        t, z, u = split_input(x)
        n, dtype, named = _degrees_of_freedom(self, z), z.dtype, jax.tree.structure(z)
        z, u, ps = widened((jnp.asarray(z), u, ps))  # linear systems have no half precision

        def gradient(z):
            def energy(z):
                return self.model.forward(join_input(t, named.unflatten([z]), u), ps, st)

            return energy_gradient(energy, z, self.model)

        slope, st_next = gradient(z)
        hessian = batched_jacobian(lambda z: gradient(z)[0][..., n:], z, mode="forward")
        v = z[..., n:]
        force = slope[..., :n] - jnp.einsum("...ij,...j->...i", hessian[..., :n], v)
        acceleration = jnp.linalg.solve(hessian[..., n:], force[..., None])[..., 0]
        return jnp.concatenate([v, acceleration], -1).astype(dtype), st_next


class GradientFlow(Wrapper):
    r"""The vector field :math:`dx/dt = -\nabla E(x)`, down the energy `E`, a layer `(..., n) -> (..., 1)` or `(...)`.

    The energy never grows along a solution of `NeuralODE(GradientFlow(E))`, which therefore has no cycles. Parameters
    and state are those of `E`. Raises `ValueError` where `E` is not one element for each sample.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> flow = lux.GradientFlow(lux.Lambda(lambda x: jnp.sum(x**2, -1) / 2))
    >>> flow(jnp.array([1.0, -2.0]), {}, {})[0]
    Array([-1.,  2.], dtype=float32)
    """

    energy: Layer = field(converter=as_layer)

    def forward(self, x, ps, st):
        t, y, u = split_input(x)
        slope, st = energy_gradient(lambda y: self.energy.forward(join_input(t, y, u), ps, st), y, self.energy)
        return jax.tree.map(jnp.negative, slope), st


class PortHamiltonian(Container):
    r"""The vector field of a port-Hamiltonian system, :math:`dx/dt = (J(x) - R(x)) \nabla H(x) + G(x) u`.

    `J` is skew-symmetric, so that it moves energy about and keeps it; `R` is symmetric and positive semidefinite, so
    that it only takes energy out; `u` is what comes in through the ports:
    :math:`dH/dt = -\nabla H^T R \nabla H + u^T G^T \nabla H`, whatever the parameters. The children, layers of `x`
    `(..., n)`:

    * `hamiltonian`: the energy, `(..., 1)` or `(...)`;
    * `dissipation`: a matrix `L` with `R = L L^T`, `(..., n k)` for any `k`, row by row; `None` for no dissipation;
    * `interconnection`: a matrix `A` with `J = A - A^T`, `(..., n n)`; `None` for the canonical one of `x = (q, p)`;
    * `port`: the matrix `G`, `(..., n m)`; `None` for a closed system.

    The input is `x`, or with a `port` the tuple `(x, u)` with `u` of shape `(..., m)`, as `NeuralODE` gives it with
    `controlled=True`.

    van der Schaft, Jeltsema, "Port-Hamiltonian systems theory", 2014. Raises `ValueError` for inputs and matrices of
    other sizes.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> field = lux.PortHamiltonian(lux.Chain(lux.Dense(2, 8, jnp.tanh), lux.Dense(8, 1)), lux.Dense(2, 2))
    >>> ps, st = lux.setup(jax.random.key(0), field)
    >>> field(jnp.ones((5, 2)), ps, st)[0].shape
    (5, 2)
    """

    hamiltonian: Layer = field(converter=as_layer)
    dissipation: Layer | None = field(default=None, converter=optional(as_layer))
    interconnection: Layer | None = field(default=None, converter=optional(as_layer))
    port: Layer | None = field(default=None, converter=optional(as_layer))

    def forward(self, x, ps, st):
        t, x, u = split_input(x)
        if (u is None) != (self.port is None):
            kind = "x alone, for it has no port" if self.port is None else "the tuple (x, u), for it has a port"
            raise ValueError(f"this PortHamiltonian takes {kind}")
        st, inputs = dict(st), join_input(t, x)

        def matrix(name):
            y, st[name] = call_child(name, self.children[name], inputs, ps, st)
            n = x.shape[-1]
            if y.shape[:-1] != x.shape[:-1] or y.shape[-1] % n or (name == "interconnection" and y.shape[-1] != n * n):
                raise ValueError(
                    f"the {name} of a PortHamiltonian gives a matrix of {n} rows, (..., {n} k), for inputs {x.shape}; "
                    f"got {y.shape}"
                )
            return y.reshape(*x.shape, y.shape[-1] // n)

        def energy(x):
            return call_child("hamiltonian", self.hamiltonian, join_input(t, x), ps, st)

        slope, st["hamiltonian"] = energy_gradient(energy, x, self.hamiltonian)
        slope = jnp.asarray(slope)
        if self.interconnection is None:
            dx = _canonical(slope)
        else:
            a = matrix("interconnection")
            dx = _times(a, slope) - _times(jnp.swapaxes(a, -1, -2), slope)
        if self.dissipation is not None:
            l = matrix("dissipation")
            dx -= _times(l, _times(jnp.swapaxes(l, -1, -2), slope))
        return (dx if u is None else dx + _times(matrix("port"), u)), st


class SecondOrder(Wrapper):
    r"""The vector field of :math:`d^2x/dt^2 = a(x, dx/dt)` on pairs `(x, v)`: :math:`(v, a([x, v]))`.

    `model` is the acceleration: from positions and velocities along the last axis, `(..., 2 n)`, to `(..., n)`. For a
    `NeuralODE` whose initial value is the tuple `(x0, v0)`; its `ys` are the tuple of positions and velocities.

    Norcliffe et al., "On second order behaviour in neural ODEs", NeurIPS 2020. Raises `ValueError` for a state that is
    no such pair.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.NeuralODE(lux.SecondOrder(lux.Dense(4, 2)), ts=[0.0, 0.5, 1.0], output="ys")
    >>> ps, st = lux.setup(jax.random.key(0), node)
    >>> (x, v), st = node((jnp.ones(2), jnp.zeros(2)), ps, st)
    >>> x.shape, v.shape
    ((3, 2), (3, 2))
    """

    model: Layer = field(converter=as_layer)

    def forward(self, x, ps, st):
        t, (x, v), u = split_input(x, pair=True)
        acceleration, st = self.model.forward(join_input(t, jnp.concatenate([x, v], axis=-1), u), ps, st)
        return (v, acceleration), st


class EnergyGradient(eqx.Module):
    """The gradient of an energy, times `sign`, as a vector field `f(t, y, ps)`."""

    energy: Field
    sign: int = eqx.field(static=True)

    def __call__(self, t, y, ps):
        slope, _ = energy_gradient(lambda y: (self.energy.value(t, y, ps), None), y, self.energy.layer)
        return jax.tree.map(lambda g: self.sign * g, slope)


def energy_gradient(energy: Callable[[Any], tuple[Any, Any]], y: Any, layer: Layer) -> tuple[Any, Any]:
    """The gradient, sample by sample, of a function `(..., n) -> (..., 1)` or `(...)`, and what it returns beside.

    Raises `ValueError`, naming the layer, for an output that is not one element for each sample.
    """

    def total(y):
        value, after = energy(y)
        if value.shape not in (y.shape[:-1], (*y.shape[:-1], 1)):
            raise ValueError(
                f"an energy is one element for each sample, of shape {y.shape[:-1]} or {(*y.shape[:-1], 1)} for inputs "
                f"{y.shape}; this {type(layer).__name__} gives {value.shape}"
            )
        return jnp.sum(value), after

    return jax.grad(total, has_aux=True)(y)


def split_input(x: Any, *, pair: bool = False) -> tuple[Any, Any, Any]:
    """Time, state and control in the input of a vector field, in floating point; `None` for what is not there.

    The state is an array, or, with `pair`, a pair of arrays; it has an axis of features, by which a time is told apart.
    """
    t = u = None
    if isinstance(x, tuple) and not isinstance(x[0], tuple) and jnp.ndim(x[0]) == 0:
        t, x = x
    if isinstance(x, tuple) and (not pair or isinstance(x[0], tuple)):
        x, u = x
    if pair and not (isinstance(x, tuple) and len(x) == 2):
        raise ValueError(f"the state of a SecondOrder field is the pair (x, v), got {describe(x)}")
    return floating((t, x, u))


def join_input(t: Any, y: Any, u: Any = None) -> Any:
    """The input of a vector field from its parts."""
    y = y if u is None else (y, u)
    return y if t is None else (t, y)


def _degrees_of_freedom(layer: Layer, z: Any) -> int:
    if z.ndim == 0 or z.shape[-1] % 2 or z.shape[-1] == 0:
        raise ValueError(f"{type(layer).__name__} takes positions and velocities or momenta side by side: an even "
                         f"number of features, got {z.shape}")  # fmt: skip
    return z.shape[-1] // 2


def _canonical(slope: jax.Array) -> jax.Array:
    if slope.shape[-1] % 2:
        raise ValueError(f"the canonical interconnection needs x = (q, p) of even size, got {slope.shape[-1]}")
    dq, dp = jnp.split(slope, 2, axis=-1)
    return jnp.concatenate([dp, -dq], axis=-1)


def _times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...j->...i", matrix, vector)
