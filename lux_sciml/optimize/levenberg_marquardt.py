"""Levenberg-Marquardt: geodesic acceleration, damping by the gain ratio, scaling by the largest column norms so far."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree

from .._tree import where, zeros_of
from . import damped_systems
from .damped_systems import column_scales, is_dense, least_damping, most_iterations, system, system_of_products
from .robust_losses import Robust

LEAST_GAIN = 1e-4  # of the reduction that the linear model predicts: below, the step is rejected
LONGEST_ACCELERATION = 0.75  # relative to the step
NEARBY = 1e-2  # of the step: for differences of first derivatives
EXACT, DIFFERENCE = GEODESIC = ("exact", "difference")
FORWARD_FACTOR = 4  # a pass in reverse mode costs about as much as so many directions in forward mode


class Evaluated(NamedTuple):
    """Residuals at a point."""

    value: jax.Array  # of the loss: half the sum of squares, or a robust one
    residual: jax.Array  # (m,), scaled as the rows of the Jacobian are
    rows: jax.Array  # (m,): what scales the rows of the Jacobian,
    curved: jax.Array  # (m,): and second derivatives
    jacobian: jax.Array  # (m, n), or (0, n) where it is not stored
    aux: Any = None


class Residuals(abc.ABC):
    """Residuals `(m,)` of a flat vector `(n,)`, as the solver takes them."""

    loss: Robust = Robust()

    @abc.abstractmethod
    def values(self, x: jax.Array) -> tuple[jax.Array, Any]:
        """The residuals, and an aux."""

    @abc.abstractmethod
    def with_jacobian(self, x: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        """The residuals, their Jacobian `(m, n)`, and an aux."""


class State(NamedTuple):
    """The accepted point's residuals, and the next point to try."""

    trial: jax.Array
    point: Evaluated
    squares: jax.Array  # the largest squared norms of the columns so far
    damping: jax.Array
    growth: jax.Array  # of the damping, where the next trial is rejected
    predicted: jax.Array  # the reduction of the loss at the trial
    finite: jax.Array  # whether the last trial was
    converged: jax.Array


def _geodesic(value: str | None) -> str | None:
    if value not in (None, *GEODESIC):
        raise ValueError(f"geodesic is {EXACT!r}, {DIFFERENCE!r} or None, got {value!r}")
    return value


