"""The solver options that all differential-equation layers share."""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import derivatives
from ..components import ComponentVector
from ..core import Constant, Layer
from ..core.frozen import refuse_training, renewed_keys
from ..core.parameters import parameter_layout
from ..core.static import holds_arrays
from .adjoints.discrete import DiscreteAdjoint
from .adjoints.gauss import GaussAdjoint
from .failure import guarded, mark_failure
from .solvers.root_finding import converging
from .solvers.runge_kutta import unrolled

_OBJECTS = ("solver", "stepsize_controller", "saveat", "event", "progress_meter")
_ADJOINTS = {
    "checkpointed": DiscreteAdjoint,
    "direct": diffrax.DirectAdjoint,
    "forward": diffrax.ForwardMode,
    "backsolve": diffrax.BacksolveAdjoint,
    "gauss": GaussAdjoint,
    "implicit": diffrax.ImplicitAdjoint,
}
_KINDS = {
    "solver": (diffrax.AbstractSolver, "diffrax.Tsit5()"),
    "stepsize_controller": (diffrax.AbstractStepSizeController, "diffrax.PIDController(rtol, atol)"),
    "adjoint": (diffrax.AbstractAdjoint | str, "diffrax.DirectAdjoint()"),
    "saveat": (diffrax.SaveAt, "diffrax.SaveAt(steps=True)"),
    "event": (diffrax.Event, "diffrax.Event(function)"),
    "progress_meter": (diffrax.AbstractProgressMeter, "diffrax.TqdmProgressMeter()"),
}
_CHOICES = {
    "output": ("solution", "ys", "final"),
    "batching": ("joint", "vmap"),
    "on_state_update": ("raise", "discard"),
}


class Equation(Layer, kw_only=True):
    """Fields that every differential-equation layer has, by keyword; option objects are diffrax's own.

    * `solver`: any diffrax solver. Implicit ones without a root finder of their own get `optimistix.Chord`, which takes
      far fewer steps than diffrax's default. `rtol`, `atol`: tolerances of the default PID controller, tight enough for
      quasi-Newton methods, which stall on the noise of looser ones. `stepsize_controller`: any of diffrax's, instead.
    * `dt0`: the size of the first step, in the direction of the times; `None` chooses one. `max_steps`: the most steps
      of a solve.
    * `adjoint`: how the solve is differentiated. `"auto"` is checkpointed reverse mode, unless `lux.derivatives.mode`,
      or one of the functions that set it, asks for forward mode or for both. By name: `"checkpointed"` (reverse mode,
      the discrete gradient), `"direct"` (all modes and orders, slower), `"forward"`, `"backsolve"` (reverse mode by the
      equation solved backwards: little memory, not for stiff or chaotic ones), `"gauss"` (`lux.GaussAdjoint`: reverse
      mode, for stiff equations and implicit solvers), `"implicit"` (steady states). Or any diffrax adjoint.
    * `saveat`: a `diffrax.SaveAt` in place of saving at the times `ts`. `event`, `progress_meter`, `throw`: as in
      `diffrax.diffeqsolve`; without `throw` a failed solve is NaN, with `sol.result` saying why.
    * `output`: `"solution"` is the `diffrax.Solution`, `"ys"` its saved values, `"final"` the last state.
    * `batching`: with `"joint"` a batch is one large equation with common steps; with `"vmap"` every sample along
      the first axis has steps, times and a result of its own.
    * `on_state_update`: `"raise"`, or `"discard"`: one frozen state for the whole solve, with its random keys renewed
      in the state that is returned.
    """

    solver: Any = diffrax.Tsit5()
    rtol: float = 1e-6
    atol: float = 1e-8
    stepsize_controller: Any = None
    dt0: float | None = None
    max_steps: int | None = 4096
    adjoint: Any = "auto"
    saveat: Any = None
    event: Any = None
    progress_meter: Any = diffrax.NoProgressMeter()
    throw: bool = False
    output: str = "solution"
    batching: str = "joint"
    on_state_update: str = "raise"

    def __post_init__(self):
        for name, (kind, example) in _KINDS.items():
            value = self.option(name)
            if not isinstance(value, kind) and (value is not None or name in ("solver", "adjoint", "progress_meter")):
                raise TypeError(f"{name} is an object such as {example}, got {value!r}")
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise ValueError(f"tolerances are positive numbers, got rtol={self.rtol} and atol={self.atol}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is one or more, or None, got {self.max_steps}")
        if self.dt0 is not None and not (math.isfinite(self.dt0) and self.dt0 != 0):
            raise ValueError(f"dt0 is the size of a step, got {self.dt0}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}")
        if isinstance(self.adjoint, str) and self.adjoint not in ("auto", *_ADJOINTS):
            names = ", ".join(map(repr, ("auto", *_ADJOINTS)))
            raise ValueError(f"adjoint is one of {names}, or a diffrax adjoint, got {self.adjoint!r}")
        if self.stepsize_controller is not None and (self.rtol, self.atol) != (1e-6, 1e-8):
            raise ValueError("give the tolerances either as rtol and atol or in the stepsize_controller, not both")
        for name in _OBJECTS:
            if holds_arrays(getattr(self, name)):
                setattr(self, name, Constant(getattr(self, name)))

    def option(self, name: str) -> Any:
        """An option as diffrax takes it."""
        value = getattr(self, name)
        return value.value if isinstance(value, Constant) else value

    def chosen_adjoint(self) -> diffrax.AbstractAdjoint:
        """The adjoint, chosen by the context of derivatives where it is `"auto"`."""
        if not isinstance(self.adjoint, str):
            return self.adjoint
        wanted = {"forward": "forward", "both": "direct"}.get(derivatives.current(), "checkpointed")
        name = wanted if self.adjoint == "auto" else self.adjoint
        if name == "checkpointed" and self.max_steps is None:
            return diffrax.RecursiveCheckpointAdjoint(checkpoints=64)
        return _ADJOINTS[name]()

    def controller(self) -> diffrax.AbstractStepSizeController:
        """The step size controller, ended early where a solve is hopeless."""
        controller = self.option("stepsize_controller")
        return guarded(diffrax.PIDController(self.rtol, self.atol) if controller is None else controller)


