"""NeuralSDE and NeuralDSDE: layers whose output is a solution of a stochastic differential equation."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._compat import BrownianTree
from ..._tree import describe, is_traced
from ...components import ComponentVector
from ...core import Constant, Container, Layer, as_layer, field
from ...core.converters import count, optional
from ..equation import Equation, Fields, Problem, diffeqsolve, solver_object
from ..times import save_times


class _StochasticEquation(Container, Equation):
    """What the equations with diagonal and with general noise share: all but the product of diffusion and noise."""

    fixed_steps: ClassVar = True
    lacks: ClassVar = {"events": "its path crosses a threshold again and again, within any time"}
    diagonal: ClassVar[bool]

    drift: Layer = field(converter=as_layer)
    diffusion: Layer = field(converter=as_layer)
    ts: Constant | None = field(default=None, converter=save_times)
    trajectories: int | None = field(default=None, converter=optional(count), kw_only=True)
    solver: diffrax.AbstractSolver | Constant = field(default=diffrax.Euler(), converter=solver_object, kw_only=True)

    def __check_init__(self):
        if self.ts is not None:
            require_forward(np.asarray(self.ts))
        require_steps(self)

    def init_state(self, key):
        return {**super().init_state(key), "key": jax.random.fold_in(key, len(self))}

    def problem(self, x, ps, st):
        problem, st = super().problem(x, ps, st)
        if not is_traced(problem.ts):
            require_forward(np.asarray(problem.ts))
        key, next_key = jax.random.split(st["key"])
        if self.batching == "vmap":
            key = jax.random.split(key, jnp.shape(jax.tree.leaves(problem.y0)[0])[:1])
        return problem._replace(data=key), {**st, "key": next_key}

    def solve(self, fields):
        y0 = fields.problem.y0
        if self.trajectories is not None:
            y0 = jax.tree.map(lambda y: jnp.broadcast_to(y, (self.trajectories, *y.shape)), y0)
        fields = Fields(fields, fields.problem._replace(y0=y0), fields.ps)
        return diffeqsolve(self, self.terms(fields), y0, fields)

    def terms(self, fields):
        return stochastic_terms(
            self, fields["drift"], fields["diffusion"].value, fields.problem, fields.ps, self.diagonal
        )


def stochastic_terms(
    equation: Equation, drift: Callable, diffusion: Callable, problem: Problem, ps: Any, diagonal: bool
) -> diffrax.MultiTerm:
    """The terms `drift(t, y, ps) dt + diffusion(t, y, ps) dW`; the random key of the path is the problem's `data`."""
    y0, ts = problem.y0, problem.ts
    diffusion = _Diffusion(diffusion, type(equation).__name__, diagonal)
    g0 = jax.eval_shape(diffusion, ts[0], y0, ps)
    if diagonal:
        motions = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype), y0)
    else:
        y, g = jax.tree.leaves(y0)[0], jax.tree.leaves(g0)[0]
        motions = jax.ShapeDtypeStruct((*y.shape[:-1], g.shape[-1]), y.dtype)
    fixed = equation.dt0 if equation.stepsize_controller is None else None
    tol = (ts[-1] - ts[0]) / 2**16 if fixed is None else fixed / 2
    path = BrownianTree(ts[0], ts[-1], tol, motions, problem.data, _levy_area(equation.option("solver")))
    return diffrax.MultiTerm(diffrax.ODETerm(drift), _Noise(diffusion, path, diagonal))


def require_steps(equation: Equation) -> None:
    """Raise `ValueError` where an equation says nothing about its steps."""
    if equation.stepsize_controller is None and (equation.dt0 is None or not equation.has_default("rtol", "atol")):
        raise ValueError(
            f"a {type(equation).__name__} takes fixed steps, `dt0=...`, or adaptive ones with a solver that estimates "
            "its error, `stepsize_controller=diffrax.PIDController(rtol, atol)`"
        )


class NeuralSDE(_StochasticEquation):
    r"""A path of :math:`dy = f(t, y) dt + g(t, y) dW`, with layers `drift` and `diffusion`, for general noise.

    The drift maps `(..., n)` to `(..., n)`, the diffusion to `(..., n, m)`: `m` Brownian motions, by its shape; where
    the state is a tree, for each of its arrays, all driven by the same motions. Input, output and options are those of
    `lux.Equation`; beside them

    * `trajectories`: the number of paths for each initial value, along a new axis after that of the times: `ys` are
      `(times, trajectories, *y0.shape)`, or `(batch, times, trajectories, ...)` with `batching="vmap"`;
      `lux.diffeq.ensemble_moments` are their mean and variance;
    * `solver`: it says which integral is meant, Ito's with `diffrax.Euler()`, the default, and `ItoMilstein`;
      Stratonovich's with `EulerHeun`, `Heun`, `Midpoint`, `ReversibleHeun`, `SPaRK` and others;
    * `dt0`: the size of the steps, or `stepsize_controller`: an adaptive one, for a solver that estimates its error.
      Between steps the solution is interpolated linearly: let `dt0` divide the distances of `ts`.

    The Brownian path is drawn once per solve, from `key` in the state, which is renewed in the state that comes out.
    Another `dt0` sees the same path, at another resolution. `ItoMilstein` builds a Jacobian over all elements of a
    solve: give it many samples by `batching="vmap"`, not as one joint equation.

    Li et al., "Scalable gradients for stochastic differential equations", AISTATS 2020; as the generator of a GAN:
    Kidger et al., "Neural SDEs as infinite-dimensional GANs", ICML 2021. Raises `ValueError` where there is neither
    `dt0` nor a controller, for times that do not increase, and for a diffusion of another shape.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> diffusion = lux.Chain(lux.Dense(2, 6), lambda g: g.reshape(*g.shape[:-1], 2, 3))
    >>> sde = lux.NeuralSDE(lux.Dense(2, 2), diffusion, ts=[0.0, 0.5, 1.0], dt0=0.1, trajectories=100)
    >>> ps, st = lux.setup(jax.random.key(0), sde)
    >>> sol, st = sde(jnp.ones(2), ps, st)
    >>> mean, variance = lux.diffeq.ensemble_moments(sol.ys)
    >>> sol.ys.shape, mean.shape
    ((3, 100, 2), (3, 2))
    """

    diagonal = False


