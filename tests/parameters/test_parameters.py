"""WeightNorm and SpectralNorm: parameters in another form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.testing import check_layer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
NET = lux.Chain(lux.Dense(3, 5, jnp.tanh), lux.Dense(5, 2))
PATHS = ("layer_0.weight", "layer_1.weight")


# --- WeightNorm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "x", "paths"),
    [(NET, X, PATHS), (lux.Conv(3, 4, 2), X[None], ("weight", "bias")), (lux.Dense(3, 2), X, [])],
    ids=["chain", "conv", "nothing"],
)
def test_weight_norm_starts_as_the_layer(key, layer, x, paths):
    wrapped = lux.WeightNorm(layer, paths)
    ps, st = lux.setup(key, layer)
    ps_wrapped, st_wrapped = lux.setup(key, wrapped)
    assert np.allclose(wrapped(x, ps_wrapped, st_wrapped)[0], layer(x, ps, st)[0], atol=1e-13)
    assert ps_wrapped.size == ps.size + sum(ps[path].shape[-1] for path in paths)


def test_weight_norm_is_its_formula(key):
    layer = lux.WeightNorm(lux.Conv(2, 3, (2, 2), use_bias=False))
    ps, st = lux.setup(key, layer)
    ps = ps.replace(weight={"g": [1.0, 2.0, -3.0]})
    v = np.asarray(ps.weight.v)
    assert list(ps.weight.keys()) == ["g", "v"]
    weight = v / np.sqrt((v**2).sum((0, 1, 2))) * np.array([1.0, 2.0, -3.0])
    x = RNG.normal(size=(1, 3, 3, 2))
    assert np.allclose(layer(x, ps, st)[0], layer.layer(x, {"weight": weight}, {})[0], atol=1e-13)


def test_one_path_is_a_string():
    assert repr(lux.WeightNorm(lux.Dense(2, 2), "bias")).splitlines()[1] == "    parameters = 'bias',"
    assert lux.parameter_length(lux.SpectralNorm(lux.Dense(2, 2), "bias")) == 6
    assert lux.parameter_length(lux.WeightNorm(lux.Dense(2, 2), "bias")) == 8


def test_weight_norm_of_zeros_is_finite(key):
    layer = lux.WeightNorm(lux.Dense(3, 2, init_weight=lux.initializers.zeros))
    for dtype in ("float32", "float64"):
        ps, st = lux.setup(key, layer, dtype)
        gradient = jax.grad(lambda ps, st=st, dtype=dtype: layer(X.astype(dtype), ps, st)[0].sum())(ps)
        assert np.isfinite(gradient.data).all()


# --- SpectralNorm -------------------------------------------------------------------------------------------------


def test_spectral_norm_finds_the_largest_singular_value(key):
    layer = lux.SpectralNorm(NET, PATHS, iterations=60)
    ps, st = lux.setup(key, layer)
    _, st = layer(X, ps, st)
    for state in (st, lux.testmode(st)):
        plain = ps.tree()
        weights = {name: plain[name]["weight"] for name in plain}
        scaled = {name: {**plain[name], "weight": w / jnp.linalg.norm(w, 2)} for name, w in weights.items()}
        assert np.allclose(layer(X, ps, state)[0], NET(X, scaled, {"layer_0": {}, "layer_1": {}})[0], rtol=1e-6)
    assert np.allclose(jnp.linalg.norm(st["u"]["layer_0.weight"]), 1.0)


def test_spectral_norm_iterates_in_training_only(key):
    layer = lux.SpectralNorm(lux.Conv(2, 3, 2))
    ps, st = lux.setup(key, layer)
    x = RNG.normal(size=(1, 4, 2))
    matrix, u = np.asarray(ps.weight).reshape(4, 3), np.asarray(st["u"]["weight"])
    _, st_train = layer(x, ps, st)
    u = matrix.T @ matrix @ u
    assert np.allclose(st_train["u"]["weight"], u / np.linalg.norm(u), atol=1e-14)
    st_test = lux.testmode(st)
    assert layer(x, ps, st_test)[1]["u"]["weight"] is st_test["u"]["weight"]


def test_the_gradient_of_spectral_norm_treats_the_vector_as_constant(key):
    layer = lux.SpectralNorm(lux.Dense(3, 2), iterations=200)
    ps, st = lux.setup(key, layer)

    def exact(ps):
        return layer.layer(X, {**ps.tree(), "weight": ps["weight"] / jnp.linalg.norm(ps["weight"], 2)}, {})[0].sum()

    found = jax.grad(lambda ps: layer(X, ps, st)[0].sum())(ps)
    assert np.allclose(found.data, jax.grad(exact)(ps).data, atol=1e-10)


def test_spectral_norm_survives_zero_weights(key):
    layer = lux.SpectralNorm(lux.Dense(3, 2, init_weight=lux.initializers.zeros))
    ps, st = lux.setup(key, layer)
    y, st_next = layer(X, ps, st)
    assert np.isfinite(y).all() and np.array_equal(st_next["u"]["weight"], st["u"]["weight"])


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [lux.WeightNorm, lux.SpectralNorm])
def test_wrong_paths(key, wrapper):
    with pytest.raises(ValueError, match=r"no parameter 'layer_0.kernel': 'kernel' is not found, the names here are"):
        lux.setup(key, wrapper(NET, ("layer_0.kernel",)))
    with pytest.raises(ValueError, match=r"no parameter 'weight.a': 'a' is not found, nothing is below"):
        lux.setup(key, wrapper(lux.Dense(2, 2), ("weight.a",)))
    with pytest.raises(ValueError, match=f"{wrapper.__name__} normalizes arrays .*; 'layer_0' is a dict"):
        lux.setup(key, wrapper(NET, ("layer_0",)))


LAYERS = [
    (lux.WeightNorm(NET, PATHS), {}),
    (lux.SpectralNorm(NET, PATHS), {"mode": lux.Mode.TEST}),
    (lux.SpectralNorm(lux.Dense(3, 2)), {"derivatives": ()}),
]


@pytest.mark.parametrize(("layer", "options"), LAYERS)
def test_wrappers_keep_the_contract(layer, options):
    check_layer(layer, X, **options)
