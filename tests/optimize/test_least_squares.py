"""least_squares: one call over our Levenberg-Marquardt, optimistix's solvers and SciPy's."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize

import lux_sciml as lux
from lux_sciml.optimize import programs

T = np.linspace(0.0, 3.0, 30)
RNG = np.random.default_rng(0)
Y = 2.0 * np.exp(-1.3 * T) + 0.5 + 0.01 * RNG.standard_normal(30)
SAMPLES = {"t": T, "y": Y}


def start(dtype="float64"):
    return lux.ComponentVector(curve={"amplitude": 1.0, "rate": 0.5}, offset=0.0).astype(dtype)


def misfit(p, sample):
    return p.curve.amplitude * jnp.exp(-p.curve.rate * sample["t"]) + p.offset - sample["y"]


def as_a_whole(p):
    return misfit(p, {"t": jnp.asarray(T), "y": jnp.asarray(Y)})


def plain(x):
    return x[0] * np.exp(-x[1] * T) + x[2] - Y


EXACT = dict(jac="3-point", xtol=1e-14, ftol=1e-14, gtol=1e-14)
REFERENCE = scipy.optimize.least_squares(plain, [1, 0.5, 0], **EXACT)

METHODS = {
    "lm": "lm",
    "lm, cg": lux.LevenbergMarquardt(1e-12, 1e-12, solver="cg"),
    "trf": "trf",
    "dogbox": "dogbox",
    "minpack": "minpack",
    "optimistix LM": optx.LevenbergMarquardt(1e-9, 1e-9),
    "Dogleg": optx.Dogleg(1e-9, 1e-9),
}


# --- it finds minima ----------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
def test_methods_find_scipys_minimum(name):
    for residual, samples in ((misfit, SAMPLES), (as_a_whole, None)):
        result = lux.least_squares(residual, start(), samples=samples, method=METHODS[name])
        assert result.success, result.message
        assert isinstance(result.params, lux.ComponentVector)
        np.testing.assert_allclose(result.params.data, REFERENCE.x, rtol=1e-5)
        np.testing.assert_allclose(result.value, REFERENCE.cost, rtol=1e-9)
        assert result.history.shape == (result.steps + 1,)
        np.testing.assert_allclose(result.history[0], 0.5 * np.sum(plain([1, 0.5, 0]) ** 2), rtol=1e-12)
        np.testing.assert_allclose(result.residuals, as_a_whole(result.params), atol=1e-12)


def test_single_precision_and_trees():
    result = lux.least_squares(misfit, start("float32"), samples={"t": np.float32(T), "y": np.float32(Y)})
    assert result.success and result.params.dtype == "float32"
    np.testing.assert_allclose(result.params.data, REFERENCE.x, rtol=1e-3)
    half = lux.least_squares(lambda p: p["a"] - jnp.ones(3, "bfloat16"), {"a": jnp.zeros(3, "bfloat16")})
    assert half.params["a"].dtype == "bfloat16" and half.params["a"].tolist() == [1, 1, 1]
    array = lux.least_squares(lambda x: x * jnp.array([1.0, 2.0]) - 1, jnp.zeros(2))
    np.testing.assert_allclose(array.params, [1.0, 0.5], rtol=1e-9)
    with_args = lux.least_squares(lambda x, a: x - a, jnp.zeros(2), args=3.0)
    np.testing.assert_allclose(with_args.params, 3.0, rtol=1e-9)


def test_groups_weights_and_several_residuals_a_sample():
    """The sum of squares is that of all groups, each residual times its weight."""
    x, z = np.linspace(0, 1, 5), np.linspace(0, 2, 4)
    first = lambda p, x: p.a * x - 1.0  # noqa: E731
    second = lambda p, z: jnp.stack([p.b - z, p.a * p.b - z**2])  # noqa: E731
    weights = {"first": np.linspace(1, 2, 5), "second": np.linspace(1, 3, 8).reshape(4, 2)}
    ps = lux.ComponentVector(a=1.0, b=1.0)
    result = lux.least_squares(
        {"first": first, "second": second}, ps, samples={"second": z, "first": x}, weights=weights
    )

    def whole(v):
        two = np.stack([v[1] - z, v[0] * v[1] - z**2], 1)
        return np.concatenate([weights["first"] * (v[0] * x - 1), (weights["second"] * two).ravel()])

    same = scipy.optimize.least_squares(whole, [1.0, 1.0], **EXACT)
    np.testing.assert_allclose(result.params.data, same.x, rtol=1e-7)
    np.testing.assert_allclose(result.value, same.cost, rtol=1e-12)
    assert result.residuals["second"].shape == (4, 2) and list(result.residuals) == ["first", "second"]
    np.testing.assert_allclose(result.jacobian.data, same.jac, atol=1e-5)
    one = lux.least_squares({"first": first, "second": second}, ps, samples={"first": x, "second": z}, weights=2.0)
    plain_one = lux.least_squares({"first": first, "second": second}, ps, samples={"first": x, "second": z})
    np.testing.assert_allclose(one.value, 4 * plain_one.value, rtol=1e-10)


def test_more_parameters_than_residuals():
    rng = np.random.default_rng(1)
    matrix = jnp.asarray(rng.standard_normal((5, 40)))
    for method in ("lm", lux.LevenbergMarquardt(1e-10, 1e-12, solver="dual")):
        result = lux.least_squares(lambda x: jnp.tanh(matrix @ x) - 0.3, jnp.zeros(40), method=method)
        assert result.success and result.value < 1e-20
        assert result.fitted.problem.jacobian == "reverse"  # five passes, not forty


@pytest.mark.parametrize("method", ["lm", "trf", "dogbox"])
def test_bounds(method):
    """Rosenbrock's minimum lies outside: on the bound the solution is known."""
    seen = []

    def residual(p):
        return jnp.stack([10 * (p.y - p.x**2), 1 - p.x])

    bounds = (lux.ComponentVector(x=-0.5, y=-jnp.inf), lux.ComponentVector(x=0.5, y=jnp.inf))
    result = lux.least_squares(
        residual,
        lux.ComponentVector(x=-0.4, y=2.0),
        method=method,
        bounds=bounds,
        callback=lambda step, p, value: seen.append(p.x),
    )
    assert result.success, result.message
    np.testing.assert_allclose(result.params.data, [0.5, 0.25], rtol=1e-5)
    assert seen and -0.5 <= min(seen) and max(seen) <= 0.5


