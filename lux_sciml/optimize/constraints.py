"""Constraints of SciPy's methods as functions of the named vector; their derivatives are JAX's."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..components import ComponentMatrix, ComponentVector, Layout
from .named_function import NamedFunction, jacobian, product, values
from .problem import Inputs, Problem
from .programs import Programs
from .progress import Finished

LEAST = 1e-4  # a violation above is no success: methods have tolerances of their own below


@dataclasses.dataclass
class _Constraint:
    """One constraint, lower <= values <= upper, of flat vectors."""

    labels: list[str]
    lower: np.ndarray
    upper: np.ndarray
    values: Callable[[np.ndarray], np.ndarray]
    jacobian: Callable[[np.ndarray], np.ndarray]
    products: Callable[..., Any] | None  # the sum of v_i times the Hessian of value i, as an operator; None if linear
    keep_feasible: Any = False


class Constraints:
    """All constraints of a problem."""

    def __init__(self, constraints: list[_Constraint], method: str):
        self.constraints, self.method = constraints, method

    @classmethod
    def of(cls, constraints: Any, method: str, problem: Problem, params: Any, inputs: Inputs) -> "Constraints":
        """Raises `TypeError` for what is no constraint, `ValueError` for sizes that do not fit."""
        several = constraints if isinstance(constraints, list | tuple) and not _named(constraints) else [constraints]
        return cls([_constraint(each, problem, params, inputs) for each in several], method)

    def scipy(self, inside: Callable[[np.ndarray], np.ndarray], batched: bool = False) -> list[Any]:
        """SciPy's constraints, which are never evaluated outside of the bounds; `batched`, of points `(n, count)`."""
        from scipy.optimize import LinearConstraint, NonlinearConstraint

        def checked(f, x):
            found = f(inside(x))
            if not np.isfinite(found).all():
                raise Finished(False, f"a constraint is not finite at a point of {self.method}: keep it so by bounds")
            return found

        def made(c):
            if c.products is None:
                return LinearConstraint(c.jacobian(c.lower), c.lower, c.upper, keep_feasible=c.keep_feasible)
            second = {"hess": c.products} if self.method == "trust-constr" else {}
            if batched:
                columns = lambda x: np.stack([c.values(point) for point in np.atleast_2d(x.T)], 1)  # noqa: E731
                return NonlinearConstraint(lambda x: columns(x) if x.ndim == 2 else c.values(x), c.lower, c.upper)
            return NonlinearConstraint(
                lambda x: checked(c.values, x),
                c.lower,
                c.upper,
                jac=lambda x: checked(c.jacobian, x),  # pyright: ignore[reportArgumentType]
                keep_feasible=c.keep_feasible,
                **second,
            )

        return [made(c) for c in self.constraints]

    def violation(self, x: np.ndarray) -> float:
        """The largest one."""
        return max(float(np.max(_beyond(c, x), initial=0)) for c in self.constraints)

    def doubt(self, x: np.ndarray) -> str:
        """Which constraint does not hold, or nothing."""
        for c in self.constraints:
            beyond = _beyond(c, x)
            i = int(np.argmax(beyond))
            if not beyond[i] <= LEAST:
                return f"{c.labels[i]} is violated by {beyond[i]:.2g}"
        return ""


def _beyond(c: _Constraint, x: np.ndarray) -> np.ndarray:
    found = c.values(x)
    return np.where(np.isfinite(found), np.maximum(np.maximum(c.lower - found, found - c.upper), 0), np.inf)


def _named(given: Any) -> bool:
    """Whether it is a linear constraint with names, as SciPy's class drops them."""
    return isinstance(given, tuple) and len(given) == 3 and isinstance(given[0], ComponentVector | ComponentMatrix)


