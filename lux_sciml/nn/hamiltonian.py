"""Vector fields from energies: Hamiltonian and Lagrangian networks."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core import Layer, Wrapper
from ..operators import batched_jacobian


def energy_gradient(energy: Layer, x: Any, ps: Any, st: Any) -> tuple[Any, Any]:
    """The gradient, sample by sample, of a layer `(..., n) -> (..., 1)` or `(...)`, and the layer's next state.

    Raises `ValueError` for an output that is not one number for each sample.
    """

    def total(x):
        value, after = energy.forward(x, ps, st)
        if value.shape not in (x.shape[:-1], (*x.shape[:-1], 1)):
            raise ValueError(
                f"an energy is one number for each sample, of shape {x.shape[:-1]} or {(*x.shape[:-1], 1)} for inputs "
                f"{x.shape}; this {type(energy).__name__} gives {value.shape}"
            )
        return jnp.sum(value), after

    return jax.grad(total, has_aux=True)(x)


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

    model: Layer

    def forward(self, x, ps, st):
        _half(self, x)
        gradient, st = energy_gradient(self.model, x, ps, st)
        of_q, of_p = jnp.split(gradient, 2, axis=-1)
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

    model: Layer

    def forward(self, x, ps, st):
        n = _half(self, x)
        gradient, st_next = energy_gradient(self.model, x, ps, st)
        hessian = batched_jacobian(lambda x: energy_gradient(self.model, x, ps, st)[0][..., n:], x, mode="forward")
        v = x[..., n:]
        force = gradient[..., :n] - jnp.einsum("...ij,...j->...i", hessian[..., :n], v)
        return jnp.concatenate([v, jnp.linalg.solve(hessian[..., n:], force[..., None])[..., 0]], -1), st_next


def _half(layer: Layer, x: Any) -> int:
    """The number of degrees of freedom."""
    if x.ndim == 0 or x.shape[-1] % 2 or x.shape[-1] == 0:
        raise ValueError(f"{type(layer).__name__} takes positions and velocities or momenta side by side: an even "
                         f"number of features, got {x.shape}")  # fmt: skip
    return x.shape[-1] // 2
