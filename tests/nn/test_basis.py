"""Bases, tensor products, splines, Kolmogorov-Arnold layers and embeddings, against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate

import lux_sciml as lux
from lux_sciml.testing import check_layer

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


LAYERS = [
    (lux.TensorProduct((lux.LegendreBasis(3), lux.SineBasis(2)), 2), RNG.normal(size=(3, 2)), {}),
    (lux.Spline(KNOTS, 2), np.array([0.1, 0.6, 1.9]), {}),
    (lux.KANLayer(2, 2), np.array([[0.1, 0.33], [-0.4, 0.77]]), {}),
    (lux.PeriodicEmbedding((1,), (2.0,)), RNG.normal(size=(3, 2)), {}),
    (lux.FourierFeatures(2, 4), RNG.normal(size=(3, 2)), {}),
]


@pytest.mark.parametrize(("layer", "x", "options"), LAYERS, ids=lambda value: type(value).__name__)
def test_layers_keep_the_contract(layer, x, options):
    check_layer(layer, x, **options)
