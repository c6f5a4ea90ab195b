"""DeepEquilibrium: a layer whose output is the fixed point of its cell."""

import functools
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax

from ..core import Container, Layer, Mode, as_layer
from ..core.container import call_child, errors_of
from ..core.frozen import refuse_training, refuse_updates, renewed_keys
from .accelerated import fixed_point
from .adjoints import CheckedImplicitAdjoint, PhantomAdjoint, relative_error, solve_and_check
from .anderson import Anderson
from .cells import EquilibriumCell
from .fixed_point import EquilibriumLayer, Found
from .regularization import jacobian_loss, random_like, spectral_radius, squares

_GUESSES = ("zero", "cell", "last")


class DeepEquilibrium(Container, EquilibriumLayer):
    r"""The fixed point :math:`z = f(z, x; p)` of a cell, from an input `x`.

    The cell is a layer of the pair: `cell((z, x), ps, st)` returns the next `z`, an array or a pytree of arrays, of the
    structure, shapes and dtypes of the one that it got. A `lux.EquilibriumCell` prepares once a solve what `z` does not
    change. The output is `z`; with `states=n` a tuple of `n` iterates, the last of them the result, each after another
    `max_steps / n` steps and the earlier ones with one-step phantom gradients, for
    `lux.equilibrium.fixed_point_correction`.

    `shape` is that of `z`: `None` as `x`; a number `n`: as `x`, with `n` as its last axis; a tuple: after the first
    axis of `x`; a tuple of tuples: a tuple of such arrays. `initial` is the guess that the solve starts from:

    * `"zero"`; `"cell"`, one application of the cell to zero; `"last"`, the last solution, kept in the state (needs
      `batch_shape` and `shape`), from zero at first;
    * a layer or a function of `x`, which then gives the shape too: the SkipDEQ of Pal et al. It is trained by the
      auxiliary loss `st["info"]["skip_loss"]`, the mean square of its distance to the solution.

    With `fixed_depth=k` the cell is applied `k` times and differentiated through, for pretraining. The default solver
    is `lux.Anderson`, with weights for every sample along the first axis of `z`; more options: `EquilibriumLayer`.
    Parameters: `cell`, and `initial` where it is a layer.

    The state has those of both, and `info`: `residual` (the norm of `f(z) - z` at the result), `steps`, `evaluations`
    of the cell (products with its Jacobian not counted), `converged`, `skip_loss`, `jacobian_loss` (with
    `jacobian_probes` normal vectors, see `lux.equilibrium.jacobian_loss`), `spectral_radius` (with `radius_steps`, see
    `lux.equilibrium.spectral_radius`), and `backward_residual` (with `check_backward`, that of the linear solve of the
    backward pass for a random cotangent, in units of its tolerance: above 1 it has not converged). Figures not asked
    for are NaN. Losses in `info` are differentiable: add them to yours. In test mode they are those of the call too,
    with the same random vectors in every call; a warm start goes on.

    The cell's state is frozen during a solve. Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019; Pal,
    Edelman and Rackauckas, "Continuous deep equilibrium models", 2022. Raises `ValueError` for a cell that returns
    something else than a `z` and for layers that update their state.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> cell = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(8, 8, use_bias=False), lux.Dense(2, 8))
    >>> model = lux.Chain(lux.DeepEquilibrium(cell, shape=8), lux.Dense(8, 1))
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> y, st = model(jnp.ones((4, 2)), 0.5 * ps, st)
    >>> y.shape, st["layer_0"]["info"]["converged"]
    ((4, 1), Array(True, dtype=bool))
    """

    cell: Layer
    shape: Any = None
    initial: Any = field(default="zero", kw_only=True)
    fixed_depth: int | None = field(default=None, kw_only=True)
    states: int = field(default=1, kw_only=True)
    jacobian_probes: int = field(default=0, kw_only=True)
    radius_steps: int = field(default=0, kw_only=True)
    check_backward: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        EquilibriumLayer.__post_init__(self)
        if isinstance(self.initial, str) and self.initial not in _GUESSES:
            raise ValueError(f"initial is one of {', '.join(map(repr, _GUESSES))} or a layer, got {self.initial!r}")
        if not isinstance(self.initial, str):
            self.initial = as_layer(self.initial)
        if self.initial == "last" and (self.batch_shape is None or self.shape is None):
            raise ValueError('initial="last" keeps a solution in the state, and needs batch_shape and shape')
        if self.fixed_depth is not None and self.fixed_depth < 1:
            raise ValueError(f"fixed_depth is one or more, got {self.fixed_depth}")
        if self.check_backward and not isinstance(self.chosen_adjoint(), CheckedImplicitAdjoint):
            raise ValueError(
                "check_backward solves the equation of lux.CheckedImplicitAdjoint, which is not the adjoint"
            )
        if not 1 <= self.states <= (self.fixed_depth or self.max_steps):
            raise ValueError(f"states is at least one and at most the number of steps, got {self.states}")

    def init_state(self, key):
        each = self.batching == "vmap" and self.batch_shape is not None
        st = {**super().init_state(key), "info": no_figures(self.batch_shape if each else ())}
        if self._random():
            st |= {"key": jax.random.fold_in(key, len(self.children)), "mode": Mode.TRAIN}
        if self.initial == "last":
            st["last"] = zeros_of(self.batch_shape, self.shape, jax.dtypes.canonicalize_dtype(float))
        return st

    def forward(self, x, ps, st):
        x = jax.tree.map(jnp.asarray, x)
        key, next_key = jax.random.split(st["key"]) if self._random() else (None, None)
        z0, out = self._guess(x, ps, st)

        def solve(z0, x):
            return self._solve(z0, x, ps["cell"], st["cell"], key)

        if self.batching == "vmap":
            refuse_training(st["cell"])
            zs, figures = jax.vmap(solve)(z0, x)
        else:
            zs, figures = solve(z0, x)
        out |= {"cell": self._renewed(zs[-1], x, ps, st), "info": kept_figures(st["info"], figures)}
        if self._random() and st["mode"] is Mode.TRAIN:
            out["key"] = next_key
        if self.initial == "last":
            out["last"] = jax.tree.map(_unless_finite, st["last"], zs[-1])
        return (zs[-1] if self.states == 1 else zs), out

    def _guess(self, x, ps, st):
        """The first `z`, and the state with that of the layer which guessed it."""
        if isinstance(self.initial, Layer):
            z0, st_initial = call_child("initial", self.initial, x, ps, st)
            return z0, {**st, "initial": st_initial}
        if self.initial == "last":
            require_batch(x, self.batch_shape)
            return st["last"], dict(st)
        return zeros_like_input(x, self.shape), dict(st)

    def _solve(self, z0, x, ps, st, key):
        """The iterates asked for, the last of them the solution, and the figures of the solve."""
        prepared = self.cell.prepare(x, ps, st) if isinstance(self.cell, EquilibriumCell) else x
        args = (prepared, ps, st)
        z0 = fitting_guess(lambda z: self._step(z, args), z0)
        if self.on_state_update == "raise":
            refuse_updates(self.cell, lambda st: self._call(z0, (prepared, ps, st))[1], st, ())
        if self.initial == "cell":
            z0 = self._step(z0, args)
        zs, found = (self._solved if self.fixed_depth is None else self._unrolled)(z0, args)
        found = found._replace(okay=found.okay & _all_finite(found.value))
        figures = self._figures(found, z0, args, key)
        return (self.marked(zs, found.okay) if self.fixed_depth is None else zs), figures

    def _call(self, z, args):
        x, ps, st = args
        if isinstance(self.cell, EquilibriumCell):
            return self.cell.step(z, x, st)
        with errors_of("cell", self.cell):
            return self.cell.forward((z, x), ps, st)

    def _step(self, z, args):
        return self._call(z, args)[0]

    def _residual(self, z, args):
        return jax.tree.map(jnp.subtract, self._step(z, args), z)

    def _solved(self, z0, args):
        solver, zs, steps, evaluations = self._solver(z0), [], 0, 0
        for i in range(self.states):
            last, part = i == self.states - 1, self.max_steps // self.states

            def run(solver, z0, args, adjoint, most=self.max_steps - i * part if last else part):
                if adjoint is None:
                    return fixed_point(self._step, solver, z0, args, most)
                return optx.fixed_point(self._step, solver, z0, args, max_steps=most, adjoint=adjoint, throw=False)

            adjoint = self.chosen_adjoint() if last else PhantomAdjoint()
            found = self.find(run, self._residual, solver, z0, args, adjoint)
            zs.append(found.value)
            z0, steps, evaluations = found.value, steps + found.steps, evaluations + found.evaluations
        return tuple(zs), found._replace(steps=steps, evaluations=evaluations)

    def _unrolled(self, z, args):
        ends = [self.fixed_depth * (i + 1) // self.states for i in range(self.states)]
        zs = []
        for start, end in zip([0, *ends], ends, strict=False):
            z, _ = lax.scan(lambda z, _: (self._step(z, args), None), z, length=end - start)
            zs.append(z)
        tolerances = self.tolerances(self._solver(z))
        okay = relative_error(tolerances, self._residual(z, args), z) < 1
        steps = jnp.array(self.fixed_depth)
        return tuple(zs), Found(z, okay, steps, steps)

    def _figures(self, found, z0, args, key):
        z, nan = found.value, jnp.array(jnp.nan)
        at, held = jax.tree.map(lax.stop_gradient, (z, args))
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        residual = found.residual
        if residual is None:
            residual = self.tolerances(self._solver(z)).norm(self._residual(at, held))
        distance = jax.tree.map(lambda a, b: a - lax.stop_gradient(b), z0, z)
        figures = {
            "residual": residual,
            "steps": found.steps,
            "evaluations": found.evaluations + int(self.initial == "cell"),
            "converged": found.okay,
            "skip_loss": squares(distance) / sum(leaf.size for leaf in jax.tree.leaves(z)),
        }
        if self.jacobian_probes:
            step = functools.partial(self._step, args=args)
            figures["jacobian_loss"] = jacobian_loss(step, z, keys[0], self.jacobian_probes)
        if self.radius_steps:
            step = functools.partial(self._step, args=held)
            figures["spectral_radius"] = spectral_radius(step, at, keys[1], self.radius_steps)
        if self.check_backward:
            figures["backward_residual"] = self._backward_residual(at, held, random_like(at, keys[2]))
        return {name: figures.get(name, nan) for name in FIGURES}

    def _backward_residual(self, z, args, cotangent):
        """The error of the backward pass's linear solve for a cotangent, in units of its tolerance."""
        tolerances = self.tolerances(self._solver(z))
        _, apply = jax.linearize(lambda z: self._residual(z, args), z)
        transposed = jax.linear_transpose(apply, z)
        linear, rtol = self.chosen_adjoint().linear_solve(z, tolerances)
        return solve_and_check(lambda v: transposed(v)[0], cotangent, linear, rtol, trust=False)[1]

    def _solver(self, z):
        """The solver; by default Anderson's method, for every sample where all arrays of `z` have a batch's axis."""
        leaves = jax.tree.leaves(z)
        batched = all(leaf.ndim > 1 for leaf in leaves) and len({leaf.shape[0] for leaf in leaves}) == 1
        return self.chosen_solver(functools.partial(Anderson, per_sample=batched))

    def _random(self) -> bool:
        return bool(self.jacobian_probes or self.radius_steps or self.check_backward)

    def _renewed(self, z, x, ps, st):
        """The cell's state with its random keys advanced once, where state updates are discarded."""
        if self.on_state_update == "raise":
            return st["cell"]
        return renewed_keys(st["cell"], lambda: self.cell.forward((z, x), ps["cell"], st["cell"])[1])


def _all_finite(z: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(z)]))


