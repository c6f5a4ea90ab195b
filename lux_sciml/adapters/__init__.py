"""Models and weights of other libraries as layers of this one, and back.

`from_equinox`, `from_nnx`, `from_linen` and `from_haiku` make layers of modules; `to_equinox`, `to_nnx`, `to_linen` and
`to_haiku` are the ways back. `load_torch` takes the weights of a PyTorch model, `to_torch` makes a state dict of ours.
Each library is imported by the function that needs it; see `docs/adapters.md`.
"""

from .equinox import from_equinox, to_equinox
from .haiku import from_haiku, to_haiku
from .linen import from_linen, to_linen
from .nnx import from_nnx, to_nnx
from .pytorch import load_torch, to_torch

__all__ = [
    "from_equinox",
    "from_haiku",
    "from_linen",
    "from_nnx",
    "load_torch",
    "to_equinox",
    "to_haiku",
    "to_linen",
    "to_nnx",
    "to_torch",
]
