"""Problem: a loss and the kind of its parameters, as one static value."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from ..components import ComponentVector, Layout
from ..components.nodes import path_string


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss, and the kind of its parameters. Compares and hashes by value: a static argument of the compiled steps."""

    loss: Callable
    takes_args: bool
    has_aux: bool
    layout: Layout
    dtype: np.dtype  # of the flat vector
    named: bool  # the loss takes a ComponentVector, not a tree or an array

    @classmethod
    def of(cls, loss: Any, ps: Any, args: Any, has_aux: bool) -> "Problem":
        """Raises `TypeError` for what is no loss and for what are no parameters."""
        if not callable(loss):
            raise TypeError(f"the loss must be a function of the parameters, got {type(loss).__name__}")
        try:
            hash(loss)
        except TypeError:
            raise TypeError(
                f"the loss is an unhashable {type(loss).__name__}: pass a plain function, and its data by `args=`"
            ) from None
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((ps, args))):
            raise TypeError("minimize runs outside of jax.jit, grad and vmap: it decides in Python when to stop")
        named = isinstance(ps, ComponentVector)
        layout = Layout.of(ps)
        if layout.size == 0:
            raise ValueError("there are no parameters to fit: ps holds no numbers")
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in layout.leaves):
            raise TypeError("minimize takes real parameters: store complex ones as their real and imaginary parts")
        if named and ps.ndim != 1:
            raise ValueError(f"minimize takes one vector of parameters, got a batch of shape {ps.shape}")
        return cls(loss, args is not None, has_aux, layout, ps.dtype if named else _widest(layout), named)

    def __call__(self, ps: Any, args: Any) -> tuple[jax.Array, Any]:
        """The loss, checked to be one floating-point number, and its aux."""
        out = self.loss(ps, args) if self.takes_args else self.loss(ps)
        if self.has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"with has_aux=True the loss must return (value, aux), got {_kind(out)}")
        if not self.has_aux and isinstance(out, tuple):
            raise TypeError("the loss returned a tuple: pass has_aux=True where it returns (value, aux)")
        value, aux = out if self.has_aux else (out, None)
        if not isinstance(value, float) and not jnp.issubdtype(getattr(value, "dtype", object), jnp.floating):
            raise TypeError(f"the loss must return one floating-point number, got {_kind(value)}")
        if jnp.shape(value) != ():
            raise ValueError(f"the loss must return one number, got shape {jnp.shape(value)}: take its mean or sum")
        return jnp.asarray(value), aux

    def ravel(self, ps: Any) -> np.ndarray:
        """Parameters as float64 numbers `(n,)`."""
        return np.asarray(ps.data if self.named else self.layout.ravel(ps, self.dtype)).astype(np.float64)

    def unravel(self, flat: Any) -> Any:
        """A vector `(n,)` as parameters of the kind and dtype that were passed in."""
        flat = self.cast(flat)
        return ComponentVector(flat, self.layout) if self.named else self.layout.unravel(flat)

    def cast(self, flat: Any) -> Any:
        """A vector in the parameters' own dtype."""
        if isinstance(flat, np.ndarray):
            with np.errstate(over="ignore"):
                return flat.astype(self.dtype)
        return flat.astype(self.dtype)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(problem: Problem, ps: Any, args: Any) -> tuple[jax.Array, Any]:
    """The loss and its aux."""
    return problem(ps, args)


def not_finite(**inputs: Any) -> str:
    """Where the inputs of a loss hold numbers that are not finite, as the end of a sentence."""
    found = []
    for name, tree in inputs.items():
        if isinstance(tree, ComponentVector):
            tree = tree.tree()
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            x = np.asarray(x) if isinstance(x, jax.Array | np.ndarray | float) else np.zeros(0)
            wrong = int(np.sum(~np.isfinite(x))) if np.issubdtype(x.dtype, np.inexact) else 0
            if wrong:
                found.append(
                    f"`{name}{jax.tree_util.keystr(path)}` holds {wrong} of {x.size} numbers that are NaN or inf"
                )
    return f" ({'; '.join(found)})" if found else ""


