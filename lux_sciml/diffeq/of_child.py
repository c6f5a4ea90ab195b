"""Functions of one child's parameters inside a solve for the parameters of all children."""

from collections.abc import Callable
from typing import Any

import equinox as eqx

from ..core.container import errors_of


class OfChild(eqx.Module):
    """`f(t, y, ps)` of one child, called with the parameters of the whole container."""

    name: str = eqx.field(static=True)
    function: Callable

    def __call__(self, t: Any, y: Any, ps: Any) -> Any:
        with errors_of(self.name):
            return self.function(t, y, ps[self.name])
