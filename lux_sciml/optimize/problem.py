"""Problem: a loss and the kind of its parameters; what of it a method sees, and what the user."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe, is_inexact, is_traced
from ..components import ComponentVector, Layout
from ..core import Layer, Mode, StatefulLayer
from .part import Part


class Inputs(NamedTuple):
    """The arrays that a loss is given beside what a method varies."""

    args: Any = None
    state: Any = None
    fixed: ComponentVector | None = None  # all parameters, where some of them are fitted


class Evaluation(NamedTuple):
    """What a loss returns; `state` is the next one."""

    value: jax.Array
    state: Any
    aux: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A loss of parameters of one kind.

    A method varies `params`: the parameters as they were passed in, or, of a ComponentVector, the vector of the blocks
    that are `chosen`. Where it wants one vector `(n,)`, that is `ravel(params)`.
    """

    loss: Callable
    has_args: bool
    has_state: bool
    has_aux: bool
    other_args: Any  # what in the args is neither array nor number
    named: bool  # the loss takes a ComponentVector, not a tree or an array
    whole: Layout  # of all parameters
    part: Part | None  # of `whole`, that is fitted
    layout: Layout  # of `params`
    dtype: np.dtype  # of the vector
    trace: Callable | None = None  # of the call, in place of it

    @classmethod
    def of(cls, loss: Any, ps: Any, args: Any, state: Any, has_aux: bool, trainable: Any) -> "tuple[Problem, Inputs]":
        """Raises `TypeError` for what is no loss and for what are no parameters, `KeyError` for unknown names."""
        if not callable(loss):
            raise TypeError(f"the loss must be a function of the parameters, not its value, got {describe(loss)}")
        if isinstance(state, Layer | StatefulLayer):
            raise TypeError(f"`state` is that of a layer, from `ps, st = lux.setup(key, layer)`, got {_kind(state)}")
        if any(map(is_traced, jax.tree.leaves((ps, args, state)))):
            raise TypeError("minimize runs outside of jax.jit, grad and vmap: it decides in Python when to stop")
        named = isinstance(ps, ComponentVector)
        whole = Layout.of(ps)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in whole.leaves):
            raise TypeError("minimize takes real parameters: store complex ones as their real and imaginary parts")
        if named and ps.ndim != 1:
            raise ValueError(f"minimize takes one vector of parameters, got a batch of shape {ps.shape}")
        part = None if trainable is None else Part.of(ps, trainable)
        layout = whole if part is None else part.layout
        if layout.size == 0:
            raise ValueError("there are no parameters to fit: ps has no elements")
        arrays, others = eqx.partition(args, eqx.is_array_like)
        arrays, state = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, (arrays, state))
        dtype = np.dtype(ps.dtype) if named else _widest(layout)
        facts = (args is not None, state is not None, has_aux, others, named, whole, part, layout, dtype)
        return cls(loss, *facts), Inputs(arrays, state, None if part is None else ps)

    def facts(self) -> tuple[Any, ...]:
        """All but the loss: what a trace of the call depends on."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "loss")

    # --- the loss ---------------------------------------------------------------------------------------------

    def __call__(self, params: Any, inputs: Inputs) -> Evaluation:
        """The loss, checked to be one floating-point number, with the next state and aux."""
        if self.trace is not None:
            return self.trace(params, inputs)
        given = [self.join(params, inputs)]
        given += [inputs.state] if self.has_state else []
        given += [eqx.combine(inputs.args, self.other_args)] if self.has_args else []
        more = [name for name, has in (("state", self.has_state), ("args", self.has_args)) if has]
        out = called("loss", self.loss, ["ps", *more], *given)
        names = ["value", *(["state"] if self.has_state else []), *(["aux"] if self.has_aux else [])]
        if len(names) == 1 and isinstance(out, tuple):
            raise TypeError("the loss returned a tuple: pass has_aux=True where it returns (value, aux)")
        if len(names) > 1 and not (isinstance(out, tuple) and len(out) == len(names)):
            asked = " and ".join((["state="] if self.has_state else []) + (["has_aux=True"] if self.has_aux else []))
            raise TypeError(f"with {asked} the loss must return ({', '.join(names)}), got {_kind(out)}")
        found = dict(zip(names, out if len(names) > 1 else [out], strict=True))
        value = one_number(found["value"])
        if self.has_state:
            require_same_kind(inputs.state, found["state"])
        if not self.has_state and in_training(found.get("aux")):
            warnings.warn(
                "the loss returns a state in training as its aux, and every step begins with the same one: statistics "
                "and random keys do not advance. Pass it as `state=`, or `lux.testmode(st)` where it is to stay",
                stacklevel=2,
            )
        return Evaluation(value, found.get("state"), found.get("aux"))

    # --- parameters in their several forms --------------------------------------------------------------------

    def take(self, ps: Any) -> Any:
        """What a method varies, of all parameters."""
        if self.part is not None:
            return self.part.take(ps)
        return ps if self.named else self.layout.unravel(self.layout.ravel(ps, self.dtype))

    def join(self, params: Any, inputs: Inputs) -> Any:
        """All parameters, with those that a method varies in their place."""
        return params if self.part is None or inputs.fixed is None else self.part.join(params, inputs.fixed)

    def ravel(self, params: Any) -> np.ndarray:
        """`params` as a float64 array `(n,)`."""
        return np.asarray(params.data if self.named else self.layout.ravel(params, self.dtype)).astype(np.float64)

    def unravel(self, flat: Any) -> Any:
        """`params` of a vector `(n,)`, in the dtype that was passed in."""
        flat = self.cast(flat)
        return ComponentVector(flat, self.layout) if self.named else self.layout.unravel(flat)

    def cast(self, flat: Any) -> Any:
        """A vector in the parameters' own dtype."""
        with np.errstate(over="ignore"):
            return flat.astype(self.dtype)

    def bounds(self, bounds: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper bounds `(n,)` of `params`, rounded to their dtype, from bounds of all parameters.

        Raises `TypeError` for what is no pair of bounds, `ValueError` for other sizes and where lower exceeds upper.
        """
        if bounds is None:
            return None
        if hasattr(bounds, "lb") and hasattr(bounds, "ub"):  # a scipy.optimize.Bounds
            bounds = (bounds.lb, bounds.ub)
        if not isinstance(bounds, tuple) or len(bounds) != 2:
            raise TypeError(
                "bounds are a pair (lower, upper) or a scipy.optimize.Bounds; -inf, inf and None leave a side open"
            )
        lower, upper = (self._bound(bound, free) for bound, free in zip(bounds, (-np.inf, np.inf), strict=True))
        wrong = np.flatnonzero(~(lower <= upper))
        if wrong.size:
            i = wrong[0]
            where = self.whole.labels()[i] or "the parameter"
            raise ValueError(f"the lower bound of `{where}`, {lower[i]:g}, is not below its upper bound, {upper[i]:g}")
        if self.part is None:
            return lower, upper
        return lower[self.part.mask], upper[self.part.mask]

    def _bound(self, bound: Any, free: float) -> np.ndarray:
        """One side of the bounds of all parameters."""
        n = self.whole.size
        if bound is None:
            return np.full(n, free)
        if isinstance(bound, ComponentVector):
            self.whole.require_same(bound.layout)
            bound = bound.data
        elif jax.tree.structure(bound) != jax.tree.structure(0):
            bound = self._bound_of_tree(bound, free)
        if np.asarray(bound).dtype.kind in "OSU":
            raise TypeError(f"a bound is a number, an array ({n},), a ComponentVector or a tree, got {bound!r}")
        if np.shape(bound) not in ((), (1,), (n,)):
            raise ValueError(f"a bound is a number or has shape ({n},), got shape {np.shape(bound)}")
        flat = np.array(np.broadcast_to(np.asarray(bound, np.float64), (n,)))
        return self.cast(flat).astype(np.float64)

    def _bound_of_tree(self, bound: Any, free: float) -> Any:
        """From a tree like the parameters, of numbers, arrays and `None`."""

        def filled(x, side):
            return np.broadcast_to(np.asarray(free if side is None else side, np.float64), x.shape)

        try:
            tree = jax.tree.map(filled, self.whole.unravel(jnp.zeros(self.whole.size, self.dtype)), bound)
        except (TypeError, ValueError):
            raise TypeError(
                f"a bound is a number, an array ({self.whole.size},), a ComponentVector or a tree like the parameters, "
                f"got {_kind(bound)}; bounds are (lower, upper), not one pair for each parameter"
            ) from None
        return self.whole.ravel(tree, self.dtype)


def one_number(value: Any) -> jax.Array:
    """What a loss returns, if it is one floating-point number."""
    if not isinstance(value, float) and not jnp.issubdtype(getattr(value, "dtype", object), jnp.floating):
        raise TypeError(f"the loss must return one floating-point number, got {_kind(value)}")
    if jnp.shape(value) != ():
        raise ValueError(f"the loss must return one number, got shape {jnp.shape(value)}: take its mean or sum")
    return jnp.asarray(value)


def require_same_kind(given: Any, returned: Any) -> None:
    """Raise `ValueError` where the state that a loss returns is of another kind than the one that it is given."""
    if _outline(returned) != _outline(given):
        raise ValueError(
            "the state that the loss returns must have the structure, shapes and dtypes of the one that it is "
            f"given, {describe(given)}, got {describe(returned)}"
        )


def called(name: str, function: Callable, names: Sequence[str], *arguments: Any) -> Any:
    """`function(*arguments)`; where that is not how it may be called, a `TypeError` that says how it is."""
    try:
        return function(*arguments)
    except TypeError as error:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # written in C
            raise error from None
        try:
            signature.bind(*arguments)
        except TypeError:
            call = f"{name}({', '.join(names)})"
            raise TypeError(f"the {name} is called as {call}, got a function of {signature}") from error
        raise


def not_finite(**inputs: Any) -> str:
    """Where the inputs of a loss have elements that are not finite, as the end of a sentence."""
    found = []
    named = jax.tree.map(
        lambda x: x.tree() if isinstance(x, ComponentVector) else x,
        inputs,
        is_leaf=lambda x: isinstance(x, ComponentVector),
    )
    for (name, *path), x in jax.tree_util.tree_leaves_with_path(named):
        if isinstance(x, float | complex) or is_inexact(x):
            wrong = int(jnp.sum(~jnp.isfinite(x)))
            where = f"{name.key}{jax.tree_util.keystr(tuple(path))}"
            found += [f"`{where}` holds {wrong} of {jnp.size(x)} elements that are NaN or inf"] if wrong else []
    return f" ({'; '.join(found)})" if found else ""


def _widest(layout: Layout) -> np.dtype:
    if not layout.leaves:
        return layout.flat_dtype
    with jax.numpy_dtype_promotion("standard"):
        return np.dtype(jnp.result_type(*(leaf.dtype for leaf in layout.leaves)))


def in_training(tree: Any) -> bool:
    """Whether a state has a layer in training."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Mode))
    return any(leaf is Mode.TRAIN for leaf in leaves)


def _outline(tree: Any) -> Any:
    """Structure, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype) for x in map(jax.typeof, leaves)]


def _kind(x: Any) -> str:
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return f"a {type(x).__name__}"
