"""Field: a layer as the vector field `f(t, y, ps)` of a solve, its state frozen; and `vector_field`, the public one."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe
from ..components import ComponentVector
from ..components.vector import named_like
from ..core import Layer, StatefulLayer, as_layer
from ..core.container import errors_of
from ..core.converters import checks_itself
from ..core.frozen import held_statistics, keys_after, refuse_updates
from ..core.parameters import parameter_tree
from ..core.reads import reading


class Field(eqx.Module):
    """`f(t, y, ps)` of a layer with a frozen state, or, where it has a name, of that child of a container.

    `ps` are the parameters of the whole equation. The layer's input is `y`, with `time_dependent` `(t, y)`; with a
    control the pair `(y, u(t))` replaces `y`.
    """

    layer: Layer
    st: Any
    name: str | None = eqx.field(static=True, default=None)
    time_dependent: bool = eqx.field(static=True, default=False)
    on_state_update: str = eqx.field(static=True, default="raise")
    control: diffrax.AbstractPath | None = None
    reading: object = eqx.field(static=True, default=None)  # of globals and the like: diffrax jits its solves

    def __call__(self, t: Any, y: Any, ps: Any) -> Any:
        """The derivative: the layer's output, which must be like `y`, with the names of `y`."""
        return like(y, self.value(t, y, ps))

    def value(self, t: Any, y: Any, ps: Any) -> Any:
        """The layer's output, whatever it is."""
        return self.output(self.input(t, y), ps)

    def input(self, t: Any, y: Any) -> Any:
        """What the layer is called with at the time `t` and the state `y`."""
        y = y if self.control is None else (y, self.control.evaluate(t))
        return (t, y) if self.time_dependent else y

    def output(self, x: Any, ps: Any) -> Any:
        """The layer's output for an input of its own."""
        ps = self.own(ps)
        with self._explained(x):
            out, kept = self.layer.forward(x, ps, self.st)
            if self.on_state_update == "raise":
                refuse_updates(self.layer, lambda st: self.layer.forward(x, ps, st)[1], self.st, kept)
        return out

    def renewed(self, x: Any, ps: Any) -> Any:
        """The frozen state, with its random keys as they are after one call of the layer with the input `x`."""
        with self._explained(x):
            return keys_after(self.layer, x, self.own(ps), self.st)

    def held(self, x: Any, ps: Any) -> tuple[Any, Any]:
        """The frozen state with the statistics of a call with the input `x` held, and the state after that call."""
        with self._explained(x):
            return held_statistics(self.layer, x, self.own(ps), self.st)

    def changed(self, effect: Any, name: str, t: Any, y: Any, ps: Any) -> Any:
        """The state after an effect of this layer, its child of this name or a function of `(t, y, ps)`."""
        what = f"the {name} of {type(self.layer).__name__}"
        return like(y, self.asked(effect, name, t, y, ps), what)

    def asked(self, part: Any, name: str, t: Any, y: Any, ps: Any) -> Any:
        """What a child of this name of this layer, or a function of `(t, y, ps)`, says of the state."""
        if not isinstance(part, Layer):
            return part(t, y, ps.tree() if isinstance(ps, ComponentVector) else ps)
        return self._part(part, name).value(t, y, self.own(ps))

    def parts_renewed(self, t: Any, y: Any, ps: Any) -> Any:
        """The frozen state, with the random keys of the children of this layer as they are after one call of each."""
        parts = {name: getattr(self.layer, name) for name in self.st}
        layers = {name: self._part(part, name) for name, part in parts.items() if isinstance(part, Layer)}
        return {**self.st, **{name: part.renewed(part.input(t, y), self.own(ps)) for name, part in layers.items()}}

    def _part(self, part: Layer, name: str) -> "Field":
        return Field(part, self.st[name], name, self.time_dependent, self.on_state_update, self.control)

    def own(self, ps: Any) -> Any:
        """The layer's own parameters, out of those of the equation."""
        ps = ps.tree() if isinstance(ps, ComponentVector) else ps
        return ps if self.name is None else ps[self.name]

    @contextlib.contextmanager
    def _explained(self, x: Any) -> Iterator[None]:
        """Errors raised inside name the child, and tell where a net got the time beside its input."""
        with contextlib.nullcontext() if self.name is None else errors_of(self.name):
            try:
                yield
            except TypeError as error:
                if type(x) is tuple and np.ndim(x[0]) == 0:
                    error.add_note(
                        f"the vector field is called with a tuple of {len(x)}, the time in front: "
                        "`lux.Chain(lux.diffeq.concat_time, ...)` makes one array of it for a net"
                    )
                raise