def _unless_finite(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new guess, number by number, where it is finite; without derivatives."""
    new = lax.stop_gradient(new)
    return jnp.where(jnp.isfinite(new), new, old).astype(old.dtype)


FIGURES = {  # each with what stands for a batch
    "residual": jnp.max,
    "steps": jnp.max,
    "evaluations": jnp.max,
    "converged": jnp.all,
    "skip_loss": jnp.mean,
    "jacobian_loss": jnp.mean,
    "spectral_radius": jnp.max,
    "backward_residual": jnp.max,
}
_TYPES = {"steps": jnp.int32, "evaluations": jnp.int32, "converged": bool}


def no_figures(shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """The figures before the first solve: NaN, no steps, not converged."""
    types = {name: _TYPES.get(name, jax.dtypes.canonicalize_dtype(float)) for name in FIGURES}
    return {name: jnp.full(shape, 0 if name in _TYPES else jnp.nan, dtype) for name, dtype in types.items()}


def kept_figures(st: dict[str, jax.Array], figures: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The figures with the shapes and types of those in the state: of each sample, or the worst of the batch."""
    worst = {name: value if value.ndim == st[name].ndim else FIGURES[name](value) for name, value in figures.items()}
    for name, value in worst.items():
        if value.shape != st[name].shape:
            raise ValueError(f"batch_shape says {st[name].shape}, but the input has a batch of {value.shape}")
    return {name: worst[name].astype(old.dtype) for name, old in st.items()}


_SHAPES = "`shape` is None, a number, a tuple of numbers, or a tuple of such tuples"


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


def zeros_of(batch: tuple[int, ...], shape: Any, dtype: Any) -> Any:
    """Zeros for a batch, from the field `shape`."""
    if isinstance(shape, int):
        return jnp.zeros((*batch, shape), dtype)
    if isinstance(shape, tuple) and shape and all(isinstance(size, int) for size in shape):
        return jnp.zeros((*batch, *shape), dtype)
    if isinstance(shape, tuple) and shape and all(isinstance(part, tuple) for part in shape):
        return tuple(zeros_of(batch, part, dtype) for part in shape)
    raise ValueError(f"{_SHAPES}, got {shape!r}")


def require_batch(x: Any, batch_shape: tuple[int, ...]) -> None:
    """Raise `ValueError` where an input is not of the batch whose last solution is kept."""
    for leaf in jax.tree.leaves(x)[:1]:
        if leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f'initial="last" keeps the solution of a batch {batch_shape}, but the input is {_text(leaf)}; '
                "another batch needs a layer of its own batch_shape and its state"
            )


def fitting_guess(step: Callable[[Any], Any], z: Any) -> Any:
    """The guess in the precision that `step` returns. `ValueError` where `step` returns another structure or shape."""
    out = jax.eval_shape(step, z)
    same = jax.tree.structure(z) == jax.tree.structure(out)
    if not same or any(a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (z, out)), strict=True)):
        raise ValueError(
            f"the cell must return a `z` like the one that it gets, {_text(z)}; it returned {_text(out)} "
            "(`shape` or `initial` says what `z` is)"
        )
    fitting = jax.tree.map(lambda a, b: a.astype(b.dtype), z, out)
    after = jax.eval_shape(step, fitting)
    for a, b in zip(*map(jax.tree.leaves, (out, after)), strict=True):
        if a.dtype != b.dtype or not jnp.issubdtype(b.dtype, jnp.floating):
            raise ValueError(f"the cell must return real numbers of one precision; it returned {_text(after)}")
    return fitting


def _text(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)).replace("'", "")
