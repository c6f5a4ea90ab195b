"""Every public layer keeps the contract of layers: the table says how each is checked, and none may be missing."""

import inspect

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import lux_sciml as lux
from lux_sciml.testing import check_layer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
PAIRS = X[:, :2]
SERIES = RNG.normal(size=(3, 4, 2))
TOKENS = RNG.normal(size=(3, 5, 4))
IMAGES = RNG.normal(1.0, 2.0, size=(2, 3, 4, 4))
TEST = {"mode": lux.Mode.TEST}
JOINT = {"batch_axis": None}  # the samples depend on each other, or there is no batch
REVERSE = {"derivatives": ("reverse",)}

STACK = lux.StackedCells(lux.GRUCell(2, 2), jnp.sin, lux.LSTMCell(2, 3))
BLOCK = lux.Chain(lux.Dense(3, 3, jnp.tanh), lux.BatchNorm(3), lux.Dropout(0.25))
NET = lux.Chain(lux.Dense(3, 5, jnp.tanh), lux.Dense(5, 2))
PATHS = ("layer_0.weight", "layer_1.weight")


def pair(a, b):
    return a + b, a * b


LAYERS = [
    (lux.Lambda(jnp.sin), X, {}),
    # linear layers, normalizations, dropout
    (lux.Dense(3, 4, jnp.tanh), X, {}),
    (lux.Dense(3, 2, use_bias=False), X[0], JOINT),
    (lux.Scale(3, jnp.tanh), X, {}),
    (lux.Bilinear(3, 2, 4, jnp.tanh), (X, PAIRS), {}),
    (lux.Embedding((5, 2), 4), (np.arange(6) % 5, np.arange(6) % 2), {}),
    (lux.BatchNorm(3, jax.nn.softplus), X, JOINT),
    (lux.BatchNorm(4), IMAGES, TEST),
    (lux.BatchNorm(4, affine=False, track_stats=False), IMAGES, JOINT),
    (lux.GroupNorm(4, 2, jnp.tanh), IMAGES, {}),
    (lux.InstanceNorm(4, affine=True), IMAGES, {}),
    (lux.InstanceNorm(4, track_stats=True), IMAGES, JOINT),
    (lux.LayerNorm((4, 4)), IMAGES, {}),
    (lux.RMSNorm(4), IMAGES, {}),
    (lux.Dropout(0.5), X, JOINT),
    (lux.Dropout(0.5, axes=(-1,)), X, {}),
    (lux.Dropout(0.5), X, TEST),
    (lux.AlphaDropout(0.5), X, JOINT),
    (lux.VariationalHiddenDropout(0.5), X, JOINT),
    (lux.RReLU(), X, JOINT),
    # containers and shapes
    (lux.Chain(lux.Dense(3, 4, jnp.tanh), lux.BatchNorm(4), lux.Dropout(0.3), lux.Dense(4, 1)), X, JOINT),
    (lux.Chain(lux.Dense(3, 3, jnp.tanh), lux.Dense(3, 2)), X, {}),
    (lux.SkipConnection(lux.Chain(lux.Dense(3, 3), jnp.tanh), jnp.add), X, {}),
    (lux.Parallel(jnp.multiply, lux.Dense(3, 3), lux.Dense(3, 3)), (X, X + 1), {}),
    (lux.Parallel(None, lux.Dense(3, 2), lux.Dense(3, 2)), X, {}),
    (lux.BranchLayer(lux.Dense(2, 3, jnp.tanh), lux.Dense(2, 3), connection=pair), PAIRS, {}),
    (lux.PairwiseFusion(pair, lux.Dense(2, 3, jnp.tanh)), (PAIRS, np.ones((4, 3))), {}),
    (lux.Maxout([lux.Dense(2, 3)] * 2), PAIRS, {}),
    (lux.AlternatePrecision(lux.Dense(2, 3), "float32"), PAIRS, {"derivatives": ()}),
    (lux.AlternatePrecision(lux.Dense(2, 3, jnp.tanh), "float64"), PAIRS, {}),
    (lux.Stack(lux.Chain(lux.Dense(3, 3, jnp.tanh), lux.Dropout(0.25)), 2), X, JOINT),
    (lux.Stack(lux.Stack(lux.Dense(3, 3, jnp.tanh), 2), 2, checkpoint=True), X, {}),
    (lux.Stack(BLOCK, 2), X, TEST),
    (lux.RepeatedLayer(BLOCK, 3), X, TEST),
    (
        lux.RepeatedLayer(lux.Parallel(jnp.add, lux.Dense(3, 3, jnp.tanh), lux.Dense(3, 3)), 3, input_injection=True),
        X,
        {},
    ),
    (lux.Flatten(), SERIES, {}),
    (lux.Reshape(1, -1), X, {}),
    (lux.SelectDim(-1, 0), X, {}),
    (lux.NoOp(), X, {}),
    # images
    (lux.Conv(2, 2, (2, 3), padding=((0, 1), 2), padding_mode="circular", stride=(1, 2)), IMAGES[..., :2], {}),
    (lux.Conv(1, 2, 3, padding="SAME", padding_mode="reflect"), SERIES[..., :1], {}),
    (lux.Conv(2, 4, 3, jnp.tanh, stride=2, padding="SAME", groups=2), SERIES, {}),
    (lux.Conv(2, 3, (2, 3), dilation=(1, 2), padding=((0, 1), (2, 1))), IMAGES[..., :2], {}),
    (lux.ConvTranspose(2, 2, (3, 2), jnp.tanh, stride=2, output_padding=1, groups=2), IMAGES[:, :2, :3, :2], {}),
    (lux.MaxPool((2, 3), stride=2, padding="SAME"), IMAGES, {}),
    (lux.MaxPool((2, 2), dilation=2), IMAGES, {}),
    (lux.MeanPool((2, 3), padding=1, count_padding=False), IMAGES, {}),
    (lux.LPPool((2, 2), p=3), IMAGES, {}),
    (lux.GlobalMaxPool(), IMAGES, {}),
    (lux.GlobalMeanPool(), IMAGES, {}),
    (lux.GlobalLPPool(p=3), IMAGES, {}),
    (lux.AdaptiveMeanPool((2, 4)), IMAGES, {}),
    (lux.AdaptiveMaxPool((3, 2)), IMAGES, {}),
    (lux.AdaptiveLPPool(2), IMAGES, {}),
    (lux.Upsample("cubic", scale=1.5), IMAGES[..., :2], {}),
    (lux.Upsample(size=(3, 7)), IMAGES[..., :2], {}),
    (lux.PixelShuffle(2), IMAGES, {}),
    # attention
    (lux.MultiHeadAttention(4, 2), TOKENS[:, :3], {}),
    (
        lux.MultiHeadAttention(4, 4, key_features=2, num_kv_heads=2, is_causal=True, return_weights=True),
        (TOKENS, RNG.normal(size=(3, 6, 2))),
        {},
    ),
    (lux.MultiHeadAttention(4, dropout_rate=0.3), TOKENS[0], JOINT | REVERSE),
    (lux.SinusoidalPositionalEmbedding(4, max_freq=2.0), TOKENS[..., 0], {}),
    (lux.RotaryPositionalEmbedding(4), TOKENS[:, :, None], {}),
    (lux.LearnedPositionalEmbedding(5, 4), TOKENS, {}),
    (lux.ClassTokens(4), TOKENS, {}),
    (lux.PatchEmbedding(2, 1, 3), RNG.normal(size=(2, 4, 4, 1)), {}),
    (lux.TransformerEncoderBlock(4, 2, 3), TOKENS[:, :3], REVERSE),
    # recurrence
    (lux.RNNCell(2, 3, jax.nn.softplus), SERIES[:, 0], {}),
    (lux.LSTMCell(2, 3, train_carry=True), SERIES[:, 0], {}),
    (lux.GRUCell(2, 3, use_bias=False), (SERIES[:, 0], RNG.normal(size=(3, 3))), {}),
    (STACK, SERIES[:, 0], {}),
    (lux.Recurrence(STACK, return_carry=True, checkpoint=True), SERIES, {}),
    (
        lux.Recurrence(lux.LSTMCell(2, 3, train_carry=True), return_sequence=True),
        (SERIES, None, np.array([[True] * 4, [True, True, False, False], [False] * 4])),
        {},
    ),
    (lux.BidirectionalRNN(lux.RNNCell(2, 3)), SERIES, REVERSE),
    (lux.StatefulRecurrentCell(lux.LSTMCell(2, 3), 3), SERIES[:, 0], JOINT),
    (lux.ReverseSequence(), SERIES, {}),
    # bases, operators, networks with structure
    (lux.TensorProduct((lux.LegendreBasis(3), lux.SineBasis(2)), 2), PAIRS, {}),
    (lux.Spline([0.0, 0.5, 0.7, 1.5, 2.0], 2), np.array([0.1, 0.6, 1.9]), {}),
    (lux.KANLayer(2, 2), np.array([[0.1, 0.33], [-0.4, 0.77]]), {}),
    (lux.PeriodicEmbedding((1,), (2.0,)), PAIRS, {}),
    (lux.FourierFeatures(2, 4), PAIRS, {}),
    (lux.SpectralConv(1, 2, 2), RNG.normal(size=(2, 5, 1)), {}),
    (lux.SpectralConv(2, 1, (1, 2)), IMAGES[..., :2], {}),
    (lux.FourierBlock(2, 2, jnp.tanh), SERIES, REVERSE),
    (lux.FNO(1, 1, width=2, modes=2, depth=1), SERIES[..., :1], REVERSE),
    (lux.DeepONet(lux.Dense(2, 3), lux.Dense(1, 3)), (PAIRS, RNG.normal(size=(4, 4, 1))), {}),
    (lux.MLP(2, 3, 1, norm=lux.LayerNorm, residual=True), PAIRS, {}),
    (lux.Siren(2, 3, 1, omega=2.0, first_omega=2.0), PAIRS, {}),
    (lux.PositiveDefinite(lux.MLP(2, 3, 2), [1.0, 2.0]), PAIRS, {}),
    (lux.Pinned(lux.Dense(2, 3, jnp.tanh), [1.0, 2.0]), PAIRS, {}),
    (lux.HardConstraint(lux.Dense(2, 3), lambda x: x[..., :1], lambda x: x[..., 1:]), PAIRS, {}),
    (lux.ConvexMLP(2, 3, 1), PAIRS, {}),
    (lux.MonotoneMLP(2, 3, 1, signs=(1, -1)), PAIRS, {}),
    # what is done to parameters
    (lux.WeightNorm(NET, PATHS), X, {}),
    (lux.SpectralNorm(NET, PATHS), X, TEST),
    (lux.SpectralNorm(lux.Dense(3, 2)), X, {"derivatives": ()}),
    (lux.Frozen(lux.Chain(lux.Dense(3, 3, jnp.tanh), lux.Dropout(0.5)), "layer_0"), X, JOINT | REVERSE),
]


