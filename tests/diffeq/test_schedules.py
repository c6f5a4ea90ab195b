"""Curricula over horizon and tolerances, and the observer that leads a solution along the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

TS = np.linspace(0.0, 1.0, 6)


def test_horizons_grow_evenly_to_all_times():
    assert lux.diffeq.growing_horizons(30, 3, first=10) == [10, 20, 30]
    assert lux.diffeq.growing_horizons(30, 1) == [30]
    assert lux.diffeq.growing_horizons(3, 10) == [2, 3]


def test_tolerances_tighten_to_those_of_the_layer():
    node = lux.NeuralODE(lux.Dense(2, 2), rtol=1e-7, atol=1e-10)
    stages = lux.diffeq.tightening_tolerances(node, 3, rtol=1e-3)
    np.testing.assert_allclose([s.rtol for s in stages], [1e-3, 1e-5, 1e-7])
    np.testing.assert_allclose([s.atol for s in stages], [1e-6, 1e-8, 1e-10])
    assert stages[-1] is node
    assert lux.diffeq.tightening_tolerances(node, 1) == [node]


# --- the observer -------------------------------------------------------------------------------------------------


def led(gain, data, **options):
    """y' = gain (data - y) on top of no motion at all."""
    still = lux.Lambda(jnp.zeros_like)
    return lux.NeuralODE(lux.Nudged(still, TS, data, gain), TS, time_dependent=True, rtol=1e-9, **options)


def test_the_error_decays_with_the_gain():
    sol, _ = led(3.0, np.full((6, 2), 2.0))(jnp.array([1.0, 4.0]), {}, {})
    np.testing.assert_allclose(sol.ys - 2, np.exp(-3 * TS)[:, None] * np.array([-1.0, 2.0]), rtol=1e-6)


def test_data_are_interpolated_linearly_also_where_times_run_backwards():
    """y' = k (t - y) has the solution t - 1/k + C exp(-k t)."""
    exact = TS - 0.5 + 1.5 * np.exp(-2 * TS)
    sol, _ = led(2.0, TS[:, None])(jnp.array([1.0]), {}, {})
    np.testing.assert_allclose(sol.ys[:, 0], exact, rtol=1e-6)
    back = lux.Nudged(lux.Lambda(jnp.zeros_like), TS[::-1], TS[::-1, None], 2.0)
    assert back((jnp.array(0.25), jnp.array([1.0])), {}, {})[0] == 2.0 * (0.25 - 1.0)


@pytest.mark.parametrize(
    "gain", [np.array([3.0, 0.0]), np.array([[3.0, 0.0], [0.0, 0.0]])], ids=["by component", "matrix"]
)
def test_components_that_are_not_observed(gain):
    data = np.stack([np.full(6, 2.0), np.full(6, np.nan)], 1)
    observer = lux.Nudged(lux.Lambda(jnp.zeros_like), TS, data, gain)
    dy, _ = observer((jnp.array(0.3), jnp.array([[1.0, 5.0], [0.0, 1.0]])), {}, {})
    np.testing.assert_allclose(dy, [[3.0, 0.0], [6.0, 0.0]])


def test_no_gain_is_the_model_and_the_parameters_are_its_own():
    model = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 2))
    observer = lux.Nudged(model, TS, np.ones((6, 2)), gain=0.0)
    ps, st = lux.setup(jax.random.key(0), observer)
    y = jnp.array([0.3, -0.2], ps.dtype)
    np.testing.assert_array_equal(observer((jnp.zeros((), ps.dtype), y), ps, st)[0], model(y, ps, st)[0])
    assert "gain = 0.0" in repr(observer)


@pytest.mark.slow
def test_the_loss_has_one_valley_with_a_gain():
    ts = np.linspace(0.0, 6.0, 31)
    data = np.stack([np.cos(2 * ts), -np.sin(2 * ts)], 1)
    rotation = np.array([[0.0, -1.0], [1.0, 0.0]])

    def losses(gain):
        model = lux.Nudged(lux.Dense(2, 2, use_bias=False), ts, data, gain)
        node = lux.NeuralODE(model, ts, time_dependent=True, rtol=1e-4, output="ys", max_steps=256)

        def loss(frequency):
            return jnp.sum((node(jnp.array([1.0, 0.0]), {"weight": frequency * rotation}, {})[0] - data) ** 2)

        return np.asarray(jax.jit(jax.vmap(loss))(jnp.linspace(0.0, 2.0, 9)))

    assert np.any(np.diff(losses(0.0)) > 0)
    assert np.all(np.diff(losses(3.0)) < 0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.diffeq.growing_horizons(5, 2, first=6), "from 2 to all 5 times, got 6"),
        (lambda: lux.diffeq.growing_horizons(5, 0), "one stage at least, got 0"),
        (lambda: lux.diffeq.tightening_tolerances(lux.Dense(2, 2), 2), "with rtol and atol, got Dense"),
        (lambda: lux.diffeq.tightening_tolerances(lux.NeuralODE(lux.Dense(2, 2)), 0), "one stage at least, got 0"),
        (lambda: lux.diffeq.tightening_tolerances(lux.NeuralODE(lux.Dense(2, 2)), 2, rtol=1e-9), "no tighter than"),
        (lambda: lux.Nudged(lux.Dense(2, 2), TS, np.ones((5, 2))), r"with 6 times; got \(5, 2\)"),
        (lambda: lux.Nudged(lux.Dense(2, 2), TS, np.full(6, "a")), r"Nudged\.data: expected numbers, got"),
        (lambda: lux.Nudged(lux.Dense(2, 2), TS, np.ones((6, 2)), [["a"]]), r"Nudged\.gain: expected numbers, got"),
        (lambda: lux.Nudged(lux.Lambda(jnp.sin), TS, np.ones((6, 2)))(jnp.ones(2), {}, {}), "time_dependent=True"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()
