"""SSBFGS and SSBroyden: quasi-Newton methods that scale their matrix at each step, with a strong Wolfe line search."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree

from .._tree import all_finite, where, zeros_of

DECREASE, CURVATURE = 1e-4, 0.9  # of the Wolfe conditions
MOST_TRIALS = 30  # in a line search
FARTHER = 3.0  # a step is lengthened by, where the loss goes on to fall


class Point(NamedTuple):
    """Where the loss was evaluated along a line x + t p."""

    t: jax.Array
    value: jax.Array
    slope: jax.Array  # along p
    x: jax.Array
    gradient: jax.Array
    aux: Any


class State(NamedTuple):
    """The loss and its gradient at the accepted point, and the approximate inverse of its Hessian."""

    value: jax.Array
    gradient: jax.Array
    inverse: jax.Array  # (n, n)
    fresh: jax.Array  # whether that is the identity
    aux: Any
    converged: jax.Array


class _SelfScaled(optx.AbstractMinimiser[Any, Any, State]):
    """A quasi-Newton method of Broyden's family; a step is a line search and an update."""

    rtol: eqx.AbstractVar[float]
    atol: eqx.AbstractVar[float]
    norm: eqx.AbstractVar[Callable[[Any], jax.Array]]

    @abc.abstractmethod
    def factors(self, a: jax.Array, b: jax.Array, h: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """By what the old matrix is divided, and the part of BFGS in the update: tau and phi."""

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> State:
        x, _ = ravel_pytree(y)
        aux = zeros_of(aux_struct)
        unknown, identity = jnp.full((), jnp.inf, x.dtype), jnp.eye(x.size, dtype=x.dtype)
        return State(unknown, jnp.zeros_like(x), identity, jnp.array(True), aux, jnp.array(False))

    def step(self, fn, y, args, options, state, tags) -> tuple[Any, State, Any]:
        """The first step evaluates the start, on a line of length zero: so the loss is in the program once."""
        x, unravel = ravel_pytree(y)

        def loss(x):
            value, aux = fn(unravel(x), args)
            return value.astype(x.dtype), aux

        first = jnp.isinf(state.value)
        direction = -(state.inverse @ state.gradient)
        length = jnp.linalg.norm(direction)
        t = jnp.where(state.fresh & (length > 1), 1 / length, 1).astype(x.dtype)
        start = Point(0 * t, state.value, direction @ state.gradient, x, state.gradient, state.aux)
        found, accepted = _line_search(loss, start, direction, t, first)

        s = found.x - x
        inverse, updated = self._updated(state, s, found)
        fresh = first | ~accepted | (state.fresh & ~updated)  # a search that fails is repeated along the gradient
        inverse = jnp.where(fresh, jnp.eye(x.size, dtype=x.dtype), inverse)
        near = self.norm(jnp.abs(s) / (self.atol + self.rtol * jnp.abs(x))) < 1
        flat = jnp.abs(state.value - found.value) < self.atol + self.rtol * jnp.abs(found.value)
        level = jnp.max(jnp.abs(found.gradient), initial=0) == 0
        over = level | (near & flat & accepted & ~first) | (~accepted & (state.fresh | first))
        state = State(found.value, found.gradient, inverse, fresh, found.aux, over)
        return unravel(found.x), state, found.aux

    def _updated(self, state: State, s: jax.Array, found: Point) -> tuple[jax.Array, jax.Array]:
        r"""The next inverse, where the curvature along the step is positive, and whether it is:
        :math:`(H - H z z^T H / z^T H z + \phi v v^T) / \tau + s s^T / s^T z`.
        """
        z = found.gradient - state.gradient
        sz = s @ z
        scale = jnp.where(state.fresh, sz / jnp.where(z @ z > 0, z @ z, 1), 1)  # Nocedal & Wright, (6.20)
        hz = scale * (state.inverse @ z)
        zhz = z @ hz
        b, h = -found.t * (s @ state.gradient) / scale / sz, zhz / sz  # s = -t H g
        a = jnp.maximum(b * h - 1, jnp.finfo(s.dtype).eps)
        tau, phi = self.factors(a, b, h, s.size)
        v = jnp.sqrt(zhz) * (s / sz - hz / zhz)
        old = scale * state.inverse - jnp.outer(hz, hz) / zhz + phi * jnp.outer(v, v)
        new = old / tau + jnp.outer(s, s) / sz
        usable = (sz > 0) & (zhz > 0) & jnp.all(jnp.isfinite(new))
        return jnp.where(usable, (new + new.T) / 2, state.inverse), usable

    def terminate(self, fn, y, args, options, state, tags) -> tuple[jax.Array, optx.RESULTS]:
        failed = state.converged & ~jnp.isfinite(state.value)
        return state.converged, optx.RESULTS.where(failed, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful)

    def postprocess(self, fn, y, aux, args, options, state, tags, result) -> tuple[Any, Any, dict[str, Any]]:
        return y, aux, {}


class SSBFGS(_SelfScaled):
    r"""Self-scaled BFGS, as an optimistix minimizer: `minimize(..., method="SSBFGS")`.

    BFGS whose approximate inverse Hessian H is divided, before each update, by
    :math:`\tau = \min(1, s^T z / s^T H^{-1} s)`, for a step s and the change z of the gradient: curvature that has
    become too large in H is forgotten. The line search is for the strong Wolfe conditions; it evaluates the loss with
    its gradient once or twice a step. H is a matrix `(n, n)`, for up to some thousands of parameters.

    Converged where both a step and the fall of the loss are within `atol + rtol |.|`, or where the line search finds
    nothing lower along the gradient.

    Al-Baali, "Numerical experience with a class of self-scaling quasi-Newton algorithms", JOTA 96 (1998).

    >>> import jax.numpy as jnp, optimistix
    >>> valley = lambda y, _: 100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2
    >>> optimistix.minimise(valley, SSBFGS(1e-6, 1e-6), jnp.array([-1.2, 1.0])).value.round(2).tolist()
    [1.0, 1.0]
    """

    rtol: float
    atol: float
    norm: Callable[[Any], jax.Array] = eqx.field(static=True, default=optx.max_norm)

    def factors(self, a, b, h, n):
        return jnp.minimum(1, 1 / b), jnp.ones_like(b)


class SSBroyden(_SelfScaled):
    r"""Self-scaled Broyden, as an optimistix minimizer: `minimize(..., method="SSBroyden")`.

    As `SSBFGS`, with another member of Broyden's family at each step, between BFGS and DFP and beyond both, and a scale
    that goes with it: on losses of physics-informed networks the best of the quasi-Newton methods.

    Al-Baali & Khalfan, "Wide interval for efficient self-scaling quasi-Newton algorithms", Optim. Methods Softw. 20
    (2005); Urban, Stefanou & Pons, "Unveiling the optimization process of physics informed neural networks", J. Comput.
    Phys. 523 (2025), (13) to (23); Kiyani et al., arXiv:2501.16371.

    >>> import jax.numpy as jnp, optimistix
    >>> valley = lambda y, _: 100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2
    >>> optimistix.minimise(valley, SSBroyden(1e-6, 1e-6), jnp.array([-1.2, 1.0])).value.round(2).tolist()
    [1.0, 1.0]
    """

    rtol: float
    atol: float
    norm: Callable[[Any], jax.Array] = eqx.field(static=True, default=optx.max_norm)

    def factors(self, a, b, h, n):
        rho = jnp.minimum(1, h * (1 - jnp.sqrt(a / (1 + a))))
        theta = jnp.maximum((rho - 1) / a, jnp.minimum(1 / rho, (1 - b) / b))
        sigma = 1 + a * theta
        power = sigma ** (-1 / max(n - 1, 1))
        tau = jnp.minimum(1, 1 / b)
        tau = jnp.where(theta > 0, tau * jnp.minimum(power, 1 / theta), jnp.minimum(tau * power, sigma))
        return tau, (1 - theta) / sigma


def _line_search(
    loss: Callable[[jax.Array], tuple[jax.Array, Any]], start: Point, p: jax.Array, t: jax.Array, first: jax.Array
) -> tuple[Point, jax.Array]:
    """A point on the line from `start` where the strong Wolfe conditions hold, or the lowest one; whether it is lower.

    Nocedal & Wright, algorithms 3.5 and 3.6, as one loop with one evaluation; `first` takes the first one as it is.
    """

    class Search(NamedTuple):
        trials: Any
        t: jax.Array  # to try next
        low: Point  # of what decreases the loss enough, the lowest
        high: tuple[jax.Array, jax.Array, jax.Array]  # t, value and slope at the other end, where there is one
        bracketed: jax.Array
        done: jax.Array

    rounding = 10 * jnp.finfo(p.dtype).eps * jnp.abs(start.value)

    def unfinished(search):
        return ~search.done & (search.trials < MOST_TRIALS)

    def trial(search):
        x, low, high = start.x + search.t * p, search.low, search.high
        (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        new = Point(search.t, value, gradient @ p, x, gradient, aux)
        enough = value <= start.value + DECREASE * new.t * start.slope
        # Hager & Zhang (2005): where the values are but rounding, the slope tells
        enough |= (value <= start.value + rounding) & (new.slope <= (2 * DECREASE - 1) * start.slope)
        good = first | (
            jnp.isfinite(value) & all_finite(gradient) & enough & (first | (low.t == 0) | (value < low.value))
        )
        done = first | (good & (jnp.abs(new.slope) <= -CURVATURE * start.slope))
        beyond = jnp.where(search.bracketed, new.slope * (high[0] - low.t) >= 0, new.slope >= 0)
        ends = (new.t, new.value, new.slope)
        high = where(~good, ends, where(beyond, (low.t, low.value, low.slope), high))
        bracketed = search.bracketed | ~good | beyond
        low = where(good, new, low)
        ahead = jnp.where(bracketed, _between((low.t, low.value, low.slope), high), FARTHER * new.t)
        return Search(search.trials + 1, ahead.astype(p.dtype), low, high, bracketed, done)

    nowhere = (0 * t, start.value, start.slope)
    search = Search(0, t, start, nowhere, jnp.array(False), start.slope >= 0)
    search = search._replace(done=~first & (start.slope >= 0))
    search = jax.lax.while_loop(unfinished, trial, search)
    accepted = jnp.isfinite(search.low.value) & jnp.where(first, True, search.low.t > 0)
    return search.low, accepted


def _between(low: tuple[jax.Array, ...], high: tuple[jax.Array, ...]) -> jax.Array:
    """The minimum of the cubic through two points and their slopes, not too near to either."""
    (t0, f0, s0), (t1, f1, s1) = low, high
    width = t1 - t0
    d1 = s0 + s1 - 3 * (f1 - f0) / jnp.where(width == 0, 1, width)
    d2 = jnp.sign(width) * jnp.sqrt(jnp.maximum(d1**2 - s0 * s1, 0))
    divisor = s1 - s0 + 2 * d2
    part = 1 - (s1 + d2 - d1) / jnp.where(divisor == 0, 1, divisor)
    part = jnp.where(jnp.isfinite(part) & (divisor != 0), jnp.clip(part, 0.1, 0.9), 0.5)
    return t0 + jnp.where(jnp.isfinite(f1), part, 0.1) * width
