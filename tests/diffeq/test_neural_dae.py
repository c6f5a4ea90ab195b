"""NeuralDAE and MassMatrixODE against reformulations as ordinary differential equations."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

import lux_sciml as lux

TS = np.linspace(0.0, 1.0, 4)
FIXED_STEPS = {"solver": diffrax.Heun(), "stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.1, "max_steps": 8}


@lux.Lambda
def cubic(y):
    """z^3 + z = u: one real root for each u."""
    return y[..., 1:] ** 3 + y[..., 1:] - y[..., :1]


@lux.Lambda
def minus_z(y):
    return -y[..., 1:]


def cubic_root(u):
    return np.cbrt(u / 2 + np.sqrt(u**2 / 4 + 1 / 27)) + np.cbrt(u / 2 - np.sqrt(u**2 / 4 + 1 / 27))


def exact_cubic(u0, ts):
    """From t(z) = -int (3 z^2 + 1) / z dz = C - 3 z^2 / 2 - log z."""
    z0 = cubic_root(u0)
    z = [scipy.optimize.brentq(lambda z, t: 1.5 * (z0**2 - z**2) + np.log(z0 / z) - t, 1e-6, 3.0, (t,)) for t in ts]
    return np.stack([np.array(z) ** 3 + z, z], -1)


def run(layer, y0):
    ps, st = lux.setup(jax.random.key(0), layer)
    return layer(y0, ps, st)[0]


# --- solutions ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_nonlinear_constraint_matches_the_exact_solution_from_any_guess():
    dae = lux.NeuralDAE(minus_z, cubic, ts=TS, batching="vmap", rtol=1e-9, atol=1e-11)
    sol = run(dae, jnp.array([[2.0, 0.0], [2.0, 5.0], [0.5, 0.1]]))
    assert isinstance(sol, diffrax.Solution)
    assert sol.ys.shape == (3, 4, 2)
    for u0, ys in zip((2.0, 2.0, 0.5), sol.ys, strict=True):
        np.testing.assert_allclose(ys, exact_cubic(u0, TS), rtol=1e-8)


@pytest.mark.slow
def test_saved_values_fulfil_the_constraint_in_single_precision_too():
    dae = lux.NeuralDAE(minus_z, cubic, ts=TS, output="ys", solver=diffrax.Bosh3())
    ys = run(dae, jnp.array([[2.0, 0.0], [0.5, 0.1]], "float32"))
    assert ys.dtype == "float32"
    np.testing.assert_allclose(cubic(ys, {}, {})[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(ys[:, 1], exact_cubic(0.5, TS), rtol=1e-5)


@pytest.mark.slow
def test_the_branch_of_the_start_is_followed():
    """u = sin t and u^2 + z^2 = 1: z = cos t goes on to where Newton from z(0) = 1 would find the other root."""
    rate = lux.Lambda(lambda y: y[..., 1:])
    circle = lux.Lambda(lambda y: y[..., :1] ** 2 + y[..., 1:] ** 2 - 1)
    dae = lux.NeuralDAE(rate, circle, ts=[0.0, 1.2], output="final")
    final = run(dae, jnp.array([[0.0, 0.7], [0.0, -0.7]]))
    exact = np.array([np.sin(1.2), np.cos(1.2)])
    np.testing.assert_allclose(final, np.stack([exact, -exact]), rtol=1e-5)


def robertson(y):
    a, b, c = y
    slow, fast = 0.04 * a - 1e4 * b * c, 3e7 * b**2
    return jnp.array([-slow, slow - fast, a + b + c - 1])


@pytest.mark.exhaustive
def test_robertson_with_a_mass_matrix_and_a_stiff_solver():
    def kinetics(t, y):
        slow, fast = 0.04 * y[0] - 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
        return [-slow, slow - fast, fast]

    ts = [0.0, 0.4, 40.0]
    expected = scipy.integrate.solve_ivp(kinetics, (0, 40), [1.0, 0, 0], "Radau", ts, rtol=1e-10, atol=1e-13).y.T
    ode = lux.MassMatrixODE(lux.Lambda(robertson), mass=[1, 1, 0], ts=ts, solver=diffrax.Kvaerno5(), atol=1e-10)
    sol = run(ode, jnp.array([1.0, 0.0, 0.3]))
    np.testing.assert_allclose(sol.ys, expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(sol.ys, -1), 1.0, rtol=1e-14)


@pytest.mark.slow
def test_the_pendulum_of_index_one_keeps_its_length():
    """q'' = -q tension - (0, 1), |v|^2 - q_y = tension |q|^2: the force of the rod by twice differentiating |q| = 1."""

    def field(t, y, p=None):
        qx, qy, vx, vy, tension = y.q[0], y.q[1], y.v[0], y.v[1], y.tension
        return lux.ComponentVector(
            q=y.v,
            v=jnp.array([-qx * tension, -qy * tension - 1.0]),
            tension=vx**2 + vy**2 - qy - tension * (qx**2 + qy**2),
        )

    ode = lux.MassMatrixODE(
        lux.Lambda(lambda y: field(0.0, y)), mass=[1, 1, 1, 1, 0], ts=[0.0, 1.0, 3.0], rtol=1e-9, atol=1e-11
    )
    y0 = lux.ComponentVector(q=[np.sin(1.0), -np.cos(1.0)], v=[0.0, 0.0], tension=0.0)
    ys = run(ode, y0).ys
    angle = scipy.integrate.solve_ivp(
        lambda t, y: [y[1], -np.sin(y[0])], (0, 3), [1.0, 0.0], "DOP853", [0.0, 1.0, 3.0], rtol=1e-11, atol=1e-12
    ).y
    np.testing.assert_allclose(ys.q, np.stack([np.sin(angle[0]), -np.cos(angle[0])], -1), atol=1e-7)
    np.testing.assert_allclose(ys.tension, angle[1] ** 2 + np.cos(angle[0]), atol=1e-7)


def test_a_full_singular_mass_matrix():
    """M = a b^T: b.y moves and the part of f orthogonal to a is the constraint."""
    a, b = np.array([1.0, 2.0]), np.array([3.0, -1.0])
    matrix = np.array([[-1.0, 0.5], [0.3, -2.0]])
    ode = lux.MassMatrixODE(
        lux.Dense(2, 2, use_bias=False), mass=np.outer(a, b), ts=TS, rtol=1e-8, solver=diffrax.Bosh3()
    )
    sol, _ = ode(jnp.array([1.0, 0.0]), {"weight": jnp.asarray(matrix.T)}, {})
    orthogonal = np.array([2.0, -1.0]) @ matrix  # orthogonal . y = 0
    direction = np.array([orthogonal[1], -orthogonal[0]])
    rate = a @ matrix @ direction / (a @ a) / (b @ direction)  # y = s direction, with s' = rate s
    start = 3.0 / (b @ direction)
    np.testing.assert_allclose(sol.ys, start * np.exp(rate * TS)[:, None] * direction, rtol=1e-6)


def test_time_in_the_constraint():
    """u' = z with z = cos t."""
    dae = lux.NeuralDAE(
        lux.Lambda(lambda ty: ty[1][..., 1:]),
        lux.Lambda(lambda ty: ty[1][..., 1:] - jnp.cos(ty[0])),
        ts=TS,
        time_dependent=True,
        solver=diffrax.Bosh3(),
    )
    ys = run(dae, jnp.zeros(2)).ys
    np.testing.assert_allclose(ys, np.stack([np.sin(TS), np.cos(TS)], -1), atol=1e-5)


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_gradients_agree_with_finite_differences_and_a_second_adjoint():
    constraint = lux.Chain(lux.Dense(2, 1, jnp.tanh), lux.Lambda(lambda x: 0.5 * x))
    constraint = lux.SkipConnection(constraint, lambda g, y: y[..., 1:] + g)  # z + net(u, z) = 0
    dae = lux.NeuralDAE(lux.Dense(2, 1), constraint, ts=[0.0, 0.5], **FIXED_STEPS)
    ps, st = lux.setup(jax.random.key(1), dae)
    v = jax.random.normal(jax.random.key(3), ps.shape)

    def loss(q):
        ps, u0 = q
        return jnp.sum(dae(jnp.array([u0, 0.0]), ps, st)[0].ys ** 2)

    value, q, direction = jax.jit(loss), (ps, jnp.array(0.7)), (lux.ComponentVector(v, ps.layout), jnp.array(1.3))
    gradient = jax.jit(jax.grad(loss))(q)
    slope = gradient[0] @ v + 1.3 * gradient[1]
    up, down = (value(jax.tree.map(lambda a, b, h=h: a + h * b, q, direction)) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-6)
    with lux.derivatives.mode("forward"):
        np.testing.assert_allclose(jax.jvp(loss, (q,), (direction,))[1], slope, rtol=1e-8)


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_constraint_without_a_root_is_a_failure_of_its_sample_alone():
    circle = lux.Lambda(lambda y: y[..., :1] ** 2 + y[..., 1:] ** 2 - 1)
    dae = lux.NeuralDAE(lux.Lambda(lambda y: -y[..., :1]), circle, ts=TS, batching="vmap", solver=diffrax.Bosh3())
    sol = run(dae, jnp.array([[0.5, 1.0], [3.0, 1.0]]))
    np.testing.assert_allclose(sol.ys[0, :, 0], 0.5 * np.exp(-TS), rtol=1e-5)
    assert jnp.all(jnp.isnan(sol.ys[1]))
    with pytest.raises(RuntimeError, match=r"by sample 1 of 2"):
        lux.raise_if_failed(sol)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: run(lux.NeuralDAE(minus_z, cubic, ts=TS), jnp.ones(3)), "as there are variables, 3; got 2 and 2"),
        (lambda: run(lux.MassMatrixODE(minus_z, [1, 0], ts=TS), jnp.ones(3)), "3 variables, the mass matrix 2"),
        (lambda: lux.MassMatrixODE(minus_z, np.ones((2, 3)), ts=TS), r"got the shape \(2, 3\)"),
        (lambda: run(lux.NeuralDAE(minus_z, cubic, ts=TS), jnp.ones(())), "NeuralDAE is one array of shape"),
        (lambda: lux.MassMatrixODE(minus_z, [0, 0], ts=TS), "not of zeros alone"),
        (lambda: lux.MassMatrixODE(minus_z, [["a"]], ts=TS), r"MassMatrixODE\.mass: expected numbers, got"),
        (lambda: lux.MassMatrixODE(minus_z, {"a": 1}, ts=TS), r"MassMatrixODE\.mass: expected numbers, got"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()


def test_it_prints_and_compares():
    ode = lux.MassMatrixODE(lux.Dense(2, 2), mass=[1, 0])
    assert ode == lux.MassMatrixODE(lux.Dense(2, 2), mass=[1, 0])
    assert "mass = [1, 0]" in repr(ode)
