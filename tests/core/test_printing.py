"""The printed model and the summary table, letter by letter."""

import functools
import html
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import lux_sciml as lux


class Twice(lux.Wrapper):
    layer: lux.Layer
    times: int = 2

    def forward(self, x, ps, st):
        return self.layer.forward(x, ps, st)


class Polynomial(lux.Layer):
    """An `__init__` of its own, with positional, starred and keyword-only options."""

    def __init__(self, degree: int, *roots: float, scale: float = 1.0, table: Any = None):
        self.degree, self.roots, self.scale, self.table = degree, roots, scale, table

    def forward(self, x, ps, st):
        return x, st


class Silent(lux.Layer):
    """A layer that cannot make its parameters."""

    activation: Callable = jnp.tanh

    def init_params(self, key):
        raise RuntimeError

    def forward(self, x, ps, st):
        return x, st


def test_a_model():
    model = lux.Chain(lux.Dense(2, 3, jax.nn.relu), lux.BatchNorm(3), lux.Dense(3, 2))
    assert repr(model) == (
        "Chain(\n"
        "    layer_0 = Dense(2, 3, jax.nn.relu),           # 9 parameters\n"
        "    layer_1 = BatchNorm(3),                       # 6 parameters, plus 7 non-trainable\n"
        "    layer_2 = Dense(3, 2),                        # 8 parameters\n"
        ")         # Total: 23 parameters,\n"
        "          #        plus 7 states."
    )
    assert str(model) == repr(model)


def test_equal_siblings_collapse_and_thousands_are_marked():
    model = lux.Chain(*[lux.Dense(2, 2)] * 3, jnp.tanh, lux.Dense(2, 100, use_bias=False), lux.Dense(100, 100))
    assert repr(model) == (
        "Chain(\n"
        '    **{f"layer_{i}": Dense(2, 2) for i in range(3)},  # 18 (6 x 3) parameters\n'
        "    layer_3 = Lambda(jnp.tanh),\n"
        "    layer_4 = Dense(2, 100, use_bias=False),      # 200 parameters\n"
        "    layer_5 = Dense(100, 100),                    # 10_100 parameters\n"
        ")         # Total: 10_318 parameters."
    )


def test_only_siblings_in_sequence_collapse():
    named = repr(lux.Chain(a=lux.Dense(1, 1), b=lux.Dense(1, 1), c1=lux.Dense(1, 1), c3=lux.Dense(1, 1)))
    assert [line.split(" = ")[0].strip() for line in named.splitlines()[1:-1]] == ["a", "b", "c1", "c3"]
    norms = repr(lux.Chain(jnp.sin, *[lux.BatchNorm(3)] * 3, lux.BatchNorm(3, momentum=0.2)))
    line = '    **{f"layer_{i}": BatchNorm(3) for i in range(1, 4)},  # 18 (6 x 3) parameters, plus 21 non-trainable'
    assert norms.splitlines()[2] == line and "layer_4 = BatchNorm(3, momentum=0.2)" in norms
    two = repr(lux.Chain(lux.Dense(1, 1), lux.Dense(1, 1)))
    assert "layer_0 = Dense(1, 1)" in two and "layer_1 = Dense(1, 1)" in two


def test_containers_inside_and_their_options():
    model = lux.Chain(
        a=lux.SkipConnection(lux.Chain(lux.Dense(2, 2), jnp.tanh), jnp.add),
        b=lux.Parallel(None, lux.Dense(2, 1), lux.Dropout(0.5)),
    )
    assert repr(model) == (
        "Chain(\n"
        "    a = SkipConnection(\n"
        "        connection = jnp.add,\n"
        "        layer = Chain(\n"
        "            layer_0 = Dense(2, 2),                # 6 parameters\n"
        "            layer_1 = Lambda(jnp.tanh),\n"
        "        ),\n"
        "    ),\n"
        "    b = Parallel(\n"
        "        connection = None,\n"
        "        layer_0 = Dense(2, 1),                    # 3 parameters\n"
        "        layer_1 = Dropout(0.5),                   # 2 non-trainable\n"
        "    ),\n"
        ")         # Total: 9 parameters,\n"
        "          #        plus 2 states."
    )


def test_wrappers():
    assert repr(Twice(lux.Chain(lux.Dense(2, 2)), times=3)) == (
        "Twice(\n"
        "    times = 3,\n"
        "    layer = Chain(\n"
        "        layer_0 = Dense(2, 2),                    # 6 parameters\n"
        "    ),\n"
        ")         # Total: 6 parameters."
    )


