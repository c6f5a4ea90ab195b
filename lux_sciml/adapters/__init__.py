"""Models and weights of other libraries as layers of this one, and back.

`from_equinox`, `from_nnx`, `from_linen`, `from_haiku` and `from_keras` make layers of modules; `to_equinox`, `to_nnx`,
`to_linen`, `to_haiku` and `to_keras` are the ways back. `load_torch` takes the weights of a PyTorch model, `to_torch`
makes a state dict of ours. `init_apply`, an `InitApply`, and `as_function` make pure functions of a layer. Each library
is imported by the function that needs it; see `docs/adapters.md`. `numpyro`, `blackjax` and `arviz` are for
posteriors: see `docs/inference.md`.
"""

from .. import _names
from . import arviz, blackjax, numpyro
from .equinox import from_equinox, to_equinox
from .functions import InitApply, as_function, init_apply
from .haiku import from_haiku, to_haiku
from .keras import from_keras, to_keras
from .linen import from_linen, to_linen
from .nnx import from_nnx, to_nnx
from .pytorch import load_torch, to_torch

__all__ = [
    "InitApply",
    "arviz",
    "as_function",
    "blackjax",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "init_apply",
    "load_torch",
    "numpyro",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_torch",
]

__dir__ = _names.public(__name__)
