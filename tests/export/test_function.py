"""What is exported: names, shapes with symbolic sizes, and what is refused before anything is written."""

import json

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import set_up

import lux_sciml as lux
from lux_sciml.export import plain_function

X = np.ones((3, 4), np.float32)
NET = lux.Chain(lux.Dense(4, 8, jnp.tanh), lux.Dropout(0.5), lux.Dense(8, 2))


@pytest.fixture
def net():
    ps, st, _ = set_up(NET)
    return ps, st


def shapes(arrays):
    return {name: tuple(n if isinstance(n, int) else str(n) for n in spec.shape) for name, spec in arrays.items()}


def test_a_layer_with_its_parameters_in_it_or_as_its_first_input(net):
    ps, st = net
    expected = NET(X, ps, st)[0]
    baked = plain_function(NET, ps, st, X)
    assert shapes(baked.inputs) == {"x": ("batch", 4)} and shapes(baked.outputs) == {"y": ("batch", 2)}
    np.testing.assert_allclose(baked.call(X)[0], expected, rtol=1e-6)
    stateful = lux.testmode(lux.StatefulLayer(NET, ps, lux.trainmode(st)))
    assert shapes(plain_function(stateful, x=X).outputs) == shapes(baked.outputs)
    assert baked.symbols == ("batch",) and shapes(baked.fixed(batch=5).outputs) == {"y": (5, 2)}
    open_ = plain_function(NET, ps, st, X, params="input", portable=True)
    assert shapes(open_.inputs) == {"params": (58,), "x": ("batch", 4)}
    np.testing.assert_allclose(open_.call(ps.data, X)[0], expected, rtol=1e-6)
    tree = plain_function(NET, ps.tree(), st, X, params="input")
    assert tree.inputs["params"].dtype == tree.outputs["y"].dtype == np.float32 and tree.layout is ps.layout
    assert "platform_index" not in str(open_.jaxpr)
    described = json.loads(json.dumps(open_.metadata("StableHLO", note=1)))
    assert described["inputs"][1] == {"name": "x", "shape": ["batch", 4], "dtype": "float32"}
    assert described["parameters"]["count"] == 58 and described["note"] == 1
    assert json.dumps(described["parameters"]["layout"]) == lux.components.to_json(ps.layout)


def test_functions_trees_and_names(net):
    ps, st = net

    def loss(ps, batch):
        return jnp.mean((NET(batch["x"], ps, st)[0] - batch["y"]) ** 2)

    batch = {"x": X, "y": X[:, :2]}
    gradient = plain_function(
        jax.value_and_grad(loss), ps, x=batch, params="input", names={"y_0": "loss", "y_1": "gradient"}
    )
    assert shapes(gradient.inputs) == {"params": (58,), "x": ("batch", 4), "y": ("batch", 2)}
    assert shapes(gradient.outputs) == {"loss": (), "gradient": (58,)}

    def of_x(x):
        return {"b": x[0], "a": [x[1], None, x[0]]}

    trees = plain_function(of_x, x=(X, X[:2]), batch_axis=(0, None))
    assert shapes(trees.inputs) == {"x_0": ("batch", 4), "x_1": (2, 4)}
    assert shapes(trees.outputs) == {"b": ("batch", 4), "a_0": (2, 4), "a_2": ("batch", 4)}
    rows, columns = jax.export.symbolic_shape("rows, columns")
    spec = jax.ShapeDtypeStruct((rows, 2, columns), jnp.float32)
    assert shapes(plain_function(jnp.sin, x=spec).outputs) == {"y": ("rows", 2, "columns")}
    vector = lux.ComponentVector(u=1.0, v=[2.0, 3.0])
    named = plain_function(lambda state: state.replace(u=0.0), x=vector)
    assert shapes(named.inputs) == {"x": (3,)} and shapes(named.outputs) == {"y": (3,)}
    with pytest.raises(ValueError, match="no input or output 'z' to rename; there are x, y"):
        plain_function(jnp.sin, x=X, names={"z": "u"})
    with pytest.raises(ValueError, match="the same name: u, u"):
        plain_function(jnp.sin, x=X, names={"x": "u", "y": "u"})
    with pytest.raises(ValueError, match="'a b' is no name"):
        plain_function(jnp.sin, x=X, names={"x": "a b"})
    with pytest.raises(ValueError, match=r"different sizes: `0` 3, `1` 2\. Say which axis"):
        plain_function(of_x, x=(X, X[:2]))