class NeuralDSDE(_StochasticEquation):
    r"""A path of :math:`dy_i = f_i(t, y) dt + g_i(t, y) dW_i`: diagonal noise, one Brownian motion for each element.

    * `drift`, `diffusion`: layers from `y` to its shape;
    * `trajectories`, `solver`, `dt0`: as in `NeuralSDE`, as is all else;
    * the options of `lux.Equation`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> sde = lux.NeuralDSDE(lux.Dense(2, 2), lux.Dense(2, 2), ts=[0.0, 1.0], dt0=0.1, output="final")
    >>> ps, st = lux.setup(jax.random.key(0), sde)
    >>> sde(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)
    """

    diagonal = True


class _Diffusion(eqx.Module):
    """The diffusion `g(t, y, ps)` in the form of the state: its arrays `(..., n)`, if the noise is general with `m`
    motions each `(..., n, m)`. Anything else is refused."""

    value: Callable
    equation: str = eqx.field(static=True)
    diagonal: bool = eqx.field(static=True)

    def __call__(self, t, y, ps):
        g, name = self.value(t, y, ps), f"the diffusion of a {self.equation}"
        if isinstance(y, ComponentVector) and isinstance(g, dict) and self.diagonal:
            g = ComponentVector.from_tree(g, like=y)
        if isinstance(y, ComponentVector) and isinstance(g, jax.Array):
            g = jax.tree.structure(y).unflatten([g])
        if jax.tree.structure(g) != jax.tree.structure(y):
            raise ValueError(f"{name} is a tree like the state, {describe(y)}; got {describe(g)}")
        ys, gs = jax.tree.leaves(y), jax.tree.leaves(g)
        for a, b in zip(ys, gs, strict=True):
            if b.shape != a.shape if self.diagonal else (b.shape[:-1], b.ndim) != (a.shape, a.ndim + 1):
                shape = a.shape if self.diagonal else f"({', '.join(map(str, (*a.shape, 'noises')))})"
                raise ValueError(f"{name} has shape {shape} here, got {b.shape}")
        if not self.diagonal and len({(a.shape[:-1], b.shape[-1]) for a, b in zip(ys, gs, strict=True)}) > 1:
            raise ValueError(
                f"{name} drives all arrays of a state by the same noises: they share all axes but the last, and it has "
                f"as many noises for each; got {describe(g)} for the state {describe(y)}"
            )
        return g


class _Noise(diffrax.AbstractTerm):
    """The term `g(t, y) dW` for batches."""

    vector_field: _Diffusion
    path: diffrax.AbstractBrownianPath
    diagonal: bool = eqx.field(static=True)

    def vf(self, t, y, args):
        return self.vector_field(t, y, args)

    def contr(self, t0, t1, **kwargs):
        return self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf, control):
        if self.diagonal:
            return jax.tree.map(jnp.multiply, vf, control)
        return jax.tree.map(lambda g: _times(g, control), vf)


def _times(g: jax.Array, noise: jax.Array) -> jax.Array:
    """`g @ noise`, sample by sample, of `(..., n, m)` and `(..., m)`; also for one number, `(m,)`."""
    return g @ noise if g.ndim == 1 else jnp.einsum("...ij,...j->...i", g, noise)


def ensemble_moments(ys: jax.Array, axis: int = 1) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of an ensemble of paths along an axis, by default that of `trajectories` in `ys`.

    The variance is the unbiased one. Raises `ValueError` where there are fewer than two paths.

    >>> import jax.numpy as jnp
    >>> ensemble_moments(jnp.array([[1.0, 3.0], [2.0, 2.0]]))
    (Array([2., 2.], dtype=float32), Array([2., 0.], dtype=float32))
    """
    if ys.ndim <= axis or ys.shape[axis] < 2:
        raise ValueError(f"moments need two paths or more along axis {axis}, got an array of shape {ys.shape}")
    return jnp.mean(ys, axis), jnp.var(ys, axis, ddof=1)


def _levy_area(solver: diffrax.AbstractSolver) -> type:
    """The increments of the Brownian path that a solver asks for: alone, or with the areas of higher order."""
    needed = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    kinds = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
    return next(kind for kind in kinds if issubclass(kind, needed))


def require_forward(ts: np.ndarray) -> None:
    if not np.all(ts[..., 0] < ts[..., -1]):
        raise ValueError("a stochastic equation runs forward in time: its `ts` must increase")
