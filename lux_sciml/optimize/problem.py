"""Problem: a loss of the parameters of a fit, and what it is given beside them."""

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
from ..components import ComponentVector
from ..core import Layer, Mode, StatefulLayer
from ..core.mode import modes
from ..core.reads import global_names
from .fitted_parameters import FittedParameters, kind_of, text_of


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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Problem(FittedParameters):
    """A loss of parameters of one kind."""

    function: Callable  # the loss
    has_args: bool
    has_state: bool
    has_aux: bool
    other_args: Any  # what in the args is neither array nor number
    trace: Callable | None = None  # of the call, in place of it

    @classmethod
    def of(cls, loss: Any, ps: Any, args: Any, state: Any, has_aux: bool, trainable: Any) -> "tuple[Problem, Inputs]":
        """Raises `TypeError` for what is no loss and for what are no parameters, `KeyError` for unknown names."""
        if not callable(loss):
            raise TypeError(f"the loss must be a function of the parameters, not its value, got {describe(loss)}")
        if isinstance(state, Layer | StatefulLayer):
            raise TypeError(f"`state` is that of a layer, from `ps, st = lux.setup(key, layer)`, got {text_of(state)}")
        kind = kind_of("minimize", ps, trainable, args, state)
        arrays, others = parts_of_args(args)
        state = jax.tree.map(as_jax, state)
        has = dict(has_args=args is not None, has_state=state is not None, has_aux=has_aux)
        problem = cls(function=loss, other_args=others, **has, **kind)
        return problem, Inputs(arrays, state, None if problem.part is None else ps)

    def facts(self) -> tuple[Any, ...]:
        """All but the loss: what a trace of the call depends on."""
        return facts_of(self)

    def traced(self, trace: Callable, params: Any, inputs: Inputs) -> Callable:
        """The call, traced by a function of it and its arguments."""
        return trace(self, params, inputs)[0]

    def seen(self, flat: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """What a solver of flat vectors is given, and the loss: both are the loss."""
        value = self(self.unravel(flat), inputs).value
        return value, value

    def seen_shape(self, flat: jax.Array, inputs: Inputs) -> tuple[int, ...]:
        return ()

    def value_and_gradient(self, flat: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda flat: self(self.unravel(flat), inputs).value)(flat)

    def __call__(self, params: Any, inputs: Inputs) -> Evaluation:
        """The loss, checked to be one floating-point number, with the next state and aux."""
        if self.trace is not None:
            return self.trace(params, inputs)
        given = [self.join(params, inputs)]
        given += [inputs.state] if self.has_state else []
        given += [eqx.combine(inputs.args, self.other_args)] if self.has_args else []
        more = [name for name, has in (("state", self.has_state), ("args", self.has_args)) if has]
        out = called("loss", self.function, ["ps", *more], *given)
        names = ["value", *(["state"] if self.has_state else []), *(["aux"] if self.has_aux else [])]
        if len(names) == 1 and isinstance(out, tuple):
            raise TypeError("the loss returned a tuple: pass has_aux=True where it returns (value, aux)")
        if len(names) > 1 and not (isinstance(out, tuple) and len(out) == len(names)):
            asked = " and ".join((["state="] if self.has_state else []) + (["has_aux=True"] if self.has_aux else []))
            hint = ", or leave out has_aux=True" if len(names) == 3 and isinstance(out, tuple) and len(out) == 2 else ""
            raise TypeError(f"with {asked} the loss must return ({', '.join(names)}), got {text_of(out)}{hint}")
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


def parts_of_args(args: Any) -> tuple[Any, Any]:
    """The arrays and numbers in the data of a user's function, and what else there is."""
    arrays, others = eqx.partition(args, eqx.is_array_like)
    return jax.tree.map(as_jax, arrays), others


def as_jax(x: Any) -> Any:
    """NumPy's arrays as JAX's, all else as it is."""
    return jnp.asarray(x) if isinstance(x, np.ndarray) else x


def facts_of(problem: Any) -> tuple[Any, ...]:
    """The fields of a problem but for the user's function."""
    return tuple(getattr(problem, field.name) for field in dataclasses.fields(problem) if field.name != "function")


def one_number(value: Any) -> jax.Array:
    """What a loss returns, if it is one floating-point number."""
    if not isinstance(value, float) and not jnp.issubdtype(getattr(value, "dtype", object), jnp.floating):
        raise TypeError(f"the loss must return one floating-point number, got {text_of(value)}")
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
            call = f"{name.split()[-1]}({', '.join(names)})"
            raise TypeError(f"the {name} is called as {call}, got a function of {signature}") from error
        raise


def not_finite(function: Callable, **inputs: Any) -> str:
    """Where the inputs of a loss, or arrays around it, have elements that are not finite, as the end of a sentence."""
    found, inputs = [], {**_arrays_around(function), **inputs}
    named = jax.tree.map(_by_name, inputs, is_leaf=lambda x: isinstance(x, ComponentVector))
    for (name, *path), x in jax.tree_util.tree_leaves_with_path(named):
        if isinstance(x, float | complex) or is_inexact(x):
            wrong = int(jnp.sum(~jnp.isfinite(x)))
            where = f"{name.key}{jax.tree_util.keystr(tuple(path))}"
            found += [f"`{where}` holds {wrong} of {jnp.size(x)} elements that are NaN or inf"] if wrong else []
    return f" ({'; '.join(found)})" if found else ""


def _arrays_around(function: Callable) -> dict[str, Any]:
    """The arrays, and trees of arrays, that a function reads from around it, by name; of partials and objects none."""
    try:
        function = inspect.unwrap(function)
        around = inspect.getclosurevars(function).nonlocals
    except (TypeError, ValueError):
        return {}
    names = global_names(function.__code__)
    read = {**{name: function.__globals__[name] for name in names if name in function.__globals__}, **around}
    return {name: x for name, x in read.items() if all(map(_is_known_array, jax.tree.leaves(x)))}


def _is_known_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic | jax.Array) and not is_traced(x)


def _by_name(x: Any) -> Any:
    """The tree of a ComponentVector, of a batch with all of its vectors in each array; what is none as it is."""
    if not isinstance(x, ComponentVector):
        return x
    return x.tree() if x.ndim == 1 else jax.vmap(x.layout.unravel)(x.data.reshape(-1, x.shape[-1]))


def in_training(tree: Any) -> bool:
    """Whether a state has a layer in training."""
    return Mode.TRAIN in modes(tree)


def _outline(tree: Any) -> Any:
    """Structure, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype) for x in map(jax.typeof, leaves)]
