"""Plots with names: solutions, losses, phase portraits, equilibria, vectors and matrices, bands, profile likelihoods.

Each function draws into `ax`, matplotlib axes, or makes new ones, and returns them. `style` sets how all plots look.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from . import _names
from ._libraries import library
from ._tree import describe
from .components import ComponentMatrix, ComponentVector
from .core.converters import checks_itself

__dir__ = _names.public(__name__)

#: Colors that people of all kinds of color vision tell apart: Okabe and Ito, Color Universal Design, 2008, blue first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: What `style` sets beside the colors, as matplotlib's `rcParams`.
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.figsize": (6.0, 3.6),
    "font.size": 10.0,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
}


def style() -> contextlib.AbstractContextManager[Any]:
    """Set matplotlib's defaults to the style of these plots: colors, grid, sizes.

    A call sets them for the rest of the session, `with lux.plot.style():` within the block. What is set stands in
    `lux.plot.STYLE` and `lux.plot.COLORS`. Raises `ImportError` without matplotlib: `pip install lux-sciml[plot]`.

    >>> import matplotlib
    >>> with style():
    ...     matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][0]
    '#0072B2'
    """
    plt = _pyplot()
    params = plt.matplotlib.rcParams
    after = {**STYLE, "axes.prop_cycle": plt.cycler(color=COLORS)}
    before = {name: params[name] for name in after}
    params.update(after)
    restore = _Restore()
    restore.callback(params.update, before)
    return restore


class _Restore(contextlib.ExitStack):
    def _ipython_display_(self) -> None:
        """Nothing, where `style()` ends a cell of a notebook."""


@checks_itself
def plot(solution: diffrax.Solution, *paths: str, data: Any = None, ax: Any = None, **options: Any) -> Any:
    """Draw the components of a solution over time, one line each, with their names as the legend.

    `solution` is a `diffrax.Solution` of a solve that started from a ComponentVector; `paths` choose components (all by
    default); `options` go to matplotlib's `Axes.plot`. Of a batch, the samples are lines of the same color. `data`, a
    pair of times and measured values, adds points: the values are a ComponentVector of some of the components,
    `(n, k)`, or an array `(n, size)` of all, for a batch with its axes as the solution has them; those that are NaN are
    left out. Raises `TypeError` where the states have no names, `ImportError` without matplotlib:
    `pip install lux-sciml[plot]`.

    >>> import lux_sciml as lux
    >>> node = lux.NeuralODE(lux.Lambda(lambda y: -y), ts=[0.0, 0.5, 1.0])
    >>> sol, _ = node(lux.ComponentVector(foxes=1.0, hares=2.0), {}, {})
    >>> [line.get_label() for line in plot(sol).lines]
    ['foxes', 'hares']
    """
    if not isinstance(solution, diffrax.Solution):
        raise TypeError(f"plot draws the diffrax.Solution of a layer with output='solution', got {describe(solution)}")
    if not isinstance(solution.ys, ComponentVector):
        raise TypeError("the states of this solution have no names: start the solve from a ComponentVector")
    ax = _axes(ax)
    layout, ts = solution.ys.layout, np.asarray(solution.ts)
    samples_first = ts.ndim > 1  # by batching="vmap"
    samples = _samples(ts, solution.ys.data, samples_first)
    labels, colors = layout.labels(), {}
    for i in _indices(layout, paths):
        for k, (times, ys) in enumerate(samples):
            (line,) = ax.plot(times, ys[:, i], **{"label": labels[i], **options})
            line.set_color(colors.setdefault(labels[i], line.get_color()))
            if k > 0:
                line.set_label("_nolegend_")
    if data is not None:
        measured_at, values = data
        named = isinstance(values, ComponentVector)
        measured = _samples(measured_at, values.data if named else values, samples_first)
        for j, label in enumerate(values.labels() if named else labels):
            for k, (times, points) in enumerate(measured if label in colors else ()):
                shown = f"{label}, data" if k == 0 else None
                ax.plot(times, points[:, j], "o", color=colors[label], label=shown, markersize=4)
    ax.set_xlabel("time")
    ax.legend()
    return ax


def _samples(ts: Any, ys: Any, samples_first: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Times and values `(times, size)` of each sample, which are before the times or, of a joint batch, after them."""
    ts, ys = np.asarray(ts), np.asarray(ys)
    ys = ys if samples_first or ys.ndim < 3 else np.moveaxis(ys, 0, -2)
    ts = np.broadcast_to(ts, ys.shape[:-1])
    return list(zip(ts.reshape(-1, ts.shape[-1]), ys.reshape(-1, *ys.shape[-2:]), strict=True))


