"""What comes into equations: times in one precision, integers, half precision, no samples, trees; wrong calls."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.diffeq.times import times_in

NET = lux.Dense(2, 2, jnp.tanh)
DECAY = lux.Lambda(lambda y: jax.tree.map(jnp.negative, y))
DATA_TIMES = np.array([0.0, 0.5, 1.0])
FIXED = {"solver": diffrax.Heun(), "stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.25, "max_steps": 8}
QUADRATIC = lux.Lambda(lambda z: jnp.sum(z**2, -1) / 2)


def run(layer, x):
    out, _ = layer(x, *lux.setup(jax.random.key(0), layer))
    return out.ys if isinstance(out, diffrax.Solution) else out


# --- times in one precision ---------------------------------------------------------------------------------------

UNIX = 1.7e9 + np.arange(3.0)  # seconds, which are 128 apart in float32
CDE = lux.NeuralCDE(lux.Dense(2, 4), lux.Dense(2, 2), output="ys", **FIXED)
RNN = lux.ODERNN(lux.GRUCell(2, 2), NET, **FIXED)
ONE = np.ones(2, "float32")
ROWS = np.ones((3, 1), "float32")


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lux.NeuralODE(DECAY, UNIX), ONE),
        (lux.NeuralODE(DECAY), (ONE, UNIX)),
        (lux.NeuralODE(DECAY, batching="vmap"), (np.stack([ONE, ONE]), np.stack([np.arange(3.0), UNIX]))),
        (lux.SplitODE(DECAY, DECAY, UNIX), ONE),
        (lux.NeuralDSDE(DECAY, DECAY, UNIX, dt0=0.1), ONE),
        (lux.NeuralDDE(lux.Dense(4, 2), [1.0], UNIX), ONE),
        (lux.MassMatrixODE(DECAY, [1, 0], UNIX), ONE),
        (lux.HamiltonianODE(QUADRATIC, QUADRATIC, UNIX, dt0=0.1), (ONE, ONE)),
        (CDE, (UNIX, ROWS)),
        (RNN, (UNIX, ROWS)),
        (lux.IrregularSequence(), (UNIX, ROWS)),
        (lux.WithCosts(lux.NeuralODE(DECAY, UNIX)), ONE),
        (lux.NeuralODE(lux.Nudged(DECAY, UNIX, np.ones((3, 2))), [0.0, 1.0], time_dependent=True), ONE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_times_that_become_one_number_are_refused(layer, x):
    with pytest.raises(ValueError, match=r"the times 1700000000\.0 and 1700000001\.0 are one number in float32"):
        run(layer, x)


def test_times_that_become_one_number_are_refused_in_fits_and_nan_where_they_are_traced():
    node = lux.NeuralODE(DECAY, **FIXED)
    with pytest.raises(ValueError, match="one number in float32"):
        lux.diffeq.multiple_shooting(node, {}, {}, np.ones((3, 2), "float32"), UNIX, group_size=2)
    with pytest.raises(ValueError, match="must increase, in float32 too"):
        lux.diffeq.control_path(jnp.asarray(UNIX, "float32"), ROWS)
    ys = jax.jit(lambda ts: node((jnp.asarray(ONE), ts), {}, {})[0].ys)(jnp.asarray(UNIX))
    assert jnp.all(jnp.isnan(ys))
    assert jnp.all(jnp.isfinite(node((jnp.ones(2), UNIX), {}, {})[0].ys))  # in float64 they are three times


def test_traced_times_that_jax_has_made_one_are_nan_for_their_sample():
    node = lux.NeuralODE(DECAY, batching="vmap", output="ys", **FIXED)
    with jax.enable_x64(False):
        ts = np.stack([np.linspace(0.0, 1.0, 3), 1.7e9 + np.linspace(0.0, 1.0, 3)])
        ys = jax.jit(lambda y, ts: node((y, ts), {}, {})[0])(jnp.ones((2, 2), "float32"), ts)
    assert jnp.all(jnp.isfinite(ys[0])) and jnp.all(jnp.isnan(ys[1]))


@pytest.mark.parametrize("start", [2.0, 0.3, 1e-3])
def test_rounding_far_from_zero_is_no_leave_to_go_on_without_a_control(start):
    """Seconds since 1970: single precision resolves 128 of them."""
    node = lux.NeuralODE(lux.Lambda(lambda x: x[1] - x[0]), 1.7e9 + start + np.arange(2.0), controlled=True, **FIXED)
    control = diffrax.LinearInterpolation(jnp.asarray(1.7e9 + np.arange(2.0)), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="from 1700000000 to 1700000001, the times ask for 170000000"):
        node((jnp.zeros(1), control), {}, {})


def test_times_that_are_one_number_already_are_kept_where_they_need_not_increase():
    got = lux.IrregularSequence()((np.array([0.0, 1.0, 1.0]), np.ones((3, 1))), {}, {})[0]
    np.testing.assert_array_equal(got[:, 0], [0.0, 1.0, 0.0])
    assert times_in("float32", [0, 1, 2]).dtype == "float32"
    with pytest.raises(ValueError, match="one number in float32"):
        times_in("float32", [0.0, 1e300, 1e301])  # both infinite


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["float32", "float64"])
def test_ends_of_a_control_are_compared_up_to_rounding(ends):
    node = lux.NeuralODE(
        lux.Lambda(lambda x: x[1] - x[0]), np.linspace(0, 0.7, 4), controlled=True, output="final", **FIXED
    )
    u = diffrax.LinearInterpolation(jnp.linspace(0, 0.7, 4, dtype=ends), jnp.ones((4, 2), "float32"))
    for dtype in ("float32", "float64"):
        eager = node((jnp.ones(2, dtype), u), {}, {})[0]
        traced = jax.jit(lambda y, u: node((y, u), {}, {})[0])(jnp.ones(2, dtype), u)
        assert eager.dtype == dtype
        np.testing.assert_allclose(eager, 1.0, rtol=1e-6)
        np.testing.assert_allclose(traced, 1.0, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda dt0: lux.NeuralODE(NET, [0.0, 1.0], **FIXED | {"dt0": dt0}),
        lambda dt0: lux.NeuralODE(NET, [1.0, 0.0], **FIXED | {"dt0": dt0}),
        lambda dt0: lux.NeuralDSDE(NET, NET, [0.0, 1.0], dt0=dt0),
        lambda dt0: lux.NeuralDDE(lux.Dense(4, 2), [0.5], [0.0, 1.0], dt0=dt0),
    ],
    ids=["forward", "backward", "stochastic", "delays"],
)
def test_the_sign_of_dt0_is_that_of_the_times(make):
    up, down = make(0.25), make(-0.25)
    assert up == down
    np.testing.assert_array_equal(run(up, jnp.ones(2)), run(down, jnp.ones(2)))


# --- integers, half precision, no samples -------------------------------------------------------------------------

LAYERS = {
    "NeuralODE": (lux.NeuralODE(NET, [0.0, 1.0], **FIXED), lambda y: y),
    "SplitODE": (lux.SplitODE(NET, NET, [0.0, 1.0], **FIXED), lambda y: y),
    "AugmentedODE": (lux.AugmentedODE(lux.NeuralODE(lux.Dense(3, 3), [0.0, 1.0], **FIXED), 1), lambda y: y),
    "SecondOrder": (lux.NeuralODE(lux.SecondOrder(lux.Dense(4, 2)), [0.0, 1.0], **FIXED), lambda y: (y, y)),
    "WithCosts": (lux.WithCosts(lux.NeuralODE(NET, [0.0, 1.0], **FIXED)), lambda y: y),
    "NeuralDSDE": (lux.NeuralDSDE(NET, NET, [0.0, 1.0], dt0=0.5), lambda y: y),
    "NeuralSDE": (lux.NeuralSDE(NET, lambda y: y[..., None], [0.0, 1.0], dt0=0.5), lambda y: y),
    "NeuralDDE": (lux.NeuralDDE(lux.Dense(4, 2), [0.5], [0.0, 1.0], dt0=0.25), lambda y: y),
    "MassMatrixODE": (lux.MassMatrixODE(lux.Parallel(jnp.add, NET, lambda y: 3 * y), [1, 0], [0.0, 1.0], **FIXED),
                      lambda y: y),
    "HamiltonianODE": (lux.HamiltonianODE(QUADRATIC, lux.Dense(2, 1), [0.0, 1.0], dt0=0.5), lambda y: (y, y)),
    "NeuralCDE": (CDE, lambda y: (DATA_TIMES, jnp.stack([y[..., :1]] * 3, -2))),
    "ODERNN": (RNN, lambda y: (DATA_TIMES, jnp.stack([y[..., :1]] * 3, -2))),
    "CNF": (lux.CNF(lux.Chain(lux.diffeq.concat_time, lux.Dense(3, 2)), **FIXED), lambda y: y),
}  # fmt: skip
VALUES = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LAYERS)
def test_integers_and_half_precision_are_solved_as_floats(name):
    layer, x_of = LAYERS[name]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        ps, st = lux.setup(jax.random.key(0), layer)

        def solve(y):
            return values(layer(x_of(y), ps, st)[0])

        expected = solve(jnp.asarray(VALUES))
        for dtype in ("int32", "uint8", "bool"):
            for got, want in zip(solve(jnp.asarray(VALUES, dtype)), expected, strict=True):
                np.testing.assert_array_equal(got, want)
        for dtype in ("bfloat16", "float16"):
            for got, want in zip(solve(jnp.asarray(VALUES, dtype)), expected, strict=True):
                assert got.dtype == dtype
                np.testing.assert_array_equal(got, want.astype(dtype))  # rounded once, at the end


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["NeuralODE", "NeuralDSDE", "NeuralCDE", "ODERNN", "NeuralDDE"])
def test_half_precision_of_parameters_too_is_rounded_at_the_end(name):
    layer, x_of = LAYERS[name]
    with jax.enable_x64(False):
        ps, st = lux.setup(jax.random.key(0), layer, dtype=jnp.bfloat16)
        y = jnp.asarray(VALUES, jnp.bfloat16)
        half = values(layer(x_of(y), ps, st)[0])
        single = values(layer(x_of(y.astype("float32")), ps.astype("float32"), st)[0])
        for got, want in zip(half, single, strict=True):
            np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
        gradient = jax.grad(lambda ps: sum(jnp.sum(v.astype("float32")) for v in values(layer(x_of(y), ps, st)[0])))(ps)
        assert gradient.dtype == jnp.bfloat16 and jnp.all(jnp.isfinite(gradient.data))


def values(out):
    """The arrays of an output."""
    if isinstance(out, tuple) and isinstance(out[0], diffrax.Solution):  # with costs
        out = out[0].ys, out[1]
    return jax.tree.leaves(out.ys if isinstance(out, diffrax.Solution) else out)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("batching", ["joint", "vmap"])
@pytest.mark.parametrize("name", LAYERS)
def test_no_samples_give_none(name, batching):
    layer, x_of = LAYERS[name]
    if isinstance(layer, lux.Equation):
        layer = layer.replace(batching=batching)
    else:
        layer = layer.replace(layer=layer.layer.replace(batching=batching))
    ps, st = lux.setup(jax.random.key(0), layer)
    full, after = jax.eval_shape(lambda x: layer(x, ps, st), x_of(jnp.ones((7, 2))))
    none, kept = layer(x_of(jnp.ones((0, 2))), ps, st)
    for got, want in zip(values(none), values(full), strict=True):
        assert got.shape == tuple(0 if n == 7 else n for n in want.shape)
    assert jax.tree.structure(kept) == jax.tree.structure(after)
    gradient = jax.grad(lambda ps: sum(jnp.sum(v) for v in values(layer(x_of(jnp.ones((0, 2))), ps, st)[0])))(ps)
    np.testing.assert_array_equal(gradient.data, 0.0)


def test_real_constants_and_times_are_not_cast_to_the_type_of_the_data():
    path = lux.diffeq.LatentPath(jnp.zeros((3, 1)), jnp.zeros(2), jnp.zeros(2))
    x = jnp.array([[1], [0], [-1]])
    np.testing.assert_allclose(lux.diffeq.elbo(path, x, noise=0.5), lux.diffeq.elbo(path, x.astype(float), noise=0.5))
    ts, xs = jnp.array([0.0, 0.5, 0.75]), jnp.array([[5], [6], [7]])
    np.testing.assert_array_equal(lux.IrregularSequence()((ts, xs), {}, {})[0][:, 0], [0.0, 0.5, 0.25])
    np.testing.assert_array_equal(lux.diffeq.concat_time((0.5, jnp.array([[1, 2]]))), [[0.5, 1.0, 2.0]])
    nudged = lux.Nudged(lux.Lambda(lambda y: 0.0 * y), [0.0, 2.5], np.array([[0.5], [3.0]]), gain=0.5)
    np.testing.assert_allclose(nudged((jnp.array(1), jnp.array([1])), {}, {})[0], [0.5 * (1.5 - 1)])
    field = lux.Galerkin(lux.Lambda(lambda x: x * 1.0), lux.FourierBasis(3))
    np.testing.assert_allclose(*(field((t, jnp.ones(1)), {}, {})[0] for t in (jnp.array(1), jnp.array(1.0))))


@pytest.mark.parametrize("law", [lux.HamiltonianNN, lux.LagrangianNN, lux.GradientFlow])
@pytest.mark.parametrize("dtype", ["int32", "bool", "bfloat16"])
def test_fields_of_energies_take_integers_and_half_precision(law, dtype):
    field = law(QUADRATIC)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        want = field(jnp.asarray(VALUES, "float32"), {}, {})[0]
        got = field(jnp.asarray(VALUES, dtype), {}, {})[0]
    assert got.dtype == (dtype if dtype == "bfloat16" else "float32")
    np.testing.assert_array_equal(got.astype("float32"), want)


# --- trees, vectors, controls, times through fields and wrappers ---------------------------------------------------


@pytest.mark.slow
def test_costs_of_all_that_an_equation_takes():
    """y' = -y: both costs are (1 - exp(-2)) / 2 |y0|^2, in each form of state, also of a pair and under a control."""
    values = np.array([1.0, 2.0])
    states = [
        jnp.array([1, 2]),
        {"a": jnp.array([1.0]), "b": jnp.array([2.0])},
        lux.ComponentVector(a=1.0, b=2.0),
        (jnp.array([1.0]), jnp.array([2.0])),
    ]
    exact = (1 - np.exp(-2)) / 2 * np.sum(values**2)
    for y0 in states:
        costs = run(lux.WithCosts(lux.NeuralODE(DECAY, [0.0, 1.0], output="final"), ("kinetic", "acceleration")), y0)[1]
        np.testing.assert_allclose(list(costs.values()), exact, rtol=1e-5)
    u = diffrax.LinearInterpolation(jnp.array([0.0, 1.0]), jnp.array([[0.0], [1.0]]))
    node = lux.NeuralODE(lux.Lambda(lambda yu: yu[1] + 0 * yu[0]), [0.0, 1.0], output="final", controlled=True)
    _, costs = run(lux.WithCosts(node, ("kinetic", "acceleration")), (jnp.zeros(1), u))
    np.testing.assert_allclose(costs["kinetic"], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(costs["acceleration"], 1.0, rtol=1e-5)  # of the control, in time


@pytest.mark.exhaustive
def test_stochastic_equations_of_trees_and_vectors_are_those_of_arrays():
    """Diagonal noise of a tree; general noise that drives all arrays of it."""
    y = jnp.array([1.0, -0.5])
    noise = lux.Lambda(lambda y: jax.tree.map(lambda y: jnp.stack([y, 0.3 * y, 0 * y], -1), y))
    plain = run(lux.NeuralSDE(DECAY, noise, [0.0, 1.0], dt0=0.25, output="final"), y)
    for other in ({"a": y[:1], "b": y[1:]}, lux.ComponentVector(a=y[0], b=y[1]), (y[0], y[1])):
        sde = lux.NeuralSDE(DECAY, noise, [0.0, 1.0], dt0=0.25, output="final")
        np.testing.assert_allclose(np.ravel(jax.tree.leaves(run(sde, other))), plain, rtol=1e-12)
    sde = lux.NeuralDSDE(DECAY, DECAY, [0.0, 1.0], dt0=0.25, output="final")
    named, tree = run(sde, lux.ComponentVector(a=y[0], b=y[1])), run(sde, {"a": y})
    np.testing.assert_allclose(named.data, run(sde, y), rtol=1e-12)
    np.testing.assert_allclose(tree["a"], run(sde, y), rtol=1e-12)


FIELDS = {
    "SecondOrder": (lux.SecondOrder(lux.Lambda(lambda x: rest(x) - inside(x)[..., :1])), (np.ones(1), np.zeros(1))),
    "GradientFlow": (lux.GradientFlow(lux.Lambda(lambda x: jnp.sum(inside(x) ** 2 / 2 - rest(x) * inside(x)))),
                     np.ones(1)),
    "HamiltonianNN": (lux.HamiltonianNN(lux.Lambda(lambda x: jnp.sum(inside(x) ** 2 / 2) - rest(x) * inside(x)[0])),
                      np.array([1.0, 0.0])),
    "Nudged": (lux.Nudged(lux.Lambda(lambda x: rest(x) - inside(x)), [0.0, 1.0], np.zeros((2, 1)), 0.0,
                          time_dependent=True), np.ones(1)),
}  # fmt: skip


def inside(x):
    """The state in `(t, (y, u))`."""
    return x[1][0]


def rest(x):
    return x[0] + x[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_time_and_control_reach_the_layers_in_fields(name):
    """With the control `-t` they cancel."""
    field, y0 = FIELDS[name]
    u = diffrax.LinearInterpolation(jnp.array([0.0, 1.0]), jnp.array([0.0, -1.0]))
    node = lux.NeuralODE(field, [0.0, 1.0], time_dependent=True, controlled=True, output="final", rtol=1e-9)
    decays = name in ("GradientFlow", "Nudged")
    exact = np.exp(-1) if decays else [np.cos(1.0), -np.sin(1.0)]
    np.testing.assert_allclose(np.ravel(jax.tree.leaves(run(node, (y0, u)))), exact, rtol=1e-6)


# --- wrong calls ----------------------------------------------------------------------------------------------------

AUGMENTED = lux.AugmentedODE(lux.NeuralODE(lux.Dense(3, 3)), 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lux.NeuralODE(lambda t, y, args: y), r"take one argument, y, or .*got a function of \(t, y, args\)"),
        (lambda: run(lux.NeuralODE(lambda u: [u[1], u[0]], [0.0, 1.0]), jnp.ones(2)), r"`jnp\.stack` makes one array"),
        (lambda: lux.NeuralODE(NET, [0.0, 1.0], time_dependent=True, controlled="no"), "controlled: expected True or"),
        (lambda: jax.jit(lambda ts: lux.NeuralODE(NET, ts))(jnp.arange(3.0)), "ts is a traced array"),
        (lambda: run(lux.NeuralODE(NET, [0.0, 1.0], batching="vmap"), jnp.ones(2)), "2 samples of one element each"),
        (lambda: lux.NeuralODE(NET, saveat=diffrax.SaveAt(steps=True), output="final"), "the last value that `saveat`"),
        (lambda: lux.NeuralODE(NET, saveat=diffrax.SaveAt(dense=True), output="final"), "the last value that `saveat`"),
        (lambda: lux.NeuralODE(NET, rtol=0.0, atol=0.0), "one of the tolerances is above zero"),
        (lambda: type("Bad", (lux.NeuralODE,), {"forward": None}), r"Bad\.forward: that of an Equation is final"),
        (lambda: lux.AugmentedODE(lux.HamiltonianODE(NET, NET, dt0=0.1), 1), r"HamiltonianODE takes a pair \(q, p\)"),
        (lambda: lux.AugmentedODE(CDE, 1), r"NeuralCDE takes the tuple \(times, data\)"),
        (lambda: lux.WithCosts(AUGMENTED), "goes around an equation itself"),
        (
            lambda: run(lux.WithCosts(lux.SplitODE(NET, NET, [0.0, 1.0])), jnp.ones(2)),
            "SplitODE is not one vector field",
        ),
        (lambda: lux.WithCosts(CDE), "NeuralCDE is not one vector field"),
        (lambda: run(lux.NeuralODE(lux.SecondOrder(NET), [0.0, 1.0]), jnp.ones(2)), r"is the pair \(x, v\)"),
        (lambda: shoot(AUGMENTED), r"a group ends where the next one starts.*each \(2,\).*they are \(2, 3, 3\)"),
        (lambda: shoot(NET), "takes a NeuralODE, or an equation like it"),
        (lambda: shoot(CDE), "takes a NeuralODE, or an equation like it"),
        (lambda: run(CDE, (DATA_TIMES, {"a": jnp.ones((3, 1))})), "the data of NeuralCDE are one array"),
        (
            lambda: lux.diffeq.control_path(np.zeros(1), np.zeros((1, 1))),
            r"at two times or more, got \(1, 1\) at \(1,\)",
        ),
        (lambda: lux.diffeq.tightening_tolerances(lux.NeuralDSDE(NET, NET, dt0=0.1), 2), "with rtol and atol"),
    ],
)
def test_wrong_calls_are_one_sentence(make, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


def shoot(layer):
    ps, st = lux.setup(jax.random.key(0), layer)
    return lux.diffeq.multiple_shooting(layer, ps, st, jnp.ones((4, 2)), np.arange(4.0), group_size=3)


@pytest.mark.slow
def test_multiple_shooting_of_a_pair_is_that_of_its_parts_side_by_side():
    node = lux.NeuralODE(lux.SecondOrder(lux.Dense(4, 2)), output="ys", **FIXED)
    first_order = lux.SkipConnection(node.model.model, lambda a, y: jnp.concatenate([y[..., 2:], a], -1))
    flat = lux.NeuralODE(first_order, output="ys", **FIXED)
    ps, st = lux.setup(jax.random.key(0), node)
    x, v, ts = jnp.sin(jnp.arange(10.0)).reshape(5, 2), jnp.cos(jnp.arange(10.0)).reshape(5, 2), np.arange(5) / 2
    pair, (first, _) = lux.diffeq.multiple_shooting(node, ps, st, (x, v), ts, group_size=3)
    one, _ = lux.diffeq.multiple_shooting(
        flat, {"layer": ps.tree()}, {"layer": {}}, jnp.concatenate([x, v], -1), ts, group_size=3
    )
    np.testing.assert_allclose(pair, one, rtol=1e-12)
    assert first[0].shape == (3, 2)


@pytest.mark.slow
def test_data_that_are_missing_do_not_count_in_multiple_shooting():
    node, ts = lux.NeuralODE(DECAY, output="ys", **FIXED), np.arange(5) / 2
    data = jnp.ones((5, 2)).at[1, 0].set(jnp.nan)

    def loss(x, data):
        starts = x * jnp.ones((2, 2))
        return lux.diffeq.multiple_shooting(node, {}, {}, data, ts, group_size=3, starts=starts)[0]

    value, slope = jax.value_and_grad(loss)(1.0, data)
    assert jnp.isfinite(value) and jnp.isfinite(slope)
    error = 1 - (1 - 0.25 + 0.25**2 / 2) ** 2  # after two steps of Heun's method
    np.testing.assert_allclose(loss(1.0, jnp.ones((5, 2))) - value, error**2, rtol=1e-9)


def test_a_latent_ode_looks_through_the_wrappers_of_its_dynamics():
    """As many samples as times, which would not be seen to be swapped."""
    inner = lux.NeuralODE(lux.Dense(3, 3, jnp.tanh), output="ys", batching="vmap", **FIXED)
    encoder = lux.Lambda(lambda tx: jnp.concatenate([tx[1][:, 0], 0 * tx[1][:, 0]], -1))
    model = lux.LatentODE(encoder, lux.AugmentedODE(inner, 1), lux.Lambda(lambda z: z))
    ps, st = lux.setup(jax.random.key(0), model)
    xs = jnp.sin(jnp.arange(18.0)).reshape(3, 3, 2)
    path, _ = model((DATA_TIMES, xs), ps, lux.testmode(st))
    zs, _ = model.dynamics((xs[:, 0], DATA_TIMES), ps.dynamics.tree(), {})
    np.testing.assert_allclose(path.xs, zs, rtol=1e-12)
    np.testing.assert_allclose(path.xs[:, 0, :2], xs[:, 0], rtol=1e-12)
    joint = model.replace(dynamics=lux.AugmentedODE(inner.replace(batching="joint"), 1))
    np.testing.assert_allclose(joint((DATA_TIMES, xs), ps, lux.testmode(st))[0].xs, zs, rtol=1e-12)


def test_tolerances_tighten_inside_of_wrappers():
    stages = lux.diffeq.tightening_tolerances(AUGMENTED, 3)
    np.testing.assert_allclose([stage.layer.rtol for stage in stages], [1e-2, 1e-4, 1e-6])
    assert stages[-1] is AUGMENTED


@pytest.mark.parametrize("solver", [diffrax.KenCarp4(), diffrax.ItoMilstein(), diffrax.SemiImplicitEuler()])
def test_solvers_of_several_terms_are_refused_where_there_is_one(solver):
    net = lux.Dense(2, 2)
    for make in (lux.NeuralODE, lux.CNF, lambda net, **o: lux.MassMatrixODE(net, [1, 0], **o)):
        with pytest.raises(ValueError, match=r"has one vector field, and .* takes several apart"):
            make(net, solver=solver)
    assert lux.SplitODE(net, net, solver=diffrax.KenCarp4()).option("solver") == diffrax.KenCarp4()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [lambda **parts: lux.ComponentVector(**parts), dict], ids=["vector", "dict"])
