"""root_find with names, over optimistix and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml.optimize.root_find import METHODS


def equations(p, args):
    total, _ = args
    return lux.ComponentVector(mass=p.x.sum() + p.s - total, law=jnp.array([p.x[0] * p.x[1] - 1.0, jnp.exp(p.s) - 1.0]))


@pytest.fixture
def start():
    return lux.ComponentVector(x=[1.8, 0.8], s=0.1)


OPTIMISTIX = {
    "Newton": optx.Newton(rtol=1e-8, atol=1e-8),
    "Chord": optx.Chord(rtol=1e-8, atol=1e-8),
    "Dogleg": optx.Dogleg(rtol=1e-10, atol=1e-10),
    "ours": lux.LevenbergMarquardt(1e-12, 1e-12),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", [*OPTIMISTIX, *METHODS])
def test_all_methods_find_the_root(method, start):
    found = lux.root_find(equations, start, method=OPTIMISTIX.get(method, method), args=(2.5, "a name"), max_steps=3000)
    if method in ("linearmixing", "diagbroyden", "broyden2", "anderson") and not found.success:  # may well fail
        assert found.value <= float(jnp.max(jnp.abs(equations(start, (2.5, "")).data)))
        assert "the equation `" in found.message
        return
    x, s = np.sort(found.params.x), found.params.s  # there are two roots
    assert found.success and found.steps > 0 and np.allclose([*x, s], [0.5, 2.0, 0.0], atol=1e-4)
    assert found.residual.law.shape == (2,) and found.value == np.max(np.abs(found.residual.data)) < 1e-5


def test_trees_bounds_float32_and_what_has_no_root(start):
    tree = lux.root_find(lambda t: {"f": t["x"] ** 2 - 2}, {"x": np.float32([1.0, -1.0])}, method=OPTIMISTIX["Newton"])
    assert tree.params["x"].dtype == "float32" and np.allclose(tree.params["x"], [2**0.5, -(2**0.5)], atol=1e-6)
    single = lux.root_find(lambda x: x**2 - 2, np.float32([1.0, 1.5]), method="krylov")
    assert single.success and np.allclose(single.params, 2**0.5, atol=1e-5)
    level = lux.root_find(lambda x: 0 * x + 1, np.ones(2), method="krylov")
    assert not level.success and "krylov did not converge: Jacobian inversion" in level.message
    wave = lambda x: jnp.sin(x)  # noqa: E731
    bounded = lux.root_find(wave, 1.9, method=OPTIMISTIX["Newton"], bounds=(1.5, 4.0))
    assert bounded.success and np.isclose(bounded.params, np.pi)
    bisection = optx.Bisection(rtol=1e-10, atol=1e-10)
    inside = lux.root_find(lambda x: jnp.log(x), -3.0, method=OPTIMISTIX["Newton"], bounds=(0.5, 4.0))
    assert inside.success and np.isclose(inside.params, 1.0)
    halved = lux.root_find(wave, 2.9, method=bisection, options=dict(lower=1.5, upper=4.0))
    assert halved.success and halved.params.shape == () and np.isclose(halved.params, np.pi)
    nowhere = lux.root_find(lambda p: p**2 + 1, lux.ComponentVector(x=1.0, y=2.0), method="hybr")
    assert not nowhere.success and nowhere.value < 5 and "; the equation `" in nowhere.message
    newton = lux.root_find(lambda p: p**2 + 1, lux.ComponentVector(x=1.0, y=2.0), method=OPTIMISTIX["Newton"])
    assert not newton.success and np.isfinite(newton.value)
    never = lux.root_find(lambda p, a: p * a, start, args=jnp.nan)
    assert not never.success and "not finite at the start" in never.message and "`args`" in never.message


def test_optimistix_takes_named_vectors_inside_of_jit_and_grad(start):
    def root(total):
        f = lambda p, total: equations(p, (total, ""))  # noqa: E731
        return optx.root_find(f, OPTIMISTIX["Newton"], start, total).value.x[0]

    value, slope = jax.jit(jax.value_and_grad(root))(2.5)
    assert np.isclose(value, 2.0) and np.isclose(slope, 4 / 3)  # x + 1 / x = total: dx = dtotal / (1 - 1 / x^2)


def test_wrong_calls(start):
    with pytest.raises(ValueError, match="as many equations as unknowns, got 2 of 3 unknowns"):
        lux.root_find(lambda p: p.x, start)
    with pytest.raises(ValueError, match="Bisection is for one equation of one unknown, got 3"):
        lux.root_find(equations, start, method=optx.Bisection(1e-3, 1e-3), args=(1.0, ""))
    with pytest.raises(TypeError, match="a function has real values: of complex ones, return the real and the imagi"):
        lux.root_find(lambda p: jax.lax.complex(p.data, p.data), start)
    with pytest.raises(ValueError, match="SciPy has no root finder 'newton'"):
        lux.root_find(equations, start, method="newton", args=(1.0, ""))
    with pytest.raises(ValueError, match="hybr takes no bounds"):
        lux.root_find(equations, start, args=(1.0, ""), bounds=(0, 1))
    with pytest.raises(TypeError, match=r"the function is called as function\(ps, args\)"):
        lux.root_find(lambda p: p, start, args=1.0)
    with pytest.raises(TypeError, match="method is an optimistix root finder"):
        lux.root_find(lambda p: p, start, method=optx.BFGS(1e-3, 1e-3))
