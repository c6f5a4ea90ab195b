"""Plots with names: `lux.plot.plot(solution)`."""

from typing import Any

import diffrax
import numpy as np

from ._tree import describe
from .components import ComponentVector


def plot(solution: Any, *paths: str, ax: Any = None, **options: Any) -> Any:
    """Draw the components of a solution over time, one line each, with their names as the legend.

    `solution` is a `diffrax.Solution` of a solve that started from a ComponentVector; `paths` choose components (all by
    default); `options` go to matplotlib's `Axes.plot`. Returns the axes, `ax` or new ones. Raises `TypeError` where the
    states have no names, `ImportError` without matplotlib: `pip install lux-sciml[plot]`.

    >>> import lux_sciml as lux
    >>> node = lux.NeuralODE(lux.Lambda(lambda y: -y), ts=[0.0, 0.5, 1.0])
    >>> sol, _ = node(lux.ComponentVector(foxes=1.0, hares=2.0), {}, {})
    >>> [line.get_label() for line in plot(sol).lines]
    ['foxes', 'hares']
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install lux-sciml[plot]") from error
    if not isinstance(solution, diffrax.Solution):
        raise TypeError(f"plot draws the diffrax.Solution of a layer with output='solution', got {describe(solution)}")
    if not isinstance(solution.ys, ComponentVector):
        raise TypeError("the states of this solution have no names: start the solve from a ComponentVector")
    ax = plt.subplots()[1] if ax is None else ax
    layout, ys = solution.ys.layout, np.asarray(solution.ys.data)
    indices = np.concatenate([np.ravel(layout.index(path)) for path in paths]) if paths else np.arange(layout.size)
    labels = layout.labels()
    for i in indices:
        ax.plot(np.asarray(solution.ts), ys[:, i], label=labels[i], **options)
    ax.set_xlabel("time")
    ax.legend()
    return ax