def save_times(ts: Any) -> Constant | None:
    """The times in a layer's field, checked; `None` where they come with each call."""
    if ts is None:
        return None
    _require_monotone(np.asarray(ts))
    return Constant(ts)


def initial_value_and_times(layer: Any, x: Any) -> tuple[Any, jax.Array]:
    """The input `y0`, or `(y0, ts)` where the layer was built without `ts`, in floating point and of one precision."""
    if layer.ts is None and not (isinstance(x, tuple) and len(x) == 2):
        raise ValueError(f"a {type(layer).__name__} built without `ts` takes the tuple (initial value, times)")
    if layer.ts is not None and _ends_in(x, np.asarray(layer.ts)):
        raise ValueError(
            f"this {type(layer).__name__} has its own `ts` and takes the initial value alone; build it without `ts` to "
            "give times in each call"
        )
    y0, ts = (x, np.asarray(layer.ts)) if layer.ts is not None else x
    y0 = initial_value(type(layer).__name__, y0)
    return y0, times_like(ts, y0, layer.batching)


def initial_value(name: str, y0: Any) -> Any:
    """`y0` in floating point; `TypeError` where it holds no arrays."""
    leaves = jax.tree.leaves(y0, is_leaf=lambda x: isinstance(x, diffrax.AbstractPath))
    if any(isinstance(leaf, diffrax.AbstractPath) for leaf in leaves):
        raise TypeError(f"the initial value of this {name} holds a control: layers take one with controlled=True")
    if not leaves or not all(isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int) for leaf in leaves):
        raise TypeError(f"the initial value of a {name} is an array or a tree of arrays, got {y0!r}")
    if isinstance(y0, list) and all(isinstance(item, float | int) for item in y0):
        raise TypeError(f"the initial value of a {name} is an array, got a list of numbers: jnp.array({y0})")
    return floating(y0)


def initial_array(name: str, y0: Any) -> Any:
    """`y0` in floating point, one array of shape `(..., features)`; `ValueError` where it is something else."""
    y0 = initial_value(name, y0)
    if isinstance(y0, tuple | list | dict) or jnp.ndim(y0) == 0:
        raise ValueError(f"the initial value of a {name} is one array of shape (..., features), got {y0!r}")
    return y0


def _ends_in(x: Any, ts: np.ndarray) -> bool:
    """Whether `x` is a tuple of an initial value and the times `ts`."""
    if not (isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], np.ndarray | jax.Array)):
        return False
    if isinstance(x[1], jax.core.Tracer) or x[1].shape != ts.shape or getattr(x[0], "shape", ()) == ts.shape:
        return False
    return np.allclose(np.asarray(x[1], float), np.asarray(ts, float))


def floating(tree: Any) -> Any:
    """Arrays in floating point; integers become JAX's default floats."""

    def convert(x):
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)

    return jax.tree.map(convert, tree)


def times_like(ts: Any, y0: Any, batching: str) -> jax.Array:
    """Times of shape `(times,)`, or `(batch, times)`, in the precision of `y0`, single at least."""
    if not isinstance(ts, jax.core.Tracer):
        _require_monotone(np.asarray(ts))
    precise = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(y0) if jnp.finfo(leaf.dtype).bits >= 32]
    ts = jnp.asarray(ts).astype(precise[0].dtype if precise else jnp.float32)
    if ts.ndim != (2 if batching == "vmap" and ts.ndim == 2 else 1):
        raise ValueError(f"times have shape (times,), or (batch, times) with batching='vmap', got {ts.shape}")
    return ts


