"""NeuralSDE and NeuralDSDE: layers whose output is a solution of a stochastic differential equation."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core import Container, Layer
from ..equation import Equation, batched, initial_value_and_times, output, renewed, save_times, solve
from ..field import Field, FrozenLayer, OfChild


class _StochasticEquation(Container, Equation):
    """What the equations with diagonal and with general noise share: all but the product of diffusion and noise."""

    diagonal: ClassVar[bool]

    drift: Layer
    diffusion: Layer
    ts: Any = None
    time_dependent: bool = field(default=False, kw_only=True)
    trajectories: int | None = field(default=None, kw_only=True)
    solver: Any = field(default=diffrax.Euler(), kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self.ts = save_times(self.ts)
        if self.ts is not None:
            _require_forward(np.asarray(self.ts))
        if self.stepsize_controller is None and (self.dt0 is None or (self.rtol, self.atol) != (1e-6, 1e-8)):
            raise ValueError(
                f"a {type(self).__name__} takes fixed steps, `dt0=...`, or adaptive ones with a solver that estimates "
                "its error, `stepsize_controller=diffrax.PIDController(rtol, atol)`"
            )

    def init_state(self, key):
        return {**super().init_state(key), "key": jax.random.fold_in(key, len(self))}

    def forward(self, x, ps, st):
        y0, ts = initial_value_and_times(self, x)
        if not isinstance(ts, jax.core.Tracer):
            _require_forward(np.asarray(ts))
        key, next_key = jax.random.split(st["key"])
        frozen = FrozenLayer(self.drift, st["drift"], self.time_dependent, self.on_state_update)
        drift = OfChild("drift", Field(frozen))

        def one(y0, key, ts):
            if self.trajectories is not None:
                y0 = jax.tree.map(lambda y: jnp.broadcast_to(y, (self.trajectories, *y.shape)), y0)
            terms = diffrax.MultiTerm(diffrax.ODETerm(drift), self._noise(y0, key, ts, ps, st))
            fixed = self.stepsize_controller is None
            return solve(self, terms, y0, ts, ps, controller=diffrax.ConstantStepSize() if fixed else None)

        keys = jax.random.split(key, jax.tree.leaves(y0)[0].shape[0]) if self.batching == "vmap" else key
        sol = batched(self, st, one, (y0, keys), ts)
        start = (ts[0], y0) if self.time_dependent else y0
        after = {name: renewed(self, child, start, ps[name], st[name]) for name, child in self.children.items()}
        return output(self, sol), {**after, "key": next_key}

    def _noise(self, y0: Any, key: jax.Array, ts: jax.Array, ps: Any, st: Any) -> "Noise":
        frozen = FrozenLayer(self.diffusion, st["diffusion"], self.time_dependent, self.on_state_update)
        frozen = OfChild("diffusion", frozen)

        def diffusion(t, y, ps):
            g = frozen(t, y, ps)
            expected = y.shape if self.diagonal else (*y.shape, g.shape[-1] if g.ndim else 0)
            if g.shape != expected:
                size = y.shape if self.diagonal else f"({', '.join(map(str, y.shape))}, noises)"
                raise ValueError(f"the diffusion of a {type(self).__name__} has shape {size} here, got {g.shape}")
            return g

        g0 = jax.eval_shape(diffusion, ts[0], y0, ps)
        shape = y0.shape if self.diagonal else (*y0.shape[:-1], g0.shape[-1])
        span = ts[-1] - ts[0]
        tol = self.dt0 / 2 if self.stepsize_controller is None else span / 2**16
        area = _levy_area(self.option("solver"))
        increments = jax.ShapeDtypeStruct(shape, y0.dtype)
        return Noise(diffusion, diffrax.VirtualBrownianTree(ts[0], ts[-1], tol, increments, key, area), self.diagonal)


class NeuralSDE(_StochasticEquation):
    r"""A path of :math:`dy = f(t, y) dt + g(t, y) dW`, with layers `drift` and `diffusion`, for general noise.

    The drift maps `(..., n)` to `(..., n)`, the diffusion to `(..., n, m)`: `m` Brownian motions, by its shape. With
    `time_dependent` both are called with `(t, y)`. `ts`, the input and the output are those of `NeuralODE`.

    The solver says which integral is meant: Ito's with `diffrax.Euler()`, the default, and `ItoMilstein`;
    Stratonovich's with `EulerHeun`, `Heun`, `Midpoint`, `ReversibleHeun`, `SPaRK` and others. Steps are fixed, `dt0`,
    or, with a solver that estimates its error, of a given `stepsize_controller`. Between steps the solution is
    interpolated linearly: let `dt0` divide the distances of `ts`. `ItoMilstein` builds a Jacobian over all numbers of a
    solve: give it many samples by `batching="vmap"`, not as one joint equation.

    The Brownian path is drawn once per solve, from `key` in the state, which is renewed in the state that comes out.
    Another `dt0` sees the same path, at another resolution. With `trajectories=N` each initial value has `N` paths,
    along a new axis behind that of the times: `ys` are `(times, N, *y0.shape)`, or `(batch, times, N, ...)` with
    `batching="vmap"`; `lux.diffeq.ensemble_moments` are their mean and variance.

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
    r"""A path of :math:`dy_i = f_i(t, y) dt + g_i(t, y) dW_i`: diagonal noise, one Brownian motion for each number.

    As `NeuralSDE`, with a diffusion that has the shape of `y`.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> sde = lux.NeuralDSDE(lux.Dense(2, 2), lux.Dense(2, 2), ts=[0.0, 1.0], dt0=0.1, output="final")
    >>> ps, st = lux.setup(jax.random.key(0), sde)
    >>> sde(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)
    """

    diagonal = True


class Noise(diffrax.AbstractTerm):
    """The term `g(t, y) dW` for batches: `g` is `(..., n)` if diagonal, `(..., n, m)` otherwise."""

    diffusion: Callable
    path: diffrax.AbstractBrownianPath
    diagonal: bool = eqx.field(static=True)

    def vf(self, t, y, args):
        return self.diffusion(t, y, args)

    def contr(self, t0, t1, **kwargs):
        return self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf, control):
        return vf * control if self.diagonal else jnp.einsum("...ij,...j->...i", vf, control)


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


def _require_forward(ts: np.ndarray) -> None:
    if not np.all(ts[..., 0] < ts[..., -1]):
        raise ValueError("a stochastic equation runs forward in time: its `ts` must increase")
