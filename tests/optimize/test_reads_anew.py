"""minimize never answers for another loss: whatever a call reads, it reads as it is at that call."""

import builtins
import collections
import contextvars
import dataclasses
import decimal
import enum
import functools
import gc
import itertools
import operator
import sys
import threading
import types
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
import scipy.io
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

import lux_sciml as lux
from lux_sciml.core.reads import _Unknown, _Walk

METHODS = {
    "SciPy": lambda: "BFGS",
    "optax": lambda: optax.sgd(0.25),
    "optimistix": lambda: optx.BFGS(1e-8, 1e-8),
}

compiles: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **about: compiles.append(about["fun_name"]) if event.endswith("backend_compile_duration") else None
)


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def fitted(loss, method, args=None):
    result = lux.minimize(loss, jnp.zeros(2), method=method(), args=args, max_steps=60)
    return float(result.params[0]), float(result.params[1])


def distance(p, target):
    return jnp.sum((p - target) ** 2)


# --- the places where a loss finds its target, each with a way to change it ---------------------------------------

TARGET = np.ones(2)  # the global that several of them read


def set_target(value):
    global TARGET
    TARGET = value


def global_rebound():
    set_target(jnp.ones(2))
    return lambda p: distance(p, TARGET), lambda value: set_target(jnp.full(2, value))


def numpy_in_place():
    data = np.ones(2)
    return lambda p: distance(p, data), lambda value: data.fill(value)


def jax_array_in_a_cell():
    data = jnp.ones(2)

    def change(value):
        nonlocal data
        data = jnp.full(2, value)

    return lambda p: distance(p, data), change


def a_number():
    set_target(1.0)
    return lambda p: distance(p, TARGET), lambda value: set_target(float(value))


def a_view():
    data = np.ones(4)
    view = data[::2]
    return lambda p: distance(p, view), lambda value: data.fill(value)


def keyword_of_a_partial():
    data = np.ones(2)
    return functools.partial(distance, target=data), lambda value: data.fill(value)


def default_argument():
    data = [1.0]

    def loss(p, target=data):
        return distance(p, target[0])

    return loss, lambda value: data.__setitem__(0, value)


def defaults_of_the_function():
    def loss(p, target=1.0):
        return distance(p, target)

    return loss, lambda value: setattr(loss, "__defaults__", (value,))


def code_of_the_function():
    def loss(p):
        return distance(p, 1.0)

    def other(p):
        return distance(p, 5.0)

    codes = {1.0: loss.__code__, 5.0: other.__code__}
    return loss, lambda value: setattr(loss, "__code__", codes[value])


def attribute_of_the_function():
    def loss(p):
        return distance(p, loss.target)

    loss.target = 1.0
    return loss, lambda value: setattr(loss, "target", value)


class Trainer:
    shift = 0.0

    def __init__(self):
        self.target = 1.0
        self.parts = {"target": [1.0]}

    def loss(self, p):
        return distance(p, self.target + self.shift)

    def nested(self, p):
        return distance(p, self.parts["target"][0])

    @property
    def aim(self):
        return self.target

    def by_property(self, p):
        return distance(p, self.aim)

    @jax.jit
    def jitted(self, p):
        return distance(p, self.target)

    def through_jit(self, p):
        return Trainer.jitted(self, p)

    def __call__(self, p):
        return distance(p, self.target)


def bound_method():
    trainer = Trainer()
    return trainer.loss, lambda value: setattr(trainer, "target", value)


def containers_of_an_object():
    trainer = Trainer()
    return trainer.nested, lambda value: trainer.parts["target"].__setitem__(0, value)


def property_of_an_object():
    trainer = Trainer()
    return trainer.by_property, lambda value: setattr(trainer, "target", value)


def object_as_a_static_argument():
    trainer = Trainer()
    return trainer.through_jit, lambda value: setattr(trainer, "target", value)


def class_attribute():
    trainer = Trainer()
    return trainer.loss, lambda value: setattr(Trainer, "shift", value - 1.0)


def method_of_the_class():
    trainer = Trainer()
    return trainer, lambda value: setattr(Trainer, "__call__", lambda self, p: distance(p, value))


