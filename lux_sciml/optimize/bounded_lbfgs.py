"""BoundedLBFGS: L-BFGS within bounds as an optimistix minimizer, so that it runs inside of jit and vmap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree

from .._tree import all_finite, where, zeros_of
from ..components import ComponentVector

DECREASE = 1e-4  # of Armijo's condition
MOST_TRIALS = 30  # in a line search
MOST_IDLE = 10  # steps that lower the loss by no more than rounding
NEAR = 1e-3  # a bound that the gradient leads to is active within this distance, at most


class Point(NamedTuple):
    """Where the loss was evaluated."""

    x: jax.Array
    value: jax.Array
    gradient: jax.Array
    aux: Any


class State(NamedTuple):
    """The accepted point, pairs of steps and changes of the gradient, and the line that is searched from there."""

    point: Point
    steps: jax.Array  # (history_length, n)
    changes: jax.Array
    made: jax.Array  # pairs so far
    direction: jax.Array
    t: jax.Array
    trials: jax.Array
    idle: jax.Array  # accepted steps in a row that lowered the loss by no more than rounding
    converged: jax.Array


class BoundedLBFGS(optx.AbstractMinimiser[Any, Any, State]):
    r"""L-BFGS within bounds, as an optimistix minimizer: `minimize(..., method="BoundedLBFGS", bounds=...)`.

    Unlike SciPy's `"L-BFGS-B"` it is a JAX program: `optimistix.minimise` with it runs inside of `jax.jit` and
    `jax.vmap`, with the bounds in its `options`, `dict(lower=..., upper=...)`, each a number or like the parameters.
    Options:

    * `rtol`, `atol`: converged where both a step and the fall of the loss are within `atol + rtol |.|`, or where no
      step lowers the loss;
    * `history_length`: the number of pairs that the inverse Hessian is made of;
    * `norm`: of a step, relative to its tolerance.

    Two-metric projection: parameters that are on a bound, or nearly, to which the gradient leads, take a step along
    it, and the others one of L-BFGS that knows these alone; the whole step is projected onto the bounds, and halved
    until the loss falls enough. A step of the solver is one evaluation of the loss and its gradient. Points of which
    one is not finite are rejected.

    Bertsekas, "Projected Newton methods for optimization problems with simple constraints", SIAM J. Control Optim. 20
    (1982); Schmidt, Kim and Sra, "Projected Newton-type methods in machine learning" (2011).

    >>> import jax, jax.numpy as jnp, optimistix
    >>> valley = lambda y, a: 100 * (y[1] - y[0] ** 2) ** 2 + (a - y[0]) ** 2
    >>> solver, box = BoundedLBFGS(1e-6, 1e-6), dict(lower=-1.0, upper=jnp.array([0.5, 2.0]))
    >>> solve = lambda a: optimistix.minimise(valley, solver, jnp.zeros(2), a, options=box, max_steps=500).value
    >>> found = jax.jit(jax.vmap(solve))(jnp.array([0.2, 1.0]))
    >>> bool(jnp.allclose(found, jnp.array([[0.2, 0.04], [0.5, 0.25]]), atol=1e-3))
    True
    """

    rtol: float
    atol: float
    history_length: int = eqx.field(static=True, default=10)
    norm: Callable[[Any], jax.Array] = eqx.field(static=True, default=optx.max_norm)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> State:
        x, _ = ravel_pytree(y)
        aux = zeros_of(aux_struct)
        start = Point(jnp.clip(x, *_box(options, y, x)), jnp.full((), jnp.inf, x.dtype), jnp.zeros_like(x), aux)
        empty = jnp.zeros((self.history_length, x.size), x.dtype)
        none = jnp.array(0, jnp.int32)
        return State(start, empty, empty, none, jnp.zeros_like(x), jnp.ones((), x.dtype), none, none, jnp.array(False))

    def step(self, fn, y, args, options, state, tags) -> tuple[Any, State, Any]:
        x, unravel = ravel_pytree(y)
        box = _box(options, y, x)
        x = jnp.clip(x, *box)  # the first one

        def loss(x):
            value, aux = fn(unravel(x), args)
            return value.astype(x.dtype), aux

        (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        new, old = Point(x, value, gradient, aux), state.point
        first, s = jnp.isinf(old.value), x - old.x
        slope = old.gradient @ s
        rounding = 10 * jnp.finfo(x.dtype).eps * jnp.abs(old.value)
        enough = (value <= old.value + DECREASE * slope) | ((value <= old.value + rounding) & (gradient @ s <= 0))
        finite = jnp.isfinite(value) & all_finite(gradient)
        accepted = first | (finite & enough & (slope < 0))
        point = where(accepted, new, old)

        z = gradient - old.gradient
        usable = accepted & ~first & (s @ z > jnp.finfo(x.dtype).eps * (z @ z))
        slot = state.made % self.history_length
        steps = jnp.where(usable, state.steps.at[slot].set(s), state.steps)
        changes = jnp.where(usable, state.changes.at[slot].set(z), state.changes)
        count = state.made + usable.astype(state.made.dtype)

        tired = ~accepted & (state.trials >= MOST_TRIALS)
        count = jnp.where(tired, 0, count)  # and once more along the gradient
        direction = _direction(point, box, steps, changes, count)
        direction = jnp.where(accepted | tired, direction, state.direction)
        length = jnp.linalg.norm(direction)
        full = jnp.where((count == 0) & (length > 1), 1 / jnp.where(length > 0, length, 1), 1).astype(x.dtype)
        parabola = -slope / (2 * jnp.where(value == old.value, 1, value - old.value - slope))
        shorter = state.t * jnp.where(finite, jnp.clip(jnp.nan_to_num(parabola, nan=0.1), 0.1, 0.5), 0.1)
        t = jnp.where(accepted | tired, full, shorter.astype(x.dtype))
        ahead = jnp.clip(point.x + t * direction, *box)

        near = self.norm(jnp.abs(s) / (self.atol + self.rtol * jnp.abs(x))) < 1
        flat = jnp.abs(old.value - value) < self.atol + self.rtol * jnp.abs(value)
        level = accepted & ~first & (old.value - value <= rounding)
        idle = jnp.where(level, state.idle + 1, jnp.where(accepted, 0, state.idle))
        nowhere = jnp.all(ahead == point.x) & (accepted | tired)
        over = (accepted & ~first & near & flat) | nowhere | (tired & (state.made == 0)) | (idle >= MOST_IDLE)
        over |= first & ~finite
        trials = jnp.where(accepted | tired, 0, state.trials + 1).astype(state.trials.dtype)
        state = State(point, steps, changes, count.astype(state.made.dtype), direction, t, trials, idle, over)
        return unravel(ahead), state, new.aux

    def terminate(self, fn, y, args, options, state, tags) -> tuple[jax.Array, optx.RESULTS]:
        failed = state.converged & ~jnp.isfinite(state.point.value)
        return state.converged, optx.RESULTS.where(failed, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful)

    def postprocess(self, fn, y, aux, args, options, state, tags, result) -> tuple[Any, Any, dict[str, Any]]:
        return ravel_pytree(y)[1](state.point.x), state.point.aux, {}


def _box(options: dict[str, Any], y: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower and upper bounds `(n,)`."""

    def side(name, free):
        bound = options.get(name)
        if bound is None:
            return jnp.full(x.shape, free, x.dtype)
        if isinstance(bound, ComponentVector) and isinstance(y, ComponentVector):
            y.layout.require_same(bound.layout)
        if jax.tree.structure(bound) == jax.tree.structure(y):
            bound = jax.tree.map(lambda b, leaf: jnp.broadcast_to(jnp.asarray(b, leaf.dtype), leaf.shape), bound, y)
            return ravel_pytree(bound)[0]
        return jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape)

    return side("lower", -jnp.inf), side("upper", jnp.inf)


