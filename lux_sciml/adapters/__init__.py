"""Models and weights of other libraries as layers of this one, and back.

`from_equinox` and `to_equinox`. Each library is imported by the function that needs it; see `docs/adapters.md`.
"""

from .equinox import from_equinox, to_equinox

__all__ = ["from_equinox", "to_equinox"]
