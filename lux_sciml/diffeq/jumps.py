"""Jumps: what changes the state of an equation at known times, at once or over a while."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._tree import floating, is_inexact, is_traced
from ..components import ComponentVector
from ..core import Constant, Container, Layer, field
from ..core.converters import checks_itself, choice, choices, flag, function, numbers, optional, short
from ..series import Series

_FROM_CALL = ("times", "amounts", "durations")


@checks_itself
def _times(value: Any) -> Constant:
    if is_traced(value):
        raise TypeError(
            "expected known times: those that are traced come with each call, `lux.Jumps(amounts=...)` called with "
            '`(y0, {"times": times})`, and those that are learned are parameters, by trainable=("times",)'
        )
    times = np.asarray(value)
    if times.dtype.kind not in "iuf" or times.ndim not in (1, 2) or times.size == 0:
        raise ValueError(f"expected times (jumps,) or (batch, jumps), got {short(value)}")
    if np.isnan(times).any():
        raise ValueError(f"expected times, got NaN at the position {np.argwhere(np.isnan(times))[0].tolist()}")
    steps = [np.diff(row[np.isfinite(row)]) for row in np.atleast_2d(times)]
    if not (all((step >= 0).all() for step in steps) or all((step <= 0).all() for step in steps)):
        raise ValueError("expected times that increase, or that decrease; these turn back")
    return Constant(times)


@checks_itself
def _amounts(value: Any) -> Constant:
    return numbers(_arrays(value.value if isinstance(value, Constant) else value))


def _arrays(value: Any) -> Any:
    value = _by_name(value)
    return {n: _arrays(x) for n, x in value.items()} if isinstance(value, Mapping) else np.asarray(value)


def _by_name(amounts: Any) -> Any:
    """Amounts in a ComponentVector as a dict."""
    return {n: _by_name(amounts[n]) for n in amounts.keys()} if isinstance(amounts, ComponentVector) else amounts


@checks_itself
def _durations(value: Any) -> Constant:
    durations = numbers(value)
    if not (np.asarray(durations.value) >= 0).all():
        raise ValueError(f"expected durations of at least 0, got {short(value)}")
    return durations


@checks_itself
def of_time_and_state(value: Any) -> Any:
    """A layer, or a function of `(t, y, ps)`."""
    if isinstance(value, Layer):
        return value
    try:
        inspect.signature(function(value)).bind(None, None, None)
    except TypeError as error:
        if not callable(value):
            raise
        raise TypeError(f"expected a layer, or a function of (t, y, ps), got {short(value)}: {error}") from None
    except ValueError:  # of functions written in C
        pass
    return value


class Jumps(Container):
    r"""Jumps of the state at known times, for the option `jumps` of equations: :math:`y(t_k^+) = g(t_k, y(t_k^-), p)`.

    The solve goes exactly to each time, changes the state, and starts anew from there.

    * `times`, by position too: `(jumps,)`, or `(batch, jumps)` with `batching="vmap"`. They increase or decrease,
      whichever way the solve goes, which takes each where it comes to it. Some may be equal, and then they follow each
      other; `inf` stands for a jump that does not happen. The ends of the solve are within its span.
    * `effect`, by position too: the function `g(t, y, ps)`, with the parameters of the equation as nested dicts, or a
      layer, called as the vector field is, with `y` or, with `time_dependent`, `(t, y)`; its parameters are
      `ps["jumps"]["effect"]`.
    * `amounts`, in place of an effect: what is added to the state, such as doses. A number for all jumps or an array
      `(jumps, ...)` of one for each; or a dict (or ComponentVector) of those, by the names of the components that they
      are added to, where the state is a ComponentVector or a dict: `{"depot": 100.0}`.
    * `durations`: the amounts are infusions, each added at a constant rate from its time on for its duration, a number
      or `(jumps,)`; those of duration zero are added at once. The solve goes exactly to both ends.
    * `trainable`: which of `"times"`, `"amounts"` and `"durations"` are parameters, as `ps["jumps"]["times"]`.
    * `saves`: the limit that is saved where one of `ts` is the time of a jump, `"right"`, after it, or `"left"`; with
      `output="final"` too. A jump at the first time is before what is saved there, too.
    * `limits`: both limits at all jumps are in `sol.stats["jumps"]`, a dict of `times`, `(jumps,)` in the order in
      which they happen, and `left` and `right`, `(jumps, *y0.shape)`.

    What of `times`, and, where there is no effect, of `amounts` is left out comes with each call, in a dict at the end
    of the input: `equation((y0, {"times": times, "amounts": {"depot": doses}}), ps, st)`, or `(y0, ts, {...})`; also
    `durations`, which may be there. With `batching="vmap"` its arrays have the samples along their first axis.

    Gradients reach the parameters of effects, amounts, durations and times; those by times are :math:`f(t_k^-) -
    f(t_k^+)` carried through the jump, of first and second order, by every adjoint.

    An equation that jumps is a hybrid system; Corner, Sandu and Sandu, "Adjoint sensitivity analysis of hybrid
    multibody dynamical systems", Multibody System Dynamics 49, 2020, have its derivatives. Raises `ValueError` for
    times that are NaN, now increase and now decrease, or lie outside of the span of the solve, for durations that are
    negative or not finite (where they are traced, the solution is NaN), and for effects that change the structure, the
    shapes or the types of the state.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> doses = lux.Jumps([0.0, 12.0], amounts={"depot": 100.0})
    >>> def rate(y):
    ...     return lux.ComponentVector(depot=-y.depot, blood=y.depot - 0.1 * y.blood)
    >>> node = lux.NeuralODE(rate, ts=[0.0, 12.0, 24.0], jumps=doses)
    >>> sol, _ = node(lux.ComponentVector(depot=0.0, blood=0.0), {}, {})
    >>> sol.ys["depot"].round(2)
    Array([100., 100.,   0.], dtype=float32)
    """

    times: Constant | None = field(default=None, converter=optional(_times))
    effect: Layer | Callable[..., Any] | None = field(default=None, converter=optional(of_time_and_state))
    amounts: Constant | None = field(default=None, converter=optional(_amounts), kw_only=True)
    durations: Constant | None = field(default=None, converter=optional(_durations), kw_only=True)
    trainable: tuple[str, ...] = field(default=(), converter=choices(*_FROM_CALL), kw_only=True)
    saves: str = field(default="right", converter=choice("right", "left"), kw_only=True)
    limits: bool = field(default=False, converter=flag, kw_only=True)

    def __check_init__(self):
        if self.effect is not None and (self.amounts is not None or self.durations is not None):
            raise ValueError("Jumps have either an effect or amounts, with their durations; got both")
        missing = [name for name in self.trainable if getattr(self, name) is None]
        if missing:
            raise ValueError(f"Jumps: the trainable {missing[0]} start from values: give {missing[0]}=...")

    def init_params(self, key):
        own = {name: floating(getattr(self, name).value) for name in self.trainable}
        return {**super().init_params(key), **own}

    def forward(self, x, ps, st):
        raise TypeError("Jumps are an option of an equation, jumps=lux.Jumps(...), and are not called")

    # --- what an equation asks ------------------------------------------------------------------------------------

    def asked(self) -> list[str]:
        """What comes with each call."""
        names = ["times"] if self.effect is not None else ["times", "amounts"]
        return [name for name in names if getattr(self, name) is None]

    def split(self, name: str, x: Any, ps: Any, batching: str) -> tuple[Any, dict[str, Any]]:
        """The input of an equation of this name without what is of each sample, or comes with each call, and that."""
        asked, own = self.asked(), {}
        if self.times is not None and np.ndim(self.times.value) == 2 and batching == "vmap":
            times = ps["jumps"]["times"] if "times" in self.trainable else self.times.value
            own = {"times": jnp.asarray(floating(times))}
        if not asked:
            return x, own
        given: Any = x[-1] if isinstance(x, tuple) and len(x) > 1 else None
        allowed = {*asked, *(() if self.effect is not None or self.durations is not None else ("durations",))}
        if not isinstance(given, dict) or not set(asked) <= given.keys() <= allowed:
            got = f"a dict of {', '.join(map(str, given))}" if isinstance(given, dict) else "none"
            raise ValueError(
                f"the jumps of this {name} were built without {' and '.join(asked)}, so its input ends in a dict with "
                f"{' and '.join(map(repr, asked))}, as in (y0, {{{asked[0]!r}: ...}}); got {got}"
            )
        if isinstance(given.get("times"), Series):
            raise TypeError(
                "the times of jumps are an array (samples, jumps), with inf where there is none: of a Series, "
                "np.where(doses.mask, doses.times, np.inf)"
            )
        return (x[0] if len(x) == 2 else x[:-1]), {**own, **floating(given)}

    def require_known(self, given: dict[str, Any], ts: Any) -> None:
        """Raise `ValueError` for times and durations of samples that are known, and wrong."""
        known = self.times.value if self.times is not None and "times" not in self.trainable else None
        times, durations = given.get("times", known), given.get("durations")
        if times is not None and not is_traced(times) and not is_traced(ts):
            times = np.atleast_2d(np.asarray(times, ts.dtype))
            require_within(times, np.True_, np.atleast_2d(np.asarray(ts)))
        if durations is not None:
            require_durations(durations)

    def values(self, name: str, own: Any, given: dict[str, Any]) -> Any:
        """The `times`, `amounts` or `durations` of one solve, from parameters, from the call or from the field."""
        if name in given:
            return given[name]
        if name in self.trainable:
            return own[name]
        constant = getattr(self, name)
        return None if constant is None else constant.value


def require_within(times: Any, starts: Any, ts: Any) -> Any:
    """Whether the starts of jumps, `(..., jumps)`, are within the spans of solves, or never; `ValueError` where all is
    known."""
    first, last = ts[..., :1], ts[..., -1:]
    low, high = jnp.minimum(first, last), jnp.maximum(first, last)
    good = ~starts | jnp.isinf(times) | ((times >= low) & (times <= high))
    if not is_traced(good) and not good.all():
        place = tuple(np.argwhere(~np.asarray(good))[0])
        time, low, high = (np.broadcast_to(x, good.shape)[place] for x in (times, low, high))
        of = f" of sample {place[0]}" if len(good.shape) == 2 and len(good) > 1 else ""
        raise ValueError(
            f"the jump at {time}{of} is outside of the span of the solve, {low} to {high}; give the solve longer `ts`, "
            "or the jump the time inf, for one that does not happen"
        )
    return jnp.all(good)


def require_durations(durations: Any) -> Any:
    """Whether durations are finite and at least 0; `ValueError` where all is known."""
    good = jnp.isfinite(durations) & (durations >= 0)
    if not is_traced(good) and not good.all():
        bad = np.asarray(durations)[~np.asarray(good)][0]
        raise ValueError(f"the durations of jumps are finite and at least 0, 0 for a dose at once; got {bad}")
    return jnp.all(good)


class Doses(eqx.Module):
    """The amounts of one solve: what each of its jumps adds, at once or at a rate."""

    amounts: Any
    durations: jax.Array | None

    def __init__(self, amounts: Any, durations: Any, count: int):
        self.amounts = jax.tree.map(lambda x: _rows(x, count, "amounts"), _by_name(amounts))
        self.durations = None if durations is None else _rows(durations, count, "durations")

    def added(self, y: Any, i: Any) -> Any:
        """The state after the jump `i`."""
        at_once = True if self.durations is None else self.durations[i] <= 0
        return _added(y, jax.tree.map(lambda x: jnp.where(at_once, x[i], 0), self.amounts))

    def rates(self, y: Any) -> Any:
        """What each infusion adds to the derivative, `(jumps, *y.shape)`."""
        assert self.durations is not None
        zeros, lasting = jax.tree.map(jnp.zeros_like, y), self.durations > 0
        per_time = jnp.where(lasting, 1 / jnp.where(lasting, self.durations, 1), 0)

        def rate(amounts: Any, per_time: Any) -> Any:
            return _added(zeros, jax.tree.map(lambda x: x * per_time.astype(x.dtype), amounts))

        return jax.vmap(rate)(self.amounts, per_time)


def _rows(x: Any, count: int, name: str) -> jax.Array:
    """One value for each jump."""
    x = jnp.asarray(floating(x))
    if x.ndim == 0:
        return jnp.broadcast_to(x, (count,))
    if len(x) != count:
        raise ValueError(f"the {name} of {count} jumps are one number, or have shape ({count}, ...); got {x.shape}")
    return x


def _added(y: Any, amounts: Any) -> Any:
    """The state with an amount for all of it, or for each of some named components."""
    if isinstance(amounts, dict):
        for path, amount in _paths(amounts):
            y = _component_added(y, path, amount)
        return y
    if len(jax.tree.leaves(y)) != 1:
        raise ValueError("a state of several arrays takes amounts by the names of its components, amounts={name: ...}")
    return jax.tree.map(lambda y: _sum(y, amounts), y)


def _paths(amounts: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, amount in amounts.items():
        if isinstance(amount, dict):
            yield from _paths(amount, f"{before}{name}.")
        else:
            yield before + name, amount


def _component_added(y: Any, path: str, amount: Any) -> Any:
    if isinstance(y, ComponentVector):
        part = y[path]
        return y.at[path].set(_sum(jnp.asarray(part), amount))
    name, _, rest = path.partition(".")
    if not isinstance(y, dict) or name not in y:
        known = f"has the components {', '.join(y)}" if isinstance(y, dict) else f"is a {type(y).__name__}"
        raise ValueError(f"an amount is added to {path!r}, but the state {known}")
    return {**y, name: _component_added(y[name], rest, amount) if rest else _sum(y[name], amount)}


def _sum(y: Any, amount: Any) -> Any:
    amount = amount.astype(y.dtype) if is_inexact(amount) else amount
    total = y + amount
    if total.shape != y.shape:
        raise ValueError(f"an amount of shape {amount.shape} is added to what has shape {y.shape}")
    return total
