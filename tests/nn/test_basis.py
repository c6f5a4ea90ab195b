"""Bases, tensor products, splines, Kolmogorov-Arnold layers and embeddings, against NumPy and SciPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate

import lux_sciml as lux

RNG = np.random.default_rng(0)
X = np.array([-1.0, -0.7, 0.0, 0.3, 1.0])
KNOTS = np.array([0.0, 0.5, 0.7, 1.5, 2.0])


@pytest.mark.parametrize("size", [1, 2, 6])
def test_polynomial_bases_against_numpy(size):
    bases = {
        lux.PolynomialBasis: np.polynomial.polynomial.polyvander,
        lux.ChebyshevBasis: np.polynomial.chebyshev.chebvander,
        lux.LegendreBasis: np.polynomial.legendre.legvander,
    }
    for basis, vander in bases.items():
        assert np.allclose(basis(size)(X), vander(X, size - 1), atol=1e-14), basis


def test_chebyshev_values_are_exact():
    assert lux.ChebyshevBasis(5)(jnp.array([1.0, 0.0, -1.0])).tolist() == [
        [1, 1, 1, 1, 1],
        [1, 0, -1, 0, 1],
        [1, -1, 1, -1, 1],
    ]
    slopes = jax.jacfwd(lux.ChebyshevBasis(4))(jnp.array(1.0))
    assert slopes.tolist() == [0, 1, 4, 9]  # T_n'(1) = n^2: no singularity at the ends


def test_trigonometric_bases():
    n = np.arange(1, 4)
    assert np.allclose(lux.SineBasis(3)(X), np.sin(X[:, None] * n))
    assert np.allclose(lux.CosineBasis(3)(X), np.cos(X[:, None] * n))
    points = np.arange(16) * 2 * np.pi / 16
    values = np.asarray(lux.FourierBasis(6)(points))
    assert np.allclose(values.T @ values / 8, np.diag([2, 1, 1, 1, 1, 1]), atol=1e-14)
    assert np.allclose(values, lux.FourierBasis(6)(points + 2 * np.pi), atol=1e-13)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_b_splines_against_scipy(degree):
    basis = lux.BSplineBasis(6, degree, -1.0, 2.0)
    step = 3 / (6 - degree)
    knots = -1 + step * (np.arange(6 + degree + 1) - degree)
    x = np.linspace(-0.99, 1.99, 13)
    expected = scipy.interpolate.BSpline.design_matrix(x, knots, degree).toarray()
    assert np.allclose(basis(x), expected, atol=1e-14) and np.allclose(basis(x).sum(-1), 1)
    assert not np.any(basis(jnp.array([-9.0, 9.0])))
    with pytest.raises(ValueError, match="degree 3 are 4 or more, got 3"):
        lux.BSplineBasis(3)


def test_tensor_product(key):
    layer = lux.TensorProduct((lux.ChebyshevBasis(3), lux.FourierBasis(4)), 2)
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(5, 2))
    products = np.einsum("bi,bj->bij", lux.ChebyshevBasis(3)(x[:, 0]), lux.FourierBasis(4)(x[:, 1])).reshape(5, 12)
    assert np.allclose(layer(x, ps, st)[0], products @ np.asarray(ps.weight)) and ps.size == 24
    with pytest.raises(ValueError, match=r"expects inputs of shape \(\.\.\., 2\), got \(5, 3\)"):
        layer(jnp.ones((5, 3)), ps, st)


# --- splines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_splines_interpolate_and_agree_with_scipy(kind):
    layer = lux.Spline(KNOTS, 2, kind=kind)
    values = RNG.normal(size=(5, 2))
    ps = {"knot_values": jnp.asarray(values)}
    assert np.allclose(layer(KNOTS, ps, {})[0], values, atol=1e-14)
    x = np.linspace(-0.3, 2.4, 23).reshape(23, 1)
    scipys = {
        "linear": scipy.interpolate.make_interp_spline(KNOTS, values, k=1),
        "cubic": scipy.interpolate.CubicSpline(KNOTS, values, bc_type="natural"),
    }
    y, _ = layer(x, ps, {})
    assert y.shape == (23, 1, 2) and np.allclose(y, scipys[kind](x), atol=1e-13)


def test_a_cubic_spline_of_two_knots_is_a_line():
    ps = {"knot_values": jnp.array([[1.0], [3.0]])}
    assert np.allclose(lux.Spline([0.0, 2.0])(jnp.array([0.5, 3.0]), ps, {})[0][:, 0], [1.5, 4.0])


def test_splines_refuse_knots_in_disorder():
    for knots in ([0.0], [0.0, 0.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="two or more increasing knots, got"):
            lux.Spline(knots)
    with pytest.raises(ValueError, match="'linear' or 'cubic', got 'quintic'"):
        lux.Spline(KNOTS, kind="quintic")


# --- KAN, embeddings ----------------------------------------------------------------------------------------------


def test_kan_layer_is_its_formula(key):
    layer = lux.KANLayer(3, 2, lux.BSplineBasis(5, 2))
    ps, st = lux.setup(key, layer)
    x = RNG.uniform(-1, 1, size=(4, 3))
    weight, base = map(np.asarray, ps.unpack("weight", "base_weight"))
    functions = np.einsum("bik,iko->bo", np.asarray(layer.basis(x)), weight)
    assert np.allclose(layer(x, ps, st)[0], functions + np.asarray(jax.nn.silu(x)) @ base)
    assert ps.size == 3 * 5 * 2 + 3 * 2
    chebyshev = lux.KANLayer(3, 2, lux.ChebyshevBasis(4), activation=None)
    assert lux.parameter_length(chebyshev) == 24
    with pytest.raises(ValueError, match=r"\(\.\.\., 3\), got \(2,\)"):
        layer(jnp.ones(2), ps, st)


def test_periodic_embedding():
    layer = lux.PeriodicEmbedding((2, 0), (1.0, 3.0))
    x = RNG.normal(size=(4, 3))
    angles = 2 * np.pi * x[:, [2, 0]] / np.array([1.0, 3.0])
    expected = np.concatenate([x[:, [1]], np.sin(angles), np.cos(angles)], -1)
    y = layer(x, {}, {})[0]
    assert np.allclose(y, expected) and np.allclose(layer(x + np.array([6.0, 0.0, 2.0]), {}, {})[0], y)
    with pytest.raises(ValueError, match="got an input with the features 0 to 1"):
        layer(x[:, :2], {}, {})
    for arguments in (((0, 1), (1.0,)), ((0, 0), (1.0, 2.0))):
        with pytest.raises(ValueError, match="one period for each of several different indices"):
            lux.PeriodicEmbedding(*arguments)
    with pytest.raises(ValueError, match=r"^PeriodicEmbedding\.indices: expected a whole number of at least 0"):
        lux.PeriodicEmbedding(-1, 1.0)


def test_fourier_features(key):
    layer = lux.FourierFeatures(2, 4000, scale=3.0)
    ps, st = lux.setup(key, layer)
    assert ps.size == 0 and np.isclose(np.std(st["frequencies"]), 3, rtol=0.05)
    x = RNG.normal(size=(2,))
    angles = 2 * np.pi * x @ np.asarray(st["frequencies"])
    assert np.allclose(layer(x, ps, st)[0], np.concatenate([np.sin(angles), np.cos(angles)]))
    trained = layer.replace(trainable=True)
    assert lux.parameter_length(trained) == 4000 and lux.state_length(trained) == 0
    with pytest.raises(ValueError, match=r"FourierFeatures\.out_features: expected an even number .* got 3"):
        lux.FourierFeatures(2, 3)


# --- precisions, degenerate shapes, options -----------------------------------------------------------------------

BASES = [
    lux.PolynomialBasis(4),
    lux.ChebyshevBasis(4),
    lux.LegendreBasis(4),
    lux.FourierBasis(12),
    lux.SineBasis(12),
    lux.CosineBasis(12),
    lux.BSplineBasis(8, low=-4.0, high=4.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("basis", BASES, ids=lambda basis: type(basis).__name__)
def test_bases_of_integers_and_of_half_precision(basis):
    for kind in ("int32", "uint8", "bool"):
        x = np.array([[0, 1, 3], [2, 1, 2]], kind)
        assert basis(x).dtype == jnp.float64 and np.allclose(basis(x), basis(x.astype(float)))
    for half in ("bfloat16", "float16"):
        x = jnp.linspace(-3, 3, 20, dtype=half)
        assert basis(x).dtype == half and np.array_equal(basis(x), basis(x.astype("float32")).astype(half))
    assert basis(jnp.zeros((0, 2))).shape == (0, 2, basis.size) and basis(2).shape == (basis.size,)
    assert eval(repr(basis), vars(lux)) == basis


def test_a_basis_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Squares(lux.nn.basis.Basis):
        def values(self, x):
            return x[..., None] ** 2 * jnp.arange(self.size, dtype=x.dtype)

    assert Squares(3)(jnp.array(2)).tolist() == [0, 4, 8] and Squares(np.int64(3)) == Squares(3)
    layer = lux.TensorProduct([Squares(3)], 1)
    assert layer(jnp.ones((2, 1)), *lux.setup(jax.random.key(0), layer))[0].shape == (2, 1)


LINEAR = np.array([0.0, 0.5, 1.0, 1.5, 2.0])


@pytest.mark.slow
def test_deeponet_takes_empty_batches_and_no_points(key):
    model = lux.DeepONet(lux.MLP(4, 3, 10), lux.MLP(1, 3, 5), 2)
    ps, st = lux.setup(key, model)
    for samples, points in ((0, 6), (3, 0), (0, 0), (1, 1)):
        x = jnp.ones((samples, 4)), jnp.ones((points, 1))
        assert model(x, ps, st)[0].shape == (samples, points, 2)
        gradient = jax.grad(lambda ps, x=x: model(x, ps, st)[0].sum())(ps)
        assert np.isfinite(gradient.data).all()
    u, p = RNG.integers(0, 2, size=(3, 4)), RNG.integers(0, 3, size=(6, 1))
    plain = lux.DeepONet(lambda u: u, lambda p: jnp.concatenate([p] * 4, -1))
    own = {"branch": {}, "trunk": {}, "bias": jnp.full(1, 0.5)}
    assert np.allclose(plain((u, p), own, {"branch": {}, "trunk": {}})[0][..., 0], u.sum(-1)[:, None] * p[:, 0] + 0.5)
    for wrong, got in ((jnp.ones(3), "ArrayImpl"), ((u, p, p), "a tuple of 3"), ([u, p], "list")):
        with pytest.raises(ValueError, match=rf"DeepONet takes a tuple \(u, points\), got {got}"):
            model(wrong, ps, st)


def test_knots_are_kept_where_the_input_is_whole(key):
    layer = lux.Spline(LINEAR, kind="linear")
    ps = {"knot_values": jnp.array([[0.0], [5.0], [1.0], [7.0], [2.0]])}
    for x in (jnp.array([0, 1, 2]), [0, 1, 2]):
        assert layer(x, ps, {})[0][:, 0].tolist() == [0, 1, 2]
    assert layer(1, ps, {})[0].tolist() == [1]
    shifted = lux.Spline(LINEAR + 1.7e9)
    with pytest.raises(ValueError, match="two knots of this Spline are one in float32"):
        shifted(jnp.array([1.7e9], "float32"), {"knot_values": ps["knot_values"].astype("float32")}, {})


WRONG = [
    (lambda: lux.ChebyshevBasis(0), r"ChebyshevBasis\.size: expected a whole number of at least 1, got 0"),
    (lambda: lux.BSplineBasis(8, low=1.0, high=1.0), "BSplineBasis needs low < high, got 1.0 and 1.0"),
    (lambda: lux.TensorProduct((), 1), r"TensorProduct\.bases: expected one basis for each input"),
    (lambda: lux.TensorProduct((jnp.sin,), 1), r"TensorProduct\.bases: expected a basis such as lux\.ChebyshevBasis"),
    (
        lambda: lux.TensorProduct(lux.SineBasis(2), 0),
        r"TensorProduct\.out_features: expected a whole number of at least 1",
    ),
    (lambda: lux.KANLayer(2, 2, 8), r"KANLayer\.basis: expected a basis such as lux\.ChebyshevBasis\(5\), got 8"),
    (lambda: lux.KANLayer(2, 2, activation="silu"), r"KANLayer\.activation: expected a function such as jnp\.tanh"),
    (lambda: lux.KANLayer(0, 2), r"KANLayer\.in_features: expected a whole number of at least 1, got 0"),
    (lambda: lux.Spline(KNOTS, 1.5), r"Spline\.out_features: expected a whole number, got 1\.5"),
    (lambda: lux.DeepONet(jnp.sin, 3), r"DeepONet\.trunk: expected a layer or a function, got 3"),
    (lambda: lux.DeepONet(jnp.sin, jnp.sin, 0), r"DeepONet\.out_features: expected a whole number of at least 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_options_are_refused_where_they_are_given(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()