class LevenbergMarquardt(optx.AbstractLeastSquaresSolver[Any, Any, Any, State]):
    r"""The Levenberg-Marquardt method for :math:`\min_y \frac12 |r(y)|^2`, as an optimistix solver.

    `lux.least_squares` takes it as `method="lm"`, and so does `optimistix.least_squares`. A step solves
    :math:`\min_d |J d + r|^2 + \lambda |D d|^2` and adds half the geodesic acceleration, the same system with the
    second derivative of the residuals along d for r. The damping :math:`\lambda` follows from how much of the
    reduction that the linear model predicts was gained, and D are the largest norms so far of the columns of J.

    * `rtol`, `atol`: converged where the loss would fall, and has fallen, by no more than `rtol` of itself, where
      `norm(d / (atol + rtol |y|)) < 1`, or where no cosine between a column of J and r is above `rtol`;
    * `damping`: the first one, relative to D;
    * `geodesic`: how the acceleration's second derivative is found: `"exact"`, forward over forward mode; or
      `"difference"`, of two first ones, which compiles about a tenth faster where residuals solve equations; or `None`,
      for no acceleration, which compiles fastest;
    * `solver`: `"qr"` of J and the damping, without Q or J'J, the most exact; `"cholesky"` of J'J; `"dual"`, of J J',
      where parameters outnumber residuals; `"cg"`, conjugate gradients on products, where J would not fit. By default
      `"qr"` up to 512 parameters, beyond `"dual"` or `"cholesky"`, and `"cg"` for Jacobians above 2^27 elements.
      `"cg"` has D = 1, and needs a residual with both modes of derivatives.

    In `optimistix.least_squares`, `options` may hold `jac="fwd"` or `"bwd"`, the mode of the Jacobian; by default
    forward, unless parameters outnumber residuals by far. The acceleration needs forward mode.

    Marquardt, SIAM J. Appl. Math. 11 (1963); More (1978) for D; Nielsen, "Damping parameter in Marquardt's method"
    (1999); Transtrum & Sethna, arXiv:1201.5885, for the acceleration.

    >>> import jax.numpy as jnp, optimistix
    >>> solver = LevenbergMarquardt(rtol=1e-6, atol=1e-6)
    >>> rosenbrock = lambda y, _: jnp.stack([10 * (y[1] - y[0] ** 2), 1 - y[0]])
    >>> optimistix.least_squares(rosenbrock, solver, jnp.array([-1.2, 1.0])).value.round(3).tolist()
    [1.0, 1.0]
    """

    rtol: float
    atol: float
    norm: Callable[[Any], jax.Array] = eqx.field(static=True, default=optx.max_norm)
    damping: float = 1e-3
    geodesic: str | None = eqx.field(static=True, default=EXACT, converter=_geodesic)
    solver: str | None = eqx.field(static=True, default=None, converter=damped_systems.check)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> State:
        flat, _ = ravel_pytree(y)
        m = sum(leaf.size for leaf in jax.tree.leaves(f_struct))
        return self.start(flat, m, zeros_of(aux_struct))

    def start(self, x: jax.Array, m: int, aux: Any = None) -> State:
        """The state whose first trial is `x`, for m residuals."""
        solver = self.solver or damped_systems.choose(m, x.size)
        none, rows = jnp.zeros((), x.dtype), jnp.zeros(m, x.dtype)
        point = Evaluated(
            none + jnp.inf, rows, rows, rows, jnp.zeros((m if is_dense(solver) else 0, x.size), x.dtype), aux
        )
        return State(x, point, 0 * x, none + self.damping, none + 2, none, jnp.array(True), jnp.array(False))

    def again(self, x: jax.Array, state: State) -> State:
        """The state for other residuals, as of other samples, at the accepted point `x`; the damping stays."""
        point = state.point._replace(value=jnp.full_like(state.point.value, jnp.inf))
        return state._replace(trial=x, point=point, converged=jnp.array(False))

    def step(self, fn, y, args, options, state, tags) -> tuple[Any, State, Any]:
        x, unravel = ravel_pytree(y)
        box = options.get("bounds")
        x, state = self.advance(_Plain(fn, unravel, args, options.get("jac")), x, state, box)
        return unravel(x), state, state.point.aux

    def terminate(self, fn, y, args, options, state, tags) -> tuple[jax.Array, optx.RESULTS]:
        failed = state.converged & ~state.finite
        result = optx.RESULTS.where(failed, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful)
        return state.converged, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result) -> tuple[Any, Any, dict[str, Any]]:
        return y, aux, {}

    def advance(
        self, residuals: Residuals, x: jax.Array, state: State, box: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, State]:
        """Evaluate the trial, accept or reject it, and choose the next one. Never outside of the bounds of `box`.

        What lies on a bound and would leave it is held there, and the step is projected onto the bounds (Bertsekas,
        SIAM J. Control Optim. 20, 1982).
        """
        m, n = state.point.residual.size, x.size
        solver = self.solver or damped_systems.choose(m, n)
        new = self._evaluate(residuals, state.trial, solver)

        finite = jnp.isfinite(new.value) & jnp.all(jnp.isfinite(new.jacobian))
        first = jnp.isinf(state.point.value)
        fallen = state.point.value - new.value
        gain = jnp.where(first, 1, fallen / state.predicted)
        accepted = finite & (first | ((gain > LEAST_GAIN) & (state.predicted > 0)))
        small = self.rtol * state.point.value
        flat = accepted & ~first & (fallen <= small) & (state.predicted <= small)

        factor = jnp.where(first, 1, jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3))
        damping = state.damping * jnp.where(accepted, factor, state.growth)
        damping = jnp.maximum(damping, least_damping(solver, x.dtype)).astype(x.dtype)
        growth = jnp.where(accepted, 2, 2 * state.growth).astype(x.dtype)
        x, point = where(accepted, (state.trial, new), (x, state.point))

        if is_dense(solver):
            jacobian = point.jacobian
            gradient = point.residual @ jacobian
            free = _free(x, gradient, box)
            norms = jnp.sum(jacobian**2, 0)
            squares = jnp.maximum(state.squares, norms)
            jacobian = jacobian if free is None else jacobian * free
            d, solve = system(solver, jacobian, point.residual, column_scales(squares), damping)
            push = lambda v: jacobian @ v  # noqa: E731
            lengths = jnp.sqrt(norms * jnp.sum(point.residual**2))
            cosines = jnp.abs(gradient if free is None else gradient * free) / jnp.where(lengths > 0, lengths, 1)
            level = jnp.max(cosines, initial=0) <= self.rtol
        else:
            squares, level = state.squares, jnp.array(False)
            _, plain = jax.linearize(lambda x: residuals.values(x)[0], x)
            pull_plain = jax.linear_transpose(plain, x)
            gradient = pull_plain(point.rows * point.residual)[0]
            finite &= jnp.all(jnp.isfinite(gradient))
            free = _free(x, gradient, box)
            mask = (lambda v: v) if free is None else (lambda v: v * free)
            push = lambda v: point.rows * plain(mask(v))  # noqa: E731
            pull = lambda w: mask(pull_plain(point.rows * w)[0])  # noqa: E731
            d, solve = system_of_products(push, pull, point.residual, damping, 1e-3, most_iterations(n))

        if box is not None:
            d = jnp.clip(x + d, *box) - x
        ahead = d
        if self.geodesic is not None:
            along = lambda x: jax.jvp(lambda x: residuals.values(x)[0], (x,), (d,))[1]  # noqa: E731
            if self.geodesic == EXACT:
                second = jax.jvp(along, (x,), (d,))[1]
            else:
                second = (along(x + NEARBY * d) - push(d) / point.rows) / NEARBY
            acceleration = solve(point.curved * second)
            length, longest = jnp.linalg.norm(acceleration), LONGEST_ACCELERATION * jnp.linalg.norm(d)
            shorter = jnp.where(length > longest, longest / length, 1)
            acceleration = jnp.where(jnp.isfinite(length), shorter * acceleration, 0)
            ahead = d + acceleration / 2
        trial = x + ahead
        if box is not None:
            trial = jnp.clip(trial, *box)
            ahead = trial - x
        predicted = -(gradient @ d) - jnp.sum(push(d) ** 2) / 2
        short = self.norm(jnp.abs(ahead) / (self.atol + self.rtol * jnp.abs(x))) < 1
        still = finite & first & (point.value == 0)
        converged = flat | (accepted & level) | short | still | ((first | accepted) & ~finite)
        return x, State(trial, point, squares, damping, growth, predicted, finite, converged)

    def _evaluate(self, residuals: Residuals, x: jax.Array, solver: str) -> Evaluated:
        if is_dense(solver):
            r, jacobian, aux = residuals.with_jacobian(x)
        else:
            (r, aux), jacobian = residuals.values(x), jnp.zeros((0, x.size), x.dtype)
        value = residuals.loss.value(r)
        if residuals.loss.name == "linear":
            return Evaluated(value, r, jnp.ones_like(r), jnp.ones_like(r), jacobian, aux)
        rows, curved = residuals.loss.scales(r)
        return Evaluated(value, curved * r, rows, curved, rows[:, None] * jacobian if len(jacobian) else jacobian, aux)