def test_the_jacobian_at_the_end_is_of_the_program_of_the_steps(monkeypatch):
    """Those of equations compile for seconds. Rows of a robust loss are scaled otherwise in the steps."""
    weights, wide = np.linspace(1, 2, 30), start().zeros_like() + 5.0
    whole = lux.least_squares(as_a_whole, start(), weights=weights, max_steps=5)
    held = lux.least_squares(misfit, start(), samples=SAMPLES, weights=weights, bounds=(-wide, wide))
    robust = lux.least_squares(as_a_whole, start(), weights=weights, loss="cauchy")
    monkeypatch.setattr(programs, "_compiled", lambda *_: pytest.fail("compiles"))
    for result in (whole, held):
        a, rate, _ = np.asarray(result.params.data)
        rows = np.stack([np.exp(-rate * T), -a * T * np.exp(-rate * T), np.ones(30)], 1)
        np.testing.assert_allclose(result.jacobian.data, weights[:, None] * rows, rtol=1e-12, atol=1e-14)
    with pytest.raises(pytest.fail.Exception, match="compiles"):
        _ = robust.jacobian


@pytest.mark.parametrize("method", ["lm", "trf"])
def test_robust_losses_ignore_outliers(method):
    y = Y.copy()
    y[5] += 10.0
    result = lux.least_squares(misfit, start(), samples={"t": T, "y": y}, method=method, loss="cauchy", loss_scale=0.3)
    robust = dict(loss="cauchy", f_scale=0.3)
    same = scipy.optimize.least_squares(lambda x: x[0] * np.exp(-x[1] * T) + x[2] - y, [1, 0.5, 0], **robust, **EXACT)
    assert result.success
    np.testing.assert_allclose(result.params.data, same.x, rtol=1e-4)
    np.testing.assert_allclose(result.value, same.cost, rtol=1e-8)


