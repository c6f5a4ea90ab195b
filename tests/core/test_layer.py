"""Layers: fields, freezing, equality, pickling, replacing, and what jit makes of them."""

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.core.converters import optional, tuple_of
from lux_sciml.core.printing import value_text


class Scale(lux.Layer):
    factor: Any
    options: Any = None

    def forward(self, x, ps, st):
        return x * self.factor, st


class Annotated(lux.Layer):
    """Its own `__init__`, with a list and a dict."""

    def __init__(self, *sizes, **options):
        self.sizes = list(sizes)
        self.options = options
        self.total = sum(self.sizes)

    def forward(self, x, ps, st):
        return x + self.total, st


class Inherits(Annotated):
    extra: int = 3


class Family(lux.Layer, kw_only=True):
    bias: bool = True


class Member(Family):
    size: int

    def forward(self, x, ps, st):
        return x, st


@jax.jit
def jitted_function(x):
    return jnp.sin(x)


@jax.custom_jvp
def custom_function(x):
    return x


@dataclasses.dataclass(frozen=True)
class Rate:
    value: Any


class Module(eqx.Module):
    value: Any = eqx.field(static=True)


def option(value: Any) -> lux.Layer:
    return Scale(1.0, value)


# --- fields -------------------------------------------------------------------------------------------------------


def test_a_layer_is_a_dataclass_of_its_fields():
    layer = Scale(2.0, options="a")
    assert lux.Layer.options(layer) == {"factor": 2.0, "options": "a"}  # the field hides the method
    assert (layer.factor, layer.options) == (2.0, "a")
    with pytest.raises(TypeError, match="factor"):
        Scale()


def test_an_init_of_ones_own_assigns_fields_plainly():
    layer = Annotated(1, 2, mode="fast")
    assert layer.sizes == (1, 2) and layer.total == 3
    assert layer.options["mode"] == "fast" and dict(layer.options) == {"mode": "fast"}
    assert layer(jnp.zeros(2), {}, {})[0].tolist() == [3.0, 3.0]


def test_an_init_of_ones_own_is_inherited():
    layer = Inherits(4, 5)
    assert layer.total == 9 and layer.extra == 3
    assert layer != Annotated(4, 5)


def test_lists_and_dicts_become_immutable_at_all_depths():
    layer = option([1, [2, {"a": [3]}]])
    assert layer.options[0] == 1 and type(layer.options[1]) is tuple
    assert layer.options[1][1]["a"] == (3,)
    with pytest.raises(AttributeError, match="immutable"):
        layer.options[1][1].a = 1


def test_keyword_only_fields_of_a_base_stand_before_required_ones():
    assert Member(3).bias is True and Member(3, bias=False).size == 3
    with pytest.raises(TypeError):
        Member(3, False)


def test_layers_are_immutable():
    layer = Scale(2.0)
    with pytest.raises(AttributeError, match=r"a layer is immutable: use layer\.replace\(factor=\.\.\.\)"):
        layer.factor = 3.0
    with pytest.raises(AttributeError, match="immutable"):
        del layer.factor
    assert layer.factor == 2.0


def test_copies_are_the_layer_itself():
    layer = lux.Chain(Scale(2.0), lux.Dense(2, 3))
    assert copy.copy(layer) is layer and copy.deepcopy(layer) is layer


@pytest.mark.parametrize("value", [np.ones(2), jnp.ones(2), [1.0, jnp.ones(2)], {"a": np.ones(2)}], ids=str)
def test_arrays_in_fields_are_refused_by_name(value):
    with pytest.raises(TypeError, match=r"Scale\.options.* is an array: .*init_params.*init_state.*lux\.Constant") as e:
        option(value)
    assert str(e.value).startswith("Scale.options")


def test_arrays_deep_in_a_field_are_named_by_path():
    with pytest.raises(TypeError, match=r"^Annotated\.options\['a'\]\[1\] is an array"):
        Annotated(a=[1, np.ones(2)])


def test_unhashable_values_are_refused_by_name():
    with pytest.raises(TypeError, match=r"Scale\.options is an unhashable set: .*lux\.Constant"):
        option({1, 2})


