"""Containers and wrappers: children, their names, and how they are reached."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.core.converters import dict_of, tuple_of

A, B, C = lux.Dense(2, 3), lux.Dense(3, 4), lux.Dense(4, 2)
X = np.linspace(-1, 1, 10).reshape(5, 2)


class Pair(lux.Container):
    left: lux.Layer
    right: lux.Layer
    join: Callable = jnp.add

    def forward(self, x, ps, st):
        (a, b), st = self.run(ps, st, left=x, right=x)
        return self.join(a, b), st


class Net(lux.Container):
    encoder: lux.Layer
    layers: tuple[lux.Layer, ...] = lux.field(converter=tuple_of(lux.as_layer))
    blocks: tuple[lux.Layer, ...] = lux.field(converter=tuple_of(lux.as_layer))
    heads: Mapping[str, lux.Layer] = lux.field(converter=dict_of(lux.as_layer))

    def forward(self, x, ps, st):
        return x, st


class Twice(lux.Wrapper):
    layer: lux.Layer
    times: int = 2

    def forward(self, x, ps, st):
        for _ in range(self.times):
            x, st = self.layer.forward(x, ps, st)
        return x, st


def call(layer, x, key=0):
    ps, st = lux.setup(jax.random.key(key), layer)
    return layer(x, ps, st)[0]


# --- children -----------------------------------------------------------------------------------------------------


def test_children_are_named_by_fields_tuples_and_dicts():
    net = Net(A, [A, B], [B], {"mean": C, "variance": C})
    assert list(net.children) == ["encoder", "layer_0", "layer_1", "blocks_0", "mean", "variance"]
    ps, st = lux.setup(jax.random.key(0), net)
    assert list(ps.keys()) == list(st) == list(net.children)


def test_functions_become_lambdas_where_layers_are_declared():
    net = Net(jnp.tanh, [A, jnp.sin], [], {"f": jnp.cos})
    assert net.encoder == lux.Lambda(jnp.tanh) and net.layer_1 == lux.Lambda(jnp.sin) and net.f == lux.Lambda(jnp.cos)
    assert Pair(A, jnp.tanh, jnp.multiply).join is jnp.multiply
    with pytest.raises(TypeError, match="expected a layer or a function, got 3"):
        Pair(A, 3)
    with pytest.raises(TypeError, match=r"^layer_1: expected a layer or a function, got 3"):
        lux.Chain(A, 3)
    with pytest.raises(TypeError, match=r"^decoder: expected a layer or a function, got 'tanh'"):
        lux.Chain(encoder=A, decoder="tanh")


def test_names_must_be_unique_and_not_reserved():
    with pytest.raises(ValueError, match="Net has two children of the name 'layer_0'"):
        Net(A, [A], [], {"layer_0": B})
    with pytest.raises(ValueError, match=r"'tree' is a method or property of ComponentVector; .* such as 'tree_'"):
        lux.Chain(tree=A)


def test_chain_takes_layers_by_position_in_a_list_or_by_name():
    assert lux.Chain(A, B) == lux.Chain([A, B]) == lux.Chain((A, B)) == lux.Chain(layer_0=A, layer_1=B)
    assert lux.Chain(A, B) != lux.Chain(B, A) and lux.Chain(a=A, b=A) != lux.Chain(b=A, a=A)
    with pytest.raises(TypeError, match="either by position or by name, not both"):
        lux.Chain(A, b=B)


def test_children_by_name_position_and_slice():
    chain = lux.Chain(A, B, C)
    assert chain[0] is chain.layer_0 is chain["layer_0"] and chain[-1] == C
    assert len(chain) == 3 and list(chain) == [A, B, C]
    assert chain[1:] == lux.Chain(layer_1=B, layer_2=C) and chain[:0] == lux.Chain()
    assert bool(lux.Chain())
    with pytest.raises(
        AttributeError, match="Chain has no field or child 'layer_9'; its children: layer_0, layer_1, layer_2"
    ):
        _ = chain.layer_9
    with pytest.raises(KeyError, match="Chain has no child 'layer_9'; its children: layer_0"):
        chain["layer_9"]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"Chain has 3 children, got the index {index}"):
            chain[index]


def test_a_slice_runs_on_its_part_of_the_parameters():
    chain = lux.Chain(A, jnp.tanh, B)
    ps, st = lux.setup(jax.random.key(0), chain)
    names = list(chain[:2].children)
    y, _ = chain[:2](X, ps.select(*names), {name: st[name] for name in names})
    assert np.allclose(y, np.tanh(X @ np.asarray(ps.layer_0.weight) + np.asarray(ps.layer_0.bias)))


def test_slices_of_other_containers():
    assert lux.Parallel(jnp.add, A, A, A)[:2] == lux.Parallel(jnp.add, A, A)
    for container in (Pair(A, A), lux.Parallel(lux.Chain(), A, A)):
        with pytest.raises(TypeError, match="cannot be sliced: it is more than a sequence of layers"):
            container[:1]


def test_replace_children_keeps_names_and_fields():
    net = Net(A, [A, B], [B], {"mean": C})
    other = net.replace_children({name: lux.Chain() for name in net.children})
    assert list(other.children) == list(net.children) and set(other) == {lux.Chain()}
    assert net.replace_children(net.children) == net


def test_replace_takes_children_by_name():
    chain = lux.Chain(a=A, b=B)
    assert chain.replace(b=jnp.tanh) == lux.Chain(a=A, b=jnp.tanh)
    assert chain.replace(layers={"c": C}) == lux.Chain(c=C)
    assert lux.Parallel(jnp.add, A, B).replace(connection=None, layer_1=C) == lux.Parallel(None, A, C)
    with pytest.raises(TypeError, match="Chain has no field or child c; it has layers; its children: a, b"):
        chain.replace(c=C)


def test_containers_hand_on_state():
    model = lux.Chain(a=lux.Chain(drop=lux.Dropout(0.5)), b=Pair(lux.Dropout(0.5), jnp.tanh))
    ps, st = lux.setup(jax.random.key(0), model)
    assert jax.tree.structure(st) == jax.tree.structure(model(X, ps, st)[1])
    assert list(st["b"]) == ["left", "right"] and st["b"]["right"] == {}
    st_next = model(X, ps, st)[1]
    assert st_next["a"]["drop"]["key"] != st["a"]["drop"]["key"] != st_next["b"]["left"]["key"]


# --- wrappers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [lambda layer: layer, lambda layer: jax.jit(layer.__call__)], ids=["plain", "jit"])
def test_errors_name_the_layer_by_its_path(key, call):
    inner = lux.Chain(jnp.sin, lux.Stack(lux.Dense(4, 4), 2))
    for model in (lux.Chain(lux.Dense(2, 3), inner), lux.Chain(lux.Dense(2, 3), lux.StackedCells(inner))):
        path = "layer_1.layer_1" if model[1] is inner else "layer_1.layer_0.layer_1"
        with pytest.raises(ValueError, match=r"\(\.\.\., 4\), got \(5, 3\)") as caught:
            call(model)(jnp.ones((5, 2)), *lux.setup(key, model))
        assert f"in the layer `{path}`, Stack(Dense(4, 4), 2)" in caught.value.__notes__


def test_a_wrapper_adds_no_name():
    wrapper = Twice(lux.Dense(2, 2))
    ps, st = lux.setup(jax.random.key(0), wrapper)
    assert list(ps.keys()) == ["weight", "bias"] and st == {}
    inner, _ = lux.setup(jax.random.key(0), lux.Dense(2, 2))
    assert ps.equals(inner)
    weight, bias = map(np.asarray, ps.unpack("weight", "bias"))
    assert np.allclose(wrapper(X, ps, st)[0], (X @ weight + bias) @ weight + bias)


def test_a_wrapper_has_exactly_one_child():
    assert Twice(A).child is A and Twice(A).child_field == "layer"
    assert Twice(jnp.sin).child == lux.Lambda(jnp.sin)
    assert Twice(A).replace_child(B) == Twice(B)

    class Double(lux.Wrapper):
        first: lux.Layer
        second: lux.Layer

        def forward(self, x, ps, st):
            return x, st

    with pytest.raises(TypeError, match="Double wraps exactly one layer, got 2: first, second"):
        Double(A, B)
    with pytest.raises(TypeError, match=r"^Twice\.layer: expected a layer or a function, got None"):
        Twice(None)

    class Nothing(lux.Wrapper):
        def forward(self, x, ps, st):
            return x, st

    with pytest.raises(TypeError, match="Nothing wraps exactly one layer, got 0: none"):
        Nothing()


def test_a_wrapper_of_a_container_reaches_its_parameters():
    ps, _ = lux.setup(jax.random.key(0), lux.Chain(Twice(lux.Chain(lux.Dense(2, 2)))))
    assert [leaf.path for leaf in ps.layout.leaves] == [
        ("layer_0", "layer_0", "weight"),
        ("layer_0", "layer_0", "bias"),
    ]


# --- what the containers compute ----------------------------------------------------------------------------------


def affine(ps, x):
    return x @ np.asarray(ps.weight) + np.asarray(ps.bias)


def test_chain():
    model = lux.Chain(lambda x: x**3, lux.Dense(2, 3, jnp.tanh), lux.Dense(3, 2))
    ps, st = lux.setup(jax.random.key(0), model)
    assert np.allclose(model(X, ps, st)[0], affine(ps.layer_2, np.tanh(affine(ps.layer_1, X**3))), atol=1e-14)
    assert np.array_equal(call(lux.Chain(), X), X)


def test_skip_connection():
    model = lux.SkipConnection(lux.Dense(2, 2), jnp.subtract)
    ps, st = lux.setup(jax.random.key(0), model)
    assert np.allclose(model(X, ps, st)[0], affine(ps.layer, X) - X, atol=1e-14)
    assert np.array_equal(call(lux.SkipConnection(lambda x: 2 * x, jnp.subtract), X), X)


def test_skip_connection_by_a_layer():
    model = lux.SkipConnection(lux.Dense(2, 2), lux.Parallel(jnp.add, lux.Dense(2, 3), lux.Dense(2, 3)))
    ps, st = lux.setup(jax.random.key(0), model)
    join = ps.connection
    expected = affine(join.layer_0, affine(ps.layer, X)) + affine(join.layer_1, X)
    assert np.allclose(model(X, ps, st)[0], expected, atol=1e-14)


def test_parallel():
    model = lux.Parallel(jnp.multiply, a=lux.Dense(2, 3), b=lux.Dense(2, 3))
    ps, st = lux.setup(jax.random.key(0), model)
    assert np.allclose(model(X, ps, st)[0], affine(ps.a, X) * affine(ps.b, X), atol=1e-14)
    assert np.allclose(model((X, 2 * X), ps, st)[0], affine(ps.a, X) * affine(ps.b, 2 * X), atol=1e-14)
    with pytest.raises(ValueError, match="Parallel has 2 layers, got a tuple of 3 inputs"):
        model((X, X, X), ps, st)


def test_parallel_without_a_connection_and_with_a_layer():
    y = call(lux.Parallel(None, lambda x: x, lambda x: -x, jnp.sin), X)
    assert type(y) is tuple and all(map(np.allclose, y, (X, -X, np.sin(X))))
    assert np.allclose(
        call(lux.Parallel(lux.Lambda(lambda ys: ys[0] - ys[1]), lambda x: x, lambda x: 3 * x), X), -2 * X
    )


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (lux.Chain(), X),
        (Pair(A, jnp.sin, lambda a, b: a[..., :2] * b), X),
        (Twice(lux.Dense(2, 2, jnp.tanh), times=3), X),
    ],
    ids=lambda value: type(value).__name__,
)
def test_own_containers_keep_the_contract(model, x):
    lux.testing.check_layer(model, x)


# --- side by side, by pairs, the largest, another precision ---------------------------------------------------------

PAIR = lux.Chain(lambda pair: jnp.concatenate(pair, -1), lux.Dense(6, 3))


def test_branches_all_get_the_input(key):
    for connection in (None, jnp.multiply):
        layer = lux.BranchLayer(lux.Dense(2, 3), lux.Dense(2, 3, jnp.tanh), connection=connection)
        ps, st = lux.setup(key, layer)
        ys = tuple(layer[i](X, ps[f"layer_{i}"], {})[0] for i in range(2))
        y, _ = layer(X, ps, st)
        assert np.array_equal(y, jnp.multiply(*ys)) if connection else all(map(np.array_equal, y, ys))
    layer = lux.BranchLayer(lux.Dense(2, 3), lux.Dense(2, 3), connection=PAIR)
    assert list(layer.children) == ["layer_0", "layer_1", "connection"] and call(layer, X).shape == (5, 3)
    swap = lux.BranchLayer(lambda pair: pair[1], lambda pair: pair[0])
    assert call(swap, (1.0, 2.0)) == (2.0, 1.0)


def test_pairwise_fusion_takes_in_one_input_after_each_layer(key):
    layer = lux.PairwiseFusion(jnp.subtract, lux.Dense(2, 3), lux.Dense(3, 3, jnp.tanh))
    ps, st = lux.setup(key, layer)
    inputs = (X, np.ones((5, 3)), np.full((5, 3), 2.0))
    first = layer[0](X, ps.layer_0, {})[0] - inputs[1]
    assert np.allclose(layer(inputs, ps, st)[0], layer[1](first, ps.layer_1, {})[0] - inputs[2], atol=1e-14)
    assert call(lux.PairwiseFusion(jnp.add, jnp.negative, jnp.square), 3.0) == 3.0  # (-3 + 3)^2 + 3
    with pytest.raises(ValueError, match="PairwiseFusion of 2 layers takes 3 inputs, got a tuple of 2"):
        layer(inputs[:2], ps, st)


def test_pairwise_fusion_by_a_layer_keeps_its_state():
    layer = lux.PairwiseFusion(
        lux.Chain(lambda pair: pair[0] + pair[1], lux.BatchNorm(2)), lux.Dense(2, 2), lux.Dense(2, 2)
    )
    ps, st = lux.setup(jax.random.key(0), layer)
    y = X
    for i in range(2):
        pair = (layer[1 + i](y, ps[f"layer_{i}"], {})[0], X)
        y, st["connection"] = layer.connection(pair, ps.connection, st["connection"])
    found, found_st = layer(X, ps, lux.setup(jax.random.key(0), layer)[1])
    mean = found_st["connection"]["layer_1"]["running_mean"]
    assert np.allclose(found, y, atol=1e-14) and np.allclose(mean, st["connection"]["layer_1"]["running_mean"])


def test_maxout_takes_the_largest(key):
    layer = lux.Maxout([lux.Dense(2, 3)] * 4)
    ps, st = lux.setup(key, layer)
    ys = [layer[i](X, ps[f"layer_{i}"], {})[0] for i in range(4)]
    assert np.array_equal(layer(X, ps, st)[0], np.max(ys, 0))
    with pytest.raises(ValueError, match="Maxout needs at least one layer"):
        lux.Maxout()


@pytest.mark.slow
def test_alternate_precision_computes_in_it_and_casts_back(key):
    seen = []
    inner = lux.Chain(lux.Dense(2, 3), lambda x: seen.append(x.dtype) or x, lux.BatchNorm(3))
    layer = lux.AlternatePrecision(inner, jnp.bfloat16)
    assert layer == lux.AlternatePrecision(inner, "bfloat16")
    ps, st = lux.setup(key, layer, "float32")
    for state in (st, lux.testmode(st)):
        (y, st_next), gradient = (
            layer(X.astype("float32"), ps, state),
            jax.grad(lambda ps, st=state: layer(X.astype("float32"), ps, st)[0].sum())(ps),
        )
        assert y.dtype == gradient.dtype == st_next["layer_2"]["running_mean"].dtype == jnp.float32
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert np.abs(y - inner(X.astype("float32"), ps, state)[0]).max() < 0.05
    with pytest.raises(TypeError, match="AlternatePrecision needs a floating-point type, got int32"):
        lux.AlternatePrecision(inner, "int32")


def test_maxout_of_trees_and_of_outputs_that_differ_in_shape(key):
    states = [lux.ComponentVector(x=a, v=b) for a, b in ((1.0, -1.0), (-2.0, 3.0))]
    layer = lux.Maxout(
        [lux.Lambda(lambda x, i=i: jax.tree.map(lambda *leaves: jnp.stack(leaves)[i], *x)) for i in range(2)]
    )
    assert layer(states, *lux.setup(key, layer))[0].equals(lux.ComponentVector(x=1.0, v=3.0))
    mixed = lux.Maxout(lux.Dense(2, 3), lux.Dense(2, 1))
    with pytest.raises(ValueError, match=r"Maxout compares outputs of one shape, got f64\[5,3\], f64\[5,1\]"):
        mixed(X, *lux.setup(key, mixed))


def test_alternate_precision_of_vectors_trees_and_integers(key):
    seen = []
    watch = lux.Lambda(lambda z: seen.append(jax.tree.map(jnp.dtype, [z.x.dtype, z.v.dtype])) or z.x * z.v)
    state = lux.ComponentVector(x=jnp.ones(2, "float32"), v=jnp.ones(2, "float32"))
    for x in (state, {"x": state.x, "v": state.v}):
        layer = lux.AlternatePrecision(watch if x is state else lux.Lambda(lambda z: z["x"] * z["v"]), "bfloat16")
        assert layer(x, {}, {})[0].dtype == jnp.float32
    assert seen == [[jnp.dtype("bfloat16")] * 2]
    same = lux.AlternatePrecision(lux.Lambda(lambda z: z), "float16")(state, {}, {})[0]
    assert isinstance(same, lux.ComponentVector) and same.equals(state)
    embedding = lux.AlternatePrecision(lux.Embedding(3, 2), "bfloat16")
    ps, st = lux.setup(key, embedding, "float32")
    assert embedding(jnp.array([0, 2]), ps, st)[0].dtype == jnp.float32
    assert (
        lux.AlternatePrecision(lux.Lambda(lambda i: jnp.sin(i.astype("bfloat16"))), "bfloat16")(jnp.arange(3), {}, {})[
            0
        ].dtype
        == jnp.float64
    )


@pytest.mark.exhaustive
def test_wrong_connections_and_layers_are_refused_by_name():
    dense = lux.Dense(2, 2)
    for make in (
        lambda join: lux.Parallel(join, dense),
        lambda join: lux.SkipConnection(dense, join),
        lambda join: lux.BranchLayer(dense, connection=join),
        lambda join: lux.PairwiseFusion(join, dense),
    ):
        for join in ("add", 3, jnp.ndarray):
            with pytest.raises(TypeError, match=r"\.connection: expected a function such as jnp\.add, or a layer, got"):
                make(join)
    for make in (lux.SkipConnection, lux.PairwiseFusion):
        with pytest.raises(TypeError, match=r"\.connection: expected a function"):
            make(*((dense, None) if make is lux.SkipConnection else (None, dense)))
    for make in (lux.Chain, lux.Maxout, lux.BranchLayer, lambda x: lux.Parallel(None, x)):
        with pytest.raises(TypeError, match="expected a layer or a function, got 3"):
            make(3)
    for dtype in ("int32", jnp.complex64, bool):
        with pytest.raises(TypeError, match=r"AlternatePrecision\.dtype: .*needs a floating-point type, got"):
            lux.AlternatePrecision(dense, dtype)
    with pytest.raises(TypeError, match=r"AlternatePrecision\.dtype: "):
        lux.AlternatePrecision(dense, "half a float")