def test_a_field_of_a_joint_batch_returns_names_that_hold_batches(kind):
    def field(u):
        return kind(speed=u.pair.sum(-1), pair=-u.pair)

    names = lux.ComponentVector(speed=0.0, pair=[0.0, 0.0])
    starts = lux.ComponentVector(jnp.arange(12.0).reshape(2, 2, 3), names.layout)
    node = lux.NeuralODE(field, ts=[0.0, 0.5, 1.0], output="ys")
    ys, _ = node(starts, {}, {})
    assert ys.speed.shape == (3, 2, 2) and ys.pair.shape == (3, 2, 2, 2)
    of_each = jax.vmap(jax.vmap(lambda u: node(u, {}, {})[0]))(starts)
    np.testing.assert_allclose(ys.data, jnp.moveaxis(of_each.data, 2, 0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"components of a batch \(2, 2\) of vectors have its axes in front"):
        lux.NeuralODE(lambda u: kind(speed=0.0, pair=-u.pair), ts=[0.0, 1.0])(starts, {}, {})


@pytest.mark.slow
def test_a_vector_of_names_that_hold_batches_is_refused_for_samples():
    node = lux.NeuralODE(lux.Lambda(jnp.negative), ts=[0.0, 1.0], batching="vmap", output="ys")
    names = lux.ComponentVector(prey=0.0, predator=0.0)
    with pytest.raises(ValueError, match=r"samples along the first axis, an array \(batch, 6\).*names.layout"):
        node(lux.ComponentVector(prey=[1.0, 2.0, 3.0], predator=[2.0, 1.0, 3.0]), {}, {})
    ys, _ = node(lux.ComponentVector(jnp.ones((3, 2)), names.layout), {}, {})
    assert ys.prey.shape == (3, 2)
