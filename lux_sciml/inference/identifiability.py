"""What the data tell of the parameters: Fisher information, and the directions that it leaves open."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components import ComponentMatrix, ComponentVector
from ..components.printing import in_columns
from ..derivatives import jacobian
from ..optimize.fit_statistics import direction_text

NEGATIVE = 1e-3  # of the largest eigenvalue: how far below zero one may lie, close to a minimum


def fisher_information(predict: Callable[[Any], Any], ps: ComponentVector, errors: Any = 1.0) -> ComponentMatrix:
    r"""The Fisher information of measurements with normal errors: :math:`I = J^T \Sigma^{-1} J`.

    J is the Jacobian of `predict(ps)`, an array, a ComponentVector or a tree of all that is measured, and `errors` are
    the standard deviations: a number, or an array or tree of the form of what is predicted. Of a fit by
    `lux.least_squares`, whose weights are one over the errors, it is `result.jacobian.T @ result.jacobian`.

    Its inverse is the Cramér-Rao bound: no unbiased estimate has a smaller covariance. Raises `ValueError` for errors
    that are not positive, or do not fit what is predicted, `TypeError` for complex predictions.

    >>> t = jnp.array([0.0, 1.0, 2.0])
    >>> fisher_information(lambda p: p.slope * t + p.offset, ComponentVector(slope=2, offset=1), 0.5)["slope", "slope"]
    Array(20., dtype=float32)
    """
    if any(map(jnp.iscomplexobj, jax.tree.leaves(jax.eval_shape(predict, ps)))):
        raise TypeError("what is measured is real: let `predict` return real and imaginary parts, a dict of both say")
    J = jacobian(predict)(ps)
    layout = J.rows
    is_number = jax.tree_util.all_leaves([errors]) and np.ndim(errors) == 0
    flat = np.asarray(errors, float) if is_number else np.asarray(layout.ravel(errors), float)
    if not (flat > 0).all():
        raise ValueError(f"the errors of measurements are positive standard deviations, got {flat.min():g} among them")
    each = jnp.asarray(np.broadcast_to(flat, (layout.size,)), J.dtype)
    scaled = ComponentMatrix(J.data / each[:, None], layout, J.columns)
    return scaled.T @ scaled


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Identifiability:
    """The directions of an information matrix; printed as a table, the ones that are known least first.

    * `eigenvalues`: `(n,)`, ascending;
    * `directions`: the eigenvectors, a batch `(n, n)` of vectors with names, in the same order;
    * `standard_errors`: `(n,)`, of the parameters along each direction, one over the root of its eigenvalue;
    * `sloppy`: `(n,)`, whether an eigenvalue is at most `cutoff` times the largest one.

    >>> p = ComponentVector(a=1.0, b=1.0)
    >>> found = identifiability(ComponentMatrix(jnp.array([[1.0, 1.0], [1.0, 1.0]]), p, p))
    >>> found.sloppy.tolist(), round(float(found.standard_errors[1]), 3)
    ([True, False], 0.707)
    """

    eigenvalues: np.ndarray
    directions: ComponentVector
    cutoff: float

    @property
    def standard_errors(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return 1 / np.sqrt(self.eigenvalues)

    @property
    def sloppy(self) -> np.ndarray:
        return self.eigenvalues <= self.cutoff * self.eigenvalues[-1]

    def __repr__(self) -> str:
        rows = [("eigenvalue", "standard error", "", "direction")]
        data, layout = np.asarray(self.directions.data, float), self.directions.layout
        for x, error, sloppy, direction in zip(self.eigenvalues, self.standard_errors, self.sloppy, data, strict=True):
            rows.append((f"{x:.3g}", f"{error:.3g}", "sloppy" if sloppy else "", direction_text(direction, layout)))
        return "\n".join(in_columns(rows))


def identifiability(
    information: ComponentMatrix, relative_to: ComponentVector | None = None, cutoff: float = 1e-6
) -> Identifiability:
    r"""Which directions of the parameters the data fix: the eigenvectors of the Fisher information, by name.

    `information` is that of `fisher_information`, the Hessian of a negative log-likelihood, or, with a prior,
    of a negative log-posterior. With `relative_to=ps` it is of relative changes, :math:`p_i p_j I_{ij}`, which compares
    parameters of different units: a standard error of 1 is then one of 100%. Directions with an eigenvalue below
    `cutoff` times the largest are marked `sloppy`: data do not tell the parameters apart along them. Slightly negative
    eigenvalues, as of rounding, count as zero.

    Gutenkunst et al., "Universally sloppy parameter sensitivities in systems biology models", PLoS Computational
    Biology 3, 2007. Raises `ValueError` for other names than those of the matrix, for a matrix that is not finite, and
    for one with eigenvalues far below zero, such as a Hessian away from a minimum.

    >>> t = jnp.linspace(0.0, 1.0, 5)
    >>> p = ComponentVector(a=2.0, b=3.0, c=1.0)
    >>> identifiability(fisher_information(lambda p: p.a * p.b * t + p.c, p, 0.1), relative_to=p)
    eigenvalue  standard error          direction
    0           inf             sloppy  0.71 a - 0.71 b
    163         0.0784                  0.99 c - 0.11 a - 0.11 b
    1.38e+04    0.0085                  0.7 a + 0.7 b + 0.16 c
    """
    information.rows.require_same(information.columns)
    matrix = np.asarray(information.data, float)
    if relative_to is not None:
        information.rows.require_same(relative_to.layout)
        scale = np.asarray(relative_to.data, float)
        matrix = scale[:, None] * matrix * scale
    if not np.isfinite(matrix).all():
        i = int(np.argwhere(~np.isfinite(matrix))[0][0])
        where = information.rows.label(i)
        raise ValueError(f"the information has elements that are NaN or inf, the first in the row of `{where}`")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    rounding = len(values) * float(jnp.finfo(information.dtype).eps) * np.abs(values).max(initial=0.0)
    if values.size and values[0] < -max(NEGATIVE * np.abs(values).max(), rounding):
        raise ValueError(
            f"the information has the eigenvalue {values[0]:.3g}, far below zero, where the largest is "
            f"{values[-1]:.3g}: this is no minimum, so fit on from here, or take `fisher_information`"
        )
    values = np.where(values < rounding, 0.0, values)
    return Identifiability(values, ComponentVector(jnp.asarray(vectors.T, information.dtype), information.rows), cutoff)