def test_trainable_components():
    ps = start().replace(offset=0.5)
    result = lux.least_squares(misfit, ps, samples=SAMPLES, trainable="curve.*")
    assert result.params.offset == 0.5 and result.jacobian.shape == (30, 2)
    same = scipy.optimize.least_squares(lambda x: plain([*x, 0.5]), [1, 0.5], xtol=1e-14, ftol=1e-14)
    np.testing.assert_allclose(result.params.data[:2], same.x, rtol=1e-6)


@pytest.mark.exhaustive
def test_a_solve_inside_takes_the_adjoint_that_the_jacobian_needs():
    decay = lux.NeuralODE(lambda u: -u, ts=jnp.linspace(0.0, 1.0, 5))
    _, st = lux.setup(jax.random.key(0), decay)

    def residual(p):
        return decay(p.u0[None], lux.ComponentVector(), st)[0].ys[:, 0] - 2.0 * jnp.exp(-decay.ts.value)

    for given in ({}, {"jacobian": "reverse"}, {"solver": "cg"}):
        result = lux.least_squares(residual, lux.ComponentVector(u0=1.0), **given)
        np.testing.assert_allclose(result.params.u0, 2.0, rtol=1e-5)
    of_one = lambda p, s: s * residual(p)  # noqa: E731
    result = lux.least_squares(of_one, lux.ComponentVector(u0=1.0), samples=jnp.ones(2), method="trf")
    np.testing.assert_allclose(result.params.u0, 2.0, rtol=1e-5)


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lm", "trf", optx.LevenbergMarquardt(1e-9, 1e-9)])
def test_a_callback_ends_the_run(method):
    calls = []

    def stop(step, ps, value):
        calls.append((step, value))
        return step >= 2

    result = lux.least_squares(misfit, start(), samples=SAMPLES, method=method, callback=stop, callback_every=1)
    assert result.success and "stopped by the callback after 2 steps" in result.message
    assert calls[-1][0] == result.steps == 2


def test_interrupts_return_the_best_point():
    def interrupt(step, ps, value):
        if step == 2:
            timer = threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            timer.join()

    result = lux.least_squares(misfit, start(), samples=SAMPLES, callback=interrupt, callback_every=1)
    assert not result.success and "interrupted after 2 steps" in result.message
    assert result.value == result.history[-1] < result.history[0]


def test_too_few_steps_are_no_success():
    result = lux.least_squares(misfit, start(), samples=SAMPLES, max_steps=1)
    assert not result.success and "max_steps=1 reached" in result.message and result.steps == 1
    assert lux.least_squares(misfit, start(), samples=SAMPLES, method="trf", max_steps=2).steps == 2


def test_a_second_fit_does_not_compile_again():
    def fit(y):
        return lux.least_squares(lambda p, s: misfit(p, {**s, "y": s["y"] + y}), start(), samples=SAMPLES, max_steps=3)

    fit(jnp.array(0.0))
    before = programs._run._cache_size()
    again = fit(jnp.array(1.0))
    assert programs._run._cache_size() == before
    assert again.history[0] != lux.least_squares(misfit, start(), samples=SAMPLES, max_steps=3).history[0]


