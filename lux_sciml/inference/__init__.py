"""What the data say of the parameters: `laplace_approximation` and its result, a `LaplaceApproximation`."""

from .laplace_approximation import (
    LaplaceApproximation as LaplaceApproximation,
    laplace_approximation as laplace_approximation,
)

__all__ = []
