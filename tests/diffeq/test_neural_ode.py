"""NeuralODE and vector_field: solutions, gradients, state, batches, faults."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
import scipy.integrate
import scipy.linalg

import lux_sciml as lux

TS = np.linspace(0.0, 1.0, 4)
A = np.array([[-0.5, 2.0], [-1.0, -0.3]])
LINEAR = lux.Dense(2, 2, use_bias=False)


def linear_parameters(dtype="float64"):
    return lux.ComponentVector(weight=jnp.asarray(A.T, dtype))


def exact(u0, ts):
    return np.stack([scipy.linalg.expm(A * (t - ts[0])) @ u0 for t in ts])


def small_net():
    model = lux.Chain(lux.Dense(2, 2, jnp.tanh), lux.Dense(2, 2))
    return model, *lux.setup(jax.random.key(1), model)


# --- solutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-6)])
@pytest.mark.parametrize("ts", [TS, TS[::-1]], ids=["forward", "backward"])
def test_linear_equation_matches_the_matrix_exponential(dtype, tolerance, ts):
    u0 = np.array([1.0, -0.5])
    sol, _ = lux.NeuralODE(LINEAR, ts=ts)(jnp.asarray(u0, dtype), linear_parameters(dtype), {})
    assert isinstance(sol, diffrax.Solution)
    assert sol.ys.dtype == sol.ts.dtype == dtype
    np.testing.assert_allclose(sol.ys, exact(u0, ts), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(sol.ts, ts, rtol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"solver": diffrax.Kvaerno5(), "rtol": 1e-8},  # its interpolation is of third order
        {"solver": diffrax.Dopri8()},
        {"solver": diffrax.Tsit5(scan_kind="checkpointed")},
        {"solver": diffrax.Tsit5(), "stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.01},
        {"stepsize_controller": diffrax.ClipStepSizeController(diffrax.PIDController(1e-6, 1e-8), jump_ts=[0.5])},
    ],
    ids=["implicit", "dopri8", "diffrax's own stages", "fixed steps", "jumps"],
)
def test_solvers_and_controllers_of_diffrax_pass_through(options):
    sol, _ = lux.NeuralODE(LINEAR, ts=TS, **options)(jnp.array([1.0, -0.5]), linear_parameters(), {})
    np.testing.assert_allclose(sol.ys, exact([1.0, -0.5], TS), rtol=1e-5, atol=1e-5)


def test_fixed_steps_go_with_the_times():
    node = lux.NeuralODE(LINEAR, ts=TS[::-1], stepsize_controller=diffrax.ConstantStepSize(), dt0=0.01)
    sol, _ = node(jnp.array([1.0, -0.5]), linear_parameters(), {})
    np.testing.assert_allclose(sol.ys, exact([1.0, -0.5], TS[::-1]), rtol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("solver", [diffrax.Heun, diffrax.Midpoint, diffrax.Bosh3, diffrax.Tsit5, diffrax.Dopri5])
def test_written_out_stages_give_diffrax_own_numbers(solver):
    node = lux.NeuralODE(LINEAR, ts=TS, stepsize_controller=diffrax.ConstantStepSize(), dt0=0.1)
    ours, theirs = (
        node.replace(solver=s)(jnp.array([1.0, -0.5]), linear_parameters(), {})[0]
        for s in (solver(), solver(scan_kind="checkpointed"))
    )
    np.testing.assert_allclose(ours.ys, theirs.ys, rtol=1e-14, atol=1e-15)  # one number is near zero


def test_times_per_call_and_outputs():
    u0, ps = jnp.array([1.0, -0.5]), linear_parameters()
    node = lux.NeuralODE(LINEAR)
    ys = node((u0, jnp.asarray(TS)), ps, {})[0].ys
    traced = jax.jit(lambda ts: node.replace(output="ys")((u0, ts), ps, {})[0])(jnp.asarray(TS))
    final = node.replace(output="final")((u0, jnp.asarray(TS)), ps, {})[0]
    np.testing.assert_allclose(ys, exact(u0, TS), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(traced, ys, rtol=1e-12)
    np.testing.assert_allclose(final, ys[-1], rtol=1e-6)


def test_time_dependent_field():
    field = lux.Lambda(lambda ty: jnp.cos(ty[0]) * jnp.ones_like(ty[1]))
    sol, _ = lux.NeuralODE(field, ts=TS, time_dependent=True)(jnp.zeros(1), {}, {})
    np.testing.assert_allclose(sol.ys[:, 0], np.sin(TS), atol=1e-6)


def test_saveat_dense_and_steps():
    node = lux.NeuralODE(LINEAR, ts=TS, saveat=diffrax.SaveAt(dense=True))
    sol, _ = node(jnp.array([1.0, -0.5]), linear_parameters(), {})
    np.testing.assert_allclose(sol.evaluate(0.4), exact([1.0, -0.5], [0.0, 0.4])[1], rtol=1e-5)


def test_event_ends_the_solve_at_its_time():
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.5, optimistix.Newton(1e-10, 1e-10))
    decay = lux.Dense(1, 1, use_bias=False)
    node = lux.NeuralODE(decay, ts=[0.0, 3.0], event=event, saveat=diffrax.SaveAt(t1=True))
    sol, _ = node(jnp.ones(1), {"weight": -jnp.ones((1, 1))}, {})
    assert sol.result == diffrax.RESULTS.event_occurred
    np.testing.assert_allclose(sol.ts[-1], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(sol.ys[-1], [0.5], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("finder", "adjoint"), [("Newton", "auto"), ("Newton", "direct"), ("Chord", "forward"), ("Bisection", "auto")]
)
def test_the_time_of_an_event_is_found_and_differentiated_without_callbacks(finder, adjoint):
    """y = y0 exp(-r t) meets the first of two conditions at log(y0 / 0.5) / r, or neither before the last time."""
    conditions = [lambda t, y, args, level=level, **_: y[0] - level for level in (0.5, 0.1)]
    event = diffrax.Event(conditions, getattr(optimistix, finder)(1e-10, 1e-10))
    options = {"saveat": diffrax.SaveAt(t1=True), "batching": "vmap", "adjoint": adjoint, "rtol": 1e-9, "atol": 1e-9}
    node = lux.NeuralODE(lux.Dense(1, 1, use_bias=False), ts=[0.0, 3.0], event=event, **options)

    def times(rate):
        return node(jnp.array([[1.0], [0.02], [2.0]]), {"weight": -rate.reshape(1, 1)}, {})[0].ts[:, -1]

    derivative = jax.jacfwd if adjoint == "forward" else jax.jacrev
    program = jax.jit(lambda rate: (times(rate), derivative(times)(rate))).lower(jnp.array(1.0))
    assert "callback" not in program.as_text()
    found, slopes = program.compile()(jnp.array(1.0))
    want = np.log([2.0, 1.0, 4.0])
    np.testing.assert_allclose(found, [want[0], 3.0, want[2]], rtol=1e-7)
    np.testing.assert_allclose(slopes, -want, rtol=1e-6, atol=1e-12)


def test_a_check_of_the_condition_of_an_event_is_kept():
    def condition(t, y, args, **_):
        return eqx.error_if(y[0] - 0.5, y[0] < 0.6, "too far")

    event = diffrax.Event(condition, optimistix.Bisection(1e-10, 1e-10))
    node = lux.NeuralODE(lux.Dense(1, 1, use_bias=False), ts=[0.0, 3.0], event=event)
    with pytest.raises(Exception, match="too far"):
        jax.block_until_ready(node(jnp.ones(1), {"weight": -jnp.ones((1, 1))}, {})[0].ys)


def test_progress_meter_passes_through(capfd):
    node = lux.NeuralODE(LINEAR, ts=TS, progress_meter=diffrax.TextProgressMeter(minimum_increase=0.01))
    jax.block_until_ready(node(jnp.array([1.0, -0.5]), linear_parameters(), {})[0].ys)
    jax.effects_barrier()
    assert "100.00%" in capfd.readouterr().out


def test_in_a_chain():
    model = lux.Chain(lux.Dense(3, 2), lux.NeuralODE(LINEAR, ts=[0.0, 1.0], output="final"), lux.Dense(2, 1))
    ps, st = lux.setup(jax.random.key(0), model)
    y, _ = model(jnp.ones((5, 3)), ps, st)
    assert y.shape == (5, 1)
    assert ps.layer_1.weight.shape == (2, 2)  # a wrapper adds no name of its own


# --- gradients ----------------------------------------------------------------------------------------------------


def loss_of(node, st, u0):
    return lambda ps: jnp.sum(node(u0, ps, st)[0].ys ** 2)


def directional_difference(f, x, v, h=1e-5):
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


@pytest.mark.exhaustive
def test_gradients_agree_with_finite_differences_and_between_adjoints():
    model, ps, st = small_net()
    u0, v = jnp.array([1.0, -0.5]), jax.random.normal(jax.random.key(3), ps.shape)
    node = lux.NeuralODE(model, ts=TS, rtol=1e-9, atol=1e-11, max_steps=64)
    loss = jax.jit(loss_of(node, st, u0))
    gradient = jax.grad(loss)(ps)
    assert gradient.layout is ps.layout
    np.testing.assert_allclose(gradient @ v, directional_difference(loss, ps, v), rtol=1e-7)
    for adjoint in (diffrax.BacksolveAdjoint(), diffrax.DirectAdjoint()):
        other = jax.grad(loss_of(node.replace(adjoint=adjoint), st, u0))(ps)
        np.testing.assert_allclose(other.data, gradient.data, rtol=1e-5, atol=1e-8)


def test_gradient_with_respect_to_the_initial_value_is_exact():
    node = lux.NeuralODE(LINEAR, ts=[0.0, 1.0], output="final", rtol=1e-10, atol=1e-12)
    jacobian = jax.jacrev(lambda u0: node(u0, linear_parameters(), {})[0])(jnp.array([1.0, -0.5]))
    np.testing.assert_allclose(jacobian, scipy.linalg.expm(A), rtol=1e-8)


@pytest.mark.exhaustive
def test_adjoint_auto_follows_the_derivatives_asked_for():
    model, ps, st = small_net()
    node = lux.NeuralODE(model, ts=[0.0, 0.5], rtol=1e-8, atol=1e-10, max_steps=16, output="final")
    loss = jax.jit(
        lambda ps: jnp.sum(node(jnp.array([1.0, -0.5]), ps, st)[0] ** 2)
    )  # one jitted function, three right traces
    v = jnp.ones(ps.size)
    gradient = jax.grad(loss)(ps)
    with lux.derivatives.mode("forward"):
        tangent = jax.jvp(loss, (ps,), (lux.ComponentVector(v, ps.layout),))[1]
    np.testing.assert_allclose(tangent, gradient @ v, rtol=1e-6)
    with lux.derivatives.mode("both"):
        curvature = jax.jvp(jax.grad(loss), (ps,), (lux.ComponentVector(v, ps.layout),))[1]
    difference = directional_difference(lambda p: jax.grad(loss)(p).data, ps, v, h=1e-4)
    np.testing.assert_allclose(curvature.data, difference, rtol=1e-4, atol=1e-6)


def test_parameters_are_split_once_and_outside_the_loop():
    model, ps, st = small_net()
    node = lux.NeuralODE(model, ts=TS)
    jaxpr = jax.make_jaxpr(jax.grad(loss_of(node, st, jnp.ones(2))))(ps)
    splits = [eqn.primitive.name for eqn in jaxpr.eqns if " split[" in str(eqn)]
    assert splits == ["custom_jvp_call"]  # none of the loops
    assert not any(" pad[" in str(eqn) for eqn in jaxpr.eqns)


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_joint_and_vmapped_batches_agree():
    model, ps, st = small_net()
    u0 = jax.random.normal(jax.random.key(2), (3, 2))
    joint = lux.NeuralODE(model, ts=TS)(u0, ps, st)[0]
    separate = lux.NeuralODE(model, ts=TS, batching="vmap")(u0, ps, st)[0]
    assert joint.ys.shape == (4, 3, 2)
    assert separate.ys.shape == (3, 4, 2)
    assert separate.stats["num_steps"].shape == (3,)
    np.testing.assert_allclose(jnp.moveaxis(joint.ys, 1, 0), separate.ys, rtol=1e-5)


def test_every_sample_may_have_its_own_times():
    u0, ts = jnp.array([[1.0, -0.5], [0.3, 2.0]]), jnp.array([[0.0, 0.5, 1.0], [2.0, 1.0, 0.5]])
    sol, _ = lux.NeuralODE(LINEAR, batching="vmap")((u0, ts), linear_parameters(), {})
    for i in range(2):
        np.testing.assert_allclose(sol.ys[i], exact(u0[i], ts[i]), rtol=1e-5)


# --- faults are data ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("output", ["ys", "final"])
def test_a_solver_that_runs_out_of_steps_gives_nan(output):
    node = lux.NeuralODE(LINEAR, ts=[0.0, 100.0], max_steps=8, output=output)
    value, gradient = jax.value_and_grad(lambda ps: jnp.sum(node(jnp.ones(2), ps, {})[0]))(linear_parameters())
    assert jnp.isnan(value)
    np.testing.assert_array_equal(gradient.data, 0.0)  # nothing that could be followed


@pytest.mark.exhaustive
def test_a_bad_sample_leaves_the_others_exact():
    u0 = jnp.array([[1.0, -0.5], [jnp.nan, 1.0], [0.3, 2.0]])
    sol, _ = lux.NeuralODE(LINEAR, ts=TS, batching="vmap")(u0, linear_parameters(), {})
    good, _ = lux.NeuralODE(LINEAR, ts=TS, batching="vmap")(u0[::2], linear_parameters(), {})
    np.testing.assert_array_equal(sol.ys[::2], good.ys)
    assert jnp.all(jnp.isnan(sol.ys[1]))
    assert sol.stats["num_steps"][1] == 1  # a start that is not finite ends at once
    slopes = [
        jax.grad(lambda ps, u0=u0: jnp.nansum(lux.NeuralODE(LINEAR, ts=TS, batching="vmap")(u0, ps, {})[0].ys))(
            linear_parameters()
        )
        for u0 in (u0, u0[::2])
    ]
    np.testing.assert_array_equal(slopes[0].data, slopes[1].data)
    with pytest.raises(RuntimeError, match=r"a NaN or an infinity was met by sample 1 of 3; try"):
        lux.raise_if_failed(sol)


def test_a_solution_that_blows_up_ends_early():
    node = lux.NeuralODE(lux.Lambda(jnp.square), ts=[0.0, 2.0])  # y' = y^2, y(0) = 1: infinite at t = 1
    sol, _ = node(jnp.ones(1), {}, {})
    assert not diffrax.is_okay(sol.result)
    assert sol.stats["num_steps"] < 500
    with pytest.raises(RuntimeError, match=r"grows without bound.*Kvaerno5"):
        lux.raise_if_failed(sol)
    assert jnp.all(jnp.isnan(sol.ys))


def test_a_step_out_of_the_domain_is_tried_again_shorter():
    node = lux.NeuralODE(lux.Lambda(lambda y: -jnp.sqrt(y)), ts=[0.0, 1.9], dt0=1.8)  # y = (1 - t / 2)^2
    sol, _ = node(jnp.ones(1), {}, {})
    assert sol.stats["num_rejected_steps"] > 0
    np.testing.assert_allclose(sol.ys[:, 0], [1.0, 0.05**2], rtol=1e-4)
    slope = jax.grad(lambda u0: node(u0, {}, {})[0].ys[-1, 0])(jnp.ones(1))
    np.testing.assert_allclose(slope, 0.05, rtol=1e-4)  # y = (sqrt(u0) - t / 2)^2


def test_every_kind_of_failure_names_its_samples_and_what_to_try():
    stiff_above_one = lux.Lambda(lambda y: jnp.where(y > 1, -1e4 * (y - 2), -y))
    node = lux.NeuralODE(stiff_above_one, ts=[0.0, 1.0], batching="vmap", max_steps=64)
    sol, _ = node(jnp.array([[3.0], [0.5], [jnp.nan], [4.0]]), {}, {})
    np.testing.assert_allclose(sol.ys[1, 1], 0.5 * np.exp(-1), rtol=1e-5)
    with pytest.raises(RuntimeError, match=r"samples 0, 3 of 4; try a larger max_steps.*Kvaerno5.*by sample 2 of 4"):
        lux.raise_if_failed(sol)
    with pytest.raises(TypeError, match="output='solution', got ArrayImpl"):
        lux.raise_if_failed(sol.ys)


@pytest.mark.slow
def test_implicit_solvers_converge():
    """diffrax's default root finder takes several times as many steps here, half of them rejected."""
    node = lux.NeuralODE(lux.Lambda(jnp.tanh), ts=[0.0, 1.0], solver=diffrax.Kvaerno5())
    sol, _ = node(jnp.ones(2), {}, {})
    assert sol.stats["num_steps"] < 30
    np.testing.assert_allclose(jnp.sinh(sol.ys[-1]), np.sinh(1) * np.e, rtol=1e-5)


