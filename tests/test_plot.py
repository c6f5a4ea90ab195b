"""Plots: what is drawn, element by element."""

import sys
import types

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest

import lux_sciml as lux

matplotlib.use("Agg")
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): line.get_xydata().T.tolist() for line in ax.lines if not line.get_label().startswith("_")}


def texts(labels):
    return [label.get_text() for label in labels]


def test_a_solution_against_data():
    node = lux.NeuralODE(lux.Lambda(lambda y: -y), ts=[0.0, 0.5, 1.0])
    sol, _ = node(lux.ComponentVector(foxes=1.0, hares=[2.0, 3.0]), {}, {})
    given = plt.subplots()[1]
    measured = jax.vmap(lambda x: lux.ComponentVector(hares=[x, 2 * x]))(jnp.array([1.0, 2.0]))
    ax = lux.plot.plot(sol, "foxes", "hares", data=([0.2, 0.4], measured), ax=given)
    found = lines(ax)
    assert ax is given and list(found) == ["foxes", "hares[0]", "hares[1]", "hares[0], data", "hares[1], data"]
    np.testing.assert_allclose(found["hares[1]"][1], sol.ys.hares[:, 1])
    assert found["hares[1], data"] == [[0.2, 0.4], [2.0, 4.0]]
    assert ax.lines[2].get_color() == ax.lines[4].get_color() and ax.get_xlabel() == "time"
    only = lux.plot.plot(sol, "foxes", data=([0.5], np.array([[7.0, 8.0, 9.0]])))
    assert lines(only)["foxes, data"] == [[0.5], [7.0]] and len(only.lines) == 2


@pytest.mark.parametrize("batching", ["joint", "vmap"])
def test_of_a_batch_of_solutions_the_samples_have_one_color(batching):
    node = lux.NeuralODE(lux.Lambda(lambda y: -y), [0.0, 0.5, 1.0, 1.5], batching=batching)
    starts = jax.vmap(lambda x: lux.ComponentVector(foxes=x, hares=[2 * x, 3 * x]))(jnp.array([1.0, 2.0]))
    sol, _ = node(starts, {}, {})
    batch_first = np.asarray(sol.ys.data if batching == "vmap" else jnp.swapaxes(sol.ys.data, 0, 1))
    ax = lux.plot.plot(sol, "hares", data=(node.ts.value, sol.ys.data))
    assert list(lines(ax)) == ["hares[0]", "hares[1]", "hares[0], data", "hares[1], data"] and len(ax.lines) == 8
    for first, component in ((0, 1), (2, 2), (4, 1), (6, 2)):
        for line, values in zip(ax.lines[first : first + 2], batch_first[..., component], strict=True):
            np.testing.assert_allclose(line.get_xydata(), np.stack([node.ts.value, values], 1))
            assert line.get_color() == ax.lines[2 * component - 2].get_color()
    red = lux.plot.plot(sol, "foxes", c="red", label="all")
    assert [line.get_color() for line in red.lines] == ["red", "red"] and list(lines(red)) == ["all"]
    one = lux.plot.plot(sol, "foxes", data=([0.5], np.array([[7.0, 8.0, 9.0]])))
    assert lines(one)["foxes, data"] == [[0.5], [7.0]] and len(one.lines) == 3


def test_losses_of_the_stages_of_a_run():
    first = lux.minimize(lambda x: jnp.sum(x**2) + 1.0, jnp.ones(2), method=optax.sgd(0.1), max_steps=3)
    history = {"loss": np.array([3.0, 2.0]), "validation_loss": np.array([2.5]), "validation_step": np.array([2])}
    second = types.SimpleNamespace(history=history)
    ax = lux.plot.losses([first, second, np.array([1.0, 0.5])])
    (stage, validation, after) = (line.get_xydata().T for line in ax.lines[2:5])
    assert ax.lines[0].get_ydata().tolist() == first.history.tolist() and ax.lines[0].get_xdata().tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert ax.lines[1].get_xdata() == [3, 3] and stage.tolist() == [[4, 5], [3, 2]]
    assert validation.tolist() == [[5], [2.5]] and after[0].tolist() == [5, 5]
    assert ax.lines[5].get_xydata().T.tolist() == [[6, 7], [1.0, 0.5]] and ax.get_yscale() == "log"
    assert texts(ax.get_legend().get_texts()) == ["loss", "validation_loss"]
    assert ax.lines[0].get_color() == ax.lines[5].get_color() and lux.plot.losses([-1.0, 2.0]).get_yscale() == "linear"
    with pytest.raises(ValueError, match="the history has no 'accuracy'; there is 'loss'"):
        lux.plot.losses(second, "accuracy")


