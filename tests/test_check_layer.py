"""The harness: sound layers pass, and each broken property is caught by its own sentence."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lux_sciml as lux
from lux_sciml.testing import check_layer, require_slope, require_test_mode

X = jax.random.normal(jax.random.key(1), (4, 3), jnp.float32)
INTEGERS = {"dtypes": ("int32", "uint8", "bool")}


class Sound(lux.Layer):
    """`y = sin(x * weight) + bias`, and a counter in the state: the layer that the broken ones break."""

    def init_params(self, key):
        return {"weight": jax.random.normal(key, (3,)), "bias": jnp.ones(3)}

    def init_state(self, key):
        return {"count": jnp.zeros((), jnp.int32), "mean": jnp.zeros(3), "mode": lux.Mode.TRAIN}

    def value(self, x, ps):
        return jnp.sin(x * ps["weight"]) + ps["bias"]

    def forward(self, x, ps, st):
        if st["mode"] is lux.Mode.TRAIN:
            st = {**st, "count": st["count"] + 1}
        return self.value(x, ps), st


# --- values -------------------------------------------------------------------------------------------------------


class BadRepr(Sound):
    def __repr__(self):
        raise RuntimeError("no words")


class FreshClosure(Sound):
    def __post_init__(self):
        self.function = lambda x: x


class Unprincipled:
    """An option that compares by identity."""


class ByIdentity(Sound):
    option: Any = Unprincipled()


# --- setup --------------------------------------------------------------------------------------------------------


class UnseededParameters(Sound):
    def init_params(self, key):
        return {"weight": jnp.asarray(np.random.default_rng().normal(size=3)), "bias": jnp.ones(3)}


class UnseededState(Sound):
    def init_state(self, key):
        return {"count": jnp.asarray(np.random.default_rng().integers(10**6)), "mode": lux.Mode.TRAIN}


class TwoSizes(Sound):
    def init_params(self, key):
        return super().init_params(key) | ({} if isinstance(key, jax.core.Tracer) else {"more": jnp.ones(2)})


# --- purity and state ---------------------------------------------------------------------------------------------


class MovesState(Sound):
    def forward(self, x, ps, st):
        st["count"] = st["count"] + 1
        return self.value(x, ps), st


class Impure(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps) + np.random.default_rng().normal(), st


class ImpureState(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "mean": st["mean"] + np.random.default_rng().normal()}


class DropsState(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {"count": st["count"], "mode": st["mode"]}


class AddsState(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "extra": jnp.zeros(2)}


class GrowsState(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "mean": jnp.zeros(4)}


class CountsInFloats(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "count": st["count"].astype(float) + 1.0}


class SwitchesMode(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "mode": lux.Mode.TEST}


class CountsInTest(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "count": st["count"] + 1}


class WeakState(Sound):
    """Its state comes out weakly typed, as a Python number is, and the next call compiles anew."""

    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "mean": lax.broadcast(jnp.sin(2.0), (3,))}


# --- dtypes, trees, transforms ------------------------------------------------------------------------------------


class Promotes(Sound):
    def value(self, x, ps):
        return super().value(x, ps).astype(jnp.float64)


class KeepsSingleState(Sound):
    def forward(self, x, ps, st):
        return self.value(x, ps), {**st, "mean": jnp.zeros(3, jnp.float64)}


class Underflows(Sound):
    def value(self, x, ps):
        tiny = jnp.asarray(1e-60, x.dtype)
        return super().value(x, ps) * (tiny / tiny)


class ByPosition(Sound):
    def value(self, x, ps):
        weight, bias = ps.values()
        return jnp.sin(x * weight) + bias


class PrefersDicts(Sound):
    def __call__(self, x, ps, st):
        y, st = super().__call__(x, ps, st)
        return (y if isinstance(ps, dict) else 2 * y), st


class StopsDicts(Sound):
    def __call__(self, x, ps, st):
        return super().__call__(x, lax.stop_gradient(ps) if isinstance(ps, dict) else ps, st)


class Branches(Sound):
    def value(self, x, ps):
        return super().value(x, ps) if x[0, 0] > 100 else x * ps["weight"]


class JitOnly(Sound):
    def value(self, x, ps):
        return super().value(x, ps) + (1e-6 if isinstance(x, jax.core.Tracer) else 0.0)


class NoVmap(Sound):
    def value(self, x, ps):
        y = super().value(x, ps)
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(y.shape, y.dtype), y)


@jax.custom_batching.custom_vmap
def wrong_vmap(x):
    return x


@wrong_vmap.def_vmap
def _(size, batched, x):
    return 1.001 * x, True


class WrongVmap(Sound):
    def value(self, x, ps):
        return wrong_vmap(super().value(x, ps))


class MixesSamples(Sound):
    def value(self, x, ps):
        return super().value(x, ps) - jnp.mean(x, 0)


class SumsBatch(Sound):
    def value(self, x, ps):
        return jnp.sum(super().value(x, ps))


# --- derivatives --------------------------------------------------------------------------------------------------


@jax.custom_jvp
def wrong_jvp(x):
    return x**3


@wrong_jvp.defjvp
def _(primals, tangents):
    return primals[0] ** 3, 3.01 * primals[0] ** 2 * tangents[0]


def custom(backward: Callable) -> Callable:
    """x**3 with the given derivative in reverse mode."""
    f = jax.custom_vjp(lambda x: x**3)
    f.defvjp(lambda x: (x**3, x), lambda x, g: (backward(x) * g,))
    return f


wrong_vjp = custom(lambda x: 3.01 * x**2)
right_vjp = custom(lambda x: 3 * x**2)
first_order_only = custom(lambda x: lax.stop_gradient(3 * x**2))


class OnWeight(Sound):
    function: Callable

    def value(self, x, ps):
        return jnp.sin(x) * self.function(ps["weight"]) + ps["bias"]


class OnSecondInput(Sound):
    function: Callable

    def value(self, x, ps):
        return super().value(x[0], ps) * self.function(x[1])


class DynamicLoop(Sound):
    def forward(self, x, ps, st):
        return lax.fori_loop(0, st["count"] + 2, lambda i, y: jnp.sin(y), self.value(x, ps)), st


# --- printing, half precision, integers, no samples ----------------------------------------------------------------


class Forgetful(Sound):
    """Its `__init__` takes what it does not keep."""

    def __init__(self, half):
        self.size = 2 * half


class PrintsAnother(Forgetful):
    def init_arguments(self):
        return {"half": self.size}


class RoundsEarly(Sound):
    def value(self, x, ps):
        return super().value(x, ps) + lax.fori_loop(0, 3000, lambda _, total: total + total.dtype.type(1e-3), 0 * x)


class InTheTypeOfTheInput(Sound):
    def value(self, x, ps):
        return (x * jnp.asarray(2.5, x.dtype)).astype(ps["weight"].dtype) + ps["weight"]


class RefusesIntegers(Sound):
    def value(self, x, ps):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError("no integers")
        return super().value(x, ps)


class TakesIntegers(Sound):
    def value(self, x, ps):
        return super().value(x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float), ps)


class NeedsSamples(Sound):
    def value(self, x, ps):
        return super().value(x, ps) + 0 * (1 / len(x))


class AddsASample(Sound):
    def value(self, x, ps):
        return super().value(jnp.concatenate([x, x[:1]]) if len(x) else jnp.ones((1, 3)), ps)[: max(len(x), 1)]


class Regularizes(Sound):
    def value(self, x, ps):
        return right_vjp_of_nothing(super().value(x, ps), ps["weight"])


@jax.custom_vjp
def right_vjp_of_nothing(y, weight):
    return y + 0 * weight


right_vjp_of_nothing.defvjp(lambda y, w: (y + 0 * w, w), lambda w, g: (g, w + jnp.sum(g, 0)))

NEW = [
    (Forgetful(1), "what the layer prints does not make it again: TypeError: .*half", {"printed": True}),
    (PrintsAnother(1), r"what the layer prints makes another layer: PrintsAnother\(4\)", {"printed": True}),
    (RoundsEarly(), "in bfloat16 the layer differs from float32 at `y` by", {"dtypes": ("bfloat16",)}),
    (InTheTypeOfTheInput(), "inputs in int32 differ from the same values in floating point at `y`", INTEGERS),
    (RefusesIntegers(), "a call with inputs in int32 raises ValueError", INTEGERS),
    (NeedsSamples(), "a batch without samples raises ZeroDivisionError", {"empty": True}),
    (AddsASample(), r"without samples `y` has the shape \[1, 3\], not \[0, 3\]", {"empty": True}),
    (Regularizes(), r"without samples the gradient by `ps\.weight` is not zero", {"empty": True}),
]
BROKEN = [
    *((layer, sentence, {"derivatives": (), **options}) for layer, sentence, options in NEW),
    (BadRepr(), "repr raises RuntimeError: no words", {}),
    (FreshClosure(), "rebuilt from its fields, is not equal to it.*the field function does not compare by value", {}),
    (ByIdentity(), "pickled, is not equal to it.*the field option does not compare by value", {}),
    (UnseededParameters(), r"two setups with the same key differ at `ps\.weight` by", {}),
    (UnseededState(), r"two setups with the same key differ at `st\.count` by", {}),
    (TwoSizes(), "parameter_length says 6, but setup makes 8 parameters", {}),
    (MovesState(), r"not pure: the call changes its argument at `st\.count` by 1", {}),
    (Impure(), "not pure: two calls with the same arguments differ at `y` by", {}),
    (ImpureState(), r"not pure: two calls with the same arguments differ at `st\.mean` by", {}),
    (DropsState(), r"the state loses `st\.mean` in a call", {}),
    (AddsState(), r"the state gains `st\.extra` in a call", {}),
    (GrowsState(), r"`st\.mean` goes in as float64\[3\] and comes out as float64\[4\]", {}),
    (CountsInFloats(), r"`st\.count` goes in as int32\[\] and comes out as float64\[\]", {}),
    (SwitchesMode(), r"`st\.mode` goes in as Mode\.TRAIN and comes out as Mode\.TEST", {}),
    (CountsInTest(), r"in TEST mode a second call differs from the first one at `st\.count` by 1", {}),
    (WeakState(), "a second call.*traces again", {}),
    (Promotes(), "`y` is float64, where parameters and inputs are float32", {}),
    (KeepsSingleState(), r"`st\.mean` goes in as float32\[3\] and comes out as float64\[3\]", {}),
    (Underflows(), "`y` is not finite in float32", {}),
    (ByPosition(), "the order of the dict of parameters matters at `y` by", {}),
    (PrefersDicts(), "the flat vector and the nested dict of parameters differ at `y` by", {}),
    (StopsDicts(), "the gradients by the flat vector and by the nested dict differ at `ps` by", {}),
    (Branches(), "jax.jit raises TracerBoolConversionError", {}),
    (JitOnly(), "jax.jit changes the output at `y` by 1e-06", {}),
    (NoVmap(), "jax.vmap raises NotImplementedError", {"derivatives": ()}),
    (WrongVmap(), "jax.vmap over two inputs differs from a loop at `y` by", {"batch_axis": None}),
    (MixesSamples(), "the batch differs from jax.vmap over its samples .*batch_axis=None.* at `y` by", {}),
    (SumsBatch(), r"no batch along axis 0 \(sizes: `y` 0\); pass batch_axis=None", {}),
    (OnWeight(wrong_jvp), r"the forward-mode derivative along `ps\.weight` is .*, where finite differences give", {}),
    (OnWeight(wrong_vjp), r"the reverse-mode derivative along `ps\.weight` is", {"derivatives": ("reverse",)}),
    (OnWeight(first_order_only), r"second-order derivative along `ps\.weight`", {"derivatives": ("reverse", "second")}),
    (OnWeight(right_vjp), r"differentiation \(derivatives=\.\.\. .* raises TypeError: can't apply forward-mode", {}),
    (OnSecondInput(wrong_jvp), r"the forward-mode derivative along `x\.1` is", {}),
    (DynamicLoop(), r"differentiation .* raises ValueError: Reverse-mode", {}),
]


@pytest.mark.parametrize(("layer", "sentence", "options"), BROKEN, ids=lambda value: type(value).__name__)
def test_each_broken_property_is_caught(layer, sentence, options):
    x = (X, X + 1) if isinstance(layer, OnSecondInput) else X
    with pytest.raises(AssertionError) as caught:
        check_layer(layer, x, **options)
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (Sound(), {}),
        (Sound(), {"mode": lux.Mode.TEST, "key": jax.random.PRNGKey(3)}),
        (MixesSamples(), {"batch_axis": None}),
        (SumsBatch(), {"batch_axis": None}),
        (OnWeight(right_vjp), {"derivatives": ("reverse", "second")}),
        (OnWeight(first_order_only), {"derivatives": ("reverse",)}),
        (DynamicLoop(), {"derivatives": ("forward",)}),
        (Promotes(), {"dtypes": ("float64",)}),
        (Sound(), {"empty": True, "printed": True}),
        (TakesIntegers(), {"dtypes": ("bfloat16", "float16", "int32", "uint8", "bool")}),
        (
            lux.Chain(lux.Dense(3, 4, jnp.tanh), *[lux.Dense(4, 4)] * 4),
            {"printed": True, "empty": True},
        ),
        (lux.Chain(lambda x: x, OnWeight(right_vjp)), {"printed": True, "derivatives": ()}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sound_layers_pass(layer, options):
    check_layer(layer, X, **options)


def test_a_wrong_derivative_with_respect_to_an_input_may_be_left_out():
    check_layer(OnSecondInput(wrong_jvp), (X, X + 1), differentiable_input=False)


class Gather(lux.Layer):
    """Rows of a table by integers, times complex numbers."""

    def init_params(self, key):
        return {"table": jax.random.normal(key, (5, 2))}

    def forward(self, x, ps, st):
        rows = ps["table"][x["rows"]]
        return {"y": rows.astype(x["phase"].dtype) * x["phase"][:, None] ** 2}, st


def test_inputs_may_be_trees_of_integers_floats_and_complex_numbers():
    check_layer(Gather(), {"rows": jnp.array([0, 3, 3, 1]), "phase": lax.complex(X[:, 0], X[:, 1])})


class Oscillator(lux.Layer):
    def init_params(self, key):
        return {"frequency": jnp.ones(())}

    def forward(self, u, ps, st):
        return lux.ComponentVector(x=u.v, v=-(ps["frequency"] ** 2) * u.x), st


def test_inputs_and_outputs_may_be_component_vectors():
    check_layer(Oscillator(), lux.ComponentVector(x=1.0, v=0.5), batch_axis=None)


@pytest.mark.parametrize("got", [np.inf, -np.inf, np.nan, 1.0 + 2e-5])
def test_a_derivative_is_wrong_where_it_is_infinite_or_beyond_the_tolerance(got):
    with pytest.raises(AssertionError, match=r"along `x` is .*, where finite differences give 1"):
        require_slope("forward-mode", got, 1.0, "x", rtol=1e-5, value=0.0)
    require_slope("forward-mode", 1.0 + 0.9e-5, 1.0, "x", rtol=1e-5, value=0.0)


def test_it_needs_no_64_bit_switch_and_leaves_it_alone():
    with jax.enable_x64(False):
        check_layer(lux.Dense(3, 2, jnp.tanh), X)
        assert jnp.ones(1).dtype == jnp.float32


def test_test_mode_alone():
    ps, st = lux.setup(jax.random.key(0), CountsInTest())
    with pytest.raises(AssertionError, match=r"in TEST mode a second call differs from the first one at `st\.count`"):
        require_test_mode(CountsInTest(), X.astype(float), ps, st)
    require_test_mode(Sound(), X.astype(float), ps, st)


def test_no_samples_need_a_batch():
    with pytest.raises(ValueError, match="empty=True checks a batch without samples, and needs batch_axis"):
        check_layer(Sound(), X, empty=True, batch_axis=None)


def test_unknown_derivatives_are_refused():
    with pytest.raises(ValueError, match="derivatives are 'forward', 'reverse' and 'second', got third"):
        check_layer(Sound(), X, derivatives=("third",))
