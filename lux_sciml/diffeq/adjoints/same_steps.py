"""Steps to given times, for the solve backward through them."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp


class SameSteps(diffrax.AbstractStepSizeController):
    """A step to the next of the given times, from wherever a solve is, and the last one to its end.

    `diffrax.StepTo` takes its times from the first one to the last one only, and not from one saved time to another, as
    a backward solve goes.
    """

    ts: jax.Array = eqx.field(converter=jnp.asarray)

    def wrap(self, direction: Any) -> "SameSteps":
        return SameSteps(jnp.sort(self.ts * direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self._after(t0), None

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        return True, t1, self._after(t1), False, None, diffrax.RESULTS.successful

    def _after(self, t: Any) -> jax.Array:
        i = jnp.searchsorted(self.ts, t, side="right")
        return jnp.where(i < len(self.ts), self.ts[jnp.minimum(i, len(self.ts) - 1)], jnp.inf)
