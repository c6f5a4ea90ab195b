"""Every equilibrium layer and every cell keeps the contract of layers."""

import sys

import diffrax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml.testing import check_layer

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3))
SMALL = {"init_weight": lux.initializers.Normal(0.25)}
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def join(a, b):
    return jnp.tanh(a + b)


def cell():
    return lux.Parallel(join, lux.Dense(4, 4, use_bias=False, **SMALL), lux.Dense(3, 4))


def scales():
    return {
        "branches": (lux.Parallel(jnp.add, lux.Dense(4, 4, **SMALL), lux.Dense(3, 4)), lux.Dense(2, 2, **SMALL)),
        "fusion": ((lux.NoOp(), lux.Dense(2, 4, **SMALL)), (lux.Dense(4, 2), lux.NoOp())),
        "after": (jnp.tanh, jnp.tanh),
    }


class Halved(lux.EquilibriumCell):
    """A cell of one's own."""

    def init_params(self, key):
        return {"input": jnp.ones((3, 4)), "rate": jnp.array(0.5)}

    def prepare(self, x, ps, st):
        return x @ ps["input"], ps["rate"]

    def step(self, z, prepared, st):
        injected, rate = prepared
        return jnp.tanh(rate * z + injected), st


class Decay(lux.Layer):
    """du/dt = s - k u^3 - u."""

    def init_params(self, key):
        return {"source": jnp.array([1.0, -0.5, 0.3]), "k": jnp.array(0.4)}

    def forward(self, u, ps, st):
        return ps["source"] - ps["k"] * u**3 - u, st


LAYERS = {
    "DeepEquilibrium": lambda: lux.DeepEquilibrium(cell(), 4, **TIGHT),
    "DeepEquilibrium, samples": lambda: lux.DeepEquilibrium(Halved(), 4, batching="vmap", **TIGHT),
    "DeepEquilibrium, Broyden": lambda: lux.DeepEquilibrium(cell(), 4, solver=lux.Broyden(1e-12, 1e-12)),
    "DeepEquilibrium, Newton": lambda: lux.DeepEquilibrium(cell(), 4, solver=optx.Newton(1e-12, 1e-12)),
    "DeepEquilibrium, depth": lambda: lux.DeepEquilibrium(lux.MonotoneCell(3, 4), 4, fixed_depth=2),
    "DeepEquilibrium, guess": lambda: lux.DeepEquilibrium(lux.NormalizedCell(cell()), initial=lux.Dense(3, 4), **TIGHT),
    "MultiScaleDEQ": lambda: lux.MultiScaleDEQ(**scales(), scales=((4,), (2,)), **TIGHT),
}
CELLS = {
    "MonotoneCell": lambda: lux.MonotoneCell(3, 4, init_bias=lux.initializers.Normal()),
    "NormalizedCell": lambda: lux.NormalizedCell(cell(), bound=0.5, iterations=100),
    "NormalizedCell, columns": lambda: lux.NormalizedCell(cell(), bound=0.5, norm="weight"),
    "EquilibriumCell": Halved,
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    check_layer(LAYERS[name](), X)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    check_layer(CELLS[name](), (RNG.standard_normal((2, 4)), X))


def test_cells_of_several_scales():
    check_layer(lux.MultiScaleCell(**scales()), ((RNG.standard_normal((2, 4)), RNG.standard_normal((2, 2))), X))


@pytest.mark.parametrize("solver", [None, diffrax.Tsit5()], ids=["Newton", "pseudo-transient"])
def test_steady_states(solver):
    layer = lux.SteadyState(Decay(), solver=solver, max_steps=1000, rtol=1e-9, atol=1e-9)
    check_layer(layer, np.full((2, 3), 0.5), dtypes=("float64",), differentiable_input=False, rtol=1e-4)


def test_steady_states_with_an_input():
    forced = lux.SteadyState(lux.Lambda(lambda ux: ux[1] - ux[0] ** 3 - ux[0]), with_input=True, **TIGHT)
    layer = lux.Chain(lux.Parallel(None, jnp.zeros_like, lux.NoOp()), forced)
    check_layer(layer, X, dtypes=("float64",))


@pytest.mark.parametrize("name", LAYERS)
def test_printed_layers_make_equal_ones(name):
    layer = LAYERS[name]()
    here = sys.modules[__name__]
    names = {"jnp": jnp, "optimistix": optx, __name__.rpartition(".")[-1]: here, "Halved": Halved, **vars(lux)}
    try:
        again = eval(repr(layer), names)
    except (NameError, SyntaxError):
        pytest.fail(f"{layer!r} is no Python that makes the layer")
    assert again == layer