def test_samples_are_renewed():
    """The fit ends at the minimum of the last samples; only the renewed groups change, and nothing compiles again."""
    x = np.linspace(0.0, 1.0, 8)
    keys, called_with = [], []

    def resample(key, ps):
        keys.append(jax.random.key_data(key).tolist())
        called_with.append(float(ps.a))
        return {"moving": jnp.full(8, len(keys), float)}

    residuals = {"moving": lambda p, s: p.a - s, "fixed": lambda p, s: 0.0 * p.a + 1e-3 * s}
    ps = lux.ComponentVector(a=10.0)
    result = lux.least_squares(
        residuals, ps, samples={"moving": 0 * x, "fixed": x}, resample=resample, resample_every=5, max_steps=17
    )
    assert len(keys) == len({str(key) for key in keys}) >= 3
    np.testing.assert_allclose(result.params.a, len(keys), rtol=1e-6)
    assert result.history.shape == (result.steps + 1,)
    np.testing.assert_allclose(result.residuals["moving"], 0.0, atol=1e-5)

    def broken(key, ps):
        return {"fixed": jnp.where(x > 0.9, jnp.nan, x), "moving": jnp.full(8, 3.0)}  # weakly typed, as literals are

    result = lux.least_squares(
        residuals, ps, samples={"moving": 0 * x, "fixed": x}, resample=broken, resample_every=5, max_steps=17
    )
    assert not result.success and np.isfinite(result.value) and result.history.shape == (result.steps + 1,)
    where = "(the residual of group 'fixed' of sample 7, which itself holds NaN"
    assert f"after step {result.steps} {where}" in result.message


def test_several_starts():
    def valleys(x):
        return jnp.stack([jnp.sin(3 * x[0]), 0.1 * (x[0] - 4.2)])

    result = lux.least_squares(valleys, jnp.zeros(1), starts=[jnp.array([2.0]), jnp.array([4.0])])
    assert len(result.runs) == 3 and result.value == min(run.value for run in result.runs)
    np.testing.assert_allclose(result.params, 4.19, atol=0.02)
    batch = lux.ComponentVector(jnp.array([[1.0, 0.5, 0.0], [3.0, 2.0, 1.0]]), start().layout)
    named = lux.least_squares(misfit, start(), samples=SAMPLES, starts=batch)
    assert len(named.runs) == 3
    np.testing.assert_allclose(named.params.data, REFERENCE.x, rtol=1e-5)


def test_steps_into_nonsense_are_rejected():
    def residual(p):
        return jnp.stack([jnp.log(p.x) + 3.0, p.y - 1.0])

    for method in ("lm", "trf"):
        result = lux.least_squares(residual, lux.ComponentVector(x=30.0, y=0.0), method=method)
        assert result.success, result.message
        np.testing.assert_allclose(result.params.data, [np.exp(-3), 1.0], rtol=1e-6)


def test_weights_go_by_name_and_shape():
    def at_start(residual, ps, weights, samples=None):
        return lux.least_squares(residual, ps, samples=samples, weights=weights, max_steps=1).history[0]

    def named(p):
        return lux.ComponentVector(b=p[:1] - 1.0, a=p - jnp.array([2.0, 4.0]))

    def tree(p):
        return {"b": p[:1] - 1.0, "a": p - jnp.array([2.0, 4.0])}

    ps, expected = jnp.zeros(2), 0.5 * (1 + 20**2 + 400**2)
    for weights in (lux.ComponentVector(b=[1.0], a=[10.0, 100.0]), np.array([1.0, 10.0, 100.0])):
        assert at_start(named, ps, weights) == expected
    assert at_start(tree, ps, {"a": np.array([10.0, 100.0]), "b": 1.0}) == expected
    of_one = lambda p, x: jax.tree.map(lambda r: x * r, tree(p))  # noqa: E731
    of_both = {"b": np.array([1.0, 0.0]), "a": np.array([[10.0, 100.0], [0.0, 1.0]])}
    assert at_start(of_one, ps, of_both, np.array([1.0, 2.0])) == expected + 0.5 * 8**2
    with pytest.raises(ValueError, match="the layouts differ"):
        at_start(named, ps, lux.ComponentVector(a=[10.0, 100.0], b=[1.0]))
    with pytest.raises(ValueError, match=r"weights are a number, an array, or like the residuals, \{'a': f64\[2\]"):
        at_start(tree, ps, {"a": 1.0})
    for weights in (np.ones((3, 2)), np.ones(5)):
        with pytest.raises(ValueError, match=r"have the shape \(2, 3\) of the residuals, got shape"):
            at_start(lambda p: jnp.ones((2, 3)) * p[0], ps, weights)


