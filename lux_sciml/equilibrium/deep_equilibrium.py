"""DeepEquilibrium: a layer whose output is the fixed point of its cell."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax import Array, lax

from .._tree import describe
from ..core import Container, Layer, Mode, as_layer, field
from ..core.container import call_child
from ..core.converters import checks_itself, count, flag, natural, optional
from .adjoints import CheckedImplicitAdjoint, PhantomAdjoint, found_by, linear_error, solve_linear
from .anderson import Anderson
from .fixed_point import Args, EquilibriumLayer, Found
from .precision import as_real, on_reals
from .regularization import jacobian_loss, mean_square, spectral_radius

_GUESSES = ("zero", "cell", "last")


@checks_itself
def _initial(value: str | Layer | Callable[..., Any]) -> str | Layer:
    """The name of a guess, or a layer that makes it."""
    if isinstance(value, str):
        if value not in _GUESSES:
            raise ValueError(f"expected {', '.join(map(repr, _GUESSES))} or a layer, got {value!r}")
        return value
    return as_layer(value)


@checks_itself
def _shape(value: Any) -> Any:
    """`None`, a number, a tuple of numbers, or a tuple of such tuples."""
    if value is None:
        return None
    if isinstance(value, tuple) and value and all(isinstance(part, tuple) for part in value):
        return tuple(tuple(map(natural, part)) for part in value)
    if isinstance(value, tuple) and value:
        return tuple(map(natural, value))
    try:
        return natural(value)  # pyright: ignore[reportArgumentType]  # refused where it is no number
    except TypeError:
        raise TypeError(
            f"expected None, a number, a tuple of numbers or a tuple of such tuples, got {value!r}"
        ) from None


class DeepEquilibrium(Container, EquilibriumLayer):
    r"""The fixed point :math:`z = f(z, x; p)` of a cell, from an input `x`.

    The cell is a layer of the pair: `cell((z, x), ps, st)` returns the next `z`, an array, a `ComponentVector` or a
    pytree of arrays, real or complex, of the structure, shapes and dtypes of the one that it got. A
    `lux.EquilibriumCell` prepares once per solve what `z` does not change. The output is `z`. Options, besides those of
    `lux.EquilibriumLayer`:

    * `shape`: that of `z`. `None`: as `x`; a number `n`: as `x`, with `n` as its last axis; a tuple: after the first
      axis of `x`; a tuple of tuples: a tuple of such arrays.
    * `initial`: the guess that the solve starts from. `"zero"`; `"cell"`, one application of the cell to zero;
      `"last"`, the last solution, kept in the state (needs `batch_shape` and `shape`), from zero at first; or a layer
      or a function of `x`, which then gives the shape too: the SkipDEQ of Pal et al. It is trained by the auxiliary
      loss `st["stats"]["skip_loss"]`, the mean square of its distance to the solution.
    * `fixed_depth`: with `k` the cell is applied `k` times and differentiated through, for pretraining.
    * `intermediate_states`: with `n` the output is a tuple of `n` iterates, the last of them the result, each after
      another `max_steps / n` steps and the earlier ones with one-step phantom gradients, for
      `lux.equilibrium.fixed_point_correction`.
    * `jacobian_probes`: the number of normal vectors for `jacobian_loss` (see `lux.equilibrium.jacobian_loss`).
    * `radius_steps`: the number of steps for `spectral_radius` (see `lux.equilibrium.spectral_radius`).
    * `check_backward`: whether `backward_residual` is computed.

    The default solver is `lux.Anderson`, with weights for every sample along the first axis of `z`. Parameters: `cell`,
    and `initial` where it is a layer. The state has those of both, and `stats`, of the last solve:

    * `residual`, the norm of `f(z) - z` at the result; `converged`; `steps`; `evaluations` of the cell (products with
      its Jacobian not counted); `skip_loss`;
    * `jacobian_loss`; `spectral_radius`; `backward_residual`, that of the linear solve of the backward pass for a
      random cotangent, in units of its tolerance: above 1 it has not converged. They are NaN where not asked for.

    Losses in `stats` are differentiable: add them to yours. In test mode they are those of the call too, with the same
    random vectors in every call; a warm start goes on. The cell's state is frozen during a solve.

    Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019; Pal, Edelman and Rackauckas, "Continuous deep
    equilibrium models", 2022. Raises `ValueError` for a cell that returns something else than a `z` and for layers that
    update their state.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(8, 8, use_bias=False), lux.Dense(2, 8))
    >>> model = lux.Chain(lux.DeepEquilibrium(cell, shape=8), lux.Dense(8, 1))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> y, st = model(jnp.ones((4, 2)), 0.5 * ps, st)
    >>> y.shape, st["layer_0"]["stats"]["converged"]
    ((4, 1), Array(True, dtype=bool))
    """

    inner, is_root = "cell", False

    cell: Layer = field(converter=as_layer)
    shape: int | tuple[Any, ...] | None = field(default=None, converter=_shape)
    initial: str | Layer = field(default="zero", kw_only=True, converter=_initial)
    fixed_depth: int | None = field(default=None, kw_only=True, converter=optional(count))
    intermediate_states: int = field(default=1, kw_only=True, converter=count)
    jacobian_probes: int = field(default=0, kw_only=True, converter=natural)
    radius_steps: int = field(default=0, kw_only=True, converter=natural)
    check_backward: bool = field(default=False, kw_only=True, converter=flag)

    def __check_init__(self) -> None:
        if self.initial == "last" and (self.batch_shape is None or self.shape is None):
            raise ValueError('initial="last" keeps a solution in the state, and needs batch_shape and shape')
        if self.check_backward and not isinstance(self.adjoint, CheckedImplicitAdjoint | str):
            raise ValueError(
                "check_backward solves the equation of lux.CheckedImplicitAdjoint, which is not the adjoint"
            )
        steps = self.fixed_depth or self.max_steps
        if self.intermediate_states > steps:
            raise ValueError(
                f"intermediate_states is at most the number of steps, {steps}, got {self.intermediate_states}"
            )
        if self.radius_steps == 1:
            raise ValueError("radius_steps is 0 or at least 2, got 1")

    def init_state(self, key):
        each = self.batching == "vmap" and self.batch_shape is not None
        st = {**super().init_state(key), "stats": no_stats((self.batch_shape or ()) if each else ())}
        if self._random():
            st |= {"key": jax.random.fold_in(key, len(self.children)), "mode": Mode.TRAIN}
        if self.initial == "last":
            st["last"] = zeros_of(self.batch_shape or (), self.shape, float)
        return st

    # --- what kind of equilibrium it is --------------------------------------------------------------------------

    def start(self, x, ps, st):
        x = jax.tree.map(jnp.asarray, x)
        if isinstance(self.initial, Layer):
            z0, st_initial = call_child("initial", self.initial, x, ps, st)
            return z0, x, {**st, "initial": st_initial}
        if self.initial == "last":
            _require_batch(x, self.batch_shape or ())
            return st["last"], x, st
        return zeros_like_input(x, self.shape), x, st

    def pair(self, z, x):
        return z, x

    def default_solver(self, z):
        leaves = jax.tree.leaves(z)
        batched = all(leaf.ndim > 1 for leaf in leaves) and len({leaf.shape[0] for leaf in leaves}) == 1
        return Anderson(self.rtol, self.atol, per_sample=batched)

    def linear_solver(self, z) -> lx.AbstractLinearSolver | None:
        return None

    def solutions(self, z0, args):
        if self.initial == "cell":
            z0 = self.output(z0, args)
        if self.fixed_depth is not None:
            return self._unrolled(z0, args, self.fixed_depth)
        zs, steps, evaluations, part = [], 0, 0, self.max_steps // self.intermediate_states
        for _ in range(self.intermediate_states - 1):
            found = self.find(z0, args, PhantomAdjoint(), part)
            z0, steps, evaluations = found.value, steps + found.steps, evaluations + found.evaluations
            zs.append(z0)
        found = self.find(z0, args, self.adjoint_for(z0), self.max_steps - part * len(zs))
        found = found._replace(steps=steps + found.steps, evaluations=evaluations + found.evaluations)
        return tuple(self.marked([*zs, found.value], found.okay)), found

    def _unrolled(self, z: Any, args: Args, depth: int) -> tuple[tuple[Any, ...], Found]:
        n = self.intermediate_states
        ends = [depth * (i + 1) // n for i in range(n)]
        zs = []
        for start, end in zip([0, *ends], ends, strict=False):
            z, _ = lax.scan(lambda z, _: (self.output(z, args), None), z, length=end - start)
            zs.append(z)
        error = self.tolerances(self.solver_for(z)).error(self.residual(z, args), z)
        return tuple(zs), Found(z, error < 1, jnp.array(depth), jnp.array(depth))

    # --- statistics ----------------------------------------------------------------------------------------------

    def statistics(self, found, z0, args, st):
        z, nan = found.value, jnp.array(jnp.nan)
        at, held = lax.stop_gradient((z, args))
        keys: Any = jax.random.split(jax.random.split(st["key"])[0], 3) if self._random() else None
        residual = found.residual
        if residual is None:
            residual = self.tolerances(self.solver_for(z)).size(self.residual(at, held))
        stats = {
            "residual": residual,
            "steps": found.steps,
            "evaluations": found.evaluations + int(self.initial == "cell"),
            "converged": found.okay,
            "skip_loss": mean_square(jax.tree.map(jnp.subtract, z0, lax.stop_gradient(z))),
        }
        if self.jacobian_probes:
            step = functools.partial(self.output, args=args)
            stats["jacobian_loss"] = jacobian_loss(step, z, keys[0], self.jacobian_probes)
        if self.radius_steps:
            step = functools.partial(self.output, args=held)
            stats["spectral_radius"] = spectral_radius(step, at, keys[1], self.radius_steps)
        if self.check_backward:
            stats["backward_residual"] = self._backward_residual(at, held, optax.tree.random_like(keys[2], at))
        return {name: stats.get(name, nan) for name in STATS}

    def _backward_residual(self, z: Any, args: Args, cotangent: Any) -> Array:
        """The error of the backward pass's linear solve for a cotangent, in units of its tolerance."""
        adjoint, solver = self.adjoint_for(z), self.solver_for(z)
        assert isinstance(adjoint, CheckedImplicitAdjoint)
        _, apply = jax.linearize(lambda z: self.residual(z, args), z)
        transposed = jax.linear_transpose(on_reals(apply, z), as_real(z))
        linear, rtol = adjoint.linear_solve(found_by(solver, z, jnp.array(True), self.tolerances(solver)))
        x, *_ = solve_linear(lambda v: transposed(v)[0], as_real(cotangent), linear)
        return linear_error(lambda v: transposed(v)[0], x, as_real(cotangent), rtol)

    def finish(self, zs, stats, inner, st):
        out = {**st, "cell": inner, "stats": kept_stats(st["stats"], stats)}
        if self._random() and st["mode"] is Mode.TRAIN:
            out["key"] = jax.random.split(st["key"])[1]
        if self.initial == "last":
            out["last"] = jax.tree.map(_unless_finite, st["last"], zs[-1])
        return (zs[-1] if self.intermediate_states == 1 else zs), out

    def _random(self) -> bool:
        return bool(self.jacobian_probes or self.radius_steps or self.check_backward)