def callable_object():
    trainer = Trainer()
    trainer.__class__ = type("Another", (Trainer,), {"__call__": lambda self, p: distance(p, self.target)})
    return trainer, lambda value: setattr(trainer, "target", value)


class Slotted:
    __slots__ = ("__target",)

    def __init__(self, target):
        self.__target = target

    def __call__(self, p):
        return distance(p, self.__target)


def slots():
    loss = Slotted(1.0)
    return loss, lambda value: setattr(loss, "_Slotted__target", value)


class Data(NamedTuple):
    targets: list

    def first(self):
        return self.targets[0]


def named_tuple():
    data = Data([1.0])
    return lambda p: distance(p, data.first()), lambda value: data.targets.__setitem__(0, value)


class Named(dict):
    def __getattr__(self, name):
        return self[name]


def subclass_of_dict():
    data = Named(target=1.0)
    return lambda p: distance(p, data.target), lambda value: data.update(target=value)


@dataclasses.dataclass
class Options:
    target: float = 1.0
    inner: types.SimpleNamespace = dataclasses.field(default_factory=lambda: types.SimpleNamespace(target=1.0))


def dataclass():
    data = Options()
    return lambda p: distance(p, data.target), lambda value: setattr(data, "target", value)


def chain_of_attributes():
    data = Options()
    return lambda p: distance(p, data.inner.target), lambda value: setattr(data.inner, "target", value)


def attribute_of_a_module():
    module = types.ModuleType("options_of_a_user")
    module.target = 1.0
    return lambda p: distance(p, module.target), lambda value: setattr(module, "target", value)


def target_of(options):
    return options.target


def module_passed_on():
    module = types.ModuleType("options_of_a_user")
    module.target = 1.0
    return lambda p: jnp.sum((p - target_of(module)) ** 2), lambda value: setattr(module, "target", value)


def module_below_a_module():
    module = types.ModuleType("package_of_a_user")
    module.options = types.ModuleType("options_of_a_user")
    module.options.target = 1.0
    change = lambda value: setattr(module.options, "target", value)  # noqa: E731
    return lambda p: jnp.sum((p - target_of(module.options)) ** 2), change


def dict_of_a_module():
    module = types.ModuleType("options_of_a_user")
    module.target = 1.0
    return lambda p: distance(p, module.__dict__["target"]), lambda value: setattr(module, "target", value)


def module_imported_inside():
    sys.modules["options_of_a_user"] = module = types.ModuleType("options_of_a_user")
    module.target = 1.0

    def loss(p):
        import options_of_a_user as options

        return jnp.sum((p - target_of(options)) ** 2)

    return loss, lambda value: setattr(module, "target", value)


def library_passed_on():
    seeds = {1.0: 0, 5.0: 1}
    shifts = {value: np.random.RandomState(seed).normal() for value, seed in seeds.items()}
    np.random.seed(0)  # noqa: NPY002

    def drawn(numpy):
        return numpy.random.normal()

    def loss(p):
        number = drawn(np)
        return distance(p, next(value for value, shift in shifts.items() if shift == number))

    return loss, lambda value: np.random.seed(seeds[value])  # noqa: NPY002


def name_among_the_builtins():
    builtins.TARGET_OF_ALL = 1.0
    return lambda p: distance(p, TARGET_OF_ALL), lambda value: setattr(builtins, "TARGET_OF_ALL", value)  # noqa: F821


def globals_of_a_function():
    set_target(1.0)
    return lambda p: jnp.sum((p - distance.__globals__["TARGET"]) ** 2), set_target


class Setting(enum.Enum):
    TARGET = 1.0

    def __init__(self, target):
        self.target = target


def member_of_an_enumeration():
    Setting.TARGET.target = 1.0
    return lambda p: distance(p, Setting.TARGET.target), lambda value: setattr(Setting.TARGET, "target", value)


class Measured(np.ndarray):
    pass


def attribute_of_an_array():
    data = np.ones(2).view(Measured)
    data.scale = 1.0
    return lambda p: distance(p, np.asarray(data) * data.scale), lambda value: setattr(data, "scale", value)