def flat_bounds(bounds: Any, problem: Problem) -> tuple[np.ndarray, np.ndarray] | None:
    """Lower and upper bounds `(n,)`, rounded to the parameters' dtype, from what `minimize` takes.

    Raises `TypeError` for what is no pair of bounds, `ValueError` for other sizes and where lower exceeds upper.
    """
    if bounds is None:
        return None
    if isinstance(bounds, scipy.optimize.Bounds):
        bounds = (bounds.lb, bounds.ub)
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise TypeError(
            "bounds are a pair (lower, upper) or a scipy.optimize.Bounds; -inf, inf and None leave a side open"
        )
    lower = _bound(bounds[0], -np.inf, problem)
    upper = _bound(bounds[1], np.inf, problem)
    wrong = np.flatnonzero(~(lower <= upper))
    if wrong.size:
        i = wrong[0]
        where = problem.layout.labels()[i] or "the parameter"
        raise ValueError(f"the lower bound of `{where}`, {lower[i]:g}, is not below its upper bound, {upper[i]:g}")
    return lower, upper


def _bound(bound: Any, default: float, problem: Problem) -> np.ndarray:
    n = problem.layout.size
    if bound is None:
        return np.full(n, default)
    if isinstance(bound, ComponentVector):
        problem.layout.require_same(bound.layout)
        bound = bound.data
    elif jax.tree.structure(bound) != jax.tree.structure(0):
        if problem.named or problem.layout.container == "array":
            raise TypeError(
                f"a bound is a number, an array ({n},) or a ComponentVector, got {_kind(bound)}; bounds are "
                "(lower, upper), not one pair for each parameter"
            )
        bound = problem.ravel(bound)
    if np.shape(bound) not in ((), (1,), (n,)):
        raise ValueError(f"a bound is a number or has shape ({n},), got shape {np.shape(bound)}")
    flat = np.broadcast_to(np.asarray(bound, np.float64), (n,))
    return problem.cast(np.array(flat)).astype(np.float64)


def _widest(layout: Layout) -> np.dtype:
    if not layout.leaves:
        return layout.flat_dtype
    with jax.numpy_dtype_promotion("standard"):
        return np.dtype(jnp.result_type(*(leaf.dtype for leaf in layout.leaves)))


def _kind(x: Any) -> str:
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return f"a {type(x).__name__}"


@dataclasses.dataclass(frozen=True)
class Part:
    """A loss as a function of the chosen blocks of a vector. Compares and hashes by value, as `Problem` does.

    Called as `part(chosen, (vector, args))`, where `chosen` is a ComponentVector of these blocks, named by their paths.
    """

    loss: Callable
    takes_args: bool
    layout: Layout
    chosen: tuple[bool, ...]  # for each block of the layout

    @classmethod
    def of(cls, loss: Callable, ps: Any, args: Any, patterns: str | tuple[str, ...] | list[str]) -> "Part":
        """The part that matches one of the patterns; `KeyError` for a pattern that matches nothing."""
        if not isinstance(ps, ComponentVector):
            raise TypeError(f"`trainable` goes by name and needs a ComponentVector, got {type(ps).__name__}")
        mask = ps.layout.mask(*([patterns] if isinstance(patterns, str) else patterns))
        chosen = tuple(bool(mask[leaf.offset : leaf.offset + leaf.size].any()) for leaf in ps.layout.blocks)
        return cls(loss, args is not None, ps.layout, chosen)

    def __call__(self, chosen: ComponentVector, fixed: tuple[ComponentVector, Any]) -> Any:
        ps, args = fixed
        ps = self.join(chosen, ps)
        return self.loss(ps, args) if self.takes_args else self.loss(ps)

    def take(self, ps: ComponentVector) -> ComponentVector:
        """The chosen blocks of a vector."""
        blocks = zip(self.layout.blocks, self.layout.split(ps), self.chosen, strict=True)
        return ComponentVector.from_tree({path_string(leaf.path): x for leaf, x, used in blocks if used}, ps.dtype)

    def join(self, chosen: ComponentVector, ps: ComponentVector) -> ComponentVector:
        """The vector with its chosen blocks replaced."""
        new = iter(chosen.layout.split(chosen))
        blocks = [next(new) if used else x for x, used in zip(self.layout.split(ps), self.chosen, strict=True)]
        return ComponentVector(self.layout.join(blocks, ps.dtype), self.layout)

    def bounds(self, bounds: Any) -> Any:
        """Bounds of the whole vector as bounds of the part."""
        return jax.tree.map(self._bound, bounds, is_leaf=lambda x: isinstance(x, ComponentVector))

    def _bound(self, bound: Any) -> Any:
        if not isinstance(bound, ComponentVector):
            return bound
        self.layout.require_same(bound.layout)
        return self.take(bound)