# --- equations ------------------------------------------------------------------------------------------------------

STEPS = {
    "solver": diffrax.Heun(),
    "stepsize_controller": diffrax.ConstantStepSize(),
    "dt0": 0.2,
    "max_steps": 4,
    "adjoint": diffrax.DirectAdjoint(),
}
SAVED = {"ts": [0.0, 0.2, 0.4], "output": "ys"}
FIXED = STEPS | SAVED
RATE = lux.Dense(2, 2, jnp.tanh)
ENERGY = lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 1))
POTENTIAL = lux.Chain(lux.Dense(1, 2, jnp.tanh), lux.Dense(2, 1))
CONTROL = diffrax.LinearInterpolation(np.array([-1.0, 1.0]), np.array([[0.3, 0.1], [0.5, -0.2]]))
Y = np.array([0.7, -0.4])
OBSERVED = (np.array([0.0, 0.25, 0.4]), np.array([[0.3], [0.1], [-0.6]]))  # times and data
SOLVE = {"batch_axis": None, "derivatives": ("forward", "reverse"), "dtypes": ("float32",)}


class Decaying(lux.Wrapper, lux.Equation):
    """An equation of one's own."""

    model: lux.Layer
    rate: float
    ts: tuple[float, ...] | None = None

    def terms(self, fields):
        return diffrax.ODETerm(lambda t, y, ps: fields["model"](t, y, ps) - self.rate * y)


