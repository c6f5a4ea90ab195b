"""GaussAdjoint: the error of the parameters' integral is controlled, not only that of the adjoint."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.diffeq.adjoints import gauss


class Rates(lux.Layer):
    """`f(t, y, p)` with the parameters `p`."""

    f: Callable
    shape: tuple[int, ...]

    def init_params(self, key):
        return {"p": jnp.ones(self.shape)}

    def forward(self, x, ps, st):
        return self.f(*x, ps["p"]), st


def slope(f, p, y0, ts, adjoint="gauss", **options):
    """Of the sum of the final state by the parameters."""
    node = lux.NeuralODE(Rates(f, np.shape(p)), ts=ts, time_dependent=True, output="final", adjoint=adjoint, **options)
    return np.asarray(jax.jit(jax.grad(lambda p: jnp.sum(node(jnp.asarray(y0), {"p": p}, {})[0])))(jnp.asarray(p)))


KVAERNO = {"solver": diffrax.Kvaerno5()}


@pytest.mark.exhaustive
def test_a_parameter_that_acts_in_a_layer_only():
    """y_0 falls within 1e-4, y_1 gathers p times what it loses: the adjoint is constant; dy_1/dp = 1 - exp(-1e4)."""

    def layer(t, y, p):
        return jnp.stack([-1e4 * y[0], 1e4 * p * y[0]])

    np.testing.assert_allclose(slope(layer, 1.0, [1.0, 0.0], [0.0, 1.0], **KVAERNO), 1.0, rtol=2e-5)
    np.testing.assert_allclose(slope(layer, 1.0, [1.0, 0.0], [0.0, 1.0], max_steps=20_000), 1.0, rtol=2e-5)


FINER = {**KVAERNO, "rtol": 1e-7, "atol": 1e-9}  # the step over a jump is as wide as the tolerance of 0.1 p allows


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, FINER], ids=["explicit", "implicit"])
def test_parameters_that_act_in_time(options):
    """A forcing with a layer at the start, one that oscillates, and one that jumps: integrals in closed form."""

    def forced(t, y, p):
        jump = jnp.where(t > 1 / 3, p[2], 0.0) - jnp.where(t > 0.4, p[2], 0.0)
        return jnp.stack([p[0] * 1e4 * jnp.exp(-1e4 * t) + p[1] * 100 * jnp.sin(100 * t) + jump])

    got = slope(forced, [0.1, 0.1, 0.1], [0.0], [0.0, 1.0], **options)
    np.testing.assert_allclose(got, [1.0, 1 - np.cos(100), 1 / 15], rtol=3e-6)  # two jumps, 1e-6 each


@pytest.mark.parametrize("n", [3, 5, 7, 9])
def test_the_rule_is_exact_to_its_degree_and_knows_its_error(n):
    points, (weights, rest) = gauss.gauss_rule(n)
    for degree in range(2 * n):
        np.testing.assert_allclose(weights @ points**degree, 1 / (degree + 1), rtol=1e-13)
        known = abs(rest @ (2 * points - 1) ** degree)
        assert known < 1e-13 if degree < n - 1 or degree % 2 else known > 1e-4
    np.testing.assert_allclose((weights - rest)[n // 2], 0.0, atol=1e-15)


@pytest.mark.parametrize("nodes", [1, 4, 0])
def test_nodes_are_odd(nodes):
    with pytest.raises(ValueError, match=f"odd number, three or more, got {nodes}"):
        lux.GaussAdjoint(nodes=nodes)


NET = lux.Chain(lux.Dense(2, 4, jnp.tanh), lux.Dense(4, 2))
Y0 = np.array([[1.0, -0.5], [0.3, 0.7], [-1.2, 0.4]])


def net_gradients(adjoint, ts, **options):
    """Gradients of a sum over all saved values, by parameters and initial values."""
    node = lux.NeuralODE(NET, adjoint=adjoint, output="ys", **options)
    ps, st = lux.setup(jax.random.key(0), node, dtype=jnp.float64)
    return jax.grad(lambda ps, y0: jnp.sum(jnp.sin(node((y0, ts), ps, st)[0])), (0, 1))(2 * ps, jnp.asarray(Y0))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("batching", ["joint", "vmap"])
def test_gauss_agrees_with_the_discrete_gradient(batching):
    ts = np.array([[0.5, 0.4, -1.0], [0.0, 0.1, 1.0], [0.0, 0.7, 2.0]])  # backward and forward, not uniform
    ts = ts if batching == "vmap" else ts[0]
    tight = {"rtol": 1e-10, "atol": 1e-12, "batching": batching}
    gauss, checkpointed = (net_gradients(adjoint, ts, **tight) for adjoint in ("gauss", "checkpointed"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), gauss, checkpointed)


@pytest.mark.exhaustive
def test_gauss_through_a_stiff_solver_and_the_terms_of_a_split_equation():
    stiff = lux.Lambda(lambda y: -200.0 * (y - jnp.cos(y)))
    split = lux.SplitODE(lux.Dense(1, 1), stiff, ts=[0.0, 0.5], output="final", rtol=1e-5, atol=1e-7)
    ps, st = lux.setup(jax.random.key(0), split, dtype=jnp.float64)

    def gradient(adjoint):
        return jax.grad(lambda ps: split.replace(adjoint=adjoint)(jnp.ones(1), ps, st)[0][0])(ps).data

    np.testing.assert_allclose(gradient("gauss"), gradient("checkpointed"), rtol=1e-3)


@pytest.mark.exhaustive
def test_gauss_is_zero_after_a_failure_and_nan_where_it_fails_itself():
    failed, _ = net_gradients("gauss", np.array([0.0, 5.0]), max_steps=3)
    np.testing.assert_array_equal(failed.data, 0.0)
    tight = lux.GaussAdjoint(rtol=1e-12, atol=1e-14)  # asks for more steps than max_steps backward
    hopeless, _ = net_gradients(tight, np.array([0.0, 5.0]), max_steps=40)
    assert jnp.all(jnp.isnan(hopeless.data))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_steps": None}, "give max_steps"),
        ({"saveat": diffrax.SaveAt(steps=True)}, "t0, t1 and ts only"),
        ({"event": diffrax.Event(lambda t, y, args, **kwargs: t > 0.5)}, "takes no events"),
    ],
)
def test_gauss_refuses_what_it_has_not(options, sentence):
    node = lux.NeuralODE(lux.Lambda(jnp.negative), ts=[0.0, 1.0], adjoint="gauss", **options)
    with pytest.raises(ValueError, match=sentence):
        node(jnp.array(4.0), {}, {})


def test_gauss_refuses_stochastic_equations():
    sde = lux.NeuralDSDE(lux.Lambda(jnp.negative), lux.Lambda(jnp.ones_like), ts=[0.0, 1.0], dt0=0.1, adjoint="gauss")
    ps, st = lux.setup(jax.random.key(0), sde)
    with pytest.raises(ValueError, match="one ordinary differential equation"):
        sde(jnp.array([4.0]), ps, st)


class Follower(lux.Layer):
    """`y` follows `sin(b t)` at the rate `a`, and z' = b y."""

    def init_params(self, key):
        return {"a": jnp.array(1.3e5), "b": jnp.array(0.7)}

    def forward(self, x, ps, st):
        t, (y, _) = x
        return jnp.stack([-ps["a"] * (y - jnp.sin(ps["b"] * t)), ps["b"] * y]), st