def masked_array():
    data = np.ma.MaskedArray([1.0, 5.0], mask=[False, True])
    masks = {1.0: [False, True], 5.0: [True, False]}
    return lambda p: distance(p, data.mean()), lambda value: setattr(data, "mask", masks[value])


def data_below_a_mask():
    data = np.ma.MaskedArray([1.0, 1.0], mask=True)
    return lambda p: distance(p, data.data), lambda value: data.data.fill(value)


def attribute_of_a_librarys_dict():
    data = collections.Counter()
    data.target = 1.0
    return lambda p: distance(p, data.target), lambda value: setattr(data, "target", value)


class Number(decimal.Decimal):
    pass


def number_written_in_c():
    data = {"target": Number(1)}
    return lambda p: distance(p, float(data["target"])), lambda value: data.update(target=Number(int(value)))


def setting_of_a_class_written_in_c():
    decimal.getcontext().prec = 1

    def target():
        return 5.0 if 1 * decimal.Decimal("1.25") == decimal.Decimal("1.25") else 1.0

    return lambda p: distance(p, target()), lambda _: setattr(decimal.getcontext(), "prec", 28)


def dict_and_list():
    data = {"targets": [np.ones(2)]}
    return lambda p: distance(p, data["targets"][0]), lambda value: data["targets"].__setitem__(0, np.full(2, value))


def order_of_a_dict():
    data = {"a": 1.0, "b": 5.0}
    return lambda p: distance(p, next(iter(data.values()))), lambda _: data.update(a=data.pop("a"))


def order_of_an_ordered_dict():
    data = collections.OrderedDict(a=1.0, b=5.0)
    return lambda p: distance(p, next(iter(data.values()))), lambda _: data.move_to_end("a")


def objects_in_a_structured_array():
    data = np.zeros(1, [("targets", object)])
    data["targets"][0] = [1.0]
    return lambda p: distance(p, data["targets"][0][0]), lambda value: data["targets"][0].__setitem__(0, value)


def deque():
    data = collections.deque([1.0], maxlen=1)
    return lambda p: distance(p, data[0]), lambda value: data.append(value)


def list_that_is_appended_to_and_read():
    data = [1.0]
    return lambda p: distance(p, data[-1]), lambda value: data.append(value)


def names_made_up():
    set_target(1.0)
    return lambda p: distance(p, globals()["TAR" + "GET"]), lambda value: set_target(value)


def attributes_made_up():
    trainer = Trainer()
    return lambda p: distance(p, getattr(trainer, "tar" + "get")), lambda value: setattr(trainer, "target", value)


def context_variable():
    data = contextvars.ContextVar("data", default=1.0)
    return lambda p: distance(p, data.get()), lambda value: data.set(value)


def thread_local():
    data = threading.local()
    data.target = 1.0
    return lambda p: distance(p, data.target), lambda value: setattr(data, "target", value)


def object_of_c():
    data = {"get": operator.itemgetter(0)}
    values = (1.0, 5.0)
    index = {1.0: 0, 5.0: 1}
    return (
        lambda p: distance(p, data["get"](values)),
        lambda value: data.update(get=operator.itemgetter(index[value])),
    )


def function_in_a_cell():
    def target():
        return 1.0

    def change(value):
        nonlocal target
        target = lambda: value  # noqa: E731

    return lambda p: distance(p, target()), change


@jax.jit
def jitted(p):
    return distance(p, TARGET)


def function_jitted_before():
    set_target(jnp.ones(2))
    return lambda p: jitted(p), lambda value: set_target(jnp.full(2, value))


def jitted_loss():
    data = jnp.ones(2)

    @jax.jit
    def loss(p):
        return distance(p, data)

    def change(value):
        nonlocal data
        data = jnp.full(2, value)

    return loss, change


def scanned(total, _):
    return total + jnp.asarray(TARGET, total.dtype), None


def numpy_in_a_jitted_function():
    data = np.ones(2)

    @jax.jit
    def inner(p):
        return distance(p, data)

    return lambda p: inner(p), lambda value: data.fill(value)


def numpy_in_a_jitted_loss():
    loss, change = numpy_in_a_jitted_function()
    return jax.jit(loss), change