class _VectorField(eqx.Module):
    """What `vector_field` returns: a Field, or a function `f(t, y, p)`, with parameters and result checked."""

    function: Callable[[Any, Any, Any], Any]
    reading: object = eqx.field(static=True)

    def __call__(self, t: Any, y: Any, p: Any) -> Any:
        if isinstance(self.function, Field):
            p = parameter_tree(self.function.layer, p)
        return like(y, self.function(t, y, p))


@checks_itself
def vector_field(
    model: Layer | Callable[[Any, Any, Any], Any],
    st: Any = None,
    *,
    time_dependent: bool = False,
    on_state_update: str = "raise",
) -> Callable[[Any, Any, Any], Any]:
    r"""The vector field :math:`dy/dt = f(t, y, p)` of a layer, for `diffrax.ODETerm`.

    The result is called as `f(t, y, ps)`: parameters always travel through diffrax's `args`, as a ComponentVector or a
    nested dict, so that every adjoint of diffrax works. The state `st` is frozen. With `time_dependent` the layer is
    called with the tuple `(t, y)`, otherwise with `y`. Where `y` is a ComponentVector, plain arrays of its shape that
    come out get its names; of a batch `(batch, n)`, so do components `(batch, ...)` in a ComponentVector or a dict.

    `model` may also be a plain function `f(t, y, p)`, whose result gets the names of `y`.

    Raises, while tracing, `ValueError` for a layer that updates its state (named by its path; see `lux.testmode`, or
    `on_state_update="discard"`), for parameters that are not the layer's, and for an output of another shape than `y`.

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
        return _VectorField(Field(model, st, None, time_dependent, on_state_update), reading(model))
    if not callable(model) or isinstance(model, StatefulLayer):
        as_layer(model, "vector_field(model, st)")  # raises
    return _VectorField(model, reading(model))


def like(y: Any, dy: Any, what: str = "a vector field") -> Any:
    """`dy`, with the names of `y`, if its structure and shapes are those of `y`; otherwise `ValueError` of `what`."""
    if any(isinstance(part, ComponentVector) for part in jax.tree.leaves(y, is_leaf=_is_vector)):
        treedef = jax.tree.structure(y, is_leaf=_is_vector)
        parts = zip(jax.tree.leaves(y, is_leaf=_is_vector), _parts_of(dy, treedef, y, what), strict=True)
        dy = treedef.unflatten([named_like(b, a) if _is_vector(a) else b for a, b in parts])
    if jax.tree.structure(y) != jax.tree.structure(dy):
        raise _unlike(y, dy, what)
    dy = jax.tree.map(lambda a, b: jnp.asarray(b, a.dtype) if type(b) in (float, int) else b, y, dy)
    for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True):
        if a.shape != b.shape:
            raise ValueError(f"{what} must keep the shape of its state, {a.shape}; got {b.shape}")
        if a.dtype != b.dtype:
            raise ValueError(
                f"the state of the solve is {a.dtype}, but {what} returns {b.dtype}: give initial value and "
                "parameters one type, as by `lux.setup(key, layer, dtype=...)`"
            )
    return dy


def _is_vector(x: Any) -> bool:
    return isinstance(x, ComponentVector)


def _parts_of(dy: Any, treedef: Any, y: Any, what: str) -> list[Any]:
    try:
        return treedef.flatten_up_to(dy)
    except ValueError:
        raise _unlike(y, dy, what) from None


def _unlike(y: Any, dy: Any, what: str) -> ValueError:
    numbers = isinstance(dy, list | tuple) and not isinstance(y, list | tuple | dict)
    fix = ": `jnp.stack` makes one array of several" if numbers else ""
    return ValueError(f"{what} must return what its state is, {describe(y)}; got {describe(dy)}{fix}")