def test_fixed_steps_through_nan_are_a_failure():
    node = lux.NeuralODE(lux.Lambda(jnp.log), ts=[0.0, 1.0], stepsize_controller=diffrax.ConstantStepSize(), dt0=0.1)
    sol, _ = node(-jnp.ones(1), {}, {})
    assert sol.result == diffrax.RESULTS.nonfinite


def test_throw_raises_and_success_passes():
    node = lux.NeuralODE(LINEAR, ts=TS)
    sol, _ = node(jnp.ones(2), linear_parameters(), {})
    assert lux.raise_if_failed(sol) is sol
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        jax.block_until_ready(node.replace(throw=True, max_steps=2)(jnp.ones(2), linear_parameters(), {})[0].ys)
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda u0: lux.raise_if_failed(node(u0, linear_parameters(), {})[0]).ys)(jnp.ones(2))


# --- state --------------------------------------------------------------------------------------------------------


def stateful():
    model = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.BatchNorm(4), lux.Dropout(0.5), lux.Dense(4, 2))
    node = lux.NeuralODE(model, ts=[0.0, 1.0])
    return node, *lux.setup(jax.random.key(0), node)


def test_a_layer_that_updates_its_state_is_refused_by_path():
    node, ps, st = stateful()
    with pytest.raises(
        ValueError, match=r"`layer_1` \(BatchNorm\(4\)\) updates its state \(`running_mean`\).*testmode"
    ):
        node(jnp.ones((3, 2)), ps, st)