def test_forward_must_be_written():
    class Nothing(lux.Layer):
        pass

    with pytest.raises(TypeError, match="forward"):
        Nothing()


# --- equality -----------------------------------------------------------------------------------------------------

DIFFERENT = [
    *(1, 1.0, True, 0, 0.0, -0.0, False, 1 + 0j, complex(0.0, 0.0), complex(0.0, -0.0), float("nan"), float("inf")),
    *(None, "1", b"1", (), (1,), (1.0,), {"a": 1}, {"a": 1.0}, {"b": 1}, float, int, lux.Mode.TRAIN, lux.Mode.TEST),
    *(np.float32(1), np.float64(1), jnp.tanh, jnp.sin, Scale(1), Scale(1.0)),
    *(functools.partial(jnp.sum, axis=axis) for axis in (0, 1, True)),
    *map(lux.Constant, ([1.0], [1], [[1.0]], [0.0], [-0.0])),
    *(kind(n) for kind in (Rate, Module) for n in (1, 1.0, True)),
    *(frozenset({n}) for n in (1, 1.0, True)),
    *(lux.Constant({"n": n}) for n in (1, 1.0, True)),
    *(lux.Constant({"n": Module(n), "a": np.ones(2)}) for n in (1, 1.0, True)),
]


def test_equality_is_exact_in_type_and_bits():
    layers = [option(value) for value in DIFFERENT]
    for i, a in enumerate(layers):
        for j, b in enumerate(layers):
            assert (a == b) == (i == j), (DIFFERENT[i], DIFFERENT[j])
    assert len(set(layers)) == len(layers)


@pytest.mark.parametrize("i", range(len(DIFFERENT)), ids=lambda i: repr(DIFFERENT[i])[:30])
def test_equal_values_make_equal_layers(i):
    value = DIFFERENT[i] if callable(DIFFERENT[i]) else copy.deepcopy(DIFFERENT[i])
    a, b = option(value), option(DIFFERENT[i])
    assert a == b and hash(a) == hash(b)


def test_layers_of_other_classes_differ():
    class Twin(Scale):
        pass

    assert Scale(1.0) != Twin(1.0) and Scale(1.0) != 1.0


