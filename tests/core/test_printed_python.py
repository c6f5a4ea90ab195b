"""What is printed is the Python that makes the same layer, to the bit."""

import functools
import importlib
import math
import sys
from types import SimpleNamespace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import optimistix
import pytest
from hypothesis import given, settings, strategies as some
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes, integer_dtypes

import lux_sciml as lux
from lux_sciml import constraints, initializers
from lux_sciml.core.converters import sizes
from lux_sciml.core.text import value_text

SCOPE = {name: getattr(lux, name) for name in lux.__all__} | {"jnp": jnp}
OTHERS = {"jax": jax, "np": np, "partial": functools.partial, "diffrax": diffrax, "optimistix": optimistix}
OTHERS |= {"lineax": lineax, "optax": optax, "eqx": eqx, "equinox": eqx}


def field(u):
    return -u


def physics(u, p, nets):
    return -p.rate * nets.missing(u)


class Option(lux.Layer):
    value: object

    def forward(self, x, ps, st):
        return x, st


# this module under its full name, `tests.core.test_printed_python` say, in whatever way it was imported
FIRST, *OTHER = __name__.split(".")
HERE = {"Option": Option}
HERE[FIRST] = functools.reduce(lambda inner, part: SimpleNamespace(**{part: inner}), OTHER[::-1], sys.modules[__name__])
D, TS = lux.Dense(2, 2, jnp.tanh), jnp.linspace(0.0, 1.5, 7, dtype=jnp.float32)

