"""Derivatives of steady states by the implicit function theorem."""

from types import SimpleNamespace

import diffrax

from ..._compat import rebound
from ..solvers.root_finding import implicit_root


class ImplicitAdjoint(diffrax.ImplicitAdjoint):
    """As `diffrax.ImplicitAdjoint`, with a dense Jacobian, whose derivatives are not finite where it is singular."""

    loop = rebound(diffrax.ImplicitAdjoint.loop, optxi=SimpleNamespace(implicit_jvp=implicit_root))
