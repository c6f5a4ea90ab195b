"""Profile likelihoods: one parameter held, all others fitted again, by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe
from ..components import ComponentVector
from ..components.constraints import bounds
from ..components.nodes import Path
from ..components.printing import in_columns
from ..core.converters import checks_itself
from ..derivatives import hessian
from ..optimize import minimize

CROSSED, AT_LIMIT, OPEN = "threshold", "limit", "open"
CLOSE = 0.02  # of the threshold: how near to it a point must lie that ends the search
NEARER = 20  # steps to a fourth, at most, where points lie far beyond the threshold


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ProfileLikelihood:
    """The profile of one element of the parameters.

    * `name`: its label, `"physics.rate"`;
    * `values`: `(k,)`, ascending, where it was held; `optimum`, where it was at the start;
    * `nll`: `(k,)`, the negative log-likelihood, lowest over the other parameters; `threshold`, that of the ends of
      the confidence interval;
    * `params`: the parameters there, a batch `(k, n)`;
    * `interval`: where the profile crosses the threshold, minus or plus infinity where it does not;
    * `ends`: why the search ended below and above: `"threshold"` was crossed, the `"limit"` reached, or it is `"open"`
      after `max_points` points, as where the data do not fix the parameter.

    >>> p = ComponentVector(a=1.0, b=2.0)
    >>> profile = profile_likelihood(lambda p: (p.a - 1) ** 2 / 2 + (p.b - 2) ** 2, p, "a")["a"]
    >>> profile
    parameter  optimum  lower      upper    ends below  above
    a          1        -0.959964  2.95996  threshold   threshold
    >>> profile.values.shape, profile.params.shape
    ((11,), (11, 2))
    """

    name: str
    optimum: float
    values: np.ndarray
    nll: np.ndarray
    threshold: float
    params: ComponentVector
    interval: tuple[float, float]
    ends: tuple[str, str]

    def __repr__(self) -> str:
        return repr(Profiles({self.name: self}))


class Profiles(dict[str, ProfileLikelihood]):
    """A dict of `ProfileLikelihood`, by the labels of the elements; printed as a table of their confidence intervals.

    >>> nll = lambda p: jnp.sum(p.rates**2) / 2
    >>> profile_likelihood(nll, ComponentVector(rates=[0, 0]), "rates", limits={"rates": (0, None)})
    parameter  optimum  lower  upper    ends below  above
    rates[0]   0        -inf   1.95996  limit       threshold
    rates[1]   0        -inf   1.95996  limit       threshold
    """

    def __repr__(self) -> str:
        rows = [("parameter", "optimum", "lower", "upper", "ends below", "above")]
        rows += [(p.name, *(f"{x:.6g}" for x in (p.optimum, *p.interval)), *p.ends) for p in self.values()]
        return "\n".join(in_columns(rows))


@checks_itself
def profile_likelihood(
    nll: Callable[..., Any],
    ps: ComponentVector,
    *paths: str | Path,
    args: Any = None,
    limits: Mapping[str | Path, Any] | None = None,
    level: float = 0.95,
    points: int = 5,
    max_points: int = 20,
    method: Any = "L-BFGS-B",
    max_steps: int = 200,
) -> Profiles:
    r"""Profile likelihoods of the elements of the parameters at some paths, and the confidence intervals they give.

    The profile of an element :math:`p_i` is :math:`\min_{p_j, j \ne i} -\log L(p)` as a function of it, and its
    confidence interval is where that is at most :math:`\chi^2_1(level) / 2` above the lowest value: unlike standard
    errors it need not be symmetric, and is infinite where the data do not fix the parameter.

    * `nll(ps)`, or `nll(ps, args)`: the negative log-likelihood, such as :math:`\frac12 \sum_i r_i^2 / \sigma_i^2`;
      with terms of priors, the profile is of the posterior density.
    * `ps`: where it is lowest, as `lux.minimize` or `lux.least_squares` found it.
    * `paths`: patterns as for `Layout.mask`: `"physics.*"`; one profile for each element of what they match.
    * `limits`: by name as for `lux.constraints.bounds`, `{"physics.*": (0, None)}`. A profile stops at those of its
      element; the other parameters are fitted within theirs.
    * `level`: the confidence of the intervals.
    * `points`: on each side, from the lowest value to the threshold, were the profile a parabola; from there steps
      grow on flat and shrink on steep ones. `max_points` on each side at the most, without those beyond the threshold.
    * `method`, `max_steps`: of `lux.minimize`, for each fit. These begin where the last two point to, in coordinates
      in which the Hessian at `ps` is the identity (with limits, its diagonal), so that some steps suffice.

    Raises `KeyError` for a path that matches nothing, `TypeError` for parameters without names, `ValueError` where the
    likelihood or its gradient is not finite at `ps`, where `ps` is outside of the limits, or where a fit ends below the
    lowest value by more than 2% of the threshold's distance: then `ps` is not the minimum, and the message has the way
    on.

    Raue et al., "Structural and practical identifiability analysis of partially observed dynamical models by exploiting
    the profile likelihood", Bioinformatics 25, 2009.

    >>> import lux_sciml as lux
    >>> t = jnp.linspace(0.0, 2.0, 20)
    >>> y = 2.0 * jnp.exp(-t) + 0.05 * jnp.cos(9.0 * t)
    >>> def nll(p):
    ...     return jnp.sum((p.scale * jnp.exp(-p.rate * t) - y) ** 2) / (2 * 0.05**2)
    >>> fit = lux.minimize(nll, lux.ComponentVector(scale=1, rate=1), method="BFGS")
    >>> profile = profile_likelihood(nll, fit.params, "rate")["rate"]
    >>> lower, upper = profile.interval
    >>> bool(lower < 1.0 < upper), profile.ends
    (True, ('threshold', 'threshold'))
    """
    from scipy.stats import chi2

    if not 0 < level < 1:
        raise ValueError(f"level is the confidence, between 0 and 1, got {level:g}")
    if not isinstance(ps, ComponentVector):
        raise TypeError(f"profiles go by the names of a ComponentVector, got {describe(ps)}")
    if not paths:
        raise ValueError('name the components whose profiles you want: profile_likelihood(nll, ps, "physics.*")')
    if min(points, max_points) < 1:
        raise ValueError(f"a profile has one point on each side at least, got points={points}, max_points={max_points}")
    chosen = np.flatnonzero(ps.layout.mask(*paths))
    box = bounds(ps, limits or {})
    lower, upper = (np.asarray(side.data, float) for side in box)
    outside = np.flatnonzero((ps.data < lower) | (ps.data > upper))
    if outside.size:
        i = int(outside[0])
        raise ValueError(
            f"`{ps.layout.label(i)}` is {float(ps.data[i]):.6g} at ps, outside of its limits, {lower[i]:.6g} to "
            f"{upper[i]:.6g}: fit all parameters within the limits first"
        )
    problem = _Profiled(nll, ps, args, (lower, upper), method, max_steps)
    threshold = problem.lowest + float(chi2.ppf(level, 1)) / 2
    profiles = (_profile(problem, int(i), threshold, points, max_points) for i in chosen)
    return Profiles({profile.name: profile for profile in profiles})


class _Profiled:
    """A likelihood, and the fits of all parameters but one."""

    def __init__(self, nll: Any, ps: ComponentVector, args: Any, box: Any, method: Any, max_steps: int):
        self.ps, self.args, self.box, self.method, self.max_steps = ps, args, box, method, max_steps
        self.flat, layout = np.asarray(ps.data, float), ps.layout
        of_ps = (lambda ps: nll(ps)) if args is None else (lambda ps: nll(ps, args))
        value, gradient = jax.jit(jax.value_and_grad(of_ps))(ps)
        wrong = np.flatnonzero(~np.isfinite(np.asarray(gradient.data)))
        if not np.isfinite(value) or wrong.size:
            what = f"its derivative by `{layout.label(int(wrong[0]))}`" if np.isfinite(value) else "it"
            number = gradient.data[wrong[0]] if np.isfinite(value) else value
            raise ValueError(f"the negative log-likelihood has no profile from here: {what} is {float(number)} at ps")
        self.lowest = float(value)
        self.curvature = np.asarray(hessian(of_ps)(ps).data, float)
        self.boxed = bool(np.isfinite(box).any())

        def loss(z, given):  # one function for all fits, which then compile once
            others = given["start"] + given["root"] @ z
            flat = jnp.zeros(layout.size, z.dtype).at[given["others"]].set(others).at[given["held"]].set(given["value"])
            full = ComponentVector(flat, layout)
            return nll(full) if args is None else nll(full, given["args"])

        self.loss = loss

    def others(self, i: int) -> np.ndarray:
        return np.delete(np.arange(self.flat.size), i)

    def root(self, i: int) -> np.ndarray:
        """A root of the inverse Hessian of the other parameters; of its diagonal, where they have limits."""
        others = self.others(i)
        block = self.curvature[np.ix_(others, others)]
        if self.boxed:
            return np.diag(1 / np.sqrt(np.maximum(np.diag(block), _floor(np.diag(block)))))
        values, vectors = np.linalg.eigh((block + block.T) / 2)
        return vectors / np.sqrt(np.maximum(values, _floor(values)))

    def response(self, i: int, root: np.ndarray) -> np.ndarray:
        """How the other parameters follow the one that is held, to first order."""
        return -root @ (root.T @ self.curvature[self.others(i), i])

    def fit(self, i: int, value: float, start: np.ndarray, root: np.ndarray) -> tuple[float, np.ndarray]:
        """The lowest value with element i held, and the parameters there."""
        others, dtype = self.others(i), self.ps.dtype
        full = start.copy()
        full[i] = value
        given = {"start": jnp.asarray(full[others], dtype), "root": jnp.asarray(root, dtype), "args": self.args}
        given |= {"others": jnp.asarray(others), "held": jnp.asarray(i), "value": jnp.asarray(value, dtype)}
        if not others.size:
            return float(self.loss(given["start"], given)), full
        box = None
        if self.boxed:
            scale = np.diag(root)
            box = tuple((side[others] - full[others]) / scale for side in self.box)
        found = minimize(
            self.loss,
            jnp.zeros(others.size, dtype),
            method=self.method,
            args=given,
            bounds=box,
            max_steps=self.max_steps,
        )
        full[others] += root @ np.asarray(found.params, float)
        return found.value, full


def _floor(values: np.ndarray) -> float:
    """What eigenvalues count at least: directions that are flat at the start are not taken for endless."""
    return 1e-8 * float(np.abs(values).max(initial=0.0)) or 1.0


def _profile(problem: _Profiled, i: int, threshold: float, points: int, max_points: int) -> ProfileLikelihood:
    root = problem.root(i)
    response = problem.response(i, root)
    across = problem.curvature[i, i] + problem.curvature[i, problem.others(i)] @ response  # of the profile, at its top
    distance = np.sqrt(2 * (threshold - problem.lowest))
    width = distance / np.sqrt(across) if across > 1e-12 * abs(problem.curvature[i, i]) else np.inf
    if not np.isfinite(width):
        width = max(abs(problem.flat[i]), 1.0)
    sides = []
    for sign in (-1.0, 1.0):
        sides.append(_side(problem, i, threshold, sign, width / points, response, root, max_points))
    (below, low, why_low), (above, high, why_high) = sides
    track = [*below[::-1], (problem.flat[i], problem.lowest, problem.flat), *above]
    values, nll, params = (np.asarray(column) for column in zip(*track, strict=True))
    optimum = float(problem.flat[i])
    rows = ComponentVector(jnp.asarray(params, problem.ps.dtype), problem.ps.layout)
    label = problem.ps.layout.label(i) or "p"
    return ProfileLikelihood(label, optimum, values, nll, threshold, rows, (low, high), (why_low, why_high))


def _side(
    problem: _Profiled,
    i: int,
    threshold: float,
    sign: float,
    step: float,
    response: np.ndarray,
    root: np.ndarray,
    max_points: int,
) -> tuple[list[tuple[float, float, np.ndarray]], float, str]:
    """The points on one side, from the optimum on, where it crosses the threshold, and why it ended."""
    others, limit = problem.others(i), problem.box[0 if sign < 0 else 1][i]
    here, nll, at = problem.flat[i], problem.lowest, problem.flat
    slope, rise = response, threshold - problem.lowest
    wanted = rise / 8
    track: list[tuple[float, float, np.ndarray]] = []

    def point(value: float) -> tuple[float, float, np.ndarray]:
        start = at.copy()
        start[others] += (value - here) * slope
        start[others] = np.clip(start[others], problem.box[0][others], problem.box[1][others])
        found, params = problem.fit(i, value, start, root)
        if not np.isfinite(found):
            return value, np.inf, params
        if found < problem.lowest - CLOSE * rise:
            raise ValueError(
                f"with `{problem.ps.layout.label(i)}` held at {value:.6g} the negative log-likelihood is {found:.6g}, "
                f"below the {problem.lowest:.6g} at ps: ps is not the minimum; fit all parameters again, by "
                "lux.minimize from other starts or with more steps"
            )
        return value, found, params

    beyond, nearer = None, 0
    while len(track) < max_points:
        value = here + sign * step
        if sign * (value - limit) >= 0:
            value = limit
        if value == here:
            return track, sign * np.inf, AT_LIMIT
        new = point(value)
        if new[1] > threshold + 3 * rise and nearer < NEARER and step > 1e-6 * abs(here):  # far beyond
            beyond, nearer, step = new, nearer + 1, step / 4
            continue
        if new[1] >= threshold:
            beyond = new
            break
        slope = (new[2][others] - at[others]) / (value - here)
        gained, (here, nll, at) = new[1] - nll, new
        track.append(new)
        if value == limit:
            return track, sign * np.inf, AT_LIMIT
        if gained < wanted / 4:
            step *= 2.0
    if beyond is None or sign * (beyond[0] - here) <= 0:
        return track, sign * np.inf, OPEN
    crossing, extra = _crossing(point, (here, nll), beyond, threshold, problem.lowest, rise)
    return [*track, *sorted([*extra, beyond], key=lambda p: sign * p[0])], crossing, CROSSED


def _crossing(
    point: Callable[[float], tuple[float, float, np.ndarray]],
    inside: tuple[float, float],
    outside: tuple[float, float, np.ndarray],
    threshold: float,
    lowest: float,
    rise: float,
) -> tuple[float, list[tuple[float, float, np.ndarray]]]:
    """Where the profile crosses the threshold, by regula falsi on the root of its height, and the points on the way."""
    height = lambda nll: np.sqrt(max(nll - lowest, 0.0))  # noqa: E731
    a, b, extra, value = inside, outside[:2], [], outside[0]
    for i in range(12):
        share = (height(threshold) - height(a[1])) / (height(b[1]) - height(a[1])) if np.isfinite(b[1]) else 0.5
        value = a[0] + (b[0] - a[0]) * share
        if min(abs(a[1] - threshold), abs(b[1] - threshold)) < CLOSE * rise:
            break
        value = (a[0] + b[0]) / 2 if i % 3 == 2 else value  # regula falsi alone may keep one end for long
        new = point(float(value))
        extra.append(new)
        a, b = (new[:2], b) if new[1] < threshold else (a, new[:2])
    return float(value), extra