def test_test_mode_solves_and_keeps_the_state():
    node, ps, st = stateful()
    sol, after = node(jnp.ones((3, 2)), ps, lux.testmode(st))
    assert jnp.all(jnp.isfinite(sol.ys))
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, lux.testmode(st), after))


def test_discarded_updates_keep_one_mask_and_renew_the_keys():
    node, ps, st = stateful()
    node = node.replace(on_state_update="discard")
    u0 = jax.random.normal(jax.random.key(1), (3, 2))
    (first, after), (again, _) = node(u0, ps, st), node(u0, ps, st)
    np.testing.assert_array_equal(first.ys, again.ys)
    assert jnp.all(after["layer_2"]["key"] != st["layer_2"]["key"])
    np.testing.assert_array_equal(after["layer_1"]["running_mean"], st["layer_1"]["running_mean"])
    assert jax.tree.structure(after) == jax.tree.structure(st)
    assert jnp.any(node(u0, ps, after)[0].ys != first.ys)


def test_vmapped_samples_have_no_training_state():
    node, ps, st = stateful()
    with pytest.raises(ValueError, match=r"testmode"):
        node.replace(batching="vmap")(jnp.ones((3, 2)), ps, st)


# --- vector_field -------------------------------------------------------------------------------------------------


def test_named_state_in_a_plain_field():
    def field(t, u, p):
        flow = p.beta * u.S * u.I
        return lux.ComponentVector(S=-flow, I=flow - p.gamma * u.I, R=p.gamma * u.I)

    u0, p = lux.ComponentVector(S=0.99, I=0.01, R=0.0), lux.ComponentVector(beta=0.5, gamma=0.1)
    term = diffrax.ODETerm(lux.vector_field(field))
    sol = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 30.0, 0.1, u0, args=p)
    np.testing.assert_allclose(jnp.sum(sol.ys.data[-1]), 1.0, rtol=1e-12)
    assert sol.ys.S.shape == (1,)