ALONE = {  # with lux's names and jnp only
    "dense": lambda: D,
    "dense options": lambda: lux.Dense(2, 3, jnp.sin, use_bias=False, init_weight=initializers.Uniform(0.1)),
    "functions of lux": lambda: lux.Dense(2, 3, lux.activations.lisht, init_bias=initializers.zeros),
    "chain": lambda: lux.Chain(D, jnp.tanh, lux.BatchNorm(2), lux.Dense(2, 1)),
    "nested": lambda: lux.Chain(lux.Chain(D, D), lux.Chain(a=D, b=lux.Chain())),
    "named": lambda: lux.Chain(first=D, second=lux.Chain(inner=D)),
    "sliced": lambda: lux.Chain(D, jnp.tanh, D)[1:],
    "odd names": lambda: lux.Chain(**{"a b": D, "lambda": lux.Chain(D), "0": jnp.tanh}),
    "equal neighbors": lambda: lux.Chain(jnp.sin, *[D] * 5, jnp.cos, *[lux.Chain(D)] * 3),
    "equal named neighbors": lambda: lux.Chain(a2=D, a3=D, a4=D, b=D, c1=D, c3=D),
    "neighbors with leading zeros": lambda: lux.Chain(a01=D, a02=D, a03=D, a9=D, a10=D, a11=D),
    "neighbors after leading zeros": lambda: lux.Chain(a08=D, a09=D, a10=D, a11=D, a12=D),
    "parallel": lambda: lux.Parallel(None, D, lux.Dropout(0.5)),
    "parallel of a layer": lambda: lux.Parallel(lux.Chain(jnp.add), a=D, b=D),
    "skip": lambda: lux.SkipConnection(lux.Chain(D, D), jnp.add),
    "branch": lambda: lux.BranchLayer(D, D, D, connection=jnp.add),
    "fusion": lambda: lux.PairwiseFusion(jnp.add, D, D, D),
    "fusion named": lambda: lux.PairwiseFusion(D, a=D),
    "maxout": lambda: lux.Maxout([D] * 4),
    "stack": lambda: lux.Stack(lux.SkipConnection(D, jnp.add), 20, checkpoint=True),
    "repeated": lambda: lux.RepeatedLayer(D, 3),
    "wrappers": lambda: lux.WeightNorm(lux.SpectralNorm(lux.Chain(D), "layer_0.weight", 2), ("layer_0.weight",)),
    "frozen": lambda: lux.Frozen(lux.Chain(D), ("layer_0.bias",)),
    "precision": lambda: lux.AlternatePrecision(lux.Chain(D), jnp.bfloat16),
    "attention": lambda: lux.MultiHeadAttention(8, 2, dropout_rate=0.1),
    "mlp": lambda: lux.MLP(2, (8, 8), 2, norm=lux.LayerNorm, residual=True),
    "conv": lambda: lux.Chain(lux.Conv(1, 2, (3, 3), stride=2, padding="SAME"), lux.MaxPool(2), lux.GlobalMeanPool()),
    "reshape": lambda: lux.Chain(lux.Reshape(2, -1), lux.Reshape((3, 4)), lux.Flatten()),
    "cells": lambda: lux.Recurrence(
        lux.StackedCells(lux.GRUCell(2, 3), lux.LSTMCell(3, 3), lux.RNNCell(3, 3, jnp.sin))
    ),
    "bidirectional": lambda: lux.BidirectionalRNN(lux.GRUCell(2, 3), lux.LSTMCell(2, 3), merge=None),
    "norms": lambda: lux.Chain(lux.GroupNorm(4, 2, jnp.sin), lux.InstanceNorm(4), lux.RMSNorm((2, 4)), lux.Scale(4)),
    "ode": lambda: lux.NeuralODE(D, ts=TS, rtol=1e-4),
    "ode in double": lambda: lux.NeuralODE(lux.Chain(D, D), ts=[0.0, 0.1, 1 / 3], output="final", adjoint="backsolve"),
    "ode without times": lambda: lux.NeuralODE(D),
    "long times": lambda: lux.NeuralODE(D, ts=np.random.default_rng(0).uniform(size=1000).cumsum()),
    "wrong way round": lambda: lux.NeuralODE(D, ts=np.arange(3)[::-1]),
    "sde": lambda: lux.NeuralSDE(D, lux.Scale(2), ts=TS, dt0=0.1),
    "mass matrix": lambda: lux.MassMatrixODE(D, np.eye(2), ts=[0.0, 1.0]),
    "dae": lambda: lux.NeuralDAE(D, D, ts=[0.0, 1.0]),
    "latent": lambda: lux.LatentODE(lux.Recurrence(lux.GRUCell(2, 4)), lux.NeuralODE(D), lux.Dense(2, 1)),
    "costs": lambda: lux.WithCosts(lux.NeuralODE(D, ts=[0.0, 1.0]), ("kinetic",)),
    "hamiltonian": lambda: lux.HamiltonianODE(lux.MLP(1, 8, 1), lux.MLP(1, 8, 1), ts=[0.0, 1.0], dt0=0.1),
    "nudged": lambda: lux.Nudged(D, [0.0, 1.0], np.ones((2, 2), "float32"), gain=0.5),
    "spline": lambda: lux.Spline([0.0, 1.0, 2.0], kind="linear"),
    "pinned": lambda: lux.Pinned(D, [0.5, 0.5], [1.0, 2.0]),
    "equilibrium": lambda: lux.DeepEquilibrium(lux.Parallel(jnp.add, D, D), 2, initial="cell", max_steps=20),
    "functions in equilibrium": lambda: lux.DeepEquilibrium(lux.Parallel(jnp.add, D, D), initial=lux.Chain(D)),
    "steady state": lambda: lux.SteadyState(D, with_input=True),
    "deep o net": lambda: lux.DeepONet(lux.Chain(D), D),
    "tensor product": lambda: lux.TensorProduct((lux.nn.PolynomialBasis(2), lux.nn.ChebyshevBasis(3)), 2),
    "kan": lambda: lux.KANLayer(2, 3, lux.nn.BSplineBasis(5)),
    "fno": lambda: lux.FNO(1, 1, width=4, modes=(2, 2)),
    "extremes": lambda: Option(
        (jnp.inf, -jnp.inf, math.nan, -0.0, 1e-300, 1j, complex(0.0, -0.0), complex(math.nan, 1))
    ),
    "containers of values": lambda: Option(((), (1,), {"a": [1.0, {"b": None}], 3: b"x"}, "it's", True, 10**30)),
    "classes": lambda: Option((float, lux.Dense, initializers.Uniform, jnp.float32, lux.Mode.TEST)),
    "empty constants": lambda: Option((lux.Constant([]), lux.Constant(np.zeros((0, 3))))),
    "constants": lambda: Option(lux.Constant(np.arange(6, dtype="uint8").reshape(2, 3))),
    "constants of nan": lambda: Option(lux.Constant(np.array([np.nan, -np.nan, np.inf, -0.0], "float16"))),
    "constants of bfloat16": lambda: Option(lux.Constant(jnp.array([0.1, 3.0], jnp.bfloat16))),
    "constants of complex": lambda: Option(lux.Constant(np.array([1j, complex(-0.0, 0.0)]))),
    "long constants": lambda: Option(lux.Constant(np.eye(60))),
}
WITH_OTHERS = {
    "functions of jax": lambda: lux.Chain(
        D, jax.nn.relu, jax.lax.tanh, jax.scipy.special.erf, np.sin, abs, jnp.linalg.norm
    ),
    "partial": lambda: lux.Dense(2, 2, functools.partial(jax.nn.leaky_relu, negative_slope=0.1)),
    "partial of a partial": lambda: Option(functools.partial(functools.partial(jnp.sum, axis=(0, 1)), keepdims=True)),
    "solvers": lambda: lux.NeuralODE(D, ts=TS, solver=diffrax.Kvaerno5()),
    "solvers of ours": lambda: lux.NeuralODE(D, solver=diffrax.Dopri5(), adjoint=diffrax.DirectAdjoint()),
    "controllers": lambda: lux.NeuralODE(D, stepsize_controller=diffrax.PIDController(1e-3, 1e-6, dtmax=0.1)),
    "controllers with arrays": lambda: lux.NeuralODE(
        D, stepsize_controller=diffrax.ClipStepSizeController(diffrax.PIDController(1e-3, 1e-6), jump_ts=TS)
    ),
    "save at": lambda: lux.NeuralODE(D, saveat=diffrax.SaveAt(t0=True, ts=TS)),
    "root finders": lambda: lux.SteadyState(D, solver=optimistix.Newton(1e-5, 1e-5)),
    "root finders with linear solvers": lambda: lux.SteadyState(
        D, solver=optimistix.Newton(1e-5, 1e-5, norm=optimistix.two_norm, linear_solver=lineax.GMRES(1e-3, 1e-3))
    ),
    "minimisers": lambda: Option((optimistix.BFGS(1e-3, 1e-3), optimistix.Dogleg(1e-3, 1e-3))),
    "adjoints": lambda: Option((diffrax.BacksolveAdjoint(solver=diffrax.Euler()), diffrax.ImplicitAdjoint())),
    "anderson": lambda: lux.DeepEquilibrium(D, solver=lux.Anderson(1e-4, 1e-4, history_length=4)),
    "functions of one's own": lambda: lux.Chain(field, D),
    "ude": lambda: lux.NeuralODE(lux.UDE(physics, {"rate": 0.5, "matrix": np.eye(2)}, missing=lux.Chain(D)), ts=TS),
    "numpy scalars": lambda: Option((np.float32(0.1), np.float64(0.1), np.float16(np.inf), np.complex64(1j))),
    "constants of one number": lambda: Option((lux.Constant(np.float32(2.5)), lux.Constant(np.array(2.5)))),
    "dtypes": lambda: Option((np.dtype("float32"), np.float32)),
    "trees with arrays": lambda: Option(lux.Constant({"matrix": np.eye(2), "key": jax.random.key(3), "n": 1})),
    "constraints": lambda: Option((constraints.Positive(), constraints.Interval(0.0, 1.0))),
}