def _direction(
    point: Point, box: tuple[jax.Array, jax.Array], steps: jax.Array, changes: jax.Array, count: jax.Array
) -> jax.Array:
    """Where to search: L-BFGS for the parameters that are free, along the gradient for those at active bounds."""
    x, g, (lower, upper) = point.x, point.gradient, box
    near = jnp.minimum(NEAR, jnp.max(jnp.abs(x - jnp.clip(x - g, lower, upper)), initial=0))
    active = ((x <= lower + near) & (g > 0)) | ((x >= upper - near) & (g < 0))
    free = jnp.where(active, 0, 1).astype(x.dtype)
    m = len(steps)
    order = (count - 1 - jnp.arange(m, dtype=count.dtype)) % m  # the newest pair first
    s, z = steps[order] * free, changes[order] * free
    sz, zz = jnp.sum(s * z, 1), jnp.sum(z * z, 1)
    usable = (jnp.arange(m, dtype=count.dtype) < count) & (sz > jnp.finfo(x.dtype).eps * zz)
    rho = jnp.where(usable, 1 / jnp.where(usable, sz, 1), 0)

    def down(q, pair):
        s, z, rho = pair
        a = rho * (s @ q)
        return q - a * z, a

    q, a = jax.lax.scan(down, g * free, (s, z, rho))
    latest = jnp.argmax(usable)  # of those that count
    scale = jnp.where(usable.any(), sz[latest] / jnp.where(zz[latest] > 0, zz[latest], 1), 1).astype(x.dtype)

    def up(r, pair):
        s, z, rho, a = pair
        return r + (a - rho * (z @ r)) * s, None

    r, _ = jax.lax.scan(up, scale * q, (s, z, rho, a), reverse=True)
    downhill = r @ g > 0
    return -jnp.where(active, scale * g, jnp.where(downhill, r, g))