def solve(
    layer: Equation,
    terms: Any,
    y0: Any,
    ts: jax.Array,
    ps: Any,
    *,
    controller: diffrax.AbstractStepSizeController | None = None,
) -> diffrax.Solution:
    """From `ts[0]` to `ts[-1]`, saved at `ts`, with the layer's options; `args` of the terms are its parameters.

    A failed solve is NaN. `controller` stands in for the one of the options.
    """
    adjoint = layer.chosen_adjoint()
    if isinstance(adjoint, diffrax.BacksolveAdjoint):  # integrates the gradients of its args: better flat
        ps = _flat(layer, ps)
    if isinstance(adjoint, DiscreteAdjoint) and layer.batching == "vmap":  # inside the vmap of `batched`
        adjoint = DiscreteAdjoint(over_samples=True)
    saveat = layer.option("saveat")
    if saveat is None:
        saveat = diffrax.SaveAt(t1=True) if layer.output == "final" else diffrax.SaveAt(ts=ts)
    sol = diffrax.diffeqsolve(
        terms,
        unrolled(converging(layer.option("solver"))),
        ts[0],
        ts[-1],
        None if layer.dt0 is None else jnp.copysign(jnp.asarray(layer.dt0, ts.dtype), ts[-1] - ts[0]),
        y0,
        ps,
        saveat=saveat,
        stepsize_controller=layer.controller() if controller is None else controller,
        adjoint=adjoint,
        event=layer.option("event"),
        max_steps=layer.max_steps,
        throw=layer.throw,
        progress_meter=layer.option("progress_meter"),
    )
    return mark_failure(sol, complete=layer.saveat is None and layer.event is None)


def _flat(layer: Layer, ps: Any) -> ComponentVector:
    """The layer's parameters as a vector, in their own type where they have one in common."""
    layout, dtypes = parameter_layout(layer), {leaf.dtype for leaf in jax.tree.leaves(ps)}
    return ComponentVector.from_tree(ps, like=layout.astype(*dtypes) if len(dtypes) == 1 else layout)


def batched(layer: Equation, st: Any, one: Callable[..., Any], samples: tuple[Any, ...], ts: jax.Array) -> Any:
    """`one(*samples, ts)`; with `batching="vmap"` for each sample along the first axis by itself."""
    if layer.batching == "joint":
        return one(*samples, ts)
    refuse_training(st)
    _require_samples(layer, samples, ts)
    return eqx.filter_vmap(one, in_axes=(*(0 for _ in samples), 0 if ts.ndim == 2 else None))(*samples, ts)


def _require_samples(layer: Equation, samples: tuple[Any, ...], ts: jax.Array) -> None:
    """Raise `ValueError` unless all that has a sample for each solve has equally many."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(eqx.filter(samples, eqx.is_array))]
    shapes += [ts.shape] if ts.ndim == 2 else []
    if any(shape == () for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f'a {type(layer).__name__} with batching="vmap" solves for each sample along the first axis of its inputs, '
            f"times and controls, equally many in all; got the shapes {', '.join(map(str, shapes))}"
        )


def output(layer: Equation, sol: diffrax.Solution) -> Any:
    """The solution, its saved values or the last one, as the layer's `output` says."""
    if layer.output == "solution":
        return sol
    if layer.output == "ys":
        return sol.ys
    time_axis = 1 if layer.batching == "vmap" else 0
    return jax.tree.map(lambda y: jnp.take(y, -1, axis=time_axis), sol.ys)


def renewed(layer: Equation, model: Layer, x: Any, ps: Any, st: Any) -> Any:
    """The state after a solve that froze it; where updates are discarded, its random keys are advanced by one call."""
    return st if layer.on_state_update == "raise" else renewed_keys(st, lambda: model.forward(x, ps, st)[1])


def _require_monotone(ts: np.ndarray) -> None:
    if ts.ndim == 0 or ts.shape[-1] < 2:
        raise ValueError(
            f"`ts` holds at least two times, the first one that of the initial value, got shape {ts.shape}"
        )
    if not np.isfinite(ts).all():
        raise ValueError("`ts` holds times that are not finite")
    for row in ts.reshape(-1, ts.shape[-1]):
        steps = np.diff(row)
        turns = np.flatnonzero(steps * np.sign(steps[0]) <= 0)
        if turns.size:
            raise ValueError(
                f"`ts` must strictly increase or strictly decrease; it turns after position {turns[0]}: "
                f"{row[turns[0]]}, {row[turns[0] + 1]}"
            )