def test_plain_results_get_the_names_of_the_state():
    u0 = lux.ComponentVector(a=1.0, b=[2.0, 3.0])
    field = lux.vector_field(lambda t, u, p: -u.data)
    assert field(0.0, u0, None).equals(-u0)
    assert lux.vector_field(lambda t, u, p: {"b": u.b, "a": u.a})(0.0, u0, None).equals(u0)


# --- bad input ----------------------------------------------------------------------------------------------------


RAMP = diffrax.LinearInterpolation(ts=jnp.array([0.0, 1.0]), ys=jnp.zeros((2, 2)))


def solved(u0, **options):
    return lux.NeuralODE(LINEAR, ts=TS, **options)(u0, linear_parameters(), {})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.NeuralODE(LINEAR, ts=[0.0, 1.0, 0.5]), r"it turns after position 1: 1\.0, 0\.5"),
        (lambda: lux.NeuralODE(LINEAR, ts=[0.0, 1.0, 1.0]), "strictly"),
        (lambda: lux.NeuralODE(LINEAR, ts=[0.0]), "at least two times"),
        (lambda: lux.NeuralODE(LINEAR, ts=[0.0, np.nan]), "not finite"),
        (
            lambda: lux.NeuralODE(LINEAR, ts=TS, output="all"),
            r"output: expected .*'ys' or 'final', got 'all'",
        ),
        (
            lambda: lux.NeuralODE(LINEAR, ts=TS, adjoint="backward"),
            r"expected one of 'auto', .* got 'backward'",
        ),
        (
            lambda: lux.NeuralODE(LINEAR, ts=TS, solver=diffrax.Tsit5),
            r"expected an object such as diffrax\.Tsit5\(\)",
        ),
        (lambda: lux.NeuralODE(LINEAR, ts=TS, adjoint=diffrax.DirectAdjoint), "adjoint: .*or an object such as"),
        (lambda: lux.NeuralODE(LINEAR, ts=TS, rtol=-1.0), r"rtol: expected a number of at least 0, got -1\.0"),
        (lambda: lux.NeuralODE(LINEAR, ts=TS, max_steps=0), "max_steps: expected a whole number of at least 1, got 0"),
        (lambda: lux.NeuralODE(LINEAR, ts=TS, dt0=0.0), r"size of a step, got 0\.0"),
        (lambda: solved((jnp.ones(2), TS)), "has its own `ts`"),
        (lambda: solved([1.0, 2.0]), r"a list of numbers: jnp\.array\(\[1\.0, 2\.0\]\)"),
        (lambda: solved(None), "an array or a tree of arrays, got None"),
        (lambda: solved((jnp.ones(2), jnp.zeros(1))), "Dense.* takes an array, got a tuple of 2"),
        (lambda: solved((jnp.ones(2), RAMP)), "controlled=True"),
        (lambda: solved(1.0, batching="vmap"), r"each sample along the first axis.*got the shapes \(\)"),
        (
            lambda: lux.NeuralODE(LINEAR, batching="vmap")(
                (jnp.ones((3, 2)), np.array([TS, TS])), linear_parameters(), {}
            ),
            r"the same number in all; got the shapes \(3, 2\), \(2, \d+\)",
        ),
        (
            lambda: lux.NeuralODE(LINEAR, ts=TS, rtol=1e-3, stepsize_controller=diffrax.ConstantStepSize()),
            "not both",
        ),
        (lambda: lux.NeuralODE(LINEAR)(jnp.ones(2), linear_parameters(), {}), "takes the tuple"),
        (
            lambda: lux.NeuralODE(LINEAR)((jnp.ones(2), np.array([0.0, 1.0, 0.5])), linear_parameters(), {}),
            "it turns after position 1",
        ),
        (
            lambda: lux.NeuralODE(lux.Dense(2, 3, use_bias=False), ts=TS)(
                jnp.ones(2), {"weight": jnp.ones((2, 3))}, {}
            ),
            r"must keep the shape of its state, \(2,\); got \(3,\)",
        ),
        (
            lambda: lux.NeuralODE(LINEAR, ts=TS)(jnp.ones(2), {"weight": jnp.ones((3, 3))}, {}),
            r"`weight` should have shape \(2, 2\), got \(3, 3\)",
        ),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