def test_a_phase_portrait():
    path = jax.vmap(lambda a: lux.ComponentVector(q=jnp.cos(a), p=-jnp.sin(a)))(jnp.linspace(0.0, 1.0, 5))
    model = lux.Dense(2, 2, use_bias=False)
    ps = {"weight": jnp.array([[0.0, -1.0], [1.0, 0.0]])}
    ax = lux.plot.phase_portrait(lambda u: model(u, ps, {})[0], ((-2, 2), (-1, 1)), path, path.data, points=8)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("q", "p") and ax.get_xlim() == (-2, 2) and ax.get_ylim() == (-1, 1)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), path.data)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), ax.lines[1].get_xydata())
    (streams,) = [c for c in ax.collections if type(c).__name__ == "LineCollection"]
    a, b = np.array([segment[:2] for segment in streams.get_segments()]).transpose(1, 0, 2)
    turning = a[:, 0] * (b - a)[:, 1] - a[:, 1] * (b - a)[:, 0]
    assert (turning < 1e-6).all() and (turning < -1e-4).any()  # dq/dt = p, dp/dt = -q: clockwise
    with pytest.raises(ValueError, match=r"maps \(2,\) to \(2,\), got \(1,\)"):
        lux.plot.phase_portrait(lambda u: u[:1], ((-1, 1), (-1, 1)))


def test_an_equilibrium():
    ax = lux.plot.equilibrium({"residual": [1.0, 0.0, 0.01], "spectral_radius": [0.5, 0.9, 1.2]})
    right = ax.figure.axes[1]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.0, np.nan, 0.01])
    assert right.lines[0].get_ydata().tolist() == [0.5, 0.9, 1.2] and right.lines[1].get_ydata() == [1, 1]
    sol = lux.plot.equilibrium({"residuals": np.ones((4, 7))})
    assert len(sol.lines) == 4 and len(sol.lines[0].get_xdata()) == 7 and len(sol.figure.axes) == 1
    with pytest.raises(ValueError, match="have `residual` or `residuals`; there is steps"):
        lux.plot.equilibrium({"steps": 1})


def test_vectors_and_matrices_with_their_names():
    vector = lux.ComponentVector(a=1.0, b=[2.0, -3.0])
    ax = lux.plot.named(vector, "b")
    assert texts(ax.get_yticklabels()) == ["b[0]", "b[1]"] and [bar.get_width() for bar in ax.patches] == [2.0, -3.0]
    matrix = lux.ComponentMatrix(jnp.arange(6.0).reshape(3, 2), vector, lux.ComponentVector(c=0, d=1))
    ax = lux.plot.named(matrix)
    image = ax.images[0]
    assert image.get_array().tolist() == matrix.data.tolist() and image.get_clim() == (-5.0, 5.0)
    assert texts(ax.get_yticklabels()) == ["a", "b[0]", "b[1]"] and texts(ax.get_xticklabels()) == ["c", "d"]
    with pytest.raises(TypeError, match="draws a ComponentVector or a ComponentMatrix, got"):
        lux.plot.named(jnp.ones(3))
    with pytest.raises(ValueError, match="bars are of one vector"):
        lux.plot.named(jax.vmap(lambda x: lux.ComponentVector(a=x))(jnp.ones(2)))


def test_a_fit_with_its_band():
    x, mean = np.arange(3.0), np.array([1.0, 2.0, 3.0])
    ax = lux.plot.band(x, mean, 0.5, data=([0, 1], [1.5, 1.5]), width=2.0, label="fit")
    corners = ax.collections[0].get_paths()[0].vertices
    for i in range(3):
        assert sorted(set(corners[corners[:, 0] == i, 1])) == [mean[i] - 1, mean[i] + 1]
    assert lines(ax) == {"fit": [[0, 1, 2], [1, 2, 3]], "data": [[0, 1], [1.5, 1.5]]}
    edges = lux.plot.band(x, mean, (mean - 3, mean + 1)).collections[0].get_paths()[0].vertices
    assert edges[:, 1].min() == -2 and edges[:, 1].max() == 4


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install lux-sciml\[plot\]"):
        lux.plot.band([0], [0], 1)


def test_style_holds_within_its_block_and_shows_nothing_in_a_notebook():
    before = plt.rcParams["axes.grid"]
    with lux.plot.style() as block:
        assert plt.rcParams["axes.grid"] and block._ipython_display_() is None
    assert plt.rcParams["axes.grid"] == before
