"""CNF and flow matching: exact densities, change of variables, sampling, regularizers, probes."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

import lux_sciml as lux
from lux_sciml._compat import equations

A = np.array([[0.3, 0.8], [-0.5, -0.2]])
X = np.array([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.1]])  # three samples of two features
LINEAR = lux.CNF(lux.Lambda(lambda tx: tx[1] @ A.T), regularize=True)
FIXED = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.3, "max_steps": 8}


@jax.jit
def call(layer, x, ps, st):
    return layer(x, ps, st)


def run(layer, x, seed=0):
    return call(layer, x, *lux.setup(jax.random.key(seed), layer))[0]


def net(features, **options):
    model = lux.Chain(lux.diffeq.concat_time, lux.Dense(1 + features, 4, jnp.tanh), lux.Dense(4, features))
    flow = lux.CNF(model, **options)
    return flow, *lux.setup(jax.random.key(2), flow)


# --- densities ----------------------------------------------------------------------------------------------------


def test_a_linear_flow_has_its_exact_density():
    density = run(LINEAR, jnp.asarray(X))
    forward = scipy.linalg.expm(A)
    exact = scipy.stats.multivariate_normal(np.zeros(2), forward @ forward.T).logpdf(X)
    np.testing.assert_allclose(density.log_prob, exact, rtol=1e-6)
    np.testing.assert_allclose(density.z, X @ np.linalg.inv(forward).T, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_trained_base_is_the_density_of_the_noise():
    """Of a flow in one dimension the density integrates to one, by any base; where nothing moves it is the base's."""
    grid = np.linspace(-12.0, 12.0, 601)[:, None]
    for base in (lux.diffeq.NormalDensity(1), lux.diffeq.MixtureDensity(1, 2)):
        flow, ps, st = net(1, base=base)
        ps = ps.at["base.mean"].add(0.7).at["base.log_scale"].set(-0.3)
        density, _ = call(flow, grid, ps, st)
        assert abs(scipy.integrate.trapezoid(np.exp(density.log_prob), grid[:, 0]) - 1) < 1e-4
        still, _ = call(flow, grid, ps.at["model.layer_2.weight"].set(0.0).at["model.layer_2.bias"].set(0.0), st)
        np.testing.assert_allclose(still.log_prob, base.log_prob(grid, ps.base, {}), atol=1e-9)
        noise = np.asarray(base.sample(jax.random.key(0), (4000, 1), ps.base, {}))
        weights = np.exp(base.log_prob(grid, ps.base, {}))
        mean = scipy.integrate.trapezoid(weights * grid[:, 0], grid[:, 0])
        spread = scipy.integrate.trapezoid(weights * (grid[:, 0] - mean) ** 2, grid[:, 0])
        np.testing.assert_allclose([noise.mean(), noise.var()], [mean, spread], rtol=0.1, atol=0.05)
    grad = jax.jit(jax.grad(lambda ps: flow.log_prob(jnp.ones((1, 1)), ps, st)[0]))(ps)
    assert np.all(grad.base.data != 0)
    assert flow.sample(jax.random.key(0), (3, 1), ps, st).shape == (3, 1)
    assert np.isfinite(lux.diffeq.flow_matching(flow, grid, ps, st)[0])
    with pytest.raises(TypeError, match="a layer with log_prob and sample, got Dense"):
        lux.CNF(lux.NoOp(), base=lux.Dense(1, 1))


def test_the_change_of_variables_agrees_with_differences_of_the_flow():
    flow, ps, st = net(2, rtol=1e-9, atol=1e-11)
    to_noise = jax.jit(lambda x: flow.transport(x, ps, st, reverse=True))
    x, h = jnp.asarray(X[0]), 1e-5
    jacobian = np.stack([(to_noise(x + h * e) - to_noise(x - h * e)) / (2 * h) for e in np.eye(2)], axis=-1)
    expected = np.sum(scipy.stats.norm.logpdf(to_noise(x))) + np.log(abs(np.linalg.det(jacobian)))
    np.testing.assert_allclose(call(flow, x, ps, st)[0].log_prob, expected, rtol=1e-7)


def test_a_density_of_one_number_integrates_to_one_and_its_samples_have_its_moments():
    flow, ps, st = net(1)
    grid = np.linspace(-12.0, 12.0, 801)
    density = np.exp(jax.jit(flow.log_prob)(jnp.asarray(grid)[:, None], ps, st))
    mean = scipy.integrate.simpson(grid * density, x=grid)
    variance = scipy.integrate.simpson((grid - mean) ** 2 * density, x=grid)
    np.testing.assert_allclose(scipy.integrate.simpson(density, x=grid), 1.0, rtol=1e-6)
    n = 20000
    samples = jax.jit(lambda key: flow.sample(key, (n, 1), ps, st))(jax.random.key(3))
    assert abs(jnp.mean(samples) - mean) < 4 * np.sqrt(variance / n)
    np.testing.assert_allclose(jnp.var(samples), variance, rtol=4 * np.sqrt(4 / n))  # its kurtosis is near 3


