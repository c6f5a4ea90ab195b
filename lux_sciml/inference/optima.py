"""The distinct optima among the runs of a fit from several starts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..components import Layout
from ..components.printing import in_columns
from ..optimize import MinimizeResult


class Optimum(NamedTuple):
    """An optimum: the result of the lowest of its runs, and the indices of all of them.

    >>> import lux_sciml as lux
    >>> run = lux.minimize(lambda p: (p.x - 1) ** 2, lux.ComponentVector(x=0.0), method="BFGS")
    >>> optima([run, run])[0].runs
    (0, 1)
    """

    result: MinimizeResult[Any]
    runs: tuple[int, ...]


class Optima(tuple[Optimum, ...]):
    """A tuple of `Optimum`, the lowest first, printed as a table.

    >>> import lux_sciml as lux
    >>> run = lux.minimize(lambda p: (p.x - 1) ** 2, lux.ComponentVector(x=0.0), method="BFGS")
    >>> optima([run, run])
    value  runs  success  parameters
    0      2     True     ComponentVector(x=1)
    """

    __slots__ = ()

    def __repr__(self) -> str:
        rows = [("value", "runs", "success", "parameters")]
        for result, runs in self:
            rows.append((f"{result.value:.6g}", str(len(runs)), str(result.success), repr(result.params)))
        return "\n".join(in_columns(rows))


def optima(runs: Sequence[MinimizeResult[Any]], *, rtol: float = 1e-2, atol: float = 1e-3) -> Optima:
    """The distinct optima among the `runs` of `lux.minimize(..., starts=n)` or `lux.least_squares(..., starts=n)`.

    From the lowest run up, a run belongs to the first optimum whose parameters it has within `rtol` and `atol`, those
    of `numpy.allclose`; runs that ended at values that are not finite are left out. A value that many runs reach is the
    more credible; several optima of about the same value say that the data do not tell them apart. Permuted units of a
    net count as different. Raises `ValueError` where no run is left.

    >>> import lux_sciml as lux
    >>> double_well = lambda p: (p.x**2 - 1) ** 2 + 0.1 * p.x
    >>> ps, sides = lux.ComponentVector(x=0.5), (-2.0, 2.0)
    >>> result = lux.minimize(double_well, ps, method="L-BFGS-B", bounds=sides, starts=5)
    >>> optima(result.runs)
    value      runs  success  parameters
    -0.100617  3     True     ComponentVector(x=-1.012)
    0.099367   2     True     ComponentVector(x=0.9873)
    """
    finite = [i for i, run in enumerate(runs) if np.isfinite(run.value)]
    if not finite:
        raise ValueError("no run ended at a finite value: pass the `runs` of a result of several starts")
    flats = {i: _flat(runs[i].params) for i in finite}
    groups: list[list[int]] = []
    for i in sorted(finite, key=lambda i: runs[i].value):
        same = (group for group in groups if np.allclose(flats[i], flats[group[0]], rtol=rtol, atol=atol))
        group = next(same, None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return Optima(Optimum(runs[group[0]], tuple(group)) for group in groups)


def _flat(params: Any) -> np.ndarray:
    layout = Layout.of(params)
    return np.asarray(layout.ravel(params), float)
