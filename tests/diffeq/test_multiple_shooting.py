"""Multiple shooting, schedules and the observer: how training starts, grows and is led."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lux_sciml as lux
from lux_sciml.diffeq.fitting.multiple_shooting import shooting_groups

A = np.array([[-0.1, 2.0], [-2.0, -0.1]])
TS = np.array([0.0, 0.1, 0.3, 0.4, 0.6, 0.9, 1.0, 1.3])
DATA = np.stack([scipy.linalg.expm(A * t) @ [1.0, -0.5] for t in TS])
LINEAR = lux.NeuralODE(lux.Dense(2, 2, use_bias=False), rtol=1e-9, atol=1e-11, max_steps=64)


def truth():
    return lux.ComponentVector(weight=jnp.asarray(A.T))


def shoot(ps, **options):
    return lux.diffeq.multiple_shooting(LINEAR, ps, {}, DATA, TS, **{"group_size": 4, **options})


# --- multiple shooting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "size"), [(8, 4), (8, 8), (7, 4), (9, 2), (2, 2), (10, 3)])
def test_groups_cover_the_times_and_share_their_ends(times, size):
    groups = shooting_groups(times, size)
    assert groups[0].start == 0 and groups[-1].stop == times
    assert all(a.stop - 1 == b.start for a, b in itertools.pairwise(groups))
    assert all(g.stop - g.start == size for g in groups[:-1])
    assert 2 <= groups[-1].stop - groups[-1].start <= size


@pytest.mark.exhaustive
def test_complex_states_have_a_real_loss_and_its_gradient():
    """`z' = (-0.1 - 2i) z` is the real equation of its two parts."""
    data = DATA[:, 0] + 1j * DATA[:, 1]
    turn = lux.NeuralODE(lux.Scale((), use_bias=False), rtol=1e-9, atol=1e-11, max_steps=64)

    def loss(rate):
        ps = {"weight": rate}
        return lux.diffeq.multiple_shooting(turn, ps, {}, data, TS, group_size=4, continuity_weight=0.0)[0]

    rate = jnp.array(-0.2 - 1.9j)
    real = jnp.array([[rate.real, rate.imag], [-rate.imag, rate.real]])  # of (x, y), from the right
    right = shoot(lux.ComponentVector(weight=real), continuity_weight=0.0)[0]
    np.testing.assert_allclose(loss(rate), right, rtol=1e-6)
    h = 1e-5
    across = [float(loss(rate + d) - loss(rate - d)) / (2 * h) for d in (h, 1j * h)]
    np.testing.assert_allclose(jax.grad(loss)(rate), across[0] - 1j * across[1], rtol=1e-5)


@pytest.mark.slow
def test_the_truth_has_no_loss_and_every_group_its_own_times():
    loss, predictions = shoot(truth())
    assert loss < 1e-6
    assert [y.shape for y in predictions] == [(4, 2), (4, 2), (2, 2)]
    np.testing.assert_allclose(predictions[1], DATA[3:7], atol=1e-8)
    np.testing.assert_allclose(predictions[2], DATA[6:], atol=1e-8)


@pytest.mark.slow
def test_the_terms_of_the_loss():
    ps = truth() * 0.9
    ends = [scipy.linalg.expm(0.9 * A * (TS[b] - TS[a])) @ DATA[a] for a, b in ((0, 3), (3, 6))]
    jumps = sum(np.abs(end - DATA[b]).sum() for end, b in zip(ends, (3, 6), strict=True))
    fit, _ = shoot(ps, continuity_weight=0.0)
    total, predictions = shoot(ps, continuity_weight=7.0)
    expected = sum(np.sum((y - DATA[g]) ** 2) for y, g in zip(predictions, shooting_groups(8, 4), strict=True))
    np.testing.assert_allclose(fit, expected, rtol=1e-12)
    np.testing.assert_allclose(total - fit, 7 * jumps, rtol=1e-6)


@pytest.mark.exhaustive
def test_one_group_is_single_shooting():
    loss, (ys,) = shoot(truth() * 0.9, group_size=8)
    single = LINEAR((jnp.asarray(DATA[0]), TS), truth() * 0.9, {})[0].ys
    np.testing.assert_allclose(ys, single, rtol=1e-12)
    np.testing.assert_allclose(loss, np.sum((single - DATA) ** 2), rtol=1e-12)


@pytest.mark.slow
def test_gradients_by_parameters_and_by_learned_starts():
    starts = jnp.asarray(DATA[[0, 3, 6]]) + 0.05
    q = lux.ComponentVector(weight=truth().weight * 0.9, starts=starts)
    v = jax.random.normal(jax.random.key(0), q.shape)

    def loss(q):
        return shoot({"weight": q.weight}, starts=q.starts, continuity=lambda a, b: jnp.sum((a - b) ** 2))[0]

    value = jax.jit(loss)
    slope = jax.jit(jax.grad(loss))(q) @ v
    np.testing.assert_allclose(slope, (value(q + 1e-5 * v) - value(q - 1e-5 * v)) / 2e-5, rtol=1e-6)


@pytest.mark.exhaustive
def test_a_failed_group_is_infinite_and_leaves_the_gradient_of_the_others():
    square = lux.NeuralODE(lux.Chain(lux.Dense(1, 1, use_bias=False), jnp.square), solver=diffrax.Bosh3(), max_steps=64)
    data = jnp.array([[0.1], [0.1], [40.0], [50.0], [50.0]])  # the second group blows up

    def loss(ps):
        return lux.diffeq.multiple_shooting(
            square, ps, {"layer_0": {}, "layer_1": {}}, data, np.arange(5.0), group_size=3
        )[0]

    ps = lux.setup(jax.random.key(0), square, "float64")[0].replace(layer_0={"weight": 1.0})
    value, gradient = jax.value_and_grad(loss)(ps)
    assert value == jnp.inf
    assert not jnp.any(jnp.isnan(gradient.data))


@pytest.mark.exhaustive
def test_the_loss_falls_all_the_way_to_the_truth_where_that_of_one_solve_does_not():
    ts = np.linspace(0.0, 6.0, 31)
    data = np.stack([scipy.linalg.expm(A * t) @ [1.0, -0.5] for t in ts])
    node = lux.NeuralODE(lux.Dense(2, 2, use_bias=False), solver=diffrax.Bosh3(), rtol=1e-4, atol=1e-6, max_steps=256)
    scales = jnp.linspace(0.2, 1.0, 9)

    def losses(group_size):
        def loss(scale):
            return lux.diffeq.multiple_shooting(node, truth() * scale, {}, data, ts, group_size=group_size)[0]

        return np.asarray(jax.jit(jax.vmap(loss))(scales))

    assert np.all(np.diff(losses(4)) < 0)
    assert np.any(np.diff(losses(31)) > 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"group_size": 1}, "from 2 to the number of times, 8; got 1"),
        ({"group_size": 9}, "from 2 to the number of times, 8; got 9"),
        ({"starts": np.ones((2, 2))}, "there are 3 groups, and as many starts; got 2"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        shoot(truth(), **options)
    with pytest.raises(ValueError, match=r"with 8 times; got \(7, 2\)"):
        lux.diffeq.multiple_shooting(LINEAR, truth(), {}, DATA[:7], TS, group_size=2)
    with pytest.raises(ValueError, match="without `ts`, with output 'ys' or 'solution'"):
        lux.diffeq.multiple_shooting(LINEAR.replace(ts=TS), truth(), {}, DATA, TS, group_size=2)
