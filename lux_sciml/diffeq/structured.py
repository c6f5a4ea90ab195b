"""Vector fields with structure: gradient flows and port-Hamiltonian systems."""

import jax
import jax.numpy as jnp

from ..core import Container, Layer, Wrapper
from ..core.container import call_child
from ..nn.hamiltonian import energy_gradient


class GradientFlow(Wrapper):
    r"""The vector field :math:`dx/dt = -\nabla E(x)`, down the energy `E`, a layer `(..., n) -> (..., 1)` or `(...)`.

    The energy never grows along a solution of `NeuralODE(GradientFlow(E))`, which therefore has no cycles. Parameters
    and state are those of `E`. Raises `ValueError` where `E` is not one number for each sample.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> flow = lux.GradientFlow(lux.Lambda(lambda x: jnp.sum(x**2, -1) / 2))
    >>> flow(jnp.array([1.0, -2.0]), {}, {})[0]
    Array([-1.,  2.], dtype=float32)
    """

    energy: Layer

    def forward(self, x, ps, st):
        gradient, st = energy_gradient(self.energy, x, ps, st)
        return jax.tree.map(jnp.negative, gradient), st


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

    hamiltonian: Layer
    dissipation: Layer | None = None
    interconnection: Layer | None = None
    port: Layer | None = None

    def forward(self, x, ps, st):
        if self.port is not None and not (isinstance(x, tuple) and len(x) == 2):
            raise ValueError("a PortHamiltonian with a port takes the tuple (x, u)")
        x, u = x if self.port is not None else (x, None)
        st = dict(st)

        def matrix(name):
            y, st[name] = call_child(name, self.children[name], x, ps, st)
            n = x.shape[-1]
            if y.shape[:-1] != x.shape[:-1] or y.shape[-1] % n or (name == "interconnection" and y.shape[-1] != n * n):
                raise ValueError(
                    f"the {name} of a PortHamiltonian gives a matrix of {n} rows, (..., {n} k), for inputs {x.shape}; "
                    f"got {y.shape}"
                )
            return y.reshape(*x.shape, -1)

        gradient, st["hamiltonian"] = energy_gradient(self.hamiltonian, x, ps["hamiltonian"], st["hamiltonian"])
        if self.interconnection is None:
            dx = _canonical(gradient)
        else:
            a = matrix("interconnection")
            dx = _times(a, gradient) - _times(jnp.swapaxes(a, -1, -2), gradient)
        if self.dissipation is not None:
            l = matrix("dissipation")
            dx -= _times(l, _times(jnp.swapaxes(l, -1, -2), gradient))
        return (dx if u is None else dx + _times(matrix("port"), u)), st


def _canonical(gradient: jax.Array) -> jax.Array:
    if gradient.shape[-1] % 2:
        raise ValueError(f"the canonical interconnection needs x = (q, p) of even size, got {gradient.shape[-1]}")
    dq, dp = jnp.split(gradient, 2, axis=-1)
    return jnp.concatenate([dp, -dq], axis=-1)


def _times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...j->...i", matrix, vector)
