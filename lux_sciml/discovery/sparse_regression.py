"""Sparse regression: the few terms of a library that a learned function is made of (SINDy)."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import describe, floating, widened
from ..components import ComponentVector
from ..core.converters import checks_itself
from .sparse_terms import SparseTerms


class Step(NamedTuple):
    """A model on the path: its terms, and the root mean square of its error over that of the values."""

    terms: tuple[str, ...]
    error: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseFit:
    """What `sparse_regression` finds; printed as equations.

    * `layer`, `params`: the terms as a layer and its coefficients, `params["dx"]["x y"]`, to stand where the net stood;
    * `error`: for each output the root mean square of the error over that of the values;
    * `path`: for each output the models on the way, a `Step` of terms and error each: with `"greedy"` the best found of
      1, 2, ... terms, with `"stlsq"` after each threshold.

    >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
    >>> fit = sparse_regression(x, 2 * x**3 - x, polynomials(("x",), 4), outputs=("dx",))
    >>> dict(fit.layer.outputs), fit.params.dx["x^3"].round(3), fit.error["dx"] < 1e-5
    ({'dx': ('x', 'x^3')}, Array(2., dtype=float32), True)
    """

    layer: SparseTerms
    params: ComponentVector
    error: Mapping[str, float]
    path: Mapping[str, tuple[Step, ...]]

    @property
    def complexity(self) -> int:
        """The number of terms of all outputs."""
        return self.params.size

    def __repr__(self) -> str:
        lines = []
        for output, names in self.layer.outputs.items():
            terms = [(float(self.params[output][name]), name) for name in names]
            shown = [f"{'-' if c < 0 else '+'} {abs(c):.4g}{'' if name == '1' else ' ' + name}" for c, name in terms]
            text = " ".join(shown).removeprefix("+ ") or "0"
            text = "-" + text[2:] if text.startswith("- ") else text
            lines.append(f"{output} = {text}   (relative error {self.error[output]:.2g})")
        return "\n".join(lines)


def polynomials(variables: Sequence[str], degree: int = 2, constant: bool = True) -> dict[str, Callable[..., Any]]:
    """The monomials of variables up to a degree, by name, as terms for `sparse_regression`.

    Add others by `|`: `polynomials(("x", "y")) | {"sin x": lambda x, y: jnp.sin(x)}`. Raises `ValueError` for a
    negative degree, and for a name that there is twice.

    >>> list(polynomials(("x", "y"), 2))
    ['1', 'x', 'y', 'x^2', 'x y', 'y^2']
    """
    if degree < 0:
        raise ValueError(f"the degree is not negative, got {degree}")
    if len(set(variables)) != len(variables):
        raise ValueError(f"the variables have different names, got {tuple(variables)}")
    out: dict[str, Callable[..., Any]] = {}
    for total in range(0 if constant else 1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(len(variables)), total):
            powers = [(i, len(list(group))) for i, group in itertools.groupby(chosen)]
            name = " ".join(variables[i] + (f"^{k}" if k > 1 else "") for i, k in powers) or "1"
            out[name] = _Monomial(tuple(variables), tuple(powers))
    return out


@dataclasses.dataclass(frozen=True)
class _Monomial:
    variables: tuple[str, ...]
    powers: tuple[tuple[int, int], ...]

    def __call__(self, *columns):
        if len(columns) != len(self.variables):
            raise ValueError(f"the monomials are of the variables {self.variables}, got {len(columns)} of them")
        out = jnp.ones_like(columns[0])
        for i, power in self.powers:
            out = out * columns[i] ** power
        return out


@checks_itself
def sparse_regression(
    x: Any,
    y: Any,
    terms: Mapping[str, Callable[..., Any]],
    *,
    outputs: Sequence[str] | None = None,
    method: str = "greedy",
    threshold: float = 0.1,
    gain: float = 0.5,
    tolerance: float = 0.0,
    max_terms: int = 8,
    ridge: float = 0.0,
) -> SparseFit:
    r"""The few terms whose sum is a function, from its values at points: SINDy for a learned term.

    * `x`: points `(count, n)`, of where the data were, such as states along the fitted trajectories; outside a net is
      a guess.
    * `y`: the values there, `(count, outputs)`, such as those of a net.
    * `terms`: the library, functions of the n variables by name: `polynomials(("x", "y"), 3)`.
    * `outputs`: names of the outputs, by default `y_0`, `y_1`, ...
    * `method="greedy"`: the term that lowers the squared error most is added, all coefficients are fitted again, and a
      term that counts less than another one would is exchanged, until the relative error is below `tolerance`, or
      there are `max_terms`; then terms are taken out again, the least useful first. Of these models, `path`, the one
      is taken whose error times :math:`(1 - gain)^{-k}` for its k terms is lowest: each term has to lower it by the
      share `gain`, on average.
    * `method="stlsq"`: least squares, thresholded in turn: terms that contribute less than the share `threshold` of the
      root mean square of the values are left out, and the others are fitted again, until none is.
    * `ridge`: of both, relative to columns of mean square one.

    Values are not of derivatives of noisy data: take them from a fit, of a universal differential equation or of a
    smooth curve. The terms go back into the equation as `fit.layer` and `fit.params`, to be fitted to the data again:
    then their coefficients are those of the data, not of the net.

    Brunton, Proctor & Kutz, "Discovering governing equations from data by sparse identification of nonlinear dynamical
    systems", PNAS 113, 2016. Raises `ValueError` for shapes that do not fit, values that are not finite, terms that are
    not finite at the points, shares outside of [0, 1), a negative ridge, and another method, `TypeError` for terms
    without names.

    >>> import jax
    >>> x = jax.random.uniform(jax.random.key(0), (100, 2))
    >>> y = jnp.stack([-0.9 * x[:, 0] * x[:, 1], 0.8 * x[:, 0] * x[:, 1] - x[:, 1]], axis=1)
    >>> fit = sparse_regression(x, y, polynomials(("x", "y"), 3), outputs=("dx", "dy"))
    >>> dict(fit.layer.outputs), fit.complexity
    ({'dx': ('x y',), 'dy': ('y', 'x y')}, 3)
    """
    x, y = np.asarray(x), np.asarray(y).astype(np.float64)
    if not isinstance(terms, Mapping):
        raise TypeError(f"terms are functions by name, as of `polynomials`, got {describe(terms)}")
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise ValueError(f"expected points (count, n) and values (count, outputs), got shapes {x.shape} and {y.shape}")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError("the points and values are finite: leave out those that are NaN or inf, as of a failed solve")
    for name, value in (("threshold", threshold), ("gain", gain), ("tolerance", tolerance)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is a share, from 0 to below 1, got {value:g}")
    if not 0 <= ridge < np.inf:
        raise ValueError(f"ridge is not negative, and finite, got {ridge:g}")
    if method not in ("greedy", "stlsq"):
        raise ValueError(f"method is 'greedy' or 'stlsq', got {method!r}")
    if not terms or max_terms < 1:
        raise ValueError(f"the library has one term at least, and so has a model, got {len(terms)} and {max_terms}")
    names = tuple(f"y_{j}" for j in range(y.shape[1])) if outputs is None else tuple(outputs)
    if len(names) != y.shape[1] or len(set(names)) != len(names):
        raise ValueError(f"expected {y.shape[1]} different names of outputs, got {names}")
    library = _Library(terms, x, ridge)
    found: dict[str, np.ndarray] = {}
    path: dict[str, tuple[Step, ...]] = {}
    for name, values in zip(names, y.T, strict=True):
        if method == "stlsq":
            found[name], path[name] = _thresholded(library, values, threshold)
        else:
            found[name], path[name] = _greedy(library, values, gain, tolerance, max_terms)
    chosen = {name: tuple(library.names[i] for i in found[name]) for name in names}
    layer = SparseTerms({name: terms[name] for name in terms if any(name in c for c in chosen.values())}, chosen)
    coefficients = {
        name: dict(zip(chosen[name], map(jnp.asarray, library.fit(values, found[name])[0]), strict=True))
        for name, values in zip(names, y.T, strict=True)
    }
    error = {name: library.fit(values, found[name])[1] for name, values in zip(names, y.T, strict=True)}
    dtype = jnp.zeros(()).dtype
    params = ComponentVector.from_tree(jax.tree.map(lambda c: c.astype(dtype), coefficients), like=_layout(layer))
    return SparseFit(layer, params, error, path)


def _layout(layer: SparseTerms) -> Any:
    return ComponentVector.from_tree(layer.init_params(jax.random.key(0)))


class _Library:
    """The columns of the terms at the points, scaled to mean squares of one."""

    def __init__(self, terms: Mapping[str, Callable[..., Any]], x: np.ndarray, ridge: float):
        self.names, self.ridge = tuple(terms), ridge
        variables, columns = widened(floating(jnp.asarray(x))).T, []
        for name, term in terms.items():
            values = np.asarray(term(*variables), np.float64)
            if values.shape != (len(x),):
                raise ValueError(f"the term {name!r} is elementwise, (count,) to (count,), got shape {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"the term {name!r} is not finite at some of the points: leave it, or them, out")
            columns.append(values)
        matrix = np.stack(columns, axis=1)
        scale = np.sqrt(np.mean(matrix**2, axis=0))
        self.scale = np.where(scale > 0, scale, 1.0)
        self.matrix = matrix / self.scale

    def fit(self, values: np.ndarray, chosen: Sequence[int] | np.ndarray) -> tuple[np.ndarray, float]:
        """The coefficients of some terms, and the relative error of their sum."""
        chosen = np.asarray(chosen, int)
        columns = self.matrix[:, chosen]
        rows = np.sqrt(self.ridge * len(values)) * np.eye(len(chosen))
        found = np.linalg.lstsq(np.vstack([columns, rows]), np.append(values, np.zeros(len(chosen))), rcond=None)[0]
        size = np.sqrt(np.mean(values**2)) or 1.0
        error = np.sqrt(np.mean((columns @ found - values) ** 2)) / size
        return found / self.scale[chosen], float(error)


def _thresholded(library: _Library, values: np.ndarray, threshold: float) -> tuple[np.ndarray, tuple[Step, ...]]:
    chosen, path = np.arange(len(library.names)), []
    size = np.sqrt(np.mean(values**2))
    while True:
        coefficients, error = library.fit(values, chosen)
        path.append(Step(tuple(library.names[i] for i in chosen), error))
        keep = np.abs(coefficients) * library.scale[chosen] > threshold * size
        if keep.all() or not chosen.size:
            return chosen, tuple(path)
        chosen = chosen[keep]


def _greedy(
    library: _Library, values: np.ndarray, gain: float, tolerance: float, max_terms: int
) -> tuple[np.ndarray, tuple[Step, ...]]:
    def error(chosen):
        return library.fit(values, chosen)[1]

    def without_least(chosen):
        return min((chosen[:i] + chosen[i + 1 :] for i in range(len(chosen))), key=error)

    found = {0: (error([]), [])}  # the best of each number of terms
    chosen: list[int] = []
    while len(chosen) < min(max_terms, len(library.names)) and found[len(chosen)][0] > max(tolerance, 1e-12):
        chosen = [*chosen, _best(library, values, chosen)]
        while True:
            others = without_least(chosen)
            exchanged = [*others, _best(library, values, others)]
            if error(exchanged) >= error(chosen) * (1 - 1e-9):
                break
            chosen = exchanged
        found[len(chosen)] = (error(chosen), sorted(chosen))
    while len(chosen) > 1:  # and back, as terms found early may be of no use beside later ones
        chosen = without_least(chosen)
        found[len(chosen)] = min(found[len(chosen)], (error(chosen), sorted(chosen)))
    path = tuple(Step(tuple(library.names[i] for i in terms), size) for size, terms in found.values() if terms)
    size = min(found, key=lambda k: found[k][0] / (1 - gain) ** k)
    return np.array(found[size][1], int), path


def _best(library: _Library, values: np.ndarray, chosen: list[int]) -> int:
    free = [i for i in range(len(library.names)) if i not in chosen]
    return min(free, key=lambda i: library.fit(values, [*chosen, i])[1])
