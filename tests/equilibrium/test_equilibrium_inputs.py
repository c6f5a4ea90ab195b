"""What equilibrium layers take: integers, trees, ComponentVectors, every precision, batches of none and of one."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import lux_sciml as lux

HALVED = lux.Lambda(lambda zx: 0.5 * zx[0] + zx[1])


def dense_cell(n, m):
    small = lux.initializers.Normal(0.3)
    return lux.Parallel(
        lambda a, b: jnp.tanh(a + b), lux.Dense(n, n, use_bias=False, init_weight=small), lux.Dense(m, n)
    )


CELLS = {
    "plain": lambda: dense_cell(4, 3),
    "normalized": lambda: lux.NormalizedCell(dense_cell(4, 3)),
    "monotone": lambda: lux.MonotoneCell(3, 4),
}


def deep(cell="plain", **options):
    model = lux.DeepEquilibrium(CELLS[cell](), shape=4, **options)
    return model, *lux.setup(jax.random.key(0), model, "float32")


# --- integers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integer_inputs_are_those_numbers_in_floating_point(cell, dtype):
    model, ps, st = deep(cell)
    x = (np.arange(6).reshape(2, 3) % 3).astype(dtype)
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        z, after = model(x, ps, st)
        expected, _ = model(x.astype("float32"), ps, st)
    assert z.dtype == "float32"
    assert after["stats"]["converged"]
    np.testing.assert_array_equal(z, expected)


def test_integers_may_be_indices_of_the_cell():
    cell = lux.Parallel(lambda a, b: jnp.tanh(0.3 * a + b), lux.Dense(4, 4), lux.Embedding(10, 4))
    model = lux.DeepEquilibrium(cell, initial=lambda x: jnp.zeros((*x.shape, 4)))
    z, st = model(jnp.array([3, 9]), *lux.setup(jax.random.key(0), model))
    assert z.shape == (2, 4)
    assert st["stats"]["converged"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float32"])
def test_guesses_of_integers(dtype):
    layer = lux.SteadyState(lux.Lambda(lambda u: 0.5 - u**3 - u))
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        u, _ = layer(np.ones(2, dtype), {}, {})
        assert u.dtype == "float32"
        np.testing.assert_allclose(0.5 - u**3 - u, 0, atol=1e-5)
        guess = lux.DeepEquilibrium(HALVED, initial=lambda x: jnp.zeros(x.shape, dtype))
        z, _ = guess(np.ones((1, 2), "float32"), *lux.setup(jax.random.key(0), guess))
        np.testing.assert_allclose(z, 2.0, rtol=1e-4)


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("solver", [None, lux.Broyden(1e-5, 1e-5), optx.Newton(1e-5, 1e-5)], ids=["A", "B", "N"])
def test_outputs_keep_half_precision(dtype, solver):
    model, ps, st = deep(solver=solver)
    x = jnp.asarray(np.linspace(-1, 1, 6).reshape(2, 3), dtype)
    half = lux.setup(jax.random.key(0), model, dtype)[0]
    with jax.numpy_dtype_promotion("standard"):
        z, after = model(x, half, st)
        expected, _ = model(x.astype("float32"), ps, st)
        mixed, _ = model(x, ps, st)
    assert z.dtype == dtype
    assert mixed.dtype == "float32"
    assert after["stats"]["converged"]
    np.testing.assert_allclose(np.asarray(z, float), expected, atol=4 * float(jnp.finfo(dtype).eps))


def test_roots_keep_half_precision():
    layer = lux.SteadyState(lux.Lambda(lambda u: 2 - u**3 - u))
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        u, _ = layer(jnp.full(2, 0.9, dtype), {}, {})
        assert u.dtype == dtype
        np.testing.assert_allclose(np.asarray(u, float), 1.0, atol=float(jnp.finfo(dtype).eps) + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fixed_depth": 8}, {"batching": "vmap"}, {"intermediate_states": 2}])
def test_cells_that_round_to_half_precision_inside(options):
    cell = lux.Lambda(lambda zx: 0.5 * zx[0].astype("bfloat16") + zx[1].astype("bfloat16"))
    model = lux.DeepEquilibrium(cell, **options)
    z, _ = model(jnp.ones((1, 2), "bfloat16"), *lux.setup(jax.random.key(0), model))
    z = z[-1] if isinstance(z, tuple) else z
    assert z.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(z, float), 2.0, rtol=0.02)


@pytest.mark.slow
def test_norms_of_cells_in_half_precision():
    for dtype in ("bfloat16", "float16"):
        for name in ("normalized", "monotone"):
            cell = CELLS[name]()
            ps, st = lux.setup(jax.random.key(0), cell, "float32")
            half = lux.setup(jax.random.key(0), cell, dtype)[0]
            pair = jnp.ones((2, 4)), jnp.ones((2, 3))
            z, _ = cell(jax.tree.map(lambda x: x.astype(dtype), pair), half, st)  # noqa: B023
            expected, _ = cell(jax.tree.map(lambda x: x.astype("float32"), pair), ps, st)
            assert z.dtype == dtype
            np.testing.assert_allclose(np.asarray(z, float), expected, atol=8 * float(jnp.finfo(dtype).eps))
    tiny = lux.NormalizedCell(lux.Parallel(lambda a, b: a + b, lux.Dense(2, 2), lux.Dense(2, 2)), norm="weight")
    ps, st = lux.setup(jax.random.key(0), tiny, "float16")
    bounded, _ = tiny.prepare(jnp.ones(2), jax.tree.map(lambda p: 1e-5 * p, ps.tree()), st)
    np.testing.assert_array_equal(bounded["layer_0"]["weight"], 1e-5 * ps.layer_0.weight)


def test_losses_and_radii_in_half_precision():
    z = jnp.ones(70_000, "float16")  # more than the largest number
    loss = lux.equilibrium.jacobian_loss(lambda z: 0.5 * z, z, jax.random.key(0))
    radius = lux.equilibrium.spectral_radius(lambda z: 0.5 * z, z, jax.random.key(0))
    np.testing.assert_allclose([loss, radius], [0.25, 0.5], rtol=0.02)


def test_losses_and_radii_of_complex_maps():
    m = np.random.default_rng(0).standard_normal((2, 6, 6))
    m = jnp.asarray(m[0] + 1j * m[1])
    z = jnp.zeros(6, complex)
    loss = lux.equilibrium.jacobian_loss(lambda z: m @ z, z, jax.random.key(0), probes=4000)
    np.testing.assert_allclose(loss, np.sum(np.abs(m) ** 2) / 6, rtol=0.05)
    radius = lux.equilibrium.spectral_radius(lambda z: m @ z, z, jax.random.key(0), steps=400)
    np.testing.assert_allclose(radius, np.abs(np.linalg.eigvals(m)).max(), rtol=0.02)
    assert lux.equilibrium.spectral_radius(jnp.zeros_like, z, jax.random.key(0)) == 0


# --- trees and names ----------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_component_vectors_are_inputs_and_solutions():
    def cell(zx):
        z, x = zx
        return lux.ComponentVector(a=0.5 * z.b + x.force, b=jnp.tanh(z.a))

    names = lux.ComponentVector(a=jnp.zeros(2), b=jnp.zeros(2))
    x = lux.ComponentVector(force=jnp.array([1.0, -2.0]))
    returns = {
        "the same": lux.Lambda(cell),
        "a dict": lux.Lambda(lambda zx: cell(zx).tree()),
        "an array": lux.Lambda(lambda zx: cell(zx).data),
    }
    for solver in (None, lux.Broyden(1e-5, 1e-5), optx.Newton(1e-5, 1e-5)):
        for what in returns.values() if solver is None else [returns["the same"]]:
            model = lux.DeepEquilibrium(what, initial=lambda x: names, solver=solver)
            ps, st = lux.setup(jax.random.key(0), model)
            z, after = model(x, ps, st)
            assert isinstance(z, lux.ComponentVector)
            assert after["stats"]["converged"]
            np.testing.assert_allclose(z.a, 0.5 * np.tanh(z.a) + x.force, atol=1e-4)
            g = jax.grad(lambda x: jnp.sum(model(x, ps, st)[0].a))(x)  # noqa: B023
            np.testing.assert_allclose(g.force, 1 / (1 - 0.5 / np.cosh(z.a) ** 2), rtol=1e-3)


def test_component_vectors_of_models_that_return_arrays():
    layer = lux.SteadyState(lux.Lambda(lambda u: jnp.stack([1 - u.x, 4 - u.y**2])))
    u, _ = layer(lux.ComponentVector(x=0.0, y=1.0), *lux.setup(jax.random.key(0), layer))
    np.testing.assert_allclose(u.y, 2.0, rtol=1e-5)


def test_trees_as_inputs():
    cell = lux.Lambda(lambda zx: {"a": 0.3 * zx[0]["b"] + zx[1]["a"], "b": 0.5 * zx[0]["a"] + zx[1]["b"]})
    model = lux.DeepEquilibrium(cell)
    x = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1, 3))[:, 0]}
    for batching in ("joint", "vmap"):
        z, _ = model.replace(batching=batching)(x, *lux.setup(jax.random.key(0), model))
        np.testing.assert_allclose(z["a"], 1.3 / 0.85, rtol=1e-4)


# --- how many -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batching": "vmap"},
        {"batching": "vmap", "batch_shape": 0},
        {"initial": "last", "batch_shape": 0},
        {"solver": optx.Newton(1e-5, 1e-5)},
        {"solver": optx.FixedPointIteration(1e-5, 1e-5), "on_failure": "nan"},
        {"fixed_depth": 3},
        {"intermediate_states": 2, "jacobian_probes": 1, "radius_steps": 2, "check_backward": True},
    ],
    ids=lambda o: ",".join(o),
)
def test_a_batch_of_no_samples_has_gradients_of_zero(options):
    model, ps, st = deep(**options)
    x = jnp.zeros((0, 3), "float32")

    @jax.jit
    def loss(ps, x):
        z, after = model(x, ps, st)
        z = z[-1] if isinstance(z, tuple) else z
        return jnp.sum(z**2), (z, after)

    (g, gx), (z, after) = jax.grad(loss, (0, 1), has_aux=True)(ps, x)
    assert z.shape == (0, 4)
    assert gx.shape == x.shape
    np.testing.assert_array_equal(g.data, 0)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (st, after))
    assert shapes[0] == shapes[1]
    assert np.all(after["stats"]["converged"])


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["normalized", "monotone"])
def test_a_batch_of_no_samples_through_every_cell(cell):
    model, ps, st = deep(cell)
    g = jax.grad(lambda ps: jnp.sum(model(jnp.zeros((0, 3), "float32"), ps, st)[0]))(ps)
    np.testing.assert_array_equal(g.data, 0)


@pytest.mark.slow
def test_steady_states_of_no_samples():
    layer = lux.SteadyState(lux.Dense(3, 3))
    ps, st = lux.setup(jax.random.key(0), layer)
    for batching in ("joint", "vmap"):
        here = layer.replace(batching=batching)
        value, g = jax.value_and_grad(lambda ps: jnp.sum(here(jnp.zeros((0, 3)), ps, st)[0]))(ps)  # noqa: B023
        assert value == 0
        np.testing.assert_array_equal(g.data, 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 1)])
@pytest.mark.parametrize("solver", [None, lux.Broyden(1e-8, 1e-8), optx.Newton(1e-8, 1e-8)], ids=["A", "B", "N"])
def test_one_unknown_and_one_sample(shape, solver):
    model = lux.DeepEquilibrium(lux.Lambda(lambda zx: 0.5 * jnp.cos(zx[0]) + zx[1]), solver=solver)
    ps, st = lux.setup(jax.random.key(0), model)
    x = jnp.full(shape, 0.3)
    z, pull = jax.vjp(lambda x: model(x, ps, st)[0], x)
    assert z.shape == shape
    np.testing.assert_allclose(0.5 * np.cos(z) + 0.3, z, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.ones(shape))[0], 1 / (1 + 0.5 * np.sin(z)), rtol=1e-4)


# --- wrong calls --------------------------------------------------------------------------------------------------


def test_samples_that_are_not_equally_many_are_refused():
    model = lux.DeepEquilibrium(lux.Lambda(lambda zx: 0.5 * zx[0]), initial=lambda x: x["a"], batching="vmap")
    ps, st = lux.setup(jax.random.key(0), model)
    with pytest.raises(
        ValueError, match=r"each sample along the first axis .* got the shapes \(2, 3\), \(2, 3\), \(3,\)"
    ):
        model({"a": jnp.ones((2, 3)), "b": jnp.ones(3)}, ps, st)
    with pytest.raises(ValueError, match=r"got the shapes \(\), \(\)"):
        model = lux.DeepEquilibrium(HALVED, batching="vmap")
        model(jnp.ones(()), *lux.setup(jax.random.key(0), model))


def test_steady_states_refuse_solvers_of_fixed_points():
    with pytest.raises(ValueError, match="Anderson finds fixed points; a SteadyState needs a solver of roots"):
        lux.SteadyState(lux.Dense(3, 3), solver=lux.Anderson(1e-5, 1e-5))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shape": "8"}, "DeepEquilibrium.shape: expected None, a number, a tuple"),
        ({"max_steps": 0}, "max_steps: expected a whole number of at least 1"),
        ({"rtol": "1e-3"}, "rtol: expected a number"),
        ({"rtol": -1.0}, "tolerances are not negative"),
        ({"radius_steps": 1}, "radius_steps is 0 or at least 2"),
        ({"jacobian_probes": -1}, "jacobian_probes: expected a whole number of at least 0, got -1"),
        ({"shape": -5}, "shape: expected a whole number of at least 0, got -5"),
        ({"shape": ((3,), (-2,))}, "shape: expected a whole number of at least 0, got -2"),
        ({"batch_shape": (4, -1)}, r"batch_shape\[1\]: expected a whole number of at least 0, got -1"),
        ({"initial": 3}, "DeepEquilibrium.initial: expected a layer or a function"),
        ({"batch_shape": "4"}, "batch_shape: expected a whole number"),
        ({"check_backward": "yes"}, "check_backward: expected True or False"),
    ],
)
def test_options_are_checked_by_name(options, says):
    with pytest.raises((TypeError, ValueError), match=says):
        lux.DeepEquilibrium(HALVED, **options)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda n: lux.Anderson(1e-3, 1e-3, history_length=n), "history_length"),
        (lambda n: lux.Broyden(1e-3, 1e-3, trace=n), "trace"),
        (lambda n: lux.PhantomAdjoint(steps=n), "steps"),
        (lambda n: lux.CheckedImplicitAdjoint(max_steps=n), "max_steps"),
        (lambda n: lux.FixedPointLinearSolver(lux.Anderson(1e-3, 1e-3), max_steps=n), "max_steps"),
        (lambda n: lux.GaussAdjoint(nodes=n), "nodes"),
    ],
)
def test_integers_of_numpy_are_those_of_python_in_option_objects_too(make, option):
    given = make(np.int64(3))
    assert type(getattr(given, option)) is int and lux.Constant(given) == lux.Constant(make(3))
    with pytest.raises(TypeError, match=r"SupportsIndex|expected a whole number"):  # annotations are checked here
        make("3")


def test_options_are_normalized_once():
    model = lux.DeepEquilibrium(HALVED, shape=[np.int64(3), 2], batch_shape=np.int32(4), rtol=1, max_steps=np.int64(7))
    assert (model.shape, model.batch_shape, model.rtol, model.max_steps) == ((3, 2), (4,), 1.0, 7)
    assert model == model.replace() == lux.DeepEquilibrium(HALVED, (3, 2), batch_shape=4, rtol=1.0, max_steps=7)
    assert lux.DeepEquilibrium(HALVED, solver=optx.FixedPointIteration(jnp.array(1e-3), 1e-3)) == lux.DeepEquilibrium(
        HALVED, solver=optx.FixedPointIteration(jnp.array(1e-3), 1e-3)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [lux.Dense(2, 2), lambda z, x: jnp.tanh(z + x), lux.Parallel(jnp.add, lux.Dense(8, 8))]
)
def test_errors_of_a_cell_tell_what_it_is_called_with(cell):
    layer = lux.DeepEquilibrium(cell)
    with pytest.raises((TypeError, ValueError)) as caught:
        layer(jnp.ones((4, 2)), *lux.setup(jax.random.key(0), layer))
    assert any(note.startswith("`cell` is called with the pair (z, x), here (") for note in caught.value.__notes__)
    if not isinstance(cell, lux.Layer):
        assert "with one argument, its input, a tuple where there are several; got a function of (z, x)" in str(
            caught.value
        )
