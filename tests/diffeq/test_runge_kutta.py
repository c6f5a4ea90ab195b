"""Explicit Runge-Kutta steps whose stages are written out."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lux_sciml.diffeq.solvers.runge_kutta import unrolled


def paths(dtype, start=1.0, end=1.5):
    y, ks = jnp.arange(3.0, dtype=dtype), jax.random.normal(jax.random.key(0), (7, 3), jnp.float32).astype(dtype)
    options = {
        "t0": jnp.asarray(start, dtype),
        "t1": jnp.asarray(end, dtype),
        "y0": {"a": y},
        "y1": None,
        "k": {"a": ks},
    }
    return unrolled(diffrax.Tsit5()).interpolation_cls(**options), diffrax.Tsit5().interpolation_cls(**options)


def test_between_the_ends_of_a_step_tsit5_is_that_of_diffrax():
    ours, theirs = paths(float)
    ts = jnp.linspace(1.0, 1.5, 101)
    exact = jax.vmap(theirs.evaluate)(ts)["a"]
    assert np.allclose(jax.vmap(ours.evaluate)(ts)["a"], exact, rtol=0, atol=3e-14)
    assert np.allclose(ours.evaluate(1.1, 1.3)["a"], theirs.evaluate(1.3)["a"] - theirs.evaluate(1.1)["a"], atol=3e-14)
    slopes = [jax.vmap(jax.jacfwd(lambda t, path=path: path.evaluate(t)["a"]))(ts) for path in (ours, theirs)]
    assert np.allclose(*slopes, rtol=0, atol=3e-13)
    single, theirs = (jax.vmap(path.evaluate)(ts.astype(jnp.float32))["a"] for path in paths(jnp.float32))
    assert single.dtype == jnp.float32
    assert jnp.abs(single - exact.astype(jnp.float32)).max() <= jnp.abs(theirs - exact.astype(jnp.float32)).max()


def test_a_step_of_no_length_stays_where_it_is_with_finite_derivatives():
    ours, _ = paths(float, start=1.0, end=1.0)
    value, slope = ours.evaluate(1.0)["a"], jax.jacfwd(lambda t: ours.evaluate(t)["a"])(1.0)
    assert np.array_equal(value, jnp.arange(3.0)) and np.array_equal(slope, jnp.zeros(3))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, complex], ids=str)
def test_states_of_other_kinds(dtype):
    y, ks = jnp.arange(3.0).astype(dtype), jnp.ones((7, 3)).astype(dtype)
    options = {"t0": jnp.float32(0), "t1": jnp.float32(1), "y0": y, "y1": None, "k": ks}
    values = [
        solver.interpolation_cls(**options).evaluate(0.3) for solver in (unrolled(diffrax.Tsit5()), diffrax.Tsit5())
    ]
    assert values[0].dtype == values[1].dtype and np.allclose(*values, rtol=1e-6)
