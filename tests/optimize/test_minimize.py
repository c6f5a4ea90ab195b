"""minimize: one call over SciPy, optimistix and optax."""

import inspect
import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
import scipy.optimize

import lux_sciml as lux
from lux_sciml.optimize.objective import barrier
from lux_sciml.optimize.scipy_backend import BOUNDED, METHODS


def rosenbrock(p):
    return (1 - p.x) ** 2 + 100 * (p.y - p.x**2) ** 2


def valley(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def start(dtype="float64"):
    return lux.ComponentVector(x=-1.2, y=1.0).astype(dtype)


MATRIX = np.diag([1.0, 4.0, 9.0]) + 0.5
TARGET = np.array([1.0, -2.0, 3.0])


def quadratic(p, data):
    matrix, target = data
    return 0.5 * (p - target) @ (matrix @ (p - target)) + 1.0


FAMILIES = {
    "scipy": lambda: "L-BFGS-B",
    "optimistix": lambda: optx.BFGS(rtol=1e-6, atol=1e-6),
    "optax": lambda: optax.adam(0.1),
}


@pytest.fixture(params=FAMILIES)
def method(request):
    return FAMILIES[request.param]()


# --- it finds minima ----------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
def test_every_scipy_method_on_rosenbrock(name, dtype):
    result = lux.minimize(rosenbrock, start(dtype), method=name, max_steps=2000)
    assert result.value < (0.02 if name == "COBYLA" else 1e-5)  # COBYLA's linear models end early in the valley
    assert result.success or dtype == "float32"  # float32 rounding may end a line search before its tolerance
    assert isinstance(result.params, lux.ComponentVector) and result.params.dtype == dtype
    assert np.isclose(result.value, rosenbrock(result.params), rtol=1e-6)
    assert result.history.shape == (result.steps + 1,) and np.isclose(result.history[0], 24.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        optx.BFGS(1e-6, 1e-6),
        optx.LBFGS(1e-6, 1e-6),
        optx.NelderMead(1e-6, 1e-6),
        optx.BestSoFarMinimiser(optx.BFGS(1e-6, 1e-6)),
        optx.OptaxMinimiser(optax.adam(0.1), 1e-8, 1e-8),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_optimistix_on_rosenbrock(solver, dtype):
    result = lux.minimize(rosenbrock, start(dtype), method=solver, max_steps=3000)
    assert result.success and result.value < 1e-6
    assert result.params.dtype == dtype
    assert np.isclose(result.value, rosenbrock(result.params), rtol=1e-6)
    assert result.history.shape == (result.steps + 1,) and np.isclose(result.history[0], 24.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "lbfgs", "chain"])
def test_optax_on_rosenbrock(name, dtype):
    method = {
        "adam": optax.adam(0.1),
        "lbfgs": optax.lbfgs(),
        "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.exponential_decay(0.2, 1000, 0.1))),
    }[name]
    result = lux.minimize(rosenbrock, start(dtype), method=method, max_steps=3000, tol=1e-3)
    assert result.success and result.value < 1e-5 and "converged" in result.message
    assert result.params.dtype == dtype
    assert np.isclose(result.value, rosenbrock(result.params), rtol=1e-6)
    assert result.history.shape == (result.steps + 1,) and result.evaluations == result.steps + 1


@pytest.mark.slow
def test_optax_takes_the_steps_of_a_plain_loop(dtype):
    transform, params = optax.adam(0.1), start(dtype)
    state = transform.init(params)
    values = []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(20):
            value, gradient = jax.value_and_grad(rosenbrock)(params)
            values.append(float(value))
            updates, state = transform.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    result = lux.minimize(rosenbrock, start(dtype), method=transform, max_steps=20, keep_best=False)
    rtol = 1e-12 if dtype == "float64" else 1e-4  # compiled as a whole, sums are rounded in another order
    np.testing.assert_allclose(result.history[:20], values, rtol=rtol)
    np.testing.assert_allclose(result.params.data, params.data, rtol=rtol)


def test_optax_sees_the_parameters_as_they_are():
    """Labels and masks are trees of the parameters' own kind; states may hold keys and Python's numbers."""

    def loss(tree):
        return jnp.sum((tree["a"] - 1) ** 2) + jnp.sum((tree["b"] - 1) ** 2)

    transform = optax.chain(
        optax.multi_transform({"move": optax.sgd(0.1), "stay": optax.set_to_zero()}, {"a": "move", "b": "stay"}),
        optax.GradientTransformation(
            lambda ps: (0.0, jax.random.key(0)), lambda u, state, ps: (u, (state[0] + 1.0, state[1]))
        ),
    )
    tree = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    result = lux.minimize(loss, tree, method=transform, max_steps=100)
    np.testing.assert_allclose(result.params["a"], 1.0, atol=1e-6)
    np.testing.assert_array_equal(result.params["b"], 0.0)


@pytest.mark.parametrize("method", ["BFGS", "Newton-CG", "trust-exact", optx.BFGS(1e-9, 1e-9)], ids=str)
def test_quadratic_with_its_exact_solution(method):
    data = (jnp.array(MATRIX), jnp.array(TARGET))
    result = lux.minimize(quadratic, jnp.zeros(3), method=method, args=data, max_steps=100)
    np.testing.assert_allclose(result.params, TARGET, atol=1e-4)
    assert result.success and result.value == pytest.approx(1.0, abs=1e-8)
    assert isinstance(result.params, jax.Array) and result.params.shape == (3,)


def test_a_neural_network(key, method):
    model = lux.Chain(lux.Dense(1, 8, jnp.tanh), lux.Dense(8, 1))
    ps, st = lux.setup(key, model)
    x = jnp.linspace(-1, 1, 20, dtype=ps.dtype)[:, None]

    def loss(ps, data):
        return jnp.mean((model(data[0], ps, st)[0] - data[1]) ** 2)

    result = lux.minimize(loss, ps, method=method, args=(x, jnp.sin(3 * x)), max_steps=200)
    assert result.value < 0.05 < float(loss(ps, (x, jnp.sin(3 * x))))
    assert result.params.layout is ps.layout and result.params.dtype == ps.dtype


def test_parameters_come_back_in_kind(method):
    def loss(tree):
        return jnp.sum((tree["b"] - 1) ** 2) + (tree["a"][0] + 2) ** 2

    seen = []
    tree = {"b": jnp.zeros((2, 2)), "a": [jnp.array(0.0)]}
    result = lux.minimize(loss, tree, method=method, max_steps=200, callback=lambda step, ps, value: seen.append(ps))
    assert jax.tree.structure(result.params) == jax.tree.structure(tree) == jax.tree.structure(seen[-1])
    np.testing.assert_allclose(result.params["b"], np.ones((2, 2)), atol=0.05)
    np.testing.assert_allclose(result.params["a"][0], -2.0, atol=0.05)


@pytest.mark.exhaustive
def test_leaves_of_two_dtypes_come_back_in_their_own(method):
    def loss(tree):
        assert tree["a"].dtype == "float32"
        return jnp.sum((tree["a"].astype("float64") - 1) ** 2) + jnp.sum((tree["b"] + 1) ** 2)

    result = lux.minimize(loss, {"a": jnp.zeros(2, "float32"), "b": jnp.zeros(1)}, method=method, max_steps=300)
    assert result.params["a"].dtype == "float32" and result.params["b"].dtype == "float64"
    assert result.value < 1e-3


def test_without_64_bit(method):
    with jax.enable_x64(False):
        result = lux.minimize(rosenbrock, lux.ComponentVector(x=-1.2, y=1.0), method=method, max_steps=1000)
        assert result.success and result.value < 1e-2 and result.params.dtype == "float32"


# --- regions where the loss is not finite -------------------------------------------------------------------------


def log_wall(p):
    """log of a negative number where x < 0; the minimum is at x = 2."""
    return jnp.sum(p - 2 * jnp.log(p))


def cut_valley(p):
    """Rosenbrock's valley, NaN on one side."""
    value = (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
    return jnp.where(p[1] - p[0] ** 2 < -1.5, jnp.nan, value)


def ball(p):
    """The square root of a negative number, with infinite slope, outside a ball; the minimum is -2 sqrt(10)."""
    return -jnp.sqrt(4.0 - jnp.sum(p**2)) + 3 * p[0]


def overflow(p):
    """inf for p[0] > 6.6."""
    return jnp.exp(jnp.exp(p[0])) - 50 * p[0] + p[1] ** 2


HARD = {
    "log_wall": (log_wall, [0.01, 30.0, 3.0], 6 - 6 * np.log(2)),
    "cut_valley": (cut_valley, [-1.2, 1.0], 0.0),
    "ball": (ball, [1.0, 1.0], -2 * np.sqrt(10)),
    "overflow": (overflow, [-3.0, 10.0], -35.0795886),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(
    "method",
    ["L-BFGS-B", "BFGS", "CG", "TNC", "SLSQP", "Newton-CG", "trust-constr", "Nelder-Mead", optx.BFGS(1e-6, 1e-6)],
    ids=lambda method: method if isinstance(method, str) else "optimistix",
)
def test_hard_starts(name, method):
    loss, x, least = HARD[name]
    result = lux.minimize(loss, jnp.array(x), method=method, max_steps=500)
    assert result.success, result.message
    assert result.value == pytest.approx(least, abs=1e-4)
    assert np.isfinite(result.history).all()


@pytest.mark.parametrize("name", ["log_wall", "ball"])
@pytest.mark.parametrize("rate", [0.1, 5.0])
def test_optax_shortens_steps_to_where_the_loss_is_not_finite(name, rate):
    loss, x, least = HARD[name]
    met = rate == 5.0 or name == "ball"
    result = lux.minimize(loss, jnp.array(x), method=optax.adam(rate), max_steps=600)
    assert result.value == pytest.approx(least, abs=1e-2)
    assert ("steps were shortened" in result.message) == met
    assert np.isfinite(result.history).all() and jnp.isfinite(result.params).all()


def test_what_is_not_finite_around_a_loss_is_named():
    data = jnp.array([1.0, jnp.nan, 2.0])
    dtype = jnp.float64  # has a dtype, and is no array

    def loss(p):
        return jnp.sum((p - data.astype(dtype)) ** 2)

    result = lux.minimize(loss, jnp.zeros(3), method="BFGS")
    assert not result.success and "`data` holds 1 of 3 elements that are NaN or inf" in result.message
    assert np.isnan(result.value)


def test_optax_gives_up_where_no_step_is_finite():
    def loss(p):
        return jnp.where(p[0] >= 1, p[0], jnp.nan)  # the start is the last finite point

    result = lux.minimize(loss, jnp.array([1.0]), method=optax.sgd(1.0), max_steps=1000)
    assert not result.success and "clip the gradient" in result.message
    assert result.steps < 100 and result.params[0] == 1.0 and result.value == 1.0


def test_gradient_descent_into_nan_is_a_failure():
    result = lux.minimize(
        cut_valley, jnp.array([-1.2, 1.0]), method=optx.GradientDescent(0.1, 1e-6, 1e-6), max_steps=50
    )
    assert not result.success and "not finite" in result.message
    assert result.value == pytest.approx(24.2) and np.allclose(result.params, [-1.2, 1.0])


def test_scipy_restarts_once_from_the_best_point(monkeypatch):
    starts = []

    def gives_up(function, x, **arguments):
        starts.append(np.array(x))
        if len(starts) == 1:
            function(np.array([0.5, 2.0, 2.0]))  # the best point
            value, slope = function(np.array([-1.0, 2.0, 2.0]))  # outside
            higher, _ = function(np.array([-2.0, 2.0, 2.0]))
            assert np.isfinite(value) and value < higher and slope[0] < 0  # a descent leads back
            return scipy.optimize.OptimizeResult(x=x, success=False, message="ABNORMAL")
        return original(function, x, **arguments)

    original = scipy.optimize.minimize
    monkeypatch.setattr(scipy.optimize, "minimize", gives_up)
    result = lux.minimize(log_wall, jnp.array([0.01, 30.0, 3.0]), method="BFGS")
    assert len(starts) == 2 and np.array_equal(starts[1], [0.5, 2.0, 2.0])
    assert result.success and result.value == pytest.approx(6 - 6 * np.log(2))


def test_scipy_is_not_believed_where_the_loss_is_not_finite(monkeypatch):
    def claims(function, x, **arguments):
        function(np.array([-1.0, 2.0, 2.0]))
        return scipy.optimize.OptimizeResult(x=np.array([-1.0, 2.0, 2.0]), success=True, message="converged")

    monkeypatch.setattr(scipy.optimize, "minimize", claims)
    result = lux.minimize(log_wall, jnp.array([0.01, 30.0, 3.0]), method="BFGS")
    assert not result.success and np.array_equal(result.params, [0.01, 30.0, 3.0])


def test_scipy_is_not_believed_where_the_gradient_is_large(monkeypatch):
    def claims(function, x, **arguments):
        return scipy.optimize.OptimizeResult(x=x, success=True, message="converged")

    with monkeypatch.context() as patch:
        patch.setattr(scipy.optimize, "minimize", claims)
        at_the_start = lux.minimize(log_wall, jnp.array([1.0, 2.0, 2.0]), method="BFGS")
        at_the_minimum = lux.minimize(log_wall, jnp.array([2.0, 2.0, 2.0]), method="BFGS")
        on_a_bound = lux.minimize(log_wall, jnp.array([1.0, 2.0, 2.0]), method="L-BFGS-B", bounds=(None, 1.0))
    assert not at_the_start.success and "the gradient, 0.4 relative to the loss, is not small" in at_the_start.message
    assert at_the_minimum.success and on_a_bound.success
    coarse = lux.minimize(lambda p: jnp.sum(p**4) + jnp.sum(p), jnp.ones(2), method="CG", tol=0.5)
    assert coarse.success and abs(4 * coarse.params[0] ** 3 + 1) > 0.01  # as coarse as asked for


def steep(x):
    return 1e12 * jnp.sum((x - 3) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "x", "method"),
    [
        (steep, np.zeros(2), "COBYLA"),
        (valley, np.array([-1.2, 1.0]), optx.NelderMead(1e-2, 1e-2)),
        (lambda x: 1e-9 * steep(x.astype(float)), np.zeros(2, "float16"), optx.NelderMead(1e-1, 1e-1)),
        (steep, np.zeros(2), optx.NelderMead(1e-1, 1e-1)),
        (steep, np.zeros(2), optx.BestSoFarMinimiser(optx.NelderMead(1e-1, 1e-1))),
        (valley, np.array([-1.2, 1.0]), optx.GradientDescent(1e-6, 1e-3, 1e-3)),
    ],
)
def test_no_method_is_believed_where_the_loss_goes_on_to_fall(loss, x, method):
    result = lux.minimize(loss, jnp.array(x), method=method, max_steps=3000)
    assert not result.success
    assert "is not small: start again" in result.message or "lowers the loss by" in result.message


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["Nelder-Mead", "Powell", "COBYLA", "COBYQA"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_methods_of_values_are_believed_at_a_minimum(method, dtype):
    def loss(x):
        return jnp.sum(jnp.abs(x - 1) ** 1.5)  # with a kink in its slope

    result = lux.minimize(loss, jnp.zeros(2, dtype), method=method)
    assert result.success, result.message
    np.testing.assert_allclose(np.asarray(result.params, float), 1.0, atol=0.02)
    assert result.params.dtype == dtype


def test_a_barrier_slopes_back_to_the_best_point():
    best, gradient = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    near, slope = barrier(best + np.array([0.0, 1.0]), best, 10.0, gradient)
    far, _ = barrier(best + np.array([0.0, 2.0]), best, 10.0, gradient)
    np.testing.assert_allclose([near, far], [26.0, 31.0])
    np.testing.assert_allclose(slope, [0.0, 5.0])
    assert np.isfinite(barrier(best, best, 1e308, gradient)[0])


def test_a_hessian_that_is_not_finite_is_a_failure():
    def loss(p):
        return jnp.sum(jnp.abs(p) ** 1.5)  # the second derivative at zero is infinite

    result = lux.minimize(loss, jnp.array([0.0, 1.0]), method="trust-exact")
    assert not result.success and "Hessian is not finite" in result.message


def infinite_slope(p):
    return jnp.sum(jnp.sqrt(jnp.abs(p)))  # a gradient of NaN at zero


@pytest.mark.parametrize("loss", [lambda p: jnp.log(p[0]), infinite_slope], ids=["value", "gradient"])
@pytest.mark.parametrize("x", [-1.0, 0.0])
def test_a_start_that_is_not_finite_is_a_failure(loss, x, method):
    if loss is infinite_slope and x == -1.0:
        x = 0.0
    result = lux.minimize(loss, jnp.array([x]), method=method, max_steps=50)
    assert not result.success and result.params[0] == x
    assert "not finite" in result.message or "max_steps" in result.message
    if "at the start" in result.message:
        np.testing.assert_array_equal([result.value, result.history[0]], float(loss(jnp.array([x]))))


def test_divergence_is_no_success():
    def loss(p):
        return jnp.sum(p**4)

    result = lux.minimize(loss, jnp.array([3.0]), method=optax.sgd(0.5), max_steps=3)
    assert not result.success and "none of 3 steps improved" in result.message and result.params[0] == 3.0


def test_a_start_at_the_minimum_is_a_success(method):
    result = lux.minimize(lambda p: jnp.sum(p**2), jnp.zeros(2), method=method, max_steps=20)
    assert result.success and result.value == 0.0


# --- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*BOUNDED, "adam"])
@pytest.mark.parametrize("at", [(-1.2, 1.0), (0.0, 0.0)])
def test_bounds(name, at, dtype):
    ps = lux.ComponentVector(x=at[0], y=at[1]).astype(dtype)
    lower, upper = ps.zeros_like() - 0.5, ps.replace(x=0.5, y=0.1)
    method = optax.adam(0.05) if name == "adam" else name
    seen = []
    result = lux.minimize(
        rosenbrock, ps, method=method, bounds=(lower, upper), callback=lambda step, ps, value: seen.append(ps)
    )
    assert result.value == pytest.approx(0.456674507, abs=2e-3) and result.success
    assert bool((result.params >= lower).all() and (result.params <= upper).all())
    assert all(bool((p >= lower).all() and (p <= upper).all()) for p in seen)


@pytest.mark.parametrize(
    "bounds",
    [(-0.5, np.array([0.5, 0.1])), scipy.optimize.Bounds([-0.5, -0.5], [0.5, 0.1]), (None, np.array([0.5, 0.1]))],
)
def test_forms_of_bounds(bounds):
    result = lux.minimize(rosenbrock, start(), method="L-BFGS-B", bounds=bounds)
    np.testing.assert_allclose(result.params, [0.33176905, 0.1], atol=1e-4)


@pytest.mark.parametrize(
    ("x", "bounds"),
    [([-1.2, 1.0], (-2.0, 0.5)), ([-1.2, 1.0], (-1.2, 0.5)), ([0.0, 0.0], (0.0, 0.5)), ([0.5, 0.5], (-2.0, 0.5))],
)
def test_nelder_mead_is_no_worse_than_scipys(x, bounds):
    result = lux.minimize(valley, jnp.array(x), method="Nelder-Mead", bounds=bounds)
    inside = np.clip(x, *bounds)
    alone = scipy.optimize.minimize(lambda x: float(valley(x)), inside, method="Nelder-Mead", bounds=[bounds] * 2)
    assert result.success and result.value == pytest.approx(0.25, abs=1e-4) and result.value <= alone.fun + 1e-4


def test_optax_converges_on_a_bound():
    result = lux.minimize(lambda p: jnp.sum(p), jnp.ones(2), method=optax.sgd(0.1), bounds=(0.0, None), tol=1e-8)
    assert result.success and result.steps < 20 and np.allclose(result.params, 0.0, atol=1e-8)


# --- how a run ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["L-BFGS-B", "TNC", "CG", "Nelder-Mead", optx.BFGS(1e-9, 1e-9)], ids=str)
def test_max_steps(method):
    result = lux.minimize(rosenbrock, start(), method=method, max_steps=3)
    assert not result.success and result.message == "max_steps=3 reached before convergence"
    assert result.steps == 3 and result.history.shape == (4,)
    assert result.value <= result.history.min() < 24.2


def test_optax_makes_all_its_steps():
    result = lux.minimize(rosenbrock, start(), method=optax.adam(0.1), max_steps=7)
    assert result.success and result.steps == 7 and result.evaluations == 8
    result = lux.minimize(rosenbrock, start(), method=optax.adam(0.1), max_steps=7, tol=1e-9)
    assert not result.success and result.message == "max_steps=7 reached before convergence"


def test_the_best_parameters_are_kept():
    def loss(p):
        return jnp.sum(jnp.abs(p))  # a fixed step jumps to and fro

    best = lux.minimize(loss, jnp.array([1.05]), method=optax.sgd(0.1), max_steps=100)
    last = lux.minimize(loss, jnp.array([1.05]), method=optax.sgd(0.1), max_steps=99 + 2, keep_best=False)
    assert best.value == pytest.approx(best.history.min()) and best.value <= last.value
    assert last.value == last.history[-1]
    assert loss(best.params) == best.value and loss(last.params) == last.value


@pytest.mark.parametrize("method", ["L-BFGS-B", "TNC", "Nelder-Mead", "COBYLA", optx.BFGS(1e-9, 1e-9), optax.adam(0.1)])
def test_ctrl_c_returns_the_best(method):
    def interrupt(step, ps, value):
        if step >= 5:
            raise KeyboardInterrupt

    result = lux.minimize(rosenbrock, start(), method=method, callback=interrupt, max_steps=10_000)
    assert not result.success and result.message.startswith("interrupted after")
    assert result.value < 24.2 and np.isclose(rosenbrock(result.params), result.value)


def test_a_real_ctrl_c_is_prompt():
    begun = threading.Event()

    def loss(p):
        return jnp.sum(jnp.cos(p)) + 2 * jnp.sum(p**2)

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    options = {"max_steps": 10**7, "callback": lambda *_: begun.set()}
    result = lux.minimize(loss, jnp.ones(10), method=optax.sgd(1e-9), **options)
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert result.message.startswith("interrupted") and result.steps < 10**7


def test_the_callback_sees_matching_values_and_stops(method):
    seen = []

    def callback(step, ps, value):
        seen.append((step, float(rosenbrock(ps)), value))
        return step >= 10

    result = lux.minimize(rosenbrock, start(), method=method, callback=callback, max_steps=10_000)
    assert result.success and "stopped by the callback" in result.message
    steps, expected, values = zip(*seen, strict=True)
    assert list(steps) == sorted(set(steps)) and steps[-1] == result.steps >= 10
    np.testing.assert_allclose(values, expected, rtol=1e-10)


@pytest.mark.parametrize("yes", [True, np.True_, np.array(True), np.array([True]), jnp.array(True)], ids=repr)
def test_truth_values_of_callbacks(yes, method):
    result = lux.minimize(rosenbrock, start(), method=method, callback=lambda *_: yes, max_steps=20)
    assert result.success and "stopped by the callback" in result.message
    no = type(yes)(False) if isinstance(yes, bool | np.bool_) else yes & False
    for go_on in (no, None):
        result = lux.minimize(rosenbrock, start(), method=method, callback=lambda *_, go_on=go_on: go_on, max_steps=20)
        assert "stopped" not in result.message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array([True, False]), r"must return True, to stop, .* got an array of shape \(2,\)"),
        (jnp.zeros(3), r"got an array of shape \(3,\)"),
        (12, "got a int"),
        ("stop", "got a str"),
    ],
)
def test_what_no_callback_answers(answer, message, method):
    with pytest.raises(TypeError, match=message):
        lux.minimize(rosenbrock, start(), method=method, callback=lambda *_: answer, max_steps=20)


