"""The solver options that all differential-equation layers share."""

import math
from typing import Any

import diffrax

from ..components.derivatives import current_derivatives
from ..core import Constant, Layer
from ..core.static import holds_arrays
from .discrete_adjoint import DiscreteAdjoint
from .gauss import GaussAdjoint
from .guard import guarded

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


class SolverOptions(Layer, kw_only=True):
    """Fields that every differential-equation layer has, by keyword; option objects are diffrax's own.

    * `solver`: any diffrax solver. Implicit ones without a root finder of their own get `optimistix.Chord`, which takes
      far fewer steps than diffrax's default. `rtol`, `atol`: tolerances of the default PID controller, tight enough for
      quasi-Newton methods, which stall on the noise of looser ones. `stepsize_controller`: any of diffrax's, instead.
    * `dt0`: the size of the first step, in the direction of the times; `None` chooses one. `max_steps`: the most steps
      of a solve.
    * `adjoint`: how the solve is differentiated. `"auto"` is checkpointed reverse mode, unless `lux.derivatives`, or
      one of the functions that set it, asks for forward mode or for both. By name: `"checkpointed"` (reverse mode, the
      discrete gradient), `"direct"` (all modes and orders, slower), `"forward"`, `"backsolve"` (reverse mode by the
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
        wanted = {"forward": "forward", "both": "direct"}.get(current_derivatives(), "checkpointed")
        name = wanted if self.adjoint == "auto" else self.adjoint
        if name == "checkpointed" and self.max_steps is None:
            return diffrax.RecursiveCheckpointAdjoint(checkpoints=64)
        return _ADJOINTS[name]()

    def controller(self) -> diffrax.AbstractStepSizeController:
        """The step size controller, ended early where a solve is hopeless."""
        controller = self.option("stepsize_controller")
        return guarded(diffrax.PIDController(self.rtol, self.atol) if controller is None else controller)
