"""FittedParameters: the kind of the parameters of a fit; what of them a method sees, and what the user."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import is_traced
from ..components import ComponentVector, Layout
from .part import Part


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FittedParameters:
    """The kind of the parameters of a fit.

    A method varies `params`: the parameters as they were passed in, or, of a ComponentVector, the part that is fitted.
    Where it wants one vector `(n,)`, that is `ravel(params)`.
    """

    named: bool  # the user's function takes a ComponentVector, not a tree or an array
    whole: Layout  # of all parameters
    part: Part | None  # of `whole`, that is fitted
    layout: Layout  # of `params`
    dtype: np.dtype  # of the vector

    def take(self, ps: Any) -> Any:
        """What a method varies, of all parameters."""
        if self.part is not None:
            return self.part.take(ps)
        return ps if self.named else self.layout.unravel(self.layout.ravel(ps, self.dtype))

    def join(self, params: Any, inputs: Any) -> Any:
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
        elif self.whole.is_array and np.shape(bound) == self.whole.shape:
            bound = np.ravel(bound)
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
                f"got {text_of(bound)}; bounds are (lower, upper), not one pair for each parameter"
            ) from None
        return self.whole.ravel(tree, self.dtype)


def kind_of(caller: str, ps: Any, trainable: Any, *beside: Any) -> dict[str, Any]:
    """The fields of FittedParameters, for a function of the name `caller`.

    Raises `TypeError` for what are no parameters, `KeyError` for unknown names.
    """
    if any(map(is_traced, jax.tree.leaves((ps, beside)))):
        raise TypeError(f"{caller} runs outside of jax.jit, grad and vmap: it decides in Python when to stop")
    named = isinstance(ps, ComponentVector)
    whole = Layout.of(ps)
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in whole.leaves):
        raise TypeError(f"{caller} takes real parameters: store complex ones as their real and imaginary parts")
    if named and ps.ndim != 1:
        raise ValueError(f"{caller} takes one vector of parameters, got a batch of shape {ps.shape}")
    part = None if trainable is None else Part.of(ps, trainable)
    layout = whole if part is None else part.layout
    if layout.size == 0:
        raise ValueError("there are no parameters to fit: ps has no elements")
    dtype = np.dtype(ps.dtype) if named else _widest(layout)
    return dict(named=named, whole=whole, part=part, layout=layout, dtype=dtype)


def _widest(layout: Layout) -> np.dtype:
    if not layout.leaves:
        return layout.flat_dtype
    with jax.numpy_dtype_promotion("standard"):
        return np.dtype(jnp.result_type(*(leaf.dtype for leaf in layout.leaves)))


def text_of(x: Any) -> str:
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return f"a {type(x).__name__}"