def losses(runs: Any, *names: str, ax: Any = None) -> Any:
    """Draw the losses of a run over its steps, on a logarithmic axis where all are positive.

    `runs` is the result of `lux.fit` or `lux.minimize`, an array of losses, or a sequence of these, the stages of one
    run: they follow one another, and a dashed line marks where each begins. `names` are entries of `fit`'s history to
    draw, by default `loss` and `validation_loss`. Raises `ValueError` for one that is not there.

    >>> [len(line.get_xdata()) for line in losses([np.array([3.0, 2.0]), np.array([1.5, 1.0, 0.5])]).lines]
    [2, 2, 3]
    """
    ax, first, positive, colors = _axes(ax), 0, True, {}
    several = isinstance(runs, list | tuple) and not all(np.isscalar(run) for run in runs)
    stages = list(runs) if several else [runs]
    for i, run in enumerate(stages):
        if i:
            ax.axvline(first, color="0.6", linestyle="--", linewidth=1, zorder=0)
        length = 0
        for name, steps, values in _curves(run, names):
            label = name if name not in colors else None
            lines = ax.plot(first + steps, values, label=label, color=colors.get(name))
            colors.setdefault(name, lines[0].get_color())
            length = max(length, int(steps[-1])) if len(steps) else length
            positive &= bool((values[np.isfinite(values)] > 0).all())
        first += length
    if positive:
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    if len(colors) > 1:
        ax.legend()
    return ax


