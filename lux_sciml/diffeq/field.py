"""The bridge from layers to diffrax: a vector field `f(t, y, ps)`."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ..components import ComponentVector
from ..core import Layer
from ..core.container import errors_of
from ..core.frozen import refuse_updates
from ..core.parameters import parameter_tree


def vector_field(
    model: Any, st: Any = None, *, time_dependent: bool = False, on_state_update: str = "raise"
) -> Callable[[Any, Any, Any], Any]:
    r"""The vector field :math:`dy/dt = f(t, y, p)` of a layer, for `diffrax.ODETerm`.

    The result is called as `f(t, y, ps)`: parameters always travel through diffrax's `args`, as a ComponentVector or a
    nested dict, so that every adjoint of diffrax works. The state `st` is frozen. With `time_dependent` the layer is
    called with the tuple `(t, y)`, otherwise with `y`. Where `y` is a ComponentVector, plain arrays of its shape that
    come out get its names.

    `model` may also be a plain function `f(t, y, p)`, whose result gets the names of `y`.

    Raises, while tracing, `ValueError` for a layer that updates its state (named by its path; see `lux.testmode`, or
    `on_state_update="discard"`), and for an output of another shape than `y`.

    >>> import diffrax, jax, jax.numpy as jnp, lux_sciml as lux
    >>> model = lux.Dense(2, 2)
    >>> ps, st = lux.setup(jax.random.key(0), model)
    >>> term = diffrax.ODETerm(lux.vector_field(model, st))
    >>> diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.1, jnp.ones(2), args=ps).ys.shape
    (1, 2)
    """
    if on_state_update not in ("raise", "discard"):
        raise ValueError(f'on_state_update is "raise" or "discard", got {on_state_update!r}')
    if isinstance(model, Layer):
        return Field(FrozenLayer(model, st, time_dependent, on_state_update))
    return Field(model)


class FrozenLayer(eqx.Module):
    """A layer as a function `f(t, y, ps)` with a frozen state, whatever its output."""

    model: Layer
    st: Any
    time_dependent: bool = eqx.field(static=True, default=False)
    on_state_update: str = eqx.field(static=True, default="raise")

    def __call__(self, t: Any, y: Any, ps: Any) -> Any:
        ps, x = parameter_tree(self.model, ps), (t, y) if self.time_dependent else y
        out, kept = self.model.forward(x, ps, self.st)
        if self.on_state_update == "raise":
            refuse_updates(self.model, lambda st: self.model.forward(x, ps, st)[1], self.st, kept)
        return out


class Field(eqx.Module):
    """A function `f(t, y, p)` whose output is checked to be like `y`, and named like it; made by `vector_field`."""

    function: Callable

    def __call__(self, t: Any, y: Any, p: Any) -> Any:
        return _like(y, self.function(t, y, p))


def _like(y: Any, dy: Any) -> Any:
    """`dy`, with the names of `y`, if its structure and shapes are those of `y`; otherwise `ValueError`."""
    if isinstance(y, ComponentVector) and not isinstance(dy, ComponentVector):
        dy = ComponentVector.from_tree(dy, like=y) if isinstance(dy, dict) else ComponentVector(dy, y.layout)
    expected, got = jax.tree.map(_shape, y), jax.tree.map(_shape, dy)
    if jax.tree.structure(expected) != jax.tree.structure(got):
        raise ValueError(f"a vector field must return what its state is, {expected}; got {got}")
    for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True):
        if a.shape != b.shape:
            raise ValueError(f"a vector field must keep the shape of its state, {a.shape}; got {b.shape}")
        if a.dtype != b.dtype:
            raise ValueError(
                f"the state of the solve is {a.dtype}, but the vector field returns {b.dtype}: give initial value and "
                "parameters one type, as by `lux.setup(key, layer, dtype=...)`"
            )
    return dy


def _shape(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


class OfChild(eqx.Module):
    """`f(t, y, ps)` of one child, called with the parameters of the whole container."""

    name: str = eqx.field(static=True)
    function: Callable

    def __call__(self, t: Any, y: Any, ps: Any) -> Any:
        with errors_of(self.name):
            return self.function(t, y, ps[self.name])


class Controlled(eqx.Module):
    """`f(t, y, ps)` of a function that takes `(y, u(t))` in the place of `y`."""

    function: Callable
    control: diffrax.AbstractPath

    def __call__(self, t: Any, y: Any, ps: Any) -> Any:
        return self.function(t, (y, self.control.evaluate(t)), ps)


def split_control(name: str, x: Any, with_times: bool) -> tuple[Any, diffrax.AbstractPath]:
    """The input without its last item, and that item, the control. Raises `ValueError` where it is no path."""
    parts = ("initial value", "times", "control") if with_times else ("initial value", "control")
    if not isinstance(x, tuple) or len(x) != len(parts) or not isinstance(x[-1], diffrax.AbstractPath):
        raise ValueError(
            f"a {name} with a control takes the tuple ({', '.join(parts)}), where the control is a diffrax path, "
            "such as diffrax.LinearInterpolation(ts, ys)"
        )
    return x[:-1] if with_times else x[0], x[-1]


def within(control: diffrax.AbstractPath, y0: Any, ts: jax.Array) -> Any:
    """`y0`, where the control is defined at all the times; else `ValueError`, or NaN where the times are traced."""
    low, high = jnp.minimum(ts[0], ts[-1]), jnp.maximum(ts[0], ts[-1])
    good = (control.t0 <= low) & (high <= control.t1)
    if isinstance(good, jax.core.Tracer):
        return jax.tree.map(lambda y: jnp.where(good, y, jnp.nan), y0)
    if not good:
        raise ValueError(
            f"the control is defined from {control.t0:g} to {control.t1:g}, the times ask for {low:g} to {high:g}"
        )
    return y0
