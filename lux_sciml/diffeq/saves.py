"""What a solve saves."""

from typing import Any

import diffrax

_WHOLE = diffrax.SubSaveAt(t1=True).fn


def saves_states(saveat: Any) -> bool:
    """Whether a solve saves whole states, at its ends and at given times, and neither all steps nor a dense output."""
    sub = saveat.subs
    return isinstance(sub, diffrax.SubSaveAt) and sub.fn is _WHOLE and not (sub.steps or saveat.dense)