def followed(ps, t):
    """The solution from (1, 0.3), after the layer at the start."""
    a, b = ps["a"], ps["b"]
    k = a / (a**2 + b**2)
    y = k * (a * jnp.sin(b * t) - b * jnp.cos(b * t))
    return y, 0.3 + k * (a * (1 - jnp.cos(b * t)) - b * jnp.sin(b * t)) + b * (1 + k * b) / a


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("solver", [diffrax.Kvaerno4(), diffrax.Kvaerno5()])
def test_the_dense_output_of_stiff_steps_is_as_accurate_as_their_ends(solver):
    """Their cubic is off by 1e-4 in the middle of large steps, where the ends are right to 1e-8."""
    node = lux.NeuralODE(
        Follower(), ts=[0.0, 0.5, 1.0], time_dependent=True, output="ys", solver=solver, adjoint="gauss"
    )
    ps = Follower().init_params(None)
    got = jax.jit(jax.grad(lambda ps: jnp.sum(node(jnp.array([1.0, 0.3]), ps, {})[0][1:] ** 2)))(ps)
    right = jax.grad(lambda ps: sum(jnp.sum(x**2) for x in followed(ps, jnp.array([0.5, 1.0]))))(ps)
    np.testing.assert_allclose(1e5 * got["a"], 1e5 * right["a"], atol=5e-7)
    np.testing.assert_allclose(got["b"], right["b"], rtol=1e-6)


@pytest.mark.slow
def test_rounding_errors_do_not_halve_pieces(monkeypatch):
    """What float32 leaves of an integral that has cancelled is no error of the quadrature."""
    monkeypatch.setattr(gauss, "_PIECES", 4)  # at most, for each of `max_steps`
    net = lux.Chain(lux.Dense(2, 14, jnp.tanh), lux.Dense(14, 14, jnp.tanh), lux.Dense(14, 2))
    node = lux.NeuralODE(net, [0.0, 20.0], adjoint="gauss", max_steps=64, output="final")
    ps, st = lux.setup(jax.random.key(0), node, dtype="float32")
    y0 = jax.random.normal(jax.random.key(1), (2,), "float32")

    def slope(node):
        return jax.jit(jax.grad(lambda ps: jnp.sum(node(y0, ps, st)[0] ** 2)))(ps).data

    exact = slope(node.replace(adjoint="checkpointed"))
    assert jnp.linalg.norm(slope(node) - exact) < 1e-5 * jnp.linalg.norm(exact)