def _unless_finite(old: Array, new: Array) -> Array:
    """The new guess, element by element, where it is finite; without derivatives."""
    new = lax.stop_gradient(new)
    return jnp.where(jnp.isfinite(new), new, old).astype(old.dtype)


STATS = {  # each with what stands for a batch
    "residual": functools.partial(jnp.max, initial=0.0),
    "steps": functools.partial(jnp.max, initial=0),
    "evaluations": functools.partial(jnp.max, initial=0),
    "converged": jnp.all,
    "skip_loss": lambda x: jnp.sum(x) / max(x.size, 1),
    "jacobian_loss": lambda x: jnp.sum(x) / max(x.size, 1),
    "spectral_radius": functools.partial(jnp.max, initial=0.0),
    "backward_residual": functools.partial(jnp.max, initial=0.0),
}
_TYPES = {"steps": jnp.int32, "evaluations": jnp.int32, "converged": bool}


def no_stats(shape: tuple[Any, ...]) -> dict[str, Array]:
    """The statistics before the first solve: NaN, no steps, not converged."""
    return {name: jnp.full(shape, 0 if name in _TYPES else jnp.nan, _TYPES.get(name, float)) for name in STATS}


def kept_stats(st: dict[str, Array], stats: dict[str, Array]) -> dict[str, Array]:
    """The statistics with the shapes and types of those in the state: of each sample, or the worst of the batch."""
    worst = {name: value if value.ndim == st[name].ndim else STATS[name](value) for name, value in stats.items()}
    for name, value in worst.items():
        if value.shape != st[name].shape:
            raise ValueError(f"batch_shape says {st[name].shape}, but the input has a batch of {value.shape}")
    return {name: worst[name].astype(old.dtype) for name, old in st.items()}