def scope(everything=True):
    return SCOPE | HERE | (OTHERS if everything else {})


@pytest.mark.parametrize("name", [*ALONE, *WITH_OTHERS])
def test_what_is_printed_makes_the_layer(name):
    layer = (ALONE | WITH_OTHERS)[name]()
    again = eval(repr(layer), scope(name in WITH_OTHERS))
    assert again == layer and hash(again) == hash(layer), repr(layer)
    line = value_text(layer)
    assert "\n" not in line and eval(line, scope(name in WITH_OTHERS)) == layer


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("name", ["ode", "ode in double", "long times", "extremes"])
def test_it_does_not_depend_on_the_precision_in_force(name, x64):
    with jax.enable_x64(x64):
        assert eval(repr(ALONE[name]()), scope(False)) == ALONE[name]()


def test_long_arrays_print_short():
    assert len(repr(ALONE["long constants"]())) < 600
    assert len(repr(ALONE["long times"]())) < 13_000


def test_options_print_as_they_are_given():
    class Timed(lux.Layer):
        ts: lux.Constant = lux.field(converter=lux.Constant)
        size: tuple[int, ...] = lux.field(default=(), converter=sizes)

        def forward(self, x, ps, st):
            return x, st

    assert repr(Timed([0.0, 0.5], 3)) == "Timed([0.0, 0.5], 3)"
    assert repr(Timed(TS[:2], (3, 3))) == "Timed(Constant([0.0, 0.25], 'float32'), (3, 3))"


