"""Curricula for training differential equations: over the time horizon, and over the tolerances."""

from typing import Any

import numpy as np

from ...core.converters import short
from ..equation import equation_of, with_equation


def growing_horizons(times: int, stages: int, *, first: int = 2) -> list[int]:
    """How many of the first `times` times each stage of a training looks at: from `first` on, evenly, up to all.

    A long solve from bad parameters has a rough loss; each stage starts from what the shorter one before has found.
    Horizons that would repeat are left out, so that there may be fewer stages. Raises `ValueError` for `first` not from
    2 to `times`, and for no stages.

    >>> growing_horizons(30, 3, first=10)
    [10, 20, 30]

    In a training::

        for n in lux.diffeq.growing_horizons(len(ts), 4):
            stage = lux.NeuralODE(model, ts[:n])
            ps = lux.minimize(loss, ps, args=(stage, data[:n]), ...).params
    """
    if not 2 <= first <= times:
        raise ValueError(f"the first horizon has from 2 to all {times} times, got {first}")
    if stages < 1:
        raise ValueError(f"there is one stage at least, got {stages}")
    horizons = np.linspace(first, times, stages) if stages > 1 else [times]
    return sorted({round(float(n)) for n in horizons})


def tightening_tolerances(layer: Any, stages: int, *, rtol: float = 1e-2) -> list[Any]:
    """The layer with looser tolerances, from `rtol` on, tightened evenly in the logarithm up to its own.

    Early training needs no exact solves, and loose ones are cheaper; the end, above all by quasi-Newton methods, does.
    `layer` is an equation, or has one inside of wrappers, as `AugmentedODE`. Each `atol` keeps its ratio to `rtol`.
    Every stage is a layer of its own and compiles once. Raises `ValueError` for
    layers without tolerances, an `rtol` tighter than the layer's, and no stages.

    >>> import lux_sciml as lux
    >>> [f"{node.rtol:.0e}" for node in tightening_tolerances(lux.NeuralODE(lux.Dense(2, 2)), 3)]
    ['1e-02', '1e-04', '1e-06']
    """
    equation = equation_of(layer)
    fixed = equation is None or equation.stepsize_controller is not None or equation.fixed_steps
    if equation is None or fixed or "rtol" in equation.lacks:
        raise ValueError(f"expected a differential-equation layer with rtol and atol, got {short(layer)}")
    if stages < 1:
        raise ValueError(f"there is one stage at least, got {stages}")
    if rtol < equation.rtol:
        raise ValueError(f"the first rtol is no tighter than the layer's, {equation.rtol}; got {rtol}")
    factors = np.geomspace(rtol / equation.rtol, 1.0, stages)[:-1] if stages > 1 else []
    looser = [equation.replace(rtol=float(equation.rtol * f), atol=float(equation.atol * f)) for f in factors]
    return [*(with_equation(layer, stage) for stage in looser), layer]
