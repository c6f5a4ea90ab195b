"""What is done to parameters: normalized, frozen, shared, mapped.

At the root: `Frozen`, `SpectralNorm`, `WeightNorm`. Here: `freeze` and `unfreeze`, `share_parameters`, `layer_map`.
"""

from .. import _names
from .freeze import Frozen, freeze as freeze, unfreeze as unfreeze
from .layer_map import layer_map as layer_map
from .normalization import SpectralNorm, WeightNorm
from .share import share_parameters as share_parameters

__all__ = [
    "Frozen",
    "SpectralNorm",
    "WeightNorm",
]

__dir__ = _names.public(__name__)