def _constraint(given: Any, problem: Problem, params: Any, inputs: Inputs) -> _Constraint:
    from scipy.optimize import LinearConstraint, NonlinearConstraint

    if _named(given):
        return _linear(given[0], given[1], given[2], False, problem, inputs)
    if isinstance(given, LinearConstraint):
        a: Any = given.A
        a = a.toarray() if hasattr(a, "toarray") else a  # sparse
        return _linear(a, given.lb, given.ub, given.keep_feasible, problem, inputs)
    if isinstance(given, Mapping):
        if not {"type", "fun"} <= set(given) or given["type"] not in ("eq", "ineq"):
            raise TypeError("a constraint as a dict is {'type': 'eq' or 'ineq', 'fun': function of the parameters}")
        if given.get("args"):
            raise ValueError("a constraint has no `args` of its own: take functools.partial, or `args=` of minimize")
        given = NonlinearConstraint(given["fun"], 0.0, 0.0 if given["type"] == "eq" else np.inf)
    if not isinstance(given, NonlinearConstraint):
        raise TypeError(
            "a constraint is a scipy.optimize.NonlinearConstraint(function of the parameters, lower, upper), a "
            "LinearConstraint, a tuple (ComponentVector of coefficients, lower, upper), or a list of these, got a "
            f"{type(given).__name__}"
        )
    return _nonlinear(given, problem, params, inputs)


def _nonlinear(given: Any, problem: Problem, params: Any, inputs: Inputs) -> _Constraint:
    if not callable(given.fun):
        raise TypeError(f"a constraint is of a function of the parameters, got a {type(given.fun).__name__}")
    limited, cast = NamedFunction(given.fun, problem, "constraint"), problem.cast
    flat = cast(problem.ravel(params))
    layout = limited.layout(params, inputs)
    name = getattr(given.fun, "__name__", "").replace("<lambda>", "") or "the constraint"
    programs = {mode: Programs(limited, params, inputs, mode=mode) for mode in (None, "both")}
    run = programs[None](values, flat, inputs)
    wide = layout.size > problem.layout.size
    mode = "forward" if wide else "reverse"
    slopes = Programs(limited, params, inputs, wide, mode=mode)(jacobian, flat, inputs)
    times = programs["both"](product, flat, flat, np.zeros(layout.size, problem.dtype), inputs)

    def products(x, v):
        from scipy.sparse.linalg import LinearOperator

        def along(u):
            return np.asarray(times(cast(x), cast(np.ravel(u)), cast(np.asarray(v)), inputs), np.float64)

        operator: Any = LinearOperator
        return operator((x.size, x.size), matvec=along, rmatvec=along, dtype=np.float64)

    return _Constraint(
        [f"`{name}{f': {label}' if label else ''}`" for label in layout.labels()],
        _side(given.lb, layout),
        _side(given.ub, layout),
        lambda x: np.asarray(run(cast(x), inputs), np.float64),
        lambda x: np.asarray(slopes(cast(x), inputs), np.float64),
        products,
        given.keep_feasible,
    )


def _linear(a: Any, lower: Any, upper: Any, keep_feasible: Any, problem: Problem, inputs: Inputs) -> _Constraint:
    n = problem.whole.size
    if isinstance(a, ComponentVector | ComponentMatrix):
        problem.whole.require_same(a.layout if isinstance(a, ComponentVector) else a.columns)
    matrix = np.atleast_2d(np.asarray(a.data if isinstance(a, ComponentVector | ComponentMatrix) else a, np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != n:
        raise ValueError(
            f"a linear constraint has rows of one coefficient for each of the {n} parameters, got shape {matrix.shape}"
        )
    names = a.rows if isinstance(a, ComponentMatrix) else Layout.of(jnp.zeros(len(matrix)))
    lower, upper = _side(lower, names), _side(upper, names)
    if problem.part is not None:
        fixed = np.asarray(inputs.fixed.data, np.float64)  # pyright: ignore[reportOptionalMemberAccess]
        rest = matrix[:, ~problem.part.mask] @ fixed[~problem.part.mask]
        matrix, lower, upper = matrix[:, problem.part.mask], lower - rest, upper - rest
    labels = [f"`the linear constraint{label}`" for label in names.labels()]
    return _Constraint(labels, lower, upper, lambda x: matrix @ x, lambda x: matrix, None, keep_feasible)


def _side(side: Any, layout: Layout) -> np.ndarray:
    """Lower or upper values `(m,)`."""
    if isinstance(side, ComponentVector):
        layout.require_same(side.layout)
        side = side.data
    side = np.asarray(side, np.float64)
    if side.shape not in ((), (1,), (layout.size,)):
        raise ValueError(f"limits of a constraint of {layout.size} values are as many numbers, got shape {side.shape}")
    return np.broadcast_to(side, (layout.size,)).copy()
