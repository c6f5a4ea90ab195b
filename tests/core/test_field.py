"""lux.field: options that are converted and checked where they are given, and the checks of classes."""

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.core.converters import (
    choice,
    choices,
    count,
    dict_of,
    flag,
    function,
    integer,
    integers,
    naturals,
    number,
    numbers,
    optional,
    sizes,
    tuple_of,
)


class Base(lux.Layer):
    def forward(self, x, ps, st):
        return x, st


class Options(Base):
    n: int = lux.field(converter=count)
    size: tuple[int, ...] = lux.field(default=1, converter=sizes)
    activation: Callable = lux.field(default=jnp.tanh, converter=function, kw_only=True)
    norm: lux.Layer | None = lux.field(default=None, converter=optional(lux.as_layer), kw_only=True)
    experts: tuple[lux.Layer, ...] = lux.field(default=(), converter=tuple_of(lux.as_layer), kw_only=True)


def test_options_are_converted_before_post_init_and_defaults_too():
    seen = []

    class Sees(Options):
        def __post_init__(self):
            seen.append((self.n, self.size, self.norm, self.experts))

    Sees(np.int64(2), np.array([3, 3]), norm=jnp.sin, experts=[jnp.cos])
    Sees(2)
    assert seen == [
        (2, (3, 3), lux.Lambda(jnp.sin), (lux.Lambda(jnp.cos),)),
        (2, (1,), None, ()),
    ]
    assert type(seen[0][0]) is int


def test_options_are_converted_in_replace_too():
    layer = Options(1).replace(size=[2, np.int8(3)], norm=jnp.sin)
    assert layer == Options(1, (2, 3), norm=lux.Lambda(jnp.sin))
    assert layer.replace(n=1) == layer == pickle.loads(pickle.dumps(layer))
    with pytest.raises(TypeError, match=r"^Options\.size\[1\]: expected a whole number, got 'a'"):
        layer.replace(size=(1, "a"))


WRONG = [
    (lambda: Options(0), r"^Options\.n: expected a whole number of at least 1, got 0"),
    (lambda: Options(True), r"^Options\.n: expected a whole number, got True"),
    (lambda: Options(2.0), r"^Options\.n: expected a whole number, got 2\.0"),
    (lambda: Options(1, (1, 0)), r"^Options\.size\[1\]: expected a whole number of at least 1, got 0"),
    (lambda: Options(1, np.ones((2, 2), int)), r"^Options\.size: expected whole numbers of at least 1, got \[\[1"),
    (lambda: Options(1, activation="tanh"), r"^Options\.activation: expected a function such as jnp\.tanh, got 'tanh'"),
    (
        lambda: Options(1, activation=lux.Dense(1, 1)),
        r"^Options\.activation: expected a function.*Dense\(1, 1\)",
    ),
    (lambda: Options(1, norm=3), r"^Options\.norm: expected a layer or a function, got 3"),
    (lambda: Options(1, experts=jnp.tanh), r"^Options\.experts: expected a list or a tuple, got <"),
    (lambda: Options(1, experts=[jnp.tanh, 3]), r"^Options\.experts\[1\]: expected a layer or a function, got 3"),
]


