"""Equation: the base of all differential-equation layers, with their options and the one way that they are solved."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, SupportsFloat, TypeVar, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .. import derivatives
from .._tree import is_inexact, single
from ..components import ComponentVector
from ..core import Constant, Container, Lambda, Layer, Wrapper, field
from ..core.converters import (
    checks_itself,
    choice,
    count,
    flag,
    number,
    optional,
    required_arguments,
    short,
    tuple_of,
)
from ..core.frozen import refuse_training
from ..core.parameters import layout_like
from ..core.reads import reading
from ..core.static import fields_of, holds_arrays
from .adjoints.backsolve import BacksolveAdjoint
from .adjoints.dense import ending_at
from .adjoints.differentiable import differentiable_solve
from .adjoints.discrete import DiscreteAdjoint
from .adjoints.gauss import GaussAdjoint
from .adjoints.implicit import ImplicitAdjoint
from .adjoints.reversible import ReversibleAdjoint
from .events import Event, event_names
from .failure import guarded, mark_failure
from .field import Field
from .inputs import initial_value_and_times, within
from .jumps import Jumps
from .pieces import solve_in_pieces
from .solvers.root_finding import converging
from .solvers.runge_kutta import unrolled
from .times import endless, in_order, save_times

T = TypeVar("T")

_ADJOINTS: dict[str, Callable[..., diffrax.AbstractAdjoint]] = {
    "checkpointed": DiscreteAdjoint,
    "direct": diffrax.DirectAdjoint,
    "forward": diffrax.ForwardMode,
    "backsolve": BacksolveAdjoint,
    "gauss": GaussAdjoint,
    "implicit": ImplicitAdjoint,
    "reversible": ReversibleAdjoint,
}


def option_object(kind: type[T], example: str) -> Callable[[T | Constant], T | Constant]:
    """The converter of an option that is an object of diffrax; one that holds arrays becomes a Constant."""

    @checks_itself
    def convert(value: T | Constant) -> T | Constant:
        if not isinstance(value.value if isinstance(value, Constant) else value, kind):
            raise TypeError(f"expected an object such as {example}, got {short(value)}")
        return Constant(value) if holds_arrays(value) else value

    return convert


@checks_itself
def _tolerance(value: SupportsFloat) -> float:
    if not number(value) >= 0:
        raise ValueError(f"expected a number of at least 0, got {value}")
    return number(value)


@checks_itself
def _step_size(value: SupportsFloat) -> float:
    size = abs(number(value))
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"expected the size of a step, got {value}")
    return size


@checks_itself
def _adjoint(value: str | diffrax.AbstractAdjoint) -> Any:
    if isinstance(value, str) and value in ("auto", *_ADJOINTS):
        return value
    if isinstance(value, diffrax.AbstractAdjoint):
        return value
    names = ", ".join(map(repr, ("auto", *_ADJOINTS)))
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"expected one of {names}, or an object such as diffrax.DirectAdjoint(), got {short(value)}")


output_kind = choice("solution", "ys", "final")
solver_object = option_object(diffrax.AbstractSolver, "diffrax.Tsit5()")
_controller = option_object(diffrax.AbstractStepSizeController, "diffrax.PIDController(rtol, atol)")
_saveat = option_object(diffrax.SaveAt, "diffrax.SaveAt(steps=True)")
_event = option_object(diffrax.Event, "diffrax.Event(function)")
_progress_meter = option_object(diffrax.AbstractProgressMeter, "diffrax.TqdmProgressMeter()")


@checks_itself
def _jumps(value: Jumps) -> Jumps:
    if not isinstance(value, Jumps):
        raise TypeError(f"expected jumps, lux.Jumps(times, effect), got {short(value)}")
    return value


@checks_itself
def _event_of_state(value: Event) -> Event:
    if not isinstance(value, Event):
        raise TypeError(f"expected lux.Event(condition, effect), got {short(value)}; a diffrax.Event is for `event`")
    return value


class Problem(NamedTuple):
    """What one call of an equation asks for; with `batching="vmap"`, all of it for each sample along the first axis.

    * `y0`: the initial value, an array or a tree of arrays;
    * `ts`: the times, `(times,)` or `(batch, times)`;
    * `control`: the path `u(t)` that the fields are called with too, if there is one;
    * `data`: what else belongs to a solve, such as a random key;
    * `half`: the type that the solution is rounded to, where it is in half precision;
    * `jumps`: what the call says of the jumps, where they were built without it.

    >>> problem = Problem(jnp.ones(2), jnp.array([0.0, 1.0]))
    >>> problem.control is None
    True
    """

    y0: Any
    ts: jax.Array
    control: diffrax.AbstractPath | None = None
    data: Any = None
    half: Any = None
    jumps: Any = None


class Fields(dict[str, Field]):
    """The vector fields of an equation's children by name, for one solve; its `problem`, and the parameters `ps`.

    It is what `terms` and the other hooks of an equation are called with: here the field is weighted by the last time.

    >>> import lux_sciml as lux
    >>> class Slower(lux.Wrapper, lux.Equation):
    ...     model: lux.Layer
    ...     def terms(self, fields):
    ...         return diffrax.ODETerm(lambda t, y, ps: fields["model"](t, y, ps) / fields.problem.ts[-1])
    >>> slower = Slower(lux.Lambda(jnp.negative), output="final")
    >>> y, _ = slower((jnp.ones(1), jnp.array([0.0, 2.0])), {}, {})
    >>> bool(jnp.allclose(y, jnp.exp(-1.0), rtol=1e-5))
    True
    """

    def __init__(self, fields: Mapping[str, Field], problem: Problem, ps: Any):
        super().__init__(fields)
        self.problem, self.ps = problem, ps


class Equation(Layer, kw_only=True):
    r"""The base of all differential-equation layers: the options of a solve, and the solve.

    The options, all by keyword; option objects are diffrax's own:

    * `ts`, by position too, for equations that have the field: the times at which the solution is saved, the first one
      that of the initial value; they may run backwards. With `None` they come with each call.
    * `time_dependent`: the children are called with `(t, y)` in place of `y`.
    * `controlled`: the input ends in a control u, any diffrax path; the children are called with `(y, u(t))` in place
      of `y`, and gradients reach the control.
    * `solver`: any diffrax solver. Implicit ones without a root finder of their own get `optimistix.Chord`, which takes
      far fewer steps than diffrax's default. Steps of `Kvaerno5` end at the saved times, between which it is less
      accurate (unless these are more than half of `max_steps`).
    * `rtol`, `atol`: tolerances of the default PID controller, tight enough for quasi-Newton methods, which stall on
      the noise of looser ones.
    * `stepsize_controller`: any of diffrax's, instead.
    * `dt0`: the size of the first step, in the direction of the times whatever its sign; `None` chooses one.
    * `max_steps`: the maximum number of steps of a solve.
    * `adjoint`: how the solve is differentiated. `"auto"` is checkpointed reverse mode, unless `lux.derivatives.mode`,
      or one of the functions that set it, asks for forward mode or for both. By name: `"checkpointed"` (reverse mode,
      the discrete gradient), `"direct"` (all modes and orders, slower), `"forward"`, `"backsolve"` (reverse mode by the
      equation solved backwards: little memory, not for stiff or chaotic ones), `"gauss"` (`lux.GaussAdjoint`: reverse
      mode, through no root finder of a stiff solver), `"reversible"` (`lux.ReversibleAdjoint`: reverse mode in constant
      memory, explicit solvers), `"implicit"` (steady states). Or any diffrax adjoint.
    * `saveat`: a `diffrax.SaveAt` in place of saving at the times `ts`.
    * `event`, `progress_meter`, `throw`: as in `diffrax.diffeqsolve`; without `throw` a failed solve is NaN, with
      `sol.result` saying why.
    * `jumps`: what happens to the state at known times, `lux.Jumps(times, effect)`. Its parameters, if it has some, are
      `ps["jumps"]`; in an equation that is a `Wrapper` those of the vector field then stand under its name, too, as
      `ps["model"]`. `max_steps` bounds each piece.
    * `events`: what happens to the state where conditions are met, a list of `lux.Event(condition, effect)`. Their
      parameters are `ps["events_0"]` and so on.
    * `output`: `"solution"` is the `diffrax.Solution`, `"ys"` its saved values, `"final"` the last state.
    * `batching`: with `"joint"` a batch is one large equation with common steps; with `"vmap"` every sample along
      the first axis has steps, times and a result of its own. With an implicit solver take `"vmap"`: the Jacobian of
      a joint batch is one of all samples together.
    * `on_state_update`: `"raise"`, or `"discard"`: one frozen state for the whole solve, with its random keys renewed
      in the state that is returned; or `"first"`: batch normalizations in training use the statistics of the first
      evaluation, that of the initial values, for the whole solve, with their gradients, and the state that is returned
      is the one after that evaluation. With `"discard"` each evaluation has its own, and the running ones stay.

    The input is `y0`, or, as the options say, `(y0, ts)`, `(y0, u)` or `(y0, ts, u)`. `ts` may repeat its last time at
    the end, as padding, or be a `lux.diffeq.Series`. `y0` is an array or a tree of arrays, a ComponentVector too;
    integers become floats. In half precision it is solved in float32, with the parameters, and the output is rounded.

    What the children's functions and an event read besides their arguments, such as globals, attributes and elements
    of NumPy arrays, is read as it is at the call. diffrax compiles each solve: where it has changed it compiles anew.
    Under a `jax.jit` of one's own it is as it was when that was traced.

    An equation of one's own is a `Wrapper` or a `Container` of its vector fields, with the method `terms`: from the
    fields of the children by name, functions `f(t, y, ps)`, to the terms that the solver takes. `forward` is final.

    >>> from typing import Any
    >>> import diffrax, jax, jax.numpy as jnp, lux_sciml as lux
    >>> class Damped(lux.Wrapper, lux.Equation):
    ...     model: lux.Layer
    ...     rate: float
    ...     ts: Any = None
    ...     def terms(self, fields):
    ...         return diffrax.ODETerm(lambda t, y, ps: fields["model"](t, y, ps) - self.rate * y)
    >>> damped = Damped(lux.Dense(2, 2), 0.5, ts=[0.0, 1.0], output="final", batching="vmap")
    >>> ps, st = lux.setup(jax.random.key(0), damped)
    >>> damped(jnp.ones((8, 2)), ps, st)[0].shape
    (8, 2)

    A `Container` holds several fields, or parameters of its own beside theirs, by its `init_params`. `ps` are those of
    the whole equation, a nested dict, in which each field finds its own:

    >>> class Driven(lux.Container, lux.Equation):
    ...     model: lux.Layer
    ...     ts: Any = None
    ...     def init_params(self, key):
    ...         return {**super().init_params(key), "amplitude": jnp.array(0.3)}
    ...     def terms(self, fields):
    ...         return diffrax.ODETerm(lambda t, y, ps: fields["model"](t, y, ps) + ps["amplitude"] * jnp.cos(t))
    >>> ps, st = lux.setup(jax.random.key(0), Driven(lux.Dense(2, 2), ts=[0.0, 1.0]))
    >>> list(ps.keys())
    ['model', 'amplitude']

    Where that is not enough there are more hooks, each with a default: `problem` reads the input, `solve` solves for
    one sample, `first_inputs` are what the children are called with first.
    """

    takes: ClassVar[str] = "an initial value"  # what the input starts with
    lacks: ClassVar[Mapping[str, str]] = {}  # options that it does not have, each with the reason
    beside: ClassVar = ("jumps", "events")
    one_term: ClassVar[bool] = False  # for solvers of one, not of a sum or of a pair
    may_be_endless: ClassVar[bool] = False  # until a steady state
    fixed_steps: ClassVar[bool] = False  # of the size dt0 where no controller is given

    ts = None  # a field of those that take it; an annotation here would put it before all of theirs
    time_dependent: bool = field(default=False, converter=flag)
    controlled: bool = field(default=False, converter=flag)
    solver: diffrax.AbstractSolver | Constant = field(default=diffrax.Tsit5(), converter=solver_object)
    rtol: float = field(default=1e-6, converter=_tolerance)
    atol: float = field(default=1e-8, converter=_tolerance)
    stepsize_controller: diffrax.AbstractStepSizeController | Constant | None = field(
        default=None, converter=optional(_controller)
    )
    dt0: float | None = field(default=None, converter=optional(_step_size))
    max_steps: int | None = field(default=4096, converter=optional(count))
    adjoint: str | diffrax.AbstractAdjoint = field(default="auto", converter=_adjoint)
    saveat: diffrax.SaveAt | Constant | None = field(default=None, converter=optional(_saveat))
    event: diffrax.Event | Constant | None = field(default=None, converter=optional(_event))
    jumps: Jumps | None = field(default=None, converter=optional(_jumps))
    events: tuple[Event, ...] = field(default=(), converter=tuple_of(_event_of_state))
    progress_meter: diffrax.AbstractProgressMeter | Constant = field(
        default=diffrax.NoProgressMeter(), converter=_progress_meter
    )
    throw: bool = field(default=False, converter=flag)
    output: str = field(default="solution", converter=output_kind)
    batching: str = field(default="joint", converter=choice("joint", "vmap"))
    on_state_update: str = field(default="raise", converter=choice("raise", "discard", "first"))

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            raise TypeError(f"{cls.__name__}.forward: that of an Equation is final; write `terms`, see `lux.Equation`")

    def __post_init__(self):
        if self.ts is not None:
            self.ts = save_times(self.ts)

    def __check_init__(self):
        name = type(self).__name__
        if not isinstance(self, Wrapper | Container):
            raise TypeError(f"{name} is a Wrapper or a Container of its vector fields: class {name}(Wrapper, Equation)")
        given = [option for option in self.lacks if not self.has_default(option)]
        if given:
            raise ValueError(f"a {name} has no {', '.join(given)}: {self.lacks[given[0]]}")
        solver = self.option("solver")
        if self.one_term and solver.term_structure is not diffrax.AbstractTerm:
            raise ValueError(
                f"a {name} has one vector field, and {type(solver).__name__} takes several apart, as those of "
                "lux.SplitODE, lux.NeuralSDE or lux.HamiltonianODE. Take diffrax.Tsit5() or, if stiff, Kvaerno5()"
            )
        if self.rtol + self.atol == 0:
            raise ValueError(f"{name}: one of the tolerances is above zero, got rtol={self.rtol} and atol={self.atol}")
        if self.stepsize_controller is not None and not self.has_default("rtol", "atol"):
            raise ValueError("give the tolerances either as rtol and atol or in the stepsize_controller, not both")
        if self.saveat is not None and self.output == "final" and not _saves_end(self.option("saveat")):
            raise ValueError(f'{name}: output="final" is the last value that `saveat` saves; give it t1=True or ts')
        if self.endless:
            self._require_steady()
        if self.on_state_update == "first" and self.batching == "vmap":
            raise ValueError(
                f"{name}: on_state_update='first' holds the statistics of a batch, which batching='vmap' takes apart: "
                "let it have batching='joint'"
            )
        if self.jumps is not None or self.events:
            self._require_pieces()
        for value in fields_of(self).values():
            if isinstance(value, Lambda):
                _require_one_argument(name, value.function)

    def _require_steady(self) -> None:
        """Raise `ValueError` for what does not end in a steady state."""
        name = type(self).__name__
        if not self.may_be_endless:
            raise ValueError(f"the times of a {name} are finite, got {self.ts}; a NeuralODE may end in a steady state")
        given = [
            option for option in ("time_dependent", "controlled", "saveat", "jumps") if not self.has_default(option)
        ]
        if given:
            raise ValueError(
                f"a {name} until infinity ends in a steady state, which is saved alone, and has no {given[0]}"
            )

    def _require_pieces(self) -> None:
        """Raise `ValueError` for options that are not for a solve in pieces."""
        if self.endless:
            raise ValueError(
                f"{type(self).__name__}: jumps and events happen on the way to a last time: give one in `ts`"
            )
        whole = [name for name in ("saveat", "event", "progress_meter", "throw") if not self.has_default(name)]
        if isinstance(self.option("stepsize_controller"), diffrax.StepTo):
            raise ValueError(
                f"{type(self).__name__}: a solve with jumps or events goes in pieces, and diffrax.StepTo steps through "
                "a whole one: take dt0 with diffrax.ConstantStepSize()"
            )
        if whole:
            raise ValueError(
                f"{type(self).__name__}: a solve with jumps or events goes in pieces, is saved at `ts`, and takes no "
                f"{whole[0]}"
            )

    # --- the options ---------------------------------------------------------------------------------------------

    def option(self, name: str) -> Any:
        """An option that is an object of diffrax, as diffrax takes it."""
        value = getattr(self, name)
        return value.value if isinstance(value, Constant) else value

    def has_default(self, *names: str) -> bool:
        """Whether options are what they are where nothing is said about them."""
        return all(getattr(self, name) == getattr(type(self), name) for name in names)

    @property
    def endless(self) -> bool:
        """Whether the solve goes on until the solution is steady."""
        return self.ts is not None and endless(self.ts)

    def chosen_adjoint(self) -> diffrax.AbstractAdjoint:
        """The adjoint, chosen by the context of derivatives where it is `"auto"`."""
        if not isinstance(self.adjoint, str):
            return self.adjoint
        wanted = {"forward": "forward", "both": "direct"}.get(derivatives.current() or "reverse", "checkpointed")
        wanted = "implicit" if self.endless and self.event is None else wanted
        name = wanted if self.adjoint == "auto" else self.adjoint
        if name == "checkpointed" and self.max_steps is None:
            return diffrax.RecursiveCheckpointAdjoint(checkpoints=64)
        return _ADJOINTS[name]()

    def controller(self) -> diffrax.AbstractStepSizeController:
        """The step size controller, ended early where a solve is hopeless."""
        controller = self.option("stepsize_controller")
        if controller is None:
            controller = diffrax.ConstantStepSize() if self.fixed_steps else diffrax.PIDController(self.rtol, self.atol)
        return guarded(controller)

    # --- the hooks -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def terms(self, fields: Fields) -> Any:
        """The terms of the equation, as its solver takes them, from the vector fields of the children by name."""

    def problem(self, x: Any, ps: Any, st: Any) -> tuple[Problem, Any]:
        """What the input `x` asks for, checked, and the state after it was read."""
        y0, ts, control = initial_value_and_times(self, x)
        return Problem(y0, ts, control, half=half_type(y0)), st

    def solve(self, fields: Fields) -> Any:
        """The solution of one sample: an object with the saved values `ys`."""
        return diffeqsolve(self, self.terms(fields), fields.problem.y0, fields)

    def first_inputs(self, fields: Fields) -> dict[str, Any]:
        """What the children, by name, are called with at the start of a solve; those left out keep their state."""
        ts, y0 = fields.problem.ts, fields.problem.y0
        return {
            name: field.input(ts[0], y0) for name, field in fields.items() if not isinstance(field.layer, Jumps | Event)
        }

    # --- the solve -----------------------------------------------------------------------------------------------

    @final
    def forward(self, x: Any, ps: Any, st: Any) -> tuple[Any, Any]:
        x, given = (x, {}) if self.jumps is None else self.jumps.split(type(self).__name__, x, ps, self.batching)
        problem, st = self.problem(x, ps, st)
        return self.solved(problem._replace(jumps=given) if given else problem, ps, st)

    @final
    def solved(
        self, problem: Problem, ps: Any, st: Any, solve: Callable[[Fields], Any] | None = None
    ) -> tuple[Any, Any]:
        """The output for a problem, and the next state; `solve` stands in for the method of that name."""
        half, problem = problem.half, problem._replace(half=None)
        if half is not None:
            problem, ps = single((problem, ps))

        held, after = self._held(problem, ps, st) if self.on_state_update == "first" else (st, None)

        def one(problem: Problem) -> Any:
            return (solve or self.solve)(self._fields(problem, ps, held))

        sol = self._each(one, problem, st)
        if half is not None:
            sol = eqx.tree_at(lambda sol: sol.ys, sol, _rounded(sol.ys, half))
        return self._output(sol), self._renewed(problem, ps, st) if after is None else after

    def _fields(self, problem: Problem, ps: Any, st: Any) -> Fields:
        """The vector fields of the children for one sample."""
        options = (self.time_dependent, self.on_state_update, problem.control, reading(self))
        fields: dict[str, Field] = {}
        if isinstance(self, Container):
            layers = self.children
        else:
            assert isinstance(self, Wrapper)
            layers, name = self.layers_beside, self.child_field
            fields[name] = Field(self.child, self.to_child(ps, st)[1], name if layers else None, *options)
        fields |= {name: Field(layer, st[name], name, *options) for name, layer in layers.items()}
        beside: list[Any] = [*zip(event_names(self.events), self.events, strict=True), ("jumps", self.jumps)]
        for name, layer in beside:  # those without parameters
            if layer is not None and name not in fields:
                fields[name] = Field(layer, {"effect": {}, "condition": {}}, None, *options)
        return Fields(fields, problem, ps)

    def _each(self, solve: Callable[[Problem], Any], problem: Problem, st: Any) -> Any:
        """`solve(problem)`; with `batching="vmap"` for each sample along the first axis independently."""

        def one(y0, ts, control, data, jumps):
            y0 = y0 if control is None else within(control, y0, ts)
            return solve(Problem(y0, ts, control, data, jumps=jumps))

        parts = (*problem[:4], problem.jumps)
        if self.batching == "joint":
            return one(*parts)
        refuse_training(st)
        shapes, rows = self._require_samples(problem), eqx.if_array(0)
        try:
            if shapes[0][0] == 0:
                return _of_no_samples(one, problem)
            if self.jumps is not None:
                self.jumps.require_known(problem.jumps or {}, problem.ts)
            axes = (rows, rows if problem.ts.ndim == 2 else None, rows, rows, rows)
            return eqx.filter_vmap(one, in_axes=axes)(*parts)
        except (TypeError, ValueError) as error:
            if not any(len(shape) > 1 for shape in shapes):
                error.add_note(
                    f'with batching="vmap" the first axis is that of the samples, and the shape {shapes[0]} is that of '
                    f"{shapes[0][0]} samples of one element each: for one sample alone add an axis, y0[None], or take "
                    'batching="joint"'
                )
            raise

    def _require_samples(self, problem: Problem) -> list[tuple[Any, ...]]:
        """The shapes of the initial value; `ValueError` unless all inputs have the same number of samples."""
        for part in jax.tree.leaves(problem.y0, is_leaf=lambda x: isinstance(x, ComponentVector)):
            if isinstance(part, ComponentVector) and jnp.ndim(part.data) == 1:
                raise ValueError(
                    f'with batching="vmap" named states have the samples along the first axis, an array (batch, '
                    f"{part.layout.size}) and the names: lux.ComponentVector(jnp.stack(states), names.layout). Got one "
                    f"vector of {part.layout.summary()}"
                )
        arrays = eqx.filter((problem.y0, problem.control, problem.data, problem.jumps), eqx.is_array)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(arrays)]
        shapes += [problem.ts.shape] if problem.ts.ndim == 2 else []
        if any(shape == () for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                f'a {type(self).__name__} with batching="vmap" solves for each sample along the first axis of its '
                f"inputs, times and controls, the same number in all; got the shapes {', '.join(map(str, shapes))}"
            )
        return shapes[: len(jax.tree.leaves(problem.y0))]

    def _output(self, sol: Any) -> Any:
        """The solution, its saved values or the last one, as `output` says."""
        if self.output == "solution":
            return sol
        if self.output == "ys":
            return sol.ys
        time_axis = 1 if self.batching == "vmap" else 0
        return jax.tree.map(lambda y: jnp.take(y, -1, axis=time_axis), sol.ys)

    def _renewed(self, problem: Problem, ps: Any, st: Any) -> Any:
        """The state after a solve that froze it; where updates are discarded, its random keys are renewed."""
        if self.on_state_update == "raise":
            return st
        if self.batching == "vmap":
            if 0 in jax.tree.leaves(problem.y0)[0].shape[:1]:
                return st
            problem = _sample(problem, lambda x: x[0])
        fields = self._fields(problem, ps, st)
        after = {name: fields[name].renewed(x, ps) for name, x in self.first_inputs(fields).items()}
        return self._with(after | self._parts_renewed(fields, ps), ps, st)

    def _parts_renewed(self, fields: Fields, ps: Any) -> dict[str, Any]:
        """The states of jumps and events, with their random keys renewed."""
        y0, ts = fields.problem[:2]
        beside = [(n, f) for n, f in fields.items() if f.name is not None and isinstance(f.layer, Jumps | Event)]
        return {name: field.parts_renewed(ts[0], y0, ps) for name, field in beside}

    def _held(self, problem: Problem, ps: Any, st: Any) -> tuple[Any, Any]:
        """The state with the statistics of the first evaluation held, and the state after that evaluation."""
        fields = self._fields(problem, ps, st)
        found = {name: fields[name].held(x, ps) for name, x in self.first_inputs(fields).items()}
        held, after = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
        return self._with(held, ps, st), self._with(after | self._parts_renewed(fields, ps), ps, st)

    def _with(self, states: dict[str, Any], ps: Any, st: Any) -> Any:
        """The state with those of the children by name."""
        if isinstance(self, Wrapper):
            st = self.from_child(ps, states.pop(self.child_field), st)[1]
        return {**st, **states} if states else st


def equation_of(layer: Any) -> Equation | None:
    """The equation in a layer: the layer itself, or what it wraps; `None` where there is none.

    >>> import lux_sciml as lux
    >>> node = lux.NeuralODE(lux.Dense(3, 3))
    >>> equation_of(lux.AugmentedODE(node, 1)) == node, equation_of(lux.Dense(2, 2))
    (True, None)
    """
    while isinstance(layer, Wrapper) and not isinstance(layer, Equation):
        layer = layer.child
    return layer if isinstance(layer, Equation) else None


def with_equation(layer: Any, equation: Equation) -> Any:
    """The layer with another equation in place of its own."""
    return equation if isinstance(layer, Equation) else layer.replace_child(with_equation(layer.child, equation))


def diffeqsolve(
    equation: Equation,
    terms: Any,
    y0: Any,
    fields: Fields,
    *,
    ts: jax.Array | None = None,
    controller: diffrax.AbstractStepSizeController | None = None,
) -> diffrax.Solution:
    """The solution from `ts[0]` to `ts[-1]`, saved at `ts`, with the options of the equation; a failed solve is NaN.

    For the `solve` of an equation of one's own, whose default it is.

    * `equation`: the options;
    * `terms`: what the solver takes, called with the parameters of the equation as `args`;
    * `y0`: the initial value, `fields.problem.y0` or another;
    * `fields`: what `solve` is called with;
    * `ts`, `controller`: in place of those of the problem and of the options.

    >>> import lux_sciml as lux
    >>> class Doubled(lux.Wrapper, lux.Equation):
    ...     model: lux.Layer
    ...     def terms(self, fields):
    ...         return diffrax.ODETerm(fields["model"])
    ...     def solve(self, fields):
    ...         return diffeqsolve(self, self.terms(fields), 2 * fields.problem.y0, fields)
    >>> doubled = Doubled(lux.Lambda(jnp.zeros_like), output="final")
    >>> doubled((jnp.ones(2), jnp.array([0.0, 1.0])), {}, {})[0]
    Array([2., 2.], dtype=float32)
    """
    ps, ts = fields.ps, fields.problem.ts if ts is None else ts
    adjoint = equation.chosen_adjoint()
    if isinstance(adjoint, diffrax.BacksolveAdjoint):  # integrates the gradients of its args: better flat
        ps = ComponentVector.from_tree(ps, like=layout_like(equation, ps))
    if isinstance(adjoint, DiscreteAdjoint) and equation.batching == "vmap":
        adjoint = dataclasses.replace(adjoint, over_samples=True)
    saveat = equation.option("saveat")
    if saveat is None:
        at_end = equation.output == "final" or equation.endless
        saveat = diffrax.SaveAt(t1=True) if at_end else diffrax.SaveAt(ts=ts)
    controller = equation.controller() if controller is None else controller
    step_times = controller.ts if isinstance(controller, diffrax.StepTo) else None
    saved = [sub.ts for sub in _subs(saveat) if sub.ts is not None]
    good = in_order(ts, saved, step_times)
    ts = ts if good is True else jnp.where(good, ts, jnp.nan)  # a solve that fails
    solver = unrolled(converging(equation.option("solver")))
    controller = ending_at(saved, equation.max_steps, solver, terms, controller)
    dt0 = None if equation.dt0 is None else jnp.copysign(jnp.asarray(equation.dt0, ts.dtype), ts[-1] - ts[0])
    steps: dict[str, Any] = {
        "stepsize_controller": controller, "adjoint": adjoint, "max_steps": equation.max_steps
    }  # fmt: skip
    if equation.jumps is not None or equation.events:
        sol = solve_in_pieces(equation, terms, solver, ts, dt0, y0, ps, fields, **steps)
        return mark_failure(sol, complete=True)
    sol = differentiable_solve(
        terms,
        solver,
        ts[0],
        ts[-1],
        dt0,
        y0,
        ps,
        saveat=saveat,
        event=_event_of(equation, controller),
        throw=equation.throw,
        progress_meter=equation.option("progress_meter"),
        **steps,
    )
    return mark_failure(sol, complete=equation.saveat is None and equation.event is None)


def _event_of(equation: Equation, controller: Any) -> Any:
    """The event that ends a solve; where it has no last time its steady state, to the tolerances of the steps."""
    if equation.event is not None or not equation.endless:
        return equation.option("event")
    adaptive = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    tolerances = (None, None) if adaptive else (equation.rtol, equation.atol)
    return diffrax.Event(diffrax.steady_state_event(*tolerances))


def _sample(problem: Problem, of: Callable[[Any], Any]) -> Problem:
    """One sample of a problem, by what it is of each array that has samples."""
    ts = of(problem.ts) if problem.ts.ndim == 2 else problem.ts
    return jax.tree.map(lambda x: of(x) if eqx.is_array(x) else x, problem)._replace(ts=ts)


def _of_no_samples(one: Callable[..., Any], problem: Problem) -> Any:
    """What `one` gives for each sample, for a problem that has none."""

    def none(x: Any) -> Any:
        return jnp.zeros((0, *x.shape), x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x

    sample = _sample(problem, lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    return jax.tree.map(none, eqx.filter_eval_shape(one, *sample[:4], sample.jumps))


def _saves_end(saveat: diffrax.SaveAt) -> bool:
    """Whether the last of the saved values is there and is that of the last time."""
    subs = _subs(saveat)
    return bool(subs) and all((sub.t0 or sub.t1 or sub.ts is not None) and not sub.steps for sub in subs)


def _subs(saveat: diffrax.SaveAt) -> list[diffrax.SubSaveAt]:
    return jax.tree.leaves(saveat.subs, is_leaf=lambda x: isinstance(x, diffrax.SubSaveAt))


def _require_one_argument(name: str, function: Callable) -> None:
    """Raise `TypeError` for a function that wants more than `y`, or the tuple `(t, y)`, as those of diffrax do."""
    needed = required_arguments(function)
    if len(needed) > 1:
        raise TypeError(
            f"the functions of a {name} take one argument, y, or the tuple (t, y) with time_dependent=True, "
            f"(y, u) with controlled=True, (t, (y, u)) with both; got a function of ({', '.join(needed)}). "
            "Of a function f(t, y, args) `lux.as_field(f, args)` makes a layer, for time_dependent=True; "
            "`lux.vector_field` is the way to diffrax"
        )


def half_type(y0: Any) -> Any:
    """The type of a start in half precision; `None` for others."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(y0)}
    return dtypes.pop() if len(dtypes) == 1 and jnp.finfo(*dtypes).bits < 32 else None


def _rounded(tree: Any, half: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(half) if is_inexact(x) and x.dtype == jnp.float32 else x, tree)
