"""Layers as SymPy's expressions: evaluated, they are the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

sympy = pytest.importorskip("sympy")

KAN = lux.KANLayer(2, 2, lux.nn.BSplineBasis(5))
LAYERS = {
    "net": lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 2, jax.nn.relu), lux.Dense(2, 2, use_bias=False)),
    "gated": lux.Chain(lux.Dense(2, 4, jax.nn.gelu), lux.LayerNorm(4), lux.Dense(4, 1, jax.nn.softmax)),
    "chebyshev": lux.KANLayer(2, 2, lux.nn.ChebyshevBasis(4), activation=None),
    "kan": KAN,
    "repeated": lux.RepeatedLayer(lux.Dense(2, 2, jnp.sin), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_expressions_are_the_layers(name, key):
    layer = LAYERS[name]
    ps, st = lux.setup(key, layer)
    found = lux.symbolic(layer, ps, st, ("x", "y"))
    function = sympy.lambdify(sympy.symbols("x y", real=True), list(found), ["scipy", "numpy"])
    for point in np.random.default_rng(0).uniform(-1.4, 1.4, (7, 2)):
        np.testing.assert_allclose(function(*point), layer(jnp.asarray(point), ps, st)[0], rtol=1e-10, atol=1e-12)


def test_expressions_are_read():
    net = lux.Chain(lux.Dense(2, 1, jnp.tanh), lux.Dense(1, 1, use_bias=False))
    ps, st = lux.setup(jax.random.key(0), net)
    ps = ps.replace(layer_0={"weight": [[2.0], [-1.0]], "bias": 0.5}, layer_1={"weight": 3.0})
    (found,) = lux.symbolic(net, ps, st, ("x", "y"))
    x, y = sympy.symbols("x y", real=True)
    assert found == 3 * sympy.tanh(2 * x - y + 0.5)
    assert lux.symbolic(lambda u: u[0] ** 2 + jnp.maximum(u[1], 1.0), variables=(x, y)) == x**2 + sympy.Max(1, y)
    matrix = lux.symbolic(lambda u: jnp.outer(u, jnp.cumsum(u[::-1])), variables=("x", "y"))
    halves = lux.symbolic(lambda u: jax.lax.div(jnp.floor(u).astype(int), jnp.array([2, 2])), variables=(x, y))
    assert [half.subs({x: -2.5, y: 3.5}) for half in halves] == [-1, 1]  # of integers, towards zero
    assert matrix[1][1] == y * (x + y) or sympy.expand(matrix[1][1] - y * (x + y)) == 0


def test_what_has_no_expression():
    spline = lux.Spline([0.0, 1.0, 2.0])
    ps, st = lux.setup(jax.random.key(0), spline)
    with pytest.raises(ValueError, match=r"SymPy has no translation of .*; symbolic is for layers of functions"):
        lux.symbolic(spline, ps, st, ("x",))
    with pytest.raises(ValueError, match="no translation of 'and' of the bits of integers"):
        lux.symbolic(lambda u: jnp.floor(u).astype(int) & 1)
    with pytest.raises(ValueError, match="variables have different names"):
        lux.symbolic(jnp.sum, variables=("x", "x"))
    with pytest.raises(TypeError, match="variables are a tuple of names"):
        lux.symbolic(spline, ps, st, "x")
    with pytest.raises(TypeError, match="a function of one array"):
        lux.symbolic(3.0)
    with pytest.raises(TypeError, match="whose output is one array"):
        lux.symbolic(lambda x: {"a": x, "b": x})
    kept = lux.setup(jax.random.key(0), KAN)
    with pytest.raises(ValueError, match=r"expects inputs of shape \(\.\.\., 2\), got \(3,\)"):
        lux.symbolic(KAN, *kept, ("x", "y", "z"))