@pytest.mark.parametrize(("make", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_a_wrong_option_is_refused_by_name(make, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()


@pytest.mark.parametrize(
    ("converter", "given", "expected"),
    [
        (integer, np.uint8(3), 3),
        (integers, [np.int64(-1), 0], (-1, 0)),
        (integers, 2, (2,)),
        (integers, (), ()),
        (sizes, jnp.array([2, 3]), (2, 3)),
        (sizes, np.array(4), (4,)),
        (sizes, range(1, 3), (1, 2)),
        (number, np.float32(0.5), 0.5),
        (number, 1, 1.0),
        (naturals, np.int64(0), (0,)),
        (numbers, [[True, False]], lux.Constant([[True, False]])),
        (numbers, jnp.array([0.5], jnp.bfloat16), lux.Constant(jnp.array([0.5], jnp.bfloat16))),
        (number, jnp.array(2.0), 2.0),
        (flag, np.True_, True),
        (choice("a", "b"), "b", "b"),
        (choices("a", "b"), "b", ("b",)),
        (choices("a", "b"), ["b", "a"], ("b", "a")),
        (dict_of(optional(count)), {"a": 1, "b": None}, {"a": 1, "b": None}),
        (tuple_of(tuple_of(count)), [[1], [2]], ((1,), (2,))),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_converters(converter, given, expected):
    got = converter(given)
    assert (dict(got) if isinstance(expected, dict) else got) == expected and type(got) is not np.ndarray
    again = converter(got)
    assert again == got and type(again) is type(got)


@pytest.mark.parametrize(
    ("converter", "given", "sentence"),
    [
        (number, "1", "expected a number, got '1'"),
        (number, [1.0], r"expected a number, got \[1\.0\]"),
        (number, 1j, "expected a number, got 1j"),
        (number, np.float32("nan"), r"expected a number, got np\.float32\(nan\)"),
        (naturals, [0, -1], r"^\[1\]: expected a whole number of at least 0, got -1"),
        (numbers, "a", "expected numbers, got 'a'"),
        (numbers, {"a": jax.random.key(0)}, "expected numbers, got"),
        (count, lux.Dense(2, 2), r"expected a whole number, got Dense\(2, 2\)$"),
        (flag, "yes", "expected True or False, got 'yes'"),
        (flag, np.array([True, True]), "expected True or False, got array"),
        (integers, "ab", "expected a whole number, got 'ab'"),
        (integers, [[1, 2]], r"expected whole numbers, got \[\[1, 2\]\]"),
        (choice("a", "b"), "c", "expected 'a' or 'b', got 'c'"),
        (choice("a", "b"), 1, "expected 'a' or 'b', got 1"),
        (choices("a", "b"), ["a", "c"], "expected some of 'a', 'b', got 'c'"),
        (choices("a", "b"), 1, "expected some of 'a', 'b', got 1"),
        (dict_of(count), [1], r"expected a dict, got \[1\]"),
        (tuple_of(tuple_of(count)), [[1], [0]], r"\[1\]\[0\]: expected a whole number of at least 1, got 0"),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_converters_refuse(converter, given, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        converter(given)


def test_a_new_default_in_a_subclass_keeps_the_converter():
    class Twice(Options):
        size: tuple[int, ...] = 2

    assert Twice(1).size == (2,) and Twice(1, [3]).size == (3,)
    with pytest.raises(TypeError, match=r"^Twice\.size: expected"):
        Twice(1, "a")


def test_two_bases_of_options_are_both_checked_without_a_chain():
    class Rate(Base, kw_only=True):
        rate: float = lux.field(default=0.5, converter=number)

        def __check_init__(self):
            if not 0 <= self.rate <= 1:
                raise ValueError("rate")

    class Size(Base, kw_only=True):
        size: int = 1

        def __check_init__(self):
            if self.size < 1:
                raise ValueError("size")

    class Both(Rate, Size):
        pass

    assert Both(rate=1, size=2).rate == 1.0
    for options in ({"rate": 2}, {"size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Both(**options)
        with pytest.raises(ValueError, match=next(iter(options))):
            Both().replace(**options)


def test_checks_run_bases_first_on_the_finished_layer():
    order = []

    class First(lux.Container):
        layer: lux.Layer = lux.field(converter=lux.as_layer)

        def __check_init__(self):
            order.append(("First", list(self.children)))

        def forward(self, x, ps, st):
            return x, st

    class Second(First):
        def __check_init__(self):
            order.append(("Second", hash(self) == hash(self.replace)))
            with pytest.raises(AttributeError, match="immutable"):
                self.layer = None

    order.clear()
    Second(jnp.tanh)
    assert [name for name, _ in order] == ["First", "Second"] and order[0][1] == ["layer"]


# --- an `__init__` of one's own ------------------------------------------------------------------------------------


def test_an_init_of_ones_own_converts_what_it_assigns():
    class Own(lux.Container):
        inner: lux.Layer = lux.field(converter=lux.as_layer)
        depth: int = 2

        def __init__(self, inner, n):
            self.inner = inner
            assert isinstance(self.inner, lux.Layer)
            self.n = n
            assert type(self.n) is int
            self.blocks = []
            for _ in range(self.n):
                self.blocks.append(lux.Dense(1, 1))

        def forward(self, x, ps, st):
            return x, st

    layer = Own(jnp.tanh, np.int64(2))
    assert list(layer.children) == ["inner", "blocks_0", "blocks_1"] and layer.depth == 2
    assert layer.replace(depth=3).depth == 3 and layer.replace(inner=jnp.sin).inner == lux.Lambda(jnp.sin)


def test_a_field_that_is_never_set_is_named():
    class Forgets(Base):
        size: int
        other: int

        def __init__(self, size):
            self.size = size

    class Computes(Base):
        size: int
        total: int = lux.field(init=False)

    for make in (lambda: Forgets(1), lambda: Computes(1)):
        with pytest.raises(TypeError, match=r"(other|total) is declared, but was never set: assign it in"):
            make()


def test_post_init_is_never_dropped():
    calls = []

    class Checks(Base):
        n: int

        def __post_init__(self):
            calls.append(self.n)

    class Beside(Base):
        def __init__(self, n):
            self.n = n

        def __post_init__(self):
            calls.append(self.n)

    class Under(Checks):
        def __init__(self, n):
            self.n = n

    class Super(Checks):
        def __init__(self, n):
            super().__init__(n)
            calls.append("after")

        def __post_init__(self):
            super().__post_init__()

    for cls in (Checks, Beside, Under):
        cls(3)
    assert calls == [3, 3, 3]
    Super(4)
    assert calls[3:] == [4, "after"] and Super(4).replace(n=5).n == 5


# --- integers of NumPy and JAX -------------------------------------------------------------------------------------


class AnyOption(Base):
    option: object = None


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.array(3), 3),
        (jnp.array(3), 3),
        (np.True_, True),
        (jnp.array(False), False),
        ([np.int32(1), (np.int8(2), {"a": np.int64(3)})], (1, (2, {"a": 3}))),
    ],
    ids=str,
)
def test_integers_and_booleans_of_numpy_are_those_of_python(given, plain):
    layer = AnyOption(given)
    assert layer == AnyOption(plain) and hash(layer) == hash(AnyOption(plain)) and repr(layer) == repr(AnyOption(plain))


def test_other_numbers_of_numpy_stay_what_they_are():
    assert AnyOption(np.float32(1)) != AnyOption(1.0)
    assert type(AnyOption(np.timedelta64(1, "s")).option) is np.timedelta64
    with pytest.raises(TypeError, match="is an array"):
        AnyOption(jnp.array(1.0))


# --- signatures ---------------------------------------------------------------------------------------------------


def test_the_signature_of_a_class_shows_its_options():
    assert list(inspect.signature(lux.Dense).parameters)[:3] == ["in_features", "out_features", "activation"]
    assert str(inspect.signature(lux.Chain)).startswith("(*layers")
    signature = inspect.signature(Options)
    assert str(signature).startswith("(n: int, size: tuple[int, ...] = 1, *, activation: ")
    assert signature.parameters["activation"].kind is inspect.Parameter.KEYWORD_ONLY
    for cls in (lux.Layer, lux.Container, lux.Wrapper):
        assert str(inspect.signature(cls)) == "()"


def test_annotations_say_what_an_option_becomes_and_converters_what_it_takes():
    signature = inspect.signature(lux.Chain)
    assert [p.annotation for p in signature.parameters.values()] == [Any, Any]
    assert "activation: " in str(inspect.signature(Options)) and Options.__init__.__annotations__["size"] is Any
    assert Options.__dataclass_fields__["size"].type == tuple[int, ...]


def test_a_static_layer_is_one_program_for_equal_options():
    traces = []

    @jax.jit
    def run(layer, x):
        traces.append(layer)
        return x * layer.n

    for n in (2, np.int64(2), np.array(2)):
        run(Options(n), jnp.ones(2, int))
    assert len(traces) == 1
