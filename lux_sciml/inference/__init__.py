"""What the data say of the parameters.

Around an optimum: `laplace_approximation`, `profile_likelihood`, `bootstrap`, `fisher_information` and
`identifiability`; `sampled_band` for what follows from draws; `optima`, the distinct ones of several starts. Beyond it:
`log_posterior`, a density that the samplers of `lux.adapters` take.

What they return: `LaplaceApproximation`, `Profiles` of one `ProfileLikelihood` each, `Bootstrap`, `Identifiability`,
`Optima` of one `Optimum` each, `LogPosterior`, and of samplers `Draws`.
"""

from .. import _names
from .bands import sampled_band
from .bootstrap import Bootstrap, bootstrap
from .draws import Draws
from .identifiability import Identifiability, fisher_information, identifiability
from .laplace_approximation import LaplaceApproximation, laplace_approximation
from .log_posterior import LogPosterior, log_posterior
from .optima import Optima, Optimum, optima
from .profile_likelihood import ProfileLikelihood, Profiles, profile_likelihood

__all__ = [
    "Bootstrap",
    "Draws",
    "Identifiability",
    "LaplaceApproximation",
    "LogPosterior",
    "Optima",
    "Optimum",
    "ProfileLikelihood",
    "Profiles",
    "bootstrap",
    "fisher_information",
    "identifiability",
    "laplace_approximation",
    "log_posterior",
    "optima",
    "profile_likelihood",
    "sampled_band",
]

__dir__ = _names.public(__name__)
