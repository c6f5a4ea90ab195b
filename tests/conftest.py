"""Tests run strict: 64-bit numbers available, no implicit type promotion, two virtual CPU devices.

The switches are set for each test, so that the doctests, in the same process, run with JAX's defaults.
"""

import equinox as eqx
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(autouse=True)
def strict():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """The programs compiled for one file are of no use to the next."""
    yield
    eqx.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param