def numpy_in_a_checkpointed_function():
    data = np.ones(2)
    inner = jax.checkpoint(lambda p: distance(p, data))
    return lambda p: inner(p), lambda value: data.fill(value)


def numpy_in_equinoxs_jit():
    data = np.ones(2)
    inner = eqx.filter_jit(lambda p: distance(p, data))
    return lambda p: inner(p), lambda value: data.fill(value)


def numpy_that_another_program_holds():
    data = np.ones(2)
    program = jax.make_jaxpr(lambda p: p - data)(jnp.zeros(2))
    return lambda p, _=program: distance(p, data), lambda value: data.fill(value)


def body_of_a_scan():
    set_target(np.ones(2))

    def loss(p):
        total, _ = jax.lax.scan(scanned, jnp.zeros_like(p), None, length=2)
        return distance(p, total / 2)

    return loss, lambda value: set_target(np.full(2, value))


def branch(p):
    return distance(p, TARGET)


def branch_of_a_cond():
    set_target(1.0)
    return lambda p: jax.lax.cond(p[0] < 100, branch, branch, p), lambda value: set_target(value)


def mapped_and_checkpointed():
    set_target(1.0)
    return lambda p: jnp.mean(jax.vmap(jax.checkpoint(branch))(jnp.stack([p, p]))), lambda value: set_target(value)


@jax.custom_vjp
def away(p):
    return distance(p, TARGET)


away.defvjp(lambda p: (away(p), p), lambda p, cotangent: (2 * cotangent * (p - TARGET),))


def custom_rule():
    set_target(np.ones(2))
    return lambda p: away(p), lambda value: set_target(np.full(2, value))


class Shift(lux.Layer):
    def forward(self, x, ps, st):
        return x - TARGET, st


def layer_of_a_user():
    set_target(1.0)
    layer = lux.Chain(Shift(), jnp.square, jnp.sum)
    ps, st = lux.setup(jax.random.key(0), layer)
    return lambda p: layer(p, ps, st)[0], lambda value: set_target(value)


def field_of_an_equation():
    set_target(1.0)
    node = lux.NeuralODE(lux.Lambda(lambda y: 0 * y + TARGET), ts=[0.0, 1.0], output="final", max_steps=16)
    return lambda p: jnp.sum((node(jnp.zeros(2), {}, {})[0] - p) ** 2), lambda value: set_target(value)


def data_beside_a_solve():
    data = [np.ones(2)]
    node = lux.NeuralODE(lux.Lambda(jnp.zeros_like), ts=[0.0, 1.0], output="final", max_steps=16)
    return lambda p: distance(node(p, {}, {})[0], data[0]), lambda value: data.__setitem__(0, np.full(2, value))


class Module(eqx.Module):
    target: np.ndarray
    shift: list = eqx.field(static=True)

    def __call__(self, p):
        return distance(p, self.target + self.shift[0])


def array_of_a_module():
    loss = Module(np.ones(2), [0.0])
    return loss, lambda value: loss.target.fill(value)


def static_field_of_a_module():
    loss = Module(np.ones(2), [0.0])
    return loss, lambda value: loss.shift.__setitem__(0, value - 1.0)


def random_numbers():
    seeds = {1.0: 0, 5.0: 1}
    shifts = {value: np.random.RandomState(seed).normal() for value, seed in seeds.items()}
    numbers = np.random.RandomState(0)

    def loss(p):
        drawn = numbers.normal()
        return distance(p, next(value for value, shift in shifts.items() if shift == drawn))

    return loss, lambda value: numbers.seed(seeds[value])


def iterator():
    values = itertools.count(1, 4)  # 1, 5, ...
    return lambda p: distance(p, next(values)), lambda value: None