SINGLE = [
    (lux.Dense(3, 1), "Dense(3, 1)                  # 4 parameters"),
    (lux.Dense(3, 1, jnp.tanh, use_bias=False), "Dense(3, 1, jnp.tanh, use_bias=False)  # 3 parameters"),
    (lux.Dense(3, 1, use_bias=True), "Dense(3, 1)                  # 4 parameters"),
    (
        lux.Dense(1, 1, init_weight=lux.initializers.zeros, init_bias=lux.initializers.Uniform(0.5)),
        "Dense(1, 1, init_weight=initializers.zeros, init_bias=initializers.Uniform(0.5))  # 2 parameters",
    ),
    (lux.BatchNorm(3, affine=False), "BatchNorm(3, affine=False)   # 7 non-trainable"),
    (
        lux.BatchNorm(3, jax.nn.relu, epsilon=1e-3, momentum=0.2, track_stats=False),
        "BatchNorm(3, jax.nn.relu, epsilon=0.001, track_stats=False, momentum=0.2)  # 6 parameters",
    ),
    (lux.Dropout(0.5), "Dropout(0.5)                 # 2 non-trainable"),
    (lux.Dropout(0.5, axes=-1), "Dropout(0.5, -1)             # 2 non-trainable"),
    (lux.Lambda(functools.partial(jnp.sum, axis=-1)), "Lambda(partial(jnp.sum, axis=-1))"),
    (lux.Lambda(lambda x: x), "Lambda(<lambda>)"),
    (lux.Chain(), "Chain()"),
    (Polynomial(2, 1.0, 3.0, scale=2.0), "Polynomial(2, 1.0, 3.0, scale=2.0)"),
    (Polynomial(2, scale=1, table=[1, ["a"]]), "Polynomial(2, scale=1, table=(1, ('a',)))"),
    (Polynomial(2, table=lux.Constant([[1.0, 2.0]])), "Polynomial(2, table=Constant([[1.0, 2.0]]))"),
    (Silent(), "Silent()"),
]


@pytest.mark.parametrize(("layer", "text"), SINGLE, ids=[text.split("  ")[0] for _, text in SINGLE])
def test_a_layer_prints_the_options_that_are_not_defaults(layer, text):
    assert repr(layer) == text


def test_what_is_printed_is_python():
    layers = [layer for layer, text in SINGLE if "<" not in text and "Constant" not in text]
    layers.append(lux.Chain(lux.Dense(2, 3, jnp.tanh), lux.BatchNorm(3)))
    layers.append(lux.Parallel(None, a=lux.Dense(1, 1), b=lux.Chain()))
    names = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sum": jnp.sum, "partial": functools.partial}
    names |= {"Polynomial": Polynomial, "Silent": Silent} | vars(lux.initializers) | vars(lux)
    for layer in layers:
        assert eval(repr(layer), names) == layer


# --- the table ----------------------------------------------------------------------------------------------------


def test_summary():
    model = lux.Chain(lux.Dense(2, 30, jnp.tanh), Twice(lux.Chain(drop=lux.Dropout(0.5))), lux.Dense(30, 100))
    assert lux.summary(model, jax.ShapeDtypeStruct((8, 2), jnp.float32), dtype="float32") == (
        "path          layer               input          output          parameters   bytes\n"
        "-----------------------------------------------------------------------------------\n"
        "              Chain               float32[8,2]   float32[8,100]       3_190  12_760\n"
        "layer_0       Dense(2, 30, tanh)  float32[8,2]   float32[8,30]           90     360\n"
        "layer_1       Twice               float32[8,30]  float32[8,30]            0       0\n"
        "layer_1       Chain               float32[8,30]  float32[8,30]            0       0\n"
        "layer_1.drop  Dropout(0.5)        float32[8,30]  float32[8,30]            0       0\n"
        "layer_2       Dense(30, 100)      float32[8,30]  float32[8,100]       3_100  12_400\n"
        "-----------------------------------------------------------------------------------\n"
        "total: 3_190 parameters (12_760 bytes), 2 states"
    )


def test_summary_in_double_precision_with_several_inputs():
    model = lux.Parallel(None, lux.Dense(2, 1), jnp.sin)
    assert lux.summary(model, (jnp.ones((8, 2)), jnp.ones(3))) == (
        "path     layer        input                       output                      parameters  bytes\n"
        "-----------------------------------------------------------------------------------------------\n"
        "         Parallel     (float64[8,2], float64[3])  (float64[8,1], float64[3])           3     24\n"
        "layer_0  Dense(2, 1)  float64[8,2]                float64[8,1]                         3     24\n"
        "layer_1  Lambda(sin)  float64[3]                  float64[3]                           0      0\n"
        "-----------------------------------------------------------------------------------------------\n"
        "total: 3 parameters (24 bytes), 0 states"
    )


def test_summary_computes_nothing():
    assert "[1000000,1000000]" in lux.summary(lux.Dense(2, 10**6), jax.ShapeDtypeStruct((10**6, 2), jnp.float64))


# --- notebooks and editors ----------------------------------------------------------------------------------------


def test_children_complete():
    model = lux.Chain(encoder=lux.Chain(lux.Dense(2, 3)), head=lux.Dense(3, 1))
    assert {"encoder", "head", "replace", "layers"} <= set(dir(model))
    assert model._ipython_key_completions_() == ["encoder", "head"]
    assert dir(model.encoder).count("layer_0") == 1


def test_models_in_notebooks():
    model = lux.Chain(lux.Dense(2, 3), lambda x: x)
    shown = model._repr_html_()
    assert shown == f"<pre>{html.escape(repr(model))}</pre>" and "&lt;lambda&gt;" in shown
    deep = lux.Chain(*(lux.Dense(2, 2, use_bias=i % 2 == 0) for i in range(30)))
    shown = deep._repr_html_()
    assert shown.startswith("<details><summary><code>Chain</code> 150 parameters</summary><pre>Chain(")
    assert html.escape(repr(deep)) in shown


def test_summaries_in_notebooks():
    table = lux.summary(lux.Chain(lux.Dense(2, 3), lambda x: x), jnp.ones((8, 2)))
    assert repr(table) == str(table) and isinstance(table, str)
    shown = table._repr_html_()
    assert shown.count("<tr>") == 4 and "<th>parameters</th>" in shown and "<td>Lambda(&lt;lambda&gt;)</td>" in shown
    assert "total: 9 parameters (72 bytes), 0 states" in shown