def physics(u, p, nets):
    return jnp.array([p.alpha, -p.delta]) * u + p["scale"] * nets.missing(u)


def triple(y):
    return 3 * y


def last_tripled(y):
    return 3 * y[..., 1:]


def half_square(p):
    return jnp.sum(p**2, -1) / 2


def last_observed(tx):
    return jnp.asarray(tx[1])[..., -1, :]


def joined(pair):
    return jnp.concatenate(pair, -1)


def one_noise(g):
    return g[..., None]


LAYERS += [
    (lux.SparseTerms({"x y": jnp.multiply, "x + y": jnp.add}, {"dx": ["x y", "x + y"], "dy": ["x y"]}), PAIRS, {}),
    (lux.NeuralODE(RATE, **FIXED), Y, SOLVE),
    (lux.NeuralODE(lux.Parallel(jnp.add, RATE, lux.Dense(2, 2)), controlled=True, **FIXED), (Y, CONTROL), SOLVE),
    (lux.NeuralODE(lux.Galerkin(RATE, lux.PolynomialBasis(2)), time_dependent=True, **FIXED), Y, SOLVE),
    (lux.NeuralODE(lux.SecondOrder(lux.Dense(4, 2, jnp.tanh)), **FIXED), (Y, -Y), SOLVE),
    (Decaying(RATE, 0.5, **FIXED), Y, SOLVE),
    (lux.SplitODE(RATE, lux.Dense(2, 2), **FIXED), Y, SOLVE),
    (lux.AugmentedODE(lux.NeuralODE(lux.Dense(3, 3, jnp.tanh), **FIXED), lux.Dense(2, 1, jnp.tanh)), Y, SOLVE),
    (lux.NeuralDSDE(RATE, lux.Dense(2, 2), **FIXED), Y, SOLVE),
    (
        lux.NeuralSDE(
            lux.Dense(2, 2), lux.Chain(RATE, one_noise), [0.0, 0.2], dt0=0.1, output="final", max_steps=4,
            adjoint=diffrax.DirectAdjoint(),
        ),
        np.array([1.0, -0.5]),
        JOINT | {"derivatives": ("forward", "reverse")},
    ),
    (lux.NeuralDDE(lux.Dense(4, 2, jnp.tanh), [0.2], dt0=0.2, **SAVED), Y, SOLVE),
    (lux.NeuralDAE(lux.Dense(2, 1), lux.Parallel(jnp.add, lux.Dense(2, 1), last_tripled), **FIXED), Y, SOLVE),
    (lux.MassMatrixODE(lux.Parallel(jnp.add, RATE, triple), [1, 0], **FIXED), Y, SOLVE),
    (
        lux.HamiltonianODE(half_square, POTENTIAL, dt0=0.2, max_steps=4, adjoint=diffrax.DirectAdjoint(), **SAVED),
        (Y[:1], -Y[:1]),
        SOLVE,
    ),
    (
        lux.NeuralCDE(
            lux.Dense(2, 6, jnp.tanh), lux.Dense(2, 2), output="final", interpolation="linear", window=2,
            **STEPS | {"dt0": 0.15, "max_steps": 8},
        ),
        (np.array([0.0, 0.5, 1.0]), np.array([[0.0], [-0.5], [2.0]])),  # 1 is no multiple of the step
        JOINT | {"derivatives": ("forward", "reverse")},
    ),
    (lux.ODERNN(lux.GRUCell(2, 2), RATE, **STEPS, output="ys"), OBSERVED, SOLVE),
    (lux.IrregularSequence(), OBSERVED, JOINT),
    (
        lux.LatentODE(
            lux.Chain(lux.IrregularSequence(), lux.Recurrence(lux.GRUCell(5, 3), reverse=True), lux.Dense(3, 4)),
            lux.NeuralODE(RATE, output="ys", **STEPS | {"solver": diffrax.Tsit5(), "dt0": 0.3, "max_steps": 8}),
            lux.Dense(2, 2),
        ),
        (np.array([0.0, 0.2, 0.5, 1.0]), np.array([[0.3, 1.0], [-1.0, 0.0], [0.0, 0.0], [0.7, 2.0]])),
        SOLVE | REVERSE,
    ),
    (
        lux.LatentSDE(
            last_observed, lux.Dense(1, 4), lux.Chain(joined, lux.Dense(3, 2, jnp.tanh)), RATE, jnp.exp,
            lux.Dense(2, 1), 2, dt0=0.1, max_steps=4, adjoint=diffrax.DirectAdjoint(),
        ),
        OBSERVED,
        SOLVE | REVERSE | {"differentiable_input": False},  # a Brownian path has no derivative by its times
    ),
    (lux.WithCosts(lux.NeuralODE(RATE, **FIXED), ("kinetic", "jacobian", "acceleration")), Y, SOLVE),
    (
        lux.CNF(
            lux.Chain(lux.diffeq.concat_time, lux.Dense(3, 4, jnp.tanh), lux.Dense(4, 2)),
            trace="hutchinson", regularize=True, base=lux.diffeq.NormalDensity(2),
            **STEPS | {"dt0": 0.3, "max_steps": 8},
        ),
        np.array([[0.5, -1.0]]),
        JOINT | REVERSE,
    ),
    (lux.diffeq.MixtureDensity(2, 3), PAIRS, {}),
    # the fields of equations
    (lux.UDE(physics, {"alpha": 1.3, "delta": 2, "scale": [1.0, 2.0]}, missing=lux.MLP(2, 3, 2)), PAIRS, REVERSE),
    (lux.Galerkin(RATE, lux.PolynomialBasis(2)), (0.3, Y), JOINT),
    (lux.SecondOrder(lux.Dense(4, 2, jnp.tanh)), (PAIRS, -PAIRS), {}),
    (lux.GradientFlow(ENERGY), PAIRS, {}),
    (lux.HamiltonianNN(lux.MLP(4, 3, 1)), TOKENS[:, 0], {}),
    (lux.LagrangianNN(lux.ConvexMLP(4, 5, 1)), TOKENS[:, 0], REVERSE),
    (
        lux.PortHamiltonian(ENERGY, lux.Dense(2, 4), lux.Dense(2, 4), lux.Dense(2, 2)),
        (PAIRS, PAIRS[:, :1]),
        REVERSE | {"dtypes": ("float32",)},
    ),
    (lux.Nudged(RATE, np.linspace(0.0, 1.0, 6), np.ones((6, 2)), gain=1.5), (np.array(0.31), Y), JOINT | REVERSE),
]  # fmt: skip


