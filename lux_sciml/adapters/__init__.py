"""Models and weights of other libraries as layers of this one, and back.

`from_equinox` and `to_equinox`; `load_torch` and `to_torch`. Each library is imported by the function that needs it;
see `docs/adapters.md`.
"""

from .equinox import from_equinox, to_equinox
from .pytorch import load_torch, to_torch

__all__ = ["from_equinox", "load_torch", "to_equinox", "to_torch"]
