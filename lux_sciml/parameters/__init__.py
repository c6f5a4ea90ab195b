"""What is done to the parameters of a layer."""

from .spectral_norm import SpectralNorm as SpectralNorm
from .weight_norm import WeightNorm as WeightNorm
