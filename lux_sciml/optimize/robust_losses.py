r"""Losses that count large residuals less than their square: :math:`\frac12 \sum_i c^2 \rho(r_i^2 / c^2)`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOSSES = ("linear", "huber", "soft_l1", "cauchy", "arctan")


class Robust(NamedTuple):
    """A loss of residuals, by its name as in `scipy.optimize.least_squares`, and the size c of residuals that count."""

    name: str = "linear"
    scale: float = 1.0

    def value(self, r: jax.Array) -> jax.Array:
        """The loss of residuals `(m,)`: half the sum of squares where it is linear."""
        return 0.5 * jnp.sum(self.scale**2 * self._rho((r / self.scale) ** 2)[0])

    def scales(self, r: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What scales the rows of J, and what scales r, so that J'r is the gradient of the loss and J'J its curvature.

        The square root of rho' + 2 rho'' z, and rho' over it (Triggs et al., "Bundle adjustment", 2000); but at least a
        quarter of rho', for outliers: there the loss is concave, and a step would be one of their noise.
        """
        first, curvature = self._slopes(r)
        rows = jnp.sqrt(jnp.maximum(curvature, first / 4))
        return rows, first / rows

    def curvature_rows(self, r: jax.Array) -> jax.Array:
        """What scales the rows of J so that J'J is the curvature of the loss, outliers' at least zero: in SciPy too."""
        return jnp.sqrt(jnp.maximum(self._slopes(r)[1], jnp.finfo(r.dtype).eps))

    def _slopes(self, r: jax.Array) -> tuple[jax.Array, jax.Array]:
        """rho' and rho' + 2 rho'' z."""
        z = (r / self.scale) ** 2
        _, first, second = self._rho(z)
        return first, first + 2 * second * z

    def _rho(self, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """rho and its first two derivatives."""
        one = jnp.ones_like(z)
        if self.name == "huber":
            far = jnp.maximum(z, 1)
            root = jnp.sqrt(far)
            return (
                jnp.where(z <= 1, z, 2 * root - 1),
                jnp.where(z <= 1, one, 1 / root),
                jnp.where(z <= 1, 0 * one, -0.5 / (far * root)),
            )
        if self.name == "soft_l1":
            root = jnp.sqrt(1 + z)
            return 2 * (root - 1), 1 / root, -0.5 / root**3
        if self.name == "cauchy":
            return jnp.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2
        if self.name == "arctan":
            return jnp.arctan(z), 1 / (1 + z**2), -2 * z / (1 + z**2) ** 2
        return z, one, 0 * one


def robust(name: str, scale: float) -> Robust:
    """Raises `ValueError` for an unknown loss."""
    if name not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(map(repr, LOSSES))}, got {name!r}")
    if not scale > 0:
        raise ValueError(f"loss_scale is the size of residuals that count fully, above 0, got {scale:g}")
    return Robust(name, float(scale))
