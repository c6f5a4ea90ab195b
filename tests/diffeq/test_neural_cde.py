"""NeuralCDE and control paths: exact solutions, missing data, gradients, batches."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lux_sciml as lux

TS = np.array([0.0, 0.2, 0.5, 0.6, 1.0])
XS = np.array([[0.0], [1.0], [-0.5], [0.3], [2.0]])
DECAY, TURN = -0.5 * np.eye(2), np.array([[0.2, 1.0], [-1.0, 0.1]])  # along time, along the data
SHEAR = np.array([[0.0, 1.0], [0.0, 0.0]])


@jax.jit
def call(layer, x, ps, st):
    return layer(x, ps, st)[0]


def linear(along_time, along_data, **options):
    """dy = (along_time dt + along_data dx) y, from y(0) = (1, -0.5)."""
    model = lux.Lambda(lambda y: jnp.stack([y @ along_time.T, y @ along_data.T], axis=-1))
    initial = lux.Lambda(lambda x: jnp.broadcast_to(jnp.array([1.0, -0.5]), (*x.shape[:-1], 2)))
    return lux.NeuralCDE(model, initial, **{"output": "ys", "rtol": 1e-9, "atol": 1e-11, **options})


def run(layer, ts, xs):
    return call(layer, (jnp.asarray(ts), jnp.asarray(xs)), *lux.setup(jax.random.key(0), layer))


def small(**options):
    model, initial = lux.Dense(2, 4, jnp.tanh), lux.Dense(2, 2)
    return lux.NeuralCDE(model, initial, **{"output": "final", "max_steps": 256, **options})


# --- exact solutions ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["hermite", "linear", "rectilinear"])
def test_commuting_fields_do_not_care_for_the_way_between_the_data(interpolation):
    ys = run(linear(DECAY, TURN, interpolation=interpolation), TS, XS)
    exact = [scipy.linalg.expm(DECAY * t + TURN * x) @ [1.0, -0.5] for t, x in zip(TS, XS[:, 0], strict=True)]
    np.testing.assert_allclose(ys, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["linear", "rectilinear"])
def test_other_fields_follow_the_path(interpolation):
    ys, exact = run(linear(SHEAR, TURN, interpolation=interpolation), TS, XS), [np.array([1.0, -0.5])]
    for dt, dx in zip(np.diff(TS), np.diff(XS[:, 0]), strict=True):
        if interpolation == "linear":
            step = scipy.linalg.expm(SHEAR * dt + TURN * dx)
        else:  # first time goes on, then the data jump
            step = scipy.linalg.expm(TURN * dx) @ scipy.linalg.expm(SHEAR * dt)
        exact.append(step @ exact[-1])
    np.testing.assert_allclose(ys, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_steps_meet_the_kinks_of_the_path():
    """Between the kinks the field is smooth: few steps, none of them rejected."""
    sol = run(linear(DECAY, TURN, interpolation="linear", output="solution", rtol=1e-3, atol=1e-5), TS, XS)
    assert sol.stats["num_rejected_steps"] <= 1
    np.testing.assert_array_equal(sol.ts, TS)


# --- missing data -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_paths_across_gaps():
    xs = jnp.array([[jnp.nan, 1.0], [2.0, jnp.nan], [jnp.nan, 4.0], [4.0, jnp.nan]])
    ts = jnp.array([0.0, 1.0, 2.0, 4.0])
    for kind in ("linear", "hermite"):
        values = np.stack([lux.diffeq.control_path(ts, xs, kind).evaluate(t) for t in ts])
        np.testing.assert_allclose(values[[0, 1, 3], 0], [0.0, 2.0, 4.0])  # zero before the first observation
        np.testing.assert_allclose(values[[0, 2, 3], 1], [1.0, 4.0, 4.0])  # held after the last one
        if kind == "linear":
            np.testing.assert_allclose([values[2, 0], values[1, 1]], [2 + 2 / 3, 2.5])
    rows = np.stack([lux.diffeq.control_path(ts, xs, "rectilinear").evaluate(s) for s in range(7)])
    np.testing.assert_allclose(rows[::2], [[0, 1], [2, 1], [2, 4], [4, 4]])  # the last value seen, never a later one


def test_a_hermite_path_is_smooth_and_starts_straight():
    path = lux.diffeq.control_path(jnp.asarray(TS), jnp.asarray(XS), "hermite")
    np.testing.assert_allclose(path.derivative(0.0), (XS[1] - XS[0]) / 0.2)
    for t, slope in zip(TS[1:-1], np.diff(XS, axis=0)[:-1] / np.diff(TS)[:-1, None], strict=True):
        for left in (True, False):
            np.testing.assert_allclose(path.derivative(t, left=left), slope, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["linear", "hermite"])
def test_missing_observations_are_as_if_they_were_left_out(interpolation):
    """Also by a field that does not commute with itself, and so feels the way between the data."""
    gap = [1, 2]
    xs = XS.copy()
    xs[gap] = np.nan
    layer = linear(SHEAR, TURN, interpolation=interpolation)
    with_gap, without = run(layer, TS, xs), run(layer, np.delete(TS, gap), np.delete(XS, gap, 0))
    np.testing.assert_allclose(np.delete(with_gap, gap, 0), without, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_paths_of_whole_data_are_those_of_diffrax():
    ts, xs = jnp.asarray(TS), jax.random.normal(jax.random.key(0), (len(TS), 3, 2))
    ours = lux.diffeq.control_path(ts, xs, "hermite", with_time=True)
    times = jnp.broadcast_to(ts[:, None, None], (len(TS), 3, 1))
    theirs = diffrax.backward_hermite_coefficients(ts, jnp.concatenate([times, xs], axis=-1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours.coeffs, theirs)
    ours = lux.diffeq.control_path(ts, xs.at[1:3, 0].set(jnp.nan), "linear")
    np.testing.assert_allclose(ours.ys, diffrax.linear_interpolation(ts, xs.at[1:3, 0].set(jnp.nan)), atol=1e-12)
    ours = lux.diffeq.control_path(ts, xs, "rectilinear", with_time=True)
    ts, xs = diffrax.rectilinear_interpolation(ts, xs)
    np.testing.assert_array_equal(ours.ys, jnp.concatenate([jnp.broadcast_to(ts[:, None, None], (9, 3, 1)), xs], -1))


def test_paths_take_numpy_arrays_and_whole_numbers():
    path = lux.diffeq.control_path(np.arange(3), np.array([[0], [2], [6]]), "linear", with_time=True)
    np.testing.assert_array_equal(path.evaluate(1.5), [1.5, 4.0])


def test_a_hermite_path_levels_off_after_the_last_observation():
    xs = jnp.array([[0.0], [1.0], [jnp.nan], [jnp.nan]])
    path = lux.diffeq.control_path(jnp.arange(4.0), xs, "hermite")
    np.testing.assert_allclose([path.derivative(t, left=False)[0] for t in (0.5, 1.0, 2.0, 2.5)], [1, 1, 0, 0])
    np.testing.assert_allclose([path.evaluate(t)[0] for t in (1.0, 2.0, 2.5, 3.0)], 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["hermite", "linear", "rectilinear"])
def test_gradients_of_a_path_by_data_and_times_are_finite_across_gaps(interpolation):
    xs = jnp.asarray(XS).at[jnp.array([0, 2, 4])].set(jnp.nan)

    def value(ts, xs):
        return lux.diffeq.control_path(ts, xs, interpolation, with_time=True).evaluate(0.3)[1]

    by_ts, by_xs = jax.jit(jax.grad(value, argnums=(0, 1)))(jnp.asarray(TS), xs)
    assert jnp.all(jnp.isfinite(by_ts)) and jnp.all(jnp.isfinite(by_xs))
    np.testing.assert_array_equal(by_xs[jnp.isnan(xs)], 0.0)
    h, up = 1e-6, jnp.array([0.0, 1.0, 0.0, 0.5, 0.0])
    slope = (value(jnp.asarray(TS) + h * up, xs) - value(jnp.asarray(TS) - h * up, xs)) / (2 * h)
    np.testing.assert_allclose(by_ts @ up, slope, atol=1e-8)


def test_counts_say_what_was_observed():
    xs = XS.copy()
    xs[2] = np.nan
    seen = lux.Lambda(lambda y: jnp.stack([0 * y, 0 * y, y], axis=-1))  # dy = y dcount
    layer = lux.NeuralCDE(seen, lux.Lambda(lambda x: jnp.exp(x[..., 2:])), counts=True, output="ys", rtol=1e-9)
    np.testing.assert_allclose(np.log(run(layer, TS, xs)[:, 0]) * 5, [1, 2, 2, 3, 4], rtol=1e-5)


# --- batches and gradients ------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_gradients_by_parameters_and_data_agree_with_finite_differences_and_between_adjoints():
    layer = small(rtol=1e-9, atol=1e-11, interpolation="linear")
    ps, st = lux.setup(jax.random.key(0), layer)
    xs, v, w = jnp.asarray(XS), jnp.ones(ps.size), jnp.asarray(XS[::-1])

    def loss(ps, xs, layer=layer):
        return jnp.sum(layer((jnp.asarray(TS), xs), ps, st)[0] ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    value, h = jax.jit(loss), 1e-5
    slope = (value(ps + h * v, xs + h * w) - value(ps - h * v, xs - h * w)) / (2 * h)
    for adjoint in ("auto", diffrax.DirectAdjoint()):
        of_ps, of_xs = gradients(ps, xs, layer.replace(adjoint=adjoint))
        np.testing.assert_allclose(of_ps @ v + jnp.sum(of_xs * w), slope, rtol=1e-6)


@pytest.mark.exhaustive
def test_joint_and_vmapped_batches_agree():
    layer, xs = small(output="ys", rtol=1e-8), np.stack([XS, -XS, XS**2])
    joint, separate = run(layer, TS, xs), run(layer.replace(batching="vmap"), TS, xs)
    own_times = run(layer.replace(batching="vmap"), np.stack([TS, TS, 2 * TS]), xs)
    assert joint.shape == (5, 3, 2)
    np.testing.assert_allclose(np.moveaxis(joint, 1, 0), separate, rtol=1e-5)
    np.testing.assert_allclose(own_times[:2], separate[:2], rtol=1e-5)  # another program, and steps over kinks
    assert np.all(abs(own_times[2, -1] - separate[2, -1]) > 1e-3)


@pytest.mark.exhaustive
def test_the_critic_of_an_sde_gan():
    """The gradient of a score of generated paths, by the generator's parameters, along a fixed Brownian path."""
    generator = lux.NeuralDSDE(lux.Dense(1, 1), lux.Dense(1, 1), ts=TS, dt0=0.25, batching="vmap", output="ys")
    critic = small(stepsize_controller=diffrax.ConstantStepSize(), dt0=0.25, max_steps=8)
    (ps, st), (ps_critic, st_critic) = lux.setup(jax.random.key(0), generator), lux.setup(jax.random.key(1), critic)

    @jax.jit
    def score(ps):
        paths, _ = generator.replace(max_steps=8)(jnp.ones((4, 1)), ps, st)
        return jnp.mean(critic((jnp.asarray(TS), paths), ps_critic, st_critic)[0])

    v, h = jnp.ones(ps.size), 1e-5
    slope = (score(ps + h * v) - score(ps - h * v)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(score))(ps) @ v, slope, rtol=1e-7)


