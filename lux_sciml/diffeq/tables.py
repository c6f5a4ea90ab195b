"""Solutions as tables with labeled axes, for xarray."""

from collections.abc import Iterator, Sequence
from typing import Any

import diffrax
import jax
import numpy as np

from .._libraries import library
from ..components import ComponentVector, flat_dict
from ..core.converters import checks_itself


@checks_itself
def solution_to_xarray(sol: diffrax.Solution, names: str | Sequence[str] | None = None) -> Any:
    """The saved values of a solution as an xarray Dataset, along its times.

    The components of a ComponentVector, or of a tree, are variables by their paths, each along `time`; other axes of
    theirs are called `b_0`, `b_1`. `names` are those of the entries of an array along its last axis, each of which is a
    variable then, `names=("prey", "predator")`; one name is that of a single variable, by default `"y"`; for a tuple of
    arrays they are those of its items. A solve with `batching="vmap"` has a first axis `sample`, and, where the times
    of samples differ, an axis `step` in place of `time`, with the times as a coordinate. Places that a solve with
    `diffrax.SaveAt(steps=True)` did not fill are left out. The attributes have the `result` and the counts of steps.

    Raises `ValueError` for a solution without saved values and for names that are too many, too few, there twice or
    given to a dict, `TypeError` for what is no solution, `ImportError` without xarray, which comes with
    `pip install lux-sciml[tables]`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> node = lux.NeuralODE(lux.Lambda(lambda y: -y), ts=jnp.linspace(0.0, 1.0, 5))
    >>> sol, _ = node(jnp.ones(2), {}, {})
    >>> lux.solution_to_xarray(sol, names=("prey", "predator")).prey.dims  # doctest: +SKIP
    ('time',)
    """
    xarray = library("xarray", "lux-sciml[tables]")
    if not isinstance(sol, diffrax.Solution):
        raise TypeError(
            f"solution_to_xarray takes a Solution, got a {type(sol).__name__}: an equation returns one with "
            '`output="solution"`, its default'
        )
    if sol.ys is None or sol.ts is None:
        raise ValueError("the solution has no saved values: give the equation times, or a saveat with some")
    ts = np.asarray(sol.ts)
    batched = ts.ndim == 2
    same = batched and len(ts) > 0 and bool(np.all((ts == ts[0]) | (np.isnan(ts) & np.isnan(ts[0]))))
    lead = ("time",) if not batched else ("sample", "time" if same else "step")
    times = ts[0] if same else ts
    coordinates = {"time": (("time",) if same or not batched else lead, times)}
    variables: dict[str, tuple[Any, np.ndarray]] = {}
    for name, values in _variables(sol.ys, names, len(lead)):
        if name in variables or name == "time":
            raise ValueError(f"two variables would be called {name!r}")
        variables[name] = ((*lead, *(f"{name}_{i}" for i in range(values.ndim - len(lead)))), values)
    out = xarray.Dataset(variables, coordinates, _attributes(sol))
    return out.isel(time=np.isfinite(times)) if times.ndim == 1 and np.any(np.isfinite(times)) else out


def _variables(ys: Any, names: Any, lead: int) -> Iterator[tuple[str, np.ndarray]]:
    """The variables by name, with `lead` axes of samples and times."""
    given = None if names is None else [names] if isinstance(names, str) else list(names)
    if isinstance(ys, ComponentVector) and given is None:
        for leaf in ys.layout.leaves:
            yield ys.layout.name(leaf.path) or "y", np.asarray(ys[leaf.path] if leaf.path else ys.data)
        return
    if isinstance(ys, ComponentVector):
        ys = ys.data
    if not hasattr(ys, "shape"):
        if given is not None and not isinstance(ys, tuple | list):
            raise ValueError(f"the variables of a {type(ys).__name__} have names of their own: leave out `names`")
        found = flat_dict(ys)
        yield from zip(_names(given, [*found]), map(np.asarray, found.values()), strict=True)
        return
    values = np.asarray(ys)
    if given is None or isinstance(names, str):
        yield (given or ["y"])[0], values
        return
    if values.ndim <= lead:
        raise ValueError(f"the solution is one variable, and has {len(given)} names; `names='y'` is for one")
    labels = _names(given, list(map(str, range(values.shape[-1]))))
    yield from ((label, values[..., i]) for i, label in enumerate(labels))


def _names(given: list[str] | None, found: list[str]) -> list[str]:
    if given is not None and len(given) != len(found):
        raise ValueError(f"the solution has {len(found)} variables, and {len(given)} names: {', '.join(given)}")
    return found if given is None else given


def _attributes(sol: diffrax.Solution) -> dict[str, Any]:
    """The result and the counts, for each sample where there are several."""
    good = np.asarray(diffrax.is_okay(sol.result))
    out: dict[str, Any] = {"successful": int(good) if good.ndim == 0 else good.astype(int).tolist()}
    if good.ndim == 0:
        out["result"] = str(diffrax.RESULTS[sol.result]) or "successful"
    counts = {name: np.asarray(x) for name, x in sol.stats.items() if isinstance(x, int | jax.Array)}
    return out | {name: x.item() if x.ndim == 0 else x.tolist() for name, x in counts.items()}
