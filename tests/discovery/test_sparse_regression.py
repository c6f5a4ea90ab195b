"""Sparse regression: known terms found, as pysindy finds them; docs/symbolic.md has a universal equation."""

import jax.numpy as jnp
import numpy as np
import pytest

from lux_sciml.discovery import SparseTerms, polynomials, sparse_regression

RNG = np.random.default_rng(0)
X = RNG.uniform(0.5, 3.0, (300, 2))
TERMS = polynomials(("x", "y"), 3) | {"sin x": lambda x, y: jnp.sin(x)}


def truth(x):
    a, b = x.T
    return np.stack([-0.9 * a * b + 1.5 * np.sin(a), 0.8 * a * b - 1.8 * b + 0.25], 1)


def test_known_terms_are_found_by_both_methods():
    noisy = truth(X) + 0.01 * RNG.normal(size=(300, 2))
    greedy = sparse_regression(X, noisy, TERMS, outputs=("dx", "dy"))
    assert dict(greedy.layer.outputs) == {"dx": ("x y", "sin x"), "dy": ("1", "y", "x y")}
    assert greedy.complexity == 5 and max(greedy.error.values()) < 0.02
    np.testing.assert_allclose(greedy.params.dx.data, [-0.9, 1.5], rtol=0.01)
    np.testing.assert_allclose(greedy.params.dy.data, [0.25, -1.8, 0.8], rtol=0.04)
    assert repr(greedy).startswith("dx = -0.") and "x y" in repr(greedy)
    errors = [step.error for step in greedy.path["dy"]]
    assert errors == sorted(errors, reverse=True) and [len(step.terms) for step in greedy.path["dy"]][:3] == [1, 2, 3]
    few = polynomials(("x", "y"), 2) | {"sin x": TERMS["sin x"]}
    stlsq = sparse_regression(X, noisy, few, outputs=("dx", "dy"), method="stlsq", threshold=0.05)
    assert dict(stlsq.layer.outputs) == dict(greedy.layer.outputs)
    values, _ = greedy.layer(jnp.asarray(X), greedy.params, {})
    np.testing.assert_allclose(values, truth(X), atol=0.05)
    nothing = sparse_regression(X, np.zeros((300, 1)), TERMS)
    assert nothing.complexity == 0 and nothing.layer.outputs["y_0"] == ()


def test_whole_numbers_are_not_counted_in_their_own_size():
    x = RNG.integers(0, 2000, (200, 2), dtype=np.int32)
    small = (x % 5).astype(np.int8)
    fit = sparse_regression(x, x.astype(float) ** 3 - x[:, ::-1], TERMS)
    assert dict(fit.layer.outputs) == {"y_0": ("y", "x^3"), "y_1": ("x", "y^3")} and max(fit.error.values()) < 1e-6
    fit = sparse_regression(small, 30 * small, polynomials(("x", "y")))
    assert fit.params["y_1"]["y"] == pytest.approx(30) and max(fit.error.values()) < 1e-6


def test_thresholds_are_those_of_pysindy():
    pysindy = pytest.importorskip("pysindy")
    few = polynomials(("x", "y"), 2)
    columns = np.stack([np.asarray(term(*X.T)) for term in few.values()], 1)
    y = truth(X)[:, 1:] + 0.1 * RNG.normal(size=(300, 1))
    scale = np.sqrt(np.mean(columns**2, 0))
    size = np.sqrt(np.mean(y**2))
    theirs = pysindy.STLSQ(threshold=0.1, alpha=0.0, normalize_columns=False).fit(columns / scale, y / size).coef_[0]
    ours = sparse_regression(X, y, few, method="stlsq", threshold=0.1)
    coefficients = {name: c * size / s for name, c, s in zip(few, theirs, scale, strict=True) if c}
    assert ours.layer.outputs["y_0"] == tuple(coefficients)
    np.testing.assert_allclose(ours.params["y_0"].data, list(coefficients.values()), rtol=1e-6)


def test_what_is_no_data_and_no_library():
    y = truth(X)
    with pytest.raises(ValueError, match=r"got shapes \(300, 2\) and \(300,\)"):
        sparse_regression(X, y[:, 0], TERMS)
    with pytest.raises(ValueError, match="leave out those that are NaN"):
        sparse_regression(X, y * np.nan, TERMS)
    with pytest.raises(ValueError, match="the term 'log' is not finite at some of the points"):
        sparse_regression(X - 1.0, y, {"log": lambda x, y: jnp.log(x)})
    with pytest.raises(ValueError, match="the term 'sum' is elementwise"):
        sparse_regression(X, y, {"sum": lambda x, y: jnp.sum(x)})
    with pytest.raises(ValueError, match="'greedy' or 'stlsq'"):
        sparse_regression(X, y, TERMS, method="lasso")
    with pytest.raises(ValueError, match="ridge is not negative, and finite, got -1"):
        sparse_regression(X, y, TERMS, ridge=-1.0)
    with pytest.raises(TypeError, match="terms are functions by name"):
        sparse_regression(X, y, [lambda x, y: x])
    with pytest.raises(ValueError, match=r"of the variables \('x', 'y', 'z'\), got 2 of them"):
        sparse_regression(X, y, polynomials(("x", "y", "z")))
    with pytest.raises(ValueError, match="the variables have different names"):
        polynomials(("x", "x"))
    with pytest.raises(ValueError, match="2 different names of outputs"):
        sparse_regression(X, y, TERMS, outputs=("dx", "dx"))
    with pytest.raises(ValueError, match="'dx' has a term 'z'"):
        SparseTerms(TERMS, {"dx": ["z"]})
    with pytest.raises(TypeError, match="names of the terms of each output"):
        SparseTerms(TERMS, {"dx": "x y"})