def test_multi_steps_of_optax():
    """Steps of the mean of three gradients."""
    transform = optax.MultiSteps(optax.sgd(1e-3), every_k_schedule=3)
    result = lux.minimize(rosenbrock, start(), method=transform, max_steps=30, keep_best=False)
    plain = lux.minimize(rosenbrock, start(), method=optax.sgd(1e-3), max_steps=10, keep_best=False)
    np.testing.assert_allclose(result.params, plain.params, rtol=1e-6)
    np.testing.assert_allclose(result.history[::3], plain.history, rtol=1e-6)


def test_a_log_gets_few_lines(capsys, monkeypatch):
    lux.minimize(rosenbrock, start(), method="Nelder-Mead", max_steps=300, progress=True)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "\r" not in line and line.startswith("minimize: step ") and "value=" in line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    lux.minimize(rosenbrock, start(), method="Nelder-Mead", max_steps=300, progress=True)
    assert "\r" in capsys.readouterr().err  # a bar


def test_progress_shows_the_value(capsys, method):
    lux.minimize(rosenbrock, start(), method=method, max_steps=10, progress=True)
    assert "value=" in capsys.readouterr().err
    lux.minimize(rosenbrock, start(), method=method, max_steps=10)
    assert capsys.readouterr().err == ""


def test_aux_belongs_to_the_returned_parameters(method):
    def loss(ps):
        return rosenbrock(ps), {"point": ps.data, "count": jnp.array(3)}

    result = lux.minimize(loss, start(), method=method, has_aux=True, max_steps=50)
    np.testing.assert_array_equal(result.aux["point"], result.params.data)
    assert result.aux["count"] == 3