def test_a_solution_goes_out_as_its_times_and_values(key):
    node = lux.NeuralODE(lux.Dense(2, 2), ts=[0.0, 0.5], dt0=0.25, stepsize_controller=diffrax.ConstantStepSize())
    ps, st = lux.setup(key, node)
    function = plain_function(node, ps, st, np.ones((3, 2)))
    assert shapes(function.outputs) == {"ts": (2,), "ys": (2, "batch", 2)}


def test_what_is_refused(key, net):
    ps, st = net

    def check(error, sentence, *args, **options):
        with pytest.raises(error, match=sentence):
            plain_function(*args, **options)

    check(
        ValueError,
        r"in training, at `layer_1.mode`: export it with `lux.testmode\(st\)`",
        NET,
        ps,
        lux.trainmode(st),
        X,
    )
    check(TypeError, "exported with its parameters and its state", NET, ps, None, X)
    check(TypeError, "example of the input of Chain", NET, ps, st)
    check(ValueError, r"any size, because it computes with that size \(Dense\(4, 8, tanh\) expects", NET, ps, st, X[0])
    check(TypeError, "the input at `1` is a random key", lambda x: x[0], x=(X, key))
    check(TypeError, "the output is .*key", jax.random.key, x=np.array(3))
    check(TypeError, "the input is .text., and exported", lambda x: x, x="text")
    check(ValueError, "the input has 2 axes, and no axis 2", jnp.sin, x=X, batch_axis=2)
    with jax.enable_x64(False):
        check(TypeError, "is float64, and JAX has no 64-bit", jnp.sin, x=jax.ShapeDtypeStruct((2, 3), "float64"))

    def of_three(x):
        if x.shape[0] != 3:
            raise AssertionError
        return x

    check(ValueError, r"any size, because it computes with that size \(AssertionError\)", of_three, x=X)

    def in_fours(x):  # whose sizes are equal, as JAX does not see
        return jnp.pad(x, ((0, -x.shape[0] % 4), (0, 0))).reshape(-(-x.shape[0] // 4), 4, 4)

    assert plain_function(in_fours, x=X).fixed(batch=5).outputs["y"].shape == (2, 4, 4)
    for reshape in (lambda x: x.reshape(6, 2), lambda x: jax.lax.reshape(x, (12,)), lambda x: x.ravel()[:8].reshape(8)):
        check(ValueError, r"any size, .* \(a reshape from \(.*batch.*\) to \(.*\): with batch_axis=None", reshape, x=X)
        plain_function(reshape, x=X, batch_axis=None)
    check(ValueError, "has no parameters", jnp.sin, x=X, params="input")
    check(ValueError, "returns no array", lambda x: None, x=X)
    check(TypeError, "takes no state", jnp.sin, ps, st, X)
    for callback in (
        lambda x: jax.pure_callback(np.sin, x, x),
        lambda x: jax.lax.map(lambda y: (jax.debug.callback(print, y), y)[1], x),
        lambda x: (jax.debug.print("{}", x), x)[1],
    ):
        check(ValueError, "calls back to Python, by `", callback, x=X, batch_axis=None)

    def solved(x):
        saveat = diffrax.SaveAt(ts=jnp.array([0.0, 0.5]))
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -y), diffrax.Tsit5(), 0.0, 0.5, 0.25, x, saveat=saveat, throw=False
        ).ys

    check(ValueError, "with throw=False too: take an equation layer, such as lux.NeuralODE", solved, x=X)
    with pytest.raises(TypeError, match="the input 'x' of sin is float32, which Less lacks: convert it, or take More"):
        plain_function(jnp.sin, x=X).require_types("Less", ["int32"], "More")


class Noise(lux.Layer):
    def init_state(self, key):
        return {"key": key}

    def forward(self, x, ps, st):
        key, use = jax.random.split(st["key"])
        return x + jax.random.normal(use, (4,), x.dtype), {"key": key}


def test_a_random_layer_is_refused_where_it_uses_its_key(key, net):
    with pytest.raises(ValueError, match="depends on the random key `key` of its state"):
        plain_function(Noise(), *lux.setup(key, Noise()), X)
    (batch,) = jax.export.symbolic_shape("batch")
    with pytest.raises(ValueError, match="depends on the random key `key` of its state"):
        plain_function(Noise(), *lux.setup(key, Noise()), jax.ShapeDtypeStruct((batch, 4), "float32"))
    layer = lux.Stack(lux.Chain(lux.Dense(4, 4), lux.Dropout(0.5)), 2)  # hands its keys on, through a scan
    ps, st = lux.setup(key, layer, dtype="float32")
    assert shapes(plain_function(layer, ps, lux.testmode(st), X).outputs) == {"y": ("batch", 4)}
