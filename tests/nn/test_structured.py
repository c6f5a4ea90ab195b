"""Networks with structure: MLP, SIREN, energies, Lyapunov functions, convex and monotone networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2))


# --- MLP, Siren ---------------------------------------------------------------------------------------------------


def test_mlp_is_a_chain(key):
    model = lux.MLP(2, (5, 3), 1, jax.nn.relu)
    ps, st = lux.setup(key, model)
    chain = lux.Chain(lux.Dense(2, 5, jax.nn.relu), lux.Dense(5, 3, jax.nn.relu), lux.Dense(3, 1))
    assert model.layers == chain and ps.equals(lux.setup(key, chain)[0])
    assert np.array_equal(model(X, ps, st)[0], chain(X, ps, st)[0])
    assert repr(model).startswith("MLP(2, (5, 3), 1, jax.nn.relu)") and "37 parameters" in repr(model)
    assert lux.parameter_length(lux.MLP(2, (), 1)) == 3


def test_options_of_an_mlp():
    model = lux.MLP(2, (4, 4), 1, norm=lux.LayerNorm, dropout_rate=0.5, residual=True, last_activation=jnp.exp)
    first, second, last = model.layers
    assert first == lux.Chain(lux.Dense(2, 4), lux.LayerNorm(4), jnp.tanh, lux.Dropout(0.5))
    assert second == lux.SkipConnection(
        lux.Chain(lux.Dense(4, 4), lux.LayerNorm(4), jnp.tanh, lux.Dropout(0.5)), jnp.add
    )
    assert last == lux.Dense(4, 1, jnp.exp)


def test_siren_keeps_its_spread(key):
    model = lux.Siren(1, (200, 200, 200), 50)
    ps, st = lux.setup(key, model)
    y, x = model(np.linspace(-1, 1, 200)[:, None], ps, st)[0], np.linspace(-1, 1, 200)[:, None]
    for layer, name in list(zip(model.layers, ps.keys(), strict=True))[:-1]:
        x, _ = layer(x, ps[name], {})
        assert 0.6 < np.std(x) < 0.8  # the arcsine distribution has 0.71
    assert np.abs(np.asarray(ps.layer_1.weight)).max() <= np.sqrt(6 / 200) / 30
    assert np.allclose(y, np.asarray(x) @ np.asarray(ps.layer_3.weight) + np.asarray(ps.layer_3.bias))


# --- energies -----------------------------------------------------------------------------------------------------


def test_hamiltonian_is_the_symplectic_gradient(key):
    energy = lux.MLP(4, 8, 1)
    layer = lux.HamiltonianNN(energy)
    ps, st = lux.setup(key, layer)
    z = RNG.normal(size=(3, 4))
    gradient = jax.vmap(jax.grad(lambda z: energy(z, ps, st)[0][0]))(z)
    symplectic = np.block([[np.zeros((2, 2)), np.eye(2)], [-np.eye(2), np.zeros((2, 2))]])
    assert np.allclose(layer(z, ps, st)[0], gradient @ symplectic.T, atol=1e-14)


def test_a_hamiltonian_network_keeps_its_energy(key):
    energy = lux.MLP(2, 8, 1)
    node = lux.NeuralODE(lux.HamiltonianNN(energy), ts=[0.0, 1.0, 3.0], rtol=1e-10, atol=1e-10)
    ps, st = lux.setup(key, node)
    ys = node(jnp.array([1.0, 0.5]), ps, st)[0].ys
    values = np.asarray(energy(ys, ps, st)[0])
    assert np.ptp(ys[:, 0]) > 0.05 and np.allclose(values, values[0], atol=1e-9)


def test_lagrangian_of_a_pendulum_and_of_a_moving_mass(key):
    """A double check: a known equation, and a Lagrangian with a mass matrix that depends on the position."""
    pendulum = lux.LagrangianNN(lux.Lambda(lambda z: z[..., 1:] ** 2 / 2 + jnp.cos(z[..., :1])))
    z = RNG.normal(size=(5, 2))
    assert np.allclose(pendulum(z, {}, {})[0], np.stack([z[:, 1], -np.sin(z[:, 0])], -1))
    polar = lux.LagrangianNN(lux.Lambda(lambda z: (z[..., 2] ** 2 + (z[..., 0] * z[..., 3]) ** 2) / 2))
    r, _, vr, w = z = np.array([1.5, 0.3, 0.2, 0.7])
    assert np.allclose(polar(z, {}, {})[0], [vr, w, r * w**2, -2 * vr * w / r])  # a free particle


def test_a_lagrangian_network_keeps_its_energy(key):
    model = lux.Lambda(lambda z: jnp.sum((1 + z[..., :1] ** 2) * z[..., 1:] ** 2, -1) / 2 - z[..., 0] ** 4)
    node = lux.NeuralODE(lux.LagrangianNN(model), ts=[0.0, 1.0, 2.0], rtol=1e-10, atol=1e-10)
    q, v = np.asarray(node(jnp.array([0.5, 1.0]), *lux.setup(key, node))[0].ys).T
    energies = (1 + q**2) * v**2 / 2 + q**4
    assert np.ptp(q) > 0.1 and np.allclose(energies, energies[0], atol=1e-8)


def test_energies_refuse_what_is_none(key):
    for layer in (lux.HamiltonianNN(lux.Dense(4, 2)), lux.LagrangianNN(lux.Dense(4, 2))):
        ps, st = lux.setup(key, layer)
        with pytest.raises(
            ValueError, match=r"of shape \(3,\) or \(3, 1\) for inputs \(3, 4\); this Dense gives \(3, 2\)"
        ):
            layer(jnp.ones((3, 4)), ps, st)
        with pytest.raises(ValueError, match=r"an even number of features, got \(3, 3\)"):
            layer(jnp.ones((3, 3)), ps, st)


# --- Lyapunov -----------------------------------------------------------------------------------------------------


def test_positive_definite(key):
    layer = lux.PositiveDefinite(lux.MLP(2, 8, 3), [0.5, -1.0])
    ps, st = lux.setup(key, layer)
    assert layer(jnp.array([[0.5, -1.0]]), ps, st)[0].tolist() == [[0.0]]
    values = layer(X, ps, st)[0]
    assert values.shape == (4, 1) and np.all(values >= np.sum((X - np.array([0.5, -1.0])) ** 2, -1, keepdims=True))
    other = lux.PositiveDefinite(lux.Dense(2, 3), psi=lambda y: jnp.max(jnp.abs(y), -1, keepdims=True))
    ps, st = lux.setup(key, other)
    expected = np.abs(X @ np.asarray(ps.weight)).max(-1, keepdims=True) + (X**2).sum(-1, keepdims=True)
    assert np.allclose(other(X, ps, st)[0], expected)


def test_shift_to(key):
    layer = lux.Pinned(lux.Dense(2, 3, jnp.tanh), [0.5, -1.0], [1.0, 2.0, 3.0])
    ps, st = lux.setup(key, layer)
    assert np.allclose(layer(jnp.array([[0.5, -1.0]]), ps, st)[0], [[1, 2, 3]])
    assert np.allclose(np.ptp(layer(X, ps, st)[0] - layer.model(X, ps, st)[0], axis=0), 0)
    with pytest.raises(ValueError, match=r"Pinned has a point of shape \(2,\), got an array of \(4, 3\)"):
        layer(jnp.ones((4, 3)), ps, st)


# --- convex, monotone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_convex_networks_are_convex(seed):
    model = lux.ConvexMLP(2, (6, 5), 2)
    ps, st = lux.setup(jax.random.key(seed), model)
    a, b = RNG.normal(0, 3, size=(2, 200, 2))
    ya, yb, middle = (model(x, ps, st)[0] for x in (a, b, 0.3 * a + 0.7 * b))
    gap = 0.3 * ya + 0.7 * yb - middle
    assert np.all(gap > -1e-12) and np.any(gap > 1e-2)
    assert ps.size == (2 + 1) * (6 + 5 + 2) + (6 * 5 + 5) + (5 * 2 + 2)


def test_monotone_networks_are_monotone(key):
    model = lux.MonotoneMLP(3, 6, 2, signs=(1, -1, 1))
    ps, st = lux.setup(key, model)
    jacobian = lux.derivatives.batched_jacobian(lambda x: model(x, ps, st)[0], RNG.normal(size=(50, 3)))
    assert np.all(np.asarray(jacobian) * np.array([1, -1, 1]) > 0)
    for signs in ((1, 1), (1, 0, 1)):
        with pytest.raises(ValueError, match="needs 3 signs, each 1 or -1"):
            lux.MonotoneMLP(3, 6, 2, signs=signs)


# --- precisions, degenerate shapes, options, kinds of input ---------------------------------------------------------

POINT = [0.25, 2.5]
SMALL = [
    lux.MLP(2, (6, 6), 3, norm=lux.LayerNorm, residual=True),
    lux.Siren(2, 16, 1),
    lux.PositiveDefinite(lux.MLP(2, 4, 3), POINT),
    lux.PositiveDefinite(lux.Dense(2, 3)),
    lux.Pinned(lux.MLP(2, 4, 2), POINT, [5.5, -0.25]),
    lux.Pinned(lux.MLP(2, 4, 2)),
    lux.ConvexMLP(2, (6, 6), 1),
    lux.MonotoneMLP(2, (6, 6), 1, signs=(1, -1)),
]


def test_known_values_are_kept_for_integers(key):
    layer = lux.Pinned(lux.Dense(2, 1), [1.0, 2.0], [5.5])
    ps, st = lux.setup(key, layer)
    with jax.numpy_dtype_promotion("standard"):
        assert layer(jnp.array([1, 2]), ps, st)[0] == 5.5
    positive = lux.PositiveDefinite(lambda x: x, [2, 200])
    x = np.array([[0, 100], [2, 200]], "uint8")
    assert positive(x, {}, {})[0][:, 0].tolist() == [2 * (4 + 10000), 0]
    indexed = lux.Pinned(lux.Chain(lux.Embedding(4, 3), lambda e: e.reshape(*e.shape[:-2], 6)), [1, 2], np.ones(6))
    ps, st = lux.setup(key, indexed)
    assert np.allclose(indexed(jnp.array([[1, 2]]), ps, st)[0], 1)


def test_known_values_of_vectors_and_trees():
    state = lux.ComponentVector(q=[1.0, 2.0], p=3.0)
    f = lux.Lambda(lambda z: lux.ComponentVector(q=z.q**2, p=jnp.sin(z.p)))
    pinned = lux.Pinned(f, state, [0.5, 0.25, -1.0])
    y = pinned(state, {}, {})[0]
    assert isinstance(y, lux.ComponentVector) and np.allclose(y.data, [0.5, 0.25, -1.0])
    other = lux.ComponentVector(q=[0.0, 0.0], p=3.0)
    assert np.allclose(pinned(other, {}, {})[0].data, [-0.5, -3.75, -1.0])
    assert lux.PositiveDefinite(f, state)(state, {}, {})[0].tolist() == [0.0]
    assert lux.PositiveDefinite(f, state)(other, {}, {})[0].tolist() == [1.0 + 16.0 + 5.0]
    tree = lux.Pinned(lambda z: {"a": z["a"] ** 2, "b": z["b"].sum(-1)}, {"a": [1.0], "b": [2.0, 3.0]})
    y = tree({"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[2.0, 3.0], [1.0, 1.0]])}, {}, {})[0]
    assert y["a"].tolist() == [[0.0], [3.0]] and y["b"].tolist() == [0.0, -3.0]
    with pytest.raises(ValueError, match=r"Pinned has a point of shape \(3,\), got \{'a': f64\[1\]\}"):
        pinned({"a": jnp.ones(1)}, {}, {})


WRONG = [
    (lambda: lux.MLP(2, 2, 8, 1), r"^MLP\.activation: expected a function such as jnp\.tanh, got 1"),
    (lambda: lux.MLP(2, (8, 0), 1), r"^MLP\.hidden_features\[1\]: expected a whole number of at least 1, got 0"),
    (lambda: lux.MLP(2, 8.0, 1), r"^MLP\.hidden_features: expected a whole number, got 8\.0"),
    (lambda: lux.MLP("2", 8, 1), r"^MLP\.in_features: expected a whole number, got '2'"),
    (lambda: lux.MLP(2, 8, 1, norm=lux.LayerNorm(8)), r"^MLP\.norm: expected a function"),
    (lambda: lux.MLP(2, 8, 1, use_bias=0.5), r"^MLP\.use_bias: expected True or False, got 0\.5"),
    (lambda: lux.MLP(2, 8, 1, dropout_rate="a"), r"^MLP\.dropout_rate: expected a number, got 'a'"),
    (lambda: lux.MLP(2, 8, 1, init_weight=0.1), r"^MLP\.init_weight: expected a function"),
    (lambda: lux.Siren(2, 8, 1, omega="a"), r"^Siren\.omega: expected a number, got 'a'"),
    (lambda: lux.Siren(2, 8, 0), r"^Siren\.out_features: expected a whole number of at least 1, got 0"),
    (lambda: lux.ConvexMLP(2, 8, 1, "relu"), r"^ConvexMLP\.activation: expected a function"),
    (lambda: lux.MonotoneMLP(2, 8, 1, signs=(1.5, 1)), r"^MonotoneMLP\.signs\[0\]: expected a whole number, got 1\.5"),
    (lambda: lux.PositiveDefinite(3), r"^PositiveDefinite\.model: expected a layer or a function, got 3"),
    (lambda: lux.PositiveDefinite(jnp.sin, psi=2.0), r"^PositiveDefinite\.psi: expected a function"),
    (lambda: lux.PositiveDefinite(jnp.sin, "origin"), r"^PositiveDefinite\.x0: expected numbers, got array\('origin'"),
    (lambda: lux.Pinned(jnp.sin, [1.0], {"a": [object()]}), r"^Pinned\.y0: expected numbers, got"),
    (lambda: lux.Scale(b"3"), r"^Scale\.shape: expected a whole number, got b'3'"),
    (lambda: lux.Dense(2, 2, lux.Dense(2, 2)), r"^Dense\.activation: expected a function such as .*got Dense\(2, 2\)$"),
]


@pytest.mark.parametrize(("make", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_options_are_refused_where_they_are_given(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()


@pytest.mark.exhaustive
def test_options_have_one_form():
    for widths in (8, [8], np.array([8]), np.int64(8), (np.int32(8),)):
        assert lux.MLP(np.int64(2), widths, 1) == lux.MLP(2, (8,), 1)
        assert lux.ConvexMLP(2, widths, 1) == lux.ConvexMLP(2, 8, 1)
    assert lux.MonotoneMLP(2, 8, 1, signs=np.array([1, -1])).signs == (1, -1)
    for layer in SMALL:
        assert (
            eval(repr(layer).split("#")[0] if "\n" not in repr(layer) else repr(layer), vars(lux) | {"jnp": jnp})
            == layer
        )
