"""What the data say of the parameters."""

from .laplace_approximation import (
    LaplaceApproximation as LaplaceApproximation,
    laplace_approximation as laplace_approximation,
)

__all__ = []