def test_there_and_back():
    flow, ps, st = net(2, rtol=1e-9, atol=1e-11)
    z = flow.transport(jnp.asarray(X), ps, st, reverse=True)
    np.testing.assert_allclose(flow.transport(z, ps, st), X, rtol=1e-6)


def test_conditions_shift_the_density():
    flow = lux.CNF(lux.Lambda(lambda inputs: jnp.broadcast_to(inputs[2], inputs[1].shape)), batching="vmap")
    shift = np.array([[1.0], [-2.0], [0.5]])
    density = run(flow, (jnp.asarray(X), jnp.asarray(shift)))
    np.testing.assert_allclose(density.log_prob, scipy.stats.norm.logpdf(X - shift).sum(-1), rtol=1e-6)
    samples = flow.sample(jax.random.key(0), (3, 2), *lux.setup(jax.random.key(0), flow), condition=jnp.asarray(shift))
    np.testing.assert_allclose(samples - shift, jax.random.normal(jax.random.key(0), (3, 2)), rtol=1e-5)


# --- regularizers and probes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_regularizers_are_norms_over_features_for_each_sample(trace):
    density = run(LINEAR.replace(trace=trace), jnp.asarray(X))

    def speed(t, x):
        return np.sum((A @ scipy.linalg.expm(A * (t - 1)) @ x) ** 2)

    kinetic = [scipy.integrate.quad(speed, 0.0, 1.0, args=(x,))[0] for x in X]
    np.testing.assert_allclose(density.kinetic, kinetic, rtol=1e-6)
    if trace == "exact":
        np.testing.assert_allclose(density.jacobian, np.full(3, np.sum(A**2)), rtol=1e-6)
    else:  # with signs e, |e A|^2 is one of two numbers whose mean is |A|^2
        possible = [np.sum((np.array([1.0, sign]) @ A) ** 2) for sign in (1.0, -1.0)]
        np.testing.assert_allclose(np.mean(possible), np.sum(A**2))
        assert all(np.isclose(j, possible, rtol=1e-6).any() for j in density.jacobian)


