"""DeepEquilibrium: solutions, gradients, guesses, state, stability, faults."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux
from lux_sciml.testing import require_test_mode

SMALL = lux.initializers.Normal(0.25)
CELL = lux.Parallel(lambda a, b: jnp.tanh(a + b), lux.Dense(5, 5, use_bias=False, init_weight=SMALL), lux.Dense(3, 5))
X = np.random.default_rng(0).standard_normal((4, 3))


@jax.jit
def run(model, x, ps, st):
    """A call in one program; equal models share it."""
    return model(x, ps, st)


def model_of(cell=CELL, key=None, dtype="float64", **options):
    model = lux.DeepEquilibrium(cell, **{"shape": 5, "rtol": 1e-10, "atol": 1e-10, **options})
    return model, *lux.setup(jax.random.key(0) if key is None else key, model, dtype)


def iterated(ps, x, n=200):
    """The plain iteration, written out with NumPy."""
    w, u, b = (np.asarray(a) for a in (ps.cell.layer_0.weight, ps.cell.layer_1.weight, ps.cell.layer_1.bias))
    z = np.zeros((*x.shape[:-1], 5))
    for _ in range(n):
        z = np.tanh(z @ w + x @ u + b)
    return z


def gradient(model, ps, st, x=X):
    def loss(ps):
        z, _ = run(model, jnp.asarray(x), ps, st)
        return jnp.sum(z**3)

    return jax.jit(jax.grad(loss))(ps)


# --- solutions and gradients --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batching": "vmap"},
        {"solver": optx.FixedPointIteration(1e-10, 1e-10), "rtol": 1e-5, "atol": 1e-5},
        {"solver": optx.Newton(1e-10, 1e-10), "rtol": 1e-5, "atol": 1e-5},
        {"solver": diffrax.Tsit5(), "max_steps": 4000, "rtol": 1e-8, "atol": 1e-8},
        {"fixed_depth": 60},
    ],
    ids=["Anderson", "vmap", "fixed-point", "Newton", "pseudo-transient", "fixed depth"],
)
def test_every_solver_finds_the_fixed_point_and_its_gradient(options):
    model, ps, st = model_of(**options)
    z, st_next = run(model, X, ps, st)
    np.testing.assert_allclose(z, iterated(ps, X), atol=1e-7)
    info = st_next["stats"]
    assert info["converged"]
    assert 0 < info["residual"] < 1e-7
    assert info["evaluations"] >= info["steps"] > 0
    deep = model_of(fixed_depth=80)[0]
    np.testing.assert_allclose(
        gradient(model, ps, st).data, gradient(deep, ps, deep_state(deep)).data, rtol=1e-5, atol=1e-7
    )


def deep_state(model):
    return lux.setup(jax.random.key(0), model, "float64")[1]


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, optx.FixedPointIteration(1e-5, 1e-5)], ids=["Anderson", "fixed-point"])
def test_float32_meets_its_default_tolerance(solver):
    model, ps, st = model_of(dtype="float32", rtol=1e-5, atol=1e-5, solver=solver)
    x = jnp.asarray(X, "float32")
    z, st = run(model, x, ps, st)
    assert z.dtype == st["stats"]["residual"].dtype == "float32"
    assert st["stats"]["converged"]
    np.testing.assert_allclose(z, iterated(ps, X), atol=1e-4)
    assert np.isfinite(gradient(model, ps, st, x).data).all()


def test_trees_sequences_and_images():
    class Pair(lux.Layer):
        def forward(self, x, ps, st):
            z, x = x
            return {"a": 0.5 * jnp.tanh(z["b"]) + x, "b": 0.3 * z["a"]}, st

    initial = lambda x: {"a": jnp.zeros_like(x), "b": jnp.zeros_like(x)}  # noqa: E731
    model = lux.DeepEquilibrium(Pair(), initial=initial, rtol=1e-10, atol=1e-10)
    z, _ = run(model, X, *lux.setup(jax.random.key(0), model, "float64"))
    np.testing.assert_allclose(z["b"], 0.3 * z["a"], atol=1e-9)
    np.testing.assert_allclose(z["a"], 0.5 * np.tanh(z["b"]) + X, atol=1e-9)
    for shape in [(2, 6, 3), (2, 4, 4, 3)]:  # sequences N T C, images N H W C
        mixing = lux.Lambda(lambda zx: jnp.tanh(0.2 * (zx[0] + jnp.roll(zx[0], 1, axis=1)) + zx[1]))
        model = lux.DeepEquilibrium(mixing)
        z, st = run(model, jnp.ones(shape), *lux.setup(jax.random.key(0), model))
        assert z.shape == shape
        assert st["stats"]["converged"]


def test_multiscale():
    dense = lambda i, o: lux.Dense(i, o, init_weight=SMALL)  # noqa: E731
    model = lux.MultiScaleDEQ(
        branches=(lux.Parallel(jnp.add, dense(4, 4), dense(3, 4)), dense(2, 2)),
        fusion=((lux.Lambda(lambda u: u), dense(2, 4)), (dense(4, 2), lux.Lambda(lambda u: u))),
        after=(jnp.tanh, jnp.tanh),
        scales=((4,), (2,)),
        rtol=1e-10,
        atol=1e-10,
    )
    ps, st = lux.setup(jax.random.key(0), model, "float64")
    zs, _ = run(model, X, ps, st)
    again, _ = model.cell((zs, jnp.asarray(X)), ps.cell, st["cell"])
    for z, z_again, size in zip(zs, again, (4, 2), strict=True):
        assert z.shape == (4, size)
        np.testing.assert_allclose(z, z_again, atol=1e-9)
    us = [zs[0] @ ps.cell.branches_0.layer_0.weight + ps.cell.branches_0.layer_0.bias, None]
    us[0] += X @ ps.cell.branches_0.layer_1.weight.__array__() + ps.cell.branches_0.layer_1.bias
    us[1] = zs[1] @ ps.cell.branches_1.weight + ps.cell.branches_1.bias
    coarse = np.tanh(us[0] @ ps.cell.fusion_1_0.weight + ps.cell.fusion_1_0.bias + us[1])
    np.testing.assert_allclose(zs[1], coarse, atol=1e-9)
    with pytest.raises(ValueError, match="2 scales need 2 branches"):
        lux.MultiScaleCell((jnp.tanh, jnp.tanh), ((jnp.tanh,),), (jnp.tanh, jnp.tanh))


@pytest.mark.slow
def test_memory_of_the_gradient_does_not_grow_with_the_steps():
    def bytes_of(**options):
        model, ps, st = model_of(**options)
        f = jax.jit(jax.grad(lambda ps: jnp.sum(run(model, X, ps, st)[0])))
        return f.lower(ps).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(max_steps=1000) == bytes_of(max_steps=10)
    assert bytes_of(fixed_depth=1000) > 100 * X.shape[0] * 5 * 8 + bytes_of(fixed_depth=10)  # the measure sees it


# --- guesses, depth, states on the way ----------------------------------------------------------------------------


def test_guesses_lead_to_one_solution():
    expected = None
    for initial in ("zero", "cell", lux.Dense(3, 5), "last"):
        model, ps, st = model_of(initial=initial, batch_shape=(4,))
        z, st_next = run(model, X, ps, st)
        assert jax.tree.structure(st) == jax.tree.structure(st_next)
        expected = iterated(ps, X) if expected is None or isinstance(initial, lux.Layer) else expected
        np.testing.assert_allclose(z, iterated(ps, X), atol=1e-8)
    again = run(model, X, ps, st_next)[1]["stats"]
    assert again["steps"] == 1 < st_next["stats"]["steps"]  # warm
    _, st_broken = run(model, np.nan * X, ps, st_next)
    np.testing.assert_array_equal(st_broken["last"], st_next["last"])
    with pytest.raises(ValueError, match=r"the solution of a batch \(4,\), but the input is f64\[3,3\]"):
        run(model, X[:3], ps, st)


def test_skip_loss_trains_the_guess_only():
    model, ps, st = model_of(initial=lux.Dense(3, 5))

    def skip_loss(ps):
        return run(model, X, ps, st)[1]["stats"]["skip_loss"]

    value, g = jax.value_and_grad(skip_loss)(ps)
    guess = X @ np.asarray(ps.initial.weight) + np.asarray(ps.initial.bias)
    np.testing.assert_allclose(value, np.mean((guess - iterated(ps, X)) ** 2), rtol=1e-7)
    assert np.all(g.cell.data == 0)
    np.testing.assert_allclose(g.initial.bias, np.mean(guess - iterated(ps, X), axis=0) * 2 / 5, rtol=1e-6)


def test_fixed_depth_is_that_many_applications():
    model, ps, st = model_of(fixed_depth=3)
    z, st = run(model, X, ps, st)
    np.testing.assert_allclose(z, iterated(ps, X, 3), rtol=1e-12)
    assert st["stats"]["evaluations"] == 3
    assert not st["stats"]["converged"]
    residual = np.abs(iterated(ps, X, 4) - iterated(ps, X, 3)).max()
    np.testing.assert_allclose(st["stats"]["residual"], residual, rtol=1e-9)


def test_states_on_the_way():
    plain = optx.FixedPointIteration(0.0, 1e-14)
    model, ps, st = model_of(intermediate_states=3, max_steps=9, solver=plain, rtol=1e-5, atol=1e-5)
    zs, st_next = run(model, X, ps, st)
    for z, steps in zip(zs, (3, 6, 9), strict=True):
        np.testing.assert_allclose(z, iterated(ps, X, steps), rtol=1e-12)
    assert st_next["stats"]["steps"] == 9
    depth, ps, st = model_of(intermediate_states=2, fixed_depth=5)
    np.testing.assert_allclose(run(depth, X, ps, st)[0][0], iterated(ps, X, 2), rtol=1e-12)
    np.testing.assert_allclose(lux.equilibrium.fixed_point_correction(4), [0.512, 0.64, 0.8, 1.0])
    np.testing.assert_allclose(lux.equilibrium.fixed_point_correction(4, "linear"), [0.325, 0.55, 0.775, 1.0])


def test_repeated_layer_is_the_baseline():
    plain = lux.Lambda(lambda zx: 0.5 * jnp.tanh(zx[0]) + zx[1])
    repeated = lux.RepeatedLayer(plain, repeats=60, input_injection=True)
    model = lux.DeepEquilibrium(plain, rtol=1e-10, atol=1e-10)
    y, _ = repeated(jnp.asarray(X), *lux.setup(jax.random.key(0), repeated))
    np.testing.assert_allclose(run(model, X, *lux.setup(jax.random.key(0), model, "float64"))[0], y, atol=1e-9)


# --- state --------------------------------------------------------------------------------------------------------


def test_one_dropout_mask_for_the_whole_solve():
    cell = lux.Chain(CELL, lux.Dropout(0.5))
    model, ps, st = model_of(cell, on_state_update="discard")
    z, st_next = run(model, X, ps, st)
    assert st_next["stats"]["converged"]
    again, st_again = cell((z, jnp.asarray(X)), ps.cell, st["cell"])
    np.testing.assert_allclose(z, again, atol=1e-9)
    assert np.mean(z == 0) > 0.2
    key = lambda st: jax.random.key_data(st["layer_1"]["key"]).tolist()  # noqa: E731
    assert key(st_next["cell"]) == key(st_again) != key(st["cell"])
    with pytest.raises(ValueError, match="state in training has no meaning"):
        run(model.replace(batching="vmap"), X, ps, st)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [CELL, lux.NormalizedCell(CELL)], ids=["any", "prepared"])
def test_cells_may_take_single_samples_and_keep_random_keys(cell):
    class Noted(lux.Wrapper):
        """Takes no batch, and renews a key."""

        cell: lux.Layer

        def init_state(self, key):
            return {"cell": self.cell.init_state(key), "key": key}

        def forward(self, x, ps, st):
            assert x[0].ndim == x[1].ndim == 1
            z, inner = self.cell.forward(x, ps, st["cell"])
            return z, {"cell": inner, "key": jax.random.split(st["key"])[0]}

    model, ps, st = model_of(Noted(cell), batching="vmap", on_state_update="discard")
    z, st_next = run(model, X, ps, st)
    assert z.shape == (4, 5)
    assert st_next["cell"]["key"] == jax.random.split(st["cell"]["key"])[0]
    _, st_next = run(model, X[:0], ps, st)
    assert st_next["cell"]["key"] == jax.random.split(st["cell"]["key"])[0]


def test_layers_that_update_their_state_are_named():
    for layer in (lux.BatchNorm(5), lux.Dropout(0.5)):
        model, ps, st = model_of(lux.Chain(CELL, layer))
        with pytest.raises(ValueError, match=r"`layer_1` .* updates its state .*lux.testmode"):
            run(model, X, ps, st)
    _, st_next = run(model, X, ps, lux.testmode(st))
    assert st_next["stats"]["converged"]


def test_test_mode_renews_the_statistics_and_remembers_nothing():
    cell = lux.Chain(CELL, lux.Dropout(0.5))
    model, ps, st = model_of(cell, jacobian_probes=1, radius_steps=4)
    require_test_mode(model, jnp.asarray(X), ps, st, run=run)
    st = lux.testmode(st)
    _, first = run(model, X, ps, st)
    _, other = run(model, 2 * X, ps, first)
    assert first["stats"]["converged"]
    assert first["stats"]["jacobian_loss"] != other["stats"]["jacobian_loss"]


def test_statistics_of_each_sample():
    options = {"batching": "vmap", "batch_shape": 4, "radius_steps": 8, "jacobian_probes": 2, "check_backward": True}
    model, ps, st = model_of(**options)
    _, st_next = run(model, X, ps, st)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (st, st_next))
    assert shapes[0] == shapes[1]
    assert st_next["stats"]["converged"].tolist() == [True] * 4
    assert (st_next["stats"]["backward_residual"] <= 1).all()
    assert (st_next["stats"]["spectral_radius"] < 1).all()
    with pytest.raises(ValueError, match="batch_shape says"):
        run(model, X[:2], ps, st)


def test_backward_check_sees_a_slow_backward_solve():
    linear = lux.FixedPointLinearSolver(optx.FixedPointIteration(1e-10, 1e-10), max_steps=3)
    model, ps, st = model_of(check_backward=True, adjoint=lux.CheckedImplicitAdjoint(linear))
    assert run(model, X, ps, st)[1]["stats"]["backward_residual"] > 1


# --- stability ----------------------------------------------------------------------------------------------------


def test_spectral_radius_of_complex_eigenvalues():
    turn = 0.9 * np.array([[np.cos(1.2), -np.sin(1.2)], [np.sin(1.2), np.cos(1.2)]])
    radius = lux.equilibrium.spectral_radius(lambda z: turn @ z, jnp.ones(2), jax.random.key(0))
    np.testing.assert_allclose(radius, 0.9, rtol=1e-12)  # a Rayleigh quotient: 0.326
    matrix = np.random.default_rng(3).standard_normal((8, 8)) / 4
    got = lux.equilibrium.spectral_radius(lambda z: matrix @ z, jnp.ones(8), jax.random.key(0), steps=400)
    np.testing.assert_allclose(got, np.abs(np.linalg.eigvals(matrix)).max(), rtol=0.01)


def test_jacobian_loss_is_the_mean_square_of_the_jacobian():
    matrix = np.random.default_rng(3).standard_normal((6, 6))
    got = lux.equilibrium.jacobian_loss(lambda z: matrix @ z, jnp.ones(6), jax.random.key(0), probes=4000)
    np.testing.assert_allclose(got, np.sum(matrix**2) / 6, rtol=0.05)
    skew = lux.equilibrium.jacobian_loss(lambda z: (matrix - matrix.T) @ z, jnp.ones(6), jax.random.key(1))
    assert skew > 0  # v^T J v, the estimate of others, is zero here


@pytest.mark.slow
@pytest.mark.parametrize("depth", [None, 4])
def test_jacobian_loss_has_gradients(depth):
    model, ps, st = model_of(jacobian_probes=1, fixed_depth=depth, rtol=1e-12, atol=1e-12)

    @jax.jit
    def penalty(ps):
        return run(model, X, ps, st)[1]["stats"]["jacobian_loss"]

    assert penalty(ps) > 0
    v = lux.ComponentVector(np.random.default_rng(1).standard_normal(ps.size), ps.layout)
    slope = (penalty(ps + 1e-5 * v) - penalty(ps - 1e-5 * v)) / 2e-5
    np.testing.assert_allclose(jax.grad(penalty)(ps).data @ v.data, slope, rtol=1e-6)


def test_monotone_cell_has_a_fixed_point_whatever_its_parameters():
    model = lux.DeepEquilibrium(lux.MonotoneCell(3, 6, margin=0.5), shape=6, max_steps=500, rtol=1e-12, atol=1e-12)
    for scale in (1.0, 20.0):
        ps, st = lux.setup(jax.random.key(1), model, "float64")
        ps = scale * ps
        z, st = run(model, X, ps, st)
        assert st["stats"]["converged"]
        a, b = np.asarray(ps.cell.a), np.asarray(ps.cell.b_skew)
        w = 0.5 * np.eye(6) - a.T @ a + b - b.T
        expected = np.maximum(0, z @ w.T + X @ np.asarray(ps.cell.input_weight) + np.asarray(ps.cell.bias))
        np.testing.assert_allclose(z, expected, atol=1e-4 * scale)
        assert np.linalg.eigvalsh((np.eye(6) - w) / 2 + (np.eye(6) - w).T / 2).min() >= 0.5 - 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["spectral", "weight"])
def test_normalized_cell_bounds_its_weights(norm):
    cell = lux.NormalizedCell(CELL, norm=norm, bound=0.7, iterations=200)
    ps, st = lux.setup(jax.random.key(0), cell, "float64")
    ps = ps.replace(layer_0={"weight": 10.0 * ps.layer_0.weight}, layer_1={"weight": 1e-3 * ps.layer_1.weight})
    (bounded, _) = cell.prepare(jnp.asarray(X), ps.tree(), st)
    large, small = np.asarray(bounded["layer_0"]["weight"]), np.asarray(bounded["layer_1"]["weight"])
    sizes = np.linalg.norm(large, 2) if norm == "spectral" else np.linalg.norm(large, axis=0)
    np.testing.assert_allclose(sizes, 0.7, rtol=1e-6)
    np.testing.assert_array_equal(small, ps.layer_1.weight)  # within the bound: as it is
    model = lux.DeepEquilibrium(cell, shape=5, rtol=1e-12, atol=1e-12)
    _, st = lux.setup(jax.random.key(0), model, "float64")
    loss = jax.jit(lambda ps: jnp.sum(run(model, X, {"cell": ps.tree()}, st)[0] ** 3))
    v = lux.ComponentVector(np.random.default_rng(1).standard_normal(ps.size), ps.layout)
    slope = (loss(ps + 1e-5 * v) - loss(ps - 1e-5 * v)) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(ps).data @ v.data, slope, rtol=1e-5)


# --- faults -------------------------------------------------------------------------------------------------------

GROWING = lux.Lambda(lambda zx: zx[0] * zx[1] + 1)  # a fixed point for |x| < 1 only
RATES = np.array([[0.5], [3.0], [np.nan], [0.9]])


def growing(**options):
    options = {"solver": optx.FixedPointIteration(1e-8, 1e-8), "max_steps": 300, **options}
    model = lux.DeepEquilibrium(GROWING, **options)
    return model, *lux.setup(jax.random.key(0), model, "float64")


def test_samples_that_diverge_leave_the_others_exact():
    model, ps, st = growing(batching="vmap", batch_shape=4)
    z, st_next = run(model, RATES, ps, st)
    np.testing.assert_array_equal(st_next["stats"]["converged"], [True, False, False, True])
    good = np.array([0, 3])
    np.testing.assert_allclose(z[good], 1 / (1 - RATES[good]), rtol=1e-6)
    g = jax.grad(lambda x: jnp.sum(run(model, x, ps, st)[0]))(jnp.asarray(RATES))
    np.testing.assert_allclose(g[good], 1 / (1 - RATES[good]) ** 2, rtol=1e-5)
    assert np.isnan(g[1:3]).all()
    marked, _ = run(model.replace(on_failure="nan"), RATES, ps, st)
    assert np.isnan(marked[1:3]).all()
    np.testing.assert_array_equal(marked[good], z[good])


def test_no_fixed_point_is_a_flag_or_a_sentence():
    model = lux.DeepEquilibrium(lux.Lambda(lambda zx: zx[0] + 1 + zx[1] ** 2), max_steps=20)
    ps, st = lux.setup(jax.random.key(0), model, "float64")
    _, st_next = run(model, X, ps, st)
    assert not st_next["stats"]["converged"]
    assert st_next["stats"]["residual"] >= 1
    with pytest.raises(Exception, match="the equilibrium solve has not converged: allow more max_steps"):
        jax.block_until_ready(run(model.replace(on_failure="raise"), X, ps, st))


def test_divergence_and_nan_end_at_once():
    exploding = lux.DeepEquilibrium(lux.Lambda(lambda zx: jnp.exp(zx[0]) + zx[1] ** 2), max_steps=10**6)
    plain = exploding.replace(solver=optx.FixedPointIteration(1e-5, 1e-5))
    for model, x in [(plain, X), (plain, np.nan * X), (exploding, np.nan * X)]:
        _, st = run(model, x, *lux.setup(jax.random.key(0), model, "float64"))
        assert st["stats"]["steps"] < 10
        assert not st["stats"]["converged"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda zx: zx[0][..., :2], r"must return a `z` like the one that it gets, f64\[4,3\]; it returned"),
        (lambda zx: (zx[0], zx[0]), "must return a `z`"),
        (lambda zx: (zx[0] > 0).astype(int), "real or complex numbers"),
    ],
    ids=["shape", "structure", "dtype"],
)
def test_cells_that_return_something_else(function, says):
    model = lux.DeepEquilibrium(lux.Lambda(function))
    with pytest.raises(ValueError, match=says):
        run(model, X, *lux.setup(jax.random.key(0), model))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initial": "previous"}, r"initial: expected 'zero', 'cell', 'last' or a layer, got 'previous'"),
        ({"initial": "last"}, "needs batch_shape and shape"),
        ({"fixed_depth": 0}, "fixed_depth: expected a whole number of at least 1"),
        ({"intermediate_states": 200}, "intermediate_states is at most the number of steps, 100"),
        ({"intermediate_states": 0}, "intermediate_states: expected a whole number of at least 1"),
        ({"on_failure": "ignore"}, "on_failure: expected 'flag' or 'nan' or 'raise'"),
        ({"batching": "none"}, "batching: expected 'joint' or 'vmap'"),
        ({"adjoint": "implicit"}, "adjoint: expected \"auto\" or an adjoint of optimistix, such as .* got 'implicit'"),
        ({"solver": optx.Newton(1e-3, 1e-3), "rtol": 1e-3}, "not both"),
        ({"solver": diffrax.Tsit5(), "adjoint": optx.RecursiveCheckpointAdjoint()}, "a diffrax solver"),
        ({"check_backward": True, "adjoint": lux.PhantomAdjoint()}, "check_backward"),
    ],
)
def test_options_that_make_no_sense(options, says):
    with pytest.raises(ValueError, match=says):
        lux.DeepEquilibrium(CELL, **options)


def test_solvers_are_objects_of_optimistix_or_diffrax():
    for solver in ("anderson", lux.Anderson):
        with pytest.raises(TypeError, match=r"such as lux.Anderson\(1e-5, 1e-5\), got"):
            lux.DeepEquilibrium(CELL, solver=solver)
