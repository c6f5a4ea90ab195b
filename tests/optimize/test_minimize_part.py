"""minimize: part of the parameters; what is not finite is named; Hessians through solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
import scipy.optimize

import lux_sciml as lux


def quadratic(ps, target):
    return jnp.sum((ps.data - target) ** 2)


START = {"physics": {"growth": 0.0, "decay": 5.0}, "net": {"weight": [[1.0, 2.0]]}}
METHODS = ["L-BFGS-B", optax.adam(0.1), optx.BFGS(1e-8, 1e-8)]


@pytest.mark.parametrize("method", METHODS, ids=["SciPy", "optax", "optimistix"])
def test_only_the_trainable_components_move(method):
    ps = lux.ComponentVector(START)
    seen = []
    result = lux.minimize(
        quadratic,
        ps,
        method=method,
        args=jnp.full(4, 3.0),
        trainable="physics.*",
        callback=lambda step, ps, value: seen.append(ps),
    )
    assert result.params.layout is ps.layout
    np.testing.assert_allclose(result.params.physics.data, [3.0, 3.0], atol=1e-3)
    np.testing.assert_array_equal(result.params.net.data, ps.net.data)
    np.testing.assert_allclose(result.value, 4.0 + 1.0, atol=1e-5)
    assert seen and all(ps.layout is result.params.layout for ps in seen)


def test_bounds_are_those_of_all_components():
    ps = lux.ComponentVector(START)
    bounds = lux.constraints.bounds(ps, {"physics.decay": (4.0, None)})
    result = lux.minimize(quadratic, ps, method="L-BFGS-B", args=jnp.full(4, 3.0), trainable=["physics"], bounds=bounds)
    np.testing.assert_allclose(result.params.physics.data, [3.0, 4.0], atol=1e-5)


def test_tied_components_move_together():
    tree = {"a": jnp.ones(2), "b": jnp.zeros(1), "c": jnp.ones(2)}
    ps = lux.ComponentVector.from_tree(tree, ties=[("a", "c")])

    def loss(ps):
        return jnp.sum((ps["c"] - 2.0) ** 2) + jnp.sum((ps["b"] - 1.0) ** 2)

    result = lux.minimize(loss, ps, method="BFGS", trainable="c")
    np.testing.assert_allclose(result.params["a"], 2.0, atol=1e-5)
    np.testing.assert_array_equal(result.params["b"], 0.0)


def test_the_same_loss_compiles_once_for_a_part():
    traces = []

    def loss(ps, target):
        traces.append(1)
        return quadratic(ps, target)

    ps = lux.ComponentVector(START)
    lux.minimize(loss, ps, method="BFGS", args=jnp.ones(4), trainable="net")
    count = len(traces)
    lux.minimize(loss, ps + 1.0, method="BFGS", args=jnp.zeros(4), trainable="net")
    assert len(traces) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainable", "expected"),
    [("*", [2.0, 3.0, 0.0]), ("a.b", [2.0, 5.0, 1.0]), ("a", [1.0, 3.0, 1.0]), ([("a", "b"), "c"], [1.0, 3.0, 0.0])],
)
def test_dots_in_names_are_no_paths(trainable, expected):
    ps = lux.ComponentVector({"a.b": 1.0, "a": {"b": 5.0}, "c": 1.0})

    def loss(ps):
        return (ps["a.b"] - 2) ** 2 + (ps["a", "b"] - 3) ** 2 + ps["c"] ** 2

    for method in METHODS:
        seen = []
        callback = lambda step, ps, value, seen=seen: seen.append(ps)  # noqa: E731
        result = lux.minimize(loss, ps, method=method, trainable=trainable, callback=callback, max_steps=300)
        np.testing.assert_allclose(result.params.data, expected, atol=1e-3)
        assert result.params.layout is ps.layout is seen[-1].layout


def test_lists_and_integer_keys_in_a_part():
    ps = lux.ComponentVector({"layers": [{"w": 0.0}, {"w": 0.0}, {"w": 0.0}], "blocks": {0: [0.0, 0.0], "1": 0.0}})
    result = lux.minimize(quadratic, ps, method="BFGS", args=jnp.full(6, 3.0), trainable=["layers.1", "blocks.0"])
    np.testing.assert_allclose(result.params.data, [0.0, 3.0, 0.0, 3.0, 3.0, 0.0], atol=1e-4)


LOWER, UPPER = np.zeros(3), np.array([2.0, 4.0, 9.0])
FORMS = {
    "arrays": lambda ps: (LOWER, UPPER),
    "scalar and array": lambda ps: (0, UPPER),
    "Bounds": lambda ps: scipy.optimize.Bounds(LOWER, UPPER),
    "Bounds of a scalar": lambda ps: scipy.optimize.Bounds(0.0, UPPER),
    "ComponentVectors": lambda ps: (ps.zeros_like(), lux.ComponentVector(jnp.array(UPPER), ps.layout)),
    "trees": lambda ps: ({"a": 0.0, "b": None}, {"b": [4.0, 9.0], "a": 2.0}),
    "trees of arrays": lambda ps: ({"a": np.zeros(()), "b": jnp.zeros(2)}, {"a": 2.0, "b": np.array([4.0, 9.0])}),
    "by name": lambda ps: lux.constraints.bounds(ps, {"a": (0, 2), "b": (0, [4.0, 9.0])}),
    "one side": lambda ps: (None, UPPER),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_bounds_in_all_forms_are_cut_to_the_part(form):
    ps = lux.ComponentVector(a=1.0, b=[2.0, 3.0])

    def loss(ps):
        return (ps.a - 5) ** 2 + jnp.sum((ps.b - 5) ** 2)

    expected = {"a": [2.0, 2.0, 3.0], "b": [1.0, 4.0, 5.0], "*": [2.0, 4.0, 5.0], None: [2.0, 4.0, 5.0]}
    for trainable, best in expected.items():
        result = lux.minimize(loss, ps, method="L-BFGS-B", trainable=trainable, bounds=FORMS[form](ps))
        np.testing.assert_allclose(result.params.data, best, atol=1e-4)
    if form == "arrays":
        result = lux.minimize(loss, ps, method=optax.sgd(0.2), trainable="b", bounds=FORMS[form](ps), max_steps=50)
        np.testing.assert_allclose(result.params.data, expected["b"], atol=1e-4)


def test_bounds_of_an_array_have_its_shape_or_that_of_the_flat_vector():
    for shape in ((2, 2), (4,)):
        bounds = (np.zeros(shape), np.arange(4.0).reshape(shape))
        result = lux.minimize(lambda x: jnp.sum((x - 2) ** 2), jnp.ones((2, 2)), method="L-BFGS-B", bounds=bounds)
        np.testing.assert_allclose(result.params, [[0, 1], [2, 2]], atol=1e-4)


def test_bounds_of_the_size_of_the_part_are_refused():
    ps = lux.ComponentVector(a=1.0, b=[2.0, 3.0])
    bounds = (np.zeros(2), np.full(2, 4.0))
    with pytest.raises(ValueError, match=r"has shape \(3,\), got shape \(2,\)"):
        lux.minimize(lambda ps: jnp.sum(ps.data**2), ps, method="L-BFGS-B", trainable="b", bounds=bounds)


def test_bad_parts():
    with pytest.raises(KeyError, match="no component matches 'phisics"):
        lux.minimize(quadratic, lux.ComponentVector(START), method="BFGS", args=jnp.ones(4), trainable="phisics.*")
    with pytest.raises(TypeError, match="needs a ComponentVector"):
        lux.minimize(lambda x: jnp.sum(x), jnp.ones(3), method="BFGS", trainable="a")


@pytest.mark.parametrize("method", METHODS, ids=["SciPy", "optax", "optimistix"])
def test_what_is_not_finite_at_the_start_is_named(method):
    data = {"us": jnp.array([1.0, jnp.nan, 3.0, jnp.nan])}
    ps = lux.ComponentVector(START)
    result = lux.minimize(lambda ps, d: quadratic(ps, d["us"]), ps, method=method, args=data)
    assert not result.success
    assert result.params.equals(ps)
    assert "`args['us']` holds 2 of 4 elements that are NaN or inf" in result.message
    around = lux.minimize(lambda ps: quadratic(ps, data["us"]), ps, method=method)
    assert "`data['us']` holds 2 of 4 elements that are NaN or inf" in around.message


@pytest.mark.parametrize("method", METHODS, ids=["SciPy", "optax", "optimistix"])
def test_reports_go_through_trees_of_all_kinds(method, key):
    """Random keys, modes, texts and functions are no numbers."""
    args = {
        "key": key,
        "keys": jax.random.split(key, 3),
        "mode": lux.Mode.TRAIN,
        "name": "data",
        "shift": abs,
        "none": None,
        "half": jnp.array([1.0, jnp.inf], "bfloat16"),
        "count": np.arange(3),
        "number": float("nan"),
        "inner": [lux.ComponentVector(a=[1.0, np.nan], b=2.0)],
        "complex": jnp.array([1j, jnp.nan]),
    }
    result = lux.minimize(lambda p, args: p.w * jnp.inf, lux.ComponentVector(w=1.0), method=method, args=args)
    assert not result.success
    for part in ("args['half']` holds 1 of 2", "args['number']` holds 1 of 1", "args['inner'][0]['a']` holds 1 of 2"):
        assert part in result.message
    assert "args['complex']` holds 1 of 2" in result.message and "key" not in result.message


@pytest.mark.exhaustive
def test_newton_through_a_solve():
    node = lux.NeuralODE(
        lux.Dense(1, 1, use_bias=False), ts=[0.0, 1.0], output="final", max_steps=16, rtol=1e-9, atol=1e-9
    )
    ps = lux.ComponentVector(weight=jnp.array([[0.5]]))
    result = lux.minimize(lambda ps: jnp.sum((node(jnp.ones(1), ps, {})[0] - 0.5) ** 2), ps, method="trust-exact")
    assert result.success
    np.testing.assert_allclose(result.params.weight, np.log(0.5), atol=1e-5)
    assert jax.tree.structure(result.params) == jax.tree.structure(ps)


@pytest.mark.exhaustive
def test_line_searches_work_on_the_tree():
    ps = lux.ComponentVector(START)
    plain = lux.minimize(quadratic, ps, method=optax.lbfgs(), args=jnp.full(4, 3.0), max_steps=20)
    per_array = lux.minimize(
        quadratic, ps, method=lux.optimize.per_array(optax.lbfgs(), ps), args=jnp.full(4, 3.0), max_steps=20
    )
    np.testing.assert_allclose(per_array.params.data, plain.params.data, rtol=1e-6)
    np.testing.assert_allclose(per_array.params.data, 3.0, atol=1e-6)
