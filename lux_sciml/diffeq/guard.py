"""A step size controller that ends hopeless solves at once."""

from typing import Any

import diffrax
import jax.numpy as jnp


class Guarded(diffrax.AbstractAdaptiveStepSizeController):
    """Any adaptive controller, ended with a result code where going on is of no use.

    Without it a NaN in the initial value or in the vector field burns all of `max_steps`. The solve ends with
    `RESULTS.nonfinite` where a step size is not finite, and with `RESULTS.dt_min_reached` where a step is
    rejected and the next one would be less than eight units in the last place of the time.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    @property
    def rtol(self):
        return self.controller.rtol

    @property
    def atol(self):
        return self.controller.atol

    @property
    def norm(self):
        return self.controller.norm

    def wrap(self, direction):
        return Guarded(self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        started = jnp.isfinite(first)
        smallest = 8 * jnp.finfo(first.dtype).eps * jnp.maximum(jnp.abs(t0), jnp.abs(t1))
        return jnp.where(started, first, t1), (inner, started, smallest)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        inner, started, smallest = controller_state
        keep, next_t0, next_t1, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        broken = ~started | ~jnp.isfinite(next_t1)
        stuck = ~keep & (next_t1 - next_t0 < smallest)
        result = _unless(broken, diffrax.RESULTS.nonfinite, result)
        result = _unless(stuck, diffrax.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, jump, (inner, started, smallest), result


def _unless(fault: Any, code: Any, result: Any) -> Any:
    """`result`, or the code where there is a fault and no earlier one."""
    return diffrax.RESULTS.where(fault & (result == diffrax.RESULTS.successful), code, result)


def guarded(controller: diffrax.AbstractStepSizeController) -> diffrax.AbstractStepSizeController:
    """An adaptive controller with the guard; others, which never shrink their steps, as they are."""
    return Guarded(controller) if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController) else controller
