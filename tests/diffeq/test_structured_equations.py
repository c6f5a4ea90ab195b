"""Gradient flows, port-Hamiltonian systems, and symplectic solvers: what each structure promises."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

NET = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 1))


@lux.Lambda
def kinetic(p):
    return jnp.sum(p**2, -1) / 2


@lux.Lambda
def pendulum(q):
    return -jnp.sum(jnp.cos(q), -1)


def start(dtype="float64"):
    return jnp.array([1.0], dtype), jnp.array([0.5], dtype)


# --- vector fields ------------------------------------------------------------------------------------------------


def test_the_energy_never_grows_along_a_gradient_flow():
    node = lux.NeuralODE(lux.GradientFlow(NET), ts=np.linspace(0.0, 3.0, 20))
    ps, st = lux.setup(jax.random.key(0), node)
    sol, _ = node(jnp.array([[1.0, -0.5], [0.3, 2.0]]), ps, st)
    energy = NET(sol.ys, ps, st)[0][..., 0]
    assert jnp.all(jnp.diff(energy, axis=0) < 0)


def test_a_gradient_flow_of_a_quadratic_energy_decays_exactly():
    node = lux.NeuralODE(lux.GradientFlow(lux.Lambda(lambda x: jnp.sum(x**2, -1))), ts=[0.0, 0.5, 1.0])
    sol, _ = node(jnp.array([1.0, -2.0]), {}, {})
    np.testing.assert_allclose(sol.ys, np.exp(-2 * sol.ts)[:, None] * np.array([1.0, -2.0]), rtol=1e-5)


def test_the_power_balance_of_a_port_hamiltonian_system():
    field = lux.PortHamiltonian(NET, dissipation=lux.Dense(2, 4), interconnection=lux.Dense(2, 4), port=lux.Dense(2, 2))
    ps, st = lux.setup(jax.random.key(0), field)
    x, u = jnp.array([0.3, -0.7]), jnp.array([0.9])
    slope = jax.grad(lambda x: NET(x, ps.hamiltonian, st["hamiltonian"])[0][0])(x)
    l = field.dissipation(x, ps.dissipation, {})[0].reshape(2, 2)
    g = field.port(x, ps.port, {})[0].reshape(2, 1)
    power = slope @ field((x, u), ps, st)[0]
    np.testing.assert_allclose(power, -jnp.sum((l.T @ slope) ** 2) + u @ (g.T @ slope), rtol=1e-12)


def test_a_damped_oscillator_is_port_hamiltonian():
    class Damping(lux.Layer):
        def forward(self, x, ps, st):
            return jnp.broadcast_to(jnp.array([0.0, 0.5], x.dtype), x.shape), st

    field = lux.PortHamiltonian(kinetic, Damping())  # q'' + q'/4 + q = 0
    sol, _ = lux.NeuralODE(field, ts=np.linspace(0, 5, 6), rtol=1e-9)(jnp.array([1.0, 0.0]), *_empty(field))
    w = np.sqrt(1 - 1 / 64)
    exact = np.exp(-sol.ts / 8) * (np.cos(w * sol.ts) + np.sin(w * sol.ts) / (8 * w))
    np.testing.assert_allclose(sol.ys[:, 0], exact, rtol=1e-6)


def _empty(layer):
    return lux.setup(jax.random.key(0), layer, flat=False)


def test_a_port_takes_in_what_the_control_does():
    """q' = p, p' = -q + u with u = 1: a circle around (1, 0)."""

    class Force(lux.Layer):
        def forward(self, x, ps, st):
            return jnp.broadcast_to(jnp.array([0.0, 1.0], x.dtype), x.shape), st

    field = lux.PortHamiltonian(kinetic, port=Force())
    node = lux.NeuralODE(field, ts=[0.0, 1.0, 2.0], controlled=True)
    u = diffrax.LinearInterpolation(jnp.array([0.0, 3.0]), jnp.ones((2, 1)))
    sol, _ = node((jnp.zeros(2), u), *_empty(field))
    np.testing.assert_allclose(sol.ys, np.stack([1 - np.cos(sol.ts), np.sin(sol.ts)], -1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("law", [lux.HamiltonianNN, lux.LagrangianNN])
def test_the_energy_of_hamiltonian_and_lagrangian_equations_is_kept_to_1e_6(law):
    """A net for the potential, and a kinetic energy with a mass that depends on the place, which does not separate."""
    net, mass = lux.Chain(lux.Dense(1, 3, jnp.tanh), lux.Dense(3, 1)), lux.Lambda(lambda q: 1 + q**2 / 2)
    ps, st = lux.setup(jax.random.key(0), net)
    ps = ps.tree()

    def energy(z, law=law):
        q, v = z[..., :1], z[..., 1:]
        m, potential = mass.function(q), net.forward(q, ps, st)[0]
        return (v**2 / m if law is lux.HamiltonianNN else m * v**2) / 2 + potential

    def model(z):
        return energy(z) if law is lux.HamiltonianNN else energy(z) - 2 * energy(z.at[..., 1].set(0.0))

    node = lux.NeuralODE(law(lux.Lambda(model)), ts=np.linspace(0.0, 10.0, 5), rtol=1e-9, atol=1e-9)
    sol, _ = node(jnp.array([0.3, 0.8]), {}, {})
    values = energy(sol.ys)
    assert jnp.ptp(sol.ys[:, 0]) > 1.0
    np.testing.assert_allclose(values, jnp.broadcast_to(values[0], values.shape), atol=1e-6)


# --- symplectic solvers -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("solver", "order"), [(diffrax.SemiImplicitEuler(), 1), (lux.Verlet(), 2), (lux.Yoshida4(), 4)], ids=repr
)
def test_solvers_converge_with_their_order(solver, order):
    ode = lux.HamiltonianODE(kinetic, pendulum, ts=[0.0, 2.0], solver=solver, dt0=0.1, output="final")
    reference = lux.NeuralODE(
        lux.Lambda(lambda x: jnp.array([x[1], -jnp.sin(x[0])])), ts=[0.0, 2.0], rtol=1e-12, atol=1e-12, output="final"
    )(jnp.array([1.0, 0.5]), {}, {})[0]
    ps, st = _empty(ode)
    errors = [
        np.max(np.abs(np.ravel(ode.replace(dt0=h)(start(), ps, st)[0]) - np.asarray(reference))) for h in (0.1, 0.05)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2


@pytest.mark.parametrize(("solver", "dt0"), [(lux.Verlet(), 1e-3), (lux.Yoshida4(), 0.03)], ids=repr)
def test_the_energy_is_kept_at_all_times(solver, dt0):
    ode = lux.HamiltonianODE(kinetic, pendulum, ts=np.linspace(0.0, 60.0, 41), solver=solver, dt0=dt0, max_steps=61_000)
    ps, st = _empty(ode)
    sol, _ = jax.jit(ode)(start(), ps, st)
    energy = ode.energy(sol.ys, ps, st)
    np.testing.assert_allclose(energy, energy[0], atol=1e-6)
    assert lux.raise_if_failed(sol) is sol


def test_the_energy_of_a_learned_hamiltonian_does_not_drift():
    ode = lux.HamiltonianODE(kinetic, NET, ts=np.linspace(0.0, 200.0, 9), dt0=0.1)
    ps, st = lux.setup(jax.random.key(2), ode)
    sol, _ = ode((jnp.array([1.0, -0.5]), jnp.array([0.1, 0.2])), ps, st)
    energy = jnp.sum(sol.ys[1] ** 2, -1) / 2 + NET(sol.ys[0], ps.potential, st["potential"])[0][:, 0]
    error = jnp.abs(energy - energy[0])
    assert jnp.max(error) < 1e-3
    assert jnp.max(error[-3:]) < 2 * jnp.max(error[1:4]) + 1e-9


def test_verlet_is_reversible():
    ode = lux.HamiltonianODE(kinetic, pendulum, ts=[0.0, 5.0], dt0=0.1, output="final")
    ps, st = _empty(ode)
    there = ode(start(), ps, st)[0]
    back = ode.replace(ts=[5.0, 0.0], dt0=-0.1)(there, ps, st)[0]
    np.testing.assert_allclose(np.ravel(back), np.ravel(start()), rtol=1e-12)


@pytest.mark.exhaustive
def test_gradients_agree_with_finite_differences_and_a_second_adjoint():
    ode = lux.HamiltonianODE(kinetic, NET, ts=[0.0, 0.25, 0.6], dt0=0.1, max_steps=8)
    ps, st = lux.setup(jax.random.key(1), ode)
    y0, v = (jnp.array([1.0, -0.5]), jnp.array([0.1, 0.2])), jax.random.normal(jax.random.key(3), ps.shape)

    def loss(ps, ode=ode):
        return sum(jnp.sum(y**2) for y in ode(y0, ps, st)[0].ys)

    value = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(ps)
    np.testing.assert_allclose(gradient @ v, (value(ps + 1e-5 * v) - value(ps - 1e-5 * v)) / 2e-5, rtol=1e-7)
    with lux.derivatives.mode("forward"):
        np.testing.assert_allclose(
            jax.jvp(loss, (ps,), (lux.ComponentVector(v, ps.layout),))[1], gradient @ v, rtol=1e-10
        )


@pytest.mark.slow
def test_batches_and_times_per_call():
    ode = lux.HamiltonianODE(kinetic, pendulum, dt0=0.1, batching="vmap")
    ps, st = _empty(ode)
    y0 = jnp.array([[1.0], [0.3]]), jnp.array([[0.5], [jnp.nan]])
    ts = jnp.array([[0.0, 0.5], [0.0, 1.0]])
    sol, _ = ode((y0, ts), ps, st)
    alone, _ = ode.replace(batching="joint")((start(), ts[0]), ps, st)
    np.testing.assert_allclose(sol.ys[0][0], alone.ys[0], rtol=1e-12)
    assert jnp.all(jnp.isnan(sol.ys[0][1]))
    with pytest.raises(RuntimeError, match="by sample 1 of 2"):
        lux.raise_if_failed(sol)


def test_it_prints():
    text = repr(lux.HamiltonianODE(kinetic, NET, dt0=0.1, solver=lux.Yoshida4()))
    assert "dt0 = 0.1" in text and "Yoshida4()" in text and "kinetic = Lambda(<kinetic>)" in text


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.HamiltonianODE(kinetic, pendulum), "give their size, dt0="),
        (lambda: lux.HamiltonianODE(kinetic, pendulum, dt0=0.1, rtol=1e-3), "no tolerances"),
        (
            lambda: lux.HamiltonianODE(kinetic, pendulum, ts=[0.0, 1.0], dt0=0.1)(jnp.ones(2), *_two_empty()),
            r"the pair \(q, p\)",
        ),
        (
            lambda: lux.HamiltonianODE(kinetic, pendulum, dt0=0.1, solver=diffrax.Tsit5()),
            r"a solver of the pair \(q, p\), such as lux\.Verlet\(\), .*got Tsit5\(\)",
        ),
        (
            lambda: lux.HamiltonianODE(kinetic, pendulum, dt0=0.1)((jnp.ones(1), jnp.ones(1)), *_two_empty()),
            r"the tuple \(\(q, p\), times\)",
        ),
        (
            lambda: lux.GradientFlow(lux.Lambda(jnp.square))(jnp.ones(2), {}, {}),
            r"one element for each sample.*gives \(2,\)",
        ),
        (
            lambda: lux.PortHamiltonian(kinetic)(jnp.ones(3), {"hamiltonian": {}}, {"hamiltonian": {}}),
            "of even size, got 3",
        ),
        (
            lambda: lux.PortHamiltonian(kinetic, port=lux.Lambda(lambda x: x))(
                jnp.ones(2), *_two("hamiltonian", "port")
            ),
            r"takes the tuple \(x, u\)",
        ),
        (
            lambda: lux.PortHamiltonian(kinetic, lux.Lambda(lambda x: x[:1]))(
                jnp.ones(2), *_two("hamiltonian", "dissipation")
            ),
            r"the dissipation .* matrix of 2 rows",
        ),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


def _two(*names):
    return {name: {} for name in names}, {name: {} for name in names}


def _two_empty():
    return _two("kinetic", "potential")
