"""What is done to the parameters of a layer."""

from .freeze import Frozen as Frozen, freeze as freeze, unfreeze as unfreeze
from .layer_map import layer_map as layer_map
from .share import share_parameters as share_parameters
from .spectral_norm import SpectralNorm as SpectralNorm
from .weight_norm import WeightNorm as WeightNorm
