"""Wrong calls, each with one sentence that names the mistake and the way out."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lux_sciml as lux
from lux_sciml._tree import describe

X = np.ones((4, 2))
DENSE = lux.Dense(2, 3, jnp.tanh)
MODEL = lux.Chain(DENSE, lux.BatchNorm(3))


class Module:
    """As those of torch and flax."""


class Linear(Module):
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("module", "name", "fix"),
    [
        (
            eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0)),
            "equinox MLP",
            r"`lux\.adapters\.from_equinox\(module\)` makes",
        ),
        (Linear(), r"\w+ Linear", r"write a `lux\.Layer` whose"),
        (jax.tree_util.Partial(jnp.dot, jnp.ones(2)), "jax Partial", r"write a `lux\.Layer` whose"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_objects_with_arrays_of_their_own_are_no_functions(module, name, fix):
    sentence = rf"expected a function, got an object of its own arrays \({name}\).*: {fix}"
    for make in (lambda: lux.Chain(module), lambda: lux.as_layer(module), lambda: lux.Lambda(module)):
        with pytest.raises(TypeError, match=sentence):
            make()


def test_what_jax_makes_of_a_module_is_none_either():
    module = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    for made in (jax.vmap(module), jax.jit(jax.vmap(module)), jax.checkpoint(module)):
        with pytest.raises(TypeError, match=r"\(equinox MLP\).*from_equinox\(module\)` makes a layer of it"):
            lux.Chain(made)
    lux.Chain(jax.jit(jnp.tanh), jax.vmap(lambda x: module(x)))  # a function around it is one


def test_modules_without_arrays_are_functions():
    layer = lux.Chain(eqx.nn.Identity(), eqx.nn.Lambda(jnp.sin))
    assert jnp.allclose(layer(X, *lux.setup(jax.random.key(0), layer))[0], jnp.sin(X))


@pytest.mark.parametrize("make", [lambda x: lux.Lambda(lux.Constant(x)), lambda x: Timed(x), lambda x: Timed([0.0, x])])
def test_traced_options_are_refused(make):
    with pytest.raises(TypeError, match=r"traced array.* (call, as part of|make the layer outside)"):
        jax.jit(lambda x: make(x) and x)(jnp.array(1.0))


class Timed(lux.Layer):
    ts: lux.Constant = lux.field(converter=lux.Constant)

    def forward(self, x, ps, st):
        return x, st


def test_traced_options_are_named():
    class Plain(lux.Layer):
        ts: object

        def forward(self, x, ps, st):
            return x, st

    for cls in (Timed, Plain):
        for value in (lambda t: t, lambda t: (0.0, t), lambda t: {"a": [t]}):
            with pytest.raises(TypeError, match=rf"^{cls.__name__}\.ts.* is a traced array, and options of a layer"):
                jax.jit(lambda t, cls=cls, value=value: cls(value(t)) and t)(jnp.array(1.0))


def test_arguments_in_another_order(key):
    ps, st = lux.setup(key, MODEL)
    for arguments in ((ps, X, st), (X, st, ps), (st, ps, X), (ps, st, X), (st, X, ps)):
        with pytest.raises(TypeError, match=r"call `y, st = layer\(x, ps, st\)` of a Chain with `ps, st = lux\.setup"):
            MODEL(*arguments)
    with pytest.raises(TypeError, match="the parameters are the second of the three arguments"):
        MODEL(ps, X, st)
    with pytest.raises(TypeError, match="the parameters are the second of the three arguments"):
        DENSE(ps.layer_0.tree(), X, {})
    for state in (None, (), ps, X):
        with pytest.raises(TypeError, match=f"the state is a dict, got a {type(state).__name__}: call"):
            MODEL(X, ps, state)
    with pytest.raises(
        ValueError, match=r"`layer_0\.weight` is missing"
    ):  # of wrong parameters that are no other mix-up
        MODEL(X, {"layer_0": {}, "layer_1": {}}, st)


def test_setup_in_another_order(key):
    with pytest.raises(TypeError, match=r"the key comes first, .*; got the layer Dense\(2, 3, tanh\)"):
        lux.setup(DENSE, key)
    with pytest.raises(TypeError, match=r"one random key, got keys of shape \(3,\): for an ensemble, `jax\.vmap"):
        lux.setup(jax.random.split(key, 3), DENSE)
    with pytest.raises(TypeError, match="expected a random key"):
        lux.setup(np.zeros((3, 2), "uint32"), DENSE)


def test_states_of_another_model(key):
    ps, st = lux.setup(key, MODEL)
    with pytest.raises(ValueError, match=r"no entry 'layer_0' in the state, got an empty dict: `lux\.setup") as caught:
        MODEL(X, ps, {})
    assert caught.value.__notes__ == ["in the layer `layer_0`, Dense(2, 3, tanh)"]
    with pytest.raises(ValueError, match="no entry 'layer_1' in the state, got a dict of layer_0"):
        MODEL(X, ps, {"layer_0": st["layer_0"]})
    outer = lux.Chain(a=MODEL)
    with pytest.raises(ValueError, match="no entry 'layer_0' in the state, got a NoneType"):
        outer(X, outer_ps(ps), {"a": None})


def outer_ps(ps):
    return {"a": ps.tree()}


class NoPair(lux.Layer):
    def forward(self, x, ps, st):
        return x


class Fails(lux.Layer):
    size: int = 1

    def forward(self, x, ps, st):
        raise ValueError("no")


def test_forward_returns_a_pair(key):
    for layer, notes in ((NoPair(), []), (lux.Chain(NoPair()), ["in the layer `layer_0`, NoPair()"])):
        with pytest.raises(TypeError, match=r"`forward` of NoPair\(\) returns the pair \(y, st\), got a") as caught:
            layer(X, *lux.setup(key, layer))
        assert getattr(caught.value, "__notes__", []) == notes
        assert str(caught.value).endswith(f"{describe(X)}: write `return y, st`")


class ReadsByAttribute(lux.Layer):
    def init_params(self, key):
        return {"rate": jnp.ones(())}

    def forward(self, x, ps, st):
        return ps.rate * x, st


def test_parameters_in_forward_are_read_by_key(key):
    for layer in (ReadsByAttribute(), lux.Chain(ReadsByAttribute())):
        with pytest.raises(AttributeError) as caught:
            layer(X, *lux.setup(key, layer))
        assert caught.value.__notes__.count("parameters and state are dicts in `forward`: ps['rate'], not ps.rate") == 1


def test_a_class_is_no_layer():
    with pytest.raises(TypeError, match=r"got the class NoOp: make a layer of it, NoOp\(\.\.\.\)"):
        lux.Chain(DENSE, lux.NoOp)


def test_watched_layers_are_named_in_errors(key):
    model = lux.Chain(DENSE)
    with pytest.raises(ValueError) as caught:
        lux.summary(model, jnp.ones((3, 5)))
    assert "in the layer `layer_0`, Dense(2, 3, tanh)" in caught.value.__notes__
    with pytest.raises(ValueError) as caught:
        lux.check_finite(model)(jnp.ones((3, 5)), *lux.setup(key, model))
    assert caught.value.__notes__ == ["in the layer `layer_0`, Dense(2, 3, tanh)"]


def test_errors_name_the_layer_that_was_called():
    for layer, note in (
        (Fails(2), "in the layer Fails(2)"),
        (lux.Chain(lux.Chain(b=Fails())), "in the layer `layer_0.b`, Fails()"),
        (lux.Lambda(jnp.linalg.inv), "in the layer Lambda(inv)"),
    ):
        with pytest.raises(ValueError) as caught:
            layer(X, *lux.setup(jax.random.key(0), layer))
        assert caught.value.__notes__[-1] == note
    with pytest.raises(ValueError) as caught:
        jax.jit(lambda x: Fails(3)(x, {}, {}))(X)
    assert "in the layer Fails(3)" in caught.value.__notes__


def test_the_names_of_long_layers_are_short(key):
    inside = lux.Chain(*[lux.Dense(2, 2)] * 20, lambda x: 1 / 0)
    layer = lux.Lambda(lambda x: inside(x, *lux.setup(key, inside))[0])
    with pytest.raises(ZeroDivisionError) as caught:
        layer(X, {}, {})
    assert caught.value.__notes__ == ["in the layer `layer_20`, Lambda(<lambda>)"]


def test_parameters_and_states_are_dicts(key):
    class Single(lux.Layer):
        def init_params(self, key):
            return jnp.ones(3)

        def forward(self, x, ps, st):
            return x, st

    with pytest.raises(TypeError, match="`init_params` of Single returns a dict, got a"):
        lux.setup(key, Single())


def test_functions_on_states_refuse_layers():
    for change in (lux.testmode, lux.trainmode, lambda layer: lux.update_state(layer, "mode", 1)):
        with pytest.raises(
            TypeError, match=r"expected a state, got the layer Chain: `ps, st = lux\.setup\(key, layer\)`"
        ):
            change(MODEL)


STATEFUL = lux.StatefulLayer(MODEL, *lux.setup(jax.random.key(0), MODEL))


@pytest.mark.parametrize(
    "use",
    [
        lux.Chain,
        lux.as_layer,
        lux.check_finite,
        lux.Frozen,
        lux.vector_field,
        lambda model: lux.setup(jax.random.key(0), model),
        lambda model: lux.summary(model, X),
        lambda model: lux.output_shape(model, X),
        lambda model: lux.NeuralODE(model, ts=[0.0, 1.0]),
        lambda model: lux.StatefulLayer(model, model.ps, model.st),
    ],
)
def test_a_stateful_layer_is_no_layer(use):
    with pytest.raises(TypeError, match="expected a layer or a function, got a StatefulLayer: give its `layer`"):
        use(STATEFUL)


def test_what_is_no_stateful_layer():
    ps, st = lux.setup(jax.random.key(0), MODEL)
    for arguments, sentence in (
        ((ps, MODEL, st), r"StatefulLayer\(layer, ps, st\): expected a layer or a function, got ComponentVector"),
        ((MODEL, st, ps), r"StatefulLayer\(layer, ps, st\): the state is a dict, got a ComponentVector"),
        ((MODEL, ps, None), "the state is a dict, got a NoneType"),
    ):
        with pytest.raises(TypeError, match=sentence):
            lux.StatefulLayer(*arguments)
    assert lux.StatefulLayer(jnp.tanh, {}, {})(0.0) == 0.0


@pytest.mark.parametrize("value", [None, "state", 1.0, X, lux.ComponentVector(a=1.0)], ids=lambda x: type(x).__name__)
def test_functions_on_states_refuse_what_is_none(value):
    for change in (lux.testmode, lux.trainmode, lambda x: lux.update_state(x, "mode", 1)):
        with pytest.raises(TypeError, match=f"expected a state, got a {type(value).__name__}: `ps, st = lux"):
            change(value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda ps, st: lux.setup(jax.random.key(0), MODEL, int), "`dtype` is a floating-point type"),
        (lambda ps, st: lux.setup(jax.random.key(0), MODEL, "half_"), "`dtype` is a floating-point type.* 'half_'"),
        (lambda ps, st: lux.parameter_length("model"), "expected a layer, or the parameters that"),
        (lambda ps, st: lux.parameter_length(None), "expected a layer, or the parameters that"),
        (lambda ps, st: lux.state_length(None), "expected a layer, or the state that"),
        (lambda ps, st: lux.summary(X, MODEL), "expected a layer or a function, got"),
        (lambda ps, st: lux.output_shape(X, MODEL), "expected a layer or a function, got"),
        (lambda ps, st: lux.check_finite(X), "expected a layer or a function, got"),
        (lambda ps, st: lux.vector_field(st, MODEL), r"vector_field\(model, st\): expected a layer or a function, got"),
        (lambda ps, st: lux.concat([ps, ps]), r"concat joins ComponentVectors, concat\(a, b\), got a list"),
        (lambda ps, st: lux.load(ps), "load takes the path of a file, got a ComponentVector"),
        (lambda ps, st: lux.load_into("file.npz", ps), "fills a ComponentVector, got a str in its place"),
        (lambda ps, st: lux.load_into({"a": 1.0}, ps), "fills a ComponentVector, got a dict in its place"),
        (lambda ps, st: lux.optimize.per_array(ps, optax.sgd(0.1)), "takes an optax transformation and a ComponentVec"),
        (lambda ps, st: lux.optimize.per_array(optax.adam, ps), "takes an optax transformation and a ComponentVec"),
        (lambda ps, st: lux.parameters.layer_map(MODEL, print, ps, st), r"layer_map\(f, layer, ps, st\): a function, "),
    ],
)
def test_arguments_of_another_kind(call, sentence):
    with pytest.raises(TypeError, match=sentence):
        call(*lux.setup(jax.random.key(0), MODEL))


@pytest.mark.parametrize(
    "make",
    [
        lambda net: lux.Dense(2, 2, net),
        lambda net: lux.WithCosts(net),
        lambda net: lux.KANLayer(2, 2, net),
        lambda net: lux.TensorProduct(net, 2),
        lambda net: lux.UDE(net),
        lambda net: lux.ODERNN(net, net),
        lambda net: lux.Recurrence(net),
        lambda net: lux.NeuralODE(net, solver=net),
        lambda net: lux.NeuralODE(net, adjoint=net),
        lambda net: lux.SteadyState(net, solver=net),
        lambda net: lux.SteadyState(net, adjoint=net),
        lambda net: lux.diffeq.tightening_tolerances(net, 2),
    ],
)
@pytest.mark.parametrize("net", [lux.Dense(2, 2), lux.Chain(lux.Dense(2, 2), lux.Dense(2, 2))], ids=["Dense", "Chain"])
def test_a_layer_in_the_wrong_place_is_named_on_one_line(make, net):
    with pytest.raises((TypeError, ValueError), match=rf"got (a )?{type(net).__name__}") as caught:
        make(net)
    assert "\n" not in str(caught.value) and "parameters" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: lux.Dense(2, 3, activaton=jnp.tanh),
            "Dense has no option 'activaton' (did you mean 'activation'?)",
        ),
        (
            lambda: lux.NeuralODE(DENSE, [0.0, 1.0], rtoll=1e-3),
            "NeuralODE has no option 'rtoll' (did you mean 'rtol'?)",
        ),
        (lambda: Timed(ts=[0.0], order=3), "Timed has no option 'order'; it has ts"),
        (lambda: lux.Dense(2, 3, jnp.tanh, False), "Dense takes 3 options by position, in_features, out_features"),
        (lambda: lux.MLP(2, 8, 8, 1), "MLP.activation: expected a function .* hidden widths are a tuple"),
        (lambda: lux.ConvexMLP(2, 8, 8, 1), "ConvexMLP.activation: expected a function .* hidden widths are a tuple"),
        (lambda: lux.Siren(2, 8, 8, 1), "Siren takes 3 options by position, in_features, hidden"),
        (
            lambda: lux.MonotoneMLP(2, 8, np.int64(8), 1),
            "MonotoneMLP.activation: .* hidden widths are a tuple",
        ),
        (lambda: lux.MLP(2, 8, 8, 8, 1), "got 5: others are given by name, and several values of one option, such as"),
        (lambda: lux.Reshape(shapes=3), "Reshape has no option 'shapes'; it has none by name"),
        (lambda: lux.ReverseSequence(1, 2), "ReverseSequence takes 1 option by position, axis, got 2"),
    ],
)
def test_options_that_a_layer_does_not_have(make, says):
    with pytest.raises(TypeError, match=re.escape(says).replace(r"\.\*", ".*")):
        make()


def test_a_function_of_several_arguments_is_no_layer():
    model = lux.Chain(lux.Dense(2, 2), lambda x, st: x)
    with pytest.raises(TypeError, match=r"one argument, its input, .* got a function of \(x, st\)"):
        model(X, *lux.setup(jax.random.key(0), model))
    with pytest.raises(TypeError, match="bad operand"):
        lux.Lambda(lambda x: -x)("a", {}, {})


def test_a_type_error_of_an_init_of_ones_own_is_its_own():
    class Own(lux.Layer):
        def __init__(self, *sizes, **options):
            self.sizes = sizes + options["size"]

        def forward(self, x, ps, st):
            return x, st

    with pytest.raises(TypeError, match="can only concatenate tuple"):
        Own(1, 2, size=3)
