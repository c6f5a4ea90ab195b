"""NumPy source against JAX, in this process and in one that has no JAX."""

import re
import runpy
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from source_operations import elementwise, moving, samples

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


def test_a_net_where_there_is_only_numpy(key, tmp_path):
    net = lux.Chain(lux.Dense(4, 8, jnp.tanh), lux.Dense(8, 6, jax.nn.gelu), lux.LayerNorm(6), lux.Dense(6, 3))
    ps, st = lux.setup(key, net, dtype="float32")
    x, path = samples(3, 4), tmp_path / "net.py"
    numpy_source(path, net, ps, lux.testmode(st), x)
    first = path.read_bytes()
    numpy_source(path, net, ps, lux.testmode(st), x[:1])
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
    expected = net(samples(7, 4), ps, lux.testmode(st))[0]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-6)
    numpy_source(path, net, ps, lux.testmode(st), x, params="input", name="model")
    found = runpy.run_path(str(path))["model"](np.asarray(ps.data), x)
    np.testing.assert_allclose(found, net(x, ps, lux.testmode(st))[0], rtol=1e-5, atol=1e-6)


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


def test_images_sequences_and_loops(key, tmp_path):
    images = lux.Chain(
        lux.Conv(2, 4, (3, 3), activation=jax.nn.relu), lux.BatchNorm(4), lux.Conv(4, 3, (3, 2), stride=2)
    )
    sequences = lux.Recurrence(lux.LSTMCell(3, 4), return_sequence=True)
    (ps, st), (qs, su) = (lux.setup(key, layer, dtype="float32") for layer in (images, sequences))

    def layers(x, z):
        return images(x, ps, lux.testmode(st))[0], sequences(z, qs, lux.testmode(su))[0]

    check(tmp_path, layers, (samples(3, 9, 8, 2), samples(3, 5, 3)))

    def loops(x):
        y, steps = jax.lax.while_loop(
            lambda c: (jnp.sum(c[0] ** 2) < 20) & (c[1] < 9), lambda c: (1.2 * c[0] + jnp.tanh(x), c[1] + 1), (x, 0)
        )
        z = jax.lax.switch(steps // 3, [jnp.sin, jnp.cos, lambda x: 3 * x], y)

        def step(carry, i):
            a, b = carry
            return (b, jnp.sin(a).at[i].set(0.0)), a * b

        return z, jax.lax.cond(z[0] > 0, lambda: x, lambda: -x), jax.lax.scan(step, (x, z), jnp.arange(3), reverse=True)

    check(tmp_path, loops, (samples(3, 1)[:, 0],), batch_axis=None)


@pytest.mark.exhaustive
def test_solves(key, tmp_path):
    net = lux.Chain(lux.Dense(3, 6, jnp.tanh), lux.Dense(6, 3))
    cell = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(3, 3, use_bias=False), lux.Dense(3, 3))
    ts = jnp.linspace(0.0, 1.0, 4)
    model = lux.BranchLayer(
        lux.NeuralODE(net, ts=ts, stepsize_controller=diffrax.ConstantStepSize(), dt0=0.1, output="ys"),
        lux.NeuralODE(net, ts=ts, output="final"),
        lux.DeepEquilibrium(cell, shape=3),
        lux.NeuralODE(net, ts=ts, output="final", batching="vmap"),
    )
    ps, st = lux.setup(key, model, dtype="float32")
    numpy_source(tmp_path / "f.py", model, ps, lux.testmode(st), samples(2, 3))
    x = samples(4, 3)
    found = runpy.run_path(str(tmp_path / "f.py"))["forward"](x)
    for y, value, tolerance in zip(model(x, ps, lux.testmode(st))[0], found, (1e-6, 1e-5, 1e-4, 1e-5), strict=True):
        assert value.dtype == y.dtype
        np.testing.assert_allclose(value, y, rtol=tolerance, atol=tolerance)


def test_refusals(tmp_path):
    x, path = samples(2, 4), tmp_path / "net.py"
    with pytest.raises(ValueError, match=r"NumPy source has no translation of 'sort'.*StableHLO"):
        numpy_source(path, jnp.sort, x=x)
    with pytest.raises(ValueError, match=r"ends in \.py"):
        numpy_source(tmp_path / "net.txt", jnp.sin, x=x)
    with pytest.raises(ValueError, match="no name that the function"):
        numpy_source(path, jnp.sin, x=x, name="lambda")
    assert not list(tmp_path.iterdir())
