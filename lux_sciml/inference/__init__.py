"""What the data say of the parameters.

Around an optimum: `laplace_approximation`, `profile_likelihood`, `bootstrap`, `fisher_information` and
`identifiability`; `sampled_band` for what follows from draws; `optima`, the distinct ones of several starts. Beyond it:
`log_posterior`, a density that the samplers of `lux.adapters` take.

What they return: `LaplaceApproximation`, `Profiles` of one `ProfileLikelihood` each, `Bootstrap`, `Identifiability`,
`Optima` of one `Optimum` each, `LogPosterior`, and of samplers `Draws`.
"""

from .bands import sampled_band as sampled_band
from .bootstrap import Bootstrap as Bootstrap, bootstrap as bootstrap
from .draws import Draws as Draws
from .identifiability import (
    Identifiability as Identifiability,
    fisher_information as fisher_information,
    identifiability as identifiability,
)
from .laplace_approximation import (
    LaplaceApproximation as LaplaceApproximation,
    laplace_approximation as laplace_approximation,
)
from .log_posterior import LogPosterior as LogPosterior, log_posterior as log_posterior
from .optima import Optima as Optima, Optimum as Optimum, optima as optima
from .profile_likelihood import (
    ProfileLikelihood as ProfileLikelihood,
    Profiles as Profiles,
    profile_likelihood as profile_likelihood,
)

__all__ = []