# --- faults and bad input -------------------------------------------------------------------------------------------


def test_traced_times_that_do_not_increase_give_nan():
    assert jnp.all(jnp.isnan(run(small(), TS[::-1].copy(), XS)))
    path = jax.jit(lux.diffeq.control_path)(jnp.asarray(TS[::-1].copy()), jnp.asarray(XS))
    assert jnp.all(jnp.isnan(path.evaluate(0.5)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: small(interpolation="cubic"), "expected 'hermite' or 'linear' or 'rectilinear', got 'cubic'"),
        (lambda: lux.diffeq.control_path(jnp.asarray(TS), jnp.asarray(XS), "cubic"), "got 'cubic'"),
        (lambda: lux.diffeq.control_path(jnp.asarray(TS[::-1].copy()), jnp.asarray(XS)), "must increase"),
        (
            lambda: small()((TS[::-1].copy(), jnp.asarray(XS)), *lux.setup(jax.random.key(0), small())),
            "must increase",
        ),
        (lambda: run(small(), TS, XS[1:]), r"for times of shape \(5,\) has shape \(\.\.\., times, channels\)"),
        (lambda: run(small(), np.stack([TS, TS]), np.stack([XS, XS])), "with batching='vmap'"),
        (
            lambda: run(small(batching="vmap"), np.stack([TS, TS]), np.stack([XS, XS, XS])),
            r"data for times of shape \(2, 5\) has shape \(\.\.\., times, channels\), got \(3, 5, 1\)",
        ),
        (
            lambda: run(lux.NeuralCDE(lux.Dense(2, 5), lux.Dense(2, 2)), TS, XS),
            r"2 hidden features and 2 channels, time included, has the output shape \(2, 2\) here, .*got \(5,\)",
        ),
        (lambda: small()(jnp.ones(2), *lux.setup(jax.random.key(0), small())), r"takes the tuple \(times, data\)"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["hermite", "linear", "rectilinear"])
def test_a_channel_seen_once_or_never_is_constant(interpolation):
    xs = jnp.array([[2.0, jnp.nan], [jnp.nan, jnp.nan], [jnp.nan, jnp.nan]])
    path = lux.diffeq.control_path(jnp.arange(3.0), xs, interpolation)
    np.testing.assert_array_equal(path.evaluate(1.5), [2.0, 0.0])