# --- equilibria -----------------------------------------------------------------------------------------------------

SMALL = {"init_weight": lux.initializers.Normal(0.25)}
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


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


def join(a, b):
    return jnp.tanh(a + b)


def forcing(ux):
    return ux[1] - ux[0] ** 3 - ux[0]


CELL = lux.Parallel(join, lux.Dense(4, 4, use_bias=False, **SMALL), lux.Dense(3, 4))
SCALES = {
    "branches": (lux.Parallel(jnp.add, lux.Dense(4, 4, **SMALL), lux.Dense(3, 4)), lux.Dense(2, 2, **SMALL)),
    "fusion": ((lux.NoOp(), lux.Dense(2, 4, **SMALL)), (lux.Dense(4, 2), lux.NoOp())),
    "after": (jnp.tanh, jnp.tanh),
}
FORCED = lux.SteadyState(lux.Lambda(forcing), with_input=True, **TIGHT)
STEADY = {"dtypes": ("float64",), "differentiable_input": False, "rtol": 1e-4}
Z, INPUT = RNG.normal(size=(2, 4)), X[:2]

LAYERS += [
    (lux.DeepEquilibrium(CELL, 4, **TIGHT), INPUT, {}),
    (lux.DeepEquilibrium(Halved(), 4, batching="vmap", **TIGHT), INPUT, {}),
    (lux.DeepEquilibrium(CELL, 4, solver=lux.Broyden(1e-12, 1e-12)), INPUT, {}),
    (lux.DeepEquilibrium(CELL, 4, solver=optimistix.Newton(1e-12, 1e-12)), INPUT, {}),
    (lux.DeepEquilibrium(lux.MonotoneCell(3, 4), 4, fixed_depth=2), INPUT, {}),
    (lux.DeepEquilibrium(lux.NormalizedCell(CELL), initial=lux.Dense(3, 4), **TIGHT), INPUT, {}),
    (lux.MultiScaleDEQ(**SCALES, scales=((4,), (2,)), **TIGHT), INPUT, {}),
    (lux.MultiScaleCell(**SCALES), ((Z, Z[:, :2]), INPUT), {}),
    (lux.MonotoneCell(3, 4, init_bias=lux.initializers.Normal()), (Z, INPUT), {}),
    (lux.NormalizedCell(CELL, bound=0.5, iterations=100), (Z, INPUT), {}),
    (lux.NormalizedCell(CELL, bound=0.5, norm="weight"), (Z, INPUT), {}),
    (Halved(), (Z, INPUT), {}),
    (lux.SteadyState(Decay(), max_steps=1000, rtol=1e-9, atol=1e-9), np.full((2, 3), 0.5), STEADY),
    (
        lux.SteadyState(Decay(), solver=diffrax.Tsit5(), max_steps=1000, rtol=1e-9, atol=1e-9),
        np.full((2, 3), 0.5),
        STEADY,
    ),
    (lux.Chain(lux.Parallel(None, jnp.zeros_like, lux.NoOp()), FORCED), INPUT, {"dtypes": ("float64",)}),
]


