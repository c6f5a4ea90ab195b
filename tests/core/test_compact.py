"""@compact: layers from one function, and the stateful layer."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux
from lux_sciml.testing import check_layer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2))


@lux.compact(
    dense=lux.Dense(2, 3, jnp.tanh),
    scale=np.ones(3),
    blocks=[lux.Dense(3, 3), lux.Dense(3, 1)],
    calls=0,
    activation=jnp.sin,
)
def MODEL(self, x):
    self.calls = self.calls + 1
    x = self.scale * self.dense(x)
    for block in self.blocks:
        x = block(self.activation(x))
    return x


def test_parameters_and_state_in_the_order_of_the_call(key):
    ps, st = lux.setup(key, MODEL)
    assert list(ps.keys()) == ["dense", "scale", "blocks_0", "blocks_1"]
    assert ps.size == 9 + 3 + 12 + 4 and ps.scale.tolist() == [1, 1, 1]
    assert {name: value for name, value in st.items() if name != "calls"} == {
        "dense": {},
        "blocks_0": {},
        "blocks_1": {},
    }
    assert st["calls"] == 0 and st["calls"].dtype == "int64"


def test_the_body_is_the_function(key):
    ps, st = lux.setup(key, MODEL)
    ps = ps.replace(scale=[1.0, 2.0, 3.0])
    y, st_next = MODEL(X, ps, st)
    x = np.array([1.0, 2.0, 3.0]) * lux.Dense(2, 3, jnp.tanh)(X, ps.dense, {})[0]
    x = lux.Dense(3, 3)(jnp.sin(x), ps.blocks_0, {})[0]
    assert np.allclose(y, lux.Dense(3, 1)(jnp.sin(x), ps.blocks_1, {})[0])
    assert st_next["calls"] == 1 and st["calls"] == 0
    gradient = jax.grad(lambda ps: MODEL(X, ps, st)[0].sum())(ps)
    assert np.all(gradient.scale != 0)


def test_layers_inside_hand_their_state_on(key):
    @lux.compact(drop=lux.Dropout(0.5), norms={"a": lux.BatchNorm(2), "b": lux.BatchNorm(2)})
    def model(self, x):
        x = self.norms["b"](self.norms["a"](x))
        return self.drop(self.drop(x))

    ps, st = lux.setup(key, model)
    y, st_next = model(X, ps, st)
    assert list(st) == ["drop", "norms_a", "norms_b"]
    drop, expected = lux.Dropout(0.5), np.ones((4, 2))
    for _ in range(2):
        expected, st["drop"] = drop(expected, {}, st["drop"])
    assert np.array_equal(y == 0, expected == 0) and st_next["drop"]["key"] == st["drop"]["key"]
    assert np.any(st_next["norms_b"]["running_mean"] != st["norms_b"]["running_mean"])
    assert np.array_equal(
        model(X, ps, lux.testmode(st_next))[1]["norms_a"]["running_mean"], st_next["norms_a"]["running_mean"]
    )


def test_compact_layers_nest(key):
    @lux.compact(inner=MODEL, weight=lux.compact.parameter(lambda key: jax.random.normal(key, (1,))))
    def outer(self, x):
        return self.weight * self.inner(x)

    chain = lux.Chain(outer, lux.Dense(1, 1))
    ps, st = lux.setup(key, chain)
    assert ps.layer_0.inner.blocks_1.weight.shape == (3, 1)
    y, st_next = chain(X, ps, st)
    inner = MODEL(X, ps.layer_0.inner, st["layer_0"]["inner"])[0]
    assert np.allclose(
        y, np.asarray(ps.layer_0.weight * inner) @ np.asarray(ps.layer_1.weight) + np.asarray(ps.layer_1.bias)
    )
    assert st_next["layer_0"]["inner"]["calls"] == 1


def test_drawn_and_fixed_entries(key):
    @lux.compact(
        drawn=lux.compact.parameter(lambda key: jax.random.normal(key, (2,))),
        noise=lux.compact.state(lambda key: {"key": key}),
        mean=lux.compact.state(np.array([1.0, 2.0])),
        mode=lux.Mode.TRAIN,
        mask=np.array([True, False]),
        name="affine",
    )
    def model(self, x):
        assert self.name == "affine"
        if self.mode is lux.Mode.TRAIN:
            self.mean = 0.5 * self.mean
        return jnp.where(self.mask, x * self.drawn, 0.0) + self.mean

    ps, st = lux.setup(key, model)
    assert list(ps.keys()) == ["drawn"] and list(st) == ["noise", "mean", "mode", "mask"]
    assert not np.array_equal(ps.drawn, lux.setup(jax.random.key(1), model)[0].drawn)
    assert np.allclose(model(X, ps, st)[1]["mean"], [0.5, 1.0])
    assert np.allclose(model(X, ps, lux.testmode(st))[0][:, 1], 2.0)


def test_it_prints_its_body():
    lines = repr(MODEL).splitlines()
    assert (
        lines[0] == "@compact("
        and "    scale = np.array([1.0, 1.0, 1.0])," in lines
        and "    activation = jnp.sin," in lines
    )
    place = lines.index("    blocks = (")
    assert lines[place + 2].startswith("        Dense(3, 1),") and lines[place + 2].endswith("# 4 parameters")
    body = lines[lines.index(")") + 1 :]
    assert body[:2] == ["def MODEL(self, x):", "    self.calls = self.calls + 1"]
    assert body[-2:] == ["         # Total: 28 parameters,", "          #        plus 1 states."]
    assert "    def MODEL(self, x):" in repr(lux.Chain(MODEL)).splitlines()


def test_what_it_prints_makes_it_again():
    scope = {name: getattr(lux, name) for name in lux.__all__} | {"jnp": jnp, "np": np}

    @lux.compact(
        net=lux.Chain(lux.Dense(2, 2), jnp.tanh),
        named={"a": lux.Dense(2, 2), "b": lux.Dense(2, 2)},
        weight=np.ones(2),
        mean=lux.compact.state(np.array([0.5, 1.0])),
        steps=3,
        mode=lux.Mode.TRAIN,
        norm=jnp.max,
        text="it's",
    )
    def model(self, x):
        return self.named["a"](self.net(x)) * self.weight

    exec(repr(model), scope)
    again = scope["model"]
    for name in ("layers", "groups", "entries", "fixed", "order"):
        assert getattr(again, name) == getattr(model, name)
    assert lux.setup(jax.random.key(0), again)[0].equals(lux.setup(jax.random.key(0), model)[0])


def test_it_is_a_value():
    assert pickle.loads(pickle.dumps(MODEL)) is MODEL
    assert MODEL.replace() == MODEL and hash(MODEL.replace()) == hash(MODEL)
    for changed in (
        MODEL.replace_children({**MODEL.children, "dense": lux.Dense(2, 3)}),
        lux.compact(a=1)(lambda s, x: x),
    ):
        assert changed != MODEL


def test_mistakes_are_named(key):
    with pytest.raises(TypeError, match="'blocks' mixes layers and other values"):
        lux.compact(blocks=[lux.Dense(1, 1), 3])(lambda self, x: x)
    with pytest.raises(ValueError, match="'data' is a method or property of ComponentVector"):
        lux.compact(data=np.ones(2))(lambda self, x: x)
    with pytest.raises(ValueError, match="called '_st': leave out the underscore in front"):
        lux.compact(_st=np.ones(2))(lambda self, x: x)
    with pytest.raises(TypeError, match=r"write `@lux\.compact\(name=value, \.\.\.\)`, with parentheses"):
        lux.compact(lambda self, x: x)
    with pytest.raises(TypeError, match=r"Compact\.function: expected a function such as .*, got 3"):
        lux.compact(a=1)(3)
    with pytest.raises(ValueError, match="two values of the name a_0: rename"):
        lux.compact(a=[lux.Dense(1, 1)], a_0=lux.Dense(1, 1))(lambda self, x: x)

    def run(body):
        layer = lux.compact(weight=np.ones(2), total=0.0)(body)
        return layer(X, *lux.setup(key, layer))

    for body, error, says in (
        (lambda self, x: self.wieght, AttributeError, "this layer has no 'wieght'; it has weight, total"),
        (lambda self, x: setattr(self, "weight", 1.0), AttributeError, "state only, and 'weight' is a parameter"),
        (lambda self, x: setattr(self, "new", 1.0), AttributeError, "'new' is no entry of the state"),
    ):
        with pytest.raises(error, match=says):
            run(body)

    layer = lux.compact(total=0.0)(lambda self, x: setattr(self, "total", x))
    with pytest.raises(ValueError, match=r"'total' has shape \(\), and keeps it; it was assigned \(4, 2\)"):
        layer(X, *lux.setup(key, layer))


def test_compact_layers_keep_the_contract():
    check_layer(MODEL, X)


# --- StatefulLayer ------------------------------------------------------------------------------------------------


def test_a_stateful_layer_keeps_its_state(key):
    layer = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3))
    ps, st = lux.setup(key, layer)
    model = lux.StatefulLayer(layer, ps, st)
    y, expected = layer(X, ps, st)
    assert np.array_equal(model(X), y)
    assert np.array_equal(model.st["layer_1"]["running_mean"], expected["layer_1"]["running_mean"])
    model.st = lux.testmode(model.st)
    assert np.array_equal(model(X, 2.0 * ps), layer(X, 2.0 * ps, lux.testmode(expected))[0])
    assert "StatefulLayer(Chain(" in repr(model)


def test_a_stateful_layer_under_transforms(key):
    dense = lux.Dense(2, 3, jnp.tanh)
    ps, st = lux.setup(key, dense)
    model = lux.StatefulLayer(dense, ps, st)
    jacobian = jax.jit(lambda x: lux.derivatives.batched_jacobian(model, x))(X)
    assert jacobian.shape == (4, 3, 2)

    norm = lux.BatchNorm(2)
    ps, st = lux.setup(key, norm)

    def loss(ps, st):
        model = lux.StatefulLayer(norm, ps, st)
        return jnp.sum(model(X) ** 3), model.st

    (_, after), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(ps, st)
    assert np.allclose(after["running_mean"], 0.1 * X.mean(0))
    outside = lux.StatefulLayer(norm, ps, st)
    for transform in (jax.jit, jax.vmap):
        with pytest.raises(ValueError, match="this BatchNorm renews its state, which would leak out"):
            transform(outside)(X[None])
        assert outside.st is st


def test_functions_on_states_take_stateful_layers(key):
    layer = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3), lux.Dropout(0.5))
    ps, st = lux.setup(key, layer)
    model = lux.StatefulLayer(layer, ps, st)
    assert lux.parameter_length(model) == lux.parameter_length(layer) == 15
    assert lux.state_length(model) == lux.state_length(layer) == 9

    test = lux.testmode(model)
    assert type(test) is lux.StatefulLayer and test.st["layer_2"]["mode"] is lux.Mode.TEST
    assert model.st["layer_2"]["mode"] is lux.Mode.TRAIN
    assert np.array_equal(test(X), layer(X, ps, lux.testmode(st))[0]) and np.array_equal(test(X), test(X))
    assert lux.trainmode(test).st["layer_2"]["mode"] is lux.Mode.TRAIN

    other = lux.update_state(model, "running_mean", jnp.full(3, 2.0))
    assert other.st["layer_1"]["running_mean"].tolist() == [2, 2, 2]
    assert model.st["layer_1"]["running_mean"].tolist() == [0, 0, 0]
    with pytest.raises(KeyError, match="no entry of the state is called 'men'"):
        lux.update_state(model, "men", 0)


def test_stateful_layers_are_copied_and_pickled(key):
    layer = lux.Chain(lux.Dense(2, 3), lux.BatchNorm(3), lux.Dropout(0.5))
    model = lux.StatefulLayer(layer, *lux.setup(key, layer))
    model(X)
    copies = [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(lux.testmode(model)))]
    expected = lux.testmode(model)(X)
    for other in copies:
        before = other.st
        assert np.array_equal(lux.testmode(other)(X), expected) and other.layer == layer
        other(X)
        assert other.st is not before and model.st is not other.st