PLACES = [
    *(global_rebound, numpy_in_place, jax_array_in_a_cell, a_number, a_view, keyword_of_a_partial, default_argument),
    *(defaults_of_the_function, code_of_the_function, attribute_of_the_function, bound_method, containers_of_an_object),
    *(property_of_an_object, object_as_a_static_argument, class_attribute, method_of_the_class, callable_object, slots),
    *(named_tuple, subclass_of_dict, dataclass, chain_of_attributes, attribute_of_a_module, dict_and_list, deque),
    *(order_of_an_ordered_dict, objects_in_a_structured_array),
    *(order_of_a_dict, list_that_is_appended_to_and_read, names_made_up, attributes_made_up, context_variable),
    *(thread_local, object_of_c, function_in_a_cell, function_jitted_before, jitted_loss, body_of_a_scan),
    *(branch_of_a_cond, mapped_and_checkpointed, custom_rule, layer_of_a_user, field_of_an_equation, array_of_a_module),
    *(
        data_beside_a_solve,
        static_field_of_a_module,
        random_numbers,
        iterator,
        module_passed_on,
        module_below_a_module,
        dict_of_a_module,
    ),
    *(module_imported_inside, library_passed_on, name_among_the_builtins, globals_of_a_function),
    *(member_of_an_enumeration, attribute_of_an_array, masked_array, data_below_a_mask, attribute_of_a_librarys_dict),
    *(number_written_in_c, setting_of_a_class_written_in_c),
    *(numpy_in_a_jitted_function, numpy_in_a_jitted_loss, numpy_in_a_checkpointed_function),
    *(numpy_in_equinoxs_jit, numpy_that_another_program_holds),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_change_is_seen(place):
    loss, change = place()
    before = vars(Trainer).copy()
    Trainer.jitted = jax.jit(Trainer.jitted.__wrapped__, static_argnums=0)
    try:
        for value in (1.0, 5.0):
            change(value) if value != 1.0 else None
            np.testing.assert_allclose(fitted(loss, METHODS["SciPy"]), value, atol=1e-4)
    finally:
        for name in ("shift", "__call__", "jitted"):
            setattr(Trainer, name, before[name])


@pytest.mark.parametrize("place", [place for place in PLACES if "numpy" in place.__name__], ids=lambda x: x.__name__)
def test_a_change_is_seen_where_jax_converts_the_array(place):
    """It keeps the constant that it made of a float64 array as long as a program holds it."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        loss, change = place()
        for value in (1.0, 5.0, 1.0, 7.0):
            change(value)
            np.testing.assert_allclose(fitted(loss, METHODS["SciPy"]), value, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("place", [global_rebound, numpy_in_place, bound_method, function_jitted_before])
def test_every_family_of_methods_sees_it(place, method):
    loss, change = place()
    for value in (1.0, 5.0, 1.0):
        change(value)
        np.testing.assert_allclose(fitted(loss, method), value, atol=1e-4)


# --- what is not the loss -----------------------------------------------------------------------------------------


class Schedule:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return jnp.where(step >= 0, self.rate, 0.0)


def test_a_schedule_that_changes_is_another_one():
    schedule = Schedule(0.1)
    transform = optax.sgd(schedule)
    values = []
    for rate in (0.1, 0.01, 0.1):
        schedule.rate = rate
        values.append(lux.minimize(lambda p: jnp.sum(p**2), jnp.ones(1), method=transform, max_steps=1).params[0])
    np.testing.assert_allclose(values, [0.8, 0.98, 0.8], rtol=1e-6)


RATE = 0.1


@jax.jit
def jitted_schedule(step):
    return RATE + 0.0 * step


def test_a_jitted_schedule_that_reads_a_global():
    global RATE
    values = []
    for rate in (0.1, 0.01):
        RATE = rate
        transform = optax.sgd(jitted_schedule)
        values.append(lux.minimize(lambda p: jnp.sum(p**2), jnp.ones(1), method=transform, max_steps=1).params[0])
    np.testing.assert_allclose(values, [0.8, 0.98], rtol=1e-6)


SCALE = 1.0


def scaled_norm(x):
    return SCALE * optx.max_norm(x)


def test_the_norm_of_an_optimistix_solver():
    global SCALE
    steps = []
    for scale in (1e-6, 1.0):
        SCALE = scale
        solver = optx.GradientDescent(0.01, 1e-3, 1e-3, norm=scaled_norm)
        steps.append(lux.minimize(lambda p: jnp.sum(p**2), jnp.ones(2), method=solver).steps)
    assert steps[0] < steps[1]


@pytest.mark.slow
def test_functions_in_the_args(method):
    data = np.ones(2)

    def target():
        return data

    def loss(p, args):
        return distance(p, args["target"]() + args["shift"]()) + (0.0 if args["name"] == "plain" else 1.0)

    args = {"target": jax.tree_util.Partial(target), "shift": lambda: data - data, "name": "plain"}
    for value in (1.0, 5.0):
        data.fill(value)
        np.testing.assert_allclose(fitted(loss, method, args), value, atol=1e-4)
    named = lux.minimize(loss, jnp.zeros(2), method=method(), args=args | {"name": "other"}, max_steps=60)
    assert named.value == pytest.approx(1.0, abs=1e-6)


def test_functions_in_the_parameters():
    class Model(eqx.Module):
        weight: jax.Array
        activation: object = eqx.field(static=True)

    data = np.ones(2)
    model = lux.ComponentVector.from_tree(Model(jnp.zeros(2), lambda x: x - data))
    loss = lambda ps: jnp.sum((m := ps.tree()).activation(m.weight) ** 2)  # noqa: E731
    for value in (1.0, 5.0):
        data.fill(value)
        np.testing.assert_allclose(lux.minimize(loss, model, method="BFGS").params.data, value, atol=1e-4)


def test_bounds_that_change():
    upper = np.full(2, 0.5)
    for value in (0.5, 0.25):
        upper.fill(value)
        result = lux.minimize(lambda p: distance(p, 1.0), jnp.zeros(2), method="L-BFGS-B", bounds=(None, upper))
        np.testing.assert_allclose(result.params, value)


def test_types_count():
    names = {int: 1.0, bool: 2.0, float: 3.0}
    losses = [lambda p, v=value: jnp.sum(p**2) + names[type(v)] for value in (1, True, 1.0)]
    found = [lux.minimize(loss, jnp.ones(1), method="BFGS").value for loss in losses]
    np.testing.assert_allclose(found, [1.0, 2.0, 3.0], atol=1e-6)


def test_switches_of_jax_count():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(32, 32)), jnp.float32)
    dtypes, modes = [], []

    def loss(p):
        dtypes.append(jnp.zeros(()).dtype)
        modes.append(lux.derivatives.current())
        return jnp.sum((matrix @ p) ** 2)

    for context in (jax.enable_x64(True), jax.enable_x64(False), lux.derivatives.mode("forward")):
        with context:
            lux.minimize(loss, jnp.ones(32, jnp.float32), method="BFGS", max_steps=2)
    assert {str(dtype) for dtype in dtypes} == {"float32", "float64"} and set(modes) == {None, "forward"}


def test_an_array_of_numpys_in_both_precisions_in_turn():
    data = np.full(2, 0.1)
    loss = jax.jit(lambda p: distance(p, data))
    for _ in range(2):
        for x64, dtype in ((False, np.float32), (True, np.float64)):
            with jax.enable_x64(x64), jax.numpy_dtype_promotion("standard"):
                params = lux.minimize(loss, jnp.zeros(2), method="BFGS").params
            assert params.dtype == dtype and float(params[0]) == dtype(0.1)


def test_the_kind_of_random_numbers_counts():
    target = jax.jit(lambda: jax.random.normal(jax.random.key(0), (2,)))
    loss = lambda p: distance(p, target())  # noqa: E731
    found = []
    for kind in ("threefry2x32", "rbg", "threefry2x32"):
        with jax.default_prng_impl(kind):
            found.append(fitted(loss, METHODS["SciPy"]))
            np.testing.assert_allclose(found[-1], jax.random.normal(jax.random.key(0), (2,)), atol=1e-4)
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("kind", ["SciPy", "Equinox"])
def test_files_are_read_anew(kind, tmp_path):
    file = str(tmp_path / "target")
    write, loss = {
        "SciPy": (
            lambda value: scipy.io.savemat(f"{file}.mat", {"target": value}),
            lambda p: distance(p, scipy.io.loadmat(f"{file}.mat")["target"].item()),
        ),
        "Equinox": (
            lambda value: eqx.tree_serialise_leaves(f"{file}.eqx", jnp.array(value)),
            lambda p: distance(p, eqx.tree_deserialise_leaves(f"{file}.eqx", jnp.array(0.0))),
        ),
    }[kind]
    for value in (1.0, 5.0):
        write(value)
        np.testing.assert_allclose(fitted(loss, METHODS["SciPy"]), value, atol=1e-4)


@pytest.mark.exhaustive
def test_new_functions_in_old_places():
    """Functions die, and others take their ids."""
    for value in range(30):
        data = jnp.full(2, float(value))
        assert fitted(lambda p, data=data: distance(p, data), METHODS["SciPy"])[0] == pytest.approx(value, abs=1e-4)
        del data
        gc.collect(0)


def test_data_that_the_callback_changes_counts_from_the_next_call():
    data = np.ones(2)
    change = lambda *_: data.fill(5.0)  # noqa: E731
    first = lux.minimize(lambda p: distance(p, data), jnp.zeros(2), method="trust-exact", callback=change)
    np.testing.assert_allclose(first.params, 1.0, atol=1e-4)
    np.testing.assert_allclose(fitted(lambda p: distance(p, data), METHODS["SciPy"]), 5.0, atol=1e-4)


# --- only compiling is saved --------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "place",
    [
        *(global_rebound, numpy_in_place, jax_array_in_a_cell, keyword_of_a_partial, function_jitted_before),
        *(jitted_loss, data_beside_a_solve),
    ],
)
def test_other_data_compile_nothing(place, method):
    loss, change = place()
    fitted(loss, method)
    change(3.0)
    fitted(loss, method)
    compiles.clear()
    change(5.0)
    np.testing.assert_allclose(fitted(loss, method), 5.0, atol=1e-4)
    assert not set(compiles) - {"jit(convert_element_type)"}  # Equinox's enumerations, where a jitted function changed


def test_equal_losses_made_apart_are_one_program(method):
    def make(value):
        data = jnp.full(2, value)
        return lambda p: distance(p, data)

    fitted(make(1.0), method)
    compiles.clear()
    np.testing.assert_allclose(fitted(make(5.0), method), 5.0, atol=1e-4)
    assert not compiles


@pytest.mark.slow
def test_what_is_known_is_not_traced_again(method):
    """A list that is only appended to is no data."""
    traces = []
    model = lux.Chain(lux.Dense(2, 4, jnp.tanh), lambda y: y**3, lux.Dense(4, 1))
    ps, st = lux.setup(jax.random.key(0), model)
    options = {"weight": 1.0 + list(METHODS.values()).index(method), "xs": np.ones((3, 2))}

    def loss(ps, data):
        traces.append(1)
        return options["weight"] * jnp.mean((model(options["xs"], ps, st)[0] - data) ** 2)

    lux.minimize(loss, ps, method=method(), args=jnp.full((3, 1), 1.0), max_steps=3)
    assert len(traces) == 1
    lux.minimize(loss, ps, method=method(), args=jnp.full((3, 1), 2.0), max_steps=3)
    assert len(traces) == 1
    options["weight"] *= 0.5
    lux.minimize(loss, ps, method=method(), args=jnp.ones((3, 1)), max_steps=3)
    assert len(traces) == 2


def test_what_is_not_known_is_read_no_further():
    draws, much = np.random.default_rng(0), [[i] for i in range(10_000)]
    walk = _Walk()
    with pytest.raises(_Unknown):
        walk.key(lambda p: distance(p, draws.normal(size=2)) + len(much))
    assert len(walk.seen) < 100


@pytest.mark.slow
def test_a_loss_whose_types_are_checked_is_soon_read(method):
    """A closure that holds its own signature, as jaxtyping's do: no walk through all that checks it."""
    target = np.array([3.0, 3.0])

    @jaxtyped(typechecker=beartype)
    def loss(p: Float[Array, " n"]) -> Float[Array, ""]:
        return distance(p, target)

    walk = _Walk()
    walk.key(loss)
    assert len(walk.seen) < 300
    for value in (3.0, 5.0):
        target.fill(value)
        np.testing.assert_allclose(fitted(loss, method), value, atol=1e-4)