def test_residuals_are_those_of_the_fit_whatever_the_function_reads_later():
    target = {"y": 1.0}
    result = lux.least_squares(lambda p: {"b": p - target["y"], "a": p - 2.0}, jnp.zeros(()))
    target["y"] = 5.0
    np.testing.assert_allclose([result.residuals["b"], result.residuals["a"]], [0.5, -0.5])


def test_no_evaluation_and_no_end_lies_beyond_a_bound():
    seen, rng = [], np.random.default_rng(0)
    upper = rng.uniform(0.1, 1.0, 50)

    def residual(p):
        jax.debug.callback(lambda p: seen.append(np.asarray(p, np.float32)), p)
        return p + 0.1 * p**3 - 10.0

    for samples in (None, np.ones(1)):
        f = residual if samples is None else lambda p, s: s * residual(p)
        result = lux.least_squares(f, jnp.asarray(rng.uniform(-1.0, 0.0, 50)), samples=samples, bounds=(None, upper))
        assert np.array_equal(result.params, upper) and seen and np.all(np.stack(seen) <= np.float32(upper))
        with pytest.raises(ValueError, match="lies on its bound"):
            result.standard_errors(absolute=True)


def test_starts_of_a_part_keep_the_other_components():
    starts = [start().replace(offset=9.0), start().replace(curve={"amplitude": 3.0, "rate": 1.0}, offset=9.0)]
    fit = lux.least_squares(misfit, start().replace(offset=0.5), samples=SAMPLES, trainable="curve.*", starts=starts)
    same = lux.minimize(
        lambda p: jnp.sum(as_a_whole(p) ** 2) / 2, start().replace(offset=0.5), method=optx.BFGS(1e-9, 1e-9),
        trainable="curve.*", starts=starts,
    )  # fmt: skip
    for result in (fit, same):
        assert [run.params.offset for run in result.runs] == [0.5] * 3
        np.testing.assert_allclose([run.value for run in result.runs], fit.value, rtol=1e-6)


# --- wrong calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lm", "trf", optx.LevenbergMarquardt(1e-9, 1e-9)])
def test_of_a_start_whose_jacobian_is_not_finite_the_value_is_told(method):
    result = lux.least_squares(lambda p: jnp.sqrt(jnp.abs(p)) + 1.0, jnp.zeros(2), method=method)
    assert not result.success and "or its gradient is not finite at the start" in result.message
    assert result.value == result.history[0] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lm", "trf", optx.LevenbergMarquardt(1e-9, 1e-9)])
def test_a_sample_that_is_not_a_number_is_named(method):
    y = Y.copy()
    y[7] = np.nan
    samples = {"inner": {"t": T, "y": Y}, "edge": {"t": T, "y": y}}
    result = lux.least_squares({"inner": misfit, "edge": misfit}, start(), samples=samples, method=method)
    assert not result.success and "not finite at the start" in result.message
    assert "the residual of group 'edge' of sample 7, which itself holds NaN or inf" in result.message
    whole = lux.least_squares(lambda p: as_a_whole(p).at[3].set(jnp.nan), start(), method=method)
    assert "1 of 30 residuals are not finite, the first of them at index 3" in whole.message
    assert np.isnan([result.value, *result.history, whole.value, *whole.history]).all()


def linear(p, x):
    return p[0] - x


