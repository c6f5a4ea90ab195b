"""Complex states and parameters: gradients are those of JAX's convention, by finite differences, or refused by name."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

pytestmark = pytest.mark.filterwarnings("ignore:Complex support in Optimistix")


@pytest.fixture(autouse=True)
def promotion():
    """Real numbers times complex ones."""
    with jax.numpy_dtype_promotion("standard"):
        yield


W, Y0 = 0.8 - 0.2j, np.array([0.7 + 0.3j, -0.2 + 0.5j])


class Field(lux.Layer):
    """Not holomorphic: it takes absolute values and conjugates."""

    def init_params(self, key):
        return {"w": jnp.ones((), complex)}

    def forward(self, y, ps, st):
        return 1j * ps["w"] * y - 0.5 * jnp.abs(y) ** 2 * y + 0.2 * jnp.conj(y), st


def loss(adjoint, **options):
    options = {"rtol": 1e-8, "atol": 1e-10, "max_steps": 256, "output": "ys", **options}
    node = lux.NeuralODE(Field(), ts=[0.0, 0.5, 1.0], adjoint=adjoint, **options)

    def value(w, y0):
        ys = node(y0, {"w": w}, {})[0][-2:]
        return jnp.sum(jnp.abs(ys) ** 2 * jnp.array([[1.0], [2.0]])) + jnp.sum(ys.real * ys.imag)

    return value


def by_differences(value):
    """dL/dx - i dL/dy for each parameter and initial value x + i y, as `jax.grad` gives it."""

    def slope(dw, dy):
        return (value(W + h * dw, Y0 + h * dy) - value(W - h * dw, Y0 - h * dy)) / (2 * h)

    value, h, none = jax.jit(value), 1e-4, np.zeros(2, complex)
    rows = [(1, none), *((0, unit) for unit in np.eye(2, dtype=complex))]
    return np.array([slope(dw, dy) - 1j * slope(1j * dw, 1j * dy) for dw, dy in rows])


EXPLICIT, IMPLICIT = {}, {"solver": diffrax.Kvaerno5(), "rtol": 1e-7, "atol": 1e-9}
FIXED = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.02, "rtol": 1e-6, "atol": 1e-8}  # defaults


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("adjoint", "options"),
    [
        ("checkpointed", EXPLICIT),
        ("checkpointed", FIXED),
        ("direct", EXPLICIT),
        ("gauss", EXPLICIT),
        ("gauss", IMPLICIT),
    ],
)
def test_gradients_are_those_of_finite_differences(adjoint, options):
    value = loss(adjoint, **options)
    by_w, by_y0 = jax.jit(jax.grad(value, (0, 1)))(jnp.array(W), jnp.asarray(Y0))
    np.testing.assert_allclose([by_w, *by_y0], by_differences(value), rtol=3e-5)


@pytest.mark.slow
def test_forward_mode_is_that_of_finite_differences():
    value = loss("forward")
    exact = by_differences(value)

    def slope(dw):
        return jax.jvp(value, (jnp.array(W), jnp.asarray(Y0)), (jnp.array(dw), jnp.zeros_like(Y0)))[1]

    np.testing.assert_allclose(slope(1.0 + 0j) - 1j * slope(1j), exact[0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("adjoint", "options"),
    [("backsolve", EXPLICIT), ("checkpointed", IMPLICIT), ("direct", IMPLICIT), ("implicit", {"output": "final"})],
)
def test_where_they_would_be_wrong_they_are_refused(adjoint, options):
    value = loss(adjoint, **options)
    assert np.isfinite(value(jnp.array(W), jnp.asarray(Y0)))
    with pytest.raises(
        TypeError, match=rf"adjoint='{adjoint}' of \w+ has derivatives of real states .*adjoint='gauss'"
    ):
        jax.grad(value)(jnp.array(W), jnp.asarray(Y0))