def test_hutchinson_has_one_probe_a_solve_and_is_unbiased():
    """For f = A x and signs e, the integral of one probe is e A e: one of two numbers, tr A plus or minus another."""
    exact = run(LINEAR, jnp.asarray(X[:1])).log_prob
    estimates = run(LINEAR.replace(trace="hutchinson"), jnp.tile(X[:1], (400, 1))).log_prob
    both = exact + np.array([1.0, -1.0]) * (A[0, 1] + A[1, 0])
    is_first = np.isclose(estimates, both[0], rtol=1e-6)
    assert np.all(is_first | np.isclose(estimates, both[1], rtol=1e-6))
    assert abs(np.mean(is_first) - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_the_key_is_renewed():
    flow, ps, st = net(2, trace="hutchinson", **FIXED)
    (first, after), (again, _) = (call(flow, jnp.asarray(X), ps, st) for _ in range(2))
    np.testing.assert_array_equal(first.log_prob, again.log_prob)
    assert after["key"] != st["key"]
    assert jnp.any(call(flow, jnp.asarray(X), ps, after)[0].log_prob != first.log_prob)


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_gradients_of_exact_densities_agree_with_differences_and_between_adjoints():
    flow, ps, st = net(2, regularize=True, rtol=1e-9, atol=1e-11)

    def loss(ps, flow):
        density = flow(jnp.asarray(X), ps, st)[0]
        return jnp.mean(density.log_prob + 0.1 * density.kinetic + 0.1 * density.jacobian)

    value, gradient = (jax.jit(f, static_argnums=1) for f in (loss, jax.grad(loss)))
    expected, v, h = gradient(ps, flow), jax.random.normal(jax.random.key(4), ps.shape), 1e-5
    slope = (value(ps + h * v, flow) - value(ps - h * v, flow)) / (2 * h)
    np.testing.assert_allclose(expected @ v, slope, rtol=1e-7)
    other = gradient(ps, flow.replace(adjoint=diffrax.BacksolveAdjoint()))
    np.testing.assert_allclose(other.data, expected.data, rtol=1e-6, atol=1e-8)


def test_few_features_take_products_of_two_matrices_and_many_have_the_same_density():
    flow, ps, st = net(2, stepsize_controller=diffrax.ConstantStepSize(), dt0=0.5)
    jaxpr = jax.make_jaxpr(jax.grad(lambda ps: jnp.sum(flow.log_prob(jnp.asarray(X), ps, st))))(ps)
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    of_the_net = [x.aval.shape for e in products for x in e.invars if 4 in x.aval.shape]
    assert of_the_net and all(len(shape) == 2 for shape in of_the_net)
    matrix, x = 0.3 * np.random.default_rng(0).normal(size=(9, 9)), np.ones((2, 9))
    forward = scipy.linalg.expm(matrix)
    exact = scipy.stats.multivariate_normal(np.zeros(9), forward @ forward.T).logpdf(x)
    many = lux.CNF(lux.Lambda(lambda tx: tx[1] @ matrix.T))
    np.testing.assert_allclose(run(many, jnp.asarray(x)).log_prob, exact, rtol=1e-5)


# --- flow matching ------------------------------------------------------------------------------------------------


def gaussian_flow():
    """The best velocity for data from N(3, 1), which takes N(0, 1) there, then scaled and shifted by parameters."""

    def velocity(inputs):
        t, x = inputs
        return 3.0 + (2 * t - 1) / (t**2 + (1 - t) ** 2) * (x - 3.0 * t)

    return lux.CNF(lux.Chain(velocity, lux.Dense(1, 1)))


def test_flow_matching_and_densities_agree_on_the_best_velocity():
    flow, n = gaussian_flow(), 100000
    _, st = lux.setup(jax.random.key(0), flow)
    ps = lux.ComponentVector.from_tree({"layer_0": {}, "layer_1": {"weight": jnp.ones((1, 1)), "bias": jnp.zeros(1)}})
    x = jnp.linspace(1.0, 5.0, 5)[:, None]
    np.testing.assert_allclose(flow.log_prob(x, ps, st), scipy.stats.norm.logpdf(x[:, 0], 3.0), rtol=1e-5)
    data = 3.0 + jax.random.normal(jax.random.key(5), (n, 1))
    (loss, after), gradient = jax.value_and_grad(lambda p: lux.diffeq.flow_matching(flow, data, p, st), has_aux=True)(
        ps
    )
    # The least loss is the mean of var(x - z given the point between), 1 / (t^2 + (1 - t)^2) on average: pi / 2.
    np.testing.assert_allclose(loss, np.pi / 2, atol=4 * 3 / np.sqrt(n))
    assert np.all(abs(gradient.data) < 4 * 2 * 4.5 / np.sqrt(n))  # of 2 (residual) (velocity); its deviation is 2 |v|
    assert after["key"] != st["key"]


def test_flow_matching_trains_a_conditional_flow():
    """Data at the condition, up to a little noise: so are the samples of the trained flow."""
    model = lux.Chain(lux.diffeq.concat_time, lux.Dense(3, 16, jnp.tanh), lux.Dense(16, 1))
    flow = lux.CNF(model, **FIXED)
    ps, st = lux.setup(jax.random.key(0), flow)
    condition = jnp.tile(jnp.array([[-1.0], [1.0]]), (128, 1))
    data = 2 * condition + 0.1 * jax.random.normal(jax.random.key(1), condition.shape)
    fitted = lux.minimize(
        lambda ps: lux.diffeq.flow_matching(flow, (data, condition), ps, st)[0], ps, method="BFGS", max_steps=150
    ).params
    samples = flow.sample(jax.random.key(2), condition.shape, fitted, st, condition=condition)
    for side in (-1.0, 1.0):
        assert abs(jnp.mean(samples[condition == side]) - 2 * side) < 0.5
        assert jnp.std(samples[condition == side]) < 0.6


# --- faults and bad input -----------------------------------------------------------------------------------------


def test_too_few_steps_are_nan():
    density = run(LINEAR.replace(max_steps=1), jnp.asarray(X))
    assert jnp.all(jnp.isnan(jnp.stack([density.log_prob, density.kinetic])))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LINEAR.replace(trace="stochastic"), "trace: expected 'exact' or 'hutchinson', got 'stochastic'"),
        (lambda: LINEAR.replace(output="ys"), "a CNF has no output: it goes from data to noise and returns the end"),
        (lambda: run(LINEAR, (X, X, X)), r"x or the tuple \(x, condition\), got a tuple of 3"),
        (lambda: run(LINEAR, jnp.array(1.0)), r"points of shape \(\.\.\., features\), got a number"),
        (
            lambda: run(lux.CNF(lux.Lambda(lux.diffeq.concat_time)), X),
            r"must keep the shape of its state, \(3, 2\); got \(3, 3\)",
        ),
        (
            lambda: run(LINEAR.replace(batching="vmap"), (X, X[:2])),
            r'a CNF with batching="vmap" .* the same number in all; got the shapes \(3, 2\), \(2, 2\)',
        ),
        (lambda: lux.diffeq.concat_time(X), r"takes \(t, x\) or \(t, x, condition\), got .* time_dependent=True"),
        (lambda: lux.diffeq.flow_matching(lux.Dense(2, 2), X, {}, {}), r"the loss of a CNF, got Dense\(2, 2\)"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()


@pytest.mark.parametrize("points", ["data", [1.0, 2.0], None])
def test_points_are_arrays(points):
    with pytest.raises(TypeError, match="the initial value of a CNF is an array"):
        LINEAR(points, *lux.setup(jax.random.key(0), LINEAR))