WRONG = {
    "no residual": (lambda: lux.least_squares(3.0, jnp.zeros(2)), TypeError, "must be a function"),
    "groups": (
        lambda: lux.least_squares({"a": linear}, jnp.zeros(2), samples={"b": T}),
        ValueError,
        "samples are a dict with the groups of the residuals, 'a', got 'b'",
    ),
    "groups without samples": (
        lambda: lux.least_squares({"a": linear}, jnp.zeros(2)),
        TypeError,
        "pass `samples=` with the same keys",
    ),
    "weights by group": (
        lambda: lux.least_squares({"a": linear}, jnp.zeros(2), samples={"a": T}, weights={"c": 1.0}),
        ValueError,
        "weights are a dict with the groups",
    ),
    "weights": (
        lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, weights=np.ones(7)),
        ValueError,
        r"weights are a number or have \(30,\), one for each sample",
    ),
    "negative weights": (
        lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, weights=-T),
        ValueError,
        "not negative",
    ),
    "a state": (
        lambda: lux.least_squares(lambda p: (p, lux.setup(jax.random.key(0), lux.BatchNorm(2))[1]), jnp.zeros(2)),
        TypeError,
        r"returned a state beside its numbers.*y, _ = model\(x, ps, st\)",
    ),
    "an empty state": (lambda: lux.least_squares(lambda p: (p, {}), jnp.zeros(2)), TypeError, "a state beside"),
    "a seed": (
        lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, resample=lambda key, ps: T, key=0),
        TypeError,
        r"expected a random key, jax.random.key\(seed\)",
    ),
    "integers": (
        lambda: lux.least_squares(lambda p: jnp.arange(3), jnp.zeros(2)),
        TypeError,
        "must return real floating-point numbers",
    ),
    "nothing": (lambda: lux.least_squares(lambda p: p[:0], jnp.zeros(2)), ValueError, "returned no numbers"),
    "no samples": (lambda: lux.least_squares(linear, jnp.zeros(2), samples=T[:0]), ValueError, "no samples"),
    "lengths": (
        lambda: lux.least_squares(linear, jnp.zeros(2), samples=(T, T[:3])),
        ValueError,
        "one leading axis, of one length",
    ),
    "signature": (
        lambda: lux.least_squares(lambda p: p, jnp.zeros(2), samples=T),
        TypeError,
        r"the residual is called as residual\(ps, sample\)",
    ),
    "method": (lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, method="L-BFGS-B"), ValueError, "minimize"),
    "bounds": (
        lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, method="minpack", bounds=(0, 1)),
        ValueError,
        "minpack takes no bounds: 'lm', 'trf' and 'dogbox' do",
    ),
    "optimistix bounds": (
        lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, method=optx.Dogleg(1e-6, 1e-6), bounds=(0, 1)),
        ValueError,
        "Dogleg takes no bounds",
    ),
    "too few": (
        lambda: lux.least_squares(lambda p: p[:1], jnp.zeros(2), method="minpack"),
        ValueError,
        "minpack needs as many residuals as parameters, got 1 residuals of 2 parameters",
    ),
    "loss": (lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, loss="l1"), ValueError, "loss is one of"),
    "solver": (lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, solver="lu"), ValueError, "solver is one of"),
    "resample": (
        lambda: lux.least_squares(
            linear, jnp.zeros(2), samples=T, resample=lambda key, ps: T[:3], resample_every=1, max_steps=3
        ),
        ValueError,
        "resample must return samples of the same structure",
    ),
    "starts": (lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, starts=[jnp.zeros(3)]), ValueError, "shape"),
    "options": (
        lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, options=3),
        TypeError,
        "`options` is a dict",
    ),
    "seconds": (lambda: lux.least_squares(linear, jnp.zeros(2), samples=T, max_seconds=-1), ValueError, "at least 0"),
    "traced": (
        lambda: jax.jit(lambda p: lux.least_squares(linear, p, samples=T).params)(jnp.zeros(2)),
        TypeError,
        "least_squares runs outside of jax.jit",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_are_told(name):
    call, error, match = WRONG[name]
    with pytest.raises(error, match=match):
        call()