def test_a_net_that_gets_the_time_is_told_of_concat_time():
    for layer in (lux.NeuralODE(lux.Dense(2, 2), ts=TS, time_dependent=True), lux.CNF(lux.Chain(lux.Dense(2, 2)))):
        with pytest.raises(TypeError, match="takes an array, got a tuple of 2") as caught:
            layer(jnp.ones(2), *lux.setup(jax.random.key(0), layer))
        assert sum("lux.diffeq.concat_time" in note for note in caught.value.__notes__) == 1


def test_a_field_of_another_precision_is_one_sentence():
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(ValueError, match="initial value and parameters one type"),
    ):
        lux.NeuralODE(LINEAR, ts=TS)(jnp.ones(2, "float32"), linear_parameters("float64"), {})


@pytest.mark.exhaustive
def test_saved_values_of_a_stiff_solver_are_as_accurate_as_its_steps():
    """Robertson's kinetics: the end in the test set of Hairer and Wanner, and times between large steps."""

    def kinetics(y):
        slow, fast = 0.04 * y[0] - 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
        return jnp.stack([-slow, slow - fast, fast])

    start, rtol, atol = jnp.array([1.0, 0.0, 0.0]), 1e-8, 1e-10
    options = dict(solver=diffrax.Kvaerno5(), rtol=rtol, atol=atol)
    end = lux.NeuralODE(kinetics, [0.0, 1e11], output="final", **{**options, "atol": 1e-14})(start, {}, {})[0]
    np.testing.assert_allclose(end, [2.083340149701255e-08, 8.333360770334713e-14, 0.9999999791665050], rtol=1e-5)

    ts = np.linspace(0.0, 100.0, 51)
    reference = scipy.integrate.solve_ivp(
        lambda t, y: np.asarray(kinetics(y)), (0, 100), start, "Radau", ts, rtol=1e-11, atol=1e-15
    )
    for extra in ({}, {"jumps": lux.Jumps([50.0], lambda t, y, ps: y)}, {"adjoint": "gauss"}):
        sol, _ = lux.NeuralODE(kinetics, ts, **options, **extra)(start, {}, {})
        missed = np.abs(sol.ys - reference.y.T) / (atol + rtol * np.abs(reference.y.T))
        assert missed.max() < 2, extra
    few = lux.NeuralODE(kinetics, ts, max_steps=90, **options)(start, {}, {})[0]  # too many times to end at each
    assert few.result == diffrax.RESULTS.successful and few.stats["num_steps"] < 60