@settings(deadline=None, max_examples=200)
@given(arrays(floating_dtypes(endianness="=") | integer_dtypes(endianness="="), array_shapes(min_dims=0, min_side=0)))
def test_any_array_prints_exactly(x):
    constant = lux.Constant(x)
    assert eval(repr(constant), scope()) == constant
    tree = lux.Constant({"x": x})
    assert eval(repr(tree), scope()) == tree


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    some.recursive(
        some.none() | some.booleans() | some.integers() | some.floats() | some.complex_numbers() | some.text(),
        lambda inner: some.tuples(inner, inner) | some.dictionaries(some.text(), inner, max_size=3) | some.tuples(),
    )
)
def test_any_value_prints_exactly(value):
    layer = Option(value)
    assert eval(repr(layer), scope()) == layer


def make(scale):
    def local(x):
        return scale * x

    return local


def test_what_cannot_be_imported_is_seen():
    for function, text in (
        (lambda x: x, "<lambda>"),
        (make(2), "<make.<locals>.local>"),
        (jax.jit(make(2)), "<make.<locals>.local>"),
        (functools.partial(make(2)), "partial(<make.<locals>.local>)"),
    ):
        assert repr(lux.Lambda(function)) == f"Lambda({text})"
        with pytest.raises(SyntaxError):
            eval(repr(lux.Chain(D, function)), scope())


class Rows(lux.Layer):
    """A tuple of layers, a dict of tuples of layers, and a number."""

    rows: tuple[lux.Layer, ...]
    named: dict
    size: int = 1

    def forward(self, x, ps, st):
        return x, st


class Starred(lux.Container):
    def __init__(self, first, *layers, scale=1.0):
        self.first, self.layers, self.scale = first, layers, scale

    def forward(self, x, ps, st):
        return x, st


class Computed(lux.Layer):
    """Its own `__init__` takes what it does not keep."""

    def __init__(self, half):
        self.size = 2 * half

    def init_arguments(self):
        return {"half": self.size // 2}

    def forward(self, x, ps, st):
        return x, st


class KeepsLess(lux.Layer):
    """Its `__init__` keeps its arguments in another form, under their names."""

    def __init__(self, *sizes, **options):
        self.sizes, self.options = len(sizes), None

    def forward(self, x, ps, st):
        return x, st


def test_every_layer_prints():
    assert repr(KeepsLess(1, 2, a=1)) == "KeepsLess(2, options=None)"
    assert "KeepsLess(" in repr(lux.Chain(KeepsLess("ab")))


@pytest.mark.parametrize(
    "layer",
    [
        Rows((D, D, D, lux.Chain(D)), {"a": (D,), "b c": ()}, size=2),
        Rows((), {"a": {"b": D}}),
        Starred(2, D, D, scale=2.0),
        Starred(D, lux.Chain(D), D, D, D),
        Starred(1.0),
        lux.Chain(Computed(3), Computed(3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_containers_of_ones_own(layer):
    names = scope() | {cls.__name__: cls for cls in (Rows, Starred, Computed)}
    assert eval(repr(layer), names) == layer and eval(value_text(layer), names) == layer


def test_modules_of_functions_are_importable():
    assert importlib.import_module(__name__).field is field