def test_equal_layers_share_a_compiled_program_and_unequal_ones_do_not():
    traces = []

    @jax.jit
    def run(layer, x):
        traces.append(layer)
        return layer(x, {}, {})[0]

    x = jnp.arange(3, dtype=jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        assert run(Scale(2), x).dtype == jnp.int32
        run(Scale(2), x)
        assert len(traces) == 1
        assert run(Scale(2.0), x).dtype == jnp.float64
    assert len(traces) == 2


def test_a_layer_is_a_static_pytree_node():
    assert jax.tree.leaves(lux.Dense(2, 3)) == []
    out = jax.jit(lambda: {"layer": lux.Dense(2, 3)})()
    assert out["layer"] == lux.Dense(2, 3)


# --- replace ------------------------------------------------------------------------------------------------------


def test_replace_changes_fields_and_checks_names():
    assert Scale(1.0).replace(factor=2) == Scale(2)
    assert Annotated(1, 2).replace(total=7)(jnp.zeros(()), {}, {})[0] == 7
    with pytest.raises(TypeError, match="Scale has no field facto; it has factor, options"):
        Scale(1.0).replace(facto=2)


def test_replace_runs_the_checks_of_the_class():
    with pytest.raises(ValueError, match="rate"):
        lux.Dropout(0.5).replace(rate=2.0)
    with pytest.raises(TypeError, match="is an array"):
        Annotated(1).replace(sizes=np.ones(2))


# --- pickling -----------------------------------------------------------------------------------------------------

FUNCTIONS = [jnp.tanh, jnp.add, jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.lax.tanh, jax.nn.initializers.zeros]
FUNCTIONS += [jax.scipy.special.erf, np.sin, abs, jitted_function, custom_function]
FUNCTIONS += [functools.partial(jax.nn.leaky_relu, negative_slope=0.1), lux.initializers.Uniform(0.5)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=value_text)
def test_public_functions_pickle_by_import_path(function):
    for layer in (option(function), option((function,)), option({"f": function}), lux.Chain(lux.Dense(2, 2), function)):
        restored = pickle.loads(pickle.dumps(layer))
        assert restored == layer and hash(restored) == hash(layer)


def test_models_pickle():
    model = lux.Chain(
        lux.Dense(2, 3, jax.nn.relu), lux.BatchNorm(3), lux.SkipConnection(lux.Dense(3, 3), jnp.add), lux.Dropout(0.1)
    )
    assert pickle.loads(pickle.dumps(model)) == model
    assert pickle.loads(pickle.dumps(option(lux.Constant(np.eye(2))))) == option(lux.Constant(np.eye(2)))


@pytest.mark.parametrize("solver", [diffrax.KenCarp4(), diffrax.Kvaerno5(), diffrax.Tsit5()], ids=repr)
def test_options_of_other_libraries_pickle_with_the_marks_in_them(solver):
    for layer in (option(solver), option((1, solver)), option(lux.Constant({"a": solver}))):
        restored = pickle.loads(pickle.dumps(layer))
        assert restored == layer and hash(restored) == hash(layer)


def test_marks_of_other_libraries_are_found_again():  # diffrax asks for them by `is`
    finder = diffrax.KenCarp4().root_finder
    assert pickle.loads(pickle.dumps(option(finder))).options.rtol is finder.rtol
    assert eval(value_text(finder), {"diffrax": diffrax}).rtol is finder.rtol


def test_lambdas_do_not_pickle_and_the_error_says_so():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(option(lambda x: x))


# --- calling ------------------------------------------------------------------------------------------------------


class Affine(lux.Layer):
    def init_params(self, key):
        return {"weight": jnp.full((2, 3), 2.0), "bias": jnp.arange(3.0)}

    def forward(self, x, ps, st):
        assert type(ps) is dict
        return x @ ps["weight"] + ps["bias"], st


def test_parameters_come_as_a_vector_a_dict_or_a_plain_array():
    x, ps = jnp.ones(2), lux.setup(jax.random.key(0), Affine())[0]
    for params in (ps, ps.tree(), dict(reversed(ps.tree().items())), ps.data, np.asarray(ps)):
        assert Affine()(x, params, {})[0].tolist() == [4.0, 5.0, 6.0]


def test_a_plain_vector_is_taken_in_its_own_precision(dtype):
    ps = lux.setup(jax.random.key(0), Affine(), dtype)[0]
    assert Affine()(jnp.ones(2, dtype), ps.data, {})[0].dtype == dtype
    with pytest.raises(TypeError, match="floating elements, got int32"):
        Affine()(jnp.ones(2, dtype), jnp.zeros(9, jnp.int32), {})


WEIGHT, BIAS = jnp.zeros((2, 3)), jnp.zeros(3)
WRONG = [
    ({"weight": WEIGHT}, r"`bias` is missing"),
    ({"weight": WEIGHT, "bias": BIAS, "extra": BIAS}, r"`extra` is unknown"),
    ({"weight": WEIGHT.T, "bias": BIAS}, r"`weight` should have shape \(2, 3\), got \(3, 2\)"),
    ({"weight": WEIGHT, "bias": {"a": BIAS}}, r"`bias` should be an array of shape \(3,\), got a dict of a"),
    (jnp.zeros(8), r"expected a flat vector of shape \(9,\), got shape \(8,\).*weight \(2, 3\), bias \(3,\)"),
    (jnp.zeros((1, 9)), r"expected a flat vector of shape \(9,\), got shape \(1, 9\)"),
    (np.zeros(8), r"expected a flat vector of shape \(9,\), got shape \(8,\)"),
]


@pytest.mark.parametrize(("ps", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_wrong_parameters_are_named_by_path(ps, sentence):
    with pytest.raises(ValueError, match=sentence):
        Affine()(jnp.ones(2), ps, {})
    if isinstance(ps, dict):
        with pytest.raises(ValueError, match=sentence):
            Affine()(jnp.ones(2), lux.ComponentVector.from_tree(ps), {})


def test_the_parameters_of_another_model_are_named_from_the_root():
    small, large = (lux.Chain(a=lux.Dense(2, n), b=lux.Chain(lux.Dense(n, 1))) for n in (3, 4))
    ps, st = lux.setup(jax.random.key(0), small)
    sentence = r"not the parameters of this Chain: `a\.weight` should have shape \(2, 4\), got \(2, 3\)\. `lux\.setup"
    with pytest.raises(ValueError, match=sentence):
        large(jnp.ones(2), ps, st)
    with pytest.raises(ValueError, match=r"`b\.layer_0\.bias` is missing"):
        small(jnp.ones(2), ps.tree() | {"b": {"layer_0": {"weight": jnp.ones((3, 1))}}}, st)


def test_parameters_are_checked_once_at_trace_time():
    calls = []

    class Counts(Affine):
        def init_params(self, key):
            calls.append(key)
            return super().init_params(key)

    ps = lux.setup(jax.random.key(0), Affine())[0]
    for _ in range(3):
        Counts()(jnp.ones(2), ps, {})
        lux.Chain(Counts())(jnp.ones(2), lux.ComponentVector(layer_0=ps.tree()), {"layer_0": {}})
    assert len(calls) == 2


def test_lambda_and_as_layer():
    layer = lux.as_layer(jnp.sin)
    assert layer == lux.Lambda(jnp.sin) and lux.as_layer(layer) is layer
    assert layer(jnp.zeros(2), {}, {"a": 1})[1] == {"a": 1}
    for wrong in (3, "relu", lux.Dense, None):
        with pytest.raises(TypeError, match="expected a layer or a function, got"):
            lux.as_layer(wrong)


class Activated(lux.Layer):
    activation: Callable
    inner: lux.Layer
    wrap: Callable[[lux.Layer], lux.Layer] = lux.Lambda
    postponed: "lux.Layer | None" = lux.field(default=None, converter=optional(lux.as_layer))

    def forward(self, x, ps, st):
        return self.activation(x), st


def test_functions_become_layers_only_where_layers_are_declared():
    layer = Activated(jnp.tanh, jnp.sin)
    assert layer.activation is jnp.tanh and layer.inner == lux.Lambda(jnp.sin)
    assert layer.wrap is lux.Lambda and layer.postponed is None
    assert layer.replace(postponed=jnp.cos, wrap=lux.as_layer) == Activated(
        jnp.tanh, lux.Lambda(jnp.sin), lux.as_layer, lux.Lambda(jnp.cos)
    )


class Many(lux.Container):
    layers: tuple[lux.Layer, ...] = lux.field(converter=tuple_of(lux.as_layer))

    def forward(self, x, ps, st):
        return x, st


@pytest.mark.parametrize(
    "layers", [(lux.Dense(1, 1), 3), ((lux.Dense(1, 1),),), {"a": lux.Dense(1, 1), "b": None}], ids=str
)
def test_layers_that_would_be_no_children_are_refused(layers):
    class Any(lux.Container):
        layers: tuple

        def forward(self, x, ps, st):
            return x, st

    with pytest.raises(TypeError, match=r"^Any\.layers has layers beside or below other values.*as_layer"):
        Any(layers)


def test_children_by_position():
    model = lux.Chain(lux.Dense(1, 2), jnp.tanh)
    for i in (1, -1, np.int64(1), np.array(1)):
        assert model[i] == lux.Lambda(jnp.tanh)
    for i in (2, -3, np.int64(2)):
        with pytest.raises(IndexError, match="Chain has 2 children, got the index"):
            model[i]


def test_a_layer_that_is_missing_is_named():
    with pytest.raises(TypeError, match=r"^Activated\.inner: expected a layer or a function, got None"):
        Activated(jnp.tanh, None)
    with pytest.raises(TypeError, match=r"^Many\.layers\[1\]: expected a layer or a function, got 'relu'"):
        Many((jnp.tanh, "relu"))
