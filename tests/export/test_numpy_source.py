"""NumPy source against JAX, in this process and in one that has no JAX."""

import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import set_up
from source_operations import bytes_of, elementwise, loops_and_branches, moving, of_types, samples, solves

import lux_sciml as lux
from lux_sciml.export import numpy_source, read_metadata


def check(folder, f, arrays, *, n=5, rtol=2e-6, **options):
    """Compares the function of the file of `f(*arrays)` with JAX, for another batch too; returns the file's text."""
    path = folder / "f.py"
    numpy_source(path, lambda xs: f(*xs), x=arrays, **options)
    function = runpy.run_path(str(path))["forward"]
    batched = options.get("batch_axis", 0) == 0
    for given in (arrays, [samples(n, *x.shape[1:], dtype=x.dtype) for x in arrays])[: 1 + batched]:
        found = function(*given)
        expected = jax.tree.leaves(jax.jit(f)(*given))
        for y, value in zip(expected, found if isinstance(found, tuple) else [found], strict=True):
            assert value.dtype == y.dtype and value.shape == y.shape
            np.testing.assert_allclose(value, y, rtol=rtol, atol=rtol * np.max(np.abs(y), initial=1e-3))
    return path.read_text()


def test_a_net_where_there_is_only_numpy(tmp_path):
    net = lux.Chain(lux.Dense(4, 8, jnp.tanh), lux.Dense(8, 6, jax.nn.gelu), lux.LayerNorm(6), lux.Dense(6, 3))
    ps, st, call = set_up(net)
    x, path = samples(3, 4), tmp_path / "net.py"
    numpy_source(path, net, ps, st, x)
    first = path.read_bytes()
    numpy_source(path, net, ps, st, x[:1])
    assert path.read_bytes() == first and set(re.findall("^import (.*)", first.decode(), re.M)) == {"numpy as np"}
    assert read_metadata(path)["parameters"]["count"] == ps.size
    np.save(tmp_path / "x.npy", samples(7, 4))
    script = """if True:
        import sys
        sys.modules.update(dict.fromkeys(["jax", "jaxlib", "lux_sciml", "scipy", "equinox", "diffrax"]))
        import numpy as np
        import net
        np.save("y.npy", net.forward(x=np.load("x.npy")))
        """
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), call(samples(7, 4)), rtol=1e-5, atol=1e-6)
    numpy_source(path, net, ps, st, x, params="input", name="model")
    found = runpy.run_path(str(path))["model"](np.asarray(ps.data), x)
    np.testing.assert_allclose(found, call(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_operations(tmp_path):
    def own(x):
        yield x > 0, (10 * x).astype("int32") // 3, (x > 0).all(-1), jnp.argmax(x, -1)
        yield jnp.cumsum(x, -1), jax.lax.cummax(x, 1, reverse=True), x.mean(), jnp.cumsum(x, 0)
        yield jnp.ones_like(x), 2 * jnp.ones((2, 2), x.dtype)

    text = check(tmp_path, lambda x: [*elementwise(x), *moving(x), *own(x)], (samples(3, 5),))
    assert "import math\n\nimport numpy as np" in text
    gradient = jax.grad(
        lambda x: jnp.sum(jnp.tanh(x[:, 1:] * jnp.pad(x, ((0, 0), (1, 0)))[:, :-2].mean(1, keepdims=True)))
    )
    check(tmp_path, gradient, (samples(3, 5),))


def test_whole_numbers_booleans_and_products_of_sizes(tmp_path):
    check(tmp_path, lambda i, x: list(of_types(i, x)), (bytes_of(3), samples(3, 5)))
    check(tmp_path, lambda x: (jnp.mean(x @ x.T), (x[:, None] - x).reshape(-1, 5), x[::2].mean(0)), (samples(3, 5),))
    check(tmp_path, lambda x: (jnp.ones(x.shape[0], x.dtype) / 2, jnp.where(True, x, 0)), (samples(3, 5),))
    long = np.arange(-3, 3) + 1_700_000_000_123_456_789
    check(tmp_path, lambda t: (t // 1000, t % 1000), (long,), batch_axis=None)
    (size,) = jax.export.symbolic_shape("2*n")
    with pytest.raises(ValueError, match=r"reads open sizes off its inputs, and 'x' has one that is 2\*n"):
        numpy_source(tmp_path / "f.py", jnp.mean, x=jax.ShapeDtypeStruct((size, 3), "float32"))


def test_images_sequences_and_loops(tmp_path):
    images = lux.Chain(
        lux.Conv(2, 4, (3, 3), activation=jax.nn.relu), lux.BatchNorm(4), lux.Conv(4, 3, (3, 2), stride=2)
    )
    sequences = lux.Recurrence(lux.LSTMCell(3, 4), return_sequence=True)
    (*_, of_images), (*_, of_sequences) = map(set_up, (images, sequences))
    check(tmp_path, lambda x, z: (of_images(x), of_sequences(z)), (samples(3, 9, 8, 2), samples(3, 5, 3)))

    def loops(x):
        def step(carry, i):
            a, b = carry
            return (b, jnp.sin(a).at[i].set(0.0)), a * b

        z, chosen = loops_and_branches(x)
        return z, chosen, jax.lax.scan(step, (x, z), jnp.arange(3), reverse=True)

    check(tmp_path, loops, (samples(3, 1)[:, 0],), batch_axis=None)


@pytest.mark.exhaustive
def test_solves(tmp_path):
    fixed, adaptive, equilibrium = solves()
    model = lux.BranchLayer(fixed, adaptive, equilibrium, adaptive.replace(batching="vmap"))
    ps, st, call = set_up(model)
    numpy_source(tmp_path / "f.py", model, ps, st, samples(2, 3))
    x = samples(4, 3)
    found = runpy.run_path(str(tmp_path / "f.py"))["forward"](x)
    for y, value, tolerance in zip(call(x), found, (1e-6, 1e-5, 1e-4, 1e-5), strict=True):
        assert value.dtype == y.dtype
        np.testing.assert_allclose(value, y, rtol=tolerance, atol=tolerance)


def test_refusals(tmp_path):
    x, path = samples(2, 4), tmp_path / "net.py"
    with pytest.raises(ValueError, match=r"NumPy source has no translation of 'sort'.*StableHLO"):
        numpy_source(path, jnp.sort, x=x)
    for dtype in ("bfloat16", "complex64"):
        with pytest.raises(ValueError, match=rf"computes with {dtype}: convert it.*StableHLO"):
            numpy_source(path, lambda x, dtype=dtype: jnp.exp(x.astype(dtype)), x=x)
    with pytest.raises(ValueError, match=r"ends in \.py"):
        numpy_source(tmp_path / "net.txt", jnp.sin, x=x)
    with pytest.raises(ValueError, match="no name that the function"):
        numpy_source(path, jnp.sin, x=x, name="lambda")
    assert not list(tmp_path.iterdir())