def zeros_like_input(x: Any, shape: Any) -> Any:
    """Zeros of the shape that `lux.DeepEquilibrium` describes for an input `x`, in the precision of `x`."""
    leaves = jax.tree.leaves(x)
    dtype = next((leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)), None)
    if shape is None:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), x)
    if leaves[0].ndim == 0:
        raise ValueError("`shape` replaces axes of the input, which is a single number")
    if isinstance(shape, int):
        return jnp.zeros((*leaves[0].shape[:-1], shape), dtype)
    return zeros_of(leaves[0].shape[:1], shape, dtype)


def zeros_of(batch: tuple[Any, ...], shape: Any, dtype: Any) -> Any:
    """Zeros for a batch, from the field `shape`."""
    if isinstance(shape, int):
        return jnp.zeros((*batch, shape), dtype)
    if all(isinstance(size, int) for size in shape):
        return jnp.zeros((*batch, *shape), dtype)
    return tuple(zeros_of(batch, part, dtype) for part in shape)


def _require_batch(x: Any, batch_shape: tuple[Any, ...]) -> None:
    """Raise `ValueError` where an input is not of the batch whose last solution is kept."""
    for leaf in jax.tree.leaves(x)[:1]:
        if leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f'initial="last" keeps the solution of a batch {batch_shape}, but the input is {describe(leaf)}; '
                "another batch needs a layer of its own batch_shape and its state"
            )