class _Plain(Residuals):
    """The residual function of an optimistix problem, between flat vectors."""

    def __init__(self, fn: Callable, unravel: Callable, args: Any, jac: str | None):
        if jac not in (None, "fwd", "bwd"):
            raise ValueError(f"the option jac is 'fwd' or 'bwd', got {jac!r}")
        self.fn, self.unravel, self.args, self.jac = fn, unravel, args, jac

    def values(self, x: jax.Array) -> tuple[jax.Array, Any]:
        out, aux = self.fn(self.unravel(x), self.args)
        return ravel_pytree(out)[0].astype(x.dtype), aux

    def with_jacobian(self, x: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        m = jax.eval_shape(self.values, x)[0].size if self.jac is None else 0
        forward = self.jac == "fwd" or (self.jac is None and prefers_forward(m, x.size))
        return (forward_jacobian if forward else reverse_jacobian)(self.values, x)


def prefers_forward(m: int, n: int) -> bool:
    """Whether the Jacobian of m residuals by n parameters is cheaper in forward mode."""
    return n <= FORWARD_FACTOR * m


def forward_jacobian(f: Callable[[jax.Array], tuple[jax.Array, Any]], x: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """The value, the Jacobian and the aux of `f`: one pass, in n directions at once."""
    push = lambda v: jax.jvp(f, (x,), (v,), has_aux=True)  # noqa: E731
    value, columns, aux = jax.vmap(push)(jnp.eye(x.size, dtype=x.dtype))
    return value[0], columns.T, jax.tree.map(lambda a: a[0], aux)


def reverse_jacobian(f: Callable[[jax.Array], tuple[jax.Array, Any]], x: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """The same by one pass backward for each element of the value."""
    value, pull, aux = jax.vjp(f, x, has_aux=True)
    if value.size == 1:
        return value, pull(jnp.ones_like(value))[0][None], aux
    return value, jax.vmap(pull)(jnp.eye(value.size, dtype=value.dtype))[0], aux


def _free(x: jax.Array, gradient: jax.Array, box: tuple[jax.Array, jax.Array] | None) -> jax.Array | None:
    """One where a parameter may move, zero where the descent would take it out of its bounds."""
    if box is None:
        return None
    held = ((x <= box[0]) & (gradient > 0)) | ((x >= box[1]) & (gradient < 0))
    return jnp.where(held, 0, 1).astype(x.dtype)