def kind(value):
    return type(value).__name__ if isinstance(value, lux.Layer) else ""


# --- the checks, and the account ------------------------------------------------------------------------------------


def marked(case):
    """Of equations, whose solves take long to trace, the plainest one is in the everyday tests."""
    equation = lux.diffeq.equation_of(case[0])
    everyday = equation is None or case[0] == lux.NeuralODE(RATE, **FIXED)
    return case if everyday else pytest.param(*case, marks=pytest.mark.exhaustive)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("layer", "x", "options"), [marked(case) for case in LAYERS], ids=kind)
def test_layers_keep_the_contract(layer, x, options):
    check_layer(layer, x, printed=True, **options)


EQUILIBRIA = [(layer, x) for layer, x, _ in LAYERS if isinstance(layer, lux.equilibrium.EquilibriumLayer)]


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "x"), EQUILIBRIA, ids=kind)
def test_the_program_of_an_equilibrium_and_its_gradient_has_no_callback(layer, x):
    ps, st = lux.setup(jax.random.key(0), layer)

    def loss(ps, x):
        return sum(jnp.sum(z) for z in jax.tree.leaves(layer(x, ps, lux.testmode(st))[0]))

    assert "callback" not in jax.jit(jax.value_and_grad(loss)).lower(ps, jnp.asarray(x)).as_text()


def test_every_public_layer_is_checked():
    public = {value for value in (getattr(lux, name) for name in lux.__all__) if isinstance(value, type)}
    layers = {cls for cls in public if issubclass(cls, lux.Layer) and not inspect.isabstract(cls)}
    checked = {type(layer) for layer, _, _ in LAYERS}
    assert {cls.__name__ for cls in layers - checked} == {
        "Event",
        "Jumps",
    }  # options of equations, which are not called
    own = {"Decaying", "Halved"}
    assert {cls.__name__ for cls in checked - layers} == own | {"MixtureDensity"}  # which is of lux.diffeq