def test_evaluations_are_counted():
    count = [0]

    def loss(p):
        jax.debug.callback(lambda: count.__setitem__(0, count[0] + 1))
        return jnp.sum((p - 1) ** 4)

    for method in ("L-BFGS-B", "Powell", optax.adam(0.1), optx.BFGS(1e-6, 1e-6)):
        count[0] = 0
        result = lux.minimize(loss, jnp.zeros(2), method=method, max_steps=30)
        jax.effects_barrier()
        assert result.evaluations == count[0]


# --- compilation --------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "make",
    [
        lambda: "L-BFGS-B",
        lambda: "Nelder-Mead",
        lambda: optx.BFGS(1e-6, 1e-6),
        lambda: optx.LBFGS(1e-6, 1e-6),
        lambda: optax.adam(0.1),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 100))),
        lambda: optax.lbfgs(),
    ],
)
def test_the_same_loss_is_traced_once(make):
    traces = []

    def loss(ps, shift):
        traces.append(1)
        return rosenbrock(ps) + shift

    lux.minimize(loss, start(), method=make(), args=jnp.array(0.0), max_steps=5)
    first = len(traces)
    assert first <= 3  # one program; a line search inside it holds the loss more than once
    lux.minimize(loss, start() + 0.1, method=make(), args=jnp.array(1.0), max_steps=17)
    assert len(traces) == first


