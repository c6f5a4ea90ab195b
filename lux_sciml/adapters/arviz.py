"""Draws for ArviZ, with names, dimensions and coordinates for every component."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _names
from .._libraries import library
from .._tree import describe
from ..components import ComponentVector, Layout
from ..core.converters import checks_itself
from ..inference import Draws

__dir__ = _names.public(__name__)


@checks_itself
def to_arviz(
    draws: Draws | ComponentVector,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    prior: ComponentVector | None = None,
    log_likelihood: Mapping[str, Any] | None = None,
    posterior_predictive: Mapping[str, Any] | None = None,
    observed_data: Mapping[str, Any] | None = None,
) -> Any:
    """ArviZ's data of a run: an `xarray.DataTree`, before ArviZ 1.0 an `InferenceData`.

    * `draws`: those of a sampler, or a batch of parameters `(chains, draws, n)`; the variables are called as the
      arrays, `"physics.growth"`.
    * `dims`: names of the axes of arrays, `{"u0": ["species"]}`; else they are `"u0_dim_0"`, with positions as
      coordinates.
    * `coords`: the coordinates along named axes, `{"species": ["hare", "lynx"]}`.
    * `prior`: draws of the prior, `(draws, n)` or `(chains, draws, n)`.
    * `log_likelihood`, `posterior_predictive`: arrays `(chains, draws, ...)` by name; `observed_data`: arrays by name.

    `arviz.summary(data)` has r-hat and effective sample sizes. Raises `TypeError` for draws without names, `ValueError`
    for another shape of the draws or of what goes with them and for `dims` that do not fit an array, `KeyError` for
    `dims` of an array, and `coords` of an axis, that there is not, `ImportError` without ArviZ, which is in the extra
    `inference`.

    >>> layout = ComponentVector(u0=[30.0, 4.0], rate=1.0).layout
    >>> draws = ComponentVector(np.random.default_rng(0).normal(size=(4, 100, 3)), layout)
    >>> names = {"dims": {"u0": ["species"]}, "coords": {"species": ["hare", "lynx"]}}
    >>> data = to_arviz(draws, **names)  # doctest: +SKIP
    >>> data.posterior.u0.sel(species="lynx").shape  # doctest: +SKIP
    (4, 100)
    """
    arviz = library("arviz", "lux-sciml[inference]")
    params = draws.params if isinstance(draws, Draws) else draws
    for x in (params, *([] if prior is None else [prior])):
        if not isinstance(x, ComponentVector):
            raise TypeError(f"draws have names, Draws of a sampler or a ComponentVector, got {describe(x)}")
    if params.ndim != 3:
        raise ValueError(f"the draws are a batch (chains, draws, {params.layout.size}), got shape {params.shape}")
    groups: dict[str, dict[str, Any]] = {"posterior": _variables(params)}
    if isinstance(draws, Draws):
        groups["sample_stats"] = {"lp": np.asarray(draws.log_density), **draws.stats}
    if prior is not None:
        if prior.ndim not in (2, 3):
            raise ValueError(
                f"draws of the prior are a batch (draws, n) or (chains, draws, n), got shape {prior.shape}"
            )
        rows = prior if prior.ndim == 3 else ComponentVector(prior.data[None], prior.layout)
        groups["prior"] = _variables(rows)
    more = {"log_likelihood": log_likelihood, "posterior_predictive": posterior_predictive}
    for group, arrays in more.items():
        for name, x in (arrays or {}).items():
            if np.shape(x)[:2] != params.shape[:2]:
                expected = (*params.shape[:2], "...")
                raise ValueError(f"{name!r} of {group} has an array for each draw, {expected}, got shape {np.shape(x)}")
    groups |= {name: dict(arrays) for name, arrays in more.items() if arrays is not None}
    if observed_data is not None:
        groups["observed_data"] = {name: np.asarray(x) for name, x in observed_data.items()}
    axes = _axes(params.layout)
    known = set(axes).union(*groups.values())
    for name, names in (dims or {}).items():
        if name not in known:
            raise KeyError(f"dims name {name!r}, and there is no such array; what there is: {', '.join(sorted(known))}")
        if isinstance(names, str) or (name in axes and len(names) != len(axes[name])):
            rank = f", one for each of its {len(axes[name])} axes" if name in axes else ""
            raise ValueError(f"the dims of {name!r} are a list of names{rank}, got {names!r}")
    axes |= {name: list(names) for name, names in (dims or {}).items()}
    given = {name: list(values) for name, values in (coords or {}).items()}
    named = {"chain", "draw"}.union(*axes.values())
    for axis in given:
        if axis not in named and axis.rpartition("_dim_")[0] not in known:
            raise KeyError(
                f"coords name the axis {axis!r}, and there is none such; what there is: {', '.join(sorted(named))}"
            )
    if arviz.__version__.startswith("0."):
        return arviz.from_dict(**groups, dims=axes, coords=given)
    return arviz.from_dict(groups, dims=axes, coords=given)


def _variables(params: ComponentVector) -> dict[str, np.ndarray]:
    layout, data = params.layout, np.asarray(params.data)
    data = data.astype("float32") if data.dtype.kind == "V" else data  # bfloat16
    return {
        layout.name(leaf.path) or "value": data[..., leaf.offset : leaf.offset + leaf.size].reshape(
            *data.shape[:-1], *leaf.shape
        )
        for leaf in layout.blocks
    }


def _axes(layout: Layout) -> dict[str, list[str]]:
    names = {layout.name(leaf.path) or "value": len(leaf.shape) for leaf in layout.blocks}
    return {name: [f"{name}_dim_{i}" for i in range(rank)] for name, rank in names.items() if rank}