def _curves(run: Any, names: Sequence[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, steps and values of each line of a run."""
    history = getattr(run, "history", run)
    if not isinstance(history, Mapping):
        values = np.asarray(history, float)
        first = 0 if history is not run else 1  # minimize's history has the loss at the start
        return [("loss", np.arange(first, first + len(values)), values)]
    chosen = names or [name for name in ("loss", "validation_loss") if name in history]
    if missing := [name for name in chosen if name not in history]:
        raise ValueError(f"the history has no {missing[0]!r}; there is {', '.join(map(repr, history))}")
    out = []
    for name in chosen:
        values = np.asarray(history[name], float)
        steps = history["validation_step"] if name.startswith("validation_") else 1 + np.arange(len(values))
        out.append((name, np.asarray(steps), values))
    return out


@checks_itself
def phase_portrait(
    field: Callable[..., Any],
    bounds: Sequence[tuple[float, float]],
    *trajectories: Any,
    points: int = 24,
    ax: Any = None,
    **options: Any,
) -> Any:
    """Draw the field of a system of two variables as stream lines, and trajectories on it.

    `field` is the right side: a function `u -> du/dt` of one state `(2,)`, such as a learned
    `lambda u: model(u, ps, st)[0]`; it is called under `jax.vmap`. `bounds` are `((x0, x1), (y0, y1))`, `points` how
    many of the grid are on a side; `trajectories` are arrays `(n, 2)`, or ComponentVectors of them, whose names are
    those of the axes. `options` go to matplotlib's `Axes.streamplot`. Raises `ValueError` for a field of another size.

    >>> ax = phase_portrait(lambda u: jnp.stack([u[1], -u[0]]), ((-1, 1), (-1, 1)), np.ones((3, 2)))
    >>> len(ax.lines)
    1
    """
    ax = _axes(ax)
    x, y = (np.linspace(low, high, points) for low, high in bounds)
    grid = jnp.asarray(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), float)
    flow = np.asarray(jax.vmap(field)(grid))
    if flow.shape != grid.shape:
        raise ValueError(f"the field of a phase portrait maps (2,) to (2,), got {flow.shape[1:]}")
    u, v = np.moveaxis(flow.reshape(points, points, 2), -1, 0)
    ax.streamplot(x, y, u, v, **{"color": "0.7", "linewidth": 0.8, "arrowsize": 0.8, **options})
    for trajectory in trajectories:
        named = isinstance(trajectory, ComponentVector)
        values = np.asarray(trajectory.data if named else trajectory)
        ax.plot(*values.T)
        if named:
            ax.set_xlabel(trajectory.labels()[0])
            ax.set_ylabel(trajectory.labels()[1])
    ax.set_xlim(*bounds[0])
    ax.set_ylim(*bounds[1])
    return ax


def equilibrium(stats: Mapping[str, Any], ax: Any = None) -> Any:
    """Draw how an equilibrium is found: the residuals, on a logarithmic axis, and the spectral radius beside them.

    `stats` is a dict of arrays along steps: that of a solve (`residuals`, of each step of `lux.Anderson(trace=...)`,
    one line for each sample of `(batch, steps)`), or the history of a run whose objective returns `residual` and
    `spectral_radius` of the state's `stats`. The radius is drawn on an axis of its own, right, with a line at 1, from
    where on a fixed-point iteration diverges. Raises `ValueError` where there are no residuals.

    >>> ax = equilibrium({"residual": np.array([1.0, 0.1, 0.01]), "spectral_radius": np.array([0.5, 0.7, 0.8])})
    >>> ax.get_yscale(), len(ax.figure.axes)
    ('log', 2)
    """
    name = next((name for name in ("residuals", "residual") if name in stats), None)
    if name is None:
        raise ValueError(f"the stats of an equilibrium have `residual` or `residuals`; there is {', '.join(stats)}")
    ax = _axes(ax)
    values = np.atleast_2d(np.asarray(stats[name], float))
    for i, row in enumerate(values):
        row = np.where(np.isfinite(row) & (row > 0), row, np.nan)
        ax.plot(
            np.arange(1, len(row) + 1), row, color="C0", alpha=1 if len(values) == 1 else 0.4, label=None if i else name
        )
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("residual")
    if "spectral_radius" in stats:
        radius = np.ravel(np.asarray(stats["spectral_radius"], float))
        right = ax.twinx()
        right.plot(np.arange(1, len(radius) + 1), radius, color="C1", label="spectral radius")
        right.axhline(1.0, color="C1", linestyle=":", linewidth=1)
        right.set_ylabel("spectral radius")
    return ax


def named(values: Any, *paths: str, ax: Any = None, **options: Any) -> Any:
    """Draw a ComponentVector as bars, or a ComponentMatrix as a heat map, with the names of the elements.

    `paths` choose components, of a matrix in rows and columns alike. `options` go to matplotlib's `Axes.barh` or
    `Axes.imshow`; the colors of a matrix are centered at zero. Raises `TypeError` for what has no names, `ValueError`
    for a batch of vectors.

    >>> import lux_sciml as lux
    >>> ax = named(lux.ComponentVector(a=1.0, b=[2.0, 3.0]))
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['a', 'b[0]', 'b[1]']
    """
    if isinstance(values, ComponentVector):
        ax, layout, data = _axes(ax), values.layout, np.asarray(values.data)
        if data.ndim != 1:
            raise ValueError(f"bars are of one vector, got a batch of shape {data.shape}")
        here = _indices(layout, paths)
        ax.barh(np.arange(len(here)), data[here], **options)
        ax.set_yticks(np.arange(len(here)), [layout.label(int(i)) for i in here])
        ax.invert_yaxis()
        return ax
    if not isinstance(values, ComponentMatrix):
        raise TypeError(f"named draws a ComponentVector or a ComponentMatrix, got {describe(values)}")
    ax, data = _axes(ax), np.asarray(values.data)
    rows, columns = (_indices(layout, paths) for layout in (values.rows, values.columns))
    data = data[np.ix_(rows, columns)]
    most = float(np.nanmax(np.abs(data), initial=0.0)) or 1.0
    image = ax.imshow(data, **{"cmap": "RdBu_r", "vmin": -most, "vmax": most, "aspect": "auto", **options})
    ax.set_yticks(np.arange(len(rows)), [values.rows.label(int(i)) for i in rows])
    ax.set_xticks(np.arange(len(columns)), [values.columns.label(int(i)) for i in columns], rotation=90)
    ax.figure.colorbar(image, ax=ax)
    return ax


def band(
    x: Any, mean: Any, error: Any, *, data: Any = None, width: float = 1.96, label: str | None = None, ax: Any = None
) -> Any:
    """Draw a fit with its confidence band: `mean` over `x`, shaded from `mean - width error` to `mean + width error`.

    `error` is the standard deviation at each `x`, and a width of 1.96 is a band of 95% of a normal distribution; or the
    pair `(lower, upper)` of the band's edges. `data` is a pair `(x, y)` of what was measured.

    >>> ax = band(np.arange(3), np.ones(3), np.full(3, 0.5), data=([0, 2], [1.2, 0.9]), width=2.0)
    >>> len(ax.lines), float(ax.collections[0].get_paths()[0].get_extents().ymax)
    (2, 2.0)
    """
    ax, x, mean = _axes(ax), np.asarray(x), np.asarray(mean)
    if isinstance(error, tuple):
        lower, upper = map(np.asarray, error)
    else:
        lower, upper = mean - width * np.asarray(error), mean + width * np.asarray(error)
    (line,) = ax.plot(x, mean, label=label)
    ax.fill_between(x, lower, upper, color=line.get_color(), alpha=0.25, linewidth=0)
    if data is not None:
        ax.plot(*map(np.asarray, data), "o", color="0.2", markersize=4, label="data")
    if label is not None or data is not None:
        ax.legend()
    return ax


def profile(likelihood: Any, ax: Any = None, **options: Any) -> Any:
    """Draw a profile likelihood, of `lux.inference.profile_likelihood`, over its parameter.

    Above its lowest value, with the threshold of the confidence interval as a dashed line and the ends of the interval
    as dotted ones. `options` go to matplotlib's `Axes.plot`.

    >>> import jax.numpy as jnp, lux_sciml as lux
    >>> profiles = lux.inference.profile_likelihood(lambda p: p.a**2 / 2, lux.ComponentVector(a=0.0), "a")
    >>> profile(profiles["a"]).get_xlabel()
    'a'
    """
    ax, lowest = _axes(ax), float(np.min(likelihood.nll))
    ax.plot(likelihood.values, likelihood.nll - lowest, **{"marker": ".", **options})
    ax.axhline(likelihood.threshold - lowest, color="0.4", linestyle="--", linewidth=1)
    for end in likelihood.interval:
        if np.isfinite(end):
            ax.axvline(end, color="0.4", linestyle=":", linewidth=1)
    ax.set_xlabel(likelihood.name)
    ax.set_ylabel("negative log-likelihood above the lowest")
    return ax


def _indices(layout: Any, paths: Sequence[str]) -> np.ndarray:
    if not paths:
        return np.arange(layout.size)
    return np.concatenate([np.ravel(layout.index(path)) for path in paths])


def _axes(ax: Any) -> Any:
    return _pyplot().subplots()[1] if ax is None else ax


def _pyplot() -> Any:
    return library("matplotlib.pyplot", "lux-sciml[plot]")