def test_other_options_are_another_program():
    results = [lux.minimize(rosenbrock, start(), method=optax.sgd(rate), max_steps=5).value for rate in (1e-4, 1e-3)]
    assert results[0] != results[1]
    schedules = [optax.adam(lambda step, rate=rate: rate) for rate in (1e-2, 1e-1)]
    results = [lux.minimize(rosenbrock, start(), method=method, max_steps=5).value for method in schedules]
    assert results[0] != results[1]


def test_the_docstring_names_every_scipy_method():
    documented = inspect.getdoc(lux.minimize)
    assert all(f'"{name}"' in documented for name in METHODS)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda p: p, ValueError, r"one number, got shape \(2,\)"),
        (lambda p: jnp.sum(p)[None], ValueError, r"got shape \(1,\)"),
        (lambda p: jnp.argmax(p), TypeError, r"floating-point number, got int"),
        (lambda p: (jnp.sum(p), {}), TypeError, "pass has_aux=True"),
        (lambda p: None, TypeError, "got a NoneType"),
        (3.0, TypeError, "must be a function"),
    ],
)
def test_what_is_no_loss(loss, error, message, method):
    with pytest.raises(error, match=message):
        lux.minimize(loss, jnp.ones(2), method=method)


def test_has_aux_without_aux(method):
    with pytest.raises(TypeError, match=r"must return \(value, aux\)"):
        lux.minimize(lambda p: jnp.sum(p), jnp.ones(2), method=method, has_aux=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(method="LBFGS"), ValueError, "it has Nelder-Mead, .*L-BFGS-B.* did you mean 'L-BFGS-B'?"),
        (dict(method="nelder_mead"), ValueError, "did you mean 'Nelder-Mead'?"),
        (dict(method="SSBroydn"), ValueError, "besides there are SSBFGS, .*shgo.* did you mean 'SSBroyden'?"),
        (dict(method="Adam"), ValueError, "SciPy has no method 'Adam'; it has Nelder-Mead"),
        (dict(method="Adam"), ValueError, r"an object, method=optax\.adam\(\.\.\.\)"),
        (dict(method=optax.adam), TypeError, "method must be the name of a SciPy method"),
        (dict(method="BFGS", bounds=(0, 1)), ValueError, "BFGS takes no bounds; these methods do: L-BFGS-B"),
        (dict(method=optx.BFGS(1e-6, 1e-6), bounds=(0, 1)), ValueError, "take no bounds: use 'L-BFGS-B'"),
        (dict(method=optx.BFGS(1e-6, 1e-6), tol=1e-3), ValueError, "its own tolerances"),
        (dict(method=optax.adam(0.1), options={"maxiter": 3}), ValueError, "has no `options`"),
        (dict(method="L-BFGS-B", bounds=(1.0, np.array([2.0, 0.0]))), ValueError, r"the lower bound of `y`, 1, .* 0"),
        (dict(method="L-BFGS-B", bounds=[(0, 1), (0, 1)]), TypeError, r"a pair \(lower, upper\)"),
        (dict(method="L-BFGS-B", bounds=((0, 1), (0, 1))), TypeError, "not one pair for each parameter"),
        (dict(method="L-BFGS-B", bounds=(np.zeros(3), None)), ValueError, r"has shape \(2,\), got shape \(3,\)"),
        (dict(method="L-BFGS-B", max_steps=0), ValueError, "at least 1, got 0"),
        (dict(method="L-BFGS-B", max_steps="10"), TypeError, "max_steps: expected a whole number, got '10'"),
        (dict(method="L-BFGS-B", max_steps=1.5), TypeError, "max_steps: expected a whole number, got 1.5"),
        (dict(method="L-BFGS-B", tol="small"), TypeError, "tol: expected a number, got 'small'"),
        (dict(method=optax.sgd(0.1), tol=-1.0), ValueError, "tol: expected a number of at least 0, got -1"),
        (dict(method="L-BFGS-B", tol=np.nan), ValueError, "tol: expected a number, got nan"),
        (dict(method="L-BFGS-B", options="fast"), TypeError, "`options` is a dict, got a str"),
        (dict(method="L-BFGS-B", bounds=("low", 1.0)), TypeError, "a bound is a number, .* got 'low'"),
        (dict(method="L-BFGS-B", trainable=1), TypeError, "`trainable` is a pattern .* got 1"),
        (dict(method="L-BFGS-B", progress="yes"), TypeError, "progress: expected True or False, got 'yes'"),
        (dict(method="L-BFGS-B", keep_best="no"), TypeError, "keep_best: expected True or False, got 'no'"),
        (
            dict(method="L-BFGS-B", callback=1),
            TypeError,
            r"the callback is a function of \(step, ps, value\), got a int",
        ),
        (dict(method="L-BFGS-B", state=lux.Dense(2, 2)), TypeError, "`state` is that of a layer, .* got a Dense"),
        (dict(method="L-BFGS-B", args=1.0), TypeError, r"called as loss\(ps, args\), got a function of \(p"),
        (dict(method="L-BFGS-B", state={}, args=1.0), TypeError, r"called as loss\(ps, state, args\), got"),
        (dict(method="L-BFGS-B", callback=lambda p: None), TypeError, r"called as callback\(step, ps, value\), got"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lux.minimize(rosenbrock, start(), **arguments)


@pytest.mark.parametrize("every", [1, 7, 100])
def test_the_callback_comes_after_every_so_many_steps(method, every):
    steps, values = [], []

    def callback(step, ps, value):
        steps.append(step)
        values.append(value)

    result = lux.minimize(
        rosenbrock, start(), method=method, max_steps=30, callback=callback, callback_every=every, keep_best=False
    )
    assert steps == [i for i in range(steps[0] if steps else 1, result.steps + 1) if i % every == 0]
    assert len(steps) >= result.steps // every
    assert all(np.isclose(value, result.history, rtol=1e-6).any() for value in values)
    with pytest.raises(ValueError, match="callback_every: expected a whole number of at least 1, got 0"):
        lux.minimize(rosenbrock, start(), method=method, callback=callback, callback_every=0)


def test_errors_inside_of_a_loss_stay_as_they_are():
    with pytest.raises(TypeError, match="unsupported operand"):
        lux.minimize(lambda p: p + None, jnp.ones(2), method="BFGS")


def test_a_whole_number_of_steps_may_be_a_float():
    assert lux.minimize(rosenbrock, start(), method=optax.sgd(1e-3), max_steps=1e1).steps == 10


def test_parameters_that_are_refused(method):
    with pytest.raises(TypeError, match="`n` has dtype int"):
        lux.minimize(lambda p: 0.0, {"n": jnp.arange(3)}, method=method)
    with pytest.raises(TypeError, match="real and imaginary parts"):
        lux.minimize(lambda p: 0.0, jnp.ones(2, complex), method=method)
    with pytest.raises(TypeError, match="outside of"):
        jax.jit(lambda p: lux.minimize(jnp.sum, p, method=method).params)(jnp.ones(2))
    with pytest.raises(ValueError, match="no parameters"):
        lux.minimize(lambda p: 0.0, {}, method=method)
    with pytest.raises(ValueError, match="got a batch"):
        lux.minimize(rosenbrock, lux.ComponentVector(jnp.ones((3, 2)), start().layout), method=method)


def test_the_result_prints(method):
    text = repr(lux.minimize(rosenbrock, start(), method=method, max_steps=2))
    assert text.startswith("MinimizeResult(value=") and "success=" in text and "ComponentVector(x=" in text
