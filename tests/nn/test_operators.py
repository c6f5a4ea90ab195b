"""Neural operators: spectral convolution, FNO, DeepONet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

RNG = np.random.default_rng(0)


def grid(*sizes):
    """The points of a periodic grid on [0, 2 pi), `(*sizes, dimensions)`."""
    return np.stack(np.meshgrid(*(np.arange(n) * 2 * np.pi / n for n in sizes), indexing="ij"), -1)


def waves(points):
    """A real function of low frequencies, at the points of a grid."""
    phases = sum((i + 1) * points[..., i] for i in range(points.shape[-1]))
    return (1 + np.sin(phases) + np.cos(points[..., 0] - 0.3) * np.sin(points[..., -1]))[..., None]


def test_spectral_convolution_multiplies_each_frequency(key):
    layer = lux.SpectralConv(1, 1, 4)
    ps, st = lux.setup(key, layer)
    real, imaginary = np.asarray(ps.weight)[..., 0, 0]
    weight = real + 1j * imaginary
    x = grid(16)[:, 0]
    signal = 2.0 + np.cos(3 * x) + np.sin(5 * x)  # frequency 5 is cut off
    expected = 2 * weight[0].real + (np.exp(3j * x) * weight[3]).real
    assert np.allclose(layer(signal[:, None], ps, st)[0][:, 0], expected, atol=1e-13)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_operators_do_not_depend_on_the_resolution(key, dimensions):
    layer = lux.SpectralConv(1, 2, (3,) * dimensions)
    ps, st = lux.setup(key, layer)
    coarse, fine = (layer(waves(grid(*(n,) * dimensions)), ps, st)[0] for n in (6, 12))
    assert np.allclose(coarse, fine[(slice(None, None, 2),) * dimensions], atol=1e-12)
    assert ps.size == 2 * 6 ** (dimensions - 1) * 3 * 2


def test_a_translation_goes_through(key):
    layer = lux.SpectralConv(1, 2, (3, 2))
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(8, 6, 1))
    shifted = layer(np.roll(x, (2, 1), (0, 1)), ps, st)[0]
    assert np.allclose(shifted, np.roll(layer(x, ps, st)[0], (2, 1), (0, 1)), atol=1e-12)


def test_fno_on_band_limited_functions_does_not_depend_on_the_resolution(key):
    """Without an activation all stays band-limited, and grids agree exactly."""
    model = lux.FNO(1, 1, width=4, modes=(3, 3), depth=2, activation=lux.activations.identity)
    ps, st = lux.setup(key, model)
    run = jax.jit(lambda model, n: model(waves(grid(n, n)), ps, st)[0], static_argnums=1)
    coarse, fine = (run(model, n) for n in (8, 16))
    assert np.allclose(coarse, fine[::2, ::2], atol=1e-12)
    coarse, fine = (run(model.replace(activation=jnp.tanh), n) for n in (32, 64))
    assert np.allclose(coarse, fine[::2, ::2], atol=1e-5)


def test_counts_of_an_fno():
    model = lux.FNO(2, 3, width=4, modes=(3, 2), depth=2)
    blocks = 2 * (2 * 6 * 2 * 4 * 4 + 4 * 4 + 4)
    assert lux.parameter_length(model) == (2 * 4 + 4) + blocks + (4 * 8 + 8) + (8 * 3 + 3)
    assert lux.state_length(model) == 0 and model.blocks_1.activation is lux.activations.identity


def test_spectral_convolutions_refuse_coarse_grids(key):
    layer = lux.SpectralConv(1, 1, (4, 3))
    ps, st = lux.setup(key, layer)
    for shape in ((7, 6, 1), (8, 5, 1), (8, 6, 2), (6, 1)):
        with pytest.raises(ValueError, match=r"\*space, 1\) with at least \(8, 6\) points along .*, got \("):
            layer(jnp.ones(shape), ps, st)
    with pytest.raises(ValueError, match=r"1 to 3 positive numbers of modes, got \(1, 2, 3, 4\)"):
        lux.SpectralConv(1, 1, (1, 2, 3, 4))


@pytest.mark.exhaustive
def test_deeponet(key):
    model = lux.DeepONet(lux.Dense(5, 6), lux.MLP(1, 4, 3), out_features=2)
    ps, st = lux.setup(key, model)
    ps = ps.replace(bias=[1.0, -1.0])
    u, points = RNG.normal(size=(4, 5)), RNG.normal(size=(7, 1))
    y = model((u, points), ps, st)[0]
    b, t = model.branch(u, ps.branch, {})[0], model.trunk(points, ps.trunk, st["trunk"])[0]
    expected = np.stack([np.asarray(b[:, :3] @ t.T) + 1, np.asarray(b[:, 3:] @ t.T) - 1], -1)
    assert y.shape == (4, 7, 2) and np.allclose(y, expected)
    assert np.allclose(model((u, np.broadcast_to(points, (4, 7, 1))), ps, st)[0], y)
    wrong = lux.DeepONet(lux.Dense(5, 3), lux.Dense(1, 3), out_features=2)
    with pytest.raises(ValueError, match=r"the 3 outputs of its trunk .* each of 2 output features, got 3"):
        wrong((u, points), *lux.setup(key, wrong))
    with pytest.raises(ValueError, match=r"a tuple \(u, points\)"):
        model(u, ps, st)
